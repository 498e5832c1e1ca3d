"""Deep over-sampling against literal loops over its equations, its neighbours, rounds and edges; abstract labels."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from sklearn.neighbors import NearestNeighbors
from torch import nn

from imbook import data, nets
from imbook.data import SUPER_CLASSES
from imbook.methods import DOS, CrossEntropy, DOSAbstract, dos
from imbook.methods.dos import (
    abstract_labels,
    draw_weights,
    inside,
    keep_names,
    loss_f,
    loss_g,
    nearest,
    neighbours,
    rho,
    small_classes,
    squared_distance,
    variance_within,
)
from imbook.tables import TABLES
from imbook.tables.dos import DOS_ROUNDS
from imbook.tables.dos import TABLES as OWN_TABLES
from imbook.train import Protocol, fit

N = torch.tensor([40, 16, 8])
RUN = Protocol("toy", epochs=7, batch=16, lr=0.05, watch=1)
END = {None: 2, "hidden": 2, "flat": 1}  # how many stages f has, by the name of its last
ROUNDS = dict(start=2, every=2)


def doubles(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    made = nn.Sequential()
    made.add_module("flat", nn.Flatten())
    made.add_module("hidden", nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Dropout(dropout)))
    made.add_module("head", nn.Linear(12, 3))
    return made


def toy(seed=0, dropout=0.0, dtype=torch.float32):
    train = data.Batches(toys.images(N.tolist()), batch=16, seed=5, dtype=dtype)
    return net(seed, dropout).to(dtype), train


def run(method, seed=0, dropout=0.0, **options):
    made, train = toy(seed, dropout)
    return made, fit(made, method, train, protocol=RUN, seed=11, **options), train


def began(method, epoch=2, made=None, dtype=torch.float32):
    """A network, its training set and a method whose round has begun."""
    new, train = toy(dtype=dtype)
    made = (made or new).eval()
    with torch.no_grad():
        for e in range(epoch + 1):
            method.update(e, made, train, None)
    return made, train


# -- the equations, literally -----------------------------------------------------------------------------------------


def literal(z, v, w, h, y):
    """Equations (3) to (5), or (8) to (10) with weights, in plain Python: l_f, rho and l_g of each image."""
    l_f, rhos, l_g = [], [], []
    for b in range(len(z)):
        d = [sum((p - q) ** 2 for p, q in zip(z[b], v[b][j])) for j in range(len(v[b]))]
        l_f.append(sum(w[b][j] * d[j] for j in range(len(d))))
        e = [math.exp(-w[b][j] * d[j]) for j in range(len(d))]
        rhos.append([x / sum(e) for x in e])
        H = []
        for j in range(len(d)):
            exps = [math.exp(x) for x in h[b][j]]
            H.append(-math.log(exps[y[b]] / sum(exps)))
        l_g.append(sum(rhos[b][j] * H[j] for j in range(len(d))))
    return l_f, rhos, l_g


@pytest.mark.parametrize("weighted", [True, False])
def test_the_losses_against_the_loop(weighted):
    z, v, h = doubles(5, 6), 0.5 * doubles(5, 3, 6, seed=1), doubles(5, 3, 4, seed=2)
    w = doubles(5, 3, seed=3).exp() if weighted else torch.ones(5, 3, dtype=torch.float64)
    y = torch.tensor([0, 3, 1, 1, 2])
    d = squared_distance(z, v)
    l_f, rhos, l_g = literal(z.tolist(), v.tolist(), w.tolist(), h.tolist(), y.tolist())
    assert np.allclose(loss_f(d, w), l_f, rtol=1e-12)
    assert np.allclose(rho(d, w), rhos, rtol=1e-12)
    assert np.allclose(loss_g(h, y, rho(d, w)), l_g, rtol=1e-12)
    assert rho(d, w).sum(1).tolist() == pytest.approx([1] * 5, rel=1e-14)


def test_gradients_of_the_losses():
    z, v, h = doubles(3, 4), doubles(3, 2, 4, seed=1), doubles(3, 2, 5, seed=2)
    w, y = doubles(3, 2, seed=3).softmax(1), torch.tensor([4, 0, 2])
    for t in (z, v, h):
        t.requires_grad_()

    def both(z, v, h):
        d = squared_distance(z, v)
        return loss_f(d, w) + loss_g(h, y, rho(d, w))

    assert torch.autograd.gradcheck(both, (z, v, h))


def test_the_minimum_of_l_f_is_the_synthetic_target():
    """Equation (8): its gradient vanishes at sum_i w_i v_i, for every w with sum 1."""
    v, w = doubles(4, 3, 6), draw_weights("simplex", (4, 3), doubles(1))
    target = (w[:, :, None] * v).sum(1).requires_grad_()
    loss_f(squared_distance(target, v), w).sum().backward()
    assert target.grad.abs().max() < 1e-14
    away = loss_f(squared_distance(target.detach() + 0.1, v), w)
    assert (away > loss_f(squared_distance(target.detach(), v), w)).all()


def test_rho_is_finite_where_every_exponential_underflows():
    d = torch.tensor([[2000.0, 2001.0], [0.0, 5000.0], [1e30, 1e30]], requires_grad=True)
    values = rho(d, torch.ones_like(d))
    assert values[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)], rel=1e-6)
    assert values[1].tolist() == [1, 0] and values[2].tolist() == [0.5, 0.5]
    values[:, 0].sum().backward()
    assert d.grad.isfinite().all()


def test_a_larger_weight_lowers_the_share_in_l_g():
    """As printed: (10) falls with w_i while (8) pulls towards v_i."""
    values = rho(torch.ones(1, 2), torch.tensor([[0.9, 0.1]]))
    assert values[0, 0] < values[0, 1]


@pytest.mark.parametrize("law", ["simplex", "uniform", "equal"])
def test_weights_lie_on_the_simplex(law):
    torch.manual_seed(0)
    w = draw_weights(law, (20_000, 4), doubles(1))
    assert w.shape == (20_000, 4) and (w >= 0).all() and torch.allclose(w.sum(1), torch.ones(()).double())
    assert torch.allclose(w.mean(0), torch.full((4,), 0.25).double(), atol=0.01)
    # the variance of one coordinate: (k - 1) / (k^2 (k + 1)) where all of the simplex is equally likely
    if law == "simplex":
        assert w.var(0).tolist() == pytest.approx([3 / 80] * 4, rel=0.05)
    else:
        assert (w.var(0) < 0.7 * 3 / 80).all() and (law == "uniform") == (w.var() > 0)


# -- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 700, 2**22])
def test_neighbours_are_those_of_scikit_learn(block, monkeypatch):
    monkeypatch.setattr(dos, "BLOCK", block)
    z = 50 + doubles(211, 9).float().relu()
    ours = nearest(z, 7)
    far, theirs = NearestNeighbors(n_neighbors=7).fit(z.double().numpy()).kneighbors()
    assert torch.equal(ours, torch.as_tensor(theirs))
    d = squared_distance(z.double(), z.double()[ours])
    assert np.allclose(d.sqrt(), far)


def test_neighbours_stay_in_their_class():
    z, y = doubles(60, 5), torch.arange(60) % 4
    found = neighbours(z, y, 3, torch.tensor([True, False, True, True]))
    for i in range(60):
        if y[i] == 1:
            assert found[i].tolist() == [i] * 3
            continue
        others = [j for j in range(60) if y[j] == y[i] and j != i]
        assert found[i].tolist() == sorted(others, key=lambda j: (z[i] - z[j]).square().sum().item())[:3]


def test_equal_images_are_neighbours_of_each_other_not_of_themselves():
    z = torch.zeros(5, 3)
    assert all(i not in row for i, row in enumerate(nearest(z, 4).tolist()))


def test_a_small_class_repeats_its_neighbours_and_a_single_image_is_its_own():
    z, y = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([0, 0, 0, 1])
    found = neighbours(z, y, 5, torch.tensor([True, True]))
    assert found.tolist() == [[1, 2, 1, 2, 1], [0, 2, 0, 2, 0], [1, 0, 1, 0, 1], [3] * 5]


def test_a_large_class_is_searched_in_blocks(monkeypatch):
    """No tensor of a search holds more than 256 MB; 6,000 embeddings of 120 numbers."""
    held = []
    addmm = torch.addmm

    def noted(*arguments, **options):
        made = addmm(*arguments, **options)
        held.append(made.numel() * made.element_size())
        return made

    monkeypatch.setattr(torch, "addmm", noted)
    nearest(doubles(6000, 120).float(), 5)
    assert max(held) < 2**25 + 2**16 and sum(held) == 6000 * 6000 * 8


# -- which classes, how often -----------------------------------------------------------------------------------------


def test_which_classes_are_small():
    n = torch.tensor([6000, 60, 5400, 2900, 60, 6700, 5900, 2700])
    assert small_classes(n, "median").nonzero().flatten().tolist() == [1, 4], "of 2900 and 5400 the smaller counts"
    assert small_classes(torch.tensor([8, 2, 4])).tolist() == [False, True, False], "half is small"
    assert small_classes(n, "half").nonzero().flatten().tolist() == [1, 3, 4, 7]
    assert small_classes(n, "all").all()
    svhn = torch.tensor([4948, 138, 105, 84, 74, 6882, 5727, 5595, 5045, 4659])  # p = 0.99 of four of its classes
    assert small_classes(svhn).nonzero().flatten().tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="minority 'few'"):
        small_classes(n, "few")


@pytest.mark.parametrize("r, expected", [(1.0, [1, 2, 5]), (2.0, [1, 5, 10]), (0.1, [1, 1, 1])])
def test_each_draw_is_a_training_sample(r, expected):
    """40 / 16 = 2.5 and 40 / 8 = 5 visits, rounded (to even), at least one."""
    method = DOS(N, k=2, r=r, minority="half", **ROUNDS)
    _, train = began(method, epoch=1)
    assert torch.equal(train.order, torch.arange(64)), "not before the first round"
    _, train = began(method)
    visits = torch.bincount(train.order)
    assert [set(visits[train.y == c].tolist()) for c in range(3)] == [{e} for e in expected]


def test_the_loss_is_a_sum_over_draws_not_their_mean():
    """A sample drawn twice weighs twice: the loss of a batch is the mean of its entries, each entry a draw."""
    method = DOS(N, k=2, w="equal", minority="half", **ROUNDS)
    made, train = began(method)
    i = torch.cat([(train.y == 0).nonzero()[:1, 0], (train.y == 2).nonzero()[:1, 0]])
    x = train.normalise(train.x)
    one, two = method(made, x[i[:1]], train.y[i[:1]], i[:1]), method(made, x[i[1:]], train.y[i[1:]], i[1:])
    thrice = torch.stack([i[0], i[1], i[1], i[1]])
    assert torch.allclose(method(made, x[thrice], train.y[thrice], thrice), (one + 3 * two) / 4)


# -- the method -------------------------------------------------------------------------------------------------------


def literal_batch(method, made, train, table, i, w):
    """The loss of a batch by equations (2) to (10), image by image; table: features at the round's start."""
    f, g = made[: END[method.stage]], made[END[method.stage] :]
    total = 0
    for b, (j, c) in enumerate(zip(i.tolist(), train.y[i].tolist())):
        z = f(train.normalise(train.x[j : j + 1])).flatten()
        if not small_classes(N, "half")[c]:
            total = total - g(f(train.normalise(train.x[j : j + 1])))[0].log_softmax(0)[c]
            continue
        same = [q for q in range(len(train.y)) if train.y[q] == c and q != j]
        near = sorted(same, key=lambda q: (table[j] - table[q]).square().sum().item())[: method.k]
        near = ([j] if method.law == "none" else []) + near
        v = table[near]
        d = [(z - u).square().sum() / method.scale for u in v]
        weights = [1.0] * len(near) if method.law == "none" else w[b]
        e = torch.stack([torch.exp(-weights[m] * d[m]) for m in range(len(near))])
        p = e / e.sum()
        H = [-g(v[m].view(1, *f(train.normalise(train.x[:1])).shape[1:]))[0].log_softmax(0)[c] for m in range(len(v))]
        total = total + sum(p[m] * H[m] + method.lambda_ * weights[m] * d[m] for m in range(len(v)))
    return total / len(i)


