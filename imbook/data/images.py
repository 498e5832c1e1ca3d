"""Labelled images in memory: what they must be, subsets of their classes, labels made from classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    x: (N, channels, height, width), uint8 with values 0 to 255, or floats in [0, 1], which are kept as float32.
    y: integers of any type, kept as int64 (N,), classes 0 to C-1. classes: the C names. mean, std: of x / 255 (of x
    where it is float) over the official training set, one number per channel.
    Several labels per image (attributes): y (N, labels), column j with classes 0 to C_j-1; classes: a tuple of names
    for each label; labels: the labels' names. gaps: whether classes may be without images, as in a small test set.
    ValueError where these do not fit together, naming the value: other types and ranges of pixels, labels outside
    0 to C-1, a class without images, a mean or std that cannot be one.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...] | tuple[tuple[str, ...], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] = ()
    gaps: bool = False

    def __post_init__(self) -> None:
        x, y = torch.as_tensor(self.x), torch.as_tensor(self.y)
        if y.ndim == 1:
            fits = not self.labels and all(isinstance(c, str) for c in self.classes)
        else:
            fits = y.ndim == 2 and y.shape[1] == len(self.classes) == len(self.labels)
            fits = fits and all(isinstance(names, tuple) for names in self.classes)
        if not fits or len(x) != len(y):
            raise ValueError(
                f"{len(x)} images with y {tuple(y.shape)}, classes {self.classes}, labels {self.labels}: "
                "y (N,) takes the C names, y (N, labels) one tuple of names and one label name per column"
            )
        several = isinstance(self.classes[0], tuple) if self.classes else False
        sizes = tuple(map(len, self.classes)) if several else len(self.classes)
        object.__setattr__(self, "x", check_pixels(x, self.mean, self.std))
        object.__setattr__(self, "y", check_labels(y, sizes, self.gaps, self.labels))

    def only(self, classes: Sequence[int]) -> "Images":
        """The images of some classes, relabelled 0, 1, ... in the order given.

        ValueError for a class that is not there, and for several labels per image.
        """
        check_one_label(self.y)
        if (
            not len(classes)
            or any(c not in range(len(self.classes)) for c in classes)
            or len(set(classes)) < len(classes)
        ):
            raise ValueError(f"classes {list(classes)}: choose from 0 to {len(self.classes) - 1}, each once")
        keep = torch.isin(self.y, torch.tensor(classes))
        y = (self.y[keep, None] == torch.tensor(classes)).int().argmax(1)
        names: Any = tuple(self.classes[c] for c in classes)
        return Images(self.x[keep], y, names, self.mean, self.std, gaps=self.gaps)

    def derive(self, labels: Sequence[Sequence[int]]) -> "Images":
        """The same images with several labels, each a function of their class: y (N, len(labels)).

        labels: for each new label its value for every class, C numbers of which 0, 1, ... all occur; values are named
        by their number. ValueError for anything else, and for several labels an image.
        """
        check_one_label(self.y)
        for values in labels:
            if len(values) != len(self.classes) or len(set(values)) < 2 or set(values) != set(range(max(values) + 1)):
                raise ValueError(f"label {values}: give {len(self.classes)} values, one a class; 0, 1, ... all occur")
        return Images(
            self.x,
            torch.tensor(labels).T[self.y],  # (N, labels)
            tuple(tuple(map(str, range(max(values) + 1))) for values in labels),
            self.mean,
            self.std,
            tuple(f"label {j + 1}" for j in range(len(labels))),
            self.gaps,
        )


def moments(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of x / 255 (of x, where it is float): two tuples with one number per channel.

    x: uint8 or float (N, channels, height, width). Goes through x in pieces: a large set needs no copy in doubles.
    """
    if x.is_floating_point():
        each = x.shape[0] * x.shape[2] * x.shape[3]
        mean = sum(chunk.double().sum((0, 2, 3)) for chunk in x.split(1000)) / each
        deviations = (chunk.double() - mean.view(-1, 1, 1) for chunk in x.split(1000))
        variance = sum((d**2).sum((0, 2, 3)) for d in deviations) / each
        return tuple(mean.tolist()), tuple(variance.sqrt().tolist())
    of_chunks = (
        torch.stack([torch.bincount(channel, minlength=256) for channel in chunk.transpose(0, 1).flatten(1)])
        for chunk in x.split(1000)
    )
    n = sum(of_chunks).double()  # type: ignore[union-attr]  # (channels, 256)
    share, value = n / n.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64) / 255
    mean = share @ value
    variance = (share * (value - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def check_pixels(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """x as uint8, or as float32 in [0, 1]; ValueError for anything else and for moments that do not fit.

    x: (N, channels, height, width); mean, std: one number per channel.
    """
    if x.ndim != 4 or not x.shape[1] == len(mean) == len(std):
        hint = ""
        if x.ndim == 3:
            hint = "; x[:, None] adds the axis of a single channel"
        elif x.ndim == 4 and x.shape[3] == len(mean):
            hint = "; channels come before height and width: x.permute(0, 3, 1, 2)"
        raise ValueError(
            f"x {tuple(x.shape)} with {len(mean)} numbers in mean and {len(std)} in std: x is "
            f"(N, channels, height, width), mean and std have one number per channel{hint}"
        )
    if not all(map(math.isfinite, mean)) or not all(0 <= s < math.inf for s in std):
        raise ValueError(f"mean {tuple(mean)}, std {tuple(std)}: both must be finite, and std not negative")
    if x.dtype == torch.uint8:
        return x
    if not x.is_floating_point():
        raise ValueError(f"x of type {x.dtype}: give uint8 (0 to 255), x.to(torch.uint8), or floats in [0, 1]")
    if x.numel():
        low, high = x.min().item(), x.max().item()  # both nan where one pixel is
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"x of type {x.dtype} has values from {low:g} to {high:g}: float images must lie in [0, 1], not yet "
                "normalised; divide by their largest possible value, or give uint8 (0 to 255)"
            )
    return x.float()


def check_labels(y: Tensor, sizes: int | Sequence[int], gaps: bool = True, names: Sequence[str] = ()) -> Tensor:
    """Labels as int64; ValueError for the first one that is not among 0 to C-1, naming it.

    y: integers of any type, (N,), or (N, labels); sizes: C, or for several labels one C_j per column; gaps: whether a
    class may have no sample; names: of the columns, for the message.
    """
    y = torch.as_tensor(y)
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"labels of type {y.dtype}: a label is a whole number from 0 to C-1, such as y.long()")
    y = y.long()
    each: Any = zip([y], (sizes,)) if y.ndim == 1 else zip(y.T, sizes)  # type: ignore[arg-type]
    for j, (column, classes) in enumerate(each):
        of = f" of {names[j]!r}" if names else ""
        if (wrong := (column < 0) | (column >= classes)).any():
            i = int(wrong.int().argmax())
            hint = ""
            if column.min() == 1 and column.max() == classes:
                hint = "; these start at 1: subtract 1"
            elif column[i] in (-1, 255):
                hint = f"; {column[i]} often marks what has no label: leave it out"
            raise ValueError(
                f"label {column[i]}{of} at position {i}: with {classes} classes a label is 0 to {classes - 1}{hint}"
            )
        if not gaps and (absent := torch.bincount(column, minlength=classes) == 0).any():
            raise ValueError(
                f"class {torch.nonzero(absent).flatten().tolist()[0]}{of} of {classes} has no image: number the "
                "classes that are there 0, 1, ... without gaps; where a set may lack one (a small test set) pass "
                "gaps=True to Images, classes= to Loader"
            )
    return y


def check_one_label(y: Tensor) -> None:
    """ValueError where y holds several labels per image, (N, labels)."""
    if y.ndim != 1:
        raise ValueError(
            f"y {tuple(y.shape)} holds several labels an image, and this is for one: choose a column, such as y[:, 0]"
        )
