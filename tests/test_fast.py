"""The fast step: equal to the plain loop for every method, leaves nothing behind, and refuses what it cannot capture.

On a CPU all of it but the capture itself. The tests marked `on_gpu` need a CUDA device.
"""

import inspect
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from imbook import data, nets
from imbook.experiments import run
from imbook.fast import CaptureError, Step, Watch, describe
from imbook.methods import METHODS
from imbook.methods.crl import FORMS, LEVELS
from imbook.precision import Counters
from imbook.train import FeatureGradients, Method, Protocol, _update, fit

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
# 21 steps, the last of each epoch smaller; the rates are exact in float32, which is what the graph reads.
STEPS = Protocol("21 steps", epochs=7, batch=16, lr=0.03125, milestones=(3,), decay=0.5, crop=1, flip=True, watch=3)
SETTINGS = [
    *((name, {}) for name in METHODS),
    *(("CRL", {"level": level, "form": form}) for level in LEVELS for form in FORMS),
    *(("DOS", change) for change in ({"w": "equal"}, {"w": "none"}, {"v": "live"}, {"stage": "stage2"}, {"k": 0})),
    *(("MFW", {"partner": which}) for which in ("major", "minor", "group")),
    ("CDB", {"reduction": "weights"}),
    ("OverSampling", {"whole": True}),
    ("ManifoldMixup", {"stages": ("stage1",)}),
]
every = pytest.mark.parametrize("name, changes", SETTINGS, ids=lambda v: v if isinstance(v, str) else str(v or ""))


def prepare(name, changes, device="cpu", dtype=torch.float64, start=2):
    """Method, network, training and validation set; what begins at a start epoch begins within a short run."""
    method = METHODS[name]
    options = {"start": start} if "start" in inspect.signature(method).parameters else {}
    method = method(torch.tensor([24, 12, 6]), **options, **changes)
    for part in method.children():  # a head of its own; buffers keep their type, as in any run
        part.to(dtype)
    train, valid = (
        data.Batches(toys.images(n, seed=s), batch=16, seed=s, crop=1, flip=True, device=device, dtype=dtype)
        for s, n in enumerate([(24, 12, 6), (6, 6, 6)])
    )
    return toys.net(method=method).to(dtype), method, train, valid


def random_states(train):
    device = train.x.device
    return train.generator.get_state(), torch.cuda.get_rng_state(device) if train.x.is_cuda else torch.get_rng_state()


def gap(a, b):
    """The largest difference of two nested states; infinite where they differ in form."""
    if isinstance(a, torch.Tensor):
        return (a.double() - b.double()).nan_to_num().abs().max().item() if a.numel() else 0.0
    if isinstance(a, dict):
        return max((gap(a[k], b[k]) for k in a if k != "seconds"), default=0.0) if a.keys() == b.keys() else torch.inf
    if isinstance(a, list):
        return max(map(gap, a, b), default=0.0) if len(a) == len(b) else torch.inf
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) if a == a else 0.0
    return 0.0 if a == b else torch.inf


# The same mathematics


@every
@pytest.mark.parametrize("device", DEVICES)
def test_the_fast_step_is_the_plain_loop(name, changes, device):
    """Float64, 21 steps to 1e-9 across the changes of state; on a CPU bit for bit."""
    found = []
    for fast in (False, True):
        net, method, train, valid = prepare(name, changes, device)
        curve = fit(net, method, train, valid, valid, protocol=STEPS, seed=3, fast=fast)
        assert len(curve) == 3
        found.append([net.state_dict(), method.state_dict(), curve, train.order, *random_states(train)])
    assert toys.same(*found) if device == "cpu" else gap(*found) < 1e-9
    assert gap(found[0][0], toys.net(method=method).double().to(device).state_dict()) > 1e-3, "it was trained"


@pytest.mark.parametrize("device", DEVICES)
def test_the_instrument_sees_the_same_gradients(device):
    found = []
    for fast in (False, True):
        net, method, train, _ = prepare("MFW", {}, device)
        found.append(fit(net, method, train, protocol=STEPS, instrument="stage3", fast=fast))
    assert all(len(row["gradient"]) == 3 for row in found[1]) and gap(*found) < 1e-9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("first, then", [(True, True), (True, False), (False, True)])
