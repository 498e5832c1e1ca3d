"""The command line: python -m imbook data | list | queue | run | collect | status | table | provenance | try | report.

Arguments and printing only; what takes long to import (torch) is imported by the command that needs it.
"""

import argparse
import ast
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from imbook import __version__

LINES = 12  # more of them cannot be told apart in one figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and carry out one command; returns the exit status."""
    options = parser().parse_args(arguments)
    return globals()[f"_{options.command}"](options)


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    parser = argparse.ArgumentParser("imbook", description="The experiments of the book: data, queue and records.")
    parser.add_argument("--version", action="version", version=f"imbook {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("data", help="download and check data sets")
    command.add_argument("names", nargs="+", metavar="NAME", help="mnist, fashion-mnist, cifar10, cifar100 or svhn")
    commands.add_parser("list", help="the tables, their rows and seeds")
    command = commands.add_parser("queue", help="the parts of the GPU's queue: runs, steps, minutes, commands")
    _out(command)
    command.add_argument("--ms", type=float, help="milliseconds per step (default: what an H100 has shown)")
    _out(commands.add_parser("status", help="what is done, pending and stale"))
    commands.add_parser("provenance", help="where the records come from, as a Markdown table")
    command = commands.add_parser("table", help="print a table from the records")
    command.add_argument("table", metavar="TABLE")
    _out(command)
    command.add_argument("--figure", type=_path, help="also save recall by class size; of many rows, accuracies")
    command.add_argument("--row", action="append", help="in the figure: only the rows with these labels")
    command = commands.add_parser("run", help="run what is missing or stale of some tables")
    command.add_argument("tables", nargs="+", metavar="TABLE", help="tables, parts of the queue, or all")
    command.add_argument("--row", action="append", default=[], help="only the rows whose label holds this text")
    command.add_argument("--seeds", type=_positive, help="only the first k sets of seeds")
    command.add_argument("--device", default=None, choices=["cpu", "cuda"], help="default: the table's own")
    command.add_argument("--budget", type=_seconds, help="stop cleanly after this time, such as 90s, 9m or 2h")
    _out(command)
    command.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N", help="every N-th run from the I-th, I = 1 .. N"
    )
    command.add_argument("--fast", action="store_true", help="whole steps as CUDA graphs, where there is a GPU")
    command.add_argument(
        "--precision", choices=["float32", "tf32", "bf16", "fp16"], help="with --fast (default: the device's fastest)"
    )
    command.add_argument(
        "--workers", type=_positive, default=1, help="processes that share the queue and the device; of slurm: jobs"
    )
    command.add_argument(
        "--engine", choices=["local", "ray", "slurm"], default="local", help="where runs are made (default: here)"
    )
    command.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE",
        help="an option of the engine, such as num_cpus=2 (ray), or timeout_min=240, slurm_partition=gpu (slurm)",
    )  # fmt: skip
    command.add_argument("--dry", action="store_true", help="two short epochs per run, kept out of every table")
    command = commands.add_parser("collect", help="write all finished records of a folder into one archive")
    _out(command)
    command.add_argument("--to", type=_path, help="the archive (default: OUT/records.jsonl.gz)")
    command.add_argument("--every", type=_seconds, help="go on, and rewrite it this often while records come in")
    command.add_argument("--budget", type=_seconds, help="with --every: stop after this time")
    _try_arguments(commands.add_parser("try", help="methods on your own pictures, from a folder to a report"))
    command = commands.add_parser("report", help="write the report of a trial once more, from what is finished")
    command.add_argument("out", type=_path, metavar="DIR", help="the folder of a trial (its --out)")
    return parser


