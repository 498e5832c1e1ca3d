"""One run, one record: plain data with its provenance, saved whole or not at all, read back or named as damaged.

Records are committed below imbook/records, one compressed file per table; `python -m imbook run` writes new ones
elsewhere. Every file that is written is synced before it gets its name, and carries a checksum.
"""

import contextlib
import gzip
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imbook import __version__

PACKAGE = Path(__file__).parent
#: The folder of the records that come with the package.
RECORDS = PACKAGE / "records"
#: Of the records that this package writes; those without the field are of schema 0.
SCHEMA = 1
NEEDED = ("key", "dry", "n", "metrics", "confusion", "curve", "method_version", "seconds", "device", "versions", "time")


class NewerSchema(ValueError):
    """A record is written by a later version of this package than the one that reads it."""


def rounded(value: Any, digits: int = 5) -> Any:
    """Plain data with floats rounded to that many significant digits; tensors become lists. For compact records."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [rounded(v, digits) for v in value]
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


@cache
def source_hash() -> str:
    """sha256 of the package's Python files: 12 hexadecimal digits."""
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(
        b"".join(f.relative_to(PACKAGE).as_posix().encode() + f.read_bytes() for f in files)
    ).hexdigest()[:12]


def provenance(device: str) -> dict[str, Any]:
    """Where and with what a run is made: a dict.

    Device name, threads, versions, commit, hash of the package's source, UTC time.
    """
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    others = {package: version(package) for package in ("torch", "torchvision", "numpy")}
    return dict(
        device=name,
        threads=torch.get_num_threads(),
        versions=dict(python=platform.python_version(), imbook=__version__, **others),
        commit=commit(),
        source=source_hash(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@cache
def commit() -> str | None:
    """The commit the package is checked out at, 12 hexadecimal digits.

    None without git, outside a repository, and in a repository that does not track the package's own files (an
    installed package inside somebody's project would otherwise record that project's commit).
    """
    git = lambda *words: subprocess.run(["git", "-C", PACKAGE, *words], capture_output=True, text=True)  # noqa: E731
    with contextlib.suppress(OSError):  # no git on this machine
        if git("ls-files", "--error-unmatch", Path(__file__).name).returncode == 0:
            return git("rev-parse", "--short=12", "HEAD").stdout.strip() or None
    return None


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def save(record: dict[str, Any], folder: str | Path) -> Path:
    """Write one record to folder/KEY.json, whole or not at all; returns the path. The folder is made where missing."""
    path, plain = Path(folder).expanduser() / f"{record['key']}.json", json.loads(json.dumps(record))
    write(path, json.dumps({"checksum": _checksum(plain), **plain}, separators=(",", ":")).encode())
    return path


def archive(records: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write records into one compressed file, one record per line, sorted by key: equal records give equal bytes."""
    records = [{k: v for k, v in r.items() if k != "file"} for r in records]  # `load` added it
    lines = "".join(
        json.dumps(r, separators=(",", ":"), sort_keys=True) + "\n" for r in sorted(records, key=lambda r: r["key"])
    )
    write(path, gzip.compress(lines.encode(), mtime=0))  # gzip holds a checksum of its own


def write(path: str | Path, content: bytes) -> None:
    """Write bytes to a file that appears only when it is whole and on the disk; its folder is made where missing."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records of one file, a list. ValueError naming the file where it is damaged, however it is damaged.

    `NewerSchema` (a ValueError) where a record is of a later schema than `SCHEMA`, naming the version to install.
    """
    try:
        content, archived = Path(path).read_bytes(), Path(path).suffix == ".gz"
        if not content:
            raise ValueError("it is empty")
        text = (gzip.decompress(content) if archived else content).decode()
        records = [json.loads(line) for line in text.splitlines()]
        for record in records:
            _check_schema(record, path)
            if not archived and next(iter(record)) != "key":  # files from before there were checksums begin with it
                if record.pop("checksum", None) != _checksum(record):
                    raise ValueError("its checksum does not fit")
            if absent := [name for name in NEEDED if name not in record]:
                raise ValueError(f"no {', '.join(absent)}")
        return records
    except NewerSchema:
        raise
    except Exception as error:  # zlib, gzip, json, unicode, types: whatever a damaged file brings about
        raise ValueError(f"{path} is damaged ({error!r}): remove it, and run its table again") from error


def load(folder: str | Path | None = None, damaged: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """All records, {key: record}: the package's, then those of `folder`; the latest of a key.

    folder: single files and archives. damaged: a list that collects what is wrong with files that cannot be read, so
    that a queue goes on without them; without it the first such file raises ValueError.
    """
    return latest([*sorted(RECORDS.glob("*.jsonl.gz")), *(files(folder) if folder else [])], damaged)


def files(folder: str | Path) -> list[Path]:
    """The archives and the single files of a folder, sorted; not what another worker is writing at this moment."""
    folder = Path(folder).expanduser()
    return [path for ending in ("*.jsonl.gz", "*.json") for path in sorted(folder.glob(ending))]


def latest(paths: Iterable[Path], damaged: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """The records of some files, {key: record}, the latest of a key; `file` is the name of the file it is in.

    damaged: as in `load`.
    """
    records = {}
    for path in paths:
        try:
            for record in read(path):
                if record["key"] not in records or record["time"] > records[record["key"]]["time"]:
                    records[record["key"]] = {**record, "file": path.name}
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
    return records


def _check_schema(record: dict[str, Any], path: str | Path) -> None:
    if (schema := record.get("schema", 0)) > SCHEMA:
        needed = record.get("versions", {}).get("imbook", f"later than {__version__}")
        raise NewerSchema(
            f"{path} holds a record of schema {schema}, and imbook {__version__} reads up to {SCHEMA}: install imbook "
            f"{needed}, by which it was written"
        )


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def claim(folder: str | Path, key: str) -> Iterator[bool]:
    """Hold the right to make one record; yields False where another worker on this file system holds it.

    The lock is the operating system's and ends with the process, however that ends.
    """
    from filelock import FileLock, Timeout

    path = Path(folder).expanduser() / "locks" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def facts() -> dict[str, dict[str, Any]]:
    """The numbers of the papers that are known, {key: dict(value, mark, source)}; see the book's provenance page."""
    return json.loads((RECORDS / "paper_facts.json").read_text())
