"""The command line: the queue with one and two workers, budgets, interruptions, shards, and what is printed."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import toys

import imbook.__main__ as command
from imbook import data, results
from imbook.experiments import TABLES
from imbook.fast import CaptureError

TABLE = dict(seeds=2, epochs=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """One small table on the embedded digits, no shipped records, and a working folder of its own."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "paper_facts.json").write_text("{}")
    monkeypatch.setattr(results, "RECORDS", shipped)
    table = toys.table(**TABLE)
    monkeypatch.setattr(command, "TABLES", {"quick": table})
    monkeypatch.chdir(tmp_path)
    return table


def records(folder):
    """The records of a folder of single files."""
    return {f.stem: json.loads(f.read_text()) for f in folder.glob("*.json")}


def keys(table, seeds=None):
    return {cell.key(s) for cell, s in table.runs() if seeds is None or s in table.seeds[:seeds]}


def test_run_makes_what_is_missing(quick, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main(["run", "quick", "--out", str(out), "--seeds", "1", "--cell", "Cross"]) == 0
    assert list(records(out)) == [quick.rows[0].key(quick.seeds[0])]
    first = next(out.glob("*.json")).stat().st_mtime_ns
    assert command.main(["run", "quick", "--out", str(out)]) == 0
    assert set(records(out)) == keys(quick)
    assert (out / f"{quick.rows[0].key(quick.seeds[0])}.json").stat().st_mtime_ns == first, "not made again"
    assert not any((out / "checkpoints").iterdir())
    printed = capsys.readouterr().out
    assert "balanced accuracy in per cent" in printed and "quick.png" in printed and (out / "quick.png").exists()
    (again := tmp_path / "again").mkdir()
    (out / "quick.jsonl.gz").rename(again / "quick.jsonl.gz")
    assert set(records.load(again)) == keys(quick), "the archive holds them all"
    assert command.main(["run", "quick", "--out", str(again)]) == 0 and not list(again.glob("*.json"))


def test_workers_share_the_queue(quick, tmp_path, capfd):
    """Two processes of our own: each run once, one progress bar, one table at the end."""
    assert command.main(["run", "quick", "--workers", "2", "--fast", "--out", str(tmp_path / "out")]) == 0
    made = records(tmp_path / "out")
    assert set(made) == keys(quick) and all(r["fast"] == "plain loop on cpu" for r in made.values())
    printed, progress = capfd.readouterr()
    assert printed.count("balanced accuracy in per cent") == 1 and "fast: plain loop on cpu" in printed
    assert "16/16" in progress and "Traceback" not in progress, "four runs of four epochs, each counted once"


def test_workers_of_a_real_table_in_a_dry_run(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "TABLES", TABLES)
    assert command.main(["run", "digits", "--workers", "2", "--dry", "--out", str(tmp_path)]) == 0
    assert set(records(tmp_path)) == {f"dry-{k}" for k in keys(TABLES["digits"])}


def test_workers_keep_to_a_budget_and_a_broken_one_is_told(quick, tmp_path, capsys, monkeypatch):
    run = ["run", "quick", "--workers", "2", "--out", str(tmp_path / "out")]
    assert command.main([*run, "--budget", "0.1s"]) == 0
    assert "the budget is spent: 4 runs are missing" in capsys.readouterr().out
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out/locks").write_text("not a folder")
    assert command.main(run) == 1
    assert "a worker ended with status 1" in capsys.readouterr().out


def test_a_stage_is_parts_of_tables(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "STAGES", {"stage-1": (("quick", 1, ("Weighted",)), ("quick", 2, ("CrossEntropy",)))})
    assert command.main(["stages", "--ms", "30000", "--out", str(tmp_path)]) == 0
    steps = 4 * -(-sum(data.long_tailed_counts(40, 10, 10)) // 64)  # of each of the three runs
    assert re.search(rf"stage-1 +3 +3 +{3 * steps} +{1.5 * steps:.1f}\n", capsys.readouterr().out)
    assert command.main(["run", "stage-1", "--out", str(tmp_path)]) == 0
    made = {(r["method"], r["seeds"]["train"]) for r in records(tmp_path).values()}
    assert made == {("Weighted", 0), ("CrossEntropy", 0), ("CrossEntropy", 1)}
    printed = capsys.readouterr().out
    assert printed.count("balanced accuracy in per cent") == 1, "a table that two parts are of is printed once"


def test_shipped_records_are_not_run_again(quick, tmp_path, monkeypatch):
    command.main(["run", "quick", "--out", "first", "--seeds", "1"])
    (tmp_path / "first/quick.jsonl.gz").rename(records.RECORDS / "quick.jsonl.gz")
    command.main(["run", "all", "--out", "second"])
    assert set(records(tmp_path / "second")) == keys(quick) - keys(quick, 1)


def test_dry_runs_are_made_once_and_counted_nowhere(quick, tmp_path, capsys):
    for _ in range(2):
        assert command.main(["run", "quick", "--dry", "--out", "dry"]) == 0
    made = records(tmp_path / "dry")
    assert set(made) == {f"dry-{k}" for k in keys(quick)} and all(r["dry"] for r in made.values())
    times = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "dry").glob("*.json")}
    command.main(["run", "quick", "--dry", "--out", "dry"])
    assert times == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "dry").glob("*.json")}
    assert not list((tmp_path / "dry").glob("*.gz")) and "per cent" not in capsys.readouterr().out
    command.main(["status", "--out", "dry"])
    assert re.search(r"quick +4 +0 +4 +0 +0", capsys.readouterr().out)