def _try_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=_path, metavar="FOLDER", help="one folder per class, or a CSV: image,label")
    command.add_argument("--out", type=_path, help="folder of the trial (default: trials/NAME)")
    command.add_argument("--groups", help="what belongs together: a column of the CSV, or an expression on paths")
    command.add_argument("--backbone", default="lenet", help="lenet, resnet8, resnet32, or torchvision's, as resnet18")
    command.add_argument("--pretrained", action="store_true", help="torchvision's weights, from its cache or download")
    command.add_argument("--stage", help="where MFW mixes (default: what the classifier is given)")
    command.add_argument("--size", type=_positive, help="pixels of a side (default: 32, torchvision's networks 128)")
    command.add_argument("--flip", action="store_true", help="train on mirrored pictures, too")
    command.add_argument("--costs", type=_path, help="CSV: rows true, columns decided (default: classes count alike)")
    command.add_argument("--seeds", type=_positive, default=3, help="of cross entropy and the two best (default: 3)")
    command.add_argument("--epochs", type=_positive, help="per run (default: what the budget allows, 5 to 30)")
    command.add_argument("--lr", type=float, help="learning rate (default: 0.01 to 0.05, by the network)")
    command.add_argument("--budget", type=_seconds, default=600.0, help="stop after this time (default: 10m)")
    command.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")


def _out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=_path, default=Path("runs"), help="folder for new records (default: runs)")


