"""Other last layers for a trained network: each against its formula, and where it must change nothing."""

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import nn

from imbook import data, metrics, nets
from imbook.methods import Afterwards, CrossEntropy, LogitAdjusted, TemperatureScaled
from imbook.methods.afterwards import (
    EPOCHS,
    RATES,
    TAUS,
    LastLayer,
    adjusted,
    moved_thresholds,
    retrained,
    tau_normalised,
    temperature,
)
from imbook.train import Protocol, evaluate, fit

N = (60, 24, 8)
RUN = Protocol("run", epochs=3, batch=16, lr=0.01, watch=3)


def sets():
    return data.Batches(toys.images(N), batch=16, seed=0), data.Batches(toys.images((10, 10, 10), seed=1))


@pytest.fixture(scope="module")
def trained():
    """Afterwards on a toy: network, method, the two sets."""
    net, (train, valid) = toys.net(), sets()
    method = Afterwards(train.n)
    fit(net, method, train, valid, protocol=RUN)
    return net, method, train, valid


def features(g, n=(200, 40, 10)):
    """Three clouds of features that overlap: (N, 4), (N,)."""
    y = torch.arange(3).repeat_interleave(torch.tensor(n))
    return torch.randn(len(y), 4, generator=g) + 1.5 * F.one_hot(y, 4), y


def test_tau_normalisation_by_hand():
    w = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 2.0]])
    for c, length in enumerate((5.0, 1.0, 2.0)):
        assert torch.allclose(tau_normalised(w, 0.5)[c], w[c] / length**0.5)
    assert torch.equal(tau_normalised(w, 0.0), w) and torch.allclose(tau_normalised(w).norm(dim=1), torch.ones(3))
    assert tau_normalised(torch.zeros(1, 2)).isfinite().all()


def test_a_last_layer_with_the_network_s_own_weights_changes_nothing(trained):
    net, _, _, valid = trained
    own = LastLayer(net.head.weight, net.head.bias)
    assert torch.allclose(evaluate(net, valid, own)[0], evaluate(net, valid)[0], atol=1e-5)


def test_training_is_that_of_cross_entropy(trained):
    net, plain = trained[0], toys.net()
    fit(plain, CrossEntropy(), *sets(), protocol=RUN)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values()))


def test_there_is_a_reading_for_each_setting(trained):
    kinds = [name.split(",")[0] for name in trained[1].readings]
    assert kinds == ["adjusted"] * len(TAUS) + ["normalised"] * len(TAUS) + ["re-trained"] * 8 + ["moved thresholds"]
    assert len(RATES) * len(EPOCHS) == len(TAUS) == 8


def test_adjusted_readings_are_logit_adjustment(trained):
    net, method, train, valid = trained
    for tau in (0.5, 1.0, 2.5):
        scores, _ = evaluate(net, valid, method.readings[f"adjusted, tau {tau:g}"])
        expected, _ = evaluate(net, valid, LogitAdjusted(train.n, tau))
        assert torch.allclose(scores, expected, atol=1e-5)
        assert torch.allclose(adjusted(evaluate(net, valid)[0], train.n.tolist(), tau), expected, atol=1e-6)


def test_a_retrained_classifier_learns_the_small_class():
    """On fixed features: towards the class-balanced optimum, which plain training on these sizes is far from."""
    z, y = features(torch.Generator().manual_seed(0))
    far, there = features(torch.Generator().manual_seed(1), (300, 300, 300))
    torch.manual_seed(0)
    w, b = retrained(z, y, 3, epochs=20, lr=0.1)
    found = metrics.recall(metrics.confusion(F.linear(far, w, b), there))
    plain = nn.Linear(4, 3)
    optimiser = torch.optim.SGD(plain.parameters(), 1.0)
    for _ in range(500):
        optimiser.zero_grad()
        F.cross_entropy(plain(z), y).backward()
        optimiser.step()
    theirs = metrics.recall(metrics.confusion(plain(far), there))
    assert found[2] > theirs[2] + 0.15 and found.mean() > theirs.mean()


def test_retraining_is_decided_by_the_generator_and_leaves_features_alone():
    z, y = features(torch.Generator().manual_seed(0))
    before = z.clone()
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(retrained(z, y, 3, epochs=2, lr=0.1))
    assert torch.equal(made[0][0], made[1][0]) and not torch.equal(made[0][0], made[2][0]) and torch.equal(z, before)


