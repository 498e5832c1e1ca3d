"""Sets that readers bring: ImageNet-LT, iNaturalist 2018, Tiny-ImageNet, EGTEA Gaze+, CelebA, DeepFashion, X-Domain.

None of them can be downloaded by this package: `LARGE` says what each needs below the data root and where it comes
from, and `parts` reads it. What fits in memory comes as `imbook.data.Images`, the rest as map-style Datasets that
`imbook.data.Loader` reads picture by picture, with the augmentation of the set's protocol. No result of this book was
made with them; their readers are tested on made sets in the same formats.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from imbook.data import AnyBatches, Batches, Images, Loader, class_counts, data_root, draw, files, labels_of
from imbook.data import clips as video

#: Pixels of a side: of ImageNet-LT's and iNaturalist's pictures [C], of clips (as torchvision trained r3d_18).
SIDE, CLIP_SIDE = 224, 112
#: Mean and standard deviation of a channel: of ImageNet, and of Kinetics for clips (torchvision's constants).
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))


@dataclass(frozen=True)
class Parts:
    """The parts of a set: each is `imbook.data.Images`, or a map-style Dataset that yields (float tensor, y).

    plain: of a Dataset the training part without augmentation; valid: None where the set has none.
    """

    train: Any
    valid: Any
    test: Any
    plain: Any = None


@dataclass(frozen=True)
class Large:
    """A set that a reader brings: needs: paths below the data root; get: where they come from; read: root -> `Parts`.

    table: one table that trains on it. samples: (training, validation, test) as published, None where that is not
    known to us; classes: C, or for several labels how many labels. decoded: pictures that reading one sample decodes,
    0 where the set is in memory; of a clip of three seconds at 24 frames 72.
    """

    needs: tuple[str, ...]
    get: str
    read: Callable[[Path], Parts]
    table: str
    samples: tuple[int, int, int] | None
    classes: int
    decoded: int = 0


def parts(name: str, root: str | Path | None = None) -> Parts:
    """The parts of one of the sets in `LARGE`. root: the data folder, default `data_root()`.

    ValueError for an unknown name and for files that are not as published; FileNotFoundError, naming the files,
    IMBOOK_DATA and the command, for a set that is not there.
    """
    if name not in LARGE:
        raise ValueError(f"unknown set {name!r}: choose from {', '.join(LARGE)}")
    large, root = LARGE[name], Path(root or data_root()).expanduser()
    if absent := [path for path in large.needs if not (root / path).exists()]:
        raise FileNotFoundError(
            f"{name} is not whole in {root}: {', '.join(absent)} missing. Set IMBOOK_DATA to the folder that holds "
            f"{', '.join(dict.fromkeys(path.split('/')[0] for path in large.needs))} ({large.get}), then: "
            f"python -m imbook run {large.table}"
        )
    return large.read(root)


def class_sizes(part: Any) -> Any:
    """The true class counts of a part: (C,), or for several labels a tuple of counts. Reads no picture."""
    return class_counts(*_labels(part))


def batches(
    parts: Parts, batch: int, seed: int, crop: int = 0, flip: bool = False, device: str = "cpu", dry: bool = False
) -> tuple[AnyBatches, AnyBatches | None, AnyBatches, Any]:
    """Training, validation and test batches of a set, and its true class counts.

    They are `imbook.data.Batches` of what is in memory, else `imbook.data.Loader`s, whose augmentation is the set's
    own: crop and flip are then refused by `imbook.train.fit`. dry: one batch of training images, one validation image
    per class (with several labels, and of the test set, about 100).
    """
    few = lambda y: torch.arange(len(y))[:: max(len(y) // 100, 1)]  # noqa: E731
    index: dict[str, Tensor | None] = dict.fromkeys(("train", "valid", "test"))
    if dry:
        shuffled = torch.randperm(len(_labels(parts.train)[0]), generator=torch.Generator().manual_seed(0))
        index |= {"train": shuffled[:batch], "test": few(_labels(parts.test)[0])}
        if parts.valid is not None:
            y, classes = _labels(parts.valid)
            index["valid"] = few(y) if y.ndim == 2 else draw(y, [1] * len(classes), None)

    def made(part: str, seed: int | None = None, plain: Any = None, **augmentation: Any) -> Any:
        some, where = getattr(parts, part), index[part]
        if isinstance(some, Images):
            return Batches(some, where, batch, seed, device=device, **augmentation)
        if some is None:
            return None
        if where is not None:
            some, plain = (each and Subset(each, where.tolist()) for each in (some, plain))
        return Loader(some, batch, seed, plain=plain, workers=0 if dry else workers(), device=device)

    n = class_sizes(parts.train)
    return made("train", seed, parts.plain, crop=crop, flip=flip), made("valid"), made("test"), n


def _labels(part: Any) -> tuple[Tensor, Any]:
    return (part.y if isinstance(part, Images) else labels_of(part)), part.classes


def workers() -> int:
    """Processes that read for a `Loader`: as many as this process may use processors, less one, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available - 1, 16)


