"""What lies in a folder of pictures: sizes, modes, duplicates, near-duplicates, files that cannot be read."""

import hashlib
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from imbook.data.folders import class_name, hidden, ordered, read_rows, walk
from imbook.data.pictures import decode

CHUNK = 500  # files that are examined at a time
ALL_PAIRS, MOST_PAIRS = 20_000, 10_000  # up to so many files all pairs are compared; so many pairs are kept
CELLS, ALIKE = 16, 0.98  # near-duplicates: thumbnails of CELLS x CELLS grey cells that correlate so closely


@dataclass(frozen=True)
class Files:
    """The pictures of a set: paths below root, labels y int64 (N,), class names, and one group per picture or None."""

    root: Path
    paths: tuple[str, ...]
    y: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """16 hex digits that change with the files' names, sizes, times, labels and groups."""
        digest = hashlib.sha256(repr((self.classes, self.groups)).encode())
        for path, label in zip(self.paths, self.y.tolist()):
            stat = (self.root / path).stat()
            digest.update(f"{path}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def only(self, keep: np.ndarray) -> "Files":
        """The pictures at the positions where keep, bool (N,), is true."""
        chosen = np.flatnonzero(keep)
        groups = None if self.groups is None else tuple(self.groups[k] for k in chosen)
        return Files(self.root, tuple(self.paths[k] for k in chosen), self.y[chosen], self.classes, groups)


def find(path: str | Path, groups: str | None = None, image: str = "image", label: str = "label") -> Files:
    """The pictures of a folder with one folder per class, or of a CSV file with columns `image` and `label`: `Files`.

    groups: what tells that pictures belong together (crops of one photograph, pictures of one patient): a column of the
    CSV, or a regular expression that is searched for in each path; its first bracket, else the whole match, names the
    group. Raises FileNotFoundError for a path or picture that is not there; ValueError for fewer than two classes, a
    class without pictures, a CSV file that cannot be read, and a path without a group.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _grouped(_of_folder(path), groups)
    if path.is_file():
        return _of_table(path, groups, image, label)
    raise FileNotFoundError(f"{path} is neither a folder with one folder per class nor a CSV file")


def _of_folder(root):
    each = sorted((p for p in root.iterdir() if p.is_dir() and not hidden(p)), key=class_name)
    left_out = [p for p in root.iterdir() if hidden(p) or not p.is_dir()]
    paths, y = [], []
    for c, folder in enumerate(each):
        found, others = walk(folder)
        if not found:
            raise ValueError(f"class {class_name(folder)!r} has no pictures in {folder}: add some, or remove it")
        paths += [p.relative_to(root).as_posix() for p in found]
        y += [c] * len(found)
        left_out += others
    classes = tuple(map(class_name, each))
    if len(set(classes)) < max(2, len(classes)):
        raise ValueError(f"{root} has the classes {list(classes)}: it needs one folder per class, two or more classes")
    names = tuple(p.relative_to(root).as_posix() for p in left_out)
    return Files(root, tuple(paths), np.array(y), classes, None, names)


def _of_table(path, groups, image, label):
    rows = read_rows(path, image, (label,), {})
    classes = tuple(ordered(set(rows[label])))
    if len(classes) < 2:
        raise ValueError(f"{path}: {label!r} has one class {list(classes)}: two or more are needed")
    for k, name in enumerate(rows[image]):
        if not (path.parent / name).is_file():
            raise FileNotFoundError(f"{path}, row {k + 1}: picture {path.parent / name} is not there")
    files = Files(path.parent, tuple(rows[image]), rows[label].map(classes.index).to_numpy(), classes)
    if groups not in rows:
        return _grouped(files, groups)
    if (empty := rows[groups].isna()).any():
        raise ValueError(f"{path}, row {empty.argmax() + 1}: {groups!r} is empty: fill it in")
    return Files(files.root, files.paths, files.y, classes, tuple(rows[groups]))


def _grouped(files, groups):
    if groups is None:
        return files
    try:
        pattern = re.compile(groups)
    except re.error as error:
        raise ValueError(f"groups {groups!r} is neither a column nor a regular expression ({error})") from error
    found = [pattern.search(path) for path in files.paths]
    if None in found:
        raise ValueError(f"groups {groups!r} is no column, and does not match {files.paths[found.index(None)]}")
    names = tuple(m[1] if pattern.groups else m[0] for m in found)
    return Files(files.root, files.paths, files.y, files.classes, names, files.left_out)


def examine(files: Files, seconds: float = float("inf"), show: bool = False) -> pd.DataFrame:
    """Read the pictures one by one: a frame, one row per file.

    Columns: path, label, width, height, mode, digest (of the file's bytes), hash (see `difference_hash`), thumbnail
    (256 bytes, see `thumbnails`), error (why it cannot be read, else ''), looked (False for the files that `seconds`
    had no time for; the first 500 are looked at in any case).
    show: a progress bar. Memory does not grow with the size of the pictures.
    """
    deadline, rows = time.monotonic() + seconds, []
    with tqdm(total=len(files.paths), desc="look", unit="file", disable=not show) as bar:
        for start in range(0, len(files.paths), CHUNK):
            if rows and time.monotonic() > deadline:
                break
            rows += _examine([files.root / p for p in files.paths[start : start + CHUNK]])
            bar.update(len(rows) - bar.n)
    late = dict(width=0, height=0, mode="", digest="", hash="", thumbnail=b"", error="", looked=False)
    frame = pd.DataFrame(rows + [late] * (len(files.paths) - len(rows)))
    frame.insert(0, "path", files.paths)
    frame.insert(1, "label", [files.classes[c] for c in files.y])
    return frame


def _examine(paths):
    try:
        x = decode(paths, 32, 1)
    except (OSError, ValueError):  # one of them: read each alone
        if len(paths) == 1:
            return [_row(paths[0], "", b"", _why(paths[0]))]
        return [row for path in paths for row in _examine([path])]
    small = [t.tobytes() for t in thumbnails(x).numpy()]
    return [_row(*each, "") for each in zip(paths, difference_hash(x), small)]


def _why(path):
    try:
        decode([path], 32, 1)
    except (OSError, ValueError) as error:
        said = str(error).removeprefix("picture 1 of 1 ").replace(f": {path}", "").removeprefix(f"{path} ")
        return said.replace(f" {str(path)!r}", "")


def _row(path, code, thumbnail, error):
    width, height, mode = 0, 0, ""
    if not error:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            (width, height), mode = picture.size, picture.mode
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    its = dict(width=width, height=height, mode=mode, digest=digest, hash=code, thumbnail=thumbnail)
    return its | dict(error=error, looked=True)


def difference_hash(x: torch.Tensor) -> list[str]:
    """A perceptual hash of grey pictures: whether each of 8 x 9 cells is darker than its right neighbour, as hex texts.

    x: uint8 (N, 1, height, width). Pictures that look alike differ in few of the 64 bits, whatever their size and
    compression. Source: the difference hash of Krawetz 2013.
    """
    cells = F.adaptive_avg_pool2d(x.float(), (8, 9))[:, 0]
    bits = (cells[:, :, 1:] > cells[:, :, :-1]).flatten(1).numpy()
    return [code.tobytes().hex() for code in np.packbits(bits, 1)]


def thumbnails(x: torch.Tensor) -> torch.Tensor:
    """Grey pictures shrunk to 16 x 16 cells: uint8 (N, 256). x: uint8 (N, 1, height, width)."""
    return F.adaptive_avg_pool2d(x.float(), CELLS).round().byte().flatten(1)


def standardised(small: torch.Tensor) -> torch.Tensor:
    """Thumbnails with mean 0 and length 1: float32 (N, 256). The product of two is their correlation.

    It does not depend on brightness and contrast. Pictures without structure (a deviation below one grey level) become
    0 and resemble nothing. small: uint8 (N, 256).
    """
    t = small.float() - small.float().mean(1, keepdim=True)
    length = t.norm(dim=1, keepdim=True)
    return torch.where(length < CELLS, torch.zeros(()), t / length.clamp(min=1))


def near_pairs(frame: pd.DataFrame, least: float = ALIKE) -> list[tuple[int, int, float]]:
    """Pairs of files that look alike and whose bytes differ, the most alike first: a list of (i, j, similarity), i < j.

    similarity: the correlation of their thumbnails, `least` or more. It finds copies that were resized, compressed or
    made brighter; it misses copies that were cropped, turned or mirrored. At most 10,000 pairs are given. Above 20,000
    files only those with equal `difference_hash` are compared, each with the one before it. frame: see `examine`.
    """
    there = np.flatnonzero(frame["hash"] != "")
    if not len(there):
        return []
    small = np.stack([np.frombuffer(t, np.uint8) for t in frame["thumbnail"].to_numpy()[there]])
    t, digests = standardised(torch.from_numpy(small)), frame["digest"].to_numpy()
    if len(there) > ALL_PAIRS:
        hashes = frame["hash"].to_numpy()[there]
        order = np.argsort(hashes, kind="stable")
        same = hashes[order][1:] == hashes[order][:-1]
        i, j = np.sort([order[:-1][same], order[1:][same]], 0)
        found: Any = [(i, j, (t[i] * t[j]).sum(1).numpy())]
    else:
        found = (_within(t, start, least) for start in range(0, len(t), 1000))
    pairs = [(int(there[a]), int(there[b]), round(float(r), 4)) for part in found for a, b, r in zip(*part)]
    pairs = [p for p in pairs if p[2] >= least and digests[p[0]] != digests[p[1]]]
    return sorted(pairs, key=lambda p: (-p[2], p))[:MOST_PAIRS]


def _within(t, start, least):
    r = t[start : start + 1000] @ t.T
    i, j = torch.nonzero((r >= least - 1e-4).triu(start + 1), as_tuple=True)
    most = r[i, j].topk(min(len(i), MOST_PAIRS)).indices  # of a film, all frames are alike
    i, j = i[most], j[most]
    return (i + start).tolist(), j.tolist(), r[i, j].tolist()


def findings(frame: pd.DataFrame, files: Files) -> dict[str, Any]:
    """What a person should know before training, as plain data; positions are those of the frame.

    n, ratio: pictures per class that can be read, and largest over smallest. unreadable: [path, reason]. duplicates:
    lists of positions with the same bytes; conflicts: those of them under several labels. near: see `near_pairs`.
    odd: positions whose sides are four times larger or smaller than the median, or whose sides differ by more than 3.
    """
    good = frame["error"] == ""
    n = np.bincount(files.y[good], minlength=len(files.classes))
    if not n.all():
        raise ValueError(f"class {files.classes[int(n.argmin())]!r} has no picture that can be read: add some")
    seen = frame[frame["looked"] & good]
    same = [list(map(int, g)) for g in seen.groupby("digest").indices.values() if len(g) > 1]
    same = [seen.index[g].tolist() for g in same]
    side = np.sqrt(seen["width"] * seen["height"])
    typical, shape = side.median(), seen[["width", "height"]]
    odd = (side > 4 * typical) | (side < typical / 4) | (shape.max(axis=1) > 3 * shape.min(axis=1))
    return dict(
        classes=list(files.classes),
        n=n.tolist(),
        ratio=float(n.max() / n.min()),
        looked=int(frame["looked"].sum()),
        files=len(frame),
        left_out=list(files.left_out),
        unreadable=frame[~good][["path", "error"]].to_numpy().tolist(),
        sizes=[[int(v) for v in seen[side_].quantile([0, 0.5, 1])] for side_ in ("width", "height")],
        modes={k: int(v) for k, v in seen["mode"].value_counts().items()},
        duplicates=same,
        conflicts=[g for g in same if len({int(files.y[k]) for k in g}) > 1],
        near=[list(p) for p in near_pairs(frame)],
        odd=[int(k) for k in seen.index[odd]],
        groups=None if files.groups is None else len(set(files.groups)),
    )
