"""MFW: its law of lambda, and the mixing of features against loops over the samples."""

import math

import pytest
import torch
import torch.nn.functional as F
import toys
from scipy.stats import beta
from test_mixup import N, batch, small_net, without_values

from imbook import data, nets
from imbook.methods import MFW, CrossEntropy, Weighted
from imbook.methods.baselines import inverse_frequency
from imbook.methods.mfw import draw_lambda, mean_lambda, partners, weakening
from imbook.methods.mixup import mix
from imbook.results import chosen
from imbook.tables import TABLES
from imbook.tables.mfw import CDT_GAMMA, MFW_CHOICE, mfw_rows
from imbook.train import Protocol, evaluate, fit

RUN = Protocol("p", 3, 16, lr=0.05)
MAJOR = torch.tensor([True, True, False, False])


def loss(method, net, x, y):
    torch.manual_seed(5)
    return method(net, x, y, torch.arange(len(y)))


def train(method, **options):
    net = toys.net()
    curve = fit(net, method, data.Batches(toys.images(), batch=16, seed=0), protocol=RUN, **options)
    return net.state_dict(), curve


# -- the law of lambda ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_law_by_hand(strength, gamma):
    n = [5, 80, 12, 80, 5, 33]
    expected = [0.0 if k == 5 else strength * ((k - 5) / (80 - 5)) ** gamma for k in n]
    assert weakening(torch.tensor(n), strength, gamma).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_smallest_class_and_equal_classes_are_not_weakened():
    for gamma in (0.0, 0.5, 1.0):
        a = weakening(torch.tensor([90, 7, 30, 7]), 4.0, gamma)
        assert a[1] == a[3] == 0 and a[0] == 4 and a[2] > 0
        assert torch.equal(weakening(torch.tensor([8, 8, 8]), 4.0, gamma), torch.zeros(3))


def test_permuting_the_classes_permutes_the_law():
    n, order = torch.tensor([90, 7, 30, 50]), torch.tensor([2, 0, 3, 1])
    assert torch.equal(weakening(n[order], 2.0, 0.5), weakening(n, 2.0, 0.5)[order])


def test_the_mean_of_lambda_falls_with_the_size_of_the_class():
    n = torch.tensor(data.long_tailed_counts(2000, 100, 10))
    for strength, gamma in ((0.5, 0.5), (1.0, 1.0), (4.0, 1.0)):
        a = weakening(n, strength, gamma)
        assert (mean_lambda(a).diff() > 0).all() and mean_lambda(a)[-1] == 1, "largest first"
        torch.manual_seed(0)
        measured = draw_lambda(a.double().expand(40_000, 10)).mean(0)
        assert torch.allclose(measured, mean_lambda(a.double()), atol=0.004)


@pytest.mark.parametrize("low", [0.5, 0.0, 0.8, 1.0])
def test_lambda_lies_between_its_least_value_and_one(low):
    a = torch.tensor([0.0, 1e-9, 0.01, 0.3, 1.0, 5.0, 1e4]).expand(20_000, 7)
    torch.manual_seed(0)
    lambda_ = draw_lambda(a, low)
    assert ((lambda_ >= low) & (lambda_ <= 1)).all() and (lambda_[:, 0] == 1).all()
    assert lambda_[:, 4].min() < low + 0.01 and lambda_[:, 4].max() > 0.99
    assert torch.allclose(lambda_.double().mean(0), mean_lambda(a[0].double(), low), atol=0.01)


