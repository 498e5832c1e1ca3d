"""The simple methods: each against a literal loop over the samples, and where it must be neutral."""

import math

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import nn

from imbook import data
from imbook.methods import (
    CDT,
    LDAM,
    METHODS,
    BalancedSoftmax,
    CrossEntropy,
    Focal,
    LogitAdjusted,
    OverSampling,
    Weighted,
)
from imbook.methods.baselines import effective_number, inverse_frequency, over_sample
from imbook.train import Protocol, fit

N = torch.tensor([50, 20, 5, 1])  # images a class


def batch(seed=0, spread=2.0):
    """Logits (9, 4) in float64 that ask for a gradient, and labels in which every class occurs."""
    g = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(9, 4, generator=g, dtype=torch.float64)).requires_grad_()
    return logits, torch.tensor([0, 0, 0, 1, 1, 2, 3, 0, 2])[torch.randperm(9, generator=g)]


def loss(method, logits, y):
    """The method's loss where the network gives the logits as they are."""
    return method.double()(nn.Identity(), logits, y, torch.arange(len(y)))


def by_hand(name, method, logits, y):
    """The mean over the samples, one after another, of each method's loss."""
    total, n = 0.0, N.tolist()
    for row, c in zip(logits, y.tolist()):
        z = list(row)
        if name == "balanced softmax":
            z = [v + 0.7 * math.log(n[k] / sum(n)) for k, v in enumerate(z)]
        if name == "cdt":
            z = [v / (max(n) / n[k]) ** 0.7 for k, v in enumerate(z)]
        if name == "ldam":
            margins = [k**-0.25 for k in n]
            z[c] = z[c] - 0.5 * margins[c] / max(margins)
            z = [30.0 * v for v in z]
        p = torch.exp(z[c]) / sum(torch.exp(v) for v in z)
        inverse = [1 / k for k in n]
        effective = [(1 - 0.99) / (1 - 0.99**k) for k in n]
        weight = {
            "inverse": inverse[c] / (sum(inverse) / 4),
            "effective": effective[c] / (sum(effective) / 4),
            "focal": (1 - p) ** 1.5,
        }.get(name, 1.0)
        total = total - weight * torch.log(p)
    return total / len(y)


CASES = {
    "cross entropy": lambda: CrossEntropy(N),
    "inverse": lambda: weighted(scheme="inverse"),
    "effective": lambda: weighted(scheme="effective", beta=0.99),
    "focal": lambda: Focal(N, gamma=1.5),
    "balanced softmax": lambda: BalancedSoftmax(N, tau=0.7),
    "logit adjustment": lambda: LogitAdjusted(N, tau=0.7),
    "cdt": lambda: CDT(N, gamma=0.7),
    "ldam": lambda: LDAM(N),
}


def weighted(**options):
    method = Weighted(N, **options)
    method.update(0, None, None, None)
    return method


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_each_loss_by_hand(name, seed):
    method, (logits, y) = CASES[name](), batch(seed, 0.1 if name == "ldam" else 2.0)
    value, expected = loss(method, logits, y), by_hand(name, method, logits, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    gradient, its = (torch.autograd.grad(v, logits)[0] for v in (value, expected))
    assert torch.allclose(gradient, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_each_gradient_numerically(name):
    method, (logits, y) = CASES[name](), batch(spread=0.3)
    assert torch.autograd.gradcheck(lambda z: loss(method, z, y), logits)


@pytest.mark.parametrize("name", CASES)
def test_permuting_the_batch_changes_nothing(name):
    method, (logits, y) = CASES[name](), batch()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    value, permuted = loss(method, logits, y), loss(method, logits[order], y[order])
    assert permuted.item() == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        Focal(N, gamma=0),
        weighted(scheme="effective", beta=0),
        BalancedSoftmax(N, tau=0),
        BalancedSoftmax(torch.tensor([7, 7, 7, 7])),
        CDT(torch.tensor([7, 7, 7, 7])),
        Weighted(torch.tensor([7, 7, 7, 7])),
        Weighted(N, start=3),
        LogitAdjusted(N),
        LDAM(N, margin=0.0, scale=1.0),
    ],
    ids=lambda m: type(m).__name__,
)
def test_neutral_settings_are_cross_entropy(method):
    logits, y = batch()
    assert loss(method, logits, y).item() == pytest.approx(F.cross_entropy(logits, y).item(), abs=1e-15)


def test_neutral_weights_are_cross_entropy_to_the_last_bit():
    logits, y = (v.detach().float() if v.is_floating_point() else v for v in batch())
    for method in (
        CrossEntropy(N),
        Weighted(N, start=1),
        weighted(scheme="effective", beta=0),
        BalancedSoftmax(N, tau=0),
        CDT(N, gamma=0),
    ):
        assert torch.equal(method(nn.Identity(), logits, y, None), F.cross_entropy(logits, y))


