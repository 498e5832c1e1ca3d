"""Small made sets and runs that the tests share."""

import multiprocessing
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch

from imbook import data, nets, records, tables, workers
from imbook.methods import METHODS
from imbook.rows import Row, Split, Table
from imbook.tables.common import together
from imbook.train import Protocol


def images(n=(24, 12, 6), size=8, channels=1, seed=0):
    """Noise images, n[c] of each class c in mixed order; the mean of class c is raised by c: it can be learnt."""
    g = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.full((k,), c) for c, k in enumerate(n)])[torch.randperm(sum(n), generator=g)]
    x = torch.randint(0, 200, (len(y), channels, size, size), generator=g) + (20 * y).view(-1, 1, 1, 1)
    names = tuple(f"class {c}" for c in range(len(n)))
    return data.Images(x.clamp(max=255).to(torch.uint8), y, names, (0.4,) * channels, (0.3,) * channels)


def real(name):
    """A real set, or a skipped test where its folder is not there. A damaged set fails."""
    folder = data.data_root() / data.SOURCES[name].folder
    if not folder.exists():
        pytest.skip(f"{name} is not in {folder}: set IMBOOK_DATA to test on it")
    return data.load(name)


def net(classes=3, method=None, seed=0, channels=1):
    """A residual network with 8 layers, with the cosine head where the method is LDAM."""
    torch.manual_seed(seed)
    made = nets.resnet8(classes, channels)
    if type(method).__name__ == "LDAM":
        made.head = nets.CosineHead(64, classes)
    return made


def same(a, b):
    """Whether two states, curves or tensors are equal bit for bit; seconds are left out, nan equals nan."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=-1), b.nan_to_num(nan=-1))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(k == "seconds" or same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a and b != b


QUICK = Protocol("quick", epochs=2, batch=64, lr=0.05)


def table(seeds=2, methods=("CrossEntropy", "Weighted"), **changes):
    """A table on the embedded digits whose runs take a moment."""
    protocol, split = replace(QUICK, **changes), Split("digits", ratio=10, n_max=40, order="seed")
    return Table("Quick", tuple(Row(m, split, "mlp", protocol, m) for m in methods), together(seeds))


def record(row, seeds, accuracy=0.5, **changes):
    """A record as `run` makes them, without a run: every metric is the same number."""
    names = "accuracy balanced_accuracy macro_f1 g_mean macro_auprc calibration_error".split()
    curve = [dict(epoch=e, lr=0.1, loss=1 / e, seconds=e, train=[1, 0.5], test=[accuracy, 0]) for e in (1, 2)]
    return {
        "key": row.key(seeds),
        "dry": False,
        **row.identity(seeds),
        "n": [40, 10],
        "metrics": dict.fromkeys(names, accuracy),
        "confusion": [[[40, 10], [25, 25]]],
        "curve": curve,
        "seconds": 3.6,
        "method_version": METHODS[row.method].version,
        "device": "a processor",
        "threads": 1,
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "source": records.source_hash(),
        "time": "2026-01-02T03:04:05+00:00",
        **changes,
    }


def run_queue(arguments, shipped, settings, log, pids=None):
    """`python -m imbook ARGUMENTS` on one toy table, in a process of its own that has all modules loaded already.

    shipped: the folder of records; settings: of `table`; log: a file for what is printed; pids: a folder in
    which each worker leaves a file named by its process.
    """
    made = table(**settings)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with Ctrl-C ignored
    sys.stdout = sys.stderr = open(log, "w", buffering=1)
    torch.set_num_threads(1)
    work = workers.worker

    def noted(*given):
        (pids / str(os.getpid())).touch()
        work(*given)

    if pids is not None:
        workers.worker = noted
    fork = multiprocessing.get_context("fork")
    workers.multiprocessing.get_context = lambda name: fork  # nothing is to be imported anew
    records.RECORDS = shipped
    for kept, new in ((tables.TABLES, {"quick": made}), (tables.QUEUE, {})):
        kept.clear(), kept.update(new)
    os._exit(_status(arguments))


def _status(arguments):
    from imbook.__main__ import main

    try:
        return main(arguments)
    finally:
        sys.stdout.flush()
