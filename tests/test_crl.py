"""The class rectification loss against literal loops over its equations, in value and gradient, and at its edges."""

import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import toys

from imbook import data, nets, results, train
from imbook.memory import peak_memory
from imbook.methods import CRL, METHODS, CrossEntropy
from imbook.methods.crl import (
    FORMS,
    LEVELS,
    absolute,
    distribution,
    imbalance,
    mine_classes,
    mine_instances,
    minority,
    rectification,
    relative,
    soft_histogram,
)
from imbook.tables import TABLES
from imbook.tables.crl import CRL_ALPHAS, CRL_CHOICE, CRL_CHOICE_BALANCED

COMBINATIONS = [(level, form) for level in LEVELS for form in FORMS]
CIFAR10_LT = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])


# ---------------------------------------------------------------------------------------------------------------------
# The twin: Python loops, one sample after the other, straight from the equations.


def twin_minority(y, classes, rho=0.5, budget="kept"):
    size = [sum(1 for label in y.tolist() if label == c) for c in range(classes)]
    chosen, spent = set(), 0
    for c in sorted(range(classes), key=lambda c: size[c]):
        if size[c] < 2 and budget == "kept":
            continue
        if spent + size[c] > rho * len(y):
            break
        spent += size[c]
        if size[c] >= 2:
            chosen.add(c)
    return chosen


def twin_pairs(h, z, y, level, form, kappa, rho, budget):
    """For each anchor a list of distances to its hard positives and one to its hard negatives."""
    labels = y.tolist()
    chosen = twin_minority(y, h.shape[1], rho, budget)
    p = h.exp() / h.exp().sum(1, keepdim=True)
    if form == "distribution":
        z = z / z.norm(dim=1, keepdim=True)
    pairs = []
    for a, c in enumerate(labels):
        if c not in chosen:
            continue
        mine = [b for b, other in enumerate(labels) if other == c]
        others = [b for b, other in enumerate(labels) if other != c]
        if level == "class":
            positives = sorted(mine, key=lambda b: p[b, c].item())[:kappa]  # the lowest scores of its own class
            negatives = sorted(others, key=lambda b: -p[b, c].item())[:kappa]  # the highest scores for that class
            d_pos = [(p[a, c] - p[b, c]).abs() for b in positives if b != a]
            d_neg = [p[a, c] - p[b, c] for b in negatives]
        else:
            far = [((z[a] - z[b]) ** 2).sum().sqrt() if b != a else None for b in range(len(y))]
            positives = sorted((b for b in mine if b != a), key=lambda b: -far[b].item())[:kappa]
            negatives = sorted(others, key=lambda b: far[b].item())[:kappa]
            d_pos, d_neg = [far[b] for b in positives], [far[b] for b in negatives]
        pairs.append((d_pos, d_neg))
    return pairs


def twin_loss(h, z, y, level="class", form="relative", kappa=3, rho=0.5, budget="kept", bins=40):
    pairs = twin_pairs(h, z, y, level, form, kappa, rho, budget)
    positives = [d for d_pos, _ in pairs for d in d_pos]
    negatives = [d for _, d_neg in pairs for d in d_neg]
    zero = (h.sum() + z.sum()) * 0
    margin = 0.5 if level == "class" else 2 * math.pi / h.shape[1]
    if form == "relative":
        triplets = [(margin + dp - dn).clamp(min=0) for d_pos, d_neg in pairs for dp in d_pos for dn in d_neg]
        return sum(triplets) / len(triplets) if triplets else zero
    if form == "absolute":
        near = sum(d**2 for d in positives) / len(positives) if positives else zero
        apart = sum((margin - d).clamp(min=0) ** 2 for d in negatives) / len(negatives) if negatives else zero
        return (near + apart) / 2
    low, width = (-1.0 if level == "class" else 0.0), 2 / bins

    def histogram(distances):
        nodes = [zero] * (bins + 1)
        for d in distances:
            t = min(int((d.item() - low) // width), bins - 1)
            right = (d - (low + t * width)) / width
            nodes[t], nodes[t + 1] = nodes[t] + (1 - right), nodes[t + 1] + right
        return [v / max(len(distances), 1) for v in nodes]

    h_pos, h_neg = histogram(positives), histogram(negatives)
    return sum(h_pos[t] * sum(h_neg[: t + 1]) for t in range(bins + 1))


def batch(sizes=(9, 4, 3, 2, 1), features=6, seed=0):
    """Logits, features and labels of a batch in mixed order, float64, with gradients."""
    g = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.full((k,), c) for c, k in enumerate(sizes)])[torch.randperm(sum(sizes), generator=g)]
    h = torch.randn(len(y), len(sizes), generator=g, dtype=torch.float64) + 2 * F.one_hot(y, len(sizes))
    z = torch.randn(len(y), features, generator=g, dtype=torch.float64)
    return h.requires_grad_(), z.requires_grad_(), y