@pytest.mark.parametrize("law", ["simplex", "none"])
@pytest.mark.parametrize("stage", [None, "flat"])
def test_a_batch_against_the_loop(law, stage, monkeypatch):
    method = DOS(N, k=3, w=law, stage=stage, lambda_=0.3, minority="half", **ROUNDS).double()
    made, train = began(method, dtype=torch.float64)
    with torch.no_grad():
        table = made[: END[stage]](train.normalise(train.x)).flatten(1)
        made.hidden[0].weight.mul_(1.1), made.head.bias.add_(0.1)  # the network moves on, the table does not
    i = torch.tensor([0, 5, 17, 33, 33, 50, 63, 8])
    w = draw_weights("simplex", (8, 3), doubles(1))
    monkeypatch.setattr(dos, "draw_weights", lambda *_: w)
    ours = method(made, train.normalise(train.x[i]), train.y[i], i)
    gradients = torch.autograd.grad(ours, list(made.parameters()), allow_unused=True)
    expected = literal_batch(method, made, train, table, i, w)
    theirs = torch.autograd.grad(expected, list(made.parameters()), allow_unused=True)
    assert small_classes(N, "half")[train.y[i]].any() and not small_classes(N, "half")[train.y[i]].all()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9)
    for a, b in zip(gradients, theirs):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-8, atol=1e-12)