def test_a_spent_budget_stops_cleanly(quick, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        clock = itertools.count()
        patched.setattr(command.time, "monotonic", lambda: next(clock))  # one second a look, seven looks a run
        assert command.main(["run", "quick", "--budget", "12s", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    left = int(re.search(r"the budget is spent: (\d) runs are missing", printed)[1])
    assert left == 4 - len(records(tmp_path / "out")) == 3, "the second run would not have ended in time"
    assert command.main(["run", "quick", "--out", "out"]) == 0
    assert set(records(tmp_path / "out")) == keys(quick) and "missing" not in capsys.readouterr().out


def test_a_budget_stops_within_a_run_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    table = toys.table(seeds=1, methods=("Weighted",), epochs=12)
    monkeypatch.setattr(command, "TABLES", {"quick": table})
    clock = iter(range(100))
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))  # one second a look
    command.main(["run", "quick", "--budget", "13s", "--out", "out"])
    (key,) = keys(table)
    assert (tmp_path / f"out/checkpoints/{key}.pt").exists() and not records(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(command, "TABLES", {"quick": table})
    monkeypatch.setattr(results, "RECORDS", tmp_path / "shipped")
    command.main(["run", "quick", "--out", str(tmp_path / "out")])
    command.main(["run", "quick", "--out", str(tmp_path / "whole")])
    stopped, whole = (records(tmp_path / name)[key] for name in ("out", "whole"))
    assert stopped["confusion"] == whole["confusion"] and toys.same(stopped["curve"], whole["curve"])


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_shards_partition_the_runs(quick, shards, tmp_path):
    parts = [shard_of(quick, k, shards, tmp_path) for k in range(shards)]
    assert sorted(k for p in parts for k in p) == sorted(keys(quick)), "each run in one shard"


def test_a_shard_stays_the_same_as_runs_finish(quick, tmp_path):
    before = [shard_of(quick, k, 2, tmp_path) for k in range(2)]
    command.main(["run", "quick", "--seeds", "1", "--cell", "Cross", "--out", str(tmp_path / "out")])
    done = set(records(tmp_path / "out"))
    after = [shard_of(quick, k, 2, tmp_path) for k in range(2)]
    assert len(done) == 1 and [p - done for p in before] == after


def shard_of(table, k, shards, tmp_path):
    options = type("options", (), dict(out=tmp_path / "out", dry=False, seeds=None, cell=None, shard=(k, shards)))
    return {cell.key(seeds) for _, cell, seeds in command._missing(["quick"], options)}


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "quick", "--workers", "0"],
        ["run", "quick", "--seeds", "-1"],
        ["run", "quick", "--budget", "soon"],
        ["run", "quick", "--budget", "9"],
        ["run", "quick", "--shard", "0/3"],
        ["run", "quick", "--shard", "4/3"],
        ["run", "quick", "--shard", "a/b"],
        ["run", "nothing"],
        ["data", "svnh"],
        [],
    ],
    ids=" ".join,
)
def test_arguments_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