def test_a_checkpoint_goes_over_from_one_loop_to_the_other(first, then, device, tmp_path):
    class Stop(Exception):
        pass

    def stop(epoch, row):
        if epoch == 4:
            raise Stop

    def train_one(**options):
        net, method, train, valid = prepare("DOSAbstract", {}, device)
        return fit(net, method, train, protocol=STEPS, every=4, **options), net.state_dict()

    whole = train_one()
    with pytest.raises(Stop):
        train_one(checkpoint=tmp_path / "c.pt", tick=stop, fast=first)
    assert gap(list(train_one(checkpoint=tmp_path / "c.pt", fast=then)), list(whole)) < 1e-9


def test_frozen_parameters_stay_frozen():
    net, method, train, _ = prepare("CrossEntropy", {})
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fit(net, method, train, protocol=STEPS, parameters=net.head.parameters(), fast=True)
    after = net.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_weights_in_float32(precision):
    losses = []
    for which in (None, precision):
        step, _ = a_step("CrossEntropy", {}, dtype=torch.float32, precision=which)
        losses.append(step(torch.arange(16)).item())
        assert {p.dtype for p in step.net.parameters()} == {torch.float32}
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)


# What it says


def test_on_a_cpu_it_is_the_plain_loop_and_says_so(caplog, monkeypatch):
    net, method, train, _ = prepare("CrossEntropy", {})
    with caplog.at_level(logging.INFO, "imbook"):
        fit(net, method, train, protocol=replace(STEPS, epochs=1, milestones=()), fast=True)
    assert [r.getMessage() for r in caplog.records] == ["fast: plain loop on cpu"]
    assert describe(net, torch.device("cpu")) == "plain loop on cpu"
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert describe(net, gpu) == "cuda graph, channels_last, tf32" and describe(nets.lenet(), gpu) == "cuda graph, tf32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert describe(net, gpu) == "cuda graph, channels_last"


def test_a_record_says_how_it_was_made():
    (row, *_), seeds = toys.table().rows, dict(order=0, draw=0, train=0)
    plain, fast = (run(row, seeds, fast=fast) for fast in (False, True))
    assert "fast" not in plain and fast["fast"] == "plain loop on cpu"
    assert plain["key"] == fast["key"] == row.key(seeds) and plain["confusion"] == fast["confusion"]


# Nothing is left behind, and what has moved is noticed


def a_step(name, changes, epochs=3, device="cpu", dtype=torch.float64, **options):
    """A step in the middle of a run, and its training set."""
    net, method, train, valid = prepare(name, changes, device, dtype, start=1)
    net.to(device), method.to(device)
    optimiser = torch.optim.SGD([*net.parameters(), *method.parameters()], 0.03125, 0.9, fused=True)
    step = Step(net, method, optimiser, train, **options)
    for epoch in range(epochs):
        _update(method, epoch, net, train, valid, seed=0)
        net.train()
        step.epoch(torch.zeros(len(train), dtype=dtype, device=device))
    return step, train


@pytest.mark.parametrize("name", ["DOSAbstract", "MFW", "ManifoldMixup"])
def test_a_warm_up_leaves_nothing_behind(name):
    step, train = a_step(name, {})
    with FeatureGradients(step.net, step.method, "stage3", train.n) as step.gradients:
        step.run(torch.arange(16))
        kept = len(step.gradients.norms)
        before = [{k: v.clone() for k, v in s.state_dict().items()} for s in (step.net, step.method)]
        momentum, random = [m.clone() for m in step.momentum()], random_states(train)
        step.warm_up(torch.arange(16))
        assert len(step.gradients.norms) == len(step.gradients.labels) == kept == 1
    assert toys.same(before, [step.net.state_dict(), step.method.state_dict()])
    assert toys.same(momentum, step.momentum()) and toys.same(random, random_states(train))
    step.run(torch.arange(16))
    assert not toys.same(before, [step.net.state_dict(), step.method.state_dict()]), "a step does leave something"


