"""What is captured, as far as a CPU can show: compiled blocks, the scaler, counters, and when a graph is made anew.

`Rerun` stands for a CUDA graph: replaying it runs the step again, on the fixed positions and into the fixed loss.
"""

import copy
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import toys
from test_fast import SETTINGS, STEPS, a_step, prepare, pretending
from torch import nn

from imbook import nets, precision
from imbook.fast import CaptureError, Step, Watch, describe
from imbook.instruments import FeatureGradients
from imbook.methods import CrossEntropy
from imbook.precision import Counters, Scaler, best_precision, check_precision, compiled_blocks, switches
from imbook.train import fit

GPU = torch.device("cuda", 0)


class Rerun:
    """A stand-in for `imbook.fast.Graph` on a CPU. Work that is recorded leaves nothing behind, as in a capture."""

    made = []

    def __init__(self, step):
        self.step = step
        Rerun.made.append(self)

    @contextmanager
    def aside(self):
        yield

    def record(self, work):
        self.work, self.loss = work, work()
        return self.loss

    def replay(self):
        with Counters(self.step.net).out():  # as where it was recorded
            self.loss.copy_(self.work())


@pytest.fixture
def graphs(monkeypatch):
    """Steps are captured and replayed on the CPU; the list of graphs that were made."""
    monkeypatch.setattr(Step, "captures", True)
    monkeypatch.setattr(Step, "new_graph", lambda self: Rerun(self))
    monkeypatch.setattr(Step, "new_pool", lambda self: None)
    make = Step.__init__

    def with_a_rate_of_float64(self, *given, **named):
        make(self, *given, **named)
        self.rate = self.rate.double()

    monkeypatch.setattr(Step, "__init__", with_a_rate_of_float64)
    Rerun.made = []
    return Rerun.made


