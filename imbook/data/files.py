"""Picture sets that stay on the disk: ImageNet-LT's lists, iNaturalist's JSON, Tiny-ImageNet's folders.

All are read in the exact formats that their makers publish. `imbook.large` gives them their parts and transforms.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from imbook.data.images import Images, moments


class Pictures(Dataset):
    """Picture files with a label each, read one by one: sample k is (transform(picture), y). For `imbook.data.Loader`.

    root: the folder that the files' names start from; samples: (name, y) of each; classes: the C names; transform:
    from a PIL picture in RGB to a float tensor. Reading raises FileNotFoundError for a picture that is not there and
    OSError for a damaged one, both naming it.
    """

    def __init__(
        self, root: str | Path, samples: Sequence[tuple[str, int]], classes: tuple[str, ...],
        transform: Callable[[Any], Any],
    ) -> None:  # fmt: skip
        self.root, self.classes, self.transform = Path(root), classes, transform
        self.samples = [(str(self.root / name), y) for name, y in samples]
        self.targets = [y for _, y in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, k: int) -> tuple[Any, int]:
        from PIL import UnidentifiedImageError
        from torchvision.datasets.folder import default_loader

        path, y = self.samples[k]
        try:
            return self.transform(default_loader(path)), y
        except FileNotFoundError as error:
            raise FileNotFoundError(f"picture {k + 1} of {len(self)} is not there: {path}") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise OSError(f"picture {k + 1} of {len(self)} is damaged: {path} ({error})") from error


Listed = tuple[list[tuple[str, int]], tuple[str, ...]]  # (name, y) of each picture, and the names of the classes


def imagenet_lt(folder: Path) -> dict[str, Listed]:
    """The three lists of ImageNet-LT: {'train' | 'val' | 'test': (samples, classes)}. Source: Liu et al. 2019.

    folder: holds ImageNet_LT_train.txt, ImageNet_LT_val.txt and ImageNet_LT_test.txt, each line a picture's path below
    ImageNet's folder (train/n01440764/n01440764_190.JPEG, val/ILSVRC2012_val_00000003.JPEG) and its class from 0. A
    class has the name of its folder of training pictures. ValueError that names file and line for anything else, for a
    class whose pictures lie in two folders and for a picture that is in two lists.
    """
    lists: dict[str, list[tuple[str, int]]] = {}
    seen: dict[str, str] = {}
    for part in ("train", "val", "test"):
        path = folder / f"ImageNet_LT_{part}.txt"
        lists[part] = [(name, whole_number(y, path, k)) for k, (name, y) in lines_of(path, 2)]
        for name, _ in lists[part]:
            if name in seen:
                raise ValueError(f"{path} names {name}, which the list of {seen[name]} has: download the lists again")
            seen[name] = part
    names: dict[int, str] = {}
    for name, y in lists["train"]:
        own = Path(name).parent.name
        if names.setdefault(y, own) != own:
            raise ValueError(f"class {y} has pictures in {names[y]} and in {own}: download the lists again")
    return {part: (some, class_names(names, some, folder)) for part, some in lists.items()}


def inaturalist(folder: Path, year: int = 2018) -> dict[str, Listed]:
    """iNaturalist's training and validation set: {'train' | 'val': (samples, classes)}. Source: Van Horn et al. 2018.

    folder: holds train2018.json and val2018.json in COCO's form: 'images' with id and file_name (below the folder),
    'annotations' with image_id and category_id, from 0, and 'categories' with id and name. ValueError that names the
    file for anything else.
    """
    made: dict[str, Listed] = {}
    names: dict[int, str] = {}
    for part in ("train", "val"):
        path = folder / f"{part}{year}.json"
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            names = {c["id"]: c["name"] for c in whole["categories"]}
            file = {image["id"]: image["file_name"] for image in whole["images"]}
            some = [(file[a["image_id"]], int(a["category_id"])) for a in whole["annotations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no JSON of iNaturalist ({error!r}): download it again") from error
        if len(some) != len(file):
            raise ValueError(f"{path} has {len(file)} images and {len(some)} annotations: download it again")
        made[part] = some, class_names(names, some, path)
    return made


def tiny_imagenet(folder: Path, size: int = 64) -> tuple[Images, Images]:
    """Tiny-ImageNet's training and validation set in memory, 1.4 GB: a pair of `Images`, 200 classes.

    folder: tiny-imagenet-200, with wnids.txt (the classes' folders, one per line; their order is that of the classes),
    train/n01443537/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt (picture, class, four numbers of a
    box). ValueError that names file and line for anything else, as `imbook.data.pictures.decode` for pictures.
    """
    from imbook.data.pictures import decode  # Pillow and torchvision: only where pictures are read

    classes = tuple(line[0] for _, line in lines_of(folder / "wnids.txt", 1))
    code = {name: c for c, name in enumerate(classes)}
    train = [(p, c) for name, c in code.items() for p in sorted((folder / "train" / name / "images").glob("*.JPEG"))]
    annotated = folder / "val/val_annotations.txt"
    test = []
    for k, (name, wnid, *_) in lines_of(annotated, 6):
        if wnid not in code:
            raise ValueError(f"{annotated}, line {k}: {wnid} is not in wnids.txt: unpack the set again")
        test.append((folder / "val/images" / name, code[wnid]))
    if missing := sorted(set(code.values()) - {c for _, c in train}):
        raise ValueError(f"{folder / 'train' / classes[missing[0]]} has no images/*.JPEG: unpack the set again")
    x = [decode([path for path, _ in some], size) for some in (train, test)]
    y = [torch.tensor([c for _, c in some]) for some in (train, test)]
    constants = moments(x[0])
    return Images(x[0], y[0], classes, *constants), Images(x[1], y[1], classes, *constants, gaps=True)


def lines_of(path: Path, fields: int | None = None) -> list[tuple[int, list[str]]]:
    """The lines of a list as (number from 1, words), without empty ones.

    fields: how many words each must have, None for any number. ValueError for a line with others, and for no line.
    """
    try:
        lines = [(k, line.split()) for k, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}): download it again") from error
    lines = [(k, words) for k, words in lines if words]
    if wrong := [k for k, words in lines if fields not in (None, len(words))]:
        raise ValueError(f"{path}, line {wrong[0]}: {fields} words are expected: download the list again")
    if not lines:
        raise ValueError(f"{path} is empty: download the list again")
    return lines


def whole_number(text: str, path: Path, line: int) -> int:
    """A word of a list as a number; ValueError that names file and line for anything else."""
    if not text.isdecimal():
        raise ValueError(f"{path}, line {line}: {text!r} is no class, a whole number from 0: download the list again")
    return int(text)


def class_names(names: dict[int, str], samples: list[tuple[str, int]], path: Path) -> tuple[str, ...]:
    """The C names in the order of their numbers; ValueError where these are not 0 to C-1 or a label is none of them."""
    if sorted(names) != list(range(len(names))) or not {y for _, y in samples} <= set(names):
        raise ValueError(f"{path}: classes must be numbered 0, 1, ... without gaps and named: download it again")
    return tuple(names[c] for c in range(len(names)))