def test_what_has_moved_is_noticed():
    step, train = a_step("DOS", {})
    fixed = step.what_is_fixed()
    step.method.near.copy_(step.method.near.flip(0)), step.run(torch.arange(16))
    train.order = train.order.repeat(2)
    assert step.what_is_fixed() == fixed, "written in place, or read by the host alone"
    for change in (
        lambda: step.method.allocate(step.method.z),
        lambda: setattr(step.method, "lambda_", 0.5),
        lambda: setattr(step.method, "w", "equal"),
        lambda: setattr(step.method, "loose", torch.ones(2)),
        lambda: setattr(step.net.head, "weight", nn.Parameter(step.net.head.weight.clone())),
        lambda: step.net.eval(),
    ):
        change()
        now = step.what_is_fixed()
        assert now != fixed
        fixed = now


# What can be captured


@every
def test_the_host_waits_for_nothing_in_any_method(name, changes):
    """Forward, backward and optimiser, in the middle of a run."""
    step, _ = a_step(name, changes)
    for size in (16, 10):
        step.check(torch.arange(size), Counters(step.net))


def asks_the_driver():
    """Whether this torch needs a GPU's driver for a tensor without numbers: old ones built for CUDA, where none is."""
    with FakeTensorMode():
        x = torch.empty_strided((2, 2), (2, 1), device="cuda")
        try:
            x[torch.empty_strided((2,), (1,), dtype=torch.int64, device="cuda")]
        except RuntimeError as error:
            return "driver" in str(error)
    return False


pretending = pytest.mark.skipif(asks_the_driver(), reason="built for CUDA, this torch pretends nothing without a GPU")


@every
@pretending
def test_the_forward_pass_on_a_pretended_gpu(name, changes):
    """Tensors without numbers that say they lie on a GPU: what reads a value fails, copies between devices are seen."""
    step, train = a_step(name, changes, dtype=torch.float32)

    def like(t):
        return torch.empty_strided(tuple(t.shape), t.stride(), dtype=t.dtype, device="cuda")

    with FakeTensorMode():
        for module in (*step.net.modules(), *step.method.modules()):
            for k, p in module._parameters.items():
                module._parameters[k] = nn.Parameter(like(p)) if p is not None else None
            for k, b in module._buffers.items():
                module._buffers[k] = None if b is None else like(b)
        train.x, train.y, train.mean, train.scale = map(like, (train.x, train.y, train.mean, train.scale))
        train.generator = None
        i = like(torch.arange(16))
        with Watch() as watch:
            x, y = train.take(i)
            loss = step.method(step.net, x, y, i)
        assert loss.device.type == "cuda" and loss.shape == () and not watch.waits
        with Watch() as watch:
            torch.ones(()).to("cuda") + loss
        assert watch.waits == ["aten._to_copy.default"], "which is not blind to copies"


class Reading(Method):
    """Cross entropy that does something a graph cannot hold."""

    def __init__(self, do):
        super().__init__()
        self.do = do

    def forward(self, net, x, y, i):
        h = net(x)
        self.do(h, y)
        return nn.functional.cross_entropy(h, y)


@pytest.mark.parametrize(
    "do, operation",
    [
        (lambda h, y: h.sum().item(), "_local_scalar_dense"),
        (lambda h, y: None if (y > 0).any() else h, "_local_scalar_dense"),
        (lambda h, y: (y > 0).nonzero(), "nonzero"),
        (lambda h, y: h[y > 0], "index.Tensor"),
        (lambda h, y: y.unique(), "_unique2"),
        (lambda h, y: torch.bincount(y), "bincount"),
        (lambda h, y: y.repeat_interleave(y), "repeat_interleave"),
        (lambda h, y: torch.masked_select(y, y > 0), "masked_select"),
        (lambda h, y: nn.functional.one_hot(y, 3), "_local_scalar_dense"),
    ],
)
def test_a_method_that_waits_for_the_device_is_refused(do, operation):
    _, _, train, _ = prepare("CrossEntropy", {})
    net, method = toys.net().double(), Reading(do)
    step = Step(net, method, torch.optim.SGD(net.parameters(), 0.1, fused=True), train)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CaptureError, match=rf"Reading.*cannot be captured.*aten\.{operation}.*fast=False"):
        step.check(torch.arange(16), Counters(net))
    assert toys.same(before, net.state_dict())


