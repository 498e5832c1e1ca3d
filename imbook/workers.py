"""The queue: which runs are missing, and making them by one process or by several.

What a worker runs is in a module of its own: a spawned process cannot find what lives in `__main__`.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from imbook import distributed, records
from imbook.experiments import run
from imbook.fast import CaptureError
from imbook.methods import METHODS
from imbook.rows import Row
from imbook.tables import QUEUE, TABLES, check_name

#: With these a run ends and the queue goes on: it diverges, needs too much, or a file of its own is damaged or absent.
FAILURES = (FloatingPointError, CaptureError, torch.OutOfMemoryError, ValueError, FileNotFoundError)


class BudgetSpent(Exception):
    """The time given by --budget is over; not a TimeoutError, which a file system may raise too."""


@dataclass(frozen=True)
class Request:
    """What is asked of the queue.

    names: tables and parts of the queue. out: folder of new records. labels: only rows whose label holds one of these
    texts. seeds: only the first k sets of seeds. shard: (i, n), every n-th run from the i-th. dry: two short epochs.
    device: None for each table's own. fast, precision: see `imbook.experiments.run`. ValueError for an unknown name and
    for labels that no row has.
    """

    names: tuple[str, ...]
    out: Path = Path("runs")
    labels: tuple[str, ...] = ()
    seeds: int | None = None
    shard: tuple[int, int] = (0, 1)
    dry: bool = False
    device: str | None = None
    fast: bool = False
    precision: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out).expanduser())
        for name in self.names:
            check_name(name, (*TABLES, *QUEUE))
        there = [row.label for name in self.tables() for row in TABLES[name].rows]
        if self.labels and not any(text in label for text in self.labels for label in there):
            raise ValueError(
                f"no row of {', '.join(self.names)} has {' or '.join(map(repr, self.labels))} in its label"
            )

    def tables(self) -> list[str]:
        """The names of the tables, each once."""
        return list(dict.fromkeys(table for name in self.names for table, _, _ in parts(name)))

    def key(self, row: Row, seeds: dict[str, int]) -> str:
        """The key of the record to be made: a dry run has one of its own."""
        return ("dry-" if self.dry else "") + row.key(seeds)


@dataclass(frozen=True)
class Job:
    """One run to be made."""

    table: str
    device: str
    row: Row
    seeds: dict[str, int]

    def __str__(self) -> str:
        return f"{self.table}: {self.row.label}, seeds {'/'.join(map(str, self.seeds.values()))}"


def parts(name: str) -> tuple[tuple[str, tuple[int, ...] | None, tuple[str, ...]], ...]:
    """A part of the queue is pieces of tables, (table, which of its seeds, labels); a table is one, whole."""
    return QUEUE.get(name, ((name, None, ()),))


def missing(request: Request, have: dict[str, dict[str, Any]] | None = None) -> list[Job]:
    """The runs of a request that have no record, or one of an older version of their method: a list of `Job`.

    have: {key: record}, default those of the package and of the request's folder, without damaged files.
    """
    have = records.load(request.out, damaged=[]) if have is None else have
    seen, wanted = set(), []
    for name, sets, labels in (part for asked in request.names for part in parts(asked)):
        table = TABLES[name]
        for row, seeds in table.runs():
            key = request.key(row, seeds)
            asked = (
                (sets is None or table.seeds.index(seeds) in sets)
                and seeds in table.seeds[: request.seeds]
                and (not labels or row.label in labels)
                and (not request.labels or any(text in row.label for text in request.labels))
            )
            if asked and key not in seen:
                seen.add(key)
                wanted.append((key, Job(name, request.device or table.device, row, seeds)))
    i, n = request.shard  # of what is asked, not of what is missing: a shard keeps its runs as others finish
    return [job for key, job in wanted[i::n] if not _current(have.get(key), job.row)]


def work(jobs: Sequence[Job], request: Request, deadline: Callable[[], float], tell: Callable[[str, Any], Any]) -> None:
    """Make what is missing, one run after the other. tell(what, value): progress and news; deadline(): a time.

    Within `imbook.distributed.start` all ranks make each run together; the first decides, and saves the record.
    """
    longest, first = {}, distributed.rank() == 0

    def tick(epoch: int, entry: dict[str, Any] | None) -> None:
        tell("epochs", 1)
        if time.monotonic() > deadline():
            raise BudgetSpent

    def late(job: Job) -> bool:
        return time.monotonic() + longest.get(job.table, 0) > deadline()

    try:
        for job in jobs:
            if job.device == "cpu":
                torch.set_num_threads(1)
            key = request.key(job.row, job.seeds)
            if distributed.from_first(partial(late, job)):
                raise BudgetSpent
            path = request.out / f"{key}.json"
            with records.claim(request.out, key) if first else contextlib.nullcontext(False) as mine:
                if distributed.from_first(partial(_taken, mine, path, job.row)):
                    tell("skipped", length(job, request))
                    continue
                tell("run", str(job))
                began, checkpoint = time.monotonic(), request.out / "checkpoints" / f"{key}.pt"
                kept = None if request.dry else checkpoint
                try:
                    record = run(
                        job.row, job.seeds, job.device, kept, tick, request.dry, request.fast, request.precision
                    )
                except FAILURES as error:
                    if distributed.size() > 1 and not isinstance(error, FloatingPointError):
                        raise  # it may be of this rank alone, and the others would wait for it
                    tell("failed", f"{job}: {error}")
                    if isinstance(error, CaptureError) and error.__cause__ is not None:
                        tell("stopped", "a capture broke off and may have spoiled this process")
                        return
                    continue  # one such run must not end the queue
                if first:
                    records.save(record | distributed.described(), request.out)
                    checkpoint.unlink(missing_ok=True)
                if request.fast:
                    tell("fast", record["fast"])
                longest[job.table] = max(longest.get(job.table, 0), time.monotonic() - began)
    except BudgetSpent:
        tell("stopped", "the budget is spent")
    except KeyboardInterrupt:
        tell("stopped", "interrupted")


def share(
    jobs: Sequence[Job], request: Request, deadline: float, tell: Callable[[str, Any], Any], workers: int
) -> None:
    """The same by several processes: each run is made by the one that claims it.

    On a GPU with `fast` the first starts alone, and the others once it has trained an epoch: it compiles what the
    others then find in torch's cache. A process that is killed takes nothing of the others with it: each has a pipe of
    its own, and no lock is shared. Where this process is killed they stop after their epoch.
    """
    context = multiprocessing.get_context("spawn")  # a CUDA device does not outlive a fork
    until = context.Value("d", deadline, lock=False)
    running = {}  # {pipe: process}

    def start(number: int) -> None:
        for _ in range(number):
            pipe, its_end = context.Pipe(duplex=False)
            process = context.Process(target=worker, args=(jobs, request, until, its_end))
            process.start()
            its_end.close()
            running[pipe] = process

    alone = request.fast and any(job.device == "cuda" for job in jobs)
    start(1 if alone else workers)
    waiting = workers - len(running)
    while running:
        try:
            for pipe in wait(list(running)):
                what, value = _heard(pipe, running)
                if what == "stopped" and not until.value:
                    continue  # as we told it to
                if what is not None:
                    tell(what, value)
                elif value:
                    tell("failed", f"a worker ended {value}")
                if waiting and until.value and (what == "epochs" or what is None and value):
                    start(waiting)
                    waiting = 0
        except KeyboardInterrupt:
            until.value = 0  # each stops after its epoch
            tell("stopped", "interrupted")


def _heard(pipe: Any, running: dict[Any, Any]) -> tuple[str | None, Any]:
    """What a worker tells; of one that has ended (None, how), where how is empty if all is well."""
    try:
        return pipe.recv()
    except (EOFError, OSError):  # ended, perhaps in the middle of a word
        process = running.pop(pipe)
        process.join()
    code = process.exitcode
    return None, f"by signal {-code}" if code < 0 else f"with status {code}; its error stands above" if code else ""


def worker(jobs: Sequence[Job], request: Request, until: Any, pipe: Any) -> None:
    """What a process of `share` runs: until, the shared deadline; pipe, to the one who started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started us moves the deadline
    starter: Any = multiprocessing.parent_process()

    def tell(*what: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more: the deadline is over
            pipe.send(what)

    work(jobs, request, lambda: until.value if starter.is_alive() else 0, tell)


def length(job: Job, request: Request) -> int:
    """The epochs of a run."""
    return 2 if request.dry else job.row.protocol.epochs


def multi_process_service() -> bool:
    """Whether the GPU's multi-process service is on: several processes then compute at the same time."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def _current(record: dict[str, Any] | None, row: Row) -> bool:
    return record is not None and record["method_version"] == METHODS[row.method].version


def _taken(mine: bool, path: Path, row: Row) -> bool:
    return not mine or _made(path, row)


def _made(path: Path, row: Row) -> bool:
    """Whether another worker has finished this run in the meantime; a damaged file is made again."""
    try:
        return path.exists() and all(_current(record, row) for record in records.read(path))
    except records.NewerSchema:
        raise  # it must not be overwritten
    except ValueError:
        return False
