"""What can be run, as data: a `Split` of a data set, a `Row` of a table, a `Table`. `imbook.experiments` runs them.

A run is a row with three named seeds, and its record has a key. The book's own rows and tables are in `imbook.tables`.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field, fields
from functools import cache
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from imbook import data, nets, nets_large
from imbook.large import LARGE
from imbook.methods import METHODS
from imbook.train import Protocol

SEEDS = {"order": "class order", "draw": "draw of the images", "train": "training"}
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "g_mean", "macro_auprc")
PROFILES = {  # the settings that each profile needs, and may have
    "long_tailed": ({"ratio"}, {"n_max"}),
    "step": ({"ratio"}, {"n_max"}),
    "reduced": ({"share", "reduce"}, set()),
    "pair": ({"share", "n_max", "classes"}, set()),
    "balanced": (set(), {"n_max"}),
    "gaussian": ({"share"}, {"n_max"}),
    "official": (set(), set()),
}
_SMALL = (nets.mlp, nets.lenet, nets.resnet8, nets.resnet32, nets.dos_net, nets.dos_net_large)
_LARGE = (nets_large.resnet10, nets_large.resnet18, nets_large.resnet50, nets_large.r3d_18, nets_large.deepid2)
NETS: dict[str, Any] = {f.__name__: f for f in (*_SMALL, *_LARGE)}


@dataclass(frozen=True)
class Split:
    """What is trained, held out and tested.

    data: a name for `imbook.data.load` or `imbook.large.parts`. profile: 'long_tailed', 'step', 'reduced', 'gaussian',
    'pair' or 'balanced', with its ratio or share; or 'official', the parts of `imbook.large.parts` as they are. n_max:
    size of the largest class (of 'pair': of the whole set). valid: images per class held out first, balanced. order:
    'index' (the field's class order) or 'seed' (permuted by the seed `order`). draw: 'seed', or 'file' (validation the
    last images of a class in file order, training the first). classes: of 'pair', the classes kept (majority,
    minority); reduce: of 'reduced', the number of classes that lose images. train_on_valid: add the held-out images to
    the training set; a method may still measure on them, but nothing is selected there. labels: several labels per
    image, derived from its class once the split is drawn (see `imbook.data.Images.derive`).
    ValueError for an unknown name or an impossible number, a setting that the profile needs and lacks, and one that it
    does not use.
    """

    data: str
    profile: str = "long_tailed"
    ratio: float | None = None
    share: float | None = None
    n_max: int | None = None
    valid: int = 0
    order: str = "index"
    draw: str = "seed"
    classes: tuple[int, ...] = ()
    reduce: int = 0
    train_on_valid: bool = False
    labels: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, known in (
            ("data", ["digits", *data.SOURCES, *LARGE]),
            ("profile", list(PROFILES)),
            ("order", ["index", "seed"]),
            ("draw", ["seed", "file"]),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: choose from {', '.join(map(repr, known))}")
        needed, allowed = PROFILES[self.profile]
        given = {f for f in ("ratio", "share", "n_max", "classes", "reduce") if getattr(self, f) not in (None, (), 0)}
        if missing := needed - given:
            raise ValueError(f"profile {self.profile!r} needs {', '.join(sorted(missing))}")
        if unused := given - needed - allowed:
            raise ValueError(f"profile {self.profile!r} does not use {', '.join(sorted(unused))}: leave it out")
        for name, fits, said in (
            ("ratio", lambda v: 1 <= v < math.inf, "the largest class over the smallest, 1 or more"),
            ("share", lambda v: 0 < v < 1, "a part, between 0 and 1"),
            ("n_max", lambda v: v == int(v) >= 1, "images, a whole number from 1 on"),
            ("reduce", lambda v: v == int(v) >= 0, "classes, a whole number"),
            ("valid", lambda v: v == int(v) >= self.train_on_valid, "images per class, 1 or more for train_on_valid"),
            ("classes", lambda v: len(set(v)) == len(v), "each class once"),
        ):
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise ValueError(f"{name} {value!r}: {said}")
        if self.profile == "official" and (self.data not in LARGE or self.valid or self.labels):
            raise ValueError(
                f"profile 'official' takes {', '.join(LARGE)} as they are, here is {self.data!r} with valid "
                f"{self.valid} and labels {self.labels}: leave these out, or choose another profile"
            )
        if self.ratio is not None and self.ratio == int(self.ratio):
            object.__setattr__(self, "ratio", int(self.ratio))  # 100.0 is 100, also in a key

    def indices(self, y: Tensor, seeds: dict[str, int]) -> tuple[Tensor, Tensor | None]:
        """Positions of the training and of the validation images in y; the latter None where valid is 0."""
        seed = seeds["draw"] if self.draw == "seed" else None
        rest, valid = data.holdout(y, self.valid, seed) if self.valid else (torch.arange(len(y)), None)
        own: Any = self  # __post_init__ has seen to it that what the profile needs is not None
        order = data.class_order(int(y.max()) + 1, seeds["order"] if self.order == "seed" else None)
        kept = {
            "long_tailed": lambda left: data.long_tailed(left, own.ratio, seed, self.n_max, order),
            "step": lambda left: data.step(left, own.ratio, seed, self.n_max, order),
            "reduced": lambda left: data.reduced(left, order[: self.reduce].tolist(), own.share, seed),
            "pair": lambda left: data.pair(left, own.n_max, own.share, seed),
            "gaussian": lambda left: data.gaussian(left, own.share, seed, self.n_max, order),
            "balanced": lambda left: data.draw(left, [self.n_max or n for n in data.counts(left).tolist()], seed),
        }[self.profile](y[rest])
        train = rest[kept]
        return (torch.cat([train, valid]) if self.train_on_valid and valid is not None else train), valid


@dataclass(frozen=True)
class Row:
    """One row of a table: what is run, and which number of a paper stands beside it.

    label: the row's name in the table; fact: a key of records/paper_facts.json; reading: the row shows this one of the
    method's `readings` instead of its own prediction. None of them belongs to the run's identity.
    instrument: a stage at which gradients are measured (see `imbook.train.fit`).
    adjusted: strengths tau at which the trained method's scores are also read with adjusted logits, as the readings
    'adjusted, tau T' (`imbook.methods.afterwards.adjusted`).
    ValueError for a network, a method or a hyper-parameter that does not exist. A whole number given for a fractional
    hyper-parameter counts as that fraction: tau 1 and tau 1.0 are one row.
    """

    label: str
    split: Split
    net: str
    protocol: Protocol
    method: str = "CrossEntropy"
    hyper: dict = field(default_factory=dict)
    fact: str | None = None
    instrument: str | None = None
    reading: str | None = None
    adjusted: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("net", NETS), ("method", METHODS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{self.label}: {name} {getattr(self, name)!r}: choose from {', '.join(known)}")
        has = _hyper_parameters(self.method)
        if unknown := [k for k in self.hyper if k not in has]:
            raise ValueError(f"{self.label}: {self.method} has no {', '.join(unknown)}: choose from {', '.join(has)}")
        object.__setattr__(self, "hyper", {k: _fraction(v, has[k]) for k, v in self.hyper.items()})

    def identity(self, seeds: dict[str, int]) -> dict[str, Any]:
        """All that the result depends on, as plain data; two rows with equal identity share one record."""
        split, protocol = _changed(self.split), _changed(self.protocol)
        del protocol["name"]
        used = {k: seeds[k] for k in ("order", "draw") if getattr(self.split, k) == "seed"} | {"train": seeds["train"]}
        plain: dict[str, Any] = dict(split=split, net=self.net, protocol=protocol, method=self.method, hyper=self.hyper)
        plain["seeds"] = used
        if self.instrument:
            plain["instrument"] = self.instrument
        if self.adjusted:
            plain["adjusted"] = [float(tau) for tau in self.adjusted]
        return json.loads(json.dumps(plain))

    def key(self, seeds: dict[str, int]) -> str:
        """The record's name: 16 hexadecimal digits of the identity's sha256."""
        return hashlib.sha256(json.dumps(self.identity(seeds), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """A table of the book: its rows, and the seeds that each of them is run with, most valuable first.

    ValueError where two rows have one label, for seeds without order, draw and train, for an unknown device or metric.
    """

    title: str
    rows: tuple[Row, ...]
    seeds: tuple[dict, ...]
    device: str = "cpu"
    metric: str = "balanced_accuracy"

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"{self.title}: rows {labels}: at least one, each with a label of its own")
        if not self.seeds or any(seeds.keys() != SEEDS.keys() for seeds in self.seeds):
            raise ValueError(f"{self.title}: seeds {self.seeds}: each set names {', '.join(SEEDS)}")
        for name, known in (("device", ("cpu", "cuda")), ("metric", METRICS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{self.title}: {name} {getattr(self, name)!r}: choose from {', '.join(known)}")

    def runs(self) -> list[tuple[Row, dict[str, int]]]:
        """(row, seeds) pairs, all rows of a set of seeds before the next set, without repeats."""
        seen = {}
        for seeds in self.seeds:
            for row in self.rows:
                seen.setdefault(row.key(seeds), (row, seeds))
        return list(seen.values())

    def varied(self) -> str:
        """What differs from run to run of a row, in words: those of the three seeds that its split uses and vary."""
        used = [k for k in SEEDS if k == "train" or any(getattr(row.split, k) == "seed" for row in self.rows)]
        varied = [SEEDS[k] for k in used if len({seeds[k] for seeds in self.seeds}) > 1]
        fixed = [SEEDS[k] for k in SEEDS if SEEDS[k] not in varied]
        said = f"varied over the seeds: {', '.join(varied) or 'nothing'}"
        return f"{said}; the same in all runs: {', '.join(fixed)}" if fixed else said

    def caption(self, metric: str | None = None) -> str:
        """What a reader must know of the numbers: title, metric (default: the table's), how many seeds, what varies."""
        metric = (metric or self.metric).replace("_", " ")
        sets = f"{len(self.seeds)} {'set' if len(self.seeds) == 1 else 'sets'} of seeds"
        return f"{self.title}: {metric} in per cent, mean and sd over {sets} ({self.varied()})"


def _changed(settings: Any) -> dict[str, Any]:
    """The fields that differ from their default: a field added later does not change the keys of older records."""
    return {f.name: getattr(settings, f.name) for f in fields(settings) if getattr(settings, f.name) != f.default}


@cache
def _hyper_parameters(method: str) -> dict[str, Parameter]:
    """The hyper-parameters of a method, {name: parameter}: of its constructor, and of those it passes more on to."""
    found = {}
    for cls in METHODS[method].__mro__:
        if "__init__" in vars(cls):
            own = signature(vars(cls)["__init__"]).parameters
            named = {k: p for k, p in own.items() if k not in ("self", "n") and p.kind is not p.VAR_KEYWORD}
            found = {**named, **found}
            if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
                break
    return found


def _fraction(value: Any, parameter: Parameter) -> Any:
    """A whole number as a float where the parameter is a fraction by its default, or may be one by its annotation."""
    fractional = isinstance(parameter.default, float | str) or "float" in str(parameter.annotation)
    return float(value) if fractional and type(value) is int else value
