"""The command line: what it prints and refuses, and every documented command as documented."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import toys
from PIL import Image

import imbook
import imbook.__main__ as command
from imbook import data, records, results, tables

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def quick(shipped, declared, monkeypatch, tmp_path):
    """One small table on the embedded digits, no shipped records, and a working folder of its own."""
    table = toys.table(seeds=2, epochs=4)
    declared({"quick": table})
    monkeypatch.chdir(tmp_path)
    return table


@pytest.fixture
def done(quick):
    """Records of all runs of the table in the folder `runs`."""
    for row, seeds in quick.runs():
        records.save(toys.record(row, seeds, 0.5 + 0.1 * (row.label == "Weighted"), n=[40, 20, 10], confusion=[
            [[40, 10, 0], [25, 25, 0], [9, 0, 1]]
        ]), "runs")  # fmt: skip
    return quick


def singles(folder):
    return {path.stem: records.read(path)[0] for path in Path(folder).glob("*.json")}


def keys(table, seeds=None):
    return {row.key(s) for row, s in table.runs() if seeds is None or s in table.seeds[:seeds]}


# Runs


def test_run_makes_what_is_missing(quick, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main(["run", "quick", "--out", str(out), "--seeds", "1", "--row", "Cross"]) == 0
    assert list(singles(out)) == [quick.rows[0].key(quick.seeds[0])]
    first = next(out.glob("*.json")).stat().st_mtime_ns
    assert command.main(["run", "quick", "--out", str(out)]) == 0
    assert set(singles(out)) == keys(quick)
    assert (out / f"{quick.rows[0].key(quick.seeds[0])}.json").stat().st_mtime_ns == first, "not made again"
    assert not any((out / "checkpoints").iterdir())
    printed = capsys.readouterr().out
    assert quick.caption() in printed and "quick.png" in printed and (out / "quick.png").exists()
    (again := tmp_path / "again").mkdir()
    (out / "quick.jsonl.gz").rename(again / "quick.jsonl.gz")
    assert set(records.load(again)) == keys(quick), "the archive holds them all"
    assert command.main(["run", "quick", "--out", str(again)]) == 0 and not list(again.glob("*.json"))


def test_shipped_records_are_not_run_again(quick, tmp_path):
    command.main(["run", "quick", "--out", "first", "--seeds", "1"])
    (tmp_path / "first/quick.jsonl.gz").rename(records.RECORDS / "quick.jsonl.gz")
    command.main(["run", "all", "--out", "second"])
    assert set(singles("second")) == keys(quick) - keys(quick, 1)


def test_dry_runs_are_made_once_and_counted_nowhere(quick, tmp_path, capsys):
    for _ in range(2):
        assert command.main(["run", "quick", "--dry", "--out", "dry"]) == 0
    made = singles("dry")
    assert set(made) == {f"dry-{k}" for k in keys(quick)} and all(r["dry"] for r in made.values())
    times = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "dry").glob("*.json")}
    command.main(["run", "quick", "--dry", "--out", "dry"])
    assert times == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "dry").glob("*.json")}
    printed = capsys.readouterr().out
    assert not list((tmp_path / "dry").glob("*.gz")) and "per cent" not in printed and "missing" not in printed
    command.main(["status", "--out", "dry"])
    assert re.search(r"quick +4 +0 +4 +0", capsys.readouterr().out)


@pytest.mark.parametrize(
    "first",
    [
        "run quick --out new/out",
        "run quick --out new/out --dry",
        "table quick --figure new/folder/f.png",
        "collect --out new/out",
        "collect --to new/folder/all.jsonl.gz",
        "status --out new/out",
        "queue --out new/out",
    ],
)
def test_a_first_write_makes_its_folder(done, first, monkeypatch):
    """Also where nothing is to be run, and all that is written is an archive and a figure."""
    if first.startswith("run"):
        for path in Path("runs").glob("*.json"):
            records.archive(records.read(path), records.RECORDS / f"{path.stem}.jsonl.gz")
    assert command.main(first.split()) == 0
    written = re.search(r"new/folder/\S+", first)
    assert written is None or Path(written[0]).stat().st_size > 0


def test_paths_of_a_reader_are_expanded(done, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    command.main(["table", "quick", "--out", "~/runs", "--figure", "~/f/f.png"])
    command.main(["collect", "--out", "~/runs", "--to", "~/c/all.jsonl.gz"])
    assert (tmp_path / "f/f.png").exists() and len(records.read(tmp_path / "c/all.jsonl.gz")) == 4
    assert not Path("~").exists()


# What is collected


def test_collect_holds_everything_of_a_folder_and_what_it_held_before(done, tmp_path, capsys):
    archive = Path("runs/records.jsonl.gz")
    other = toys.table(lr=0.3)
    records.archive([toys.record(*run) for run in other.runs()], "runs/other.jsonl.gz")
    assert command.main(["collect"]) == 0
    assert {r["key"] for r in records.read(archive)} == keys(done) | keys(other)
    assert capsys.readouterr().out == f"8 records: {archive}\n"
    for path in Path("runs").glob("*.json"):
        path.unlink()
    (tmp_path / "runs/other.jsonl.gz").unlink()
    third = toys.record(*toys.table(lr=0.4).runs()[0])
    records.save(third, "runs")
    Path("runs/damaged.json").write_text("{")
    assert command.main(["collect"]) == 0
    assert {r["key"] for r in records.read(archive)} == keys(done) | keys(other) | {third["key"]}
    assert re.search(r"^9 records.*\nruns/damaged.json is damaged", capsys.readouterr().out)


def test_collect_does_not_write_over_an_archive_that_it_cannot_read(done):
    Path("runs/records.jsonl.gz").write_bytes(b"not whole")
    with pytest.raises(ValueError, match="runs/records.jsonl.gz is damaged"):
        command.main(["collect"])
    assert Path("runs/records.jsonl.gz").read_bytes() == b"not whole"


def test_collect_goes_on_while_records_come_in(done, monkeypatch, capsys):
    new = iter([toys.record(*run) for run in toys.table(lr=0.3).runs()])
    monkeypatch.setattr(command.time, "sleep", lambda seconds: records.save(next(new), "runs"))
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    assert command.main(["collect", "--every", "10s", "--budget", "30s"]) == 0
    assert re.findall(r"(\d) records", capsys.readouterr().out) == ["4", "5", "6"]
    assert command.main(["collect", "--every", "10s", "--budget", "0s"]) == 0


# What is printed


def test_list_status_and_table_print(done, capsys):
    (label, other), unfinished = (row.label for row in done.rows), done.rows[1].key(done.seeds[1])
    Path(f"runs/{unfinished}.json").unlink()
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "quick: Quick (cpu, 4 runs; varied over the seeds: class order" in printed
    assert "  Weighted: mlp, Weighted(), quick" in printed
    assert command.main(["status"]) == 0
    assert re.search(r"quick +4 +3 +1 +0\n$", capsys.readouterr().out)
    assert command.main(["table", "quick"]) == 0
    printed = capsys.readouterr().out
    assert done.caption() in printed and "verdict" not in printed and "stale" not in printed
    assert re.search(rf"{label} +2 +2 +50.00 +0.00", printed) and re.search(rf"{other} +1 +2 +60.00 +-", printed)


def test_status_names_damaged_files_a_line_each(done, capsys):
    for name in ("a.json", "b.json"):
        Path("runs", name).write_text("{")
    assert command.main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"runs/(.)\.json is damaged", line)[1] for line in lines[-2:]] == ["a", "b"]


def test_a_figure_of_some_rows_and_of_nothing(done, monkeypatch):
    drawn = []
    monkeypatch.setattr(command, "_save_figure", lambda runs, path: drawn.append(set(runs["label"])))
    command.main(["table", "quick", "--figure", "f.png", "--row", "Weighted"])
    command.main(["table", "quick", "--figure", "f.png"])
    assert drawn == [{"Weighted"}, {"Weighted", "CrossEntropy"}]
    with pytest.raises(ValueError, match="no records to draw: python -m imbook run quick"):
        command.main(["table", "quick", "--figure", "f.png", "--row", "Weigh"])


@pytest.mark.filterwarnings("error")
def test_a_figure_of_many_rows_is_a_row_each(tmp_path):
    """Lines of more rows than can be told apart had a legend larger than the figure, and a warning of matplotlib's."""
    runs = results.frame(tables.TABLES["rivals-select-fashion-lt"], records=records.load())
    command._save_figure(runs, tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as drawn:
        assert runs["label"].nunique() > command.LINES and drawn.height > 30 * runs["label"].nunique()


def test_provenance_prints_a_table(quick, capsys):
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


# What is refused


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
        ["run"],
        [],
    ],
    ids=" ".join,
)
def test_arguments_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["run fashin", "run digits fashin", "table fashin", "data fashon-mnist"])
def test_a_wrong_name_gets_the_nearest_and_not_the_whole_list(arguments):
    with pytest.raises(ValueError, match="fashion") as error:
        command.main(arguments.split())
    assert len(str(error.value)) < 200