def test_times_and_shards_are_read():
    assert [command._seconds(t) for t in ("90s", "9m", "2h", "1.5m")] == [90, 540, 7200, 90]
    assert command._shard("2/3") == (1, 3)


def test_list_status_and_table_print(quick, capsys):
    command.main(["run", "quick", "--out", "runs", "--seeds", "1"])
    capsys.readouterr()
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "quick: Quick (cpu, 4 runs)" in printed and "  Weighted: mlp, Weighted(), quick" in printed
    assert command.main(["status"]) == 0
    assert re.search(r"quick +4 +2 +2 +0 +0", capsys.readouterr().out)
    assert command.main(["table", "quick"]) == 0
    printed = capsys.readouterr().out
    made = results.frame(quick, "runs").set_index("label")["balanced_accuracy"]
    for label in ("CrossEntropy", "Weighted"):
        assert re.search(rf"{label} +1 +2 +{made[label]:.2f}", printed)


def test_provenance_prints_a_table(capsys):
    assert command.main(["provenance"]) == 0
    assert "| quick | 0 of 4 | pending |" in capsys.readouterr().out


def test_data_names_the_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("IMBOOK_DATA", str(tmp_path))  # where nothing is
    monkeypatch.setattr(data, "download", lambda name: tmp_path / name)
    assert command.main(["data", "mnist", "cifar10"]) == 0
    assert f"mnist: whole in {tmp_path / 'mnist'}" in capsys.readouterr().out


