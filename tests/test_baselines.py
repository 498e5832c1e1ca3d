"""The simple methods: each against a literal loop over the samples, and where it must be neutral."""

import math

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import nn

from imbook import data, nets
from imbook.methods import (
    CDT,
    LDAM,
    METHODS,
    BalancedSoftmax,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    LogitAdjusted,
    OverSampling,
    Weighted,
)
from imbook.methods.baselines import effective_number, inverse_frequency, over_sample
from imbook.train import Method, Protocol, fit

N = torch.tensor([50, 20, 5, 1])  # images a class


def batch(seed=0, spread=2.0):
    """Logits (9, 4) in float64 that ask for a gradient, and labels in which every class occurs."""
    g = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(9, 4, generator=g, dtype=torch.float64)).requires_grad_()
    return logits, torch.tensor([0, 0, 0, 1, 1, 2, 3, 0, 2])[torch.randperm(9, generator=g)]


class Cosines(nets.CosineHead):
    """A classifier of cosines that gives what it is given as it is."""

    def __init__(self):
        super().__init__(4, 4)

    def forward(self, z):
        return z


def loss(method, logits, y):
    """The method's loss where the network gives the logits as they are."""
    net = nn.Sequential(Cosines()) if isinstance(method, LDAM) else nn.Identity()
    return method.double()(net, logits, y, torch.arange(len(y)))


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
        if name == "label smoothing":
            targets = [0.3 / 4 + 0.7 * (k == c) for k in range(4)]
            total = total - sum(t * (v - torch.logsumexp(row, 0)) for t, v in zip(targets, z))
            continue
        inverse = [1 / k for k in n]
        effective = [(1 - 0.99) / (1 - 0.99**k) for k in n]
        weight = {
            "inverse": inverse[c] / (sum(inverse) / 4),
            "effective": effective[c] / (sum(effective) / 4),
            "focal": (1 - p) ** 1.5,
            "focal, alpha": inverse[c] / (sum(inverse) / 4) * (1 - p) ** 1.5,
            "both corrections": inverse[c] / (sum(inverse) / 4),
        }.get(name, 1.0)
        total = total - weight * torch.log(p)
    if name == "both corrections":  # divided by the batch's weights, as torch's own
        return total / sum(1 / n[c] / (sum(1 / k for k in n) / 4) for c in y.tolist())
    return total / len(y)


CASES = {
    "cross entropy": lambda: CrossEntropy(N),
    "inverse": lambda: Weighted(N, scheme="inverse"),
    "effective": lambda: Weighted(N, scheme="effective", beta=0.99),
    "focal": lambda: Focal(N, gamma=1.5),
    "focal, alpha": lambda: Focal(N, gamma=1.5, alpha="inverse"),
    "label smoothing": lambda: LabelSmoothing(N, epsilon=0.3),
    "both corrections": lambda: OverSampling(N, weighted=True),
    "balanced softmax": lambda: BalancedSoftmax(N, tau=0.7),
    "logit adjustment": lambda: LogitAdjusted(N, tau=0.7),
    "cdt": lambda: CDT(N, gamma=0.7),
    "ldam": lambda: LDAM(N),
}


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
        Weighted(N, scheme="effective", beta=0),
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
        Weighted(N, scheme="effective", beta=0),
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
    with pytest.raises(ValueError, match="scheme 'cubic', .*: choose 'inverse' or 'effective'"):
        Weighted(N, "cubic")
    with pytest.raises(ValueError, match="reduction 'sum': .* 'samples' or 'weights'"):
        Weighted(N, reduction="sum")
    with pytest.raises(ValueError, match="gamma -1"):
        Focal(N, gamma=-1)
    with pytest.raises(ValueError, match="gamma -1"):
        CDT(N, gamma=-1)
    with pytest.raises(ValueError, match="gamma nan"):
        CDT(N, gamma=float("nan"))
    with pytest.raises(ValueError, match="gamma nan"):
        Focal(N, gamma=float("nan"))
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


def sure(gamma, dtype=torch.float32):
    """Focal's value and gradient on logits [17, 0] of class 0, where 1 - p is 4e-8: below float32's 1 - p = 0."""
    logits = torch.tensor([[17.0, 0.0]], dtype=dtype, requires_grad=True)
    value = Focal(gamma=gamma)(nn.Identity(), logits, torch.tensor([0]), None)
    value.backward()
    return value.item(), logits.grad[0].tolist()


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.25, 0.5, 0.999, 1.0, 2.0])
def test_focal_where_one_minus_p_rounds_to_zero(gamma):
    """u^gamma -log(1 - u) with u = 1 - p: its value u^(gamma + 1), its slope (gamma + 1) u^gamma du, du = u (1 - u)."""
    u = math.exp(-17) / (1 + math.exp(-17))
    value, slope = u**gamma * -math.log1p(-u), (gamma + 1) * u ** (gamma + 1)
    found, gradient = sure(gamma)
    assert found == pytest.approx(value, abs=1e-7) and gradient == pytest.approx([-slope, slope], abs=1e-7)
    found, gradient = sure(gamma, torch.float64)
    assert found == pytest.approx(value, rel=1e-6) and gradient == pytest.approx([-slope, slope], rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0])