def test_stored_neighbours_give_gradient_to_g_alone_and_live_ones_to_f():
    made, train = toy()
    grads = {}
    for v in ("stored", "live"):
        method = DOS(N, k=1, lambda_=0.0, v=v, **ROUNDS)  # k = 1: rho is 1, and only H(g(v), y) is left
        began(method, made=made)
        i = (train.y == 2).nonzero().flatten()
        loss = method(made, train.normalise(train.x[i]), train.y[i], i)
        grads[v] = loss, torch.autograd.grad(loss, [made.hidden[0].weight, made.head.weight], allow_unused=True)
    assert torch.allclose(grads["stored"][0], grads["live"][0]), "the same value at the start of the round"
    assert grads["stored"][1][0].abs().max() == 0 and grads["live"][1][0].abs().max() > 0
    assert torch.allclose(grads["stored"][1][1], grads["live"][1][1], atol=1e-7)


def test_fresh_neighbours_are_the_live_ones_without_their_gradient():
    made, train = toy()
    grads = {}
    for v in ("stored", "live", "fresh"):
        for lean in (False, True):
            method = DOS(N, k=1, lambda_=0.0, v=v, lean=lean, **ROUNDS)
            began(method, made=made)
            if v != "stored":
                method.z.zero_()  # what is stored plays no part
            i = (train.y == 2).nonzero().flatten()
            loss = method(made, train.normalise(train.x[i]), train.y[i], i)
            weights = [made.hidden[0].weight, made.head.weight]
            grads[v, lean] = loss, *torch.autograd.grad(loss, weights, allow_unused=True)
    for lean in (False, True):
        for fresh, live in zip(grads["fresh", lean][::2], grads["live", lean][::2], strict=True):
            assert torch.equal(fresh, live), "the same value, and the same gradient of g"
        assert grads["fresh", lean][1].abs().max() == grads["stored", lean][1].abs().max() == 0, "and none of f"
        assert grads["live", lean][1].abs().max() > 0


