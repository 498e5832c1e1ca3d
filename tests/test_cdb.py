"""CDB against its equations: check values, edge cases, literal loops, and a numpy twin of a whole training run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from imbook import results
from imbook.data import Batches, Images
from imbook.methods import CDB, CrossEntropy
from imbook.methods.baselines import weighted_cross_entropy
from imbook.methods.cdb import difficulty, dynamic_tau, weights
from imbook.tables import TABLES
from imbook.tables.cdb import CDB_RELEASED
from imbook.train import Protocol, evaluate, fit

CLASSES = 4
N = torch.tensor([40, 16, 8, 4])
RUN = Protocol("toy", epochs=6, batch=8, lr=0.1, momentum=0.9, weight_decay=1e-3, milestones=(4,), watch=1)


def images(sizes, seed):
    """Noisy patterns of 2 x 3 pixels, one a class, as uint8 images in a random order."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=generator)]
    centres = torch.randint(60, 190, (len(sizes), 1, 2, 3), generator=torch.Generator().manual_seed(7))
    noise = 45 * torch.randn(len(y), 1, 2, 3, generator=generator)
    return Images((centres[y] + noise).clamp(0, 255).to(torch.uint8), y, tuple("abcd"), (0.5,), (0.25,))


def toy(dtype=torch.float64):
    """Network, training set and validation set of a toy run, the same at each call."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES)).to(dtype)
    train = Batches(images(N.tolist(), 0), batch=8, seed=5, dtype=dtype)
    valid = Batches(images([10] * CLASSES, 1), dtype=dtype)
    return net, train, valid


def run(method, dtype=torch.float64, **options):
    net, train, valid = toy(dtype)
    return net, fit(net, method, train, valid, protocol=RUN, seed=11, **options)


class Answers(nn.Module):
    """A network that gets a set share of each class right and calls the rest the next class."""

    def __init__(self, right, each):
        super().__init__()
        y = torch.arange(len(right)).repeat_interleave(each)
        rank = torch.arange(each).repeat(len(right))
        wrong = rank >= torch.tensor(right).repeat_interleave(each)
        self.logits = nn.functional.one_hot((y + wrong) % len(right), len(right)).double()

    def forward(self, x):
        return self.logits


class Held:
    """A validation set of `each` samples a class, in class order."""

    def __init__(self, classes, each):
        self.y = torch.arange(classes).repeat_interleave(each)

    def plain(self):
        yield self.y, self.y, torch.arange(len(self.y))


def updated(method, right, each=10, epoch=1):
    return method.update(epoch, Answers(right, each), None, Held(len(right), each))


# -- the equations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "high, low, paper, released",
    [(0.0, 0.0, 0.538, 0.5), (0.6, 0.6, 0.992, 0.728), (0.9, 0.6, 1.233, 0.814), (0.8, 0.4, 1.443, 0.876),
     (0.9, 0.0, 2.0, 1.0)],
)  # fmt: skip
def test_dynamic_tau_has_the_check_values(high, low, paper, released):
    accuracy = torch.tensor([low, high, (low + high) / 2], dtype=torch.float64)
    assert round(dynamic_tau(accuracy, "paper").item(), 3) == paper
    assert round(dynamic_tau(accuracy, "released").item(), 3) == released
    assert dynamic_tau(accuracy) == dynamic_tau(accuracy, "paper")


def test_dynamic_tau_is_the_printed_formula():
    accuracy = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for eps in (0.01, 0.1):
        b = accuracy.max().item() / (accuracy.min().item() + eps) - 1
        assert dynamic_tau(accuracy, "paper", eps).item() == pytest.approx(2 / (1 + math.exp(-b)), rel=1e-12)
        assert dynamic_tau(accuracy, "released", eps).item() == pytest.approx(1 / (1 + math.exp(-b - 1)), rel=1e-12)
    with pytest.raises(ValueError, match="'paper' or 'released'"):
        dynamic_tau(accuracy, "printed")


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7, 2.0])
def test_weights_against_the_loop_and_their_sum(tau):
    d = torch.rand(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = weights(d, tau)
    literal = [x**tau for x in d.tolist()]
    literal = [9 * x / sum(literal) for x in literal]
    assert torch.allclose(w, torch.tensor(literal, dtype=torch.float64), rtol=1e-12)
    assert w.sum().item() == pytest.approx(9, abs=1e-12)
    assert (weights(d, torch.tensor(tau)) - w).abs().max() < 1e-6
    assert torch.equal(w.argsort(), d.argsort()) or tau == 0


def test_difficulty_is_the_share_of_errors():
    accuracy = torch.tensor([1.0, 0.75, 0.0], dtype=torch.float64)
    assert difficulty(accuracy).tolist() == [0.0, 0.25, 1.0]


def test_a_perfect_class_weighs_nothing_until_it_errs():
    d = difficulty(torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64))
    assert weights(d, 1.0).tolist() == [0.0, 1.5, 1.5]
    assert weights(d, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_all_classes_perfect_weigh_the_same():
    for tau in (0.0, 1.0, 2.0):
        assert weights(torch.zeros(5, dtype=torch.float64), tau).tolist() == [1.0] * 5


def test_a_class_without_validation_images_is_named():
    method = CDB(N)
    held = Held(CLASSES, 10)
    held.y = held.y[held.y != 2]
    net = Answers([10] * CLASSES, 10)
    net.logits = net.logits[:30]
    with pytest.raises(ValueError, match=r"classes \[2\] have no validation image"):
        method.update(1, net, None, held)


# -- the loss ---------------------------------------------------------------------------------------------------------


def batch(size=12):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(size, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(CLASSES, (size,), generator=generator)
    return logits, y, torch.tensor([0.2, 0.0, 1.3, 2.5], dtype=torch.float64)


def literal_loss(logits, y, w, reduction):
    """Equation 7 sample by sample, and its gradient with respect to the logits, in plain Python."""
    losses, total, slopes = [], 0.0, []
    for h, c in zip(logits.tolist(), y.tolist()):
        exponentials = [math.exp(v) for v in h]
        p = [e / sum(exponentials) for e in exponentials]
        losses.append(-w[c].item() * math.log(p[c]))
        slopes.append([w[c].item() * (p[k] - (k == c)) for k in range(len(p))])
        total += w[c].item()
    scale = len(losses) if reduction == "samples" else total
    return sum(losses) / scale, torch.tensor(slopes, dtype=torch.float64) / scale


@pytest.mark.parametrize("reduction", ["samples", "weights"])
def test_loss_and_gradient_against_the_loop(reduction):
    logits, y, w = batch()
    method = CDB(N, reduction=reduction).double()
    method.w.copy_(w)
    loss = method(nn.Identity(), logits, y, None)
    loss.backward()
    value, gradient = literal_loss(logits, y, w, reduction)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert torch.allclose(logits.grad, gradient, rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(lambda h: weighted_cross_entropy(h, y, w, reduction), logits)


def test_the_reduction_by_weights_is_that_of_torch():
    logits, y, w = batch()
    ours = weighted_cross_entropy(logits, y, w, "weights")
    assert torch.allclose(ours, nn.functional.cross_entropy(logits, y, weight=w), rtol=1e-12)
    assert weighted_cross_entropy(logits, y, torch.zeros_like(w), "weights") == 0


@pytest.mark.parametrize("reduction", ["samples", "weights"])
def test_permuting_the_batch_changes_nothing(reduction):
    logits, y, w = batch()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(4))
    one, two = (weighted_cross_entropy(h, t, w, reduction) for h, t in ((logits, y), (logits[order], y[order])))
    assert torch.allclose(one, two, rtol=1e-14)


@pytest.mark.parametrize("reduction", ["samples", "weights"])
def test_weights_of_one_are_cross_entropy_to_the_last_bit(reduction):
    logits, y, _ = batch(size=64)
    x = logits.detach().float().requires_grad_()
    method = CDB(N, reduction=reduction)
    ours, plain = method(nn.Identity(), x, y, None), CrossEntropy()(nn.Identity(), x, y, None)
    assert torch.equal(ours, plain)
    assert torch.equal(*(torch.autograd.grad(loss, x)[0] for loss in (ours, plain)))


# -- the method in training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["samples", "weights"])
def test_tau_zero_is_a_run_of_cross_entropy_bit_for_bit(reduction):
    one, curve = run(CDB(N, tau=0, reduction=reduction), torch.float32)
    two, plain = run(CrossEntropy(), torch.float32)
    assert [r["loss"] for r in curve] == [r["loss"] for r in plain]
    for ours, theirs in zip(one.parameters(), two.parameters()):
        assert torch.equal(ours, theirs)
    other, _ = run(CDB(N, tau=1), torch.float32)
    assert not torch.equal(other[1].weight, two[1].weight)


def test_the_first_epoch_has_weights_of_one():
    method = CDB(N)
    logged = method.update(0, None, None, None)
    assert logged["w"].tolist() == [1.0] * CLASSES and logged["tau"] is None and logged["accuracy"] is None
    assert method.w.tolist() == [1.0] * CLASSES


def test_weights_come_from_the_last_validation_only():
    fresh, old = CDB(N), CDB(N)
    updated(old, [1, 9, 3, 10], epoch=1)
    updated(old, [10, 0, 10, 2], epoch=2)
    one, two = (updated(method, [9, 8, 6, 4], epoch=3) for method in (fresh, old))
    assert torch.equal(fresh.w, old.w) and torch.equal(one["w"], two["w"]) and one["tau"] == two["tau"]
    assert one["accuracy"].tolist() == [0.9, 0.8, 0.6, 0.4]
    assert torch.allclose(fresh.w.double(), weights(1 - one["accuracy"], one["tau"]), rtol=1e-6)


def test_update_measures_in_evaluation_mode_and_touches_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, CLASSES)).double()
    _, train, valid = toy()
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    method = CDB(N)
    logged = method.update(1, net, train, valid)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(train.order, torch.arange(len(train.y)))
    assert torch.equal(logged["accuracy"], method.update(2, net, train, valid)["accuracy"])


class Recorder(CDB):
    """CDB that keeps the predictions it measured, one set an epoch."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []

    def update(self, epoch, net, train, valid):
        self.seen.append(evaluate(net, valid)[0].argmax(1).numpy())
        return super().update(epoch, net, train, valid)


