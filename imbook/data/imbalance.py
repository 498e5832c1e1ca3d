"""Index vectors that make a set imbalanced. Each function that draws returns positions in y, sorted, int64.

Chapter 01 shows the profiles.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbook.data.images import check_labels, check_one_label


def counts(y: Tensor, classes: int | None = None) -> Tensor:
    """Images per class: int64 (C,). `classes`: C, default the largest label + 1.

    ValueError for a label that is not among 0 to C-1, and for several labels per image: there `Batches.n` has the
    counts, and no profile or hold-out is balanced.
    """
    check_one_label(y)
    largest = int(y.max()) if len(y) else -1
    classes = largest + 1 if classes is None else classes
    return torch.bincount(check_labels(y, classes), minlength=classes)


def class_counts(y: Tensor, classes: Sequence[Any]) -> Tensor | tuple[Tensor, ...]:
    """Images per class of each label: `counts` (C,) for y (N,), a tuple of counts (C_j,) for y (N, labels).

    classes: as in `Images`.
    """
    if y.ndim == 1:
        return counts(y, len(classes))
    return tuple(counts(y_j, len(names)) for y_j, names in zip(y.T, classes))


def long_tailed_counts(n_max: int, ratio: float, classes: int) -> list[int]:
    """n_c = int(n_max * ratio^(-c / (C - 1))), c = 0 .. C-1: a list of C numbers, largest class first.

    >>> long_tailed_counts(5000, 100, 10)
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    _check_ratio(ratio, classes)
    return [int(n_max * ratio ** (-c / (classes - 1)) + 1e-9) for c in range(classes)]  # 1e-9: 50 must not become 49