def test_logit_adjustment_predicts_with_the_shift():
    logits, _ = batch()
    expected = logits - 2 * (N.double() / N.sum()).log()
    assert torch.allclose(LogitAdjusted(N, tau=2.0).double().predict(nn.Identity(), logits), expected, atol=1e-6)
    assert torch.equal(LogitAdjusted(N, tau=0.0).predict(nn.Identity(), logits), logits)
    for method in (BalancedSoftmax(N), CDT(N)):
        assert torch.equal(method.predict(nn.Identity(), logits), logits), "nothing to adjust at test time"


# Weights


def test_weights_have_mean_one_and_the_right_ratios():
    w = inverse_frequency(N)
    assert w.mean().item() == pytest.approx(1) and torch.allclose(w * N, (w * N)[:1].expand(4))
    w = effective_number(N, 0.9)
    assert w.mean().item() == pytest.approx(1) and w.dtype == torch.float32
    effective = [(1 - 0.9**k) / (1 - 0.9) for k in N.tolist()]
    assert [(a * b / (w[0].item() * effective[0])) for a, b in zip(w.tolist(), effective)] == pytest.approx([1] * 4)


def test_limits_of_the_effective_number():
    assert torch.equal(effective_number(N, 0.0), torch.ones(4))
    assert torch.allclose(effective_number(N, 1 - 1e-9), inverse_frequency(N), rtol=1e-4)
    for beta in (1.0, -0.1, 2):
        with pytest.raises(ValueError, match=f"beta {beta}: choose from 0"):
            effective_number(N, beta)


def test_a_class_without_images_has_no_weight():
    for weigh in (inverse_frequency, effective_number):
        with pytest.raises(ValueError, match="a class without images has no weight"):
            weigh(torch.tensor([3, 0]))


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="scheme 'cubic': choose 'inverse' or 'effective'"):
        Weighted(N, "cubic")
    with pytest.raises(ValueError, match="gamma -1"):
        Focal(N, gamma=-1)
    with pytest.raises(ValueError, match="gamma -1"):
        CDT(N, gamma=-1)
    with pytest.raises(ValueError, match="smallest class 0"):
        CDT(torch.tensor([3, 0]))


@pytest.mark.parametrize("make", [Weighted, LDAM])
def test_deferred_weights_start_at_their_epoch(make):
    method = make(N, start=2)
    for epoch in range(4):
        method.update(epoch, None, None, None)
        assert torch.equal(method.w, method.target if epoch >= 2 else torch.ones(4))
    assert not torch.equal(method.target, torch.ones(4))


def test_margins_of_ldam():
    assert LDAM(N).m.tolist() == pytest.approx([0.5 * (k / 1) ** -0.25 for k in N.tolist()])
    assert LDAM(N, margin=0.3).m.max().item() == pytest.approx(0.3)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_the_network_is_sure(gamma):
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    value = Focal(gamma=gamma)(nn.Identity(), logits, torch.tensor([0, 0]), None)
    value.backward()
    assert value.item() == pytest.approx(100) and logits.grad.isfinite().all() and logits.grad[1, 0] < 0


# Over-sampling


def test_over_sample_repeats_classes_whole():
    y = torch.tensor([0] * 10 + [1] * 4 + [2] * 1)[torch.randperm(15, generator=torch.Generator().manual_seed(0))]
    order = over_sample(y)
    assert data.counts(y[order]).tolist() == [10, 10, 10]
    times = data.counts(order, 15)
    assert (times[y == 0] == 1).all() and sorted(times[y == 1].tolist()) == [2, 2, 3, 3] and times[y == 2].item() == 10


def test_over_sample_can_thin_out_the_head():
    y = torch.tensor([0] * 10 + [1] * 4)
    order = over_sample(y, 6)
    assert data.counts(y[order]).tolist() == [6, 6] and data.counts(order, 14)[:10].max() == 1


def test_over_sample_is_decided_by_its_generator():
    y = toys.images().y
    a, b, c = (over_sample(y, 17, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_over_sampling_in_training():
    """Each epoch visits the classes equally often, in as many steps as plain training, another draw each time."""
    train, orders = data.Batches(toys.images((24, 12, 6)), batch=8, seed=0), []
    protocol = Protocol("p", 3, lr=0.01)
    fit(toys.net(), OverSampling(), train, protocol=protocol, tick=lambda done, row: orders.append(train.order))
    assert all(data.counts(train.y[o]).tolist() == [14, 14, 14] for o in orders)
    assert not torch.equal(orders[0].sort().values, orders[1].sort().values)


def test_the_registry_names_the_classes():
    assert all(METHODS[name].__name__ == name for name in METHODS) and "CrossEntropy" in METHODS
    assert all(isinstance(m.version, int) and m.__doc__ for m in METHODS.values())


@pytest.mark.parametrize("make", [LogitAdjusted, BalancedSoftmax])
def test_a_class_without_images_has_no_prior(make):
    with pytest.raises(ValueError, match="a class without images has no prior"):
        make(torch.tensor([10, 0, 5]))


def test_ldam_needs_a_head_of_cosines():
    with pytest.raises(ValueError, match="net.head = CosineHead"):
        LDAM(N)(toys.net(), toys.images().x.float(), toys.images().y, None)
