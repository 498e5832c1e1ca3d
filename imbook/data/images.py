"""Labelled images in memory: what they must be, subsets of their classes, labels made from classes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    x: uint8 (N, channels, height, width), values 0 to 255; y: int64 (N,), classes 0 to C-1;
    classes: the C names; mean, std: of x / 255 over the official training set, one number a channel.
    Several labels an image (attributes): y (N, labels), column j with classes 0 to C_j-1; classes: a tuple of names
    for each label; labels: the labels' names. ValueError where these do not fit together.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...] | tuple[tuple[str, ...], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self):
        if self.y.ndim == 1:
            fits = not self.labels and all(isinstance(c, str) for c in self.classes)
        else:
            fits = self.y.shape[1] == len(self.classes) == len(self.labels)
            fits = fits and all(isinstance(names, tuple) for names in self.classes)
        if not fits or len(self.x) != len(self.y):
            raise ValueError(
                f"{len(self.x)} images with y {tuple(self.y.shape)}, classes {self.classes}, labels {self.labels}: "
                "y (N,) takes the C names, y (N, labels) one tuple of names and one label name a column"
            )

    def only(self, classes):
        """The images of some classes, relabelled 0, 1, ... in the order given.

        ValueError for a class that is not there, and for several labels an image.
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
        return Images(self.x[keep], y, tuple(self.classes[c] for c in classes), self.mean, self.std)

    def derive(self, labels):
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
        )


def moments(x):
    """Mean and standard deviation of x / 255: two tuples with a number a channel.

    x: uint8 (N, channels, height, width). Counts the values, so that a large set needs no copy in floats.
    """
    of_chunks = (
        torch.stack([torch.bincount(channel, minlength=256) for channel in chunk.transpose(0, 1).flatten(1)])
        for chunk in x.split(1000)
    )
    n = sum(of_chunks).double()  # (channels, 256)
    share, value = n / n.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64) / 255
    mean = share @ value
    variance = (share * (value - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def check_one_label(y):
    if y.ndim != 1:
        raise ValueError(
            f"y {tuple(y.shape)} holds several labels an image, and this is for one: choose a column, such as y[:, 0]"
        )