def test_l_f_pulls_a_batch_towards_its_neighbours():
    method = DOS(N, k=3, w="equal", minority="half", **ROUNDS)
    made, train = began(method)
    i = (train.y == 2).nonzero().flatten()
    near = lambda: squared_distance(made[:-1](train.normalise(train.x[i])), method.z[method.near[i]]).mean().item()  # noqa: E731
    before, optimiser = near(), torch.optim.SGD(made.parameters(), 0.01)
    for _ in range(20):
        optimiser.zero_grad()
        method(made, train.normalise(train.x[i]), train.y[i], i).backward()
        optimiser.step()
    assert near() < 0.9 * before


def test_majority_images_have_plain_cross_entropy():
    method = DOS(N, k=3, minority="half", **ROUNDS)
    made, train = began(method)
    i = (train.y == 0).nonzero().flatten()
    x = train.normalise(train.x[i])
    assert torch.allclose(method(made, x, train.y[i], i), F.cross_entropy(made(x), train.y[i]))


def test_without_neighbours_it_is_plain_training_bit_for_bit():
    a, curve, train = run(DOS(N, k=0, **ROUNDS), dropout=0.3)
    b, plain, _ = run(CrossEntropy(), dropout=0.3)
    assert toys.same(a.state_dict(), b.state_dict()) and toys.same(curve, plain)
    assert torch.equal(train.order, torch.arange(64))


@pytest.mark.parametrize("make", [DOS, DOSAbstract])
def test_before_its_start_it_is_plain_training(make):
    a, curve, _ = run(make(N, k=3, minority="half", start=5))
    b, plain, _ = run(CrossEntropy())
    assert [r["loss"] for r in curve[:5]] == pytest.approx([r["loss"] for r in plain[:5]], rel=1e-5)
    assert abs(curve[5]["loss"] - plain[5]["loss"]) > 1e-3 and "round" not in curve[4] and curve[5]["round"] == 1


def test_rounds_renew_the_tables():
    tables = []
    note = lambda method: lambda done, row: tables.append((method.z.clone(), method.near.clone(), row))  # noqa: E731
    method = DOS(N, k=3, minority="half", **ROUNDS)
    run(method, tick=note(method))
    same = [torch.equal(a[0], b[0]) for a, b in zip(tables, tables[1:])]
    assert same == [True, False, True, False, True, False], "rounds begin before epochs 2, 4 and 6"
    assert [row.get("round") for _, _, row in tables] == [None, None, 1, 1, 2, 2, 3]
    spreads = [row["spread"] for _, _, row in tables[2:]]
    assert spreads[0] == spreads[1] != spreads[2] == spreads[3] != spreads[4]
    z, near, row = tables[-1]
    chosen = small_classes(N, "half")[data.Batches(toys.images(N.tolist())).y]
    assert row["spread"] == pytest.approx(squared_distance(z[chosen], z[near[chosen]]).mean().item(), rel=1e-5)
    within = variance_within(z, data.Batches(toys.images(N.tolist())).y, 3)
    assert row["within"] == pytest.approx(within[1:].mean().item())
    assert row["within_majority"] == pytest.approx(within[0].item())


def test_variance_within_against_the_loop():
    z, y = doubles(30, 4), torch.arange(30) % 3
    total = (z - z.mean(0)).square().sum(1).mean()
    expected = [(z[y == c] - z[y == c].mean(0)).square().sum(1).mean() / total for c in range(3)]
    assert torch.allclose(variance_within(z, y, 4)[:3], torch.stack(expected)) and variance_within(z, y, 4)[3].isnan()


@pytest.mark.parametrize("scale", ["variance", "spread", "features", "none"])
def test_scales(scale):
    method = DOS(N, k=3, scale=scale, minority="half", **ROUNDS)
    made, train = began(method)
    chosen = small_classes(N, "half")[train.y]
    spread = squared_distance(method.z[chosen], method.z[method.near[chosen]]).mean().item()
    mean = [sum(column) / 64 for column in method.z.T.tolist()]
    variance = sum((q - m) ** 2 for row in method.z.tolist() for q, m in zip(row, mean)) / 64
    expected = {"variance": variance, "spread": spread, "features": 12, "none": 1}[scale]
    assert method.scale.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale, same", [("variance", True), ("spread", True), ("features", False), ("none", False)])
def test_which_scales_have_no_unit(scale, same):
    """Features ten times as large, and a head that takes this back, are the same network."""
    losses = []
    for unit in (1, 10):
        made, _ = toy(dtype=torch.float64)
        with torch.no_grad():
            made.hidden[0].weight.mul_(unit), made.hidden[0].bias.mul_(unit), made.head.weight.div_(unit)
        method = DOS(N, k=3, w="equal", scale=scale, minority="half", **ROUNDS)
        _, train = began(method, made=made, dtype=torch.float64)
        i = (train.y == 2).nonzero().flatten()
        losses.append(method(made, train.normalise(train.x[i]), train.y[i], i).item())
    assert (abs(losses[1] / losses[0] - 1) < 1e-5) == same


