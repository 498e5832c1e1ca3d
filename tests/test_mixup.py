"""Mixup, manifold mixup and Remix: their draws against scipy, their losses against loops over the samples."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import toys
from scipy.stats import beta, kstest
from torch import nn

from imbook import data
from imbook.methods import METHODS, CrossEntropy, ManifoldMixup, Mixup, Remix
from imbook.methods.mixup import draw_share, mix, mixed_cross_entropy, remix_share, shuffle
from imbook.train import Protocol, evaluate, fit

N = torch.tensor([60, 20, 6, 2])  # images a class


def small_net(dtype=torch.float64):
    """Three stages and a head on images of 1 x 2 x 3 pixels, smooth, and without BatchNorm: sample by sample."""
    torch.manual_seed(1)
    layer = lambda i, o: nn.Sequential(nn.Linear(i, o), nn.Tanh())  # noqa: E731
    stages = dict(stage1=nn.Sequential(nn.Flatten(), layer(6, 5)), stage2=layer(5, 4), stage3=layer(4, 5))
    return nn.Sequential(OrderedDict(stages, head=nn.Linear(5, 4))).to(dtype)


def batch(size=11, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(size, 1, 2, 3, generator=g, dtype=dtype)
    return x, torch.cat([torch.arange(4), torch.randint(4, (size - 4,), generator=g)])


def drawn(a, y):
    """The partner and the share that a method of this file draws after torch.manual_seed(5): in float32, always."""
    torch.manual_seed(5)
    return shuffle(y), draw_share(torch.tensor(a, dtype=torch.float32)).item()


def loss(method, net, x, y):
    torch.manual_seed(5)
    return method(net, x, y, torch.arange(len(y)))


# -- the draws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.2, 1.0, 4.0, 50.0])
def test_shares_follow_the_beta_distribution(a):
    torch.manual_seed(0)
    l = draw_share(torch.full((20_000,), a, dtype=torch.float64))  # noqa: E741
    assert kstest(l.numpy(), beta(a, a).cdf).pvalue > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [1e-3, 0.05])
def test_shares_of_a_tiny_parameter_lie_at_the_ends(a, dtype):
    """Where torch's own Beta in float32 piles up at 1/2."""
    torch.manual_seed(0)
    l = draw_share(torch.full((100_000,), a, dtype=dtype))  # noqa: E741
    for edge in (1e-20, 1e-5, 0.1, 0.4, 0.6):
        assert (l < edge).double().mean().item() == pytest.approx(beta(a, a).cdf(edge), abs=0.006)
    assert (l == 0.5).sum() == 0


def test_shares_are_numbers_and_one_where_the_parameter_is_zero():
    a = torch.tensor([0.0, 1e-45, 1e-12, 1e-3, 1.0, 1e4, 1e8]).expand(5000, 7)
    torch.manual_seed(0)
    l = draw_share(a)  # noqa: E741
    assert l.shape == a.shape and l.dtype == a.dtype and ((l >= 0) & (l <= 1)).all()
    assert (l[:, 0] == 1).all() and (l[:, 6] - 0.5).abs().max() < 1e-3
    assert draw_share(torch.tensor(0.0)).shape == () and draw_share(torch.tensor(0.0)) == 1


def test_shares_are_drawn_independently():
    torch.manual_seed(0)
    l = draw_share(torch.ones(2, 20_000, dtype=torch.float64))  # noqa: E741
    assert torch.corrcoef(l)[0, 1].abs() < 0.02 and not torch.equal(l[0], l[1])


def test_a_shuffle_is_a_permutation_and_all_come():
    torch.manual_seed(0)
    many = torch.stack([shuffle(torch.zeros(3)) for _ in range(3000)])
    assert (many.sort(1).values == torch.arange(3)).all()
    assert many.unique(dim=0, return_counts=True)[1].tolist() == pytest.approx([500] * 6, abs=90)