def test_rows_that_are_not_there(quick, tmp_path):
    with pytest.raises(ValueError, match="no row of quick has 'nonsense' in its label"):
        command.main(["run", "quick", "--row", "nonsense", "--out", str(tmp_path)])
    assert command.main(["run", "quick", "--row", "Cross", "--shard", "9/9"]) == 0, "a shard without a run is no error"


def test_times_and_shards_are_read():
    assert [command._seconds(t) for t in ("90s", "9m", "2h", "1.5m")] == [90, 540, 7200, 90]
    assert command._shard("2/3") == (1, 3)


# As a shell sees it


def shell(line, cwd, command="python -m imbook", **environment):
    """A command line as it is written, with this Python and this package, and no matter where it stands."""
    first, *rest = shlex.split(command)
    words = [sys.executable, *rest] if first == "python" else [first, *rest]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([*words, *shlex.split(line)], cwd=cwd, env=environment, capture_output=True, text=True)


def test_digits_as_documented_from_another_folder(tmp_path):
    """The first command of the book with two workers, spawned as in use, below the folder one stands in."""
    code = shell("run digits --workers 2 --dry --seeds 1 --out mine/runs", tmp_path)
    assert code.returncode == 0, code.stderr
    assert set(singles(tmp_path / "mine/runs")) == {f"dry-{k}" for k in keys(tables.TABLES["digits"], 1)}