def step_counts(n_max: int, ratio: float, classes: int) -> list[int]:
    """n_max images in the first half of the classes, int(n_max / ratio) in the second: a list of C numbers.

    >>> step_counts(500, 100, 4)
    [500, 500, 5, 5]
    """
    _check_ratio(ratio, classes)
    return [n_max if c < classes // 2 else int(n_max / ratio + 1e-9) for c in range(classes)]


def gaussian_counts(n_max: int, reduction: float, classes: int) -> list[int]:
    """n_c = int(n_max * exp(-c^2 / (2 s^2))), c = 0 .. C-1: a list of C numbers, largest class first.

    s is such that all classes together have lost the share `reduction`, 0 <= reduction < 1 - 1 / C, of their images.
    The papers only say "along a Gaussian" [P]; that its middle is the largest class is our reading [R].

    >>> gaussian_counts(1000, 0.4, 10), sum(gaussian_counts(1000, 0.4, 10))
    ([1000, 976, 908, 805, 680, 547, 420, 307, 213, 142], 5998)
    """
    if classes < 2 or not 0 <= reduction < 1 - 1 / classes:
        raise ValueError(f"reduction {reduction} of {classes} classes: from 0 to less than {1 - 1 / max(classes, 1):g}")
    share = lambda s: [math.exp(-(c**2) / (2 * s**2)) for c in range(classes)]  # noqa: E731
    low, high = 1e-3, 1e6  # of s: the sum of shares grows with it
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if sum(share(middle)) < classes * (1 - reduction) else (low, middle)
    return [int(n_max * part + 1e-6) for part in share(high)]


def class_order(classes: int, seed: int | None) -> Tensor:
    """The classes from head to tail, a random permutation: int64 (C,); index order where `seed` is None."""
    if seed is None:
        return torch.arange(classes)
    return torch.randperm(classes, generator=torch.Generator().manual_seed(seed))


def draw(y: Tensor, sizes: Tensor | Sequence[int], seed: int | None) -> Tensor:
    """sizes[c] images of each class c: positions in y, int64.

    y: int64 (N,); sizes: C numbers of images; seed: the random draw, or None for the first images in file order.
    Raises ValueError for a class left empty and for more images than there are.
    """
    return _draw(y, sizes, seed, "ask for at least one", "ask for fewer")


def long_tailed(
    y: Tensor, ratio: float, seed: int | None, n_max: int | None = None, order: Tensor | Sequence[int] | None = None
) -> Tensor:
    """A long-tailed subset: positions in y. The class at rank c of `order` keeps n_max * ratio^(-c / (C - 1)) images.

    y: int64 (N,); ratio: largest over smallest class, >= 1; seed: draw of the images (None: the first in file order);
    n_max: size of the largest class, default the smallest class there is; order: classes from head to tail (C,),
    default index order. Raises ValueError for an impossible request. Source: Cui et al. 2019; chapter 01.
    """
    n = _no_gaps(y)
    n_max = int(n.min()) if n_max is None else n_max
    return _profile(y, long_tailed_counts(n_max, ratio, len(n)), seed, order)


def step(
    y: Tensor, ratio: float, seed: int | None, n_max: int | None = None, order: Tensor | Sequence[int] | None = None
) -> Tensor:
    """A step-imbalanced subset: positions in y.

    The first half of `order` keeps n_max images per class, the rest n_max / ratio.
    Arguments and errors as `long_tailed`. Source: Buda et al. 2018; chapter 01.
    """
    n = _no_gaps(y)
    n_max = int(n.min()) if n_max is None else n_max
    return _profile(y, step_counts(n_max, ratio, len(n)), seed, order)


def gaussian(
    y: Tensor, reduction: float, seed: int | None, n_max: int | None = None, order: Tensor | Sequence[int] | None = None
) -> Tensor:
    """A subset whose class sizes fall along a Gaussian: positions in y. See `gaussian_counts`.

    reduction: the share of the images that all classes together lose. Other arguments and errors as `long_tailed`.
    Source: Ando and Huang 2017, experiment 1.
    """
    n = _no_gaps(y)
    n_max = int(n.min()) if n_max is None else n_max
    return _profile(y, gaussian_counts(n_max, reduction, len(n)), seed, order)


def reduced(y: Tensor, classes: Sequence[int], share: float, seed: int | None) -> Tensor:
    """All of y, but the given classes lose the share of their images: positions in y.

    classes: numbers from 0 to C-1, each once; share: 0 <= share < 1. Raises ValueError outside that, and for a class
    left empty. Source: Ando and Huang 2017; chapter 06.
    """
    sizes = _no_gaps(y).tolist()
    if not 0 <= share < 1:
        raise ValueError(f"share {share}: the part of the images to remove must lie in [0, 1)")
    if any(c not in range(len(sizes)) for c in classes) or len(set(classes)) < len(classes):
        raise ValueError(f"classes {list(classes)}: choose from 0 to {len(sizes) - 1}, each once")
    for c in classes:
        sizes[c] = int(sizes[c] * (1 - share) + 1e-9)
    return _draw(y, sizes, seed, "lower the share")


def pair(y: Tensor, total: int, share: float, seed: int | None) -> Tensor:
    """Two classes with `total` images in all, of which class 0 has the share: positions in y (see `Images.only`).

    Raises ValueError where y has more than two classes, for a share outside (0, 1) and for an empty class.
    Source: Ren et al. 2018; chapter 05.
    """
    if len(n := _no_gaps(y)) != 2:
        raise ValueError(f"y has {len(n)} classes: keep two with Images.only first")
    if not 0 < share < 1:
        raise ValueError(f"share {share}: the majority's share must lie in (0, 1)")
    majority = int(total * share + 1e-9)
    return _draw(
        y, [majority, total - majority], seed, "raise total, or bring share to 0.5", "lower total, or its share"
    )


def holdout(y: Tensor, size: int, seed: int | None) -> tuple[Tensor, Tensor]:
    """Split into the rest and a balanced part of `size` images per class: two vectors of positions in y.

    seed: the random draw, or None for the last images of each class in file order.
    Raises ValueError where a class would be left empty.
    """
    n = _no_gaps(y)
    if size < 1 or size >= int(n.min()):
        raise ValueError(f"a held-out part of {size} images per class: choose from 1 to {int(n.min()) - 1}")
    rest = draw(y, n - size, seed)
    held = torch.ones(len(y), dtype=torch.bool)
    held[rest] = False
    return rest, torch.nonzero(held).flatten()


def resample(y: Tensor, size: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Over-sampling by chance: `size` positions in y drawn with replacement, each class equally likely; not sorted.

    The law is that of torch's WeightedRandomSampler with weights 1 / n_y. y: int64 (N,); size: default N; generator:
    torch's, on y's device, default the global one. Set it as the `order` of `Batches` or a `Loader`, anew each epoch.
    """
    weight = 1 / counts(y).double()  # (C,)
    return torch.multinomial(weight[y.long()], size or len(y), replacement=True, generator=generator)


def head_middle_tail(n: Tensor | Sequence[int]) -> Tensor:
    """The classes in three groups by size, as equal in number as can be: int64 (C,), 0 head, 1 middle, 2 tail.

    n: (C,) images per class; ties keep the class order.
    """
    n = torch.as_tensor(n)
    rank = torch.argsort(torch.argsort(n, descending=True, stable=True))
    return rank * 3 // len(n)


def _profile(y: Tensor, sizes: list[int], seed: int | None, order: Tensor | Sequence[int] | None) -> Tensor:
    order = torch.arange(len(sizes)) if order is None else torch.as_tensor(order)
    if sorted(order.tolist()) != list(range(len(sizes))):
        raise ValueError(f"order {order.tolist()}: name each class from 0 to {len(sizes) - 1} once")
    by_class = torch.empty(len(sizes), dtype=torch.int64)
    by_class[order] = torch.tensor(sizes)
    return _draw(y, by_class, seed, "lower the ratio or raise n_max", "lower n_max")


def _draw(y: Tensor, sizes: Tensor | Sequence[int], seed: int | None, more: str, fewer: str = "") -> Tensor:
    """`draw`, with the advice of the function that is called: how a class gets more images, or asks for fewer."""
    check_one_label(y)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    picked = []
    for c, size in enumerate(int(s) for s in sizes):
        there = torch.nonzero(y == c).flatten()
        if size < 1:
            raise ValueError(f"class {c} would be left with {size} images: {more}")
        if size > len(there):
            raise ValueError(f"class {c} has {len(there)} images, {size} were asked for: {fewer}")
        if generator is not None:
            there = there[torch.randperm(len(there), generator=generator)]
        picked.append(there[:size])
    return torch.cat(picked).sort().values


def _no_gaps(y: Tensor) -> Tensor:
    """The counts of y, each at least 1."""
    check_one_label(y)
    check_labels(y, max(int(y.max()) + 1, 1) if len(y) else 1, gaps=False)
    return counts(y)


def _check_ratio(ratio: float, classes: int) -> None:
    if not ratio >= 1:
        raise ValueError(f"ratio {ratio}: the largest class over the smallest must be at least 1")
    if classes < 2:
        raise ValueError(f"{classes} class: an imbalance needs at least two")
