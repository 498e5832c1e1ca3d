"""Sweeps over machines: the runs of a queue as tasks of Ray or as jobs of SLURM. Both are optional, extra packages.

One run is one task, whose record the driver, the process of the command, saves as well. A task that dies with its
machine is started again and goes on from its checkpoint where it finds it; a run that fails is told, and left missing.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from imbook import records
from imbook.workers import Job, Request, work

ENGINES = ("local", "ray", "slurm")
#: Of one task: the task, what it gave back, and why there is nothing (None where all is well).
Outcome = tuple[Any, Any, str | None]


def ray(tasks: Sequence[Any], do: Callable[[Any], Any], retries: int = 3, **options: Any) -> Iterator[Outcome]:
    """do(task) of each task as a task of Ray; yields (task, what it returned, None or the error), as they end.

    The cluster is that of RAY_ADDRESS, or one of this machine's processors. retries: how often a task is started again
    after its process or machine has died; an error that it raises is its outcome. options: of ray.remote, such as
    num_gpus=1. ValueError where the package ray is missing.
    """
    engine = _package("ray", "ray")
    if not engine.is_initialized():
        engine.init(log_to_driver=False)
    remote = engine.remote(max_retries=retries, **options)(lambda task: do(task))  # it takes nothing but a function
    waiting = {remote.remote(task): task for task in tasks}
    try:
        while waiting:
            for reference in engine.wait(list(waiting))[0]:
                task = waiting.pop(reference)
                try:
                    found, why = engine.get(reference), None
                except engine.exceptions.RayError as error:
                    found, why = None, _last_line(error)
                yield task, found, why
    finally:
        for reference in waiting:  # the caller has stopped
            engine.cancel(reference, force=True)


def slurm(
    tasks: Sequence[Any], do: Callable[[Any], Any], folder: str | os.PathLike, jobs: int = 1, retries: int = 3,
    cluster: str = "slurm", poll: float = 10.0, **options: Any,
) -> Iterator[Outcome]:  # fmt: skip
    """do(task) of all tasks by `jobs` jobs of SLURM, each with its share of them; yields as `ray` does.

    folder: for submitit's files, on a disk that all machines see. retries: how often what died with its job is
    submitted again. cluster: 'slurm', or 'local' for processes of this machine. poll: seconds between two looks.
    options: of submitit, such as timeout_min=240, gpus_per_node=1, slurm_partition='gpu'. ValueError where the package
    submitit is missing, and where there is no SLURM.
    """
    engine = _package("submitit", "slurm")
    try:
        executor = engine.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name="imbook", **options)
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise ValueError(f"SLURM by submitit: {error}") from error
    left, why = list(tasks), ""
    for _ in range(retries + 1):
        parts = [left[k::jobs] for k in range(min(jobs, len(left)))]
        running = dict(zip(executor.map_array(partial(each, do), parts), parts))
        left = []
        while running:
            ended = [job for job in running if job.done()]
            for job in ended:
                part = running.pop(job)
                if failed := job.exception():  # of the job: it was killed, or its machine died
                    left, why = [*left, *part], _last_line(failed)
                else:
                    yield from job.result()
            if running and not ended:
                time.sleep(poll)
        if not left:
            return
    yield from ((task, None, why) for task in left)


def each(do: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Outcome]:
    """do(task) of each task, one after the other, with the error of each that raises one."""
    found: list[Outcome] = []
    for task in tasks:
        try:
            found.append((task, do(task), None))
        except Exception as error:
            found.append((task, None, _last_line(error)))
    return found


def make_one(request: Request, until: float, job: Job) -> tuple[list[tuple[str, Any]], dict[str, Any] | None]:
    """What a task does: makes one run, unless its record is there. The news of it, and the record, None where there is
    none.

    until: when to stop, in seconds as time.time() has them: machines share no other clock.
    """
    news: list[tuple[str, Any]] = []
    work([job], request, lambda: time.monotonic() + until - time.time(), lambda *told: news.append(told))
    path = request.out / f"{request.key(job.row, job.seeds)}.json"
    return news, records.read(path)[0] if path.exists() else None


def sweep(
    engine: str, jobs: Sequence[Job], request: Request, deadline: float, tell: Callable[[str, Any], Any],
    workers: int = 1, options: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Make what is missing by 'ray' or 'slurm'; the arguments are those of `imbook.workers.share`.

    workers: the jobs of SLURM. options: of `ray` or `slurm`. Runs for a GPU get one each. The deadline is heard by the
    tasks; Ctrl-C ends Ray's, while those of SLURM go on, and the same command later finds their records.
    """
    request = replace(request, out=request.out.resolve())  # a task has a working folder of its own
    do = partial(make_one, request, time.time() + deadline - time.monotonic())
    given: dict[str, Any] = dict(options or {})
    on_gpu = any(job.device == "cuda" for job in jobs)
    if engine == "ray":
        outcomes = ray(jobs, do, **{"num_gpus": 1 if on_gpu else 0, **given})
    else:
        folder = request.out / "slurm"
        given = {"gpus_per_node": 1 if on_gpu else 0, "timeout_min": 24 * 60, **given}
        outcomes = slurm(jobs, do, folder, workers, **given)
    try:
        for job, found, error in outcomes:
            news, record = ([], None) if found is None else found
            if record is not None and not (request.out / f"{record['key']}.json").exists():
                records.save(record, request.out)  # made on a machine with a disk of its own
            for told in news:
                tell(*told)
            if error is not None:
                tell("failed", f"{job}: {error}")
    except KeyboardInterrupt:
        tell("stopped", "interrupted")


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"--engine {extra} needs the package {name}: pip install {name}") from error


def _last_line(error: BaseException) -> str:
    """An error in one line: those of engines carry the whole trace of the other process."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