def test_an_operation_that_is_told_the_size_is_let_through():
    def told(h, y):
        y.repeat_interleave(torch.ones_like(y), output_size=len(y)), h[y], h.clone().index_put_((y,), h[:1].detach())

    _, _, train, _ = prepare("CrossEntropy", {})
    net = toys.net().double()
    step = Step(net, Reading(told), torch.optim.SGD(net.parameters(), 0.1, fused=True), train)
    step.check(torch.arange(16), Counters(net))


# On a GPU


@on_gpu
@pytest.mark.parametrize("name", METHODS)
def test_the_first_step_in_float32(name):
    """Without TF32: the loss to 1e-5, each gradient to a relative 1e-3 where it does not vanish."""
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        found = []
        for graph in (False, True):
            step, train = a_step(name, {}, epochs=0, device="cuda", dtype=torch.float32)
            for epoch in (0, 1):
                _update(step.method, epoch, step.net, train, prepare(name, {}, "cuda", torch.float32)[3], seed=0)
            step.net.train(), torch.manual_seed(0)
            step.optimiser.param_groups[0]["lr"] = 0.0  # so that all three steps are of the same weights
            losses = torch.zeros(len(train), device="cuda")
            if graph:
                step.epoch(losses)
            else:
                for b, i in enumerate(train.positions()):
                    losses[b] = step.run(i)
            found.append((losses, [p.grad.clone() for p in step.net.parameters()]))
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    (losses, gradients), (its_losses, its_gradients) = found
    assert (losses - its_losses).abs().max() < 1e-5
    assert all((a - b).norm() <= 1e-3 * b.norm() + 1e-6 for a, b in zip(its_gradients, gradients))


@on_gpu
def test_a_capture_leaves_nothing_behind_and_is_made_once_a_size():
    step, train = a_step("MFW", {}, device="cuda")
    assert sorted(step.graphs) == [10, 16]
    graphs = dict(step.graphs)
    before = [{k: v.clone() for k, v in s.state_dict().items()} for s in (step.net, step.method)]
    momentum, random = [m.clone() for m in step.momentum()], random_states(train)
    step.capture(torch.arange(12, device="cuda"))
    assert toys.same(before, [step.net.state_dict(), step.method.state_dict()])
    assert toys.same(momentum, step.momentum()) and toys.same(random, random_states(train))
    step.epoch(torch.zeros(len(train), dtype=torch.float64, device="cuda"))
    assert all(step.graphs[size] is graphs[size] for size in graphs)


@on_gpu
def test_graphs_are_captured_anew_where_a_table_was_replaced():
    step, train = a_step("DOS", {}, device="cuda")
    graphs = dict(step.graphs)
    step.method.near = step.method.near.clone()
    step.epoch(torch.zeros(len(train), dtype=torch.float64, device="cuda"))
    assert all(step.graphs[size] is not graphs.get(size) for size in step.graphs)


def break_a_capture():
    """For a process of its own: a capture that breaks off may leave torch's allocator and generators broken."""
    net, train = toys.net().double().cuda(), prepare("CrossEntropy", {}, "cuda")[2]
    method = Reading(lambda h, y: h.sum().item())
    step = Step(net, method, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=True), train)
    with pytest.raises(CaptureError, match="Reading.*_local_scalar_dense"):
        step.epoch(torch.zeros(len(train), dtype=torch.float64, device="cuda"))
    Step.check = lambda self, i, counters: []  # as if the list of such operations had a hole
    Step.warm_up = lambda self, i: None
    outside = torch.cuda.current_stream()
    with pytest.raises(CaptureError, match=r"Reading.*it failed at .*h\.sum\(\)\.item\(\)") as caught:
        step.epoch(torch.zeros(len(train), dtype=torch.float64, device="cuda"))
    assert caught.value.__cause__ is not None and torch.cuda.current_stream() == outside
    print("broken off, as it should")


@on_gpu
def test_a_capture_that_fails_names_method_and_operation():
    command = [sys.executable, "-c", "import test_fast; test_fast.break_a_capture()"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert "broken off, as it should" in done.stdout, done.stderr