def numpy_weights(predicted, y, tau, variant):
    """A, d, tau and w of one validation, literally."""
    accuracy = np.array([np.mean(predicted[y == c] == c) for c in range(CLASSES)])
    b = accuracy.max() / (accuracy.min() + 0.01) - 1
    exponent = {"paper": 2 / (1 + np.exp(-b)), "released": 1 / (1 + np.exp(-(b + 1)))}[variant]
    exponent = exponent if tau == "dynamic" else tau
    w = (1 - accuracy) ** exponent
    return accuracy, exponent, w * CLASSES / w.sum()


@pytest.mark.parametrize(
    "tau, variant, reduction",
    [("dynamic", "paper", "samples"), ("dynamic", "released", "samples"), (1.0, "paper", "samples"),
     ("dynamic", "paper", "weights")],
)  # fmt: skip
def test_a_whole_run_against_its_numpy_twin(tau, variant, reduction):
    method = Recorder(N, tau=tau, variant=variant, reduction=reduction)
    net, curve = run(method)

    start, train, valid = toy()
    W, bias = (p.detach().numpy().copy() for p in start[1].parameters())
    flat = lambda batches: (batches.x.numpy().reshape(-1, 6) / 255.0 - 0.5) / 0.25  # noqa: E731
    X, Y, V, U = flat(train), train.y.numpy(), flat(valid), valid.y.numpy()
    generator = torch.Generator().manual_seed(5)
    speed_W, speed_bias, w = np.zeros_like(W), np.zeros_like(bias), np.ones(CLASSES)
    for epoch in range(RUN.epochs):
        rate = RUN.lr * (RUN.decay if epoch >= 4 else 1)
        if epoch:  # the weights of this epoch: from the predictions after the last one
            predicted = (V @ W.T + bias).argmax(1)
            assert (predicted == method.seen[epoch]).all()
            accuracy, exponent, w = numpy_weights(predicted, U, tau, variant)
            assert np.allclose(curve[epoch]["accuracy"], accuracy) and np.allclose(curve[epoch]["w"], w, rtol=1e-6)
            assert curve[epoch]["tau"] == pytest.approx(exponent, rel=1e-6)
            w = w.astype(np.float32).astype(np.float64)  # the buffer's precision
        losses = []
        for i in np.split(torch.randperm(len(Y), generator=generator).numpy(), range(8, len(Y), 8)):
            h = X[i] @ W.T + bias
            p = np.exp(h - h.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            scale = len(i) if reduction == "samples" else w[Y[i]].sum() or 1  # a batch of perfect classes: loss 0
            losses.append((-w[Y[i]] * np.log(p[np.arange(len(i)), Y[i]])).sum() / scale)
            slope = w[Y[i], None] * (p - np.eye(CLASSES)[Y[i]]) / scale
            speed_W = RUN.momentum * speed_W + slope.T @ X[i] + RUN.weight_decay * W
            speed_bias = RUN.momentum * speed_bias + slope.sum(0) + RUN.weight_decay * bias
            W, bias = W - rate * speed_W, bias - rate * speed_bias
        assert curve[epoch]["loss"] == pytest.approx(np.mean(losses), rel=1e-8)
    assert np.allclose(net[1].weight.detach().numpy(), W, rtol=1e-7, atol=1e-9)
    assert np.allclose(net[1].bias.detach().numpy(), bias, rtol=1e-7, atol=1e-9)
    assert len({tuple(row["w"].tolist()) for row in curve}) > 2, "a toy whose weights never move shows nothing"


def test_a_resumed_run_is_the_same_run(tmp_path):
    path = tmp_path / "run.pt"

    def stop(epoch, row):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(CDB(N, smooth=0.5), checkpoint=path, every=1, tick=stop)
    net, curve = run(CDB(N, smooth=0.5), checkpoint=path, every=1)
    whole, straight = run(CDB(N, smooth=0.5))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), whole.parameters()))
    assert [r["loss"] for r in curve] == [r["loss"] for r in straight]