def test_the_variance_stays_when_a_class_contracts():
    """... and the spread does not: divided by it, the pull on a tight class is as strong as on a wide one."""
    y = data.Batches(toys.images(N.tolist())).y
    wide = doubles(64, 12).float() + 3 * F.one_hot(y, 12)
    tight = wide.clone()
    tight[y == 2] = wide[y == 2].mean(0) + 0.1 * (wide[y == 2] - wide[y == 2].mean(0))
    found = {}
    for scale in ("variance", "spread"):
        for name, z in (("wide", wide), ("tight", tight)):
            method = DOS(torch.tensor([40, 30, 8]), k=3, scale=scale, **ROUNDS)  # the class of 8 alone is small
            _, train = toy()
            method.allocate(z), method.renew(z, train)
            found[scale, name] = method.scale.item()
    assert found["variance", "tight"] > 0.8 * found["variance", "wide"]
    assert found["spread", "tight"] == pytest.approx(0.01 * found["spread", "wide"], rel=1e-3)


def test_with_stored_neighbours_l_f_alone_moves_the_features_of_the_minority():
    method = DOS(N, k=3, lambda_=0.0, minority="half", **ROUNDS)
    made, train = began(method)
    small = (train.y > 0).nonzero().flatten()
    loss = method(made, train.normalise(train.x[small]), train.y[small], small)
    f, g = torch.autograd.grad(loss, [made.hidden[0].weight, made.head.weight])
    assert g.abs().max() > 0
    rho_alone = f.abs().max().item()  # what is left: (5) and (10) depend on f(x), too
    method.lambda_ = 1.0
    pull = method(made, train.normalise(train.x[small]), train.y[small], small)
    assert torch.autograd.grad(pull, made.hidden[0].weight)[0].abs().max() > 10 * rho_alone


def test_without_any_neighbour_nothing_is_scaled():
    """Minority classes of one image each: distances are 0, and their mean cannot be divided by."""
    method = DOS(torch.tensor([40, 1, 1]), k=5, scale="spread", **ROUNDS)
    train = data.Batches(toys.images((40, 1, 1)), batch=16, seed=5)
    curve = fit(net(), method, train, protocol=RUN)
    assert method.scale == 1 and all(math.isfinite(r["loss"]) for r in curve) and curve[-1]["spread"] == 0


def test_a_set_smaller_than_its_counts():
    """A dry run keeps one batch, with the counts of the whole set: tables are as large as what is embedded."""
    method = DOS(1000 * N, k=5, **ROUNDS)
    began(method)
    assert method.z.shape == (64, 12) and method.near.shape == (64, 5)


@pytest.mark.parametrize("stage", [None, "hidden", "flat"])
def test_features_are_taken_where_it_is_told(stage):
    method = DOS(N, k=2, stage=stage, minority="half", **ROUNDS)
    _, train = began(method)
    assert method.z.shape[1] == (64 if stage == "flat" else 12)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(k=-1), "k -1"),
        (dict(k=2.5), "k 2.5"),
        (dict(r=0), "r 0"),
        (dict(every=0), "every 0"),
        (dict(start=-1), "start -1"),
        (dict(lambda_=-0.1), "lambda_ -0.1"),
        (dict(minority="few"), "minority 'few'"),
        (dict(w="dirichlet"), "w 'dirichlet'"),
        (dict(scale=1.0), "scale 1.0"),
        (dict(v="moving"), "v 'moving'"),
        (dict(groups=0), "groups 0"),
        (dict(head_weight=-1.0), "head_weight -1.0"),
        (dict(by="images"), "by 'images'"),
        (dict(super_classes=(0, 1)), "2 super-classes for 3 classes"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        (DOSAbstract if {"groups", "head_weight", "by", "super_classes"} & set(wrong) else DOS)(N, **wrong)


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="stage 'pool': this network has input, flat, hidden, head"):
        began(DOS(N, stage="pool"))


@pytest.mark.parametrize("minority", ["half", "median", "all"])
@pytest.mark.parametrize("settings", [{}, {"r": 2.5}, {"k": 0}, {"start": 0}, {"start": 9}], ids=str)
def test_the_images_that_an_epoch_visits(settings, minority):
    method, seen = DOS(N, minority=minority, **{"k": 2, **ROUNDS, **settings}), []
    made, train = toy()
    protocol = replace(RUN, epochs=4)
    fit(made, method, train, protocol=protocol, tick=lambda done, row: seen.append(len(train.order)))
    assert [method.visits(train.n, epoch) for epoch in range(4)] == seen
    assert seen[3] > 64 or minority == "median" or method.k == 0 or method.start == 9


# -- features that have collapsed, inputs that are not finite, dtypes -------------------------------------------------


@pytest.mark.parametrize("scale", ["variance", "spread"])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapsed_features_are_not_divided_by_their_rounding(scale, noise, dtype):
    """One point, or what rounding makes of it: distances are then left as they are."""
    eps = torch.finfo(dtype).eps
    z = (0.3 + noise * eps / 1e-7 * torch.rand(64, 12, generator=torch.Generator().manual_seed(0), dtype=dtype)).clone()
    method = DOS(N, k=3, scale=scale, minority="half", **ROUNDS)
    _, train = toy(dtype=dtype)
    method.allocate(z), method.renew(z, train)
    assert method.scale == 1


