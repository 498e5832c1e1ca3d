"""What executing a chapter takes: python benchmarks/chapter_costs.py [--rounds N] [NOTEBOOK ...], default all.

Each notebook runs from top to bottom in a fresh kernel, on one thread, without a GPU, as a reader runs it (Linux only).
Its processor time is that of the kernel and of the processes that it starts, imports included, so a busy machine hardly
changes it; its memory is the largest sum over these processes, pages that they share counted once. Medians of
three runs, or of N. Updates one JSON record; `make generated` writes its numbers into the chapters' heads.
"""

import argparse
import contextlib
import json
import os
import threading
import time
from pathlib import Path
from statistics import median

import nbformat
import psutil
import torch
from nbclient import NotebookClient
from timing import write

from imbook import records

ROOT = Path(__file__).resolve().parents[1]
RECORD = records.RECORDS / "chapter-costs-cpu.json"
SPENT = "import resource as r; print(sum(sum(r.getrusage(w)[:2]) for w in (r.RUSAGE_SELF, r.RUSAGE_CHILDREN)))"


def held(process):
    """Bytes of a process and its descendants, shared pages counted once."""
    total = 0
    with contextlib.suppress(psutil.Error):  # it ended meanwhile
        for p in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += p.memory_full_info().pss
    return total


def measure(path):
    """Processor seconds and peak bytes of one execution."""
    book = nbformat.read(path, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(SPENT))
    before = {p.pid for p in psutil.Process().children()}
    client, peaks, done = NotebookClient(book, resources={"metadata": {"path": path.parent}}), [0], threading.Event()

    def watch():
        while not done.wait(0.3):
            for p in psutil.Process().children():
                if p.pid not in before:
                    peaks.append(held(p))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        client.execute()
    finally:
        done.set()
        watcher.join()
    return float("".join(book.cells[-1].outputs[0]["text"])), max(peaks)


if __name__ == "__main__":
    torch.set_num_threads(1)  # of this process, which the record names; the kernels have one by their environment
    os.environ |= {"IMBOOK_TRAIN": "0", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted(ROOT.glob("notebooks/*.ipynb")))
    given = parser.parse_args()
    for path in (some.resolve() for some in given.notebooks):
        began = time.perf_counter()
        runs = [measure(path) for _ in range(given.rounds)]
        seconds, memory = (median(values) for values in zip(*runs, strict=True))
        chapters = json.loads(RECORD.read_text())["chapters"] if RECORD.exists() else {}
        chapters[path.stem] = dict(seconds=round(seconds, 1), gigabytes=round(memory / 1e9, 2), runs=given.rounds)
        print(path.stem, chapters[path.stem], f"({time.perf_counter() - began:.0f} s)", flush=True)
        write(dict(chapters=dict(sorted(chapters.items()))), RECORD)
