"""MNIST-back-rotation: what turns, what is behind it, and that it is the same at every call."""

import math

import pytest
import torch
import toys

from imbook import data
from imbook.data import back_rotation as made
from imbook.rows import Split


@pytest.fixture(scope="module")
def sets():
    """Twelve made training digits in three folds, and six test digits."""
    g = torch.Generator().manual_seed(0)
    few = data.Images(torch.zeros(12, 1, 28, 28).to(torch.uint8), torch.arange(12) % 4, tuple("abcd"), (0.1,), (0.3,))
    x = few.x.clone()
    x[:, :, 8:20, 8:20] = torch.randint(200, 256, (12, 1, 12, 12), generator=g).to(torch.uint8)
    train = data.Images(x, few.y, few.classes, few.mean, few.std)
    test = data.Images(x[:6], few.y[:6], few.classes, few.mean, few.std, gaps=True)
    return train, test, made.back_rotation(train, test, digits=8, folds=3)


def test_folds_differ_and_labels_repeat(sets):
    train, test, (x, y) = sets
    assert x.y.tolist() == train.y[:8].tolist() * 3 and torch.equal(y.y, test.y)
    first, second, third = x.x.split(8)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert x.mean == y.mean == pytest.approx(((x.x / 255).mean().item(),), abs=1e-6)
    again, _ = made.back_rotation(train, test, digits=8, folds=3)
    assert torch.equal(x.x, again.x), "no seed to give: one set for all"


def test_a_quarter_turn_is_exact_and_no_turn_changes_nothing():
    x = toys.images((5, 3), size=28).x
    assert torch.equal(made.turned(x, torch.zeros(len(x))), x)
    quarter = made.turned(x, torch.full((len(x),), math.pi / 2))
    turned = [torch.rot90(x, k, (2, 3)) for k in (1, 3)]
    assert min((quarter.int() - some.int()).abs().max() for some in turned) <= 1  # rounding of a float32 grid


def test_patches_are_of_the_pictures_and_have_texture():
    pictures = made.photographs()
    assert pictures.shape == (2, 427, 640) and pictures.dtype == torch.uint8
    where = made.textured(pictures[:, :120, :160], 28)
    some = where[torch.randperm(len(where), generator=torch.Generator().manual_seed(0))[:50]]
    for patch, (p, top, left) in zip(made.patches(pictures, some, 28), some.tolist()):
        by_hand = pictures[p, top : top + 28, left : left + 28]
        assert torch.equal(patch[0], by_hand)
        assert by_hand.double().std(correction=0) >= made.TEXTURE - 1e-6
    left_out = (120 - 27) * (160 - 27) * 2 - len(where)
    assert left_out > 0, "the sky is left out"


def test_the_lighter_of_digit_and_patch_is_seen(sets):
    _, test, (_, y) = sets
    turned_brightest = (y.x >= 200).flatten(1).sum(1)
    assert (turned_brightest >= 100).all(), "the square of light pixels is still there"
    black = torch.zeros_like(test.x)
    pictures = made.photographs()
    where = made.textured(pictures, 28)
    behind = made.perturbed(black, pictures, where, seed=3)
    assert (y.x.int() >= behind.int()).all(), "seed 3 of three folds is the test set's"


def test_sizes_along_a_gaussian():
    assert data.gaussian_counts(600, 0, 10) == [600] * 10
    for reduction in (0.2, 0.4):
        n = data.gaussian_counts(6000, reduction, 10)
        assert n[0] == 6000 and n == sorted(n, reverse=True)
        assert abs(sum(n) / 60_000 - (1 - reduction)) < 1e-3
        logs = torch.tensor(n).double().log()
        assert logs.diff().diff().std() < 2e-2, "the logarithm of a Gaussian is a parabola"
    for wrong in (-0.1, 0.9, 1.0):
        with pytest.raises(ValueError, match="of 10 classes: from 0 to less than 0.9"):
            data.gaussian_counts(10, wrong, 10)
    y = torch.arange(1000) % 10
    index = data.gaussian(y, 0.4, seed=1, order=torch.arange(10).flip(0))
    assert data.counts(y[index]).tolist() == data.gaussian_counts(100, 0.4, 10)[::-1]
    split = Split("mnist-back-rotation", "gaussian", share=0.4, n_max=50, order="seed")
    train, valid = split.indices(y, dict(order=3, draw=1, train=0))
    assert valid is None and sorted(data.counts(y[train]).tolist(), reverse=True) == data.gaussian_counts(50, 0.4, 10)