class Backend:
    """A backend of torch.compile that counts the compiled graphs and their calls, and computes as if eager."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, module, inputs):
        self.graphs += 1

        def called(*arguments):
            self.calls += 1
            return module.forward(*arguments)

        return called


# Capture and replay


@pytest.mark.parametrize("name, changes", [s for s in SETTINGS if not s[1] or s[0] == "DOS"])
def test_capture_and_replay_are_the_plain_loop(name, changes, graphs):
    """Bit for bit, BatchNorm's counters included; each size of batch is captured once, the ragged one, too."""
    found = []
    for quick in (False, True):
        net, method, train, valid = prepare(name, changes)
        orders = []
        update = method.update
        method.update = lambda *a: (update(*a), orders.append(train.order.clone()))[0]  # noqa: B023
        curve = fit(net, method, train, valid, valid, protocol=STEPS, seed=3, fast=quick)
        found.append([net.state_dict(), method.state_dict(), curve, train.generator.get_state(), torch.get_rng_state()])
    assert toys.same(*found)
    passes = 2 if changes.get("v") == "live" else 1
    assert net.stem[1].num_batches_tracked == passes * sum(-(-len(order) // 16) for order in orders)
    assert len(graphs) == len({size for order in orders for size in (16, len(order) % 16 or 16)})


def test_a_change_of_what_a_graph_holds_is_captured_anew(graphs):
    step, train = a_step("MFW", {})
    assert len(graphs) == 2 and sorted(step.graphs) == [10, 16]
    step.epoch(torch.zeros(3, dtype=torch.float64))
    assert len(graphs) == 2
    step.method.low = 0.25
    step.epoch(torch.zeros(3, dtype=torch.float64))
    assert len(graphs) == 4


def test_the_instrument_is_replayed(graphs, monkeypatch):
    class Static(Rerun):
        """A graph runs no hook: what the hooks note is overwritten in the places of the capture."""

        def record(self, work):
            loss = super().record(work)
            self.places = [some[-1] for some in self.noted()]
            return loss

        def replay(self):
            super().replay()
            for place, some in zip(self.places, self.noted()):
                place.copy_(some.pop())

        def noted(self):
            return self.step.gradients.norms, self.step.gradients.labels

    monkeypatch.setattr(Step, "new_graph", lambda self: Static(self))
    found = []
    for quick in (False, True):
        net, method, train, _ = prepare("MFW", {})
        found.append(fit(net, method, train, protocol=STEPS, instrument="stage3", fast=quick))
    assert toys.same(*found)


def test_a_capture_that_breaks_off_names_the_line(graphs, monkeypatch):
    step, _ = a_step("CrossEntropy", {})

    class Fails(CrossEntropy):
        def forward(self, net, x, y, i):
            raise RuntimeError("no such luck")

    step.method = Fails()
    monkeypatch.setattr(Step, "check", lambda self, i, counters: [])
    monkeypatch.setattr(Step, "warm_up", lambda self, i: None)
    class Ended(Rerun):
        """As in torch, to end a capture that broke off raises once more."""

        def record(self, work):
            try:
                work()
            except RuntimeError:
                raise ValueError("the capture was invalidated")  # noqa: B904

    for kind in (Rerun, Ended):
        monkeypatch.setattr(Step, "new_graph", lambda self, kind=kind: kind(self))
        step.fixed = 1
        with pytest.raises(CaptureError, match=r"Fails: .* it failed at 'raise RuntimeError.*test_fast_capture.py"):
            step.capture(torch.arange(12))
        assert step.fixed is None


# Counters


def test_counters_are_out_of_the_step_and_added_up_after_it():
    net = toys.net()
    counters = Counters(net)
    assert len(counters.layers) == 7 and counters.read() == [0] * 7
    with counters.out():
        net(torch.randn(4, 1, 8, 8))
        assert net.stem[1].num_batches_tracked is None
    assert counters.read() == [0] * 7 and net.stem[1].num_batches_tracked is counters.places[0]
    counters.add([3] * 7)
    assert net.state_dict()["stem.1.num_batches_tracked"] == 3
    cumulative = nn.Sequential(nn.BatchNorm1d(2, momentum=None), nn.BatchNorm1d(2, track_running_stats=False))
    assert not Counters(cumulative).layers, "there the counter is a part of the average"
    assert Counters(nn.Linear(2, 2)).read() == []


# Compiled blocks


@pytest.mark.parametrize(
    "name, dtype, exact",
    [*((name, torch.float64, 1e-10) for name in ("CrossEntropy", "DOS")), ("MFW", torch.float32, 2e-3)],
)
def test_compiled_blocks_compute_the_same(name, dtype, exact):
    """Through AOTAutograd, forward and backward: losses, gradients and running statistics."""
    found = []
    for backend in (None, "aot_eager"):
        step, _ = a_step(name, {}, dtype=dtype, epochs=1, backend=backend)
        with step:
            torch.manual_seed(0)
            loss = step.run(torch.arange(16))
        gradients = [p.grad for p in step.net.parameters()]
        found.append([loss, *gradients, *step.net.state_dict().values()])
        assert "forward" not in vars(step.net.stage1[0]), "nothing stays attached"
    assert all((a - b).abs().max() <= exact * max(1, b.abs().max()) for a, b in zip(*found))


def test_compiled_blocks_are_in_what_is_captured(graphs):
    """Nothing compiles under a dispatch mode: no watch is on where steps are warmed up and captured."""
    counted = Backend()
    net, method, train, _ = prepare("CrossEntropy", {}, dtype=torch.float32)
    step = Step(net, method, torch.optim.SGD(net.parameters(), 0.1, 0.9, fused=True), train, backend=counted)
    with step:
        step.run(torch.arange(16))
        assert (counted.graphs, counted.calls) == (3, 3), "three blocks of three shapes"
        step.check(torch.arange(16), Counters(net))
        assert counted.calls == 3, "not under the watch"
        step.epoch(torch.zeros(3))
        seen = counted.calls - 3
        # two steps of the warm-up, one captured, two replayed; the smaller last batch stays as it is
        assert seen == 3 * (2 + 1 + 2) and counted.graphs == 3 + 3, "once more without the counters"
        step.epoch(torch.zeros(3))
        assert counted.calls - 3 - seen == 3 * 2 and counted.graphs == 6
        calls = counted.calls
        net.eval(), net(torch.randn(16, 1, 8, 8)), net.train()
        with torch.no_grad():
            net(torch.randn(16, 1, 8, 8))
        net(torch.randn(10, 1, 8, 8))
        assert counted.calls == calls, "evaluation and other batches"
    net(torch.randn(16, 1, 8, 8))
    assert counted.calls == calls


def test_blocks_of_one_shape_share_their_code():
    counted, net = Backend(), nets.resnet(20, 3, 1)
    with compiled_blocks(net, 16, counted):
        net(torch.randn(16, 1, 8, 8))
    assert counted.calls == 9 and counted.graphs == 5


def test_a_hook_inside_a_block_is_not_lost():
    """Compiled code would pass it over, in silence."""
    counted, net, seen = Backend(), toys.net(), []
    with compiled_blocks(net, 16, counted):
        net(torch.randn(16, 1, 8, 8))
        assert counted.calls == 3
        net.stage2[0].conv1.register_forward_hook(lambda *_: seen.append("inside"))
        net.stage1[0].register_forward_hook(lambda *_: seen.append("around"))
        net(torch.randn(16, 1, 8, 8))
    assert counted.calls == 5 and seen == ["around", "inside"]


def test_an_instrument_sees_through_compiled_blocks():
    found = []
    for stage in ("stage2", "stage2.0.conv1"):
        for backend in (None, "aot_eager"):
            step, train = a_step("CrossEntropy", {}, epochs=0, backend=backend)
            with FeatureGradients(step.net, step.method, stage, train.n) as gradients, step:
                step.net.train()
                step.run(torch.arange(16))
                found.append(gradients.take())
    assert found[0] == pytest.approx(found[1], rel=1e-9) and found[2] == pytest.approx(found[3], rel=1e-9)


# Precision


def test_what_is_done_is_described(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: object())
    net = toys.net()
    assert describe(net, GPU, "bf16") == "cuda graph, channels_last, bf16, compiled blocks"
    assert describe(nets.lenet(), GPU, "bf16") == "cuda graph, channels_last, bf16"
    assert describe(net, GPU, "tf32") == "cuda graph, channels_last, tf32"
    assert describe(net, GPU, "float32") == "cuda graph, channels_last"
    assert describe(net, torch.device("cpu"), "bf16") == "plain loop on cpu, bf16"
    assert best_precision("cuda") == "bf16" and best_precision("cpu") is None
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: None)
    assert describe(net, GPU, "bf16") == "cuda graph, channels_last, bf16", "without Triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    assert best_precision(GPU) == "fp16" and describe(net, GPU, "tf32") == "cuda graph, channels_last"
    with pytest.raises(ValueError, match="T4 does not compute in bfloat16: choose precision='fp16'"):
        check_precision("bf16", GPU)
    with pytest.raises(ValueError, match="precision 'half': choose from None, 'float32', 'tf32', 'bf16', 'fp16'"):
        check_precision("half", torch.device("cpu"))


@pytest.mark.parametrize(
    "which, expected", [(None, (True, False)), ("tf32", (True, True)), ("float32", (False, False))]
)
def test_tf32_is_switched_within_and_put_back(which, expected):
    conv, matrix = torch.backends.cudnn, torch.backends.cuda.matmul
    before = conv.allow_tf32, matrix.allow_tf32
    assert before == (True, False)
    with pytest.raises(ZeroDivisionError), switches(which):
        assert (conv.allow_tf32, matrix.allow_tf32) == expected
        raise ZeroDivisionError
    assert (conv.allow_tf32, matrix.allow_tf32) == before


@pytest.mark.parametrize("which", ["bf16", "fp16"])
def test_training_in_half_precision(which, tmp_path):
    """A curve near that of float32, weights in float32, a checkpoint that resumes bit for bit, the scale included."""
    protocol = replace(STEPS, watch=7)
    states = []
    for how in (None, which):
        net, method, train, valid = prepare("CrossEntropy", {}, dtype=torch.float32)
        curve = fit(net, method, train, valid, valid, protocol=protocol, fast=True, precision=how)
        states.append((curve[-1]["loss"], net.state_dict()))
    assert states[1][0] == pytest.approx(states[0][0], rel=0.1) and not toys.same(states[0][1], states[1][1])
    assert {v.dtype for v in states[1][1].values() if v.is_floating_point()} == {torch.float32}

    def stop(epoch, row):
        if epoch == 3:
            raise KeyboardInterrupt

    def again(tick=None):
        net, method, train, valid = prepare("CrossEntropy", {}, dtype=torch.float32)
        how = dict(fast=True, precision=which, checkpoint=tmp_path / "run.pt", tick=tick)
        return fit(net, method, train, valid, valid, protocol=protocol, **how), net.state_dict()

    with pytest.raises(KeyboardInterrupt):
        again(stop)
    assert toys.same(again()[1], states[1][1])


def linear():
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    return net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01, fused=True)


