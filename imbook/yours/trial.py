"""A trial on a reader's own pictures: what is run, for how long, and the runs themselves, which resume."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from imbook.methods import METHODS
from imbook.train import Protocol, evaluate, fit
from imbook.yours import look, measure, pictures, report, split
from imbook.yours.judge import Costs

LEAST, MOST, STEPS = 5, 30, 1500  # epochs per run; a small set may have more, up to so many steps
FIRST = "cross entropy"
RANDOM, CURVE = "random split", ("a quarter", "a half")  # runs of cross entropy besides the comparison
DROPS = ("learning curve", "CRL", "MFW", RANDOM, "a third seed", "over-sampling", "a second seed")  # first to last


@dataclass(frozen=True)
class Options:
    """What a trial depends on. path: folder or CSV; None: chosen by the trial. budget: seconds of this call."""

    path: Path
    out: Path
    groups: str | None = None
    backbone: str = "lenet"
    pretrained: bool = False
    stage: str | None = None
    size: int | None = None
    flip: bool = False
    costs: Path | None = None
    seeds: int = 3
    epochs: int | None = None
    lr: float | None = None
    budget: float = 600.0
    device: str | None = None
    image: str = "image"
    label: str = "label"
    command: str = field(default="", compare=False)


def try_out(options: Options) -> tuple[Path | None, str]:
    """Look, split, train and report; returns (path of the report or None, sentence that says how it ended).

    What is finished lies in options.out and is not done again: the same call goes on where the last one stopped, by
    Ctrl-C, by its budget or by death. ValueError for a folder `out` of another trial; for the rest see `look.find`,
    `split.parts`, `Costs.read` and `pictures.check_backbone`.
    """
    began = time.monotonic()
    pictures.check_backbone(options.backbone, options.pretrained)
    files = look.find(options.path, options.groups, options.image, options.label)
    Costs.read(options.costs, files.classes)  # errors before any work
    options.out.mkdir(parents=True, exist_ok=True)
    _same_trial(options, files)
    trial = _prepared(options, files)
    deadline = began + options.budget
    plan = _stored(options.out / "plan.json", lambda: _plan(trial, deadline - time.monotonic()))
    print(describe(plan, trial), flush=True)
    ended = _run_all(trial, plan, deadline)
    if not trial.path(FIRST, 0).exists():
        return None, f"{ended}: no run is finished yet; the same command goes on from here"
    left = len(plan["runs"] + trial.finals(plan)) - trial.done(plan)
    shown = report.write(options.out)
    return shown, "all runs are done" if not left else f"{ended}: {left} runs are missing; the same command goes on"


def _same_trial(options, files):
    identity = {k: str(v) for k, v in asdict(options).items() if k not in ("out", "budget", "device", "command")}
    identity |= {"files": files.fingerprint()}
    path = options.out / "trial.json"
    before = _stored(path, lambda: identity | {"command": options.command})
    if changed := sorted(k for k in identity if before.get(k) != identity[k]):
        if not (options.out / "plan.json").exists():  # it failed before its plan: nothing is lost
            for name in ("trial.json", "look.json", "files.csv", "split.csv"):
                (options.out / name).unlink(missing_ok=True)
            return _same_trial(options, files)
        k = changed[0]
        raise ValueError(
            f"{options.out} holds another trial ({k}: {before.get(k)}, now {identity[k]}): give another --out, or "
            "remove that folder"
        )


def _stored(path, make):
    """Plain data from a JSON file, made and written first where it is not there."""
    if not path.exists():
        write(path, json.dumps(make(), indent=1).encode())
    return json.loads(path.read_text())


def write(path: Path, content: bytes) -> None:
    """Write bytes so that the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _prepared(options, files):
    show, table = sys.stderr.isatty(), options.out / "files.csv"
    if not table.exists():
        frame = look.examine(files, options.budget / 4, show)
        write(options.out / "look.json", json.dumps(look.findings(frame, files), indent=1).encode())
        write(table, frame.drop(columns="thumbnail").to_csv(index=False).encode("utf-8", "surrogateescape"))
    frame, found = measure.read_table(table), json.loads((options.out / "look.json").read_text())
    good = (frame["error"] == "").to_numpy()
    groups = split.merge(files.groups, found["duplicates"], len(files.paths))[good]
    for path, why in found["unreadable"]:
        print(f"left out, cannot be read: {files.root / path} ({why})", flush=True)
    return Trial(options, files.only(good), groups)