def test_moved_thresholds_are_where_the_balanced_loss_is_flat():
    g = torch.Generator().manual_seed(0)
    h = 2 * torch.randn(300, 3, generator=g, dtype=torch.float64)
    y = (h + torch.tensor([0.0, 1.0, -2.0]) + torch.randn(300, 3, generator=g)).argmax(1)
    b = moved_thresholds(h, y).double().requires_grad_()
    by_class = [F.cross_entropy((h + b)[y == c], y[y == c]) for c in range(3)]
    (slope,) = torch.autograd.grad(sum(by_class) / 3, b)
    assert slope.abs().max() < 1e-3 and abs(b.sum().item()) < 1e-5
    assert torch.allclose(moved_thresholds(h + torch.tensor([5.0, 0, 0]), y) - b.detach().float(),
                          torch.tensor([-5.0, 0, 0]) + 5 / 3, atol=0.02)  # fmt: skip


def test_thresholds_of_classes_told_apart_without_error_are_finite():
    h, y = 50 * torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    assert moved_thresholds(h, y).abs().max() < 1
    assert moved_thresholds(torch.eye(3)[:2], torch.tensor([0, 1])).isfinite().all(), "a class without images"


def test_a_class_without_images_has_no_part_in_the_fit():
    """Its own number is 0, and the others are those that are fitted without its column."""
    g = torch.Generator().manual_seed(1)
    h, y = 2 * torch.randn(60, 4, generator=g), torch.randint(3, (60,), generator=g)
    b = moved_thresholds(h[:, [0, 3, 1, 2]], torch.tensor([0, 2, 3])[y])  # class 1 of the four has no image
    assert b[1] == 0 and torch.allclose(b[[0, 2, 3]], moved_thresholds(h[:, :3], y), atol=1e-5)


@pytest.mark.parametrize(
    "made, words", [(Afterwards, "thresholds are moved"), (TemperatureScaled, "a temperature is fitted")]
)
def test_what_is_fitted_afterwards_needs_held_out_images_and_a_linear_layer(made, words):
    net, (train, valid) = toys.net(), sets()
    with pytest.raises(ValueError, match="held-out"):
        fit(net, made(train.n), train, protocol=RUN)
    with pytest.raises(ValueError, match=f"{words}.* held-out images"):
        made(train.n).finish(net, train)
    nets.replace_classifier(net, nets.CosineHead(64, 3))
    with pytest.raises(ValueError, match="'head' is CosineHead"):
        fit(net, made(train.n), train, valid, protocol=RUN)


def test_the_temperature_is_the_one_that_the_labels_were_drawn_at():
    """Labels drawn from softmax(h / 2.5), the classes alike: the fit finds 2.5, whatever the logits' scale."""
    g = torch.Generator().manual_seed(0)
    h = 4 * torch.randn(60_000, 3, generator=g, dtype=torch.float64)
    y = torch.multinomial((h / 2.5).softmax(1), 1, generator=g)[:, 0]
    assert temperature(h, y) == pytest.approx(2.5, rel=0.04)
    assert temperature(10 * h, y) == pytest.approx(10 * temperature(h, y), rel=0.01)


def test_classes_count_alike_in_the_temperature():
    """With every image of a class ten times the temperature is as before: its mean over the classes is."""
    g = torch.Generator().manual_seed(2)
    h = 3 * torch.randn(200, 3, generator=g)
    y = (h + 3 * torch.randn(200, 3, generator=g)).argmax(1)
    often = torch.where(y == 1, 10, 1)
    again = temperature(h.repeat_interleave(often, 0), y.repeat_interleave(often))
    assert again == pytest.approx(temperature(h, y), rel=1e-4) and temperature(h, y) > 1
    assert temperature(50 * torch.eye(3), torch.arange(3)) > 0.01, "told apart without error: finite"
    with pytest.raises(ValueError, match="there are none"):
        temperature(h[:0], y[:0])


def test_a_scaled_network_decides_as_the_adjusted_one_and_is_better_calibrated():
    net, (train, valid) = toys.net(), sets()
    method = TemperatureScaled(train.n)
    fit(net, method, train, valid, protocol=RUN)
    plain = toys.net()
    fit(plain, CrossEntropy(), *sets(), protocol=RUN)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values()))
    before, y = evaluate(net, valid, method.readings["adjusted"])
    after, _ = evaluate(net, valid, method.readings["adjusted, temperature"])
    assert torch.allclose(before, evaluate(net, valid, LogitAdjusted(train.n))[0], atol=1e-5)
    t = temperature(before, y)
    assert torch.allclose(after, before / t, rtol=1e-3, atol=1e-3) and abs(t - 1) > 0.02
    assert F.cross_entropy(after, y) < F.cross_entropy(before, y)
