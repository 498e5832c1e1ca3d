"""The command line: python -m imbook data | list | stages | run | status | table | provenance."""

import argparse
import multiprocessing
import queue
import re
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from imbook import data, results
from imbook.experiments import STAGES, TABLES, run, steps
from imbook.fast import CaptureError


class BudgetSpent(Exception):
    """The time given by --budget is over; not a TimeoutError, which a file system may raise too."""


def main(arguments=None):
    """Parse and carry out one command; returns the exit status."""
    parser = argparse.ArgumentParser("imbook", description="The experiments of the book: data, queue and records.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("data", help="download and check data sets")
    command.add_argument("names", nargs="+", choices=list(data.SOURCES))
    commands.add_parser("list", help="the tables, their cells and seeds")
    command = commands.add_parser("stages", help="the stages of the GPU's queue, and their minutes")
    command.add_argument("--ms", type=float, default=1.0, help="milliseconds a step (see benchmarks/step.py)")
    command.add_argument("--out", default="runs")
    commands.add_parser("status", help="what is done, pending and stale").add_argument("--out", default="runs")
    commands.add_parser("provenance", help="where the records come from, as a Markdown table")
    command = commands.add_parser("table", help="print a table from the records")
    command.add_argument("table", choices=list(TABLES))
    command.add_argument("--out", default="runs")
    command.add_argument("--figure", help="also save recall by class size to this file")
    command.add_argument("--cell", action="append", help="in the figure: only the cells with these labels")
    command = commands.add_parser("run", help="run what is missing of some tables")
    command.add_argument("tables", nargs="+", metavar="TABLE", choices=[*TABLES, *STAGES, "all"], help="tables, stages")
    command.add_argument("--cell", action="append", help="only the cells whose label holds this text")
    command.add_argument("--seeds", type=_positive, help="only the first k sets of seeds")
    command.add_argument("--device", default=None, choices=["cpu", "cuda"], help="default: the table's own")
    command.add_argument("--budget", type=_seconds, help="stop cleanly after this time, such as 90s, 9m or 2h")
    command.add_argument("--out", default="runs", help="folder for new records (default: runs)")
    command.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N", help="every N-th run from the I-th, I = 1 .. N"
    )
    command.add_argument("--fast", action="store_true", help="whole steps as CUDA graphs, where there is a GPU")
    command.add_argument("--workers", type=_positive, default=1, help="processes that share the queue and the device")
    command.add_argument("--dry", action="store_true", help="two short epochs a run, kept out of every table")
    options = parser.parse_args(arguments)
    return globals()[f"_{options.command}"](options)


def _data(options):
    for name in options.names:
        try:
            data.load(name)
            print(f"{name}: whole in {data.data_root() / data.SOURCES[name].folder}")
        except FileNotFoundError:
            print(f"{name}: whole in {data.download(name)}")
    return 0


def _list(options):
    for name, table in TABLES.items():
        print(f"{name}: {table.title} ({table.device}, {len(table.runs())} runs)")
        for cell in table.cells:
            hyper = ", ".join(f"{k}={v}" for k, v in cell.hyper.items())
            print(f"  {cell.label}: {cell.net}, {cell.method}({hyper}), {cell.protocol.name}")
    return 0


def _stages(options):
    everything = argparse.Namespace(out=options.out, dry=False, seeds=None, cell=None, shard=(0, 1))
    rows, without = [], set()
    for name in STAGES:
        todo, number, many = _missing([name], everything), len(_missing([name], everything, have=())), 0
        for _, cell, _ in todo:
            try:
                many += steps(cell)
            except FileNotFoundError:
                without.add(cell.split.data)
        rows.append(dict(stage=name, runs=number, missing=len(todo), steps=many, minutes=many * options.ms / 60_000))
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.1f}"))
    print(f"minutes: the steps of what is missing, {options.ms:g} ms each; evaluation and loading come on top")
    if without:
        print(f"not counted, as the data are not here: {', '.join(sorted(without))}")
    return 0


