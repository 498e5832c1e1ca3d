"""Index vectors that make a set imbalanced. Each function that draws returns positions in y, sorted, int64.

Chapter 01 shows the profiles.
"""

import torch

from imbook.data.images import check_one_label


def counts(y, classes=None):
    """Images a class: int64 (C,). `classes`: C, default the largest label + 1.

    ValueError for several labels an image: there `Batches.n` has the counts, and no profile or hold-out is balanced.
    """
    check_one_label(y)
    return torch.bincount(y, minlength=classes or 0)


def class_counts(y, classes):
    """Images a class of each label: `counts` (C,) for y (N,), a tuple of counts (C_j,) for y (N, labels).

    classes: as in `Images`.
    """
    if y.ndim == 1:
        return counts(y, len(classes))
    return tuple(counts(y_j, len(names)) for y_j, names in zip(y.T, classes))


def long_tailed_counts(n_max, ratio, classes):
    """n_c = int(n_max * ratio^(-c / (C - 1))), c = 0 .. C-1: a list of C numbers, largest class first.

    >>> long_tailed_counts(5000, 100, 10)
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    _check_ratio(ratio, classes)
    return [int(n_max * ratio ** (-c / (classes - 1)) + 1e-9) for c in range(classes)]  # 1e-9: 50 must not become 49


def step_counts(n_max, ratio, classes):
    """n_max images in the first half of the classes, int(n_max / ratio) in the second: a list of C numbers.

    >>> step_counts(500, 100, 4)
    [500, 500, 5, 5]
    """
    _check_ratio(ratio, classes)
    return [n_max if c < classes // 2 else int(n_max / ratio + 1e-9) for c in range(classes)]


def class_order(classes, seed):
    """The classes from head to tail, a random permutation: int64 (C,); index order where `seed` is None."""
    if seed is None:
        return torch.arange(classes)
    return torch.randperm(classes, generator=torch.Generator().manual_seed(seed))


def draw(y, sizes, seed):
    """sizes[c] images of each class c: positions in y, int64.

    y: int64 (N,); sizes: C numbers of images; seed: the random draw, or None for the first images in file order.
    Raises ValueError for a class left empty and for more images than there are.
    """
    check_one_label(y)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    picked = []
    for c, size in enumerate(int(s) for s in sizes):
        there = torch.nonzero(y == c).flatten()
        if size < 1:
            raise ValueError(f"class {c} would be left with {size} images: lower the ratio or raise n_max")
        if size > len(there):
            raise ValueError(f"class {c} has {len(there)} images, {size} were asked for: lower n_max")
        if generator is not None:
            there = there[torch.randperm(len(there), generator=generator)]
        picked.append(there[:size])
    return torch.cat(picked).sort().values


def long_tailed(y, ratio, seed, n_max=None, order=None):
    """A long-tailed subset: positions in y. The class at rank c of `order` keeps n_max * ratio^(-c / (C - 1)) images.

    y: int64 (N,); ratio: largest over smallest class, >= 1; seed: draw of the images (None: the first in file order);
    n_max: size of the largest class, default the smallest class there is; order: classes from head to tail (C,),
    default index order. Raises ValueError for an impossible request. Source: Cui et al. 2019; chapter 01.
    """
    n = counts(y)
    return _profile(y, long_tailed_counts(n_max or int(n.min()), ratio, len(n)), seed, order)


def step(y, ratio, seed, n_max=None, order=None):
    """A step-imbalanced subset: positions in y.

    The first half of `order` keeps n_max images a class, the rest n_max / ratio.
    Arguments and errors as `long_tailed`. Source: Buda et al. 2018; chapter 01.
    """
    n = counts(y)
    return _profile(y, step_counts(n_max or int(n.min()), ratio, len(n)), seed, order)


def reduced(y, classes, share, seed):
    """All of y, but the given classes lose the share of their images: positions in y.

    share: 0 <= share < 1. Raises ValueError outside that, and for a class left empty.
    Source: Ando and Huang 2017; chapter 06.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share {share}: the part of the images to remove must lie in [0, 1)")
    sizes = counts(y).tolist()
    for c in classes:
        sizes[c] = int(sizes[c] * (1 - share) + 1e-9)
    return draw(y, sizes, seed)


def pair(y, total, share, seed):
    """Two classes with `total` images in all, of which class 0 has the share: positions in y (see `Images.only`).

    Raises ValueError where y has more than two classes, for a share outside (0, 1) and for an empty class.
    Source: Ren et al. 2018; chapter 05.
    """
    if len(counts(y)) != 2:
        raise ValueError(f"y has {len(counts(y))} classes: keep two with Images.only first")
    if not 0 < share < 1:
        raise ValueError(f"share {share}: the majority's share must lie in (0, 1)")
    majority = int(total * share + 1e-9)
    return draw(y, [majority, total - majority], seed)


def holdout(y, size, seed):
    """Split into the rest and a balanced part of `size` images a class: two vectors of positions in y.

    seed: the random draw, or None for the last images of each class in file order.
    Raises ValueError where a class would be left empty.
    """
    n = counts(y)
    if size < 1 or size >= int(n.min()):
        raise ValueError(f"a held-out part of {size} images a class: choose from 1 to {int(n.min()) - 1}")
    rest = draw(y, n - size, seed)
    held = torch.ones(len(y), dtype=torch.bool)
    held[rest] = False
    return rest, torch.nonzero(held).flatten()


def head_middle_tail(n):
    """The classes in three groups by size, as equal in number as can be: int64 (C,), 0 head, 1 middle, 2 tail.

    n: (C,) images a class; ties keep the class order.
    """
    n = torch.as_tensor(n)
    rank = torch.argsort(torch.argsort(n, descending=True, stable=True))
    return rank * 3 // len(n)


def _profile(y, sizes, seed, order):
    order = torch.arange(len(sizes)) if order is None else torch.as_tensor(order)
    if sorted(order.tolist()) != list(range(len(sizes))):
        raise ValueError(f"order {order.tolist()}: name each class from 0 to {len(sizes) - 1} once")
    by_class = torch.empty(len(sizes), dtype=torch.int64)
    by_class[order] = torch.tensor(sizes)
    return draw(y, by_class, seed)


def _check_ratio(ratio, classes):
    if ratio < 1:
        raise ValueError(f"ratio {ratio}: the largest class over the smallest must be at least 1")
    if classes < 2:
        raise ValueError(f"{classes} class: an imbalance needs at least two")
