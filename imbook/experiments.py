"""From a declaration to a record: `make` builds a run, `run` trains it and returns its record, `steps` says its length.

What can be declared is in `imbook.rows`, the book's own tables in `imbook.tables`.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imbook import checkpoints, data, large, metrics
from imbook.data.batches import sizes
from imbook.fast import describe
from imbook.memory import peak_memory
from imbook.methods import METHODS
from imbook.methods.afterwards import adjusted
from imbook.precision import best_precision
from imbook.records import SCHEMA, commit, provenance, rounded, source_hash
from imbook.rows import NETS, Row, Split, Table
from imbook.train import Method, evaluate, fit, group_recall

__all__ = ["Row", "Split", "Table", "make", "run", "steps"]


def make(
    row: Row, seeds: dict[str, int], device: str = "cpu", dry: bool = False
) -> tuple[nn.Module, Method, data.AnyBatches, data.AnyBatches | None, data.AnyBatches]:
    """Network, method and the three sets of batches (train, valid, test) of one run, before training.

    They are `imbook.data.Batches`, or `imbook.data.Loader`s where the set stays on the disk. dry: keep one batch of
    training images and a few of the others, with the true class counts.
    """
    train, held, test, n = (_official if row.split.profile == "official" else _drawn)(row, seeds, device, dry)
    takes = signature(NETS[row.net]).parameters
    known = {}
    if {"inputs", "channels", "size"} & takes.keys():
        channels, size, *_ = train.inputs(train.order[:1]).shape[1:]
        known = dict(inputs=channels * size**2, channels=channels, size=size)
    torch.manual_seed(seeds["train"])
    classes = tuple(map(len, n)) if isinstance(n, tuple) else len(n)
    net = NETS[row.net](classes=classes, **{name: value for name, value in known.items() if name in takes})
    return net, METHODS[row.method](n, **row.hyper), train, held, test


Sets = tuple[data.AnyBatches, data.AnyBatches | None, data.AnyBatches, Any]  # train, valid, test, the true class counts


def _drawn(row: Row, seeds: dict[str, int], device: str, dry: bool) -> Sets:
    """The batches of a split that is drawn from a set in memory."""
    images, test_images = _load(row.split.data)
    if row.split.profile == "pair":
        images, test_images = images.only(row.split.classes), test_images.only(row.split.classes)
    index, valid = row.split.indices(images.y, seeds)
    whole, test = index, torch.arange(len(test_images.y))
    if dry:
        some = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[: row.protocol.batch]
        index, test = index[some], test[:: max(len(test) // 100, 1)]
        valid = None if valid is None else valid[data.draw(images.y[valid], [1] * len(images.classes), None)]
    if row.split.labels:
        images, test_images = images.derive(row.split.labels), test_images.derive(row.split.labels)
    n = data.class_counts(images.y[whole], images.classes)
    p = row.protocol
    train = data.Batches(images, index, p.batch, seeds["train"], p.crop, p.flip, device)
    held = None if valid is None else data.Batches(images, valid, device=device)
    return train, held, data.Batches(test_images, test, device=device), n


def _official(row: Row, seeds: dict[str, int], device: str, dry: bool) -> Sets:
    """The batches of a set whose parts are given."""
    p = row.protocol
    return large.batches(_parts(row.split.data), p.batch, seeds["train"], p.crop, p.flip, device, dry)


def _whole(split: Split) -> Any:
    return _parts(split.data) if split.profile == "official" else _load(split.data)


@cache
def _load(name: str) -> tuple[data.Images, data.Images]:
    """Read and checked once a process, not once a run."""
    if name not in large.LARGE:
        return data.load(name)
    parts = _parts(name)
    if not isinstance(parts.train, data.Images) or parts.train.labels:
        raise ValueError(f"{name} comes in parts of its own: declare its split with the profile 'official'")
    return parts.train, parts.test


@cache
def _parts(name: str) -> large.Parts:
    return large.parts(name)


def run(
    row: Row, seeds: dict[str, int], device: str = "cpu", checkpoint: str | Path | None = None,
    tick: Callable[[int, dict[str, Any] | None], Any] | None = None, dry: bool = False, fast: bool = False,
    precision: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one row with one set of seeds; returns its record, a dict of plain data (see `imbook.records`).

    seeds: dict(order=, draw=, train=). device: 'cpu' or 'cuda'. checkpoint: a file to resume from. tick: see `fit`.
    dry: two epochs of one batch of images through the same code; the record is marked and kept out of every table.
    fast, precision: see `fit`; with fast the precision is by default the device's fastest. The record says what was
    chosen, and its key is the same.
    """
    source_hash(), commit()  # noted once a process, before its first run: the files may change while it trains
    key = ("dry-" if dry else "") + row.key(seeds)
    if dry:
        hyper = {**row.hyper, **({"start": 1} if row.hyper.get("start", 0) > 1 else {})}  # what starts late, too
        protocol = replace(row.protocol, epochs=2, warmup=min(row.protocol.warmup, 1), watch=1)
        row = replace(row, protocol=protocol, hyper=hyper)
    if fast and precision is None:
        precision = best_precision(device)
    _whole(row.split)  # once a process: neither time nor memory of this run
    spent, began = checkpoints.elapsed(checkpoint), time.perf_counter()
    with peak_memory(device) as peak:
        net, method, train, valid, test = make(row, seeds, device, dry)
        n: Any = train.n
        several = isinstance(n, tuple)
        groups = None if several or len(n) <= 20 else data.head_middle_tail(n.cpu())
        curve = fit(
            net,
            method,
            train,
            valid,
            test,
            protocol=row.protocol,
            seed=seeds["train"],
            groups=groups,
            instrument=row.instrument,
            checkpoint=checkpoint,
            tick=tick,
            fast=fast,
            precision=precision,
        )
        judged = _judged(*evaluate(net, test, method))
        readings = _readings(net, method, row, n.clamp(min=1) if dry and not several else n, valid, test)
    return dict(
        key=key,
        schema=SCHEMA,
        dry=dry,
        **row.identity(seeds),
        n=[n_j.tolist() for n_j in n] if several else n.tolist(),
        groups=None if groups is None else groups.tolist(),
        **judged,
        **({"readings": readings} if readings else {}),
        curve=[{k: rounded(v) for k, v in entry.items()} for entry in curve],
        seconds=round(spent + time.perf_counter() - began, 2),
        train_seconds=round(curve[-1]["seconds"], 2),
        peak_mb=None if peak.mb is None else round(peak.mb),
        method_version=METHODS[row.method].version,
        **({"fast": describe(net, train.device, precision)} if fast else {}),
        **provenance(device),
    )


