"""The named public sets: where they lie, how they are read, checked and downloaded."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imbook.data.back_rotation import back_rotation
from imbook.data.images import Images, moments
from imbook.data.imbalance import holdout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Source:
    """Where torchvision keeps a set: its class, the folder below the data root, the normalisation constants.

    mean, std: the field's usual ones; None: computed from the training images.
    """

    loader: str
    folder: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


#: Where each public set lies and how it is normalised, {name: `Source`}.
SOURCES = {
    "mnist": Source("MNIST", "MNIST/raw", (0.1307,), (0.3081,)),
    "fashion-mnist": Source("FashionMNIST", "FashionMNIST/raw", (0.2860,), (0.3530,)),
    "cifar10": Source("CIFAR10", "cifar-10-batches-py", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Source("CIFAR100", "cifar-100-python", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Source("SVHN", "svhn"),
    "stl10": Source("STL10", "stl10_binary"),
    "mnist-back-rotation": Source("MNIST", "MNIST/raw"),  # made from it: see `imbook.data.back_rotation`
}
#: The official super-class of each class, as the set's files give it in 'coarse_labels'.
SUPER_CLASSES = {
    "cifar100": (
        *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
        *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
        *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
        *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
    )
}
#: torchvision checks the archives of these two sets, not the unpacked files it reads: md5 of the latter.
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
RAW_MD5["mnist-back-rotation"] = RAW_MD5["mnist"]


def data_root() -> Path:
    """The folder of the data sets: the environment variable IMBOOK_DATA, else ~/.cache/imbook."""
    return Path(os.environ.get("IMBOOK_DATA") or "~/.cache/imbook").expanduser()


def load(name: str, root: str | Path | None = None) -> tuple[Images, Images]:
    """The official training and test set: a pair of `Images`.

    name: 'digits' (scikit-learn's 8 x 8 digits, embedded; 50 test images a class), 'mnist', 'fashion-mnist',
    'cifar10', 'cifar100', 'svhn', 'stl10' (its labelled part) or 'mnist-back-rotation' (made from MNIST in seconds, see
    `imbook.data.back_rotation`); root: the data folder, default `data_root()`.
    Raises ValueError for an unknown name, FileNotFoundError for a set that is missing or damaged.
    """
    if name == "digits":
        return _digits()
    source = _source(name)
    root = Path(root or data_root()).expanduser()
    try:
        _check(name, root)
        sets = [_torchvision(source, root, train) for train in (True, False)]
    except ImportError:
        raise
    except Exception as error:  # whatever a reader of damaged files may raise
        raise FileNotFoundError(
            f"{name} is missing or damaged in {root / source.folder} ({error}). "
            f"Set IMBOOK_DATA to the folder that holds {source.folder}, or download it: python -m imbook data {name}"
        ) from error
    if source.loader in ("SVHN", "STL10"):  # channels first, labels under another name; SVHN has no names of classes
        names = [getattr(s, "classes", None) or map(str, range(10)) for s in sets]
        raw = [(torch.as_tensor(s.data).contiguous(), s.labels, n) for s, n in zip(sets, names)]
    else:
        images = [torch.as_tensor(s.data).reshape(len(s), *s.data.shape[1:3], -1) for s in sets]
        raw = [(x.permute(0, 3, 1, 2).contiguous(), s.targets, s.classes) for x, s in zip(images, sets)]
    constants: Any = (source.mean, source.std) if source.mean else moments(raw[0][0])
    train_set, test_set = (Images(x, torch.as_tensor(y), tuple(names), *constants) for x, y, names in raw)
    return back_rotation(train_set, test_set) if name == "mnist-back-rotation" else (train_set, test_set)


def download(name: str, root: str | Path | None = None) -> Path:
    """Download a set with torchvision, with its checksums, below `root`; returns the set's folder.

    The files appear there only when all are whole; what a download that was killed has left is removed. Raises
    ValueError for an unknown name, ConnectionError when the download fails.
    """
    source, root = _source(name), Path(root or data_root()).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    target = root / source.folder
    with _partial(root) as partial:
        try:
            for train in (True, False):
                _torchvision(source, partial, train, download=True)
            _check(name, partial)
        except ImportError:
            raise
        except Exception as error:  # of the network, of http.client, of an archive that is not whole
            raise ConnectionError(
                f"{name} could not be downloaded to {target} ({type(error).__name__}: {error}). Check the network and "
                f"run again: python -m imbook data {name}; or copy the files there and set IMBOOK_DATA to {root}"
            ) from error
        if target.exists():
            shutil.move(target, partial / "replaced")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(partial / source.folder, target)
    return target


@contextmanager
def _partial(root: Path) -> Iterator[Path]:
    """A new folder below root, locked while this process lives, and removed at the end."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=root, prefix=".partial-"))
        lock = _lock(folder)
        if folder.exists():  # else another process took it for a leftover before it was locked
            break
        _unlock(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _remove_leftovers(root: Path) -> None:
    """Remove the partial folders that no process holds; without locks (Windows) those older than a day."""
    for folder in root.glob(".partial-*"):
        try:
            lock = _lock(folder, wait=False)
            if lock is not None or time.time() - folder.stat().st_mtime > 86_400:
                shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)
        except OSError:  # held by another process, or removed by it
            continue


def _lock(folder: Path, wait: bool = True) -> int | None:
    """A descriptor that locks a folder until it is closed, also by death; None where the system has no such lock."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _source(name: str) -> Source:
    from imbook.large import LARGE  # which needs this module

    if name in LARGE:
        raise ValueError(
            f"{name} cannot be downloaded by this command: put {', '.join(LARGE[name].needs)} below the folder that "
            f"IMBOOK_DATA names ({LARGE[name].get}); imbook.large.parts reads it"
        )
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}: choose from digits, {', '.join(SOURCES)}")
    return SOURCES[name]


def _torchvision(source: Source, root: Path, train: bool, download: bool = False) -> Any:
    from torchvision import datasets  # slow to import: only where a set is read

    if source.loader == "SVHN":  # keeps its files in the folder that it is given
        return datasets.SVHN(root / source.folder, "train" if train else "test", download=download)
    if source.loader == "STL10":
        return datasets.STL10(root, "train" if train else "test", download=download)
    return getattr(datasets, source.loader)(root, train=train, download=download)


def _check(name: str, root: Path) -> None:
    for file, md5 in RAW_MD5.get(name, {}).items():
        path = root / SOURCES[name].folder / file
        if not path.exists():
            raise OSError(f"{file} is not there")
        if hashlib.md5(path.read_bytes()).hexdigest() != md5:
            raise OSError(f"{file} is damaged")


def _digits() -> tuple[Images, Images]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy((digits.images * (255 / 16)).round()).to(torch.uint8)[:, None]  # (N, 1, 8, 8)
    y = torch.from_numpy(digits.target).long()
    rest, test = holdout(y, 50, seed=0)
    scaled = x[rest] / 255
    mean, std = (scaled.mean().item(),), (scaled.std(correction=0).item(),)
    names = tuple(str(c) for c in range(10))
    train_set, test_set = (Images(x[index], y[index], names, mean, std) for index in (rest, test))
    return train_set, test_set