# -- what is ours: smoothing, the floor, the switches -----------------------------------------------------------------


def test_smoothing_is_a_moving_average_that_starts_at_the_first_measurement():
    method, average = CDB(N, smooth=0.9), None
    for epoch, right in enumerate(([2, 4, 6, 8], [10, 4, 6, 0], [5, 5, 5, 5]), start=1):
        measured = torch.tensor(right, dtype=torch.float64) / 10
        average = measured if average is None else 0.9 * average + (1 - 0.9) * measured
        logged = updated(method, right, epoch=epoch)
        assert torch.allclose(logged["accuracy"], average, rtol=1e-12)
        assert logged["tau"] == pytest.approx(dynamic_tau(average).item(), rel=1e-12)
        assert torch.allclose(logged["w"].double(), weights(1 - average, logged["tau"]), rtol=1e-6)


def test_the_floor_keeps_a_perfect_class_in_the_loss():
    right = [10, 9, 5, 0]
    bare, floored = CDB(N, tau=1), CDB(N, tau=1, floor=0.25)
    updated(bare, right), updated(floored, right)
    assert bare.w[0] == 0 and floored.w[0] > 0
    expected = torch.tensor([0.25, 0.25, 0.5, 1.0])
    assert torch.allclose(floored.w, 4 * expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("wrong", [dict(tau=-1), dict(tau="fixed"), dict(variant="mine"), dict(reduction="sum"),
                                   dict(smooth=1.0), dict(floor=-0.1)])  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        CDB(N, **wrong)


def test_a_run_without_a_held_out_set_is_refused():
    net, train, _ = toy()
    with pytest.raises(ValueError, match="held-out"):
        fit(net, CDB(N), train, protocol=RUN)


# -- the split of the released code -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio, total, smallest", [(200, 9022, 2), (100, 10302, 4), (50, 11975, 9), (20, 15111, 23), (10, 18591, 47)]
)
def test_cifar100_lt_is_the_split_of_the_released_code(ratio, total, smallest):
    y = torch.arange(50_000)[torch.randperm(50_000, generator=torch.Generator().manual_seed(ratio))] % 100
    table = TABLES[f"cdb-cifar100-{ratio}"]
    for cell in table.rows:
        assert cell.split == table.rows[0].split and cell.protocol == CDB_RELEASED and cell.net == "resnet32"
    train, valid = table.rows[0].split.indices(y, dict(order=1, draw=2, train=3))
    assert len(train) == total and len(valid) == 2500 and not set(train.tolist()) & set(valid.tolist())
    for c in range(100):
        there = torch.nonzero(y == c).flatten().tolist()  # in file order
        n_c = int(475 * (1 / ratio) ** (c / 99) + 1e-9)
        assert valid[y[valid] == c].tolist() == there[475:]
        assert train[y[train] == c].tolist() == there[:n_c]
    assert [int((y[train] == c).sum()) for c in (0, 99)] == [475, smallest]


def test_the_released_protocol():
    expected = dict(epochs=240, batch=32, lr=0.1, momentum=0.9, weight_decay=5e-4, milestones=(160, 210), decay=0.01)
    assert {k: getattr(CDB_RELEASED, k) for k in expected} == expected
    assert (CDB_RELEASED.crop, CDB_RELEASED.flip, CDB_RELEASED.prior_bias, CDB_RELEASED.warmup) == (4, True, True, 0)
    assert replace(CDB_RELEASED, name="") != CDB_RELEASED


def test_what_is_drawn_over_time_has_every_epoch():
    """The weights swing with a period of about two epochs: every second one alone would look calm."""
    runs = results.frame(TABLES["cdb-epochs"])
    assert len(runs) == len(TABLES["cdb-epochs"].runs())
    for record in runs["record"]:
        assert [row["epoch"] for row in record["curve"]] == list(range(1, record["protocol"]["epochs"] + 1))