@pytest.mark.parametrize("line", ["queue", "table fashion --figure f.png", "collect"])
def test_commands_that_only_read_from_another_folder(tmp_path, line):
    code = shell(line, tmp_path, IMBOOK_DATA=str(tmp_path / "nothing"))
    assert code.returncode == 0 and code.stdout and not code.stderr, code.stderr


def test_a_damaged_file_is_told_in_one_line(done, monkeypatch, capsys):
    Path("runs/0.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["imbook", "table", "quick"])
    with pytest.raises(SystemExit) as stop:
        command.shell()
    assert stop.value.code.startswith("imbook: runs/0.json is damaged") and "\n" not in stop.value.code
    assert capsys.readouterr().out == ""


def test_errors_are_one_line(tmp_path):
    code = shell("run digts", tmp_path)
    assert code.returncode == 1 and code.stderr == (
        "imbook: no table is named 'digts': did you mean digits? `python -m imbook list` names all\n"
    )


def test_a_reader_that_leaves_is_no_error(tmp_path):
    line = f"{sys.executable} -m imbook list | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert code.stdout.startswith("digits: ") and code.stdout.count("\n") == 1 and code.stderr == ""
    assert code.returncode in (0, 141)


def test_help_and_version_need_no_torch(tmp_path):
    """Under a second, where importing torch alone takes longer."""
    for line in ("--help", "--version", "run --help"):
        code = shell(line, tmp_path, command="python -X importtime -m imbook")
        assert code.returncode == 0 and code.stdout, line
        imported = {part.rpartition("|")[2].strip() for part in code.stderr.splitlines()}
        assert "imbook" in imported and not imported & {"torch", "numpy", "pandas"}, line
        spent = re.findall(r"import time: +\d+ \| +(\d+) \| imbook\n", code.stderr)
        assert int(spent[0]) < 1e6
    assert shell("--version", tmp_path).stdout == f"imbook {imbook.__version__}\n"


def test_the_command_is_installed_under_its_name():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["imbook"].partition(":")
    assert (module, getattr(command, function)) == ("imbook.__main__", command.shell)
    assert project["version"] == imbook.__version__


def documented():
    """Every `python -m imbook ...` of the book, its notebooks and its code: (where, command)."""
    places = [ROOT / "README.md", *ROOT.glob("book/*.md"), *ROOT.glob("imbook/**/*.py"), *ROOT.glob("tools/*.py")]
    texts = [(path, path.read_text(encoding="utf-8")) for path in places]
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts += [(path, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"]
    for path, text in texts:
        for line in re.findall(r"python -m imbook ((?: '[^'\n]*'|[^`\"'\n#;,()|\[\]])+)", text):
            if "{" not in line:  # put together by code: what it makes is tested there
                yield pytest.param(line.strip(" .:"), path, id=f"{path.name}: {line.strip()}")


@pytest.mark.parametrize("line, path", sorted(set(documented()), key=lambda p: p.id))
def test_documented_commands_are_understood(line, path, monkeypatch):
    """Their arguments are parsed, and their tables, parts and data sets are there, or declared on the same page."""
    example = {"TABLE": "fashion", "PART": "part-1", "NAME": "mnist", "FOLDER": "runs", "...": ""}
    for word, name in example.items():
        line = line.replace(word, name)
    monkeypatch.setattr(argparse.ArgumentParser, "error", lambda self, message: pytest.fail(f"{line}: {message}"))
    if " " not in line:
        assert f"_{line}" in vars(command), line
        return
    options = command.parser().parse_args(shlex.split(line))
    for name in getattr(options, "tables", [])[:] + ([options.table] if hasattr(options, "table") else []):
        known = name == "all" or name in tables.TABLES or name in tables.QUEUE
        assert known or f'"{name}": Table(' in path.read_text(encoding="utf-8"), name
    for name in getattr(options, "names", []):
        assert name in data.SOURCES, name


BLOCKED = """
import builtins, importlib, pkgutil, sys
for name in ("resource", "fcntl", "msvcrt"):
    sys.modules[name] = None
import imbook
names = [m.name for m in pkgutil.walk_packages(imbook.__path__, "imbook.")]
for name in names:
    importlib.import_module(name)
for line in sys.stdin.read().splitlines():
    exec(line)
print(len(names))
"""


def test_everything_is_imported_without_modules_of_one_system(tmp_path):
    """resource and fcntl are not there on Windows, msvcrt only there: all modules, and what all chapters import."""
    lines = set()
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        lines |= {line for cell in code for line in cell.splitlines() if re.match(r"(from imbook|import imbook)", line)}
    single = sorted(line for line in lines if "(" not in line)
    assert len(single) > 5
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = subprocess.run([sys.executable, "-c", BLOCKED], input="\n".join(single), cwd=tmp_path, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert code.returncode == 0, code.stderr
    assert int(code.stdout) > 30
