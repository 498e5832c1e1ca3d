"""The queue: what is missing, shares of it, budgets, failures, and processes that are killed at any moment."""

import itertools
import os
import random
import re
import signal
import time
from dataclasses import replace

import pytest
import torch
import toys
from forked import process as fork

import imbook.__main__ as command
from imbook import records, workers
from imbook.fast import CaptureError
from imbook.methods import METHODS
from imbook.workers import Request, missing, work


@pytest.fixture(autouse=True)
def quick(shipped, declared, monkeypatch, tmp_path):
    """One small table on the embedded digits, no shipped records, and a working folder of its own."""
    table = toys.table(seeds=2, epochs=4)
    declared({"quick": table})
    monkeypatch.chdir(tmp_path)
    return table


def singles(folder):
    """The records of a folder of single files, {name: record}."""
    return {path.stem: records.read(path)[0] for path in folder.glob("*.json")}


def keys(table, seeds=None):
    return {row.key(s) for row, s in table.runs() if seeds is None or s in table.seeds[:seeds]}


# What is missing


def asked(**settings):
    return [request_key for request_key in (job.row.key(job.seeds) for job in missing(Request(("quick",), **settings)))]


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_shards_partition_the_runs(quick, shards):
    parts = [asked(shard=(k, shards)) for k in range(shards)]
    assert sorted(k for p in parts for k in p) == sorted(keys(quick)), "each run in one shard"


def test_a_shard_stays_the_same_as_runs_finish(quick, tmp_path):
    before = [set(asked(shard=(k, 2), out=tmp_path / "out")) for k in range(2)]
    done = toys.record(*quick.runs()[0])
    records.save(done, tmp_path / "out")
    after = [set(asked(shard=(k, 2), out=tmp_path / "out")) for k in range(2)]
    assert [p - {done["key"]} for p in before] == after and sum(map(len, after)) == 3


def test_what_is_asked_for(quick, tmp_path):
    """All of a table in its order; rows by a text of their label, the first sets of seeds, another device."""
    jobs = missing(Request(("quick",)))
    assert [(job.row, job.seeds) for job in jobs] == quick.runs() and {job.device for job in jobs} == {"cpu"}
    assert {job.table for job in jobs} == {"quick"}
    of = lambda **settings: missing(Request(("quick",), **settings))  # noqa: E731
    assert {job.row.label for job in of(labels=("Cross",))} == {"CrossEntropy"}
    assert len(of(labels=("Cross", "Weigh"))) == 4
    assert [job.seeds["train"] for job in of(seeds=1)] == [0, 0] and len(of(seeds=9)) == 4
    assert {job.device for job in of(device="cuda")} == {"cuda"}
    assert str(jobs[0]) == "quick: CrossEntropy, seeds 0/0/0"
    assert missing(Request(("quick", "quick"))) == jobs, "asked for twice it is made once"


def test_what_is_there_is_not_missing_and_dry_runs_are_apart(quick, tmp_path):
    row, seeds = quick.runs()[1]
    records.save(toys.record(row, seeds), tmp_path)
    assert len(missing(Request(("quick",), tmp_path))) == 3
    assert len(missing(Request(("quick",), tmp_path, dry=True))) == 4
    records.save(toys.record(row, seeds, dry=True, key=f"dry-{row.key(seeds)}"), tmp_path)
    assert len(missing(Request(("quick",), tmp_path, dry=True))) == 3
    assert len(missing(Request(("quick",)), have={row.key(seeds): toys.record(row, seeds)})) == 3


def test_a_stale_run_is_missing_and_made_again(quick, tmp_path, monkeypatch, capsys):
    """A single file, an archive, and a record that came with the package."""
    for row, seeds in quick.runs()[:2]:
        records.save(toys.record(row, seeds), tmp_path / "out")
    archived, shipped = (toys.record(*run) for run in quick.runs()[2:])
    records.archive([archived], tmp_path / "out/quick.jsonl.gz")
    records.archive([shipped], records.RECORDS / "quick.jsonl.gz")
    assert missing(Request(("quick",), tmp_path / "out")) == []
    monkeypatch.setattr(METHODS["Weighted"], "version", 2)
    stale = missing(Request(("quick",), tmp_path / "out"))
    assert {job.row.label for job in stale} == {"Weighted"} and len(stale) == 2
    command.main(["table", "quick", "--out", "out"])
    assert re.search(r"stale.*\n.*\nCrossEntropy +2 +2 +0 .*\nWeighted +0 +2 +2 ", capsys.readouterr().out)
    assert command.main(["run", "quick", "--out", "out"]) == 0
    assert "missing" not in capsys.readouterr().out
    have = records.load(tmp_path / "out")
    assert [have[row.key(s)]["method_version"] for row, s in quick.runs()] == [1, 2, 1, 2]
    assert missing(Request(("quick",), tmp_path / "out")) == []