@pytest.mark.parametrize("kappa", [1, 3, 50])
@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
def test_loss_and_gradient_equal_the_literal_loops(level, form, kappa):
    for seed in range(5):
        h, z, y = batch(seed=seed)
        fast = rectification(h, z, y, level, form, kappa)
        slow = twin_loss(h, z, y, level, form, kappa)
        assert slow > 0
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
        got, wanted = (torch.autograd.grad(v, (h, z), materialize_grads=True) for v in (fast, slow))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
        if form != "distribution" or kappa > 1:  # histograms that do not overlap have a flat loss of 1
            assert got[level == "instance"].abs().max() > 1e-4, "the gradient flows through what was mined"


@pytest.mark.parametrize(("rho", "budget"), [(0.2, "kept"), (0.5, "all"), (1.0, "kept"), (1.0, "all")])
def test_other_minorities_equal_the_literal_loops(rho, budget):
    h, z, y = batch()
    for level, form in COMBINATIONS:
        settings = dict(level=level, form=form, kappa=2, rho=rho, budget=budget)
        torch.testing.assert_close(rectification(h, z, y, **settings), twin_loss(h, z, y, **settings))


@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
def test_gradcheck(level, form):
    h, z, y = batch((5, 3, 2))
    loss = lambda h, z: rectification(h, z, y, level, form, 2)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (h, z), atol=1e-6)


def test_a_triplet_by_hand():
    """p_a = .6, its positive .2, its negative .5: 0.5 + 0.4 - 0.1 = 0.8; absolute (0.16 + 0.16) / 2."""
    one = lambda v: torch.tensor([[v]])  # noqa: E731
    yes = torch.tensor([[True]])
    assert relative(one(0.4), one(0.1), yes, yes, 0.5).item() == pytest.approx(0.8)
    assert absolute(one(0.4), one(0.1), yes, yes, 0.5).item() == pytest.approx(0.16)
    assert distribution(one(0.4), one(0.1), yes, yes, -1.0).item() == pytest.approx(1), "the negative is nearer"
    assert distribution(one(0.1), one(0.4), yes, yes, -1.0).item() == pytest.approx(0)


# ---------------------------------------------------------------------------------------------------------------------
# Equation 3


@pytest.mark.parametrize(
    ("sizes", "rho", "wanted"),
    [
        ((10, 6, 4), 0.5, {1, 2}),  # 4 + 6 = 10 of 20: the whole budget
        ((9, 7, 4), 0.5, {2}),  # 4 + 7 = 11 would be too much
        ((11, 6, 2, 1), 0.5, {1, 2}),  # a single sample is no minority
        ((8, 0, 0, 2), 0.5, {3}),  # nor is a class without samples
        ((5, 5, 5, 5), 0.5, {0, 1}),  # balanced: ties in the order of the classes
        ((12, 4, 4), 0.2, {1}),
        ((20, 0), 0.5, set()),  # one class only
        ((3, 3), 0.4, set()),
    ],
)
def test_minority(sizes, rho, wanted):
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for shuffled in (y, y.flip(0)):
        found = minority(shuffled, len(sizes), rho)
        assert set(found.nonzero().flatten().tolist()) == wanted == twin_minority(shuffled, len(sizes), rho)


def test_single_samples_use_the_budget_only_when_asked():
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 2 + [3, 4])  # rho * B = 6: 2 + 3 fit, with two singles 1 + 1 + 2 only
    assert minority(y, 5, 0.5, "kept").tolist() == [False, True, True, False, False]
    assert minority(y, 5, 0.5, "all").tolist() == [False, False, True, False, False]


def test_minority_equals_the_twin_on_random_batches():
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        size, classes = torch.randint(1, 40, (2,), generator=g).tolist()
        y = torch.randint(classes, (size,), generator=g)
        for budget in ("kept", "all"):
            found = minority(y, classes, 0.5, budget).nonzero().flatten().tolist()
            assert set(found) == twin_minority(y, classes, 0.5, budget)


# ---------------------------------------------------------------------------------------------------------------------
# Mining