def _status(options):
    records = results.load(options.out)
    rows = []
    for name, table in TABLES.items():
        runs = results.one_each(results.frame(table, records=records))
        sources = runs["record"].map(lambda r: r["source"] != results.source_hash())
        planned = len(table.runs())
        rows.append(
            dict(
                table=name,
                planned=planned,
                done=len(runs),
                pending=planned - len(runs),
                stale=int(runs["stale"].sum()),
                older_source=int(sources.sum()),
            )
        )
    print(pd.DataFrame(rows).to_string(index=False))
    return 0


def _table(options):
    table = TABLES[options.table]
    _print_table(table, options.out)
    if options.figure:
        runs = results.frame(table, options.out)
        runs = runs[runs["label"].isin(options.cell)] if options.cell else runs
        if runs.empty:
            raise ValueError(f"no records to draw: python -m imbook run {options.table}, or name another --cell")
        _save_figure(runs, options.figure)
    return 0


def _print_table(table, out):
    shown = results.summary(table, out)
    if not any(cell.fact for cell in table.cells):
        shown = shown.drop(columns=["paper", "mark", "verdict"])
    print(f"\n{table.title}: {table.metric.replace('_', ' ')} in per cent, mean and sd over the seeds")
    print(shown.to_string(float_format=lambda v: f"{v:.2f}", na_rep="-"))


def _provenance(options):
    print(results.provenance_table(TABLES))
    return 0


def _run(options):
    names = list(TABLES) if "all" in options.tables else options.tables
    tables = list(dict.fromkeys(table for name in names for table, _, _ in _parts(name)))
    deadline = time.monotonic() + options.budget if options.budget is not None else float("inf")
    out, news = Path(options.out), {"failed": {}, "stopped": {}, "fast": {}}  # each a set in order of arrival
    labels = [cell.label for name in tables for cell in TABLES[name].cells]
    if options.cell and not any(text in label for text in options.cell for label in labels):
        raise ValueError(f"no cell of {', '.join(names)} has {' or '.join(map(repr, options.cell))} in its label")
    todo = _missing(names, options)
    jobs = [(name, options.device or TABLES[name].device, cell, seeds) for name, cell, seeds in todo]
    if not torch.cuda.is_available() and (on_gpu := list(dict.fromkeys(job[0] for job in jobs if job[1] == "cuda"))):
        if "all" not in options.tables:
            raise ValueError(f"{', '.join(on_gpu)} need a GPU, none is here: leave them out, or add --device cpu")
        jobs = [job for job in jobs if job[1] != "cuda"]
        print(f"left out, no GPU is here: {', '.join(on_gpu)}")
    todo = [(name, cell, seeds) for name, _, cell, seeds in jobs]
    bar = tqdm(total=sum(_length(cell, options) for _, cell, _ in todo), unit="epoch", disable=not todo)

    def tell(what, value):
        if what in news:
            news[what][value] = True
        elif what == "run":
            bar.set_description(value)
        elif what == "epochs" or options.workers == 1:  # what another worker of ours holds is counted there
            bar.update(value)

    if options.workers == 1:
        _work(jobs, options, lambda: deadline, tell)
    else:
        _share(jobs, options, deadline, tell)
    bar.close()
    if not options.dry:
        for name in tables:
            _finish(name, out)
    for choice in news["fast"]:
        print(f"fast: {choice}")
    for why in news["stopped"]:
        print(f"{why}: {len(_missing(names, options))} runs are missing; the same command goes on from here")
    for line in news["failed"]:
        print(f"failed, no record: {line}")
    return 130 if "interrupted" in news["stopped"] else bool(news["failed"])