def steps(row: Row, n: Any = None) -> int:
    """The number of training steps of one run of a row: what its time is made of.

    n: the class sizes (C,) of a run; without them those of the labels of its data set, which must be there. The method
    says how many images each epoch visits (`imbook.train.Method.visits`).
    """
    n = _class_sizes(row.split) if n is None else n
    method, batch = METHODS[row.method](n, **row.hyper), row.protocol.batch
    return sum(len(sizes(method.visits(n, epoch), batch)) for epoch in range(row.protocol.epochs))


@cache
def _class_sizes(split: Split) -> Any:
    if split.profile == "official":
        return large.class_sizes(_parts(split.data).train)
    images, _ = _load(split.data)
    images = images.only(split.classes) if split.profile == "pair" else images
    index, _ = split.indices(images.y, dict(order=0, draw=0))
    return data.counts(images.y[index], len(images.classes))


def _judged(scores: Tensor | tuple[Tensor, ...], y: Tensor) -> dict[str, Any]:
    labels = [(s, y[:, j]) for j, s in enumerate(scores)] if isinstance(scores, tuple) else [(scores, y)]
    each = [metrics.summary(s, t) for s, t in labels]
    return dict(
        metrics={k: rounded(sum(m[k] for m in each) / len(each), 6) for k in each[0]},
        confusion=[metrics.compact(metrics.confusion(s, t)) for s, t in labels],
        auprc=[rounded(metrics.auprc(s.softmax(1), t).tolist()) for s, t in labels],
    )


def _readings(
    net: nn.Module, method: Method, row: Row, n: Any, valid: data.AnyBatches | None, test: data.AnyBatches
) -> dict[str, dict[str, Any]]:
    """What else the trained network says: for each reading its test results, and its recalls on validation images."""
    sets = {"test": test} | ({} if valid is None else {"valid": valid})
    found = {name: {of: evaluate(net, b, r) for of, b in sets.items()} for name, r in method.readings.items()}
    if row.adjusted:
        own = {of: evaluate(net, batches, method) for of, batches in sets.items()}
        for tau in row.adjusted:
            found[f"adjusted, tau {tau:g}"] = {of: (adjusted(scores, n, tau), y) for of, (scores, y) in own.items()}
    judged = {}
    for name, of in found.items():
        judged[name] = _judged(*of["test"])
        if "valid" in of:
            judged[name]["valid"] = rounded(group_recall(*of["valid"], len(n)))
    return judged