@pytest.mark.parametrize("scale", ["variance", "spread"])
def test_tight_features_that_differ_are_scaled(scale):
    """A ten-thousandth of their length is no rounding."""
    z = 1 + 1e-4 * torch.rand(64, 12, generator=torch.Generator().manual_seed(0))
    method = DOS(N, k=3, scale=scale, minority="half", **ROUNDS)
    method.allocate(z), method.renew(z, toy()[1])
    assert 1e-9 < method.scale < 1e-6


@pytest.mark.parametrize("every", [1, 7])
def test_a_network_that_is_constant_trains_on(every):
    """No weights, a bias alone: the variance of its features is what the sum over the images rounds to."""
    made, train = net(), data.Batches(toys.images((40, 16, 7)), batch=16, seed=5)
    with torch.no_grad():
        made.hidden[0].weight.zero_(), made.hidden[0].bias.copy_(torch.linspace(0.1, 3, 12))
        z = made[:-1](train.inputs(torch.arange(63)))
    assert 0 < (z - z.mean(0)).square().sum(1).mean() < 1e-10
    method, scales = DOS(train.n, k=3, minority="half", start=0, every=every), []
    curve = fit(made, method, train, protocol=RUN, tick=lambda done, row: scales.append(method.scale.item()))
    assert scales[0] == 1 and curve[0]["loss"] < 10


def test_inputs_that_are_not_finite_are_named():
    made, train = toy()
    train.scale = torch.full_like(train.scale, torch.nan)
    with pytest.raises(ValueError, match=r"the inputs of 64 of 64 samples are not finite, at positions \[0, 1, 2"):
        fit(made, DOS(N, k=3, minority="half", **ROUNDS), train, protocol=RUN)


@pytest.mark.parametrize("make", [DOS, DOSAbstract])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_tables_and_layers_take_the_dtype_of_the_features(make, dtype):
    method = make(N, k=3, minority="half", **ROUNDS)
    given = list(method.parameters())
    made, train = began(method, dtype=dtype)
    assert method.z.dtype == dtype and all(p.dtype == dtype for p in method.parameters())
    assert all(a is b for a, b in zip(given, method.parameters())), "an optimiser made before holds them"
    i = torch.arange(0, 64, 3)
    value = method(made, train.inputs(i), train.y[i], i)
    value.backward()
    assert value.isfinite() and value.dtype == torch.promote_types(dtype, torch.float32)
    exact, wide = make(N, k=3, minority="half", **ROUNDS), toy(dtype=torch.float64)[0]
    wide.load_state_dict(made.state_dict())
    began(exact, made=wide, dtype=torch.float64)
    exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in method.state_dict().items()})
    for m in (method, exact):
        m.law = "equal"
    values = [m(n_, t.inputs(i), t.y[i], i).item() for m, n_, t in
              ((method, made, train), (exact, wide, toy(dtype=torch.float64)[1]))]  # fmt: skip
    assert values[0] == pytest.approx(values[1], rel=0.05 if dtype == torch.bfloat16 else 0.01)
    assert method.head.weight.grad.abs().sum() > 0 if make is DOSAbstract else True


def test_a_run_in_float64_resumes_with_its_own_layers(tmp_path):
    def stop(done, row):
        if done == 4:
            raise Killed

    states = []
    for killed in (True, False):
        made, train = toy(dtype=torch.float64)
        method, options = DOSAbstract(N, k=3, minority="half", **ROUNDS), {}
        if killed:
            options = dict(checkpoint=tmp_path / "run.pt", every=1)
            with pytest.raises(Killed):
                fit(made, method, train, protocol=RUN, tick=stop, **options)
            (made, train), method = toy(seed=3, dtype=torch.float64), DOSAbstract(N, k=3, minority="half", **ROUNDS)
        curve = fit(made, method, train, protocol=RUN, **options)
        states.append([made.state_dict(), method.state_dict(), curve])
    assert toys.same(*states) and states[0][1]["head.weight"].dtype == torch.float64


