"""What a protocol states arrives, what is reused starts fresh, and what is wrong with the inputs is named as such."""

import math
from collections import OrderedDict
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import nn

from imbook import data, nets
from imbook.methods import CDB, DOS, METHODS, MFW, CrossEntropy, DOSAbstract, Focal, OverSampling, Weighted
from imbook.protocol import Protocol
from imbook.train import Method, evaluate, fit, group_recall

BASE = Protocol("base", epochs=4, batch=16, lr=0.03)
N = torch.tensor([24, 12, 6])


def batches(protocol=BASE, n=(24, 12, 6), seed=3, **options):
    return data.Batches(toys.images(n), None, protocol.batch, seed, protocol.crop, protocol.flip, **options)


# A protocol arrives


def by_hand(protocol, rates):
    """The network and losses per epoch of a loop that uses nothing of the package but network and batches."""
    net, train = toys.net().double(), batches(protocol, dtype=torch.float64)
    if protocol.prior_bias:
        torch.manual_seed(0)
        net.head.reset_parameters()
        net.head.bias.data.fill_(-torch.tensor(2.0).log())  # in float32, as a network is made
    exempt = [net.head.bias] if protocol.prior_bias else []
    groups = [
        dict(params=[p for p in net.parameters() if not any(p is q for q in exempt)]),
        *([dict(params=exempt, weight_decay=0)] if exempt else []),
    ]
    decay = dict(momentum=protocol.momentum, weight_decay=protocol.weight_decay)
    optimiser = torch.optim.SGD(groups, 1.0, foreach=False, fused=False, **decay)
    losses = []
    for rate in rates:
        for group in optimiser.param_groups:
            group["lr"] = rate
        net.train()
        losses.append([])
        for x, y, _ in train:
            optimiser.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    return net, [sum(some) / len(some) for some in losses]


ARRIVES = {  # each field changed, and the learning rates of the epochs as numbers
    "epochs": (dict(epochs=2), [0.03] * 2),
    "batch": (dict(batch=8), [0.03] * 4),
    "lr": (dict(lr=0.01), [0.01] * 4),
    "momentum": (dict(momentum=0.5), [0.03] * 4),
    "weight_decay": (dict(weight_decay=0.1), [0.03] * 4),
    "warmup": (dict(warmup=3), [0.01, 0.02, 0.03, 0.03]),
    "milestones": (dict(milestones=(1, 3)), [0.03, 0.003, 0.003, 0.0003]),
    "decay": (dict(milestones=(2,), decay=0.5), [0.03, 0.03, 0.015, 0.015]),
    "cosine": (dict(cosine=True), [0.03 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]),
    "crop": (dict(crop=2), [0.03] * 4),
    "flip": (dict(flip=True), [0.03] * 4),
    "prior_bias": (dict(prior_bias=True), [0.03] * 4),
    "watch": (dict(watch=3), [0.03] * 4),
}


def test_every_field_is_in_the_table():
    assert set(ARRIVES) | {"name"} == {f.name for f in fields(Protocol)}


@pytest.mark.parametrize("field", ARRIVES)
def test_what_a_protocol_states_arrives(field):
    changes, rates = ARRIVES[field]
    protocol = replace(BASE, **changes)
    net = toys.net().double()
    curve = fit(net, CrossEntropy(), batches(protocol, dtype=torch.float64), protocol=protocol)
    twin, losses = by_hand(protocol, rates)
    for name, value in net.state_dict().items():
        assert torch.allclose(value.double(), twin.state_dict()[name].double(), atol=1e-9, rtol=0), name
    seen = [3, 4] if field == "watch" else range(1, protocol.epochs + 1)
    assert [row["epoch"] for row in curve] == list(seen)
    assert [row["loss"] for row in curve] == pytest.approx([losses[e - 1] for e in seen], abs=1e-9)
    assert [row["lr"] for row in curve] == pytest.approx([rates[e - 1] for e in seen])
    if field != "watch":
        base = toys.net().double()
        fit(base, CrossEntropy(), batches(dtype=torch.float64), protocol=BASE)
        assert not toys.same(base.state_dict(), net.state_dict()), "and has an effect"


@pytest.mark.parametrize("change", [dict(batch=8), dict(crop=2), dict(flip=True)])
def test_batches_made_otherwise_are_refused(change):
    """Steps of 128 under a protocol of 16, or images that are not augmented, would be another experiment."""
    (name, value), protocol = next(iter(change.items())), replace(BASE, **change)
    made = getattr(BASE, name)
    with pytest.raises(ValueError, match=f"states {name} {value}, the training set was made with {name} {made}: make"):
        fit(toys.net(), CrossEntropy(), batches(), protocol=protocol)
    with pytest.raises(ValueError, match=f"states {name} {made}, the training set was made with {name} {value}: make"):
        fit(toys.net(), CrossEntropy(), batches(protocol), protocol=BASE)