def test_a_scaled_step_is_a_plain_step():
    (net, optimiser), (twin, its) = linear(), linear()
    scaler, x = Scaler("cpu"), torch.randn(3, 4)
    for _ in range(3):
        optimiser.zero_grad(), its.zero_grad()
        scaler.step(net(x).square().mean(), optimiser)
        twin(x).square().mean().backward(), its.step()
    assert all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(net.parameters(), twin.parameters()))
    assert scaler.scale == 2**16 and scaler.good == 3 and not scaler.overflow
    assert not hasattr(optimiser, "grad_scale") and not hasattr(optimiser, "found_inf")


def test_an_overflow_changes_no_weight_and_halves_the_scale():
    net, optimiser = linear()
    scaler, x = Scaler("cpu"), torch.randn(3, 4)
    optimiser.zero_grad(), scaler.step(net(x).square().mean(), optimiser)
    weights = copy.deepcopy(net.state_dict())
    momentum = [optimiser.state[p]["momentum_buffer"].clone() for p in net.parameters()]
    for bad in (math.inf, math.nan):
        optimiser.zero_grad(), scaler.step((net(x) * bad).sum(), optimiser)
        assert scaler.overflow == 1 and scaler.good == 0
    assert toys.same(weights, net.state_dict()) and scaler.scale == 2**14
    assert toys.same(momentum, [optimiser.state[p]["momentum_buffer"] for p in net.parameters()])
    optimiser.zero_grad(), scaler.step(net(x).square().mean(), optimiser)
    assert not toys.same(weights, net.state_dict()) and scaler.good == 1
    scaler.good.fill_(1999)
    optimiser.zero_grad(), scaler.step(net(x).square().mean(), optimiser)
    assert scaler.scale == 2**15 and scaler.good == 0, "doubled after 2,000 good steps"