class Trial:
    """A split set of pictures, and the runs on it."""

    def __init__(self, options: Options, files: look.Files, groups: np.ndarray) -> None:
        self.options, self.files, self.groups = options, files, groups
        self.parts = split.parts(files.y, groups, files.classes)
        self.size = options.size or (32 if options.backbone in pictures.OWN else 128)
        self.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        workers = max((os.cpu_count() or 2) - 1, 1) if self.device == "cuda" else 0
        batch = pictures.batch_size(len(self.parts[0]))
        self.sets = pictures.Sets(files, self.parts[0], self.size, batch, options.flip, self.device, workers)
        self.said = ""  # which weights the network starts from
        split_file = options.out / "split.csv"
        if not split_file.exists():
            part = np.full(len(files.y), "train", dtype=object)
            part[self.parts[1]], part[self.parts[2]] = "valid", "test"
            table = dict(path=files.paths, label=[files.classes[c] for c in files.y], group=groups, part=part)
            write(split_file, pd.DataFrame(table).to_csv(index=False).encode("utf-8", "surrogateescape"))

    def path(self, label: str, seed: int, part: str = "") -> Path:
        """The file of a run's scores."""
        name = "-".join(filter(None, (label, part, str(seed)))).replace(" ", "-")
        return self.options.out / "runs" / f"{name}.npz"

    def positions(self, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of training, validation and test for the comparison (''), the random split or the curve."""
        train, valid, test = self.parts
        if part == RANDOM:
            return split.at_random(self.files.y)
        if part in CURVE:
            y = self.files.y[train]
            small = np.bincount(y).argmin()
            its = train[y == small]
            keep = max(1, round(len(its) / {"a quarter": 4, "a half": 2}[part]))
            its = np.random.default_rng(0).permutation(its)[:keep]
            train = np.sort(np.concatenate([train[y != small], its]))
        return train, valid, test

    def network(self, seed: int) -> torch.nn.Module:
        """A new network, with the weights that a seed gives."""
        torch.manual_seed(seed)
        o = self.options
        net, self.said = pictures.network(o.backbone, len(self.files.classes), self.size, o.pretrained)
        return net.to(self.device)

    def method(self, label: str, n: Any, epochs: int) -> Any:
        """A method of `METHODS` on the class counts n (C,)."""
        late, stage = int(0.8 * epochs), self.options.stage
        known: dict[str, tuple[str, dict[str, Any]]] = {
            FIRST: ("CrossEntropy", {}),
            "deferred weights": ("Weighted", dict(start=late, reduction="weights")),
            "over-sampling": ("OverSampling", {}),
            "MFW": ("MFW", dict(stage=stage)),
            "CRL": ("CRL", {}),
        }
        name, hyper = known[label]
        return METHODS[name](n, **hyper)

    def labels(self) -> list[str]:
        """The methods that can be tried; CRL needs an imbalance."""
        n = np.bincount(self.files.y[self.parts[0]])
        return [FIRST, "deferred weights", "over-sampling", "MFW", *(["CRL"] if n.min() < n.max() else [])]

    def run(
        self, label: str, seed: int, part: str, epochs: int, tick: Callable[[int, dict[str, Any] | None], Any]
    ) -> None:
        """Train, and write the scores of validation and test."""
        path, (train, valid, test) = self.path(label, seed, part), self.positions(part)
        net, batches = self.network(seed), self.sets.train(train, seed)
        protocol = Protocol("yours", epochs, lr=self.rate(), cosine=True, watch=epochs, **self.sets.protocol())
        method, checkpoint = self.method(label, batches.n, epochs), path.with_suffix(".pt")
        path.parent.mkdir(exist_ok=True)
        fit(net, method, batches, protocol=protocol, seed=seed, checkpoint=checkpoint, every=2, tick=tick)
        scores = {}
        for name, index in (("valid", valid), ("test", test)):
            h, y = evaluate(net, self.sets.plain(index), method)
            scores |= {f"h_{name}": h.cpu().numpy(), f"y_{name}": y.cpu().numpy(), f"at_{name}": index}
        with (partial := path.with_suffix(".partial")).open("wb") as file:
            np.savez_compressed(file, n=batches.n.cpu().numpy(), **scores)  # type: ignore[union-attr]
        partial.replace(path)
        checkpoint.unlink(missing_ok=True)

    def rate(self) -> float:
        """The learning rate: as asked, else small for pretrained weights and for a network without BatchNorm."""
        usual = 0.01 if "pretrained by" in self.said else 0.02 if self.options.backbone == "lenet" else 0.05
        return self.options.lr or usual

    def finals(self, plan: dict[str, Any]) -> list[list[Any]]:
        """The runs of the finalists: [] before all runs of the coarse round are done."""
        if not all(self.path(*run).exists() for run in plan["coarse"]) or plan["seeds"] <= plan["first_seeds"]:
            return []
        best = measure.ranked(self.options.out)[:2]
        labels = list(dict.fromkeys([FIRST, *best]))
        return [[label, seed, ""] for seed in range(plan["first_seeds"], plan["seeds"]) for label in labels]

    def done(self, plan: dict[str, Any]) -> int:
        """How many of the runs are finished."""
        return sum(self.path(*run).exists() for run in plan["runs"] + self.finals(plan))


def make_plan(
    per_epoch: dict[str, float], budget: float, seeds: int, epochs: int | None = None, most: int = MOST
) -> dict[str, Any]:
    """What fits into a budget: plain data.

    per_epoch: seconds of one epoch of each method, {label: s}; budget: seconds; epochs: given, or chosen from `LEAST`
    to `most`. What does not fit is left out in the order of `DROPS`, and named in `left_out`. `runs` are those that are
    known beforehand, `coarse` among them; the finalists' come later. For the finalists
    the two slowest methods are counted: an upper bound.
    """
    labels, extras, left_out = list(per_epoch), [RANDOM, "learning curve"], []
    drops, wanted = list(DROPS), epochs or LEAST
    while True:
        slowest = sorted((per_epoch[k] for k in labels if k != FIRST), reverse=True)[:2]
        coarse, final = sum(per_epoch[k] for k in labels), per_epoch[FIRST] + sum(slowest)
        extra = per_epoch[FIRST] * (len(CURVE) * ("learning curve" in extras) + (RANDOM in extras))
        each = coarse + final * (seeds - 1) + extra
        if each * wanted <= 0.8 * budget or not drops:
            break
        drop = drops.pop(0)
        if drop in ("a third seed", "a second seed"):
            least = 2 if drop == "a third seed" else 1
            left_out += [f"more seeds than {least}"] * (seeds > least)
            seeds = min(seeds, least)
        elif drop in labels or drop in extras:
            left_out.append(drop)
            labels, extras = ([k for k in some if k != drop] for some in (labels, extras))
    epochs = epochs or int(np.clip(0.8 * budget / each, LEAST, most))
    two = seeds > 2 and (coarse * 2 + final * (seeds - 2) + extra) * most <= 0.8 * budget
    rounds = [[label, seed, ""] for seed in range(1 + two) for label in labels]
    more = [[FIRST, 0, RANDOM]] * (RANDOM in extras)
    more += [[FIRST, 0, part] for part in CURVE] * ("learning curve" in extras)
    return dict(
        epochs=epochs, seeds=seeds, first_seeds=1 + two, coarse=rounds, runs=rounds + more, left_out=left_out,
        per_epoch=per_epoch, seconds=each * epochs, budget=budget,
    )  # fmt: skip


def _plan(trial, left):
    per_epoch, steps = _measured(trial), len(trial.sets.train(trial.parts[0], 0))
    made = make_plan(per_epoch, left, trial.options.seeds, trial.options.epochs, max(MOST, STEPS // steps))
    if trial.options.groups is None and RANDOM not in made["left_out"]:  # nothing to compare it with
        made["runs"] = [run for run in made["runs"] if run[2] != RANDOM]
    return made | {"device": trial.device, "weights": trial.said, "size": trial.size, "streams": trial.sets.streams}


def _measured(trial):
    """Seconds of one epoch of each method: the faster of two steps, after one to warm up."""
    per_epoch = {}
    for label in trial.labels():
        batches, net = trial.sets.train(trial.parts[0], 0), trial.network(0)
        method, spent = trial.method(label, batches.n, LEAST).to(trial.device), []
        began = time.perf_counter()
        for k, (x, y, i) in enumerate(batches):
            method(net, x, y, i).backward()
            if trial.device == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - began)
            began = time.perf_counter()
            if k == 2:
                break
        per_epoch[label] = min(spent[1:] or spent) * len(batches)
    return per_epoch


def describe(plan: dict[str, Any], trial: Trial) -> str:
    """What a trial is going to do and how long that takes, as a text."""
    more = f", then up to {plan['seeds']} seeds of {FIRST} and the two best" * (plan["seeds"] > plan["first_seeds"])
    long = f"{plan['seconds'] / 60:.1f} minutes" if plan["seconds"] >= 60 else f"{plan['seconds']:.0f} seconds"
    lines = [
        f"{len(trial.files.y)} pictures, {len(trial.files.classes)} classes; training, validation, test: "
        + ", ".join(str(len(p)) for p in trial.parts),
        f"network: {trial.options.backbone} at {plan['size']} x {plan['size']} pixels, {plan['weights']}"
        + ("; pictures are read again each epoch" if plan["streams"] else ""),
        f"{len(plan['runs'])} runs of {plan['epochs']} epochs{more}: about {long} on this {plan['device']}",
    ]
    if plan["left_out"]:
        lines.append(f"left out, the budget is too short: {', '.join(plan['left_out'])}")
        lines.append("to have them, give a longer --budget, and another --out: the plan of this one stays")
    if plan["seconds"] > plan["budget"]:
        lines.append("that is more than the budget: it stops in between, and the same command goes on")
    return "\n".join(lines)


class Stop(Exception):
    """The budget is used up."""


def _run_all(trial, plan, deadline):
    """Run what is missing; returns how that ended."""
    show, epochs = sys.stderr.isatty(), plan["epochs"]
    try:
        with tqdm(unit="epoch", disable=not show) as bar:
            for kind in (lambda: plan["coarse"], lambda: trial.finals(plan), lambda: plan["runs"]):
                todo = [run for run in kind() if not trial.path(*run).exists()]
                bar.total = bar.n + epochs * len(todo)
                for label, seed, part in todo:
                    bar.set_description(" ".join(filter(None, (label, part, f"seed {seed}"))))

                    def tick(done, row):
                        bar.update()
                        if time.monotonic() > deadline:
                            raise Stop

                    trial.run(label, seed, part, epochs, tick)
    except Stop:
        return "time is up"
    except KeyboardInterrupt:
        return "interrupted"
    return "done"