# What is reused starts fresh


@pytest.mark.parametrize("make", [OverSampling, lambda n: DOS(n, start=1, every=1)])
def test_the_order_is_put_back(make):
    train = batches()
    fit(toys.net(), make(N), train, protocol=BASE)
    assert torch.equal(train.order, torch.arange(42)) and len(train) == 3

    def stop(epoch, row):
        assert not torch.equal(train.order, torch.arange(42))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(toys.net(), make(N), train, protocol=replace(BASE, epochs=2), tick=lambda e, row: e == 2 and stop(e, row))
    assert torch.equal(train.order, torch.arange(42)), "after a stop as well"
    seen = []
    train.order = train.order.repeat(2)
    method = CrossEntropy()
    method.update = lambda epoch, net, train, valid: seen.append(len(train.order))
    fit(toys.net(), method, train, protocol=BASE)
    assert seen == [42] * 4, "what somebody else has left there is none of this run's"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_used_twice_starts_fresh(name):
    """Its second training is that of a new one: weights per class, tables, layers of its own, readings."""
    options = {"start": 1} if name in ("DOS", "DOSAbstract", "Weighted", "LDAM", "OverSampling") else {}
    found = []
    for first in (True, False):
        method = METHODS[name](N, **options)
        if first:
            fit(toys.net(method=method), method, batches(seed=9), batches(n=(6, 6, 6)), protocol=BASE, seed=5)
        torch.manual_seed(4)
        net, train = toys.net(method=method), batches()
        torch.manual_seed(4)  # of a layer that the method makes
        if not first:
            method = METHODS[name](N, **options)
        curve = fit(net, method, train, batches(n=(6, 6, 6)), protocol=BASE)
        plain = {k: v for k, v in vars(method).items() if isinstance(v, int | float | str)}
        found.append([net.state_dict(), method.state_dict(), curve, plain, sorted(method.readings)])
    assert toys.same(*found)


class Counting(CrossEntropy):
    """Cross entropy that keeps things of all kinds from its training."""

    def __init__(self, n=None, start=0):
        super().__init__()
        self.start, self.seen = start, []

    def update(self, epoch, net, train, valid):
        self.seen.append(epoch)
        self.last = epoch
        return {}


def test_a_method_is_made_anew_in_place():
    method = Counting(start=2)
    fit(toys.net(), method, batches(), protocol=BASE)
    assert method.seen == [0, 1, 2, 3] and method.last == 3
    method.restart()
    assert method.seen == [] and not hasattr(method, "last") and method.start == 2
    assert method.arguments == {"n": None, "start": 2}
    fit(toys.net(), method, batches(), protocol=BASE), fit(toys.net(), method, batches(), protocol=BASE)
    assert method.seen == [0, 1, 2, 3]


def test_a_method_that_holds_a_trained_module_is_refused():
    class Holding(CrossEntropy):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

    method = Holding(nn.Linear(2, 2))
    fit(toys.net(), method, batches(), protocol=BASE)
    with pytest.raises(ValueError, match="Holding was trained before and holds a Linear .* make both anew"):
        fit(toys.net(), method, batches(), protocol=BASE)


def test_visits():
    assert Method.visits(CrossEntropy(), N, 3) == 42 and CrossEntropy().visits((N, N), 0) == 42


@pytest.mark.parametrize("name", METHODS)
def test_visits_are_those_that_an_epoch_makes(name):
    options = {"start": 1} if name in ("DOS", "DOSAbstract", "OverSampling") else {}
    for more in ({}, {"whole": True}) if name == "OverSampling" else ({},):
        method, train, seen = METHODS[name](N, **options, **more), batches(), []
        update = method.update
        method.update = lambda epoch, net, train, valid: (update(epoch, net, train, valid), seen.append(len(train.order)))[0]  # noqa: B023, E501
        fit(toys.net(method=method), method, train, batches(n=(6, 6, 6)), protocol=BASE)
        assert seen == [method.visits(N, epoch) for epoch in range(4)]


# What is wrong with the inputs is named


class Holed(data.Batches):
    """Batches of which one image is not finite."""

    def normalise(self, x):
        x = super().normalise(x)
        return torch.where((x == x.max()).flatten(1).any(1).view(-1, 1, 1, 1), torch.nan, x)


