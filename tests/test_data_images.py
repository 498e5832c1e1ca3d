"""What `Images` and `Batches` take, at the door: pixels, labels, moments, positions; and what drawing refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from imbook import data
from imbook.data import Batches, Images

GREY = dict(mean=(0.4,), std=(0.3,))


def made(x=None, y=(0, 1, 0, 1), classes=("a", "b"), **more):
    x = torch.zeros(len(y), 1, 2, 2, dtype=torch.uint8) if x is None else x
    return Images(x, torch.as_tensor(y), classes, **{**GREY, **more})


# Pixels


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_in_0_to_1_are_taken_as_such(dtype):
    x = torch.linspace(0, 1, 4 * 3 * 5 * 5, dtype=torch.float64).view(4, 3, 5, 5).to(dtype)
    images = made(x, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert images.x.dtype == torch.float32 and torch.equal(images.x, x.float())
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (images.mean, images.std))
    expected = (x.double() - mean) / std
    batches = Batches(images, batch=4)
    for got in (next(iter(batches))[0], next(batches.plain())[0], batches.inputs(torch.arange(4))):
        assert got.dtype == torch.float32 and torch.allclose(got.double(), expected, atol=1e-6)


def test_floats_and_bytes_of_one_picture_are_one_input():
    some = toys.images(channels=3)
    floats = replace(some, x=some.x / 255)
    for kind in ({}, dict(crop=2, flip=True, seed=3)):
        for (x, y, i), (x_f, y_f, i_f) in zip(Batches(some, **kind), Batches(floats, **kind), strict=True):
            assert torch.allclose(x, x_f, atol=1e-5) and torch.equal(y, y_f) and torch.equal(i, i_f)
    assert np.allclose(data.moments(some.x), data.moments(floats.x))
    assert np.allclose(data.moments(floats.x), (floats.x.mean((0, 2, 3)), floats.x.std((0, 2, 3), correction=0)))


def test_each_channel_has_its_own_mean_and_std():
    x = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.8), (0.2, 0.3, 0.4)
    images = Images(x, torch.arange(9) % 3, ("a", "b", "c"), mean, std)
    batches = Batches(images, batch=9)
    for got in (next(iter(batches))[0], next(batches.plain())[0]):
        for c in range(3):
            assert torch.allclose(got[:, c], (x[:, c] / 255 - mean[c]) / std[c], atol=1e-5)
    measured = data.moments(x)
    for c in range(3):
        assert measured[0][c] == pytest.approx((x[:, c] / 255).mean().item(), abs=1e-6)
        assert measured[1][c] == pytest.approx((x[:, c] / 255).std(correction=0).item(), abs=1e-6)


def test_moments_of_more_than_one_piece():
    x = torch.randint(0, 256, (2100, 2, 3, 1), dtype=torch.uint8)
    for part, one in ((x, 255), (x / 255, 1)):
        mean, std = data.moments(part)
        exact = part.double() / one
        assert mean == pytest.approx(exact.mean((0, 2, 3)).tolist())
        assert std == pytest.approx(exact.std((0, 2, 3), correction=0).tolist())


ONES = torch.ones(4, 1, 2, 2)


@pytest.mark.parametrize(
    "x, message",
    [
        (ONES * 255, "float32 has values from 255 to 255: float images must lie in"),
        (ONES * 1.01, "values from 1.01 to 1.01"),
        (ONES * -0.1, "values from -0.1 to -0.1"),
        (ONES / 0, "values from inf to inf"),
        (ONES * torch.tensor([0.5, torch.nan]), "values from nan to nan"),
        (ONES.long(), r"x of type torch.int64: give uint8 \(0 to 255\), x.to\(torch.uint8\), or floats"),
        (ONES.bool(), "x of type torch.bool"),
        (ONES[:, 0], r"x \(4, 2, 2\) .* height, width\), .*; x\[:, None\] adds the axis"),
        (torch.ones(4, 2, 2, 1), r"x \(4, 2, 2, 1\) with 1 numbers in mean .*: x.permute\(0, 3, 1, 2\)"),
        (torch.ones(4, 3, 2, 2), r"x \(4, 3, 2, 2\) with 1 numbers in mean and 1 in std"),
    ],
)
def test_other_pixels_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        made(x)


@pytest.mark.parametrize(
    "moments", [dict(mean=(torch.nan,)), dict(std=(-0.1,)), dict(std=(torch.inf,)), dict(mean=(torch.inf,))], ids=str
)
def test_moments_that_cannot_be_are_refused(moments):
    with pytest.raises(ValueError, match="both must be finite, and std not negative"):
        made(**moments)


def test_moments_are_one_number_per_channel():
    for wrong in (dict(mean=(0.4, 0.4)), dict(std=(0.3, 0.3)), dict(mean=(), std=())):
        with pytest.raises(ValueError, match="mean and std have one number per channel"):
            made(**wrong)


def test_a_channel_of_equal_pixels_cannot_be_normalised():
    with pytest.raises(ValueError, match=r"std \(0.0,\): a channel of equal pixels"):
        Batches(made(std=(0.0,)))


# Labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_labels_of_any_integer_type_become_int64(dtype):
    images = made(y=torch.tensor([0, 1, 1, 0], dtype=dtype))
    assert images.y.dtype == torch.int64 and images.y.tolist() == [0, 1, 1, 0]
    both = made(y=torch.tensor([[0, 1], [1, 0]], dtype=dtype), classes=(("a", "b"), ("c", "d")), labels=("p", "q"))
    assert both.y.dtype == torch.int64 and both.y.tolist() == [[0, 1], [1, 0]]
    assert data.counts(torch.tensor([0, 1, 1], dtype=dtype)).tolist() == [1, 2]


@pytest.mark.parametrize(
    "y, message",
    [
        ([1, 2, 1, 2], "label 2 at position 1: with 2 classes a label is 0 to 1; these start at 1: subtract 1"),
        ([0, 1, 255, 0], "label 255 at position 2: .*; 255 often marks what has no label"),
        ([0, 1, 0, -1], "label -1 at position 3: .* 0 to 1; -1 often marks"),
        ([0, -7, 0, 1], "label -7 at position 1: with 2 classes a label is 0 to 1$"),
        ([0, 1, 0, 5], "label 5 at position 3: with 2 classes a label is 0 to 1$"),
        ([0, 0, 0, 0], "class 1 of 2 has no image: number the classes that are there .* gaps=True"),
        ([0.0, 1.0, 0.0, 1.0], "labels of type torch.float32: a label is a whole number"),
    ],
)
def test_labels_that_do_not_fit_are_named(y, message):
    with pytest.raises(ValueError, match=message):
        made(y=y)


def test_several_labels_are_checked_each():
    kind = dict(classes=(("a", "b"), ("c", "d", "e")), labels=("size", "form"))
    assert made(y=[[0, 2], [1, 1], [1, 0]], **kind).y.shape == (3, 2)
    with pytest.raises(ValueError, match="label 2 of 'size' at position 1: with 2 classes"):
        made(y=[[0, 2], [2, 1], [1, 0]], **kind)
    with pytest.raises(ValueError, match="class 1 of 'form' of 3 has no image"):
        made(y=[[0, 2], [1, 2], [1, 0]], **kind)


def test_a_set_that_may_lack_a_class_says_so():
    lacking = made(y=[0, 2, 0], classes=("a", "b", "c"), gaps=True)
    assert Batches(lacking).n.tolist() == [2, 0, 1] and replace(lacking, mean=(0.1,)).gaps
    assert lacking.only((1, 2)).y.tolist() == [1] and lacking.derive(((0, 1, 1),)).gaps
    with pytest.raises(ValueError, match="class 1 of 3 has no image"):
        replace(lacking, gaps=False)
    with pytest.raises(ValueError, match="label 3 at position 1"):
        made(y=[0, 3, 0], classes=("a", "b", "c"), gaps=True)


def test_numpy_arrays_are_taken():
    images = Images(np.zeros((2, 1, 3, 3), np.uint8), np.array([1, 0], np.uint16), ("a", "b"), **GREY)
    assert images.x.dtype == torch.uint8 and images.y.tolist() == [1, 0] and images.y.dtype == torch.int64


@pytest.mark.parametrize(
    "y, classes, message",
    [
        ([0, 3, 1], 3, "label 3 at position 1: with 3 classes"),
        ([0, -1, 1], None, "label -1 at position 1"),
        ([0.5, 1.0], None, "labels of type torch.float32"),
    ],
)
def test_counts_of_what_is_no_label_are_refused(y, classes, message):
    with pytest.raises(ValueError, match=message):
        data.counts(torch.tensor(y), classes)


def test_counts_of_nothing():
    assert data.counts(torch.tensor([], dtype=torch.int64), 2).tolist() == [0, 0]


# Positions


@pytest.mark.parametrize("index", [torch.tensor, np.array, list, lambda mask: torch.tensor(mask).nonzero().flatten()])
def test_a_mask_becomes_positions(index):
    some = toys.images()
    mask = (some.y < 2).tolist()
    batches = Batches(some, index(mask), batch=8)
    assert len(batches) == len(list(batches)) == 5 and batches.n.tolist() == [24, 12, 0]
    assert torch.equal(batches.x, some.x[some.y < 2]) and torch.equal(batches.order, torch.arange(36))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_positions_of_any_integer_type(dtype):
    some = toys.images()
    assert torch.equal(Batches(some, torch.tensor([3, 1, 1], dtype=dtype)).x, some.x[[3, 1, 1]])


@pytest.mark.parametrize(
    "index, message",
    [
        (torch.ones(41, dtype=torch.bool), r"index \(41,\) of type torch.bool: .* or a mask \(42,\)"),
        (torch.tensor([0.0, 1.0]), r"index \(2,\) of type torch.float32: give whole positions"),
        (torch.tensor([[0], [1]]), r"index \(2, 1\)"),
        (torch.tensor([0, 42]), "index has position 42: positions among 42 images are 0 to 41"),
        (torch.tensor([0, -1]), "index has position -1"),
        (torch.zeros(42, dtype=torch.bool), "0 images in batches of 128"),
        ([], "0 images in batches of 128"),
    ],
)
def test_what_is_no_position_is_refused(index, message):
    with pytest.raises(ValueError, match=message):
        Batches(toys.images(), index)


def test_a_negative_crop_is_refused():
    with pytest.raises(ValueError, match="crop -1: pixels of padding"):
        Batches(toys.images(), crop=-1)


# What drawing says


Y = torch.arange(3).repeat(100)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda y: data.reduced(y, [0], 0.999, 0), "class 0 would be left with 0 images: lower the share$"),
        (lambda y: data.pair(y % 2, 50, 0.01, 0), "class 0 would be left with 0 .*: raise total, or bring share to"),
        (lambda y: data.pair(y % 2, 900, 0.9, 0), "class 0 has 200 images, 810 were asked for: lower total, or its"),
        (lambda y: data.draw(y, [1, 0, 1], 0), "class 1 would be left with 0 images: ask for at least one$"),
        (lambda y: data.draw(y, [1, 101, 1], 0), "class 1 has 100 images, 101 were asked for: ask for fewer$"),
        (lambda y: data.long_tailed(y, 1000, 0), "left with 0 images: lower the ratio or raise n_max$"),
        (lambda y: data.long_tailed(y, 10, 0, n_max=101), "101 were asked for: lower n_max$"),
        (lambda y: data.long_tailed(y, 10, 0, n_max=0), "class 0 would be left with 0 images"),
        (lambda y: data.step(y, 10, 0, n_max=0), "class 0 would be left with 0 images"),
        (lambda y: data.long_tailed(y, float("nan"), 0), "ratio nan"),
        (lambda y: data.reduced(y, [3], 0.5, 0), r"classes \[3\]: choose from 0 to 2, each once"),
        (lambda y: data.reduced(y, [-1], 0.5, 0), r"classes \[-1\]: choose from 0 to 2, each once"),
        (lambda y: data.reduced(y, [1, 1], 0.5, 0), r"classes \[1, 1\]: choose"),
    ],
)
def test_advice_names_what_the_function_has(make, message):
    with pytest.raises(ValueError, match=message):
        make(Y)


@pytest.mark.parametrize(
    "make",
    [
        lambda y: data.long_tailed(y, 10, 0),
        lambda y: data.step(y, 10, 0, 50),
        lambda y: data.reduced(y, [0], 0.5, 0),
        lambda y: data.pair(y, 10, 0.5, 0),
        lambda y: data.holdout(y, 5, 0),
    ],
)
def test_labels_with_gaps_are_named_before_any_advice(make):
    for y, absent, classes in ((Y + 1, 0, 4), (Y * 2, 1, 5), (torch.where(Y == 2, 255, Y), 2, 256)):
        with pytest.raises(ValueError, match=f"class {absent} of {classes} has no image: number the classes"):
            make(y)