def test_data_does_not_download_again_what_is_whole(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("IMBOOK_DATA", str(tmp_path))
    monkeypatch.setattr(data, "load", lambda name: None)
    monkeypatch.setattr(data, "download", lambda name: pytest.fail("downloaded again"))
    assert command.main(["data", "mnist"]) == 0
    assert f"mnist: whole in {tmp_path / 'MNIST/raw'}" in capsys.readouterr().out


def test_a_diverging_run_is_named_and_does_not_end_the_queue(monkeypatch, capsys, tmp_path):
    real = command.run

    def diverging(cell, seeds, *rest):
        if seeds["train"] == 0 and cell.label == "CrossEntropy":
            raise FloatingPointError("the loss is not finite in epoch 0")
        return real(cell, seeds, *rest)

    monkeypatch.setattr(command, "run", diverging)
    assert command.main(["run", "quick", "--out", str(tmp_path)]) == 1
    assert "failed, no record: quick: CrossEntropy" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.json"))) == 3


# Processes of their own

WORKER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with Ctrl-C ignored
sys.path.insert(0, {tests!r})
import toys, torch
import imbook.__main__ as command
from imbook import results
records.RECORDS = Path({shipped!r})
command.TABLES = {{"quick": toys.table(**{table!r})}}
print("ready", flush=True)
sys.stdin.readline()
sys.exit(command.main(["run", "quick", "--out", {out!r}]))
"""


def workers(tmp_path, number, **table):
    """Processes that begin on one queue at the same moment, after all have loaded."""
    code = WORKER.format(
        tests=os.path.dirname(__file__), shipped=str(tmp_path / "shipped"), table=table, out=str(tmp_path / "out")
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = [subprocess.Popen([sys.executable, "-c", code], text=True, cwd=tmp_path, **pipes) for _ in range(number)]
    assert all(child.stdout.readline() == "ready\n" for child in started)
    for child in started:
        child.stdin.write("go\n")
        child.stdin.flush()
    return started


def test_two_workers_share_a_queue(tmp_path):
    """Each run is made once, and none is lost: the two progress logs name each run's claim once between them."""
    table = dict(seeds=6, epochs=8)
    both = workers(tmp_path, 2, **table)
    finished = [w.communicate(timeout=300) for w in both]
    assert [w.returncode for w in both] == [0, 0], finished
    expected = keys(toys.table(**table))
    made = records(tmp_path / "out")
    assert set(made) == expected and all(len(r["curve"]) == 8 for r in made.values())
    begun = [set(re.findall(r"quick: (\w+, seeds \d+/\d+/\d+)", stderr)) for _, stderr in finished]
    assert all(begun) and len(begun[0] | begun[1]) == 12 and not begun[0] & begun[1], "both worked, on different runs"


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_queue_loses_the_run_in_flight_at_most(tmp_path, how, code):
    table = dict(seeds=6, epochs=20)
    (child,) = workers(tmp_path, 1, **table)
    wait_for(lambda: len(list((tmp_path / "out").glob("*.json"))) >= 2)
    child.send_signal(how)
    printed, _ = child.communicate(timeout=300)
    assert child.returncode == code
    before = records(tmp_path / "out")
    assert 2 <= len(before) < 12, "stopped on the way, whole records only"
    if how == signal.SIGINT:
        assert f"interrupted: {12 - len(before)} runs are missing; the same command goes on from here" in printed
    (child,) = workers(tmp_path, 1, **table)
    child.communicate(timeout=300)
    after = records(tmp_path / "out")
    assert set(after) == keys(toys.table(**table)) and all(after[k] == r for k, r in before.items())


def test_errors_are_one_line(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/0.json").write_text("{")
    code = subprocess.run(
        [sys.executable, "-m", "imbook", "status", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert code.returncode == 1 and code.stderr.startswith("imbook: ") and "0.json" in code.stderr
    assert len(code.stderr.splitlines()) == 1


def test_tables_that_need_a_gpu(quick, monkeypatch, capsys, tmp_path):
    """Named, they are an error before anything has run; in `all` they are left out, and it is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    large = replace(quick, cells=tuple(replace(cell, net="lenet") for cell in quick.rows), device="cuda")
    monkeypatch.setattr(command, "TABLES", {"large": large, "quick": quick})
    worked = []
    monkeypatch.setattr(command, "_work", lambda jobs, *_: worked.append([job[:2] for job in jobs]))
    with pytest.raises(ValueError, match="large need a GPU, none is here: .*--device cpu"):
        command.main(["run", "large", "quick"])
    assert worked == []
    command.main(["run", "large", "--device", "cpu"])
    command.main(["run", "all"])
    assert [set(jobs) for jobs in worked] == [{("large", "cpu")}, {("quick", "cpu")}]
    assert "left out, no GPU is here: large" in capsys.readouterr().out


def test_a_cell_that_is_not_there_and_a_figure_of_nothing(quick, tmp_path):
    with pytest.raises(ValueError, match="no cell of quick has 'nonsense' in its label"):
        command.main(["run", "quick", "--cell", "nonsense", "--out", str(tmp_path)])
    assert command.main(["run", "quick", "--cell", "Cross", "--shard", "9/9"]) == 0, "a shard without a run is no error"
    with pytest.raises(ValueError, match="no records to draw: python -m imbook run quick"):
        command.main(["table", "quick", "--figure", str(tmp_path / "f.png"), "--out", str(tmp_path)])


def test_a_capture_that_broke_off_ends_the_process_and_one_that_was_refused_does_not(
    quick, monkeypatch, tmp_path, capsys
):
    def broken(*_):
        raise CaptureError("x") from RuntimeError("y")

    def refused(*_):
        raise CaptureError("x")

    for run, times in ((broken, 1), (refused, len(command.TABLES["quick"].runs()))):
        monkeypatch.setattr(command, "run", run)
        assert command.main(["run", "quick", "--out", str(tmp_path)]) == 1
        assert capsys.readouterr().out.count("failed, no record") == times
