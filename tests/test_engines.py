"""Sweeps: the file-lock queue, Ray and SLURM's library under failures: no record is lost, none is made twice."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
import toys
from forked import process as fork

import imbook.__main__ as command
from imbook import engines, records, workers
from imbook.workers import Request, missing


def simulated(folder, share, task):
    """A run that takes no time: its record, and a line in the log of what was finished; now and then its process dies
    before the record is written, in the middle of writing it, or it fails.

    share: of the first tries of a task that die, and as many that fail. A second try goes well.
    """
    folder, key = Path(folder), f"{task:016d}"
    tries = folder / "tries" / key
    first = not tries.exists()
    tries.parent.mkdir(parents=True, exist_ok=True), tries.touch()
    fate = random.Random(task).random() / share if first else 9
    if fate < 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    if fate < 1:
        (folder / f"{key}.json.{os.getpid()}.part").write_text('{"checksum": "half of a rec')
        os.kill(os.getpid(), signal.SIGKILL)
    if fate < 2:
        raise ValueError(f"task {task} does not go well")
    record = dict.fromkeys(records.NEEDED, 0) | dict(key=key, time="2026-01-02T03:04:05+00:00", task=task)
    records.save(record, folder)
    with open(folder / "finished.log", "a") as log:
        log.write(f"{key}\n")
    return record


def check(folder, many):
    """Each of the records once, whole, and finished once."""
    assert sorted(path.name for path in folder.glob("*.json")) == [f"{k:016d}.json" for k in range(many)]
    damaged = []
    have = records.latest(records.files(folder), damaged)
    assert not damaged and sorted(r["task"] for r in have.values()) == list(range(many))
    finished = (folder / "finished.log").read_text().split()
    assert len(finished) == len(set(finished)) == many


def local(folder, share, many):
    """A worker of the queue: what is missing, each run by the one that claims it. A failed run is left for another."""
    for task in random.sample(range(many), many):
        with records.claim(folder, f"{task:016d}") as mine:
            if mine and not (folder / f"{task:016d}.json").exists():
                try:
                    simulated(folder, share, task)
                except ValueError:
                    pass


def test_the_queue_of_one_machine(tmp_path):
    """1,000 tasks by four workers, 2 % of which kill their worker and 2 % fail: a worker that died is started again,
    as the same command would.
    """
    many, deaths = 1000, 0
    running = []
    while len(list(tmp_path.glob("*.json"))) < many:
        running = [p for p in running if p.is_alive()]
        while len(running) < 4:
            running.append(fork(local, (tmp_path, 0.02, many)))
            running[-1].start()
            deaths += 1
        time.sleep(0.02)
    for each in running:
        each.join()
    assert deaths > 10, "many died"
    check(tmp_path, many)


def made(row, seeds, device, checkpoint=None, tick=None, *_):
    return toys.record(row, seeds, time="2026-01-02T03:04:05+00:00")


class Engine:
    """An engine in this process, whose tasks are given and give back what other machines could be sent."""

    def __init__(self, drop=()):
        self.drop, self.given = drop, []

    def __call__(self, tasks, do, *places, **options):
        self.given.append((places, options))
        for k, task in enumerate(tasks):
            if k in self.drop:
                yield task, None, "the machine is gone"
            else:
                yield task, do(task), None


@pytest.fixture
def quick(shipped, declared, monkeypatch, tmp_path):
    table = toys.table(seeds=2, epochs=4)
    declared({"quick": table})
    monkeypatch.setattr(workers, "run", made)
    monkeypatch.chdir(tmp_path)
    return table


@pytest.mark.parametrize("name, options", [("ray", ["--set", "num_cpus=2"]), ("slurm", ["--workers", "3"])])
def test_the_command_gives_an_engine_what_is_missing(quick, name, options, monkeypatch, capsys):
    engine = Engine(drop=(1,))
    monkeypatch.setattr(engines, name, engine)
    assert command.main(["run", "quick", "--out", "out", "--engine", name, *options]) == 1
    printed = capsys.readouterr().out
    assert "failed, no record: quick: Weighted, seeds 0/0/0: the machine is gone" in printed
    assert "1 run is missing; the same command goes on from here" in printed
    assert len(list(Path("out").glob("*.json"))) == 3
    ((places, given),) = engine.given
    if name == "ray":
        assert places == () and given == dict(num_gpus=0, num_cpus=2)
    else:
        assert places == (Path("out/slurm").resolve(), 3) and given == dict(gpus_per_node=0, timeout_min=1440)
    engine.drop = ()
    assert command.main(["run", "quick", "--out", "out", "--engine", name]) == 0
    assert len(list(Path("out").glob("*.json"))) == 4 and missing(Request(("quick",), Path("out"))) == []


def test_a_record_made_on_another_disk_is_saved(quick, monkeypatch, tmp_path):
    def elsewhere(tasks, do, *places, **options):
        for task in tasks:
            found = do(task)
            (tmp_path / "out" / f"{found[1]['key']}.json").unlink()
            yield task, found, None

    monkeypatch.setattr(engines, "ray", elsewhere)
    jobs, news = missing(Request(("quick",), Path("out"))), []
    engines.sweep("ray", jobs, Request(("quick",), Path("out")), float("inf"), lambda *told: news.append(told))
    assert missing(Request(("quick",), tmp_path / "out")) == []
    assert [what for what, _ in news].count("run") == 4


def test_the_deadline_and_a_stop_are_heard(quick, monkeypatch):
    request = Request(("quick",), Path("out"))
    monkeypatch.setattr(engines, "slurm", Engine())
    news = []
    tell = lambda *told: news.append(told)  # noqa: E731
    engines.sweep("slurm", missing(request), request, time.monotonic() - 1, tell)
    assert set(news) == {("stopped", "the budget is spent")} and len(missing(request)) == 4

    def interrupted(tasks, do, *places, **options):
        yield tasks[0], do(tasks[0]), None
        raise KeyboardInterrupt

    monkeypatch.setattr(engines, "ray", interrupted)
    engines.sweep("ray", missing(request), request, float("inf"), tell)
    assert news[-1] == ("stopped", "interrupted") and len(missing(request)) == 3


def test_what_cannot_be_is_refused(quick, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    for name, package in (("ray", "ray"), ("slurm", "submitit")):
        with pytest.raises(ValueError, match=f"--engine {name} needs the package {package}: pip install {package}"):
            command.main(["run", "quick", "--out", "out", "--engine", name])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for wrong in (["--engine", "ray"], ["--workers", "2"], ["--fast"]):
        with pytest.raises(ValueError, match="under torchrun the ranks share each run"):
            command.main(["run", "quick", *wrong])
    with pytest.raises(SystemExit):
        command.main(["run", "quick", "--set", "num_cpus"])


# The engines themselves: minutes


def rounds(outcomes_of, folder, many):
    """Ask for what is missing until nothing is, as the same command does; the number of times it took."""
    for count in itertools.count(1):
        left = [k for k in range(many) if not (folder / f"{k:016d}.json").exists()]
        if not left:
            return count
        assert count < 5
        seen = [(task, error) for task, _, error in outcomes_of(left)]
        assert sorted(task for task, _ in seen) == left, "one outcome of each"
        assert all(error is None or "does not go well" in error for _, error in seen)


@pytest.mark.long
def test_ray_with_workers_that_are_killed(tmp_path, monkeypatch):
    """1,000 tasks on a cluster of two workers; 10 of them kill theirs in the middle, and as many fail."""
    ray = pytest.importorskip("ray")
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, str(Path(here).parent)]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        do = Task(tmp_path, 0.01)
        assert rounds(lambda left: engines.ray(left, do), tmp_path, 1000) == 3, "what failed is tried once more"
        check(tmp_path, 1000)
    finally:
        ray.shutdown()


@pytest.mark.long
def test_jobs_of_submitit_that_are_killed(tmp_path, monkeypatch):
    """1,000 tasks by two jobs at a time of submitit's local executor; a job that died is submitted again."""
    pytest.importorskip("submitit")
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, str(Path(here).parent)]))
    do = Task(tmp_path, 0.002)
    jobs = lambda left: engines.slurm(left, do, tmp_path / "jobs", 2, 6, "local", 0.2)  # noqa: E731
    assert rounds(jobs, tmp_path, 1000) <= 3
    check(tmp_path, 1000)
    with pytest.raises(ValueError, match="SLURM by submitit: "):
        next(engines.slurm([1], do, tmp_path / "jobs"))


class Task:
    """`simulated` in a folder; as a real run, one whose record is there is not made again."""

    def __init__(self, folder, share):
        self.folder, self.share = folder, share

    def __call__(self, task):
        with records.claim(self.folder, f"{task:016d}") as mine:
            assert mine, "no two at once"
            if not (self.folder / f"{task:016d}.json").exists():
                return simulated(self.folder, self.share, task)