@pytest.mark.parametrize("law", ["simplex", "uniform"])
def test_weights_are_never_nan(law, monkeypatch):
    """A draw of 0, which exponential_ gives once in millions, more often in short dtypes: the sum is not 0."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: self.zero_())
    w = draw_weights(law, (500, 1), torch.zeros(1, dtype=torch.float16))
    assert w.dtype == torch.float16 and (w == 1).all()


# -- one pass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["input", "flat", "hidden", None])
@pytest.mark.parametrize("v", ["stored", "live"])
def test_one_pass_is_that_of_the_two_halves(stage, v):
    """Loss and gradients against g(f(x)) and g(v) computed apart, to 1e-12 in float64, and the same random numbers."""
    method = DOS(N, k=3, stage=stage, v=v, minority="half", **ROUNDS)
    made, train = began(method, dtype=torch.float64)
    made.train()
    made.hidden[2].p = 0.4 if stage in ("hidden", None) else 0.0
    end, i = {"input": 0, "flat": 1}.get(stage, 2), torch.tensor([0, 5, 17, 33, 33, 50, 63, 8])
    f, g, x, y = made[:end], made[end:], train.inputs(i), train.y[i]
    torch.manual_seed(7)
    value, after = method(made, x, y, i), torch.get_rng_state()
    torch.manual_seed(7)
    z, near = f(x), method.near[i]
    plain = F.cross_entropy(g(z), y, reduction="none")
    w = draw_weights("simplex", near.shape, z)
    theirs = f(train.inputs(near.flatten())).view(8, 3, -1) if v == "live" else method.z[near]
    d = squared_distance(z.flatten(1), theirs) / method.scale
    h = g(theirs.reshape(-1, *z.shape[1:])).view(8, 3, -1)
    expected = torch.where(method.small[y], loss_g(h, y, rho(d, w)) + loss_f(d, w), plain).mean()
    assert torch.equal(after, torch.get_rng_state()) and value.item() == pytest.approx(expected.item(), rel=1e-12)
    for a, b in zip(*(torch.autograd.grad(some, list(made.parameters())) for some in (value, expected))):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("epoch", [0, 1])
def test_lean_live_neighbours_are_the_same_loss_for_fewer_images(epoch):
    """Before the first round no neighbour passes f, in it those of minority images; loss and gradients as without."""
    found = {}
    for lean in (False, True):
        method = DOS(N, k=3, v="live", lean=lean, minority="half", start=1, every=1)
        made, train = began(method, dtype=torch.float64, epoch=epoch)
        made.eval()  # its dropout would draw other numbers
        embedded, inputs, i = [], train.inputs, torch.arange(0, len(train.y), 3)
        train.inputs = lambda of: (embedded.append(len(of)), inputs(of))[1]  # noqa: B023
        torch.manual_seed(5)
        loss = method(made, inputs(i), train.y[i], i)
        found[lean] = loss, torch.autograd.grad(loss, list(made.parameters()), allow_unused=True), sum(embedded)
    minority = int(small_classes(N, "half")[train.y[i]].sum()) if epoch else 0
    assert found[False][2] == 3 * len(i) and found[True][2] == 3 * minority
    assert found[True][0].item() == pytest.approx(found[False][0].item(), rel=1e-12)
    for a, b in zip(found[True][1], found[False][1]):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-10, atol=1e-14))


def test_live_neighbours_of_images_in_another_memory_format():
    torch.manual_seed(0)
    made = nets.resnet8(3, 1)  # channels last
    method = DOS(N, k=2, stage="stage2", v="live", minority="half", start=0, every=1)
    _, train = began(method, epoch=0, made=made)
    i = torch.arange(8)
    assert method(made, train.inputs(i), train.y[i], i).isfinite()


class Killed(Exception):
    pass


@pytest.mark.parametrize("make", [DOS, DOSAbstract])
@pytest.mark.parametrize("epoch", range(1, 7))
def test_a_resumed_run_is_the_same_run(make, epoch, tmp_path):
    """Tables, scale, order and group head come back with the checkpoint, in the middle of a round or not."""

    def stop(done, row):
        if done == epoch:
            raise Killed

    new = lambda: make(N, k=3, minority="half", v="live" if make is DOS else "stored", **ROUNDS)  # noqa: E731
    with pytest.raises(Killed):
        run(new(), dropout=0.2, checkpoint=tmp_path / "run.pt", every=1, tick=stop)
    method, straight = new(), new()
    resumed, curve, train = run(method, seed=9, dropout=0.2, checkpoint=tmp_path / "run.pt", every=1)
    whole, expected, its_train = run(straight, dropout=0.2)
    assert toys.same(resumed.state_dict(), whole.state_dict()) and toys.same(curve, expected)
    assert toys.same(method.state_dict(), straight.state_dict()) and torch.equal(train.order, its_train.order)


# -- abstract labels: our reconstruction ------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [dict(groups=1), dict(groups=3, head_weight=0.0, block_weight=0.0)], ids=str)
def test_one_group_or_no_weight_is_dos_bit_for_bit(off):
    options = dict(k=3, minority="half", **ROUNDS)
    a, curve, _ = run(DOSAbstract(N, **off, **options), dropout=0.2)
    b, plain, _ = run(DOS(N, **options), dropout=0.2)
    assert toys.same(a.state_dict(), b.state_dict())
    assert [r["loss"] for r in curve] == [r["loss"] for r in plain]
    other, _, _ = run(DOSAbstract(N, groups=2, **options), dropout=0.2)
    assert not toys.same(other.state_dict(), b.state_dict())


def test_the_terms_of_abstract_labels_against_the_loop():
    torch.manual_seed(1)
    method = DOSAbstract(N, k=2, w="equal", groups=2, head_weight=0.4, block_weight=0.7, minority="half", **ROUNDS)
    plain = DOS(N, k=2, w="equal", minority="half", **ROUNDS)
    made, train = began(method)
    began(plain, made=made)
    i = torch.arange(0, 64, 5)
    x = train.normalise(train.x[i])
    expected = plain(made, x, train.y[i], i).double()
    z = made[:-1](x)
    for b, j in enumerate(i.tolist()):
        a = method.a[j].item()
        energy = [q**2 for q in z[b].tolist()]
        out = sum(energy[:6] if a == 1 else energy[6:]) / sum(energy)
        p = method.head(z)[b].softmax(0)[a]
        expected = expected + (-0.4 * p.log() + 0.7 * out) / len(i)
    assert method(made, x, train.y[i], i).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_share_of_energy_inside_the_own_block():
    z = torch.tensor([[3.0, 0, 4, 0, 0], [3.0, 0, 4, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.float64)
    assert inside(z, torch.tensor([0, 1, 1]), 2).tolist() == pytest.approx([1.0, 0.0, 1.0])  # blocks 0 1 2 and 3 4
    assert inside(z, torch.tensor([0, 2, 1]), 5).tolist() == pytest.approx([9 / 25, 16 / 25, 1.0])
    some = doubles(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: inside(z, torch.tensor([0, 1, 2, 1]), 3), some)
    assert inside(doubles(9, 7), torch.zeros(9, dtype=torch.int64), 1).tolist() == [1.0] * 9


def test_near_classes_share_an_abstract_label():
    centres = torch.tensor([[0.0, 0], [50, 0], [1, 1], [51, 1], [0, 2]], dtype=torch.float64)
    y = torch.arange(5).repeat_interleave(12)
    z = centres[y] + 0.1 * doubles(60, 2)
    for by in ("classes", "instances"):
        a = abstract_labels(z, y, 6, 2, by)  # a sixth class without images
        assert a.shape == (60,) and a.unique().tolist() == [0, 1]
        assert torch.equal(a == a[0], torch.isin(y, torch.tensor([0, 2, 4])))
    assert abstract_labels(z, y, 5, 9).unique().tolist() == [0, 1, 2, 3, 4], "never more groups than classes"
    assert (abstract_labels(z, y, 5, 1) == 0).all()


def test_abstract_labels_of_classes_are_the_cheapest_merges():
    """Ward's criterion for G = C - 1: the pair whose merging adds least to the sum of squares."""
    z, y = doubles(7, 3), torch.arange(7)
    a = abstract_labels(z, y, 7, 6)
    joined = min(combinations(range(7), 2), key=lambda pair: (z[pair[0]] - z[pair[1]]).square().sum().item())
    assert [p for p in combinations(range(7), 2) if a[p[0]] == a[p[1]]] == [joined]