def test_the_host_waits_for_nothing_in_a_scaled_step():
    step, _ = a_step("CrossEntropy", {}, dtype=torch.float32, precision="fp16")
    step.check(torch.arange(16), Counters(step.net))


def test_the_instrument_measures_unscaled_gradients():
    found = []
    for scale in (None, 2.0**10):
        net, method, train, _ = prepare("CrossEntropy", {}, dtype=torch.float32)
        optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, fused=True)
        with FeatureGradients(net, method, "stage3", train.n) as gradients:
            step = Step(net, method, optimiser, train, gradients)
            if scale:
                step.scaler = Scaler("cpu", scale)
                gradients.scale = step.scaler.scale
            step.run(torch.arange(16)), step.run(torch.arange(16, 32))
            if scale:  # a step that overflows counts for nothing
                before = step.scaler.scale.item()
                step.scaler.scale.fill_(3e38), step.run(torch.arange(16)), step.scaler.scale.fill_(before)
                assert not gradients.norms[-1].isfinite().all()
            found.append(gradients.take())
    assert found[1] == pytest.approx(found[0], rel=1e-4)


# What is refused


def test_batches_that_are_not_in_memory_are_refused():
    class Read:
        device, order, batch, crop, flip = torch.device("cpu"), torch.arange(4), 16, None, None

    net, method = toys.net(), CrossEntropy()
    with pytest.raises(ValueError, match="gathers its images .* and Read reads them one by one: train with fast=False"):
        Step(net, method, torch.optim.SGD(net.parameters(), 0.1, fused=True), Read())


@pretending
@pytest.mark.parametrize("machine", ["without a GPU", "with a GPU"])
def test_a_copy_between_devices_is_seen_on_any_machine(machine):
    """Where there is a GPU, torch.tensor(1.0, device="cuda") is lifted as it is, and no copy is dispatched."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(machine == "without a GPU")
        try:
            with Watch() as watch:
                torch.ones(()).to("cuda")
        finally:
            torch._C._set_only_lift_cpu_tensors(before)
    assert watch.waits == ["aten._to_copy.default"]