def test_hard_is_hard():
    """Own class: the lowest score; other classes: the highest score for the anchor's class, not for their own."""
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.3, 0.7], [0.05, 0.95]])
    y = torch.tensor([0, 0, 0, 1, 1])
    d_pos, d_neg, is_pos, is_neg = mine_classes(p, y, 1)
    assert d_pos[0].item() == pytest.approx(0.5), "the hardest positive of sample 0 is sample 1, at 0.4"
    assert not is_pos[1, 0] and is_pos[2, 0], "sample 1 is the hardest of its class and not its own positive"
    assert d_neg[0].item() == pytest.approx(0.9 - 0.3), "sample 3 scores 0.3 on class 0, sample 4 only 0.05"
    assert is_neg.all()


def test_the_nearest_other_and_the_farthest_own():
    z = torch.tensor([[0.0], [1.0], [3.0], [0.5], [-2.0]])
    y = torch.tensor([0, 0, 0, 1, 1])
    d_pos, d_neg, is_pos, is_neg = mine_instances(z, y, 2)
    assert d_pos[0].tolist() == [3, 1] and d_neg[0].tolist() == [0.5, 2]
    assert is_pos.tolist() == [[True, True]] * 3 + [[True, False]] * 2 and is_neg.all()


def test_equal_samples_have_a_gradient_that_is_a_number():
    z = torch.ones(6, 3, requires_grad=True)
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    loss = rectification(torch.zeros(6, 2), z, y, level="instance", kappa=2)
    loss.backward()
    assert loss.item() == pytest.approx(math.pi) and z.grad.isfinite().all(), "all distances 0: the margin, 2 pi / 2"


def test_ties_change_nothing():
    h, z, y = batch((6, 3, 3))
    with torch.no_grad():
        h[:], z[:] = h[0], z[0]
    for level, form in COMBINATIONS:
        fast = rectification(h, z, y, level, form, 2)
        torch.testing.assert_close(fast, twin_loss(h, z, y, level, form, 2), atol=1e-7, rtol=0)
        assert all(g.isfinite().all() for g in torch.autograd.grad(fast, (h, z), materialize_grads=True))


@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
def test_the_order_of_a_batch_changes_nothing(level, form):
    h, z, y = batch()
    shuffled = torch.randperm(len(y))
    loss = rectification(h, z, y, level, form)
    torch.testing.assert_close(rectification(h[shuffled], z[shuffled], y[shuffled], level, form), loss)


@pytest.mark.parametrize("sizes", [(8, 0, 0), (1, 1, 1), (1, 0, 0), (5, 1, 1), (2, 0, 0)], ids=str)
@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
def test_a_batch_without_minority_has_loss_0_and_gradient_0(level, form, sizes):
    h, z, y = batch(sizes)
    loss = rectification(h, z, y, level, form)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (h, z), materialize_grads=True):
        assert gradient.abs().max() == 0


@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
def test_extreme_scores_give_numbers(level, form):
    h, z, y = batch()
    loss = rectification(h.float() * 1e4, z.float() * 1e4, y, level, form)
    assert loss.isfinite() and all(
        g.isfinite().all() for g in torch.autograd.grad(loss, (h, z), materialize_grads=True)
    )


def test_a_histogram_has_sum_1_and_keeps_the_mean():
    g = torch.Generator().manual_seed(0)
    d = torch.rand(7, 3, generator=g, dtype=torch.float64) * 2 - 1
    counted = torch.rand(7, 3, generator=g) < 0.6
    h = soft_histogram(d, counted, -1.0, 40)
    nodes = torch.linspace(-1, 1, 41, dtype=torch.float64)
    assert h.sum().item() == pytest.approx(1)
    assert (h * nodes).sum().item() == pytest.approx(d[counted].mean().item()), "linear interpolation"
    edges = soft_histogram(torch.tensor([[-1.0, 1.0]]), torch.tensor([[True, True]]), -1.0, 40)
    assert edges[0] == edges[-1] == 0.5