@pytest.mark.parametrize("a", [0.3, 0.5, 1.0, 3.0, 20.0])
def test_the_mean_of_lambda_is_the_integral(a):
    expected = beta(a, a).expect(lambda t: max(t, 1 - t), lb=0.5, ub=1) + beta(a, a).expect(
        lambda t: max(t, 1 - t), lb=0, ub=0.5
    )
    assert mean_lambda(torch.tensor(a, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-6)
    closed = 0.5 + 4**-a * math.gamma(2 * a + 1) / (2 * math.gamma(a + 1) ** 2)
    assert mean_lambda(torch.tensor(a, dtype=torch.float64)).item() == pytest.approx(closed, rel=1e-10)


def test_the_mean_of_lambda_of_a_large_parameter():
    """Its logarithms are of the order of a, their sum is of the order of log a: float32 would lose it all."""
    for a in (1e3, 1e6, 1e8):
        expected = 0.5 + 0.5 / math.sqrt(math.pi * a) * (1 - 1 / (8 * a))  # Stirling's formula
        assert mean_lambda(torch.tensor(a)).item() == pytest.approx(expected, rel=1e-6)


def test_lambda_is_the_larger_share(monkeypatch):
    shares = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    monkeypatch.setattr("imbook.methods.mfw.draw_share", lambda a: shares)
    assert draw_lambda(shares).tolist() == pytest.approx([1.0, 0.8, 0.5, 0.7, 1.0], abs=1e-15)
    assert draw_lambda(shares, 0.0).tolist() == pytest.approx([1.0, 0.6, 0.0, 0.4, 1.0], abs=1e-15)


# -- partners ---------------------------------------------------------------------------------------------------------


def test_partners_come_from_where_they_should():
    y = torch.tensor([0, 1, 2, 3, 0, 2, 1, 3, 0])
    allowed = {
        "major": lambda i, j: MAJOR[y[j]],
        "minor": lambda i, j: not MAJOR[y[j]],
        "group": lambda i, j: MAJOR[y[i]] == MAJOR[y[j]],
    }
    torch.manual_seed(0)
    for which, may in allowed.items():
        many = torch.stack([partners(y, MAJOR, which) for _ in range(4000)])  # (draws, B)
        for i in range(9):
            times = torch.bincount(many[:, i], minlength=9)
            there = [j for j in range(9) if may(i, j)]
            assert times[there].sum() == 4000 and times[there].tolist() == pytest.approx(
                [4000 / len(there)] * len(there), rel=0.2
            )
    many = torch.stack([partners(y, MAJOR) for _ in range(500)])
    assert (many.sort(1).values == torch.arange(9)).all() and len(many.unique(dim=0)) > 490, "permutations"


def test_without_a_partner_a_sample_is_its_own():
    y = torch.tensor([2, 3, 3])
    assert partners(y, MAJOR, "major").tolist() == [0, 1, 2]
    assert partners(torch.tensor([0, 2]), MAJOR, "group").tolist() == [0, 1]
    assert partners(torch.tensor([0, 2]), MAJOR, "minor").tolist() == [1, 1]


# -- the method against loops -----------------------------------------------------------------------------------------

SETTINGS = [
    dict(strength=4.0),
    dict(strength=0.5, gamma=0.5, stage="stage2"),
    dict(strength=2.0, stage="stage1", partner="major"),
    dict(strength=2.0, partner="minor", low=0.25),
    dict(strength=2.0, partner="group", stage="input"),
    dict(strength=2.0, partner="none"),
    dict(strength=4.0, weakened="small"),
    dict(strength=1.0, weakened="all"),
    dict(strength=4.0, start=0),
]


def literal(net, x, y, strength, gamma=1.0, stage="stage3", partner="any", low=0.5, weakened="large", start=None):
    """Sample by sample, with the partners and shares that MFW draws after torch.manual_seed(5)."""
    torch.manual_seed(5)
    with_whom = [None] * len(y) if partner == "none" else partners(y, MAJOR, partner).tolist()
    sizes = N.tolist()
    law = {
        "large": lambda k: strength * ((k - min(sizes)) / (max(sizes) - min(sizes))) ** gamma,
        "small": lambda k: strength * ((max(sizes) - k) / (max(sizes) - min(sizes))) ** gamma,
        "all": lambda k: strength,
    }[weakened]
    share = draw_lambda(torch.tensor([law(sizes[c]) for c in y.tolist()]), low).tolist()  # in float32, always
    w = [4 / k / sum(1 / m for m in sizes) for k in sizes] if start == 0 else [1.0] * 4
    stages = ("input", "stage1", "stage2", "stage3").index(stage)
    total = 0.0
    for i, j in enumerate(with_whom):
        z, other = x[i : i + 1], torch.zeros_like(x[:1]) if j is None else x[j : j + 1]
        for k in range(stages):
            z, other = net[k](z), other if j is None else net[k](other)
        other = torch.zeros_like(z) if j is None else other
        z = share[i] * z + (1 - share[i]) * other
        for k in range(stages, 4):
            z = net[k](z)
        total = total - w[y[i]] * F.log_softmax(z[0], 0)[y[i]]
    return total / len(y)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_loss_and_its_gradients_against_the_loop(settings):
    net, (x, y) = small_net(), batch()
    x.requires_grad_()
    method = MFW(N, **settings).double()
    method.update(0, None, None, None)
    value, expected = loss(method, net, x, y), literal(net, x, y, **settings)
    tolerance = 1e-6 if "start" in settings else 1e-12  # weights are float32
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    for a, b in zip(*(torch.autograd.grad(v, [x, *net.parameters()]) for v in (value, expected)), strict=True):
        assert torch.allclose(a, b, rtol=1e-9 if tolerance < 1e-9 else 1e-5, atol=1e-8 if tolerance > 1e-9 else 1e-13)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_gradient_numerically(settings):
    """With the same draw each time, so with lambda and partners fixed."""
    net, (x, y) = small_net(), batch(5)
    method = MFW(N, **settings).double()
    assert torch.autograd.gradcheck(lambda x: loss(method, net, x, y), x.requires_grad_())


def test_permuting_the_batch_changes_nothing(monkeypatch):
    """Where lambda and the partner go with their sample."""
    net, (x, y) = small_net(), batch()
    g = torch.Generator().manual_seed(1)
    share, partner, order = torch.rand(11, generator=g).double(), torch.randperm(11, generator=g), torch.randperm(11)
    values = []
    for o, p in ((torch.arange(11), partner), (order, order.argsort()[partner[order]])):
        monkeypatch.setattr("imbook.methods.mfw.draw_share", lambda a, o=o: share[o])
        monkeypatch.setattr("imbook.methods.mfw.partners", lambda *_, p=p: p)
        values.append(loss(MFW(N).double(), net, x[o], y[o]).item())
    assert values[0] == pytest.approx(values[1], rel=1e-13)


NEUTRAL = [
    dict(strength=0.0),
    dict(strength=0.0, weakened="all", partner="group"),
    dict(low=1.0),
    dict(n=torch.tensor([9, 9, 9, 9])),
    dict(n=torch.tensor([9, 9, 9, 9]), strength=4.0, gamma=0.0, partner="major", stage="stage1"),
]


@pytest.mark.parametrize("settings", NEUTRAL, ids=str)
def test_without_strength_or_imbalance_it_is_cross_entropy_to_the_last_bit(settings):
    net, (x, y) = small_net(torch.float32), batch(64, torch.float32)
    ours, plain = loss(MFW(**{"n": N} | settings), net, x, y), CrossEntropy()(net, x, y, None)
    assert torch.equal(ours, plain)
    parameters = list(net.parameters())
    assert all(map(torch.equal, *(torch.autograd.grad(v, parameters) for v in (ours, plain))))


def test_runs_without_strength_or_imbalance_are_runs_of_cross_entropy():
    n, equal = torch.tensor([24, 12, 6]), torch.tensor([7, 7, 7])
    plain = train(CrossEntropy())
    assert toys.same(plain, train(MFW(n, strength=0.0))) and toys.same(plain, train(MFW(equal, strength=4.0)))
    assert not toys.same(plain[0], train(MFW(n, strength=0.5))[0])


def test_strength_zero_with_deferred_weights_is_deferred_re_weighting():
    n = torch.tensor([24, 12, 6])
    ours, plain = train(MFW(n, strength=0.0, start=1)), train(Weighted(n, start=1))
    assert toys.same(ours, plain) and not toys.same(ours[0], train(CrossEntropy())[0])


def test_weights_start_at_their_epoch_or_never():
    for start, first in ((2, 2), (None, 9)):
        method = MFW(N, start=start)
        for epoch in range(4):
            method.update(epoch, None, None, None)
            assert torch.equal(method.w, inverse_frequency(N) if epoch >= first else torch.ones(4))


def test_an_empty_class_is_refused_where_weights_are_used_only():
    n = torch.tensor([9, 0, 4, 2])
    for method in (MFW(n), Weighted(n, start=None)):
        for epoch in range(3):
            method.update(epoch, None, None, None)
        assert torch.equal(method.w, torch.ones(4)) and torch.equal(method.target, torch.ones(4))
    net, (x, y) = small_net(), batch()
    assert loss(MFW(n), net, x, y).isfinite()
    for make in (lambda: MFW(n, start=1), lambda: Weighted(n), lambda: Weighted(n, "effective", start=4)):
        with pytest.raises(ValueError, match="a class without images has no weight"):
            make()


def test_the_smallest_class_is_never_mixed_and_labels_are_kept():
    net, (x, y) = small_net(), batch(40)
    seen = []
    net.stage3.register_forward_hook(lambda module, arguments, z: seen.append(z))
    net.head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    loss(MFW(N, strength=4.0, gamma=0.1).double(), net, x, y)
    before, after = seen
    same = (before == after).all(1)
    assert (y == 3).sum() > 2 and same[y == 3].all() and not same[y != 3].all(), "N is smallest at class 3"
    assert same[y == 0].sum() <= 1, "a sample may be its own partner"


def test_only_the_named_stage_is_mixed():
    x = torch.randn(12, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % 4
    torch.manual_seed(0)
    net = nets.lenet(4)
    seen = {}
    for k in range(4):
        net[k].register_forward_hook(lambda module, arguments, z, k=k: seen.__setitem__(k, (arguments[0], z)))
    for stage, cut in (("input", 0), ("stage1", 1), ("stage2", 2), ("stage3", 3)):
        loss(MFW(N, strength=4.0, stage=stage), net, x, y)
        passed = [x, *(seen[k][1] for k in range(3))]
        assert [torch.equal(seen[k][0], passed[k]) for k in range(4)] == [k != cut for k in range(4)], stage


def test_stronger_mixing_of_images_is_seen_in_the_mean():
    """The features of a weakened class move towards the batch's mean by 1 - E[lambda]."""
    z = torch.tensor([[1.0], [0.0]]).repeat_interleave(500, 0)
    torch.manual_seed(0)
    for a in (0.3, 4.0):
        moved = torch.cat(
            [mix(z, partners(torch.zeros(1000), MAJOR), draw_lambda(torch.full((1000,), a)))[:500] for _ in range(20)]
        )
        assert 1 - moved.mean().item() == pytest.approx((1 - mean_lambda(torch.tensor(a)).item()) / 2, rel=0.05)


def test_evaluation_is_untouched():
    net, all_of = toys.net(), data.Batches(toys.images())
    method = MFW(torch.tensor([24, 12, 6]), strength=4.0)
    state = torch.get_rng_state()
    assert torch.equal(evaluate(net, all_of, method)[0], evaluate(net, all_of)[0])
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"


def test_no_step_depends_on_a_value(monkeypatch):
    """On the meta device there are no values: a shape or a branch that needs one fails."""
    without_values(monkeypatch)
    net, (x, y) = small_net(torch.float32).to("meta"), batch(dtype=torch.float32)
    for partner in ("any", "major", "minor", "group", "none"):
        MFW(N, partner=partner).to("meta")(net, x.to("meta"), y.to("meta"), None).backward()
    assert net.head.weight.grad.shape == (4, 5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(strength=-1.0), "strength -1.0"),
        (dict(strength=float("nan")), "strength nan"),
        (dict(gamma=float("nan")), "gamma nan"),
        (dict(gamma=-0.5), "gamma -0.5"),
        (dict(low=1.5), "low 1.5"),
        (dict(partner="own"), "partner 'own'"),
        (dict(weakened="none"), "weakened 'none'"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MFW(N, **wrong)


def test_an_unknown_stage_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="stage 'stage9': this network has input, stage1, stage2, stage3, head"):
        MFW(N, stage="stage9")(small_net(), *batch(), None)


# -- its tables -------------------------------------------------------------------------------------------------------


def test_on_step_imbalanced_data_gamma_does_nothing():
    """So it is chosen on long-tailed data."""
    n = torch.tensor(data.step_counts(1000, 100, 10))
    assert torch.equal(weakening(n, 4.0, 0.5), weakening(n, 4.0, 1.0))
    assert all(cell.split.profile == "long_tailed" for cell in TABLES["mfw-select"].rows)


def test_the_choice_is_that_of_the_validation_images():
    """Once the runs of the selection are there; nobody types a choice."""
    for method, expected in (("MFW", MFW_CHOICE), ("CDT", {"gamma": CDT_GAMMA})):
        assert chosen(TABLES["mfw-select"], method) in (None, expected)


def test_selection_and_report_have_different_seeds():
    seeds = lambda name: {tuple(s.values()) for s in TABLES[name].seeds}  # noqa: E731
    assert seeds("mfw-select") == {(100, 100, 100), (101, 101, 101)}
    assert not any(seeds(t) & seeds("mfw-select") for t in TABLES if t.startswith("mfw-") and t != "mfw-select")


def test_deferred_weights_start_after_four_fifths():
    starts = {
        t: [c.hyper["start"] for c in TABLES[t].rows if "start" in c.hyper] for t in TABLES if t.startswith("mfw-")
    }
    assert starts["mfw-fashion-lt-100"] == [16, 16]
    assert starts["mfw-cifar100-step-10"] == [160, 160]


@pytest.mark.parametrize(
    "name, total, smallest",
    [
        ("cifar10-lt-100", 12_406, 50),
        ("cifar10-lt-10", 20_431, 500),
        ("cifar10-step-100", 25_250, 50),
        ("cifar10-step-10", 27_500, 500),
        ("cifar100-lt-100", 10_847, 5),
        ("cifar100-lt-10", 19_573, 50),
        ("cifar100-step-100", 25_250, 5),
        ("cifar100-step-10", 27_500, 50),
    ],
)
def test_the_counts_of_the_field(name, total, smallest):
    table = TABLES[f"mfw-{name}"]
    classes = 100 if "100-" in name else 10
    y = torch.arange(classes).repeat(50_000 // classes)
    train_on, valid = table.rows[0].split.indices(y, table.seeds[0])
    n = data.counts(y[train_on])
    assert (len(train_on), int(n.min()), int(n[0]), valid) == (total, smallest, 50_000 // classes, None)
    assert table.device == "cuda" and len(table.runs()) == 27
    assert [c.method for c in table.rows] == [c.method for c in mfw_rows(*shared(table))]


def shared(table):
    return table.rows[0].split, table.rows[0].net, table.rows[0].protocol