# -- mixing and the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 3), (7, 2, 3, 4)])
def test_mix_by_hand(shape):
    g = torch.Generator().manual_seed(0)
    z, lambda_ = torch.randn(shape, generator=g), torch.rand(7, generator=g)
    partner = torch.randperm(7, generator=g)
    for share in (lambda_, lambda_[0]):
        mixed = mix(z, partner, share)
        for i in range(7):
            s = share[i] if share.ndim else share
            assert torch.allclose(mixed[i], s * z[i] + (1 - s) * z[partner[i]], rtol=1e-6, atol=1e-7)
    assert torch.equal(mix(z, partner, torch.ones(7)), z) and torch.equal(mix(z, partner, torch.tensor(1.0)), z)


def test_permuting_the_batch_permutes_the_mixture():
    g = torch.Generator().manual_seed(0)
    z, lambda_ = torch.randn(9, 4, generator=g), torch.rand(9, generator=g)
    partner, order = torch.randperm(9, generator=g), torch.randperm(9, generator=g)
    its_partner = order.argsort()[partner[order]]  # the same samples at their new places
    assert torch.equal(mix(z[order], its_partner, lambda_[order]), mix(z, partner, lambda_)[order])


def test_mixed_cross_entropy_by_hand():
    g = torch.Generator().manual_seed(0)
    h = torch.randn(8, 4, generator=g, dtype=torch.float64, requires_grad=True)
    y, partner = torch.randint(4, (8,), generator=g), torch.randperm(8, generator=g)
    for share in (torch.rand(8, generator=g, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)):
        value, expected = mixed_cross_entropy(h, y, partner, share), 0.0
        for i in range(8):
            p, s = torch.exp(h[i]) / torch.exp(h[i]).sum(), share[i] if share.ndim else share
            expected = expected - (s * torch.log(p[y[i]]) + (1 - s) * torch.log(p[y[partner[i]]])) / 8
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        assert torch.allclose(*(torch.autograd.grad(v, h)[0] for v in (value, expected)), rtol=1e-10, atol=1e-14)
        targets = torch.zeros(8, 4, dtype=torch.float64)
        for i in range(8):
            targets[i, y[i]] += share[i] if share.ndim else share
            targets[i, y[partner[i]]] += 1 - (share[i] if share.ndim else share)
        assert torch.allclose(value, F.cross_entropy(h, targets), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_dtype_is_mixed_by_the_shares_of_float32(dtype):
    g = torch.Generator().manual_seed(0)
    z, partner, lambda_ = torch.randn(7, 3, generator=g), torch.randperm(7, generator=g), torch.rand(7, generator=g)
    mixed = mix(z.to(dtype), partner, lambda_)
    assert mixed.dtype == dtype and torch.allclose(mixed.float(), mix(z, partner, lambda_), atol=0.02)
    h, y = torch.randn(7, 4, generator=g).to(dtype), torch.randint(4, (7,), generator=g)
    value = mixed_cross_entropy(h, y, partner, lambda_)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.allclose(value.double(), mixed_cross_entropy(h.double(), y, partner, lambda_.double()), rtol=1e-6)


# -- the methods against loops ----------------------------------------------------------------------------------------


def literal(name, net, x, y):
    """Sample by sample: the mixture at its place, the mixed loss."""
    partner, lambda_ = drawn(0.75, y)
    stage = 0
    if name == "ManifoldMixup":
        stage = int(torch.randint(3, ()))  # the next number of the same generator: input, stage1, stage2
    total = 0.0
    for i, j in enumerate(partner.tolist()):
        z, other = x[i : i + 1], x[j : j + 1]
        for k in range(stage):
            z, other = net[k](z), net[k](other)
        z = lambda_ * z + (1 - lambda_) * other
        for k in range(stage, 4):
            z = net[k](z)
        log_p, share = F.log_softmax(z[0], 0), lambda_
        if name == "Remix":
            own, its = N[y[i]].item(), N[y[j]].item()
            if own / its >= 3 and lambda_ < 0.6:
                share = 0.0
            elif own / its <= 1 / 3 and 1 - lambda_ < 0.6:
                share = 1.0
        total = total - share * log_p[y[i]] - (1 - share) * log_p[y[j]]
    return total / len(y)


CASES = {
    "Mixup": lambda: Mixup(N, alpha=0.75),
    "ManifoldMixup": lambda: ManifoldMixup(N, alpha=0.75),
    "Remix": lambda: Remix(N, alpha=0.75, tau=0.6),
}


@pytest.mark.parametrize("name", CASES)
def test_each_method_against_the_loop(name, monkeypatch):
    """Over many draws, so that each stage and each case of Remix comes; weights and images have equal gradients."""
    net, (x, y) = small_net(), batch()
    x.requires_grad_()
    seen = set()
    seeded = torch.manual_seed
    for seed in range(12):
        monkeypatch.setattr(torch, "manual_seed", lambda _, s=seed: seeded(s))
        method = CASES[name]()
        value, expected = loss(method, net, x, y), literal(name, net, x, y)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        for a, b in zip(*(torch.autograd.grad(v, [x, *net.parameters()]) for v in (value, expected)), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-13)
        seen.add(round(value.item(), 6))
    assert len(seen) == 12


@pytest.mark.parametrize("name", CASES)
def test_each_gradient_numerically(name):
    net, (x, y) = small_net(), batch(5)
    method = CASES[name]().double()
    assert torch.autograd.gradcheck(lambda x: loss(method, net, x, y), x.requires_grad_())


NEUTRAL = {
    "mixup": lambda: Mixup(N, alpha=0),
    "manifold mixup": lambda: ManifoldMixup(N, alpha=0),
    "remix": lambda: Remix(N, alpha=0),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_without_mixing_it_is_cross_entropy_to_the_last_bit(name):
    net, (x, y) = small_net(torch.float32), batch(64, torch.float32)
    ours, plain = loss(NEUTRAL[name](), net, x, y), CrossEntropy()(net, x, y, None)
    assert torch.equal(ours, plain)
    parameters = list(net.parameters())
    assert all(map(torch.equal, *(torch.autograd.grad(v, parameters) for v in (ours, plain))))


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_run_without_mixing_is_a_run_of_cross_entropy(name):
    run = Protocol("p", 2, 16, lr=0.05)
    states = []
    for method in (CrossEntropy(), METHODS[type(NEUTRAL[name]()).__name__](torch.tensor([24, 12, 6]), alpha=0)):
        net = toys.net()
        curve = fit(net, method, data.Batches(toys.images(), batch=16, seed=0), protocol=run)
        states.append((net.state_dict(), curve))
    assert toys.same(*states)


def test_remix_with_tau_zero_is_mixup():
    net, (x, y) = small_net(), batch()
    assert torch.equal(loss(Remix(N, tau=0.0), net, x, y), loss(Mixup(N), net, x, y))
    assert not torch.equal(loss(Remix(N, tau=1.0), net, x, y), loss(Mixup(N), net, x, y))
    same = torch.tensor([9, 9, 9, 9])
    assert torch.equal(loss(Remix(same), net, x, y), loss(Mixup(same), net, x, y)), "equal classes"


def test_the_label_of_remix_case_by_case():
    n_own = torch.tensor([30.0, 10.0, 30.0, 10.0, 29.0])
    n_other = torch.tensor([10.0, 30.0, 30.0, 10.0, 10.0])
    share = lambda value, tau=0.5: remix_share(torch.tensor(value), n_own, n_other, 3.0, tau).tolist()  # noqa: E731
    low, high = torch.tensor(0.4).item(), torch.tensor(0.7).item()
    assert share(0.4) == [0.0, low, low, low, low], "the small other class gets all of the label, where it has enough"
    assert share(0.7) == [high, 1.0, high, high, high], "as does the small own class"
    assert share(0.5) == [0.5] * 5 and share(0.4, tau=0.0) == [low] * 5 and share(0.4, tau=1.0)[:2] == [0.0, 1.0]


def test_manifold_mixup_with_one_stage_mixes_there_only():
    net, (x, y) = small_net(), batch()
    assert torch.allclose(loss(ManifoldMixup(stages=["input"]), net, x, y), loss(Mixup(), net, x, y), rtol=1e-14)
    seen = {}
    for k in range(4):
        net[k].register_forward_hook(lambda module, arguments, z, k=k: seen.__setitem__(k, (arguments[0], z)))
    loss(ManifoldMixup(stages=["stage2"]), net, x, y)
    partner, lambda_ = drawn(1.0, y)
    assert torch.equal(seen[0][0], x) and torch.equal(seen[1][0], seen[0][1]) and torch.equal(seen[3][0], seen[2][1])
    z = seen[1][1]
    assert torch.allclose(seen[2][0], lambda_ * z + (1 - lambda_) * z[partner], rtol=1e-6)


def test_the_stages_are_drawn_equally_often():
    net, (x, y) = small_net(), batch()
    seen, count = [None] * 3, [0] * 3
    for k in range(3):
        net[k].register_forward_pre_hook(lambda module, arguments, k=k: seen.__setitem__(k, arguments[0]))
        net[k].register_forward_hook(lambda module, arguments, z, k=k: seen.__setitem__(k, (seen[k], z)))
    torch.manual_seed(0)
    method = ManifoldMixup(alpha=5.0)
    for _ in range(900):
        method(net, x, y, None)
        mixed = [not torch.equal(seen[0][0], x), *(not torch.equal(seen[k][0], seen[k - 1][1]) for k in (1, 2))]
        assert sum(mixed) <= 1
        count = [c + m for c, m in zip(count, mixed)]
    assert count == pytest.approx([300] * 3, abs=60)


@pytest.mark.parametrize("name", CASES)
def test_evaluation_is_untouched(name):
    net, train = toys.net(), data.Batches(toys.images())
    method = METHODS[name](torch.tensor([24, 12, 6]))
    state = torch.get_rng_state()
    assert torch.equal(evaluate(net, train, method)[0], evaluate(net, train)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_that_cannot_be_are_refused():
    for make, message in (
        (lambda: Mixup(N, alpha=-1), "alpha -1"),
        (lambda: Mixup(N, alpha=float("nan")), "alpha nan"),
        (lambda: ManifoldMixup(N, stages=()), "names at least one"),
        (lambda: ManifoldMixup(N, stages="stage1"), "stages 'stage1': a tuple"),
        (lambda: ManifoldMixup(N, stages=("stage1", "stage2", "stage1")), "each once"),
        (lambda: Remix(N, kappa=float("nan")), "kappa nan"),
        (lambda: Remix(N, kappa=0.5), "kappa 0.5"),
        (lambda: Remix(N, tau=1.5), "tau 1.5"),
        (lambda: ManifoldMixup(N, stages=["stage9"])(small_net(), *batch(), None), "stage 'stage9': this network has"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def without_values(monkeypatch):
    """The oldest torch that the package allows has no Gamma on the meta device: there its shape alone is drawn."""
    try:
        torch._standard_gamma(torch.ones(1, device="meta"))
    except NotImplementedError:
        monkeypatch.setattr(torch, "_standard_gamma", torch.empty_like)


@pytest.mark.parametrize("name", CASES)
def test_no_step_depends_on_a_value(name, monkeypatch):
    """On the meta device there are no values: a shape or a branch that needs one fails."""
    without_values(monkeypatch)
    net, (x, y) = small_net(torch.float32).to("meta"), batch(dtype=torch.float32)
    METHODS[name](N).to("meta")(net, x.to("meta"), y.to("meta"), None).backward()
    assert net.head.weight.grad.shape == (4, 5)