def test_a_part_of_the_queue_is_pieces_of_tables(quick, declared, tmp_path, capsys):
    declared({"quick": quick}, {"part-1": (("quick", (0,), ("Weighted",)), ("quick", (0, 1), ("CrossEntropy",)))})
    assert command.main(["queue", "--ms", "30000", "--out", str(tmp_path)]) == 0
    steps = 4 * -(-sum(toys.data.long_tailed_counts(40, 10, 10)) // 64)  # of each of the three runs
    line = rf"part-1 +3 +3 +{3 * steps} +{1.5 * steps:.1f} +python -m imbook run part-1 --fast --workers 5 --budget 8m"
    assert re.search(line, capsys.readouterr().out)
    assert command.main(["run", "part-1", "--out", str(tmp_path)]) == 0
    made = {(r["method"], r["seeds"]["train"]) for r in singles(tmp_path).values()}
    assert made == {("Weighted", 0), ("CrossEntropy", 0), ("CrossEntropy", 1)}
    printed = capsys.readouterr().out
    assert printed.count("balanced accuracy in per cent") == 1, "a table that two pieces are of is printed once"
    command.main(["queue", "--ms", "30000", "--out", str(tmp_path)])
    assert re.search(r"part-1 +3 +0 +0 +0.0 ", capsys.readouterr().out), "nothing is missing"


# One process


def make_all(request, deadline=float("inf")):
    """What `work` tells while it makes all that is missing."""
    told = []
    work(missing(request), request, lambda: deadline, lambda *what: told.append(what))
    return told


def test_what_work_tells(quick, tmp_path):
    told = make_all(Request(("quick",), tmp_path, seeds=1, fast=True))
    first = [("run", "quick: CrossEntropy, seeds 0/0/0"), *[("epochs", 1)] * 4]
    assert told[:5] == first and told[5][0] == "fast" and told[5][1].startswith("plain loop on cpu")
    assert set(singles(tmp_path)) == keys(quick, 1) and not any((tmp_path / "checkpoints").iterdir())


def test_what_another_worker_holds_is_left_to_it(quick, tmp_path):
    request, (row, seeds) = Request(("quick",), tmp_path), quick.runs()[0]
    with records.claim(tmp_path, row.key(seeds)) as mine:
        assert mine
        assert make_all(request)[0] == ("skipped", 4)
    assert set(singles(tmp_path)) == keys(quick) - {row.key(seeds)}
    jobs, told = missing(request), []
    records.save(toys.record(row, seeds), tmp_path)  # finished by another after we have looked
    work(jobs, request, lambda: float("inf"), lambda *what: told.append(what))
    assert told == [("skipped", 4)]


def test_a_budget_counts_what_a_run_of_the_table_has_taken(quick, tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(clock))  # one second a look, seven looks a run
    told = make_all(Request(("quick",), tmp_path), deadline=11)
    assert told[-1] == ("stopped", "the budget is spent"), "the second run would not have ended in time"
    assert len(singles(tmp_path)) == 1 and [what for what, _ in told].count("run") == 1
    assert not list((tmp_path / "checkpoints").glob("*")), "it was not begun"


def test_a_budget_stops_within_a_run_and_goes_on_from_its_checkpoint(declared, tmp_path, monkeypatch):
    table = toys.table(seeds=1, methods=("Weighted",), epochs=12)
    declared({"quick": table})
    with monkeypatch.context() as patched:
        clock = iter(range(100))
        patched.setattr(workers.time, "monotonic", lambda: next(clock))
        assert make_all(Request(("quick",), tmp_path / "out"), deadline=6)[-1] == ("stopped", "the budget is spent")
    (key,) = keys(table)
    assert (tmp_path / f"out/checkpoints/{key}.pt").exists() and not singles(tmp_path / "out")
    rest = make_all(Request(("quick",), tmp_path / "out"))
    assert 0 < rest.count(("epochs", 1)) < 12 and not (tmp_path / f"out/checkpoints/{key}.pt").exists()
    make_all(Request(("quick",), tmp_path / "whole"))
    stopped, whole = (singles(tmp_path / name)[key] for name in ("out", "whole"))
    assert stopped["confusion"] == whole["confusion"] and toys.same(stopped["curve"], whole["curve"])


@pytest.mark.parametrize("error", [FloatingPointError, torch.OutOfMemoryError, ValueError, FileNotFoundError])
def test_a_run_that_fails_is_named_and_does_not_end_the_queue(monkeypatch, capsys, tmp_path, error):
    real = workers.run

    def failing(row, seeds, *rest):
        if seeds["train"] == 0 and row.label == "CrossEntropy":
            raise error("what went wrong")
        return real(row, seeds, *rest)

    monkeypatch.setattr(workers, "run", failing)
    assert command.main(["run", "quick", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "failed, no record: quick: CrossEntropy, seeds 0/0/0: what went wrong" in printed
    assert "1 run is missing; the same command goes on from here" in printed
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_damaged_files_are_named_and_do_not_end_the_queue(quick, tmp_path, capsys):
    """A record is made again; a checkpoint and an archive are named: nobody else can say what they held."""
    record, checkpoint = (row.key(seeds) for row, seeds in quick.runs()[:2])
    (tmp_path / "out/checkpoints").mkdir(parents=True)
    (tmp_path / f"out/{record}.json").write_text('{"key": ')
    (tmp_path / "out/other.jsonl.gz").write_bytes(b"no archive")
    (tmp_path / f"out/checkpoints/{checkpoint}.pt").write_bytes(b"no checkpoint")
    assert command.main(["run", "quick", "--out", "out"]) == 1
    printed = capsys.readouterr().out
    for name in (f"{record}.json", "other.jsonl.gz", f"{checkpoint}.pt"):
        assert re.search(rf"out/.*{re.escape(name)} is damaged", printed), name
    assert set(singles(tmp_path / "out")) == keys(quick) - {checkpoint}
    (tmp_path / f"out/checkpoints/{checkpoint}.pt").unlink()
    assert command.main(["run", "quick", "--out", "out"]) == 0
    assert set(singles(tmp_path / "out")) == keys(quick)


def test_a_capture_that_broke_off_ends_the_process_and_one_that_was_refused_does_not(
    quick, monkeypatch, tmp_path, capsys
):
    def broken(*_):
        raise CaptureError("x") from RuntimeError("y")

    def refused(*_):
        raise CaptureError("x")

    for run, times in ((broken, 1), (refused, len(quick.runs()))):
        monkeypatch.setattr(workers, "run", run)
        assert command.main(["run", "quick", "--out", str(tmp_path)]) == 1
        assert capsys.readouterr().out.count("failed, no record") == times


def test_tables_that_need_a_gpu(quick, declared, monkeypatch, capsys):
    """Named, they are an error before anything has run; in `all` they are left out, and it is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    large = replace(quick, rows=tuple(replace(row, net="lenet") for row in quick.rows), device="cuda")
    declared({"large": large, "quick": quick})
    worked = []
    monkeypatch.setattr(workers, "work", lambda jobs, *_: worked.append({(job.table, job.device) for job in jobs}))
    with pytest.raises(ValueError, match="large need a GPU, none is here: .*--device cpu"):
        command.main(["run", "large", "quick"])
    assert worked == []
    command.main(["run", "large", "--device", "cpu"])
    command.main(["run", "all"])
    assert worked == [{("large", "cpu")}, {("quick", "cpu")}]
    assert "left out, no GPU is here: large" in capsys.readouterr().out


def test_the_service_of_a_gpu_is_found_where_its_pipe_is(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not workers.multi_process_service()
    (tmp_path / "control").touch()
    assert workers.multi_process_service()


# Several processes

def start(tmp_path, *arguments, pids=None, **settings):
    """`python -m imbook ARGUMENTS` in a process of its own."""
    log = tmp_path / f"log-{time.monotonic_ns()}"
    process = fork(toys.run_queue, (list(arguments), tmp_path / "shipped", settings, log, pids))
    process.start()
    process.printed = lambda: log.read_text()
    return process


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def alive(pid):
    """Whether a process is there, and not only its entry, which its parent has not read yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_workers_share_the_queue(tmp_path):
    """Each run is made once, by one of them; one progress bar counts all epochs; one table is printed at the end."""
    (pids := tmp_path / "pids").mkdir()
    parent = start(tmp_path, "run", "quick", "--workers", "2", "--fast", "--out", "out", pids=pids, seeds=6, epochs=8)
    parent.join(300)
    printed = parent.printed()
    assert parent.exitcode == 0 and len(list(pids.iterdir())) == 2, printed
    made = singles(tmp_path / "out")
    assert set(made) == keys(toys.table(seeds=6)) or len(made) == 12
    assert all(len(r["curve"]) == 8 and r["fast"].startswith("plain loop on cpu") for r in made.values())
    assert printed.count("balanced accuracy in per cent") == 1 and printed.count("fast: plain loop on cpu") == 1
    assert "96/96" in printed and "Traceback" not in printed, "twelve runs of eight epochs, each counted once"


def test_two_commands_share_a_queue(tmp_path):
    """Two shells on one folder: each run is made once and none is lost."""
    both = [start(tmp_path, "run", "quick", "--out", "out", seeds=6, epochs=8) for _ in range(2)]
    for parent in both:
        parent.join(300)
    assert [parent.exitcode for parent in both] == [0, 0]
    assert set(singles(tmp_path / "out")) == keys(toys.table(seeds=6, epochs=8))
    begun = [set(re.findall(r"quick: (\w+, seeds \d+/\d+/\d+)", parent.printed())) for parent in both]
    assert all(begun) and len(begun[0] | begun[1]) == 12 and not begun[0] & begun[1], "both worked, on different runs"


def test_workers_keep_to_a_budget_and_a_broken_one_is_told(tmp_path):
    run = ["run", "quick", "--workers", "2", "--out", "out"]
    spent = start(tmp_path, *run, "--budget", "0.01s")
    spent.join(300)
    assert spent.exitcode == 0 and "the budget is spent: 4 runs are missing" in spent.printed()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out/locks").write_text("not a folder")
    broken = start(tmp_path, *run)
    broken.join(300)
    assert broken.exitcode == 1 and "a worker ended with status 1" in broken.printed()
    assert "not all could be made: 4 runs are missing" in broken.printed()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_stops_after_the_epoch_and_the_same_command_goes_on(tmp_path, workers):
    table = dict(seeds=6, epochs=20)
    run = ["run", "quick", "--out", "out", "--workers", workers]
    parent = start(tmp_path, *run, **table)
    wait_for(lambda: len(list((tmp_path / "out").glob("*.json"))) >= 2)
    os.kill(parent.pid, signal.SIGINT)
    parent.join(300)
    before = singles(tmp_path / "out")
    assert parent.exitcode == 130 and 2 <= len(before) < 12
    assert f"interrupted: {12 - len(before)} runs are missing; the same command goes on from here" in parent.printed()
    parent = start(tmp_path, *run, **table)
    parent.join(300)
    after = singles(tmp_path / "out")
    assert parent.exitcode == 0 and set(after) == keys(toys.table(**table))
    assert all(after[k] == r for k, r in before.items())


def test_kills_at_any_moment_lose_no_finished_record(tmp_path):
    """Workers, the one who started them, and `collect --every` beside them: each is killed some times, anywhere."""
    table, out, rng = dict(seeds=25, epochs=10), tmp_path / "out", random.Random(0)
    run, archive, seen = ["run", "quick", "--out", "out", "--workers", "2"], out / "records.jsonl.gz", {}

    def check():
        now = singles(out)
        assert all(now[k] == record for k, record in seen.items()), "what was finished stays as it was"
        seen.update(now)
        if archive.exists():
            assert {r["key"] for r in records.read(archive)} <= now.keys()

    for turn in range(5):
        (pids := tmp_path / f"pids-{turn}").mkdir()
        parent = start(tmp_path, *run, pids=pids, **table)
        collector = start(tmp_path, "collect", "--out", "out", "--every", "0.01s")
        wait_for(lambda pids=pids: len(list(pids.iterdir())) == 2)
        pair = [int(path.name) for path in pids.iterdir()]
        time.sleep(rng.uniform(0, 0.3))
        if turn % 2:
            os.kill(rng.choice(pair), signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.2))
        os.kill(parent.pid, signal.SIGKILL)
        time.sleep(rng.uniform(0, 0.1))
        collector.kill(), collector.join(), parent.join()
        wait_for(lambda pair=pair: not any(map(alive, pair)))  # no orphan goes on
        check()
    assert len(seen) < 50, "every turn was cut short"
    (pids := tmp_path / "pids").mkdir()
    parent = start(tmp_path, *run, pids=pids, **table)
    wait_for(lambda: len(list(pids.iterdir())) == 2)
    os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)
    parent.join(300)
    assert parent.exitcode == 1 and "a worker ended by signal 9" in parent.printed(), "told, and not waited for"
    check()
    parent = start(tmp_path, *run, **table)
    parent.join(300)
    check()
    assert parent.exitcode == 0 and set(seen) == keys(toys.table(**table))
    assert command.main(["collect", "--out", str(out)]) == 0
    assert {r["key"] for r in records.read(archive)} == set(seen)
    one = toys.table(**table).runs()[-1]
    whole = workers.run(*one)
    found = seen[one[0].key(one[1])]
    assert found["confusion"] == whole["confusion"] and toys.same(found["curve"], whole["curve"])