def _data(options: argparse.Namespace) -> int:
    from imbook import data

    for name in options.names:
        try:
            data.load(name)
            print(f"{name}: whole in {data.data_root() / data.SOURCES[name].folder}")
        except FileNotFoundError:
            print(f"{name}: whole in {data.download(name)}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from imbook.tables import TABLES

    for name, table in TABLES.items():
        print(f"{name}: {table.title} ({table.device}, {len(table.runs())} runs; {table.varied()})")
        for row in table.rows:
            hyper = ", ".join(f"{k}={v}" for k, v in row.hyper.items())
            print(f"  {row.label}: {row.net}, {row.method}({hyper}), {row.protocol.name}")
    return 0


def _queue(options: argparse.Namespace) -> int:
    import pandas as pd

    from imbook import records
    from imbook.experiments import steps
    from imbook.tables import MILLISECONDS, QUEUE
    from imbook.workers import Request, missing

    have, lines, without = records.load(options.out, damaged=[]), [], set()
    for name in QUEUE:
        request, many, minutes = Request((name,), options.out), 0, 0.0
        todo = missing(request, have)
        for job in todo:
            try:
                count = steps(job.row)
            except FileNotFoundError:
                without.add(job.row.split.data)
                continue
            many += count
            minutes += count * (options.ms or MILLISECONDS[job.row.protocol.batch]) / 60_000
        line = dict(part=name, runs=len(missing(request, have={})), missing=len(todo), steps=many, minutes=minutes)
        lines.append(line | {"command": f"python -m imbook run {name} --fast --workers 5 --budget 8m"})
    print(pd.DataFrame(lines).to_string(index=False, float_format=lambda v: f"{v:.1f}"))
    each = f"{options.ms:g} ms each" if options.ms else f"milliseconds by batch size: {MILLISECONDS}"
    print(f"minutes: the steps of what is missing, {each}, all workers together; loading comes on top")
    if without:
        print(f"not counted, as the data are not here: {', '.join(sorted(without))}")
    return 0


def _status(options: argparse.Namespace) -> int:
    import pandas as pd

    from imbook import records, results
    from imbook.tables import TABLES

    damaged, lines = [], []
    have = records.load(options.out, damaged)
    for name, table in TABLES.items():
        runs = results.one_each(results.frame(table, records=have))
        planned, stale = len(table.runs()), int(runs["stale"].sum())
        lines.append(dict(table=name, planned=planned, done=len(runs), pending=planned - len(runs), stale=stale))
    print(pd.DataFrame(lines).to_string(index=False))
    for line in damaged:
        print(line)
    return 0


def _table(options: argparse.Namespace) -> int:
    from imbook import records, results
    from imbook.tables import TABLES, check_name

    table, have = TABLES[check_name(options.table, TABLES)], records.load(options.out)
    _print_table(table, have)
    if options.figure:
        runs = results.frame(table, records=have)
        runs = runs[runs["label"].isin(options.row)] if options.row else runs
        if runs.empty:
            raise ValueError(f"no records to draw: python -m imbook run {options.table}, or name another --row")
        _save_figure(runs, options.figure)
    return 0


def _print_table(table: Any, have: dict[str, dict[str, Any]]) -> None:
    from imbook import verdicts

    shown = verdicts.summary(table, records=have)
    if not any(row.fact for row in table.rows):
        shown = shown.drop(columns=["paper", "mark", "verdict"])
    if not shown["stale"].any():
        shown = shown.drop(columns="stale")
    print(f"\n{table.caption()}")
    print(shown.to_string(float_format=lambda v: f"{v:.2f}", na_rep="-"))


def _provenance(options: argparse.Namespace) -> int:
    from imbook import results
    from imbook.tables import TABLES

    print(results.provenance_table(TABLES))
    return 0


def _run(options: argparse.Namespace) -> int:
    from imbook import distributed

    if distributed.launched() and (options.workers > 1 or options.fast or options.engine != "local"):
        raise ValueError("under torchrun the ranks share each run: leave out --workers, --fast and --engine")
    with distributed.start(options.device):
        with open(os.devnull, "w") if distributed.rank() else nullcontext(sys.stdout) as out, redirect_stdout(out):
            return _run_all(options)


def _run_all(options: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from imbook import distributed, records
    from imbook.engines import sweep
    from imbook.tables import TABLES
    from imbook.workers import Request, length, missing, multi_process_service, share, work

    names = list(TABLES) if "all" in options.tables else options.tables
    given = {k: getattr(options, k) for k in ("out", "seeds", "shard", "dry", "device", "fast", "precision")}
    request = Request(tuple(names), labels=tuple(options.row), **given)
    deadline = time.monotonic() + options.budget if options.budget is not None else float("inf")
    news, damaged = {"failed": {}, "stopped": {}, "fast": {}}, []  # each a set in order of arrival
    jobs = distributed.from_first(lambda: missing(request, records.load(request.out, damaged)))
    for line in damaged:
        print(line)
    elsewhere = options.engine != "local"
    on_gpu = list(dict.fromkeys(job.table for job in jobs if job.device == "cuda"))
    if on_gpu and not elsewhere and not torch.cuda.is_available():
        if "all" not in options.tables:
            raise ValueError(f"{', '.join(on_gpu)} need a GPU, none is here: leave them out, or add --device cpu")
        jobs = [job for job in jobs if job.device != "cuda"]
        print(f"left out, no GPU is here: {', '.join(on_gpu)}")
    if options.workers > 1 and on_gpu and not elsewhere and torch.cuda.is_available():
        print(f"multi-process service of the GPU: {'on' if multi_process_service() else 'off, workers take turns'}")
    silent = not jobs or distributed.rank() > 0
    bar = tqdm(total=sum(length(job, request) for job in jobs), unit="epoch", disable=silent)

    def tell(what: str, value: Any) -> None:
        if what in news:
            news[what][value] = True
        elif what == "run":
            bar.set_description(value)
        elif what == "epochs" or options.workers == 1 or elsewhere:  # what another of ours holds is counted there
            bar.update(value)

    if elsewhere:
        sweep(options.engine, jobs, request, deadline, tell, options.workers, dict(options.set))
    elif options.workers == 1 or len(jobs) < 2:
        work(jobs, request, lambda: deadline, tell)
    else:
        share(jobs, request, deadline, tell, min(options.workers, len(jobs)))
    bar.close()
    have = records.load(request.out, damaged=[])
    if distributed.rank():
        return bool(news["failed"])
    if not request.dry:
        for name in request.tables():
            _finish(name, have, request.out)
    for choice in news["fast"]:
        print(f"fast: {choice}")
    for line in news["failed"]:
        print(f"failed, no record: {line}")
    if left := len(missing(request, have)):
        why = "; ".join(news["stopped"]) or "not all could be made"
        print(f"{why}: {left} {'run is' if left == 1 else 'runs are'} missing; the same command goes on from here")
    return 130 if "interrupted" in news["stopped"] else bool(news["failed"])


def _finish(name: str, have: dict[str, dict[str, Any]], out: Path) -> None:
    """Print a table from its records, and write its archive and its figure below `out`."""
    from imbook import records, results
    from imbook.tables import TABLES

    table = TABLES[name]
    runs = results.frame(table, records=have)
    _print_table(table, have)
    if runs.empty:
        return
    elsewhere = {p.name for p in records.RECORDS.glob("*.jsonl.gz")} - {f"{name}.jsonl.gz"}  # shared with other tables
    records.archive([r for r in runs["record"] if r["file"] not in elsewhere], out / f"{name}.jsonl.gz")
    _save_figure(runs, out / f"{name}.png")
    print(f"records: {out / name}.jsonl.gz, figure: {out / name}.png")


def _save_figure(runs: Any, path: Path) -> None:
    """Recall by class size, a line a row; of more rows than lines can be told apart, the runs of each in a row."""
    from imbook import plots  # seaborn is slow to import

    path.parent.mkdir(parents=True, exist_ok=True)
    draw = plots.recall_by_size if runs["label"].nunique() <= LINES else plots.strip
    figure: Any = draw(runs).figure
    figure.savefig(path, bbox_inches="tight", dpi=120)


def _collect(options: argparse.Namespace) -> int:
    from imbook import records

    target = options.to or options.out / "records.jsonl.gz"
    deadline = time.monotonic() + (float("inf") if options.budget is None else options.budget)
    if target.exists():
        records.read(target)  # what an older archive holds stays in it: one that cannot be read is no empty one
    written = None
    while True:
        paths = list(dict.fromkeys([*([target] if target.exists() else []), *records.files(options.out)]))
        now = {(p.name, p.stat().st_mtime_ns) for p in paths if p != target}
        if now != written:
            whole = records.latest(paths, damaged := [])
            records.archive(whole.values(), target)
            written = now
            print(f"{len(whole)} records: {target}", *damaged, sep="\n", flush=True)
        if options.every is None or time.monotonic() + options.every > deadline:
            return 0
        time.sleep(options.every)


def _try(options: argparse.Namespace) -> int:
    from imbook.yours.trial import Options, try_out

    given = {k: v for k, v in vars(options).items() if k != "command"}
    given["out"] = options.out or Path("trials") / options.path.resolve().name
    try:
        shown, ended = try_out(Options(**given, command=shlex.join(["python", "-m", "imbook", *sys.argv[1:]])))
    except KeyboardInterrupt:  # while looking, planning or writing the report; training stops in try_out
        shown, ended = None, "interrupted; the same command goes on from here"
    print(ended if shown is None else f"{ended}\nreport: {shown}, figure: {shown.with_suffix('.png')}")
    return 130 if ended.startswith("interrupted") else 0


def _report(options: argparse.Namespace) -> int:
    from imbook.yours import report

    print(f"report: {report.write(options.out)}")
    return 0


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number and s, m or h, such as 9m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 1 on")
    return int(text)


def _setting(text: str) -> tuple[str, Any]:
    name, is_there, value = text.partition("=")
    if not name.isidentifier() or not is_there:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE, such as timeout_min=240")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a text


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: write I/N with I from 1 to N, such as 1/4")
    return int(match[1]) - 1, int(match[2])


def shell() -> None:
    """The command as a shell sees it: exit status, an error in one line, silence when the reader of a pipe leaves."""
    status: int | str
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141  # 128 + SIGPIPE, as of any command
    except (ValueError, OSError, FloatingPointError) as error:
        status = f"imbook: {error}"
    sys.exit(status)


if __name__ == "__main__":
    shell()
