"""The loop: against a loop written by hand, its promises on randomness, checkpoints, what its interface carries."""

import inspect
import os
import random
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import replace
from itertools import count

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import nn

from imbook import checkpoints, data, metrics
from imbook.methods import (
    METHODS,
    MFW,
    CrossEntropy,
    Focal,
    LogitAdjusted,
    ManifoldMixup,
    Mixup,
    OverSampling,
    Weighted,
)
from imbook.methods.baselines import over_sample
from imbook.train import FeatureGradients, Method, Protocol, evaluate, fit, group_recall, learning_rate

SHORT = Protocol("short", epochs=4, batch=16, lr=0.05, warmup=1, cosine=True, crop=1, flip=True)
AS_IT_IS = replace(SHORT, crop=0, flip=False)


def batches(seed=0, n=(24, 12, 6), size=8, **options):
    train = data.Batches(toys.images(n, size), batch=16, seed=seed, crop=1, flip=True, **options)
    valid, test = (data.Batches(toys.images((6, 6, 6), size, seed=s), **options) for s in (1, 2))
    return train, valid, test


class BalancedFromTheSecondEpoch(CrossEntropy):
    """Cross entropy that sets the order once, not before each epoch."""

    def update(self, epoch, net, train, valid):
        if epoch == 1:
            train.order = over_sample(train.y)
        return {}


KILLED = {**METHODS, "BalancedFromTheSecondEpoch": BalancedFromTheSecondEpoch}


def prepare(name):
    """One of the methods, with what happens at a start epoch moved to where a short run sees it."""
    method = KILLED[name]
    options = {"start": 2} if "start" in inspect.signature(method).parameters else {}
    return method(torch.tensor([24, 12, 6]), **options)


def train_one(name, net_seed=0, **options):
    """Network, method, curve and training set after a run; Dropout draws from the global generator in every step."""
    method = prepare(name)
    net, (train, valid, test) = toys.net(method=method, seed=net_seed), batches()
    net.stage2.append(nn.Dropout(0.2))
    curve = fit(net, method, train, valid, test, protocol=SHORT, **options)
    return net, method, curve, train


# The learning rate and the protocol


def rates(**settings):
    protocol = Protocol("p", **settings)
    return [learning_rate(protocol, e) for e in range(protocol.epochs)]


