"""A reader's own pictures in memory: one folder per class, or a table of paths and labels."""

import os
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from imbook.data.images import Images, moments


def folder(
    path: str | Path, size: int | None = None, channels: int | None = None, like: Images | None = None
) -> Images:
    """The pictures of a folder with one folder per class, path/class/.../picture.png: one `Images`.

    Classes are the folders' names in the order of the alphabet, as in torchvision's ImageFolder; images come class by
    class, in the order of their paths. size: the middle square of each picture is resized to size x size, default 64;
    channels: 3 (default) or 1, grey. like: the `Images` of training, for a test set: its classes (one may be without
    pictures here), its mean and std, its size and channels where none are given. What is left out (hidden files, files
    that are no pictures or lie outside of the classes' folders) is named in a warning.

    Raises FileNotFoundError for a folder that is not there; ValueError for fewer than two classes, a class without
    pictures, a class that `like` does not have and a picture whose mode has no fixed range; OSError for a picture that
    cannot be read, naming it. Several sizes and modes may come together (see `imbook.data.pictures.decode`).
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder: give the folder that holds one folder per class")
    left_out = [p for p in sorted(path.iterdir()) if hidden(p) or not p.is_dir()]
    pictures = {}  # of each class
    for each in sorted((p for p in path.iterdir() if p.is_dir() and not hidden(p)), key=class_name):
        found, others = walk(each)
        left_out += others
        name = class_name(each)
        if name in pictures:
            raise ValueError(f"{path} has two folders that read {name!r}: merge them")
        if not found:
            raise ValueError(f"class {name!r} has no pictures in {each}: add some, or remove the folder")
        pictures[name] = found
    if left_out:
        names = ", ".join(str(p.relative_to(path)) for p in left_out[:5]) + ", ..." * (len(left_out) > 5)
        warnings.warn(f"{path}: {len(left_out)} left out, no pictures of a class: {names}", stacklevel=2)
    classes = tuple(pictures) if like is None else like.classes
    if len(classes) < 2:
        raise ValueError(f"{path} has {len(classes)} class {list(classes)}: put the pictures of each class in a folder")
    if unknown := [name for name in pictures if name not in classes]:
        raise ValueError(f"{path} has class {unknown[0]!r}, which is not among those of training: {list(classes)}")
    y = torch.tensor([classes.index(name) for name, found in pictures.items() for _ in found], dtype=torch.int64)
    return _images([p for found in pictures.values() for p in found], y, classes, (), size, channels, like)


def table(
    path: str | Path, image: str = "image", label: str | Sequence[str] = "label", root: str | Path | None = None,
    size: int | None = None, channels: int | None = None,
    classes: Sequence[str] | dict[str, Sequence[str]] | None = None, like: Images | None = None,
) -> Images:  # fmt: skip
    """The pictures that a CSV file names, with their labels: one `Images`.

    path: a CSV file with a header, in UTF-8. image: the column of the pictures' paths, below `root`, default the folder
    of the CSV. label: the column of the labels, whose texts are the classes; a tuple of columns makes several labels
    per image. classes: the names in their order (for several labels {column: names}), default those found, in the
    order of numbers or of the alphabet; with names given, a class may be without pictures. size, channels, like: as in
    `folder`; for a test set give the training set as `like`.

    Rows are counted from 1 below the header. Raises ValueError for a file that is no such table, a missing column, an
    empty field (or a word that pandas reads as one, such as NA), a class that is not in the list given, a column of one
    class only and a picture whose mode has no fixed range; FileNotFoundError for a picture that is not there, OSError
    for one that cannot be read.
    """
    path, one = Path(path).expanduser(), isinstance(label, str)
    columns: tuple[str, ...] = (label,) if isinstance(label, str) else tuple(label)
    if like is not None:
        if classes is not None or one != (not like.labels):
            raise ValueError(f"like has the classes {like.classes} and labels {like.labels}: give no others")
        classes = like.classes if one else dict(zip(like.labels, like.classes))  # type: ignore[assignment]
    named: Any = classes or {}
    given: dict[str, Sequence[str]] = {columns[0]: named} if one and classes is not None else dict(named)
    rows = read_rows(path, image, columns, given)
    codes = [_codes(path, rows, name, given) for name in columns]
    folder = path.parent if root is None else Path(root).expanduser()
    pictures = [folder / name for name in rows[image]]
    if one:
        return _images(pictures, codes[0], tuple(given[columns[0]]), (), size, channels, like, gaps=classes is not None)
    names = tuple(tuple(given[c]) for c in columns)
    return _images(pictures, torch.stack(codes, 1), names, columns, size, channels, like, gaps=bool(classes))


def _images(
    pictures: list[Path], y: Tensor, classes: tuple[Any, ...], labels: tuple[str, ...], size: int | None,
    channels: int | None, like: Images | None, gaps: bool = False,
) -> Images:  # fmt: skip
    from imbook.data.pictures import decode  # Pillow and torchvision: only where pictures are read

    default = (64, 3) if like is None else (like.x.shape[2], like.x.shape[1])
    size, channels = (d if value is None else value for value, d in zip((size, channels), default))
    x = decode(pictures, size, channels)
    mean, std = moments(x) if like is None else (like.mean, like.std)
    return Images(x, y, classes, mean, std, labels, gaps or like is not None)


def walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures below a folder in the order of their paths, and what is left out: two lists.

    Pictures are the files whose suffix Pillow can open; left out are all other files, and what is hidden.
    """
    from PIL import Image

    pictures, others = [], []
    suffixes = {s for s, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for parent, folders, files in os.walk(folder, followlinks=True):
        others += [Path(parent, f) for f in folders if f.startswith(".")]
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in (Path(parent, f) for f in sorted(files)):
            (pictures if not hidden(file) and file.suffix.lower() in suffixes else others).append(file)
    return pictures, others


def hidden(path: Path) -> bool:
    """Whether a file or folder is hidden: its name starts with a dot."""
    return path.name.startswith(".")


def class_name(folder: Path) -> str:
    """The name of a folder's class; an umlaut is one sign, also where the system writes it as two."""
    return unicodedata.normalize("NFC", folder.name)


def read_rows(path: Path, image: str, columns: tuple[str, ...], given: dict[str, Sequence[str]]) -> "pd.DataFrame":
    """A CSV file as texts, a frame: `image`, `columns` and the keys of `given` are there, and no field is empty.

    given: {column: its class names}. ValueError that names the file and the row for anything else (see `table`).
    """
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except ValueError as error:  # of pandas' parser and of the encoding
        raise ValueError(f"{path} cannot be read as a CSV file in UTF-8 ({error}): save it as one") from error
    if absent := [c for c in dict.fromkeys((image, *columns, *given)) if c not in rows]:
        raise ValueError(f"{path} has no column {absent}: choose from {list(rows)}")
    if not len(rows) or not isinstance(rows.index, pd.RangeIndex):
        raise ValueError(f"{path} has no rows, or rows with more fields than its header: mend it")
    if not columns or not given.keys() <= set(columns):
        raise ValueError(f"columns {columns}, classes of {list(given)}: name at least one column, and all with classes")
    for name in (image, *columns):
        if (empty := rows[name].isna()).any():
            raise ValueError(
                f"{path}, row {empty.argmax() + 1}: {name!r} is empty or reads as a missing value: fill it in, or "
                "leave the row out"
            )
    return rows


def _codes(path: Path, rows: "pd.DataFrame", name: str, given: dict[str, Sequence[str]]) -> Tensor:
    """The labels of one column, int64 (N,); `given` gets the names where it has none."""
    names = given.setdefault(name, ordered(set(rows[name])))
    code = {text: c for c, text in enumerate(names)}
    if len(code) < max(2, len(names)):
        raise ValueError(f"{path}: classes {names} of {name!r}: two or more different ones; else leave it out")
    if (other := ~rows[name].isin(code)).any():
        row = other.argmax()
        raise ValueError(f"{path}, row {row + 1}: {name} is {rows[name][row]!r}, which is not among {list(names)}")
    return torch.tensor(rows[name].map(code).to_numpy(dtype="int64"))


def ordered(names: set[str]) -> list[str]:
    """Class names in the order of numbers where all are numbers, else of the alphabet."""
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)