def test_focal_where_the_probability_is_one(monkeypatch, gamma):
    """log p = 0, as some versions of torch round it: no loss, and no slope but that of cross entropy."""
    monkeypatch.setattr(F, "log_softmax", lambda h, dim: h - h.detach().max(dim, keepdim=True).values)
    value, gradient = sure(gamma)
    assert value == 0 and gradient == pytest.approx([-1.0 if gamma == 0 else 0.0, 0.0], abs=1e-6)


def test_every_method_takes_short_dtypes():
    logits, y = batch()
    for dtype in (torch.bfloat16, torch.float16):
        for name, make in CASES.items():
            method, h = make(), (0.1 * logits.detach()).to(dtype)
            net = nn.Sequential(Cosines()) if name == "ldam" else nn.Identity()
            value, exact = method(net, h, y, None), loss(make(), h.double(), y)
            assert value.dtype == torch.float32 and value.item() == pytest.approx(exact.item(), rel=0.01), name


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
    protocol = Protocol("p", 3, batch=8, lr=0.01)
    fit(toys.net(), OverSampling(), train, protocol=protocol, tick=lambda done, row: orders.append(train.order))
    assert all(data.counts(train.y[o]).tolist() == [14, 14, 14] for o in orders)
    assert not torch.equal(orders[0].sort().values, orders[1].sort().values)


@pytest.mark.parametrize("n", [(24, 12, 6), (23, 12, 6), (24, 12, 0), (3, 2, 1)])
@pytest.mark.parametrize(
    "settings", [{}, {"start": 2}, {"whole": True}, {"whole": True, "start": 1}, {"power": 0.5}], ids=str
)
def test_over_sampling_says_how_many_images_an_epoch_visits(settings, n):
    images, seen = toys.images([max(k, 1) for k in n]), []
    there = [i for i, c in enumerate(images.y.tolist()) if n[c]]  # a class without images stays one
    train = data.Batches(images, torch.tensor(there), batch=4, seed=0)
    assert train.n.tolist() == list(n)
    method = OverSampling(train.n, **settings)
    protocol = Protocol("p", 3, batch=4, lr=0.01)
    fit(toys.net(), method, train, protocol=protocol, tick=lambda done, row: seen.append(len(train.order)))
    assert [method.visits(train.n, epoch) for epoch in range(3)] == seen
    assert len(set(seen)) == 1 or "start" in settings


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
def test_power_goes_from_the_data_s_own_frequencies_to_equal_ones(power):
    n = torch.tensor([64, 16, 4])
    visits, share = OverSampling(n, power=power).per_class(n), [k ** (1 - power) for k in (64, 16, 4)]
    expected = [round(84 * s / sum(share)) for s in share]
    assert visits == (28 if power == 1 else expected)
    assert power or visits == n.tolist()
    y = torch.arange(3).repeat_interleave(n)
    assert data.counts(y[over_sample(y, visits)]).tolist() == ([28] * 3 if power == 1 else expected)


def test_both_corrections_train_on_balanced_draws_with_weights():
    train, orders = data.Batches(toys.images((24, 12, 6)), batch=8, seed=0), []
    method = OverSampling(train.n, weighted=True)
    fit(toys.net(), method, train, protocol=Protocol("p", 2, batch=8, lr=0.01),
        tick=lambda done, row: orders.append(train.order))  # fmt: skip
    assert all(data.counts(train.y[o]).tolist() == [14, 14, 14] for o in orders)
    assert torch.equal(method.w, inverse_frequency(train.n))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: OverSampling(N, power=1.5), "power 1.5"),
        (lambda: OverSampling(N, whole=True, power=0.5), "1 where whole is True"),
        (lambda: OverSampling(weighted=True), "needs the class counts n"),
        (lambda: LabelSmoothing(N, epsilon=1.0), "epsilon 1.0"),
        (lambda: Focal(N, alpha="effective"), "alpha 'effective'"),
        (lambda: Focal(alpha="inverse"), "together with the class counts n"),
        (lambda: Focal(torch.tensor([3, 0]), alpha="inverse"), "a class without images has no weight"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_methods_visit_each_image_once():
    assert all(method.visits(N, epoch) == 76 for epoch in (0, 9) for method in (CrossEntropy(), Weighted(N), CDT(N)))


def test_the_registry_names_the_classes():
    assert all(METHODS[name].__name__ == name for name in METHODS) and "CrossEntropy" in METHODS
    assert all(issubclass(m, Method) and m is not Method for m in METHODS.values()) and len(METHODS) == 20
    assert all(isinstance(m.version, int) and m.__doc__ for m in METHODS.values())


@pytest.mark.parametrize("make", [LogitAdjusted, BalancedSoftmax])
def test_a_class_without_images_has_no_prior(make):
    with pytest.raises(ValueError, match="a class without images has no prior"):
        make(torch.tensor([10, 0, 5]))


def test_a_class_without_images_has_no_margin():
    with pytest.raises(ValueError, match="a class without images has no margin"):
        LDAM(torch.tensor([10, 0, 5]), start=None)


def test_ldam_needs_a_classifier_of_cosines():
    net, x, y = toys.net(4), toys.images().x.float(), toys.images().y
    with pytest.raises(ValueError, match=r"'head' is Linear\(.*replace_classifier\(net, CosineHead\(64, 4\)\)"):
        LDAM(N)(net, x, y, None)
    with pytest.raises(ValueError, match="Identity has no linear layer"):
        LDAM(N)(nn.Identity(), x, y, None)
    assert LDAM(N)(nets.replace_classifier(net, nets.CosineHead(64, 4)), x, y, None) < 30
    assert LDAM.version == 2