def test_an_input_that_is_not_finite_is_named():
    train = batches()
    holed = Holed(toys.images(), None, 16, 3)
    worst = int(torch.cat([x.flatten(1).max(1).values for x, _, _ in train.plain()]).argmax())
    with pytest.raises(ValueError, match=rf"sample {worst} of the training set is not finite .found in epoch 0.: "):
        fit(toys.net(), CrossEntropy(), holed, protocol=BASE)


def test_a_weight_that_is_not_finite_is_named():
    net = toys.net()
    net.stage2[0].bn1.running_var[3] = torch.inf
    with pytest.raises(ValueError, match="stage2.0.bn1.running_var is not finite before training"):
        fit(net, CrossEntropy(), batches(), protocol=BASE)


def test_precision_is_for_fast_steps():
    with pytest.raises(ValueError, match="precision 'bf16' is for fast steps: fit"):
        fit(toys.net(), CrossEntropy(), batches(), protocol=BASE, precision="bf16")


# Runs that broke off


def test_focal_loss_below_one_on_digits():
    """200 epochs: (1 - p)^gamma has no slope at p = 1, where digits arrive within a few epochs."""
    images, _ = data.load("digits")
    index = data.long_tailed(images.y, 20, 0, 40)
    torch.manual_seed(0)
    net, protocol = nets.mlp(64, 10), Protocol("p", 200, 32, lr=0.05, watch=200)
    curve = fit(net, Focal(gamma=0.5), data.Batches(images, index, 32, 0), protocol=protocol)
    assert curve[-1]["loss"] < 0.01


@pytest.mark.parametrize("make", [DOS, DOSAbstract, OverSampling])
def test_a_last_batch_of_one_image(make):
    """33 images in batches of 16, then 49 where DOS repeats some: BatchNorm of vectors cannot train on one."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())
    net = nn.Sequential(OrderedDict(flat=nn.Flatten(), stage1=body, head=nn.Linear(8, 3)))
    train = batches(n=(19, 10, 4))
    method = make(train.n, start=1)
    assert [method.visits(train.n, epoch) for epoch in (0, 1)] == [33, 33 if make is OverSampling else 49]
    curve = fit(net, method, train, protocol=BASE)
    assert len(curve) == 4 and all(math.isfinite(row["loss"]) for row in curve)


# A class that is absent


def test_the_mean_of_a_group_leaves_out_absent_classes():
    y, scores = torch.tensor([0, 0, 1]), torch.eye(4)[torch.tensor([0, 1, 1])]
    recall = group_recall(scores, y, 4, torch.tensor([0, 1, 1, 2]))
    assert recall[:2] == [0.5, 1.0] and math.isnan(recall[2])
    assert math.isnan(group_recall(scores, y, 4)[3])


def test_a_curve_over_a_set_without_a_class():
    test = batches(n=(6, 6, 6))
    test.x, test.y = test.x[test.y != 2], test.y[test.y != 2]
    curve = fit(toys.net(), CrossEntropy(), batches(), test=test, protocol=BASE, groups=torch.tensor([0, 1, 1]))
    net = toys.net()
    fit(net, CrossEntropy(), batches(), protocol=BASE)
    scores, y = evaluate(net, test)
    assert curve[-1]["test"] == [((scores.argmax(1) == c) & (y == c)).sum().item() / 6 for c in (0, 1)]


@pytest.mark.parametrize("make", [Weighted, CDB, MFW])
def test_random_numbers_and_modes_of_the_caller_are_his_after_a_second_run(make):
    method, valid = make(N), batches(n=(6, 6, 6))
    fit(toys.net(), method, batches(), valid, protocol=BASE)
    net = toys.net()
    fit(net, method, batches(), valid, protocol=BASE, seed=2)
    assert net.training and torch.initial_seed() == 2


class Drawing(CrossEntropy):
    """Cross entropy that draws random numbers in each step, before each epoch and at the end."""

    def __init__(self):
        super().__init__()
        self.steps, self.epochs, self.end = [], [], []

    def update(self, epoch, net, train, valid):
        self.epochs.append(torch.rand(()).item())
        return {}

    def forward(self, net, x, y, i):
        self.steps.append(torch.rand(()).item())
        return super().forward(net, x, y, i)

    def finish(self, net, train, valid=None):
        self.end.append(torch.rand(()).item())


def test_the_seed_arrives_wherever_a_method_draws():
    drawn = []
    for seed in (0, 0, 1):
        method = Drawing()
        fit(toys.net(), method, batches(), protocol=BASE, seed=seed)
        drawn.append((method.steps, method.epochs, method.end))
    assert drawn[0] == drawn[1], "one seed, one stream"
    assert not any(a == b for a, b in zip(drawn[0], drawn[2])), "steps, epochs and the end of another seed"
    assert len({*drawn[0][1], *drawn[0][2]}) == 5, "another stream for each epoch"