def _work(jobs, options, deadline, tell):
    """Make what is missing, one run after the other. tell(what, value): progress and news."""
    out, longest = Path(options.out), {}

    def tick(epoch, row):
        tell("epochs", 1)
        if time.monotonic() > deadline():
            raise BudgetSpent

    try:
        for name, device, cell, seeds in jobs:
            if device == "cpu":
                torch.set_num_threads(1)
            key = ("dry-" if options.dry else "") + cell.key(seeds)
            if time.monotonic() + longest.get(name, 0) > deadline():
                raise BudgetSpent
            with results.claim(out, key) as mine:
                if not mine or (out / f"{key}.json").exists():
                    tell("skipped", _length(cell, options))
                    continue
                tell("run", f"{name}: {cell.label}, seeds {'/'.join(map(str, seeds.values()))}")
                began, checkpoint = time.monotonic(), out / "checkpoints" / f"{key}.pt"
                try:
                    record = run(
                        cell, seeds, device, None if options.dry else checkpoint, tick, options.dry, options.fast
                    )
                except (FloatingPointError, CaptureError, torch.OutOfMemoryError) as error:
                    tell("failed", f"{name}: {cell.label}, seeds {seeds}: {error}")
                    if isinstance(error, CaptureError) and error.__cause__ is not None:
                        tell("stopped", "a capture broke off and may have spoiled this process")
                        return
                    continue  # one such run must not end the queue
                results.save(record, out)
                checkpoint.unlink(missing_ok=True)
                if options.fast:
                    tell("fast", record["fast"])
                longest[name] = max(longest.get(name, 0), time.monotonic() - began)
    except BudgetSpent:
        tell("stopped", "the budget is spent")
    except KeyboardInterrupt:
        tell("stopped", "interrupted")


def _share(jobs, options, deadline, tell):
    """The same by several processes: each run is made by the one that claims it."""
    new = multiprocessing.get_context("spawn")  # a CUDA device does not outlive a fork
    until, news = new.Value("d", deadline), new.Queue()
    workers = [new.Process(target=_worker, args=(jobs, options, until, news)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers) or not news.empty():
        try:
            tell(*news.get(timeout=0.2))
        except queue.Empty:
            pass
        except KeyboardInterrupt:
            until.value = 0  # each stops after its epoch
            tell("stopped", "interrupted")
    for worker in workers:
        worker.join()
        if worker.exitcode:
            tell("failed", f"a worker ended with status {worker.exitcode}; its error stands above")


def _worker(jobs, options, until, news):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started us moves the deadline
    _work(jobs, options, lambda: until.value, lambda *what: news.put(what))


def _length(cell, options):
    return 2 if options.dry else cell.protocol.epochs


def _parts(name):
    """A stage is parts of tables: (table, number of seeds, labels); a table is one, and whole."""
    return STAGES.get(name, ((name, None, ()),))


def _missing(names, options, have=None):
    have, seen, todo = results.load(options.out) if have is None else have, set(), []
    for name, number, labels in (part for wanted in names for part in _parts(wanted)):
        table = TABLES[name]
        for cell, seeds in table.runs():
            key = ("dry-" if options.dry else "") + cell.key(seeds)
            wanted = (
                seeds in table.seeds[:number]
                and seeds in table.seeds[: options.seeds]
                and (not labels or cell.label in labels)
                and (not options.cell or any(c in cell.label for c in options.cell))
            )
            if wanted and key not in seen:
                seen.add(key)
                todo.append((key, (name, cell, seeds)))
    shard, shards = options.shard  # of what is wanted, not of what is missing: a shard keeps its runs as others finish
    return [run for key, run in todo[shard::shards] if key not in have]


def _finish(name, out):
    table = TABLES[name]
    _print_table(table, out)
    runs = results.frame(table, out)
    if runs.empty:
        return
    elsewhere = {p.name for p in results.RECORDS.glob("*.jsonl.gz")} - {f"{name}.jsonl.gz"}  # shared with other tables
    results.archive([r for r in runs["record"] if r["file"] not in elsewhere], out / f"{name}.jsonl.gz")
    _save_figure(runs, out / f"{name}.png")
    print(f"records: {out / name}.jsonl.gz, figure: {out / name}.png")


def _save_figure(runs, path):
    from imbook import plots  # seaborn is slow to import

    plots.recall_by_size(runs).figure.savefig(path, bbox_inches="tight", dpi=120)


def _seconds(text):
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number and s, m or h, such as 9m")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 1 on")
    return int(text)


def _shard(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: write I/N with I from 1 to N, such as 1/4")
    return int(match[1]) - 1, int(match[2])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"imbook: {error}")
