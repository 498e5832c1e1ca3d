"""Data sets as uint8 tensors, index vectors that make them imbalanced, and mini-batches that live on the device.

Chapter 01 shows the profiles, chapter 02 builds `Batches` step by step.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
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
        _check_one_label(self.y)
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
        _check_one_label(self.y)
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


@dataclass(frozen=True)
class Source:
    """Where torchvision keeps a set: its class, the folder below the data root, the normalisation constants.

    mean, std: the field's usual ones; None: computed from the training images.
    """

    loader: str
    folder: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


SOURCES = {
    "mnist": Source("MNIST", "MNIST/raw", (0.1307,), (0.3081,)),
    "fashion-mnist": Source("FashionMNIST", "FashionMNIST/raw", (0.2860,), (0.3530,)),
    "cifar10": Source("CIFAR10", "cifar-10-batches-py", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Source("CIFAR100", "cifar-100-python", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Source("SVHN", "svhn"),
}
# The official super-class of each class, as the set's files give it in 'coarse_labels'.
SUPER_CLASSES = {
    "cifar100": (
        *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
        *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
        *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
        *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
    )
}
# torchvision checks the archives of these two sets, not the unpacked files it reads: md5 of the latter.
RAW_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def data_root():
    """The folder of the data sets: the environment variable IMBOOK_DATA, else ~/.cache/imbook."""
    return Path(os.environ.get("IMBOOK_DATA") or Path.home() / ".cache" / "imbook")


def load(name, root=None):
    """The official training and test set: a pair of `Images`.

    name: 'digits' (scikit-learn's 8 x 8 digits, embedded; 50 test images a class), 'mnist', 'fashion-mnist',
    'cifar10', 'cifar100' or 'svhn'; root: the data folder, default `data_root()`.
    Raises ValueError for an unknown name, FileNotFoundError for a set that is missing or damaged.
    """
    if name == "digits":
        return _digits()
    source = _source(name)
    root = Path(root or data_root())
    try:
        _check(name, root)
        sets = [_torchvision(source, root, train) for train in (True, False)]
    except (RuntimeError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} is missing or damaged in {root / source.folder} ({error}). "
            f"Set IMBOOK_DATA to the folder that holds {source.folder}, or download it: python -m imbook data {name}"
        ) from error
    if source.loader == "SVHN":  # channels first, labels under another name, and no names of classes
        raw = [(torch.as_tensor(s.data).contiguous(), s.labels, map(str, range(10))) for s in sets]
    else:
        images = [torch.as_tensor(s.data).reshape(len(s), *s.data.shape[1:3], -1) for s in sets]
        raw = [(x.permute(0, 3, 1, 2).contiguous(), s.targets, s.classes) for x, s in zip(images, sets)]
    mean, std = (source.mean, source.std) if source.mean else moments(raw[0][0])
    return tuple(Images(x, torch.as_tensor(y), tuple(names), mean, std) for x, y, names in raw)


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


def download(name, root=None):
    """Download a set with torchvision, with its checksums, below `root`; returns the set's folder.

    The files appear there only when all are whole. Raises ValueError for an unknown name, ConnectionError when the
    download fails.
    """
    source, root = _source(name), Path(root or data_root())
    root.mkdir(parents=True, exist_ok=True)
    target = root / source.folder
    with tempfile.TemporaryDirectory(dir=root, prefix=".partial-") as partial:
        try:
            for train in (True, False):
                _torchvision(source, Path(partial), train, download=True)
            _check(name, Path(partial))
        except (RuntimeError, OSError, ValueError) as error:
            raise ConnectionError(
                f"{name} could not be downloaded to {target} ({error}). Check the network and run again: "
                f"python -m imbook data {name}; or copy the files there by hand and set IMBOOK_DATA to {root}"
            ) from error
        if target.exists():
            shutil.move(target, Path(partial) / "replaced")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(partial) / source.folder, target)
    return target


def _source(name):
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}: choose from digits, {', '.join(SOURCES)}")
    return SOURCES[name]


def _torchvision(source, root, train, download=False):
    from torchvision import datasets  # slow to import: only where a set is read

    if source.loader == "SVHN":  # keeps its files in the folder that it is given
        return datasets.SVHN(root / source.folder, "train" if train else "test", download=download)
    return getattr(datasets, source.loader)(root, train=train, download=download)


def _check(name, root):
    for file, md5 in RAW_MD5.get(name, {}).items():
        path = root / SOURCES[name].folder / file
        if not path.exists():
            raise OSError(f"{file} is not there")
        if hashlib.md5(path.read_bytes()).hexdigest() != md5:
            raise OSError(f"{file} is damaged")


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy((digits.images * (255 / 16)).round()).to(torch.uint8)[:, None]  # (N, 1, 8, 8)
    y = torch.from_numpy(digits.target).long()
    rest, test = holdout(y, 50, seed=0)
    scaled = x[rest] / 255
    mean, std = (scaled.mean().item(),), (scaled.std(correction=0).item(),)
    names = tuple(str(c) for c in range(10))
    return tuple(Images(x[index], y[index], names, mean, std) for index in (rest, test))


# ---------------------------------------------------------------------------------------------------------------------
# Imbalance: each function returns positions in y, sorted, int64.


def counts(y, classes=None):
    """Images a class: int64 (C,). `classes`: C, default the largest label + 1.

    ValueError for several labels an image: there `Batches.n` has the counts, and no profile or hold-out is balanced.
    """
    _check_one_label(y)
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
    _check_one_label(y)
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


def _check_one_label(y):
    if y.ndim != 1:
        raise ValueError(
            f"y {tuple(y.shape)} holds several labels an image, and this is for one: choose a column, such as y[:, 0]"
        )


def _check_ratio(ratio, classes):
    if ratio < 1:
        raise ValueError(f"ratio {ratio}: the largest class over the smallest must be at least 1")
    if classes < 2:
        raise ValueError(f"{classes} class: an imbalance needs at least two")


# ---------------------------------------------------------------------------------------------------------------------


class Batches:
    """Mini-batches of a training or evaluation set that is resident on the device.

    Iterating yields x (B, channels, height, width) normalised, y (B,), or (B, labels) where an image has several, and
    i (B,): the positions of the samples in this set, 0 to N-1. The last batch may be smaller. `n` holds the images a
    class, (C,), or a tuple of such counts, one a label.

    images: `Images`; index: positions in them, default all; batch: B; seed: reshuffle at each pass with a generator of
    our own (None: in order); crop: pixels of zero padding, added before normalising, for a random crop (0: none);
    flip: random horizontal flips. `order` (any number of positions, repeats allowed) is what one pass visits:
    a method that over-samples sets it.
    """

    def __init__(self, images, index=None, batch=128, seed=None, crop=0, flip=False, device="cpu", dtype=torch.float32):
        index = torch.arange(len(images.y)) if index is None else index
        if len(index) == 0 or batch < 1:
            raise ValueError(f"{len(index)} images in batches of {batch}: both must be at least 1")
        self.x = images.x[index].to(device)  # (N, channels, height, width), uint8
        self.y = images.y[index].to(device)  # (N,)
        self.n = class_counts(self.y, images.classes)  # (C,)
        self.order = torch.arange(len(index), device=device)
        self.batch, self.crop, self.flip = batch, crop, flip
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        channel = dict(dtype=dtype, device=device)
        self.mean = torch.tensor(images.mean, **channel).view(-1, 1, 1) * 255
        self.scale = 1 / (torch.tensor(images.std, **channel).view(-1, 1, 1) * 255)

    def __len__(self):
        return -(-len(self.order) // self.batch)

    def __iter__(self):
        for i in self.positions():
            yield *self.take(i), i

    def positions(self):
        """The batches of one pass as positions alone, a tuple of int64 (B,): shuffles."""
        order = self.order
        if self.generator is not None:
            order = order[torch.randperm(len(order), generator=self.generator, device=order.device)]
        return order.split(self.batch)

    def take(self, i):
        """x and y of the batch at positions i (B,): augments."""
        return self.normalise(self.augment(self.x[i])), self.y[i]

    def plain(self, batch=None):
        """All N samples once, in order, without augmentation: yields x, y, i as above; uses no random numbers.

        batch: default 250, and 2,000 on a GPU, where launching many small batches would take longer than the work.
        """
        batch = batch or (2000 if self.y.is_cuda else 250)
        for i in torch.arange(len(self.y), device=self.y.device).split(batch):
            yield self.normalise(self.x[i]), self.y[i], i

    def normalise(self, x):
        """uint8 (B, channels, height, width) -> (x / 255 - mean) / std in this set's dtype."""
        return (x.to(self.mean.dtype) - self.mean) * self.scale

    def augment(self, x):
        """A random crop after zero padding, and a random flip: uint8 in, uint8 out, the same shape."""
        draw_ints = lambda high: torch.randint(high, (len(x),), generator=self.generator, device=x.device)  # noqa: E731
        if self.crop:
            top, left = draw_ints(2 * self.crop + 1), draw_ints(2 * self.crop + 1)
            x = shift(x, top, left, self.crop)
        if self.flip:
            x = torch.where(draw_ints(2).bool().view(-1, 1, 1, 1), x.flip(-1), x)
        return x


def shift(x, top, left, padding):
    """Pad x with zeros on all sides and cut windows of the old size at (top, left), one a sample.

    x: (B, channels, height, width); top, left: int64 (B,), 0 to 2 * padding; returns the shape of x.
    """
    windows = F.pad(x, [padding] * 4).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    return windows[torch.arange(len(x), device=x.device), :, top, left]