def test_the_distribution_form_estimates_a_probability():
    g = torch.Generator().manual_seed(0)
    d_pos, d_neg = torch.rand(1, 4000, generator=g, dtype=torch.float64) * torch.tensor([[1.0], [0.7]])
    yes = torch.ones(1, 4000, dtype=torch.bool)
    found = distribution(d_pos[None], d_neg[None], yes, yes, 0.0, bins=400)
    exact = (d_neg[:, None] <= d_pos).double().mean()
    assert found.item() == pytest.approx(exact.item(), abs=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# alpha and the method


def test_omega():
    assert imbalance(CIFAR10_LT) == pytest.approx(48.9376, abs=1e-4), "per cent of the samples to move"
    assert imbalance(torch.tensor([43, 1])) == pytest.approx(100 * 21 / 44)
    assert imbalance(torch.full((7,), 30)) == 0


def test_alpha_is_eta_times_omega_or_given():
    assert CRL(CIFAR10_LT).alpha == [pytest.approx(0.489376, abs=1e-6)]
    assert CRL(CIFAR10_LT, alpha=0.2).alpha == [0.2]
    several = CRL((torch.tensor([43, 1]), torch.tensor([3, 1])))
    assert several.alpha == [pytest.approx(21 / 44), pytest.approx(0.25)]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(eta=0.03), "must lie in"),
        (dict(alpha=-0.1), "must lie in"),
        (dict(alpha=1.5), "must lie in"),
        (dict(alpha=float("nan")), "must lie in"),
        (dict(level="pixel"), "level"),
        (dict(form="cubic"), "form"),
        (dict(budget="some"), "budget"),
        (dict(kappa=0), "kappa"),
        (dict(rho=-0.1), "rho"),
        (dict(rho=1.1), "rho"),
    ],
)
def test_bad_settings_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        CRL(CIFAR10_LT, **arguments)


def test_balanced_data_need_an_explicit_alpha():
    with pytest.raises(ValueError, match="pass alpha"):
        CRL(torch.full((10,), 50))
    assert CRL(torch.full((10,), 50), alpha=0.1).alpha == [0.1]


def step(method, net=None, size=32):
    images = toys.images((20, 8, 4))
    net = net or nets.lenet(3, size=14)
    x = F.interpolate(images.x[:size].float() / 255, 14)
    return method(net, x, images.y[:size], torch.arange(size)), net, x, images.y[:size]


@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
def test_the_method_mixes_both_losses(level, form):
    torch.manual_seed(0)
    method = CRL(torch.tensor([20, 8, 4]), level, form, alpha=0.3)
    loss, net, x, y = step(method)
    z = net[:-1](x)
    wanted = 0.3 * twin_loss(net.head(z), z, y, level, form) + 0.7 * F.cross_entropy(net.head(z), y)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", ["stage1", "stage3.1", "input", None])
def test_instances_are_compared_at_the_stage(stage):
    torch.manual_seed(0)
    loss, net, x, y = step(CRL(torch.tensor([20, 8, 4]), "instance", alpha=0.3, stage=stage))
    z = {"stage1": net[:1](x), "stage3.1": net.stage3[:2](net[:2](x)), "input": x, None: net[:-1](x)}[stage].flatten(1)
    wanted = 0.3 * rectification(net(x), z, y, "instance") + 0.7 * F.cross_entropy(net(x), y)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_dtypes_are_compared_in_float32(level, form, dtype):
    g = torch.Generator().manual_seed(0)
    h, z = torch.randn(12, 3, generator=g).to(dtype), torch.randn(12, 5, generator=g).to(dtype)
    y = torch.tensor([0] * 7 + [1] * 3 + [2] * 2)
    value = rectification(h, z, y, level, form)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, rectification(h.float(), z.float(), y, level, form))


def test_alpha_0_is_cross_entropy_exactly():
    torch.manual_seed(0)
    loss, net, x, y = step(CRL(torch.tensor([20, 8, 4]), alpha=0.0))
    plain = CrossEntropy()(net, x, y, None)
    assert loss.item() == plain.item()
    for got, wanted in zip(*(torch.autograd.grad(v, list(net.parameters())) for v in (loss, plain))):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
def test_rho_0_is_cross_entropy_times_1_minus_alpha(level, form):
    """The control of chapter 04: nothing is mined, and cross entropy keeps the weight it has beside the mined loss."""
    torch.manual_seed(0)
    loss, net, x, y = step(CRL(torch.tensor([20, 8, 4]), level, form, alpha=0.25, rho=0))
    plain = CrossEntropy()(net, x, y, None)
    assert loss.item() == pytest.approx(0.75 * plain.item(), rel=1e-6) and plain > 0
    for got, wanted in zip(*(torch.autograd.grad(v, list(net.parameters())) for v in (loss, plain))):
        torch.testing.assert_close(got, 0.75 * wanted, rtol=1e-5, atol=1e-7)
    assert not minority(y, 3, rho=0).any() and minority(y, 3).any()