def _photos(root: Path, lists: dict[str, files.Listed], valid: str | None, test: str, jitter: float) -> Parts:
    """Pictures with ImageNet's usual transforms: a random part of 8 to 100 % of the area, flips, colour jitter."""
    from torchvision.transforms import v2

    ready = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)]
    plain = v2.Compose([v2.Resize(SIDE * 8 // 7), v2.CenterCrop(SIDE), *ready])  # 256 and 224
    jitters = [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
    augmented = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), *jitters, *ready])
    made = lambda part, transform: files.Pictures(root, *lists[part], transform)  # noqa: E731
    return Parts(made("train", augmented), valid and made(valid, plain), made(test, plain), made("train", plain))


def _imagenet_lt(root: Path) -> Parts:
    return _photos(root / "imagenet", files.imagenet_lt(root / "imagenet-lt"), "val", "test", jitter=0.4)


def _inaturalist(root: Path) -> Parts:
    folder = root / "inaturalist2018"
    return _photos(folder, files.inaturalist(folder), None, "val", jitter=0.0)


def _tiny_imagenet(root: Path) -> Parts:
    train, test = files.tiny_imagenet(root / "tiny-imagenet-200")
    return Parts(train, None, test)


def _egtea(root: Path) -> Parts:
    from torchvision.transforms import v2

    ready = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*KINETICS)]
    resize = v2.Resize((CLIP_SIDE * 8 // 7, CLIP_SIDE * 171 // 112))  # 128 x 171, as torchvision trained
    plain = v2.Compose([resize, v2.CenterCrop(CLIP_SIDE), *ready])
    augmented = v2.Compose([resize, v2.RandomCrop(CLIP_SIDE), v2.RandomHorizontalFlip(), *ready])
    lists = video.egtea(root / "egtea")
    made = lambda part, transform: video.Clips(root / "egtea", *lists[part], transform)  # noqa: E731
    return Parts(made("train", augmented), made("valid", plain), made("test", plain), made("train", plain))


def _celeba(root: Path) -> Parts:
    from imbook import attributes  # which needs torchvision

    return Parts(*attributes.load_celeba(root))


def _deepfashion(root: Path) -> Parts:
    from imbook import attributes

    listed = (root / "deepfashion/Anno/list_attr_cloth.txt").read_text(encoding="utf-8").splitlines()[2:]
    names = tuple(line.rsplit(None, 1)[0] for line in listed if line.strip())  # all attributes, without the category
    return Parts(*attributes.load_deepfashion(root, labels=names, unknown="no"))


def _x_domain(root: Path) -> Parts:
    import pandas as pd

    from imbook import attributes

    folder = root / "x-domain"
    columns = [name for name in pd.read_csv(folder / "train.csv", nrows=0).columns if name != "image"]
    train = attributes.load_csv(folder / "train.csv", columns)
    classes: Any = dict(zip(train.labels, train.classes))
    others = [attributes.load_csv(folder / f"{part}.csv", columns, classes=classes) for part in ("valid", "test")]
    return Parts(train, *(Images(o.x, o.y, o.classes, train.mean, train.std, o.labels, gaps=True) for o in others))


#: Every set that comes in parts, {name: `Large`}.
LARGE = {
    "imagenet-lt": Large(
        (
            *(f"imagenet-lt/ImageNet_LT_{part}.txt" for part in ("train", "val", "test")),
            "imagenet/train",
            "imagenet/val",
        ),
        "ImageNet's pictures of 2012, unpacked, from image-net.org; the lists from the page of Liu et al. 2019",
        _imagenet_lt,
        "imagenet-lt",
        (115_846, 20_000, 50_000),
        1000,
        1,
    ),
    "inaturalist2018": Large(
        tuple(f"inaturalist2018/{name}" for name in ("train2018.json", "val2018.json", "train_val2018")),
        "from the page of the iNaturalist 2018 competition, github.com/visipedia/inat_comp",
        _inaturalist,
        "inaturalist2018",
        (437_513, 0, 24_426),
        8142,
        1,
    ),
    "tiny-imagenet": Large(
        tuple(f"tiny-imagenet-200/{name}" for name in ("wnids.txt", "train", "val/val_annotations.txt", "val/images")),
        "tiny-imagenet-200.zip of Stanford's course CS231n, unpacked",
        _tiny_imagenet,
        "tiny-imagenet-lt-100",
        (100_000, 0, 10_000),
        200,
    ),
    "egtea": Large(
        (
            *(f"egtea/action_annotation/{n}.txt" for n in ("verb_idx", "train_split1", "test_split1")),
            "egtea/cropped_clips",
        ),
        "the trimmed action clips and the action annotations of EGTEA Gaze+, cbs.ic.gatech.edu/fpv; clips are decoded "
        "by PyAV: pip install 'imbook[video]'",
        _egtea,
        "egtea",
        (6_372, 1_927, 2_022),
        19,
        72,
    ),
    "celeba": Large(
        ("celeba/img_align_celeba", "celeba/list_attr_celeba.txt", "celeba/list_eval_partition.txt"),
        "CelebA, aligned and cropped, from mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        _celeba,
        "celeba",
        (162_770, 19_867, 19_962),
        40,
    ),
    "deepfashion": Large(
        tuple(
            f"deepfashion/{name}"
            for name in ("Anno/list_attr_cloth.txt", "Anno/list_attr_img.txt", "Eval/list_eval_partition.txt", "Img")
        ),
        "the category and attribute prediction benchmark, from mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html",
        _deepfashion,
        "deepfashion",
        (209_222, 40_000, 40_000),
        1000,
    ),
    "x-domain": Large(
        tuple(f"x-domain/{part}.csv" for part in ("train", "valid", "test")),
        "three tables of yours: the column image, a path below x-domain, and one column per attribute",
        _x_domain,
        "x-domain",
        None,
        9,
    ),
}