def test_the_schedule_of_ldam():
    lr = rates(epochs=200, warmup=5, milestones=(160, 180), decay=0.01)
    assert lr[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert set(lr[5:160]) == {0.1}
    assert lr[160:180] == pytest.approx([1e-3] * 20) and lr[180:] == pytest.approx([1e-5] * 20)


def test_the_schedule_of_cdb():
    lr = rates(epochs=240, milestones=(160, 210), decay=0.01)
    assert set(lr[:160]) == {0.1}
    assert lr[160:210] == pytest.approx([1e-3] * 50) and lr[210:] == pytest.approx([1e-5] * 30)


def test_the_cosine_schedule():
    lr = rates(epochs=100, lr=0.2, cosine=True)
    assert lr[0] == 0.2 and lr[50] == pytest.approx(0.1) and 0 < lr[99] < 1e-4
    assert all(a > b for a, b in zip(lr, lr[1:]))
    warm = rates(epochs=30, lr=0.3, warmup=3, cosine=True)
    assert warm[:4] == pytest.approx([0.1, 0.2, 0.3, 0.3]) and warm[-1] < 0.002


@pytest.mark.parametrize(
    "settings",
    [
        dict(epochs=0),
        dict(epochs=2, batch=0),
        dict(epochs=2, watch=0),
        dict(epochs=2, lr=0.0),
        dict(epochs=2, warmup=2),
        dict(epochs=2, warmup=-1),
        dict(epochs=2, cosine=True, milestones=(1,)),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match="Protocol"):
        Protocol("p", **settings)


def test_a_protocol_is_frozen():
    with pytest.raises(AttributeError):
        SHORT.lr = 1.0
    assert replace(SHORT, lr=1.0).lr == 1.0 and SHORT.lr == 0.05


# The loop


def test_the_loop_equals_one_written_by_hand():
    """Float64, 20 steps of 16 of 64 images: network, losses and recalls to 1e-9."""
    some = toys.images((32, 20, 12))
    protocol = Protocol("p", 5, 16, lr=0.03, weight_decay=1e-3, warmup=2, milestones=(4,), crop=1, flip=True)
    net, twin = toys.net().double(), toys.net().double()
    make = lambda: data.Batches(some, batch=16, seed=3, crop=1, flip=True, dtype=torch.float64)  # noqa: E731
    curve = fit(net, CrossEntropy(), make(), test=make(), protocol=protocol)

    train = make()
    optimiser = torch.optim.SGD(twin.parameters(), 0.03, momentum=0.9, weight_decay=1e-3, foreach=False, fused=False)
    criterion = nn.CrossEntropyLoss()
    for epoch, lr in enumerate([0.015, 0.03, 0.03, 0.03, 0.003]):
        optimiser.param_groups[0]["lr"] = lr
        twin.train()
        total = 0.0
        for x, y, _ in train:
            optimiser.zero_grad()
            loss = criterion(twin(x), y)
            loss.backward()
            optimiser.step()
            total += loss.item()
        twin.eval()
        with torch.no_grad():
            right = twin(train.normalise(some.x)).argmax(1) == some.y
        assert curve[epoch]["epoch"] == epoch + 1 and curve[epoch]["lr"] == pytest.approx(lr)
        assert curve[epoch]["loss"] == pytest.approx(total / 4, abs=1e-9)
        assert curve[epoch]["test"] == pytest.approx([right[some.y == c].double().mean().item() for c in range(3)])
    for (name, value), (_, expected) in zip(net.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.allclose(value.double(), expected.double(), atol=1e-9, rtol=0), name


def test_a_run_is_decided_by_its_seeds():
    a, b = train_one("CrossEntropy"), train_one("CrossEntropy")
    assert toys.same(a[0].state_dict(), b[0].state_dict()) and toys.same(a[2], b[2])
    assert not toys.same(a[0].state_dict(), train_one("CrossEntropy", net_seed=1)[0].state_dict())


def test_watch_thins_the_curve_and_keeps_the_last_epoch():
    train, valid, test = batches()
    curve = fit(toys.net(), CrossEntropy(), train, valid, test, protocol=replace(SHORT, epochs=5, watch=2))
    assert [row["epoch"] for row in curve] == [2, 4, 5]
    assert all(len(row[name]) == 3 for row in curve for name in ("train", "valid", "test"))
    seconds = [row["seconds"] for row in curve]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_tick_is_called_after_each_epoch():
    seen = []
    fit(
        toys.net(),
        CrossEntropy(),
        batches()[0],
        protocol=replace(SHORT, watch=3),
        tick=lambda done, row: seen.append((done, row is None)),
    )
    assert seen == [(1, True), (2, True), (3, False), (4, False)]


def test_prior_bias_is_set_and_never_decayed():
    protocol = Protocol("p", 1, 64, lr=1e-12, weight_decay=1e10, prior_bias=True)
    net, train = toys.net(), data.Batches(toys.images(), batch=64)
    weight = net.stage3[0].conv2.weight.clone()
    fit(net, CrossEntropy(), train, protocol=protocol)
    assert torch.allclose(net.head.bias, -torch.tensor(2.0).log().expand(3), atol=1e-6)
    assert (net.stage3[0].conv2.weight.abs() < 0.995 * weight.abs() + 1e-6).all(), "weights are"


class Scaled(Method):
    """Cross entropy of logits times a learned factor."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, net, x, y, i):
        return F.cross_entropy(self.factor * net(x), y)


def test_parameters_of_the_method_are_trained():
    method = Scaled()
    fit(toys.net(), method, batches()[0], protocol=SHORT)
    assert method.factor.item() != 1


def test_a_subset_of_parameters_freezes_the_rest():
    net, train = toys.net(), batches()[0]
    fit(net, CrossEntropy(), train, protocol=SHORT)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    method = Scaled()
    fit(net, method, train, protocol=SHORT, parameters=net.head.parameters())
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"} and method.factor.item() != 1
    assert any("running_mean" in k for k in before)


class Restless(CrossEntropy):
    """Cross entropy whose update draws random numbers, evaluates and measures on the training images."""

    def update(self, epoch, net, train, valid):
        torch.rand(10), torch.randperm(7)
        assert not net.training and not torch.is_grad_enabled()
        scores, y = evaluate(net, train, self)
        evaluate(net, valid)
        for x, _, _ in train.plain():
            net(x)
        return {"measured": metrics.accuracy(metrics.confusion(scores, y)), "drawn": torch.rand(()).item()}


def test_update_leaves_no_trace():
    runs = []
    for method in (CrossEntropy(), Restless()):
        net, (train, valid, test) = toys.net(), batches()
        net.stage1.append(nn.Dropout(0.3))  # draws from the global generator in training
        runs.append((net, fit(net, method, train, valid, test, protocol=SHORT), torch.get_rng_state()))
    (net, curve, state), (restless, logged, restless_state) = runs
    assert toys.same(net.state_dict(), restless.state_dict()) and torch.equal(state, restless_state)
    drawn = [row.pop("drawn") for row in logged]
    assert len(set(drawn)) == 4, "another stream of random numbers each epoch"
    assert all(0 <= row.pop("measured") <= 1 for row in logged)
    assert toys.same(curve, logged)


class Finishing(CrossEntropy):
    """Cross entropy that turns its scores round once it is finished, and draws random numbers then."""

    def __init__(self):
        super().__init__()
        self.calls, self.sign = [], 1

    def finish(self, net, train, valid=None):
        assert not net.training and not torch.is_grad_enabled()
        self.calls.append((torch.rand(3), [p.clone() for p in net.parameters()]))
        self.sign = -1

    def predict(self, net, x):
        return self.sign * net(x)


def test_finish_is_called_once_before_the_last_evaluation_and_leaves_no_trace():
    runs = []
    for method in (CrossEntropy(), Finishing()):
        net, (train, valid, test) = toys.net(), batches()
        net.stage1.append(nn.Dropout(0.3))
        runs.append((net, fit(net, method, train, valid, test, protocol=SHORT), torch.get_rng_state()))
        assert net.training
    (net, curve, state), (finished, its_curve, its_state) = runs
    assert toys.same(net.state_dict(), finished.state_dict()) and torch.equal(state, its_state)
    assert toys.same(curve[:-1], its_curve[:-1]) and not toys.same(curve[-1], its_curve[-1])
    scores, y = evaluate(net, test)
    assert its_curve[-1]["test"] == group_recall(-scores, y, 3), "the last evaluation uses what finish made"
    assert len(method.calls) == 1 and toys.same(method.calls[0][1], list(net.parameters()))
    assert not CrossEntropy.readings and not Method.readings


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_a_resumed_run_is_finished_too(epoch, tmp_path):
    """After the last checkpoint as well: what finish makes is not in it, and is made again, with the same draw."""
    whole, file = Finishing(), tmp_path / "run.pt"
    fit(toys.net(), whole, *batches(), protocol=SHORT)
    with pytest.raises(Killed):
        fit(toys.net(), Finishing(), *batches(), protocol=SHORT, checkpoint=file, every=1, tick=kill_at(epoch))
    method, net = Finishing(), toys.net(seed=7)
    fit(net, method, *batches(), protocol=SHORT, checkpoint=file, every=1)
    assert toys.same(method.calls, whole.calls) and method.sign == -1 and net.training
    assert epoch < 4 or torch.equal(torch.get_rng_state(), torch.load(file, weights_only=True)["cpu"])


def test_evaluate_leaves_no_trace_and_keeps_the_order():
    net, (train, _, _) = toys.net(), batches()
    method = LogitAdjusted(torch.tensor([24, 12, 6]))
    before, drawn = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    for mode in (True, False):
        net.train(mode), method.train(not mode)
        scores, y = evaluate(net, train, method)
        assert net.training == mode and method.training == (not mode) and not scores.requires_grad
    assert toys.same(before, net.state_dict()) and torch.equal(drawn, torch.get_rng_state())
    assert torch.equal(y, train.y)
    net.eval()
    assert torch.allclose(scores, net(train.normalise(train.x)) - method.shift, atol=1e-5)
    assert torch.allclose(evaluate(net, train)[0], net(train.normalise(train.x)), atol=1e-5)


def test_group_recall():
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    scores = torch.eye(4)[torch.tensor([0, 0, 1, 0, 0, 0, 3, 3])]
    assert group_recall(scores, y, 4) == [1, 0.5, 0, 1]
    assert group_recall(scores, y, 4, torch.tensor([0, 0, 1, 1])) == [0.75, 0.5]


class Faulty(CrossEntropy):
    """Cross entropy whose loss is nan from batch `at` of one epoch on."""

    def __init__(self, epoch, at):
        super().__init__()
        self.at, self.epoch, self.seen = at, epoch, 0

    def update(self, epoch, net, train, valid):
        self.now, self.seen = epoch, 0
        return {}

    def forward(self, net, x, y, i):
        self.seen += 1
        loss = super().forward(net, x, y, i)
        return loss * float("nan") if self.now == self.epoch and self.seen > self.at else loss


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"epoch 2, batch 1 of 3; last good checkpoint: none\. Lower the learning"
    ):
        fit(toys.net(), Faulty(2, 1), batches()[0], protocol=SHORT)
    file = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=f"epoch 2, batch 0 of 3; last good checkpoint: {file}"):
        fit(toys.net(), Faulty(2, 0), batches()[0], protocol=SHORT, checkpoint=file, every=1)
    state = torch.load(file, weights_only=True)
    assert state["epoch"] == 2 and all(v.isfinite().all() for v in state["net"].values()), "the checkpoint is good"


def test_weights_that_are_not_finite_stop_the_run():
    """The last step of an epoch can overflow although its loss was finite."""
    with pytest.raises(FloatingPointError, match=r"epoch 0, the last batch of 1 \(weights\)"):
        fit(
            toys.net(),
            CrossEntropy(),
            data.Batches(toys.images()),
            protocol=Protocol("p", 1, lr=1e38, weight_decay=1e10),
        )


def test_a_method_that_measures_needs_a_held_out_set():
    class Measures(CrossEntropy):
        needs_valid = True

    with pytest.raises(ValueError, match="Measures measures on a held-out balanced set: pass valid="):
        fit(toys.net(), Measures(), batches()[0], protocol=SHORT)


# Checkpoints: killed and resumed, a run ends bit for bit as if never killed


class Killed(Exception):
    pass


def kill_at(epoch):
    def tick(done, row):
        if done == epoch:
            raise Killed

    return tick


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", KILLED)
def test_killed_at_each_epoch_and_resumed(name, every, tmp_path):
    net, method, curve, train = train_one(name)
    drawn = torch.get_rng_state()
    file = tmp_path / "run.pt"
    for epoch in (1, 2, 3):
        with pytest.raises(Killed):
            train_one(name, net_seed=epoch if file.exists() else 0, checkpoint=file, every=every, tick=kill_at(epoch))
    resumed, its_method, its_curve, its_train = train_one(name, net_seed=9, checkpoint=file, every=every)
    assert toys.same(net.state_dict(), resumed.state_dict())
    assert toys.same(method.state_dict(), its_method.state_dict())
    assert toys.same(curve, its_curve)
    assert toys.same(train.order, its_train.order) and torch.equal(drawn, torch.get_rng_state())
    assert torch.equal(train.generator.get_state(), its_train.generator.get_state())


def test_resuming_a_finished_run_gives_its_curve(tmp_path):
    file = tmp_path / "deep/run.pt"
    _, _, curve, _ = train_one("CrossEntropy", checkpoint=file)
    _, _, again, _ = train_one("CrossEntropy", checkpoint=file, tick=kill_at(4))
    assert toys.same(curve, again) and curve[-1]["seconds"] == again[-1]["seconds"]
    assert [f.name for f in file.parent.iterdir()] == ["run.pt"], "no half-written file is left"


def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    first = dict(method=Focal(gamma=1.0), protocol=SHORT, seed=0)
    go = lambda **change: fit(toys.net(), train=batches()[0], checkpoint=file, **first | change)  # noqa: E731
    go()
    for change in (
        {"method": CrossEntropy()},
        {"method": Focal(gamma=2.0)},
        {"method": Focal(torch.tensor([24, 12, 6]), 1.0)},
        {"protocol": replace(SHORT, lr=0.06)},
        {"seed": 1},
        {"instrument": "stage1"},
    ):
        with pytest.raises(ValueError, match=f"{file} holds a checkpoint of another run .*remove it"):
            go(**change)
    go(method=Focal(None, 1.0))  # the same, written in another way
    first["method"] = Weighted(torch.tensor([24, 12, 6]), scheme="effective")
    file.unlink(), go(), go()  # the same object again, whose weights have changed since
    with pytest.raises(ValueError, match="another run"):  # a hyper-parameter that only buffers hold
        go(method=Weighted(torch.tensor([24, 12, 6]), scheme="inverse"))
    first["method"] = Focal()
    file.unlink(), go()
    monkeypatch.setattr(Focal, "version", 2)
    with pytest.raises(ValueError, match="another run"):
        go()


def test_a_stop_keeps_the_epochs_and_the_seconds_so_far(tmp_path, monkeypatch):
    """A budget ends between two checkpoints: the next process goes on from the epoch that was done last."""
    monkeypatch.setattr(time, "perf_counter", count(0, 1).__next__)  # each epoch takes a second or more
    file, seen = tmp_path / "run.pt", []
    protocol = replace(SHORT, epochs=5, watch=5)
    go = lambda tick: fit(  # noqa: E731
        toys.net(), CrossEntropy(), batches()[0], protocol=protocol, checkpoint=file, tick=tick
    )
    with pytest.raises(Killed):
        go(kill_at(3))
    curve = go(lambda done, row: seen.append(done))
    assert seen == [4, 5] and curve[-1]["seconds"] == 5


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (str(Trap.folder),))


def test_a_checkpoint_is_loaded_without_running_code(tmp_path):
    Trap.folder, file = tmp_path / "sprung", tmp_path / "run.pt"
    checkpoints.write(file, {"identity": Trap()})
    with pytest.raises(ValueError, match="(?i)is damaged: remove it, then run again .*weights.only"):
        train_one("CrossEntropy", checkpoint=file)
    assert not Trap.folder.exists()


def test_a_crash_while_saving_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    file, sync, written = tmp_path / "run.pt", os.fsync, []

    def dies_in_the_second(descriptor):
        written.append(descriptor)
        if len(written) == 2:
            os.ftruncate(descriptor, 4)
            raise Killed
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", dies_in_the_second)
    with pytest.raises(Killed):
        train_one("CrossEntropy", checkpoint=file, every=1)
    assert torch.load(file, weights_only=True)["epoch"] == 1, "torch alone reads it, too"


CHILD = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import torch, test_train as t
from dataclasses import replace
torch.set_num_threads(1)
t.SHORT = replace(t.SHORT, epochs=16)
print("ready", flush=True)
net, method, curve, train = t.train_one({name!r}, checkpoint={file!r}, every=1)
for row in curve:
    row.pop("seconds")
states = [v for part in (net, method) for _, v in sorted(part.state_dict().items())] + [torch.get_rng_state()]
digest = hashlib.sha256(b"".join(v.contiguous().numpy().tobytes() for v in states) + repr(curve).encode())
print(digest.hexdigest(), flush=True)
"""


def start(name, file):
    code = CHILD.format(tests=os.path.dirname(__file__), name=name, file=str(file))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_killed_at_random_moments_and_resumed(name, tmp_path):
    """SIGKILL at no less than 3 random moments a method, so more than 20 in all; then resumed to the end."""
    began, child = time.perf_counter(), start(name, tmp_path / "whole.pt")
    expected = child.communicate()[0]
    duration = time.perf_counter() - began
    assert len(expected) == 65
    moments, kills = random.Random(name), 0
    while kills < 3:
        child = start(name, tmp_path / "killed.pt")
        time.sleep(moments.uniform(0, duration / 4))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if child.returncode == 0:
            (tmp_path / "killed.pt").unlink()  # it was faster: from the start
        kills += child.returncode == -signal.SIGKILL
    assert start(name, tmp_path / "killed.pt").communicate()[0] == expected


# What the interface carries: sketches of methods that are to come


def test_deferred_reweighting_with_margins():
    """LDAM: weights are 1 until its start, then those of the class sizes; a cosine head."""
    weights = []
    method = prepare("LDAM")
    net = toys.net(method=method)
    fit(net, method, batches()[0], protocol=SHORT, tick=lambda done, row: weights.append(method.w.clone()))
    assert all(torch.equal(w, torch.ones(3)) for w in weights[:2])
    assert all(torch.equal(w, method.target) for w in weights[2:]) and method.target[2] > method.target[0]


def test_logit_adjustment_after_training():
    """Training is that of cross entropy, bit for bit; only what evaluation sees differs."""
    plain, _, _, train = train_one("CrossEntropy")
    adjusted, method, curve, _ = train_one("LogitAdjusted")
    assert toys.same(plain.state_dict(), adjusted.state_dict())
    scores, y = evaluate(adjusted, train, method)
    assert torch.allclose(evaluate(plain, train)[0] - scores, (torch.tensor([24, 12, 6]) / 42).log(), atol=1e-5)
    assert curve[-1]["train"] == group_recall(scores, y, 3)


def test_classifier_retraining():
    """Cross entropy first; then the head alone, from new, on a class-balanced order, BatchNorm frozen."""
    net, (train, _, _) = toys.net(), batches()
    fit(net, CrossEntropy(), train, protocol=SHORT)
    body = {k: v.clone() for k, v in net[:-1].state_dict().items()}
    net.head.reset_parameters()
    start = net.head.weight.clone()
    fit(net, OverSampling(train.n), train, protocol=replace(SHORT, epochs=2), parameters=net.head.parameters())
    assert toys.same(body, net[:-1].state_dict()) and not torch.equal(start, net.head.weight)


class DOS(Method):
    """Deep over-sampling with abstract labels, in small: tables of neighbours and targets, renewed at times."""

    def __init__(self, samples, classes, features, k=2, groups=2):
        super().__init__()
        self.k = k
        self.head = nn.Linear(features, groups)  # predicts the group
        self.register_buffer("neighbours", torch.zeros(samples, k, dtype=torch.int64))
        self.register_buffer("target", torch.zeros(samples, features))
        self.register_buffer("group", torch.zeros(classes, dtype=torch.int64))

    def update(self, epoch, net, train, valid):
        if epoch % 2:
            return {}
        z = torch.cat([net[:-1](x) for x, _, _ in train.plain()])  # (N, D)
        other = train.y[:, None] != train.y
        self.neighbours.copy_(torch.cdist(z, z).masked_fill(other, torch.inf).topk(self.k, largest=False).indices)
        w = F.normalize(torch.rand(len(z), self.k), p=1)  # (N, k)
        self.target.copy_((w[:, :, None] * z[self.neighbours]).sum(1))
        means = torch.stack([z[train.y == c].mean(0) for c in range(len(self.group))])
        self.group.copy_(means.norm(dim=1) > means.norm(dim=1).median())
        return {"pull": (z - self.target).square().sum(1).mean().item()}

    def forward(self, net, x, y, i):
        z = net[:-1](x)  # (B, D)
        pull = (z - self.target[i]).square().sum(1).mean()
        return F.cross_entropy(net.head(z), y) + 0.01 * pull + 0.1 * F.cross_entropy(self.head(z), self.group[y])


def dos_run(**options):
    torch.manual_seed(5)
    method = DOS(42, 3, 64)
    net, (train, valid, test) = toys.net(), batches()
    return net, method, fit(net, method, train, valid, test, protocol=SHORT, **options), train


def test_over_sampling_in_the_embedding(tmp_path):
    torch.manual_seed(5)
    untrained = DOS(42, 3, 64).head.weight
    net, method, curve, train = dos_run()
    assert not torch.equal(method.head.weight, untrained), "its own head is trained"
    assert ["pull" in row for row in curve] == [True, False, True, False]
    same_class = train.y[method.neighbours] == train.y[:, None]
    assert same_class.all() and torch.equal(method.neighbours[:, 0], torch.arange(42)), (
        "the nearest is the image itself"
    )
    tables = []
    for epoch in (1, 2, 3):
        with pytest.raises(Killed):
            dos_run(checkpoint=tmp_path / "run.pt", every=1, tick=kill_at(epoch))
        tables.append(torch.load(tmp_path / "run.pt", weights_only=True)["method"]["target"])
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[1], tables[2]), "renewed before epoch 2 only"
    resumed, its_method, its_curve, _ = dos_run(checkpoint=tmp_path / "run.pt", every=1)
    assert toys.same(net.state_dict(), resumed.state_dict()) and toys.same(curve, its_curve)
    assert toys.same(method.state_dict(), its_method.state_dict())


def test_several_labels_an_image():
    both = toys.images().derive(((0, 1, 2), (0, 0, 1)))
    net = toys.net(classes=(3, 2))
    train = data.Batches(both, batch=16, seed=0)
    curve = fit(net, CrossEntropy(), train, test=train, protocol=replace(AS_IT_IS, epochs=8))
    scores, y = evaluate(net, train, CrossEntropy())
    assert [tuple(s.shape) for s in scores] == [(42, 3), (42, 2)] and y.shape == (42, 2)
    by_label = [metrics.recall(metrics.confusion(s, y[:, j])).tolist() for j, s in enumerate(scores)]
    assert curve[-1]["test"] == by_label == group_recall(scores, y, 3)
    assert sum(by_label[0]) / 3 > 0.5 and sum(by_label[1]) / 2 > 0.7, "both are learnt"
    loss = CrossEntropy()(net, train.normalise(train.x), train.y, None)
    logits = net(train.normalise(train.x))
    assert torch.allclose(loss, F.cross_entropy(logits[0], both.y[:, 0]) + F.cross_entropy(logits[1], both.y[:, 1]))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_for_one_label_refuses_several(name):
    train = data.Batches(toys.images().derive(((0, 1, 2), (0, 0, 1))), batch=16, seed=0)
    if METHODS[name].several_labels:
        fit(toys.net(classes=(3, 2)), METHODS[name](train.n), train, protocol=AS_IT_IS)
        return
    with pytest.raises(ValueError, match=f"{name} is for one label an image, here are 2: .* CrossEntropy"):
        METHODS[name](train.n)
    method = METHODS[name](train.n[0])
    with pytest.raises(ValueError, match=f"{name} is for one label an image, here are 2"):
        fit(toys.net(classes=(3, 2)), method, train, train, protocol=AS_IT_IS)


def test_several_labels_resume_bit_for_bit(tmp_path):
    def several(**options):
        net, train = toys.net(classes=(3, 2)), data.Batches(both, batch=16, seed=0)
        return net, fit(net, CrossEntropy(), train, test=train, protocol=AS_IT_IS, **options)

    both = toys.images().derive(((0, 1, 2), (0, 0, 1)))
    net, curve = several()
    with pytest.raises(Killed):
        several(checkpoint=tmp_path / "run.pt", every=1, tick=kill_at(2))
    resumed, its_curve = several(checkpoint=tmp_path / "run.pt", every=1)
    assert toys.same(net.state_dict(), resumed.state_dict()) and toys.same(curve, its_curve)


def test_the_prior_bias_is_for_one_label():
    train = data.Batches(toys.images().derive(((0, 1, 2), (0, 0, 1))), batch=16, seed=0)
    with pytest.raises(ValueError, match="prior bias is for one label per image .* prior_bias=False"):
        fit(toys.net(classes=(3, 2)), CrossEntropy(), train, protocol=replace(AS_IT_IS, prior_bias=True))


class Mixed(Method):
    """Mixing inside the network: the first stages, a mean over two images of the batch, the rest."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, net, x, y, i):
        z = net[:2](x)
        return F.cross_entropy(net[2:](torch.lerp(z, z.flip(0), self.share)), y)


def test_a_network_is_cut_by_a_method():
    results = []
    for method in (CrossEntropy(), Mixed(0.0), Mixed(0.3)):
        net = toys.net()
        fit(net, method, batches()[0], protocol=SHORT)
        results.append(net.state_dict())
    assert toys.same(results[0], results[1]) and not toys.same(results[0], results[2])


# The instruments: gradients of features and confusion of the training images


def stages(dtype=torch.float64):
    """Two stages and a head without BatchNorm, so that samples do not touch."""
    torch.manual_seed(2)
    part = lambda i, o: nn.Sequential(nn.Flatten(), nn.Linear(i, o), nn.Tanh())  # noqa: E731
    parts = dict(stage1=part(64, 6), stage2=part(6, 5), head=nn.Linear(5, 3))
    return nn.Sequential(OrderedDict(parts)).to(dtype)


def toy(n=(24, 12, 6), dtype=torch.float64):
    return data.Batches(toys.images(n), batch=16, seed=0, dtype=dtype)


def watched(method, stage="stage2", net=None, batches=None, **options):
    net, train = net or stages(), batches or toy()
    return net, fit(net, method, train, protocol=PLAIN, instrument=stage, **options)


PLAIN = Protocol("plain", epochs=3, batch=16, lr=0.05, warmup=1)


def loss_of_one(method, net, z, y, k):
    """The summand of each sample where the loss is a mean over samples that do not touch."""
    w = method.w[y] if isinstance(method, Weighted) else 1
    return w * F.cross_entropy(net[k:](z[None]), y[None])


@pytest.mark.parametrize("stage, k", [("stage1", 1), ("stage2", 2), ("head", 3)])
@pytest.mark.parametrize("make", [CrossEntropy, Weighted, OverSampling])
def test_gradients_of_features_against_a_loop_over_the_samples(make, stage, k):
    """A training of its own, sample by sample: the norm of the gradient of each one's own loss at its features."""
    n = torch.tensor([24, 12, 6])
    _, curve = watched(make(n), stage)
    net, train, method = stages(), toy(), make(n)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(0)
    for epoch in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(epoch)  # as fit seeds `update`
            method.update(epoch, net, train, None)
        norms = [[], [], []]
        for x, y, _ in train:
            total = 0.0
            for x_i, y_i in zip(x, y):
                z = net[:k](x_i[None])[0].detach().requires_grad_()
                own = loss_of_one(method, net, z, y_i, k)
                norms[y_i].append(torch.autograd.grad(own, z)[0].square().sum().sqrt().item())
                total = total + loss_of_one(method, net, net[:k](x_i[None])[0], y_i, k)
            optimiser.zero_grad()
            (total / len(y)).backward()
            optimiser.step()
        assert len(norms[2]) == (14 if make is OverSampling else 6)
        assert curve[epoch]["gradient"] == pytest.approx([sum(v) / len(v) for v in norms], rel=1e-8)


@pytest.mark.parametrize("name", ["MFW", "Mixup", "ManifoldMixup"])
def test_gradients_of_features_that_are_mixed(name):
    """The whole gradient at the features before mixing, under the sample's own label: by differences of the loss."""
    n = torch.tensor([24, 12, 6])
    method = {"MFW": MFW(n, strength=4.0, stage="stage2"), "Mixup": Mixup(n), "ManifoldMixup": ManifoldMixup(n)}[name]
    method = method.double()
    x, y, i = next(iter(toy()))
    net = stages()
    with FeatureGradients(net, method, "stage2", n) as gradients:
        torch.manual_seed(4)
        method(net, x, y, i).backward()
    shift = torch.zeros(16, 5, dtype=torch.float64)
    net.stage2.register_forward_hook(lambda module, arguments, z: z + shift)
    norms = [[], [], []]
    for j in range(16):
        slopes = []
        for d in range(5):
            values = []
            for step in (1e-6, -1e-6):
                shift.zero_()[j, d] = step
                torch.manual_seed(4)
                values.append(method(net, x, y, i).item())
            slopes.append((values[0] - values[1]) / 2e-6)
        norms[y[j]].append(16 * sum(s * s for s in slopes) ** 0.5)
    assert gradients.take() == pytest.approx([sum(v) / len(v) for v in norms], rel=1e-6)


@pytest.mark.parametrize("name", ["CrossEntropy", "MFW", "ManifoldMixup", "CDB"])
def test_an_instrument_changes_nothing(name):
    """Network, curve and random numbers are those of a run without; nothing stays attached."""
    runs = []
    for stage in (None, "stage3"):
        net, (train, valid, test) = toys.net(), batches()
        method = prepare(name)
        curve = fit(net, method, train, valid, test, protocol=SHORT, instrument=stage)
        runs.append((net.state_dict(), torch.get_rng_state(), curve))
        assert not net.stage3._forward_hooks and not method._forward_pre_hooks
    assert all(len(row.pop("gradient")) == 3 and row.pop("train_confusion") for row in runs[1][2])
    assert toys.same(*runs)


def test_the_training_confusion_is_that_of_all_images_after_the_epoch():
    net, curve = watched(MFW(torch.tensor([24, 12, 6]), strength=4.0, stage="stage2"))
    scores, y = evaluate(net, toy())
    expected = [[int(((scores.argmax(1) == q) & (y == c)).sum()) for q in range(3)] for c in range(3)]
    assert curve[-1]["train_confusion"] == expected and [sum(row) for row in expected] == [24, 12, 6]
    assert [row["train_confusion"] for row in curve] != [expected] * 3


def test_each_row_holds_its_own_epoch():
    """Also where not every epoch has a row, and after a resumed run."""
    n = torch.tensor([24, 12, 6])
    whole = watched(CrossEntropy(n))[1]
    net = stages()
    thin = fit(net, CrossEntropy(), toy(), protocol=replace(PLAIN, watch=2), instrument="stage2")
    assert [row["gradient"] for row in thin] == [whole[1]["gradient"], whole[2]["gradient"]]


def test_a_resumed_run_has_the_same_gradients(tmp_path):
    file = tmp_path / "run.pt"
    with pytest.raises(Killed):
        watched(CrossEntropy(), checkpoint=file, every=1, tick=kill_at(2))
    assert toys.same(watched(CrossEntropy(), checkpoint=file, every=1)[1], watched(CrossEntropy())[1])


def test_a_class_without_samples_has_no_gradient():
    class WithoutClass1(CrossEntropy):
        def update(self, epoch, net, train, valid):
            train.order = (train.y != 1).nonzero().flatten()
            return {}

    gradient = watched(WithoutClass1())[1][0]["gradient"]
    assert gradient[1] != gradient[1] and gradient[0] > 0 and gradient[2] > 0


def test_an_instrument_is_taken_off_when_a_run_fails():
    net, method = stages(), CrossEntropy()
    with pytest.raises(Killed):
        watched(method, net=net, tick=kill_at(1))
    assert not net.stage2._forward_hooks and not method._forward_pre_hooks


def test_an_instrument_that_cannot_measure_is_refused():
    n = torch.tensor([24, 12, 6])
    with pytest.raises(ValueError, match="stage 'stage9': choose from stage1, .*stage2, .*head"):
        FeatureGradients(stages(), CrossEntropy(), "stage9", n)
    with pytest.raises(ValueError, match="gradients a class need one label an image, here are 2"):
        FeatureGradients(stages(), CrossEntropy(), "stage2", (n, n))
    flat = nn.Sequential(OrderedDict(flat=nn.Flatten(), head=nn.Linear(64, 3))).double()
    with pytest.raises(ValueError, match="'flat' puts out 16 rows for 16 labels, gradient: False; choose a stage with"):
        watched(CrossEntropy(), "flat", flat)

    class Twice(CrossEntropy):
        def forward(self, net, x, y, i):
            return F.cross_entropy(net(torch.cat([x, x])), torch.cat([y, y]))

    with pytest.raises(ValueError, match="puts out 32 rows for 16 labels"):
        watched(Twice())


def test_evaluation_puts_each_module_back():
    net, method = toys.net().train(), LogitAdjusted(torch.tensor([24, 12, 6]))
    net.stem.eval()
    evaluate(net, batches()[2], method)
    assert net.training and not net.stem.training and net.stage1.training
    method.predict = lambda net, x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluate(net, batches()[2], method)
    assert net.training and not net.stem.training