def test_every_sample_gets_cross_entropy():
    """A fault of re-implementations: minority samples that are rectified lose their cross entropy."""
    torch.manual_seed(0)
    method = CRL(torch.tensor([20, 8, 4]), alpha=0.5, rho=0.5)
    h = torch.randn(12, 3, requires_grad=True)
    net = torch.nn.Sequential(OrderedDict(stage1=torch.nn.Identity(), head=torch.nn.Identity()))
    y = torch.tensor([0] * 9 + [1] * 2 + [2])
    (gradient,) = torch.autograd.grad(method(net, h, y, None), h)
    (plain,) = torch.autograd.grad(F.cross_entropy(h, y), h)
    (rectified,) = torch.autograd.grad(rectification(h, h, y), h)
    torch.testing.assert_close(gradient, 0.5 * plain + 0.5 * rectified)
    assert (plain.abs().sum(1) > 0).all() and rectified.abs().sum() > 0


def test_several_labels_are_rectified_one_by_one():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(10, 3), torch.nn.Linear(10, 2)

    class Two(torch.nn.Module):
        def forward(self, z):
            return first(z), second(z)

    net = torch.nn.Sequential(OrderedDict(stage1=torch.nn.Tanh(), head=Two()))
    y = torch.stack([torch.tensor([0] * 9 + [1] * 4 + [2] * 3), torch.tensor([0, 1, 0, 0] * 4)], 1)
    x = torch.randn(16, 10)
    z = net[:-1](x)
    for level, form in COMBINATIONS:
        method = CRL((torch.tensor([43, 1, 1]), torch.tensor([3, 1])), level, form)
        wanted = sum(
            a * twin_loss(h, z, y[:, j], level, form) + (1 - a) * F.cross_entropy(h, y[:, j])
            for j, (a, h) in enumerate(zip(method.alpha, (first(z), second(z))))
        )
        torch.testing.assert_close(method(net, x, y, None), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("level", "form"), COMBINATIONS)
def test_a_whole_run_equals_a_literal_loop(level, form):
    """Three epochs of SGD, once through `fit`, once through a loop over the twin."""
    torch.manual_seed(0)
    images = toys.images((40, 12, 8))
    protocol = train.Protocol("toy", epochs=3, batch=16, lr=0.05, weight_decay=0.0)
    n, dtype = data.counts(images.y), torch.float64
    fast, slow = (nets.mlp(64, 3).double() for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    batches = lambda: data.Batches(images, batch=16, seed=3, dtype=dtype)  # noqa: E731
    train.fit(fast, CRL(n, level, form, alpha=0.4), batches(), protocol=protocol)
    velocity = [torch.zeros_like(p) for p in slow.parameters()]
    training = batches()
    for _ in range(3):
        for x, y, _i in training:
            z = slow[:-1](x)
            h = slow.head(z)
            loss = 0.4 * twin_loss(h, z, y, level, form) + 0.6 * F.cross_entropy(h, y)
            for p, v, g in zip(slow.parameters(), velocity, torch.autograd.grad(loss, list(slow.parameters()))):
                v.mul_(0.9).add_(g)
                p.data -= 0.05 * v
    for a, b in zip(fast.parameters(), slow.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_registered():
    assert METHODS["CRL"] is CRL


def test_memory_does_not_grow_with_the_cube_of_the_batch():
    """Batch 1,024 with 1,000 classes: the largest tensors have B * C or B * B entries, not B^3 (4 GB)."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, torch.Tensor):
                    sizes.append(t.untyped_storage().nbytes() // t.element_size())
            return out

    torch.manual_seed(0)
    batch_size, classes, kappa = 1024, 1000, 8
    h, z = torch.randn(batch_size, classes, requires_grad=True), torch.randn(batch_size, 64, requires_grad=True)
    y = (torch.rand(batch_size) ** 3 * classes).long()
    for level, form in COMBINATIONS:
        with peak_memory() as peak, Watch():
            rectification(h, z, y, level, form, kappa).backward()
        assert max(sizes) <= max(batch_size**2, batch_size * classes, batch_size * kappa**2)
        assert peak.mb is None or peak.mb < 500


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("name", "choice"), [("crl-sweep", CRL_CHOICE), ("crl-sweep-balanced", CRL_CHOICE_BALANCED)])
def test_alpha_and_kappa_are_those_that_the_validation_images_choose(name, choice, level):
    """The row with Omega as a share is no candidate: it turns the loss off."""
    cells = (c for c in TABLES[name].rows if c.hyper.get("level") == level and c.hyper["alpha"] >= min(CRL_ALPHAS))
    found = results.chosen(replace(TABLES[name], rows=tuple(cells)), "CRL")
    if found is None:
        pytest.skip(f"{name} is not complete")
    assert found == {"level": level, **choice[level]}