def test_groups_keep_their_names_from_round_to_round():
    old = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    new = torch.tensor([1, 1, 1, 2, 2, 0, 0, 2])
    assert keep_names(new, old, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 1]
    assert torch.equal(keep_names(old, old, 3), old)


def test_what_abstract_labels_log():
    method = DOSAbstract(N, k=3, groups=2, minority="half", super_classes=(0, 1, 1), block_weight=3.0, **ROUNDS)
    _, curve, train = run(method)
    assert "energy" not in curve[1] and curve[2]["energy"] is None
    assert all(0 < row["energy"] <= 1 for row in curve[3:]) and curve[-1]["energy"] > curve[3]["energy"]
    assert all(set(row["groups"].tolist()) == {0, 1} for row in curve[2:])
    groups = curve[-1]["groups"]
    assert all((method.a[train.y == c] == groups[c]).all() for c in range(3))
    assert (curve[-1]["rand"] == 1) == (groups[1] == groups[2] != groups[0])


def test_the_group_head_is_trained():
    method = DOSAbstract(N, k=3, groups=2, minority="half", block_weight=0.0, head_weight=1.0, **ROUNDS)
    made, curve, train = run(method)
    z = made.eval()[:-1](train.normalise(train.x))
    assert (method.head(z).argmax(1) == method.a).float().mean() > 0.8


# -- what chapter 06 declares -----------------------------------------------------------------------------------------


def test_rounds_fit_into_their_protocols():
    for protocol, rounds in DOS_ROUNDS.items():
        assert (protocol.epochs - rounds["start"]) % rounds["every"] == 0 and rounds["start"] > protocol.warmup
    number = {p.name: (p.batch, (p.epochs - r["start"]) / r["every"]) for p, r in DOS_ROUNDS.items()}
    assert number["dos-mnist"] == (60, 3) and number["dos-cifar"] == (50, 4) and number["dos-svhn"] == (60, 3)


@pytest.mark.parametrize("name", [n for n in OWN_TABLES if n.startswith("dos")])
def test_every_row_of_a_table_has_the_same_epochs_and_images(name):
    cells = TABLES[name].rows
    assert len({(c.split, c.net, c.protocol) for c in cells}) == 1
    assert {c.hyper["start"] for c in cells if "start" in c.hyper} <= {DOS_ROUNDS[cells[0].protocol]["start"]}


def test_the_super_classes_are_those_of_the_files():
    import pickle

    toys.real("cifar100")
    with open(data.data_root() / "cifar-100-python/train", "rb") as file:
        official = pickle.load(file, encoding="latin1")
    assert all(SUPER_CLASSES["cifar100"][f] == c for f, c in zip(official["fine_labels"], official["coarse_labels"]))
    assert torch.bincount(torch.tensor(SUPER_CLASSES["cifar100"])).tolist() == [5] * 20
