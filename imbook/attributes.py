"""Attribute sets, several labels an image: CelebA, DeepFashion, and any CSV of image paths and attribute columns.

In a file of its own because these sets are folders of pictures to be decoded, which `imbook.data` never does. All come
as `imbook.data.Images` in memory: 3 * size^2 bytes an image and 8 bytes a label. Chapter 04 rectifies label by label.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import CelebA

from imbook.data import Images, data_root, moments, table
from imbook.data.pictures import decode


def load_celeba(root: str | Path | None = None, size: int = 64) -> tuple[Images, Images, Images]:
    """CelebA's official training, validation and test set: three `Images` with 40 labels, each 'no' or 'yes'.

    root: the data folder, default `data_root()`. Below it torchvision's layout: celeba/img_align_celeba/000001.jpg ...,
    and in celeba/ list_attr_celeba.txt, list_eval_partition.txt, identity_CelebA.txt, list_bbox_celeba.txt and
    list_landmarks_align_celeba.txt, whose checksums torchvision compares. size: the middle square of each picture (178
    of 178 x 218 pixels) is resized to size x size; all 202,599 take 2.5 GB at 64 and 0.6 GB at 32. mean, std: of the
    training set. Raises FileNotFoundError for lists or pictures that are missing or damaged.
    Source: Liu, Luo, Wang, Tang 2015.
    """
    root = Path(root or data_root()).expanduser()
    try:
        sets = [CelebA(root, part) for part in ("train", "valid", "test")]
    except Exception as error:  # whatever a reader of damaged lists may raise
        raise FileNotFoundError(
            f"celeba is missing or damaged in {root / 'celeba'} ({error}). Set IMBOOK_DATA to the folder that holds "
            "celeba, unpacked; the book's page on the data says which files"
        ) from error
    labels = tuple(name for name in sets[0].attr_names if name)  # the list's line of names ends with a space
    pictures = root / "celeba" / "img_align_celeba"
    parts = [([pictures / name for name in s.filename], s.attr.long()) for s in sets]
    return _sets(parts, (("no", "yes"),) * len(labels), labels, size)


def load_deepfashion(
    root: str | Path | None = None, size: int = 64, labels: Sequence[str] | None = None, unknown: str | None = None
) -> tuple[Images, Images, Images]:
    """DeepFashion's Category and Attribute Prediction Benchmark, its training, validation and test set: three `Images`.

    root: the data folder, default `data_root()`. Below it deepfashion/Img/img/... and the lists
    Anno/list_category_cloth.txt (name, type), Anno/list_category_img.txt (picture, number of its category from 1),
    Anno/list_attr_cloth.txt (name of one or more words, type), Anno/list_attr_img.txt (picture, then for each attribute
    1 yes, -1 no, 0 unknown) and Eval/list_eval_partition.txt (picture, then train, val or test). The first line of each
    list is the number of its rows, the second names its columns; a picture's name starts with img/.
    size: the middle square of each picture is resized to size x size; all 289,222 take 3.6 GB at 64. labels: which to
    keep, 'category' and names of attributes, default all 1,001 (2.3 GB more). unknown: 'no' counts a 0 as no; None
    refuses it. mean, std: of the training set.
    Raises FileNotFoundError for a list or picture that is not there, ValueError for lists that do not fit together, an
    unknown label or a 0 that was not provided for, OSError for a damaged picture.
    Source: Liu, Luo, Qiu, Wang, Tang 2016.
    """
    if unknown not in (None, "no"):
        raise ValueError(f"unknown {unknown!r}: choose 'no', or None to refuse labels that are not known")
    folder = Path(root or data_root()).expanduser() / "deepfashion"
    categories, attributes = (
        [row.rsplit(None, 1)[0] for row in _rows(folder / f"Anno/list_{kind}_cloth.txt")]
        for kind in ("category", "attr")
    )
    there: tuple[str, ...] = ("category", *attributes)
    labels = there if labels is None else tuple(labels)
    if (wrong := [name for name in labels if name not in there]) or not labels:
        raise ValueError(f"labels {wrong}: choose at least one of 'category' and the {len(attributes)} attributes")

    number = {}  # of the category of each picture
    for picture, c in _fields(folder / "Anno/list_category_img.txt"):
        if not c.isdecimal() or not 1 <= int(c) <= len(categories):
            raise ValueError(f"{picture} has category {c}: the list of categories goes from 1 to {len(categories)}")
        number[picture] = int(c) - 1
    meaning = {"1": 1, "-1": 0} | ({"0": 0} if unknown else {})
    known = {}  # the labels of each picture
    for row in _rows(folder / "Anno/list_attr_img.txt"):
        picture, *values = row.split()
        if len(values) != len(attributes):
            raise ValueError(f"{picture} has {len(values)} attributes in list_attr_img.txt, not {len(attributes)}")
        each: dict[str, Any] = dict(zip(attributes, values)) | {"category": number.get(picture, "nothing")}
        y: list[Any] = [each[name] if name == "category" else meaning.get(each[name], each[name]) for name in labels]
        if unread := [(name, value) for name, value in zip(labels, y) if isinstance(value, str)]:
            raise ValueError(
                f"{picture} has {unread[0][1]} for {unread[0][0]!r}: a category from its list, or one of "
                f"{', '.join(meaning)} is read; 0 says unknown, pass unknown='no' to count it as no"
            )
        known[picture] = torch.tensor(y, dtype=torch.int16)

    parts = {"train": [], "val": [], "test": []}
    for picture, part in _fields(folder / "Eval/list_eval_partition.txt"):
        if part not in parts or picture not in known:
            raise ValueError(
                f"{picture}, {part}: the part is not train, val or test, or the picture has no labels left"
            )
        parts[part].append((folder / "Img" / picture, known.pop(picture)))  # a second time it has none: no part twice
    if empty := [part for part, some in parts.items() if not some]:
        raise ValueError(f"list_eval_partition.txt has no picture of {', '.join(empty)}: unpack the set again")
    return _sets(
        [([path for path, _ in some], torch.stack([y for _, y in some]).long()) for some in parts.values()],
        tuple(tuple(categories) if name == "category" else ("no", "yes") for name in labels),
        labels,
        size,
    )


def load_csv(
    path: str | Path, columns: Sequence[str], image: str = "image", root: str | Path | None = None, size: int = 64,
    classes: dict[str, Sequence[str]] | None = None,
) -> Images:  # fmt: skip
    """Any set of pictures with one label a column, such as X-Domain's: one `Images`.

    path: a CSV file with a header. columns: the names of the label columns; their texts are the classes. image: the
    column of the pictures' paths, below `root`, default the folder of the CSV. size: the middle square of each picture
    is resized to size x size. classes: {column: names}, the classes in their order, default those found, in the order
    of numbers or of the alphabet. mean, std: of this set; for a test set take the classes and the constants of
    training:

        test = load_csv("test.csv", columns, classes=dict(zip(train.labels, train.classes)))
        test = dataclasses.replace(test, mean=train.mean, std=train.std)

    Rows are counted from 1 below the header. Raises ValueError for a missing column, an empty field (or a word that
    pandas reads as one, such as NA), a class that is not in the list given and a column of one class only;
    FileNotFoundError for a picture that is not there, OSError for a damaged one.
    """
    return table(path, image, tuple(columns), root, size, classes=dict(classes or {}))


def _rows(path: Path) -> Iterator[str]:
    """The rows of one of DeepFashion's lists: the first line is their number, the second names the columns."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: set IMBOOK_DATA to the folder that holds deepfashion, unpacked; the book's page on "
            "the data says which files"
        )
    found = 0
    try:
        with open(path, encoding="utf-8") as file:
            announced = int(next(file, "nothing"))
            next(file, None)
            for row in filter(str.strip, file):
                found += 1
                yield row
    except ValueError as error:  # no number, or no text
        raise ValueError(f"{path} is damaged in row {found + 1} ({error}): unpack the set again") from error
    if found != announced:
        raise ValueError(f"{path} has {found} rows, its first line says {announced}: unpack the set again")


def _fields(path: Path) -> Iterator[list[str]]:
    """The two fields of each row of a list."""
    for k, row in enumerate(_rows(path)):
        if len(fields := row.split()) != 2:
            raise ValueError(f"{path} is damaged in row {k + 1} ({row.strip()!r} has not two fields): unpack it again")
        yield fields


def _sets(
    parts: list[tuple[list[Path], Tensor]], classes: tuple[tuple[str, ...], ...], labels: tuple[str, ...], size: int
) -> tuple[Images, Images, Images]:
    """One `Images` for each (paths, y), with the mean and standard deviation of the first, the training set."""
    decoded = [decode(paths, size) for paths, _ in parts]
    mean, std = moments(decoded[0])
    train, valid, test = (Images(x, y, classes, mean, std, labels, gaps=True) for x, (_, y) in zip(decoded, parts))
    return train, valid, test
