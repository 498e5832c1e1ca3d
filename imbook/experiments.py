"""Every table of the book as data: a row is a `Cell`, a run is a cell with three named seeds, and its record has a key.

`python -m imbook list` prints what is here; `python -m imbook run TABLE` runs what is missing.
"""

import hashlib
import json
import resource
import time
from dataclasses import dataclass, field, fields, replace
from functools import cache
from inspect import signature
from itertools import product

import torch

from imbook import data, metrics, nets
from imbook.fast import chosen
from imbook.methods import METHODS
from imbook.methods.crl import FORMS, LEVELS
from imbook.results import Claim, commit, facts, provenance, rounded, source_hash
from imbook.train import Protocol, evaluate, fit


@dataclass(frozen=True)
class Split:
    """What is trained, held out and tested.

    data: a name for `imbook.data.load`. profile: 'long_tailed', 'step', 'reduced', 'pair' or 'balanced', with its
    ratio or share. n_max: size of the largest class (of 'pair': of the whole set). valid: images a class held out
    first, balanced. order: 'index' (the field's class order) or 'seed' (permuted by the seed `order`). draw: 'seed',
    or 'file' (validation the last images of a class in file order, training the first). classes: of 'pair', the
    classes kept (majority, minority); reduce: of 'reduced', the number of classes that lose images. train_on_valid:
    add the held-out images to the training set; a method may still measure on them, but nothing is selected there.
    labels: several labels an image, derived from its class once the split is drawn (see `imbook.data.Images.derive`).
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

    def indices(self, y, seeds):
        """Positions of the training and of the validation images in y; the latter None where valid is 0."""
        seed = seeds["draw"] if self.draw == "seed" else None
        rest, valid = data.holdout(y, self.valid, seed) if self.valid else (torch.arange(len(y)), None)
        order = data.class_order(int(y.max()) + 1, seeds["order"] if self.order == "seed" else None)
        kept = {
            "long_tailed": lambda z: data.long_tailed(z, self.ratio, seed, self.n_max, order),
            "step": lambda z: data.step(z, self.ratio, seed, self.n_max, order),
            "reduced": lambda z: data.reduced(z, order[: self.reduce].tolist(), self.share, seed),
            "pair": lambda z: data.pair(z, self.n_max, self.share, seed),
            "balanced": lambda z: data.draw(z, [self.n_max or n for n in data.counts(z).tolist()], seed),
        }[self.profile](y[rest])
        train = rest[kept]
        return (torch.cat([train, valid]) if self.train_on_valid else train), valid


@dataclass(frozen=True)
class Cell:
    """One row of a table: what is run, how many seeds, and which number of a paper stands beside it.

    label: the row's name in the table; fact: a key of records/paper_facts.json; reading: the row shows this one of the
    method's `readings` instead of its own prediction. None of them belongs to the run's identity.
    instrument: a stage at which gradients are measured (see `imbook.train.fit`).
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

    def identity(self, seeds):
        """All that the result depends on, as plain data; two cells with equal identity share one record."""
        split, protocol = _changed(self.split), _changed(self.protocol)
        del protocol["name"]
        used = {k: seeds[k] for k in ("order", "draw") if getattr(self.split, k) == "seed"} | {"train": seeds["train"]}
        plain = dict(split=split, net=self.net, protocol=protocol, method=self.method, hyper=self.hyper, seeds=used)
        if self.instrument:
            plain["instrument"] = self.instrument
        return json.loads(json.dumps(plain))

    def key(self, seeds):
        """The record's name: 16 hexadecimal digits of the identity's sha256."""
        return hashlib.sha256(json.dumps(self.identity(seeds), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """A table of the book: its cells, and the seeds that each of them is run with, most valuable first."""

    title: str
    cells: tuple[Cell, ...]
    seeds: tuple[dict, ...]
    device: str = "cpu"
    metric: str = "balanced_accuracy"

    def runs(self):
        """(cell, seeds) pairs, all cells of a seed before the next seed, without repeats."""
        seen = {}
        for seeds in self.seeds:
            for cell in self.cells:
                seen.setdefault(cell.key(seeds), (cell, seeds))
        return list(seen.values())


def make(cell, seeds, device="cpu", dry=False):
    """Network, method and the three `Batches` (train, valid, test) of one run, before training.

    dry: keep one batch of training images and a few of the others, with the true class counts.
    """
    images, test_images = _load(cell.split.data)
    if cell.split.profile == "pair":
        images, test_images = images.only(cell.split.classes), test_images.only(cell.split.classes)
    index, valid = cell.split.indices(images.y, seeds)
    whole, test = index, torch.arange(len(test_images.y))
    if dry:
        some = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[: cell.protocol.batch]
        index, test = index[some], test[:: len(test) // 100]
        valid = None if valid is None else valid[data.draw(images.y[valid], [1] * len(images.classes), None)]
    if cell.split.labels:
        images, test_images = images.derive(cell.split.labels), test_images.derive(cell.split.labels)
    n = data.class_counts(images.y[whole], images.classes)
    classes = tuple(map(len, n)) if isinstance(n, tuple) else len(n)
    p, channels, size = cell.protocol, *images.x.shape[1:3]
    torch.manual_seed(seeds["train"])
    known = dict(inputs=channels * size**2, channels=channels, size=size)
    takes = signature(NETS[cell.net]).parameters
    net = NETS[cell.net](classes=classes, **{name: value for name, value in known.items() if name in takes})
    method = METHODS[cell.method](n, **cell.hyper)
    train = data.Batches(images, index, p.batch, seeds["train"], p.crop, p.flip, device)
    held = None if valid is None else data.Batches(images, valid, device=device)
    return net, method, train, held, data.Batches(test_images, test, device=device)


@cache
def _load(name):
    return data.load(name)  # read and checked once a process, not once a run


def run(cell, seeds, device="cpu", checkpoint=None, tick=None, dry=False, fast=False):
    """Train one cell with one set of seeds; returns its record, a dict of plain data (see `imbook.results`).

    seeds: dict(order=, draw=, train=). device: 'cpu' or 'cuda'. checkpoint: a file to resume from. tick: see `fit`.
    dry: two epochs of one batch of images through the same code; the record is marked and kept out of every table.
    fast: see `fit`; the record then says what was chosen, and its key is the same.
    """
    source_hash(), commit()  # noted once a process, before its first run: the files may change while it trains
    key = ("dry-" if dry else "") + cell.key(seeds)
    if dry:
        hyper = {**cell.hyper, **({"start": 1} if cell.hyper.get("start", 0) > 1 else {})}  # what starts late, too
        protocol = replace(cell.protocol, epochs=2, warmup=min(cell.protocol.warmup, 1), watch=1)
        cell = replace(cell, protocol=protocol, hyper=hyper)
    net, method, train, valid, test = make(cell, seeds, device, dry)
    several = isinstance(train.n, tuple)
    groups = None if several or len(train.n) <= 20 else data.head_middle_tail(train.n.cpu())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    curve = fit(
        net,
        method,
        train,
        valid,
        test,
        protocol=cell.protocol,
        seed=seeds["train"],
        groups=groups,
        instrument=cell.instrument,
        checkpoint=checkpoint,
        tick=tick,
        fast=fast,
    )
    judged = _judged(net, test, method)
    readings = {name: _judged(net, test, reading) for name, reading in method.readings.items()}
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    return dict(
        key=key,
        dry=dry,
        **cell.identity(seeds),
        n=[n_j.tolist() for n_j in train.n] if several else train.n.tolist(),
        groups=None if groups is None else groups.tolist(),
        **judged,
        **({"readings": readings} if readings else {}),
        curve=[{k: rounded(v) for k, v in row.items()} for row in curve],
        seconds=round(time.perf_counter() - began, 2),
        train_seconds=round(curve[-1]["seconds"], 2),
        peak_mb=round(peak),
        method_version=METHODS[cell.method].version,
        **({"fast": chosen(net, train.x.device)} if fast else {}),
        **provenance(device),
    )


def steps(cell, n=None):
    """The number of training steps of one run of a cell: what its time is made of.

    n: the class sizes (C,) of a run; without them those of the labels of its data set, which must be there. Counted
    with the visits of a method that repeats images from an epoch on (`imbook.methods.dos.DOS`,
    `imbook.methods.baselines.OverSampling`).
    """
    n, p = _class_sizes(cell.split) if n is None else n, cell.protocol
    method = METHODS[cell.method](n, **cell.hyper)
    visits, start = int(n.sum()), p.epochs
    if getattr(method, "k", 0):
        visits, start = int((n * method.times).sum()), method.start
    elif getattr(method, "whole", False):
        visits, start = len(n) * int(n.max()), method.start
    return start * -(-int(n.sum()) // p.batch) + (p.epochs - start) * -(-visits // p.batch)


@cache
def _class_sizes(split):
    images, _ = _load(split.data)
    images = images.only(split.classes) if split.profile == "pair" else images
    index, _ = split.indices(images.y, dict(order=0, draw=0))
    return data.counts(images.y[index], len(images.classes))


def _judged(net, test, method):
    scores, y = evaluate(net, test, method)
    labels = [(s, y[:, j]) for j, s in enumerate(scores)] if isinstance(scores, tuple) else [(scores, y)]
    each = [metrics.summary(s, z) for s, z in labels]
    return dict(
        metrics={k: rounded(sum(m[k] for m in each) / len(each), 6) for k in each[0]},
        confusion=[metrics.confusion(s, z).tolist() for s, z in labels],
        auprc=[rounded(metrics.auprc(s.softmax(1), z).tolist()) for s, z in labels],
    )


def _changed(settings):
    """The fields that differ from their default: a field added later does not change the keys of older records."""
    return {f.name: getattr(settings, f.name) for f in fields(settings) if getattr(settings, f.name) != f.default}


NETS = {f.__name__: f for f in (nets.mlp, nets.lenet, nets.resnet8, nets.resnet32, nets.dos_net, nets.dos_net_large)}

# ---------------------------------------------------------------------------------------------------------------------
# Protocols. The CPU ones are ours, chosen so that cross entropy has converged; the others are the papers'.

DIGITS = Protocol("digits", epochs=60, batch=32, lr=0.05, cosine=True, watch=2)
SMALL = Protocol("small", epochs=20, batch=32, lr=0.02, cosine=True, watch=2)
SMALL_WATCHED = replace(SMALL, name="small, watched each epoch", watch=1)
SMALL_LARGE = replace(SMALL, name="small, batches of 128", batch=128, lr=0.05)
SMALL_LONG = replace(SMALL, name="small, three times as long", epochs=60, watch=6)
PAIR = Protocol("pair", epochs=5, batch=64, lr=0.03, cosine=True, watch=5)
CDB_RELEASED = Protocol(  # the released code's, for CIFAR-100-LT [C]
    "cdb-released", 240, 32, 0.1, milestones=(160, 210), decay=0.01, crop=4, flip=True, prior_bias=True, watch=5
)
# Of the paper of deep over-sampling only batches and the number of rounds are known [P]; the rest is ours [R]. Rounds
# begin after `start` epochs and last `every` epochs each (see `DOS_ROUNDS`).
DOS_MNIST = Protocol("dos-mnist", epochs=9, batch=60, lr=0.02, cosine=True, watch=3)  # 3 epochs, 3 rounds of 2
DOS_CIFAR = Protocol("dos-cifar", epochs=40, batch=50, lr=0.01, cosine=True, watch=4)  # 20 epochs, 4 rounds of 5
DOS_SVHN = replace(DOS_CIFAR, name="dos-svhn", epochs=20, batch=60, watch=4)  # 8 epochs, 3 rounds of 4
CIFAR_200 = Protocol(  # the field's for CIFAR with ResNet-32, from LDAM's line of papers [R]
    "cifar-200", 200, 128, 0.1, 0.9, 2e-4, warmup=5, milestones=(160, 180), decay=0.01, crop=4, flip=True, watch=5
)
CIFAR_SHORT = Protocol("cifar-short", epochs=8, batch=128, lr=0.1, warmup=1, cosine=True, crop=4, flip=True, watch=2)


def together(k, first=0):
    """k sets of seeds in which order, draw and training change together, from `first` on."""
    return tuple(dict(order=s, draw=s, train=s) for s in range(first, first + k))


def crossed(k):
    """k^3 sets of seeds: every order with every draw with every training seed; those of crossed(k - 1) come first."""
    cube = sorted(product(range(k), repeat=3), key=max)
    return tuple(dict(order=o, draw=d, train=t) for o, d, t in cube)


def rows(split, net, protocol, *methods):
    """Cells that share everything but the method: each of `methods` is (label, method, hyper-parameters[, fact])."""
    return tuple(Cell(label, split, net, protocol, method, hyper, *fact) for label, method, hyper, *fact in methods)


CE = ("cross entropy", "CrossEntropy", {})
BASELINES = (
    CE,
    ("inverse frequency", "Weighted", {"scheme": "inverse"}),
    ("class-balanced", "Weighted", {"scheme": "effective", "beta": 0.999}),
    ("focal", "Focal", {"gamma": 1.0}),
    ("over-sampling", "OverSampling", {}),
    ("logit adjustment", "LogitAdjusted", {"tau": 1.0}),
    ("balanced softmax", "BalancedSoftmax", {"tau": 1.0}),
)

DIGITS_LT = Split("digits", ratio=20, n_max=120, order="seed")
FASHION_LT = Split("fashion-mnist", ratio=100, n_max=2000, valid=100, order="seed")
MNIST_LT = replace(FASHION_LT, data="mnist")
CIFAR10_LT = Split("cifar10", ratio=100, n_max=4750, valid=250)

CIFAR100_LT = Split("cifar100", ratio=100, n_max=475, valid=25, draw="file")

FASHION_LABELS = replace(  # two labels of different imbalance: the kind of garment, and whether it is an ankle boot
    FASHION_LT, order="index", labels=((0, 1, 0, 0, 0, 2, 0, 2, 3, 2), (0, 0, 0, 0, 0, 0, 0, 0, 0, 1))
)
FASHION_BALANCED = Split("fashion-mnist", "balanced", n_max=500, valid=100)  # as many images as at ratio 100
CRL_CHOICE = {level: {"alpha": 0.1, "kappa": 3} for level in LEVELS}  # by `chosen` from crl-sweep
CRL_CHOICE_BALANCED = {level: {"alpha": 0.25, "kappa": 3} for level in LEVELS}
CRL_CHOICE_CIFAR100 = {level: {"alpha": 0.25, "kappa": 3} for level in LEVELS}  # waits for crl-cifar100-select
CRL_ALPHAS, CRL_KAPPAS = (0.1, 0.25, 0.5, 0.75, 0.9), (1, 8, 25)

CDB_FIXED = tuple((f"CDB, tau {tau:g}", "CDB", {"tau": tau}) for tau in (0.5, 1.0, 1.5, 2.0))
CDB_DYNAMIC = ("CDB, dynamic tau", "CDB", {"tau": "dynamic"})
CDB_OURS = (*CDB_FIXED, CDB_DYNAMIC)
CDB_CODE = ("CDB, released tau", "CDB", {"tau": "dynamic", "variant": "released"})
CDB_ABLATIONS = (
    CDB_DYNAMIC,
    ("dynamic, smoothed 0.5", "CDB", {"tau": "dynamic", "smooth": 0.5}),
    ("dynamic, smoothed 0.9", "CDB", {"tau": "dynamic", "smooth": 0.9}),
    ("dynamic, floor 0.05", "CDB", {"tau": "dynamic", "floor": 0.05}),
    ("dynamic, mean over weights", "CDB", {"tau": "dynamic", "reduction": "weights"}),
)


def crl_rows(choice, forms=FORMS, fact=None):
    """CRL's rows of both levels, each with the alpha and kappa chosen for it: {level: hyper-parameters}."""
    return tuple(
        (
            f"CRL, {level}, {form}",
            "CRL",
            {"level": level, "form": form} | choice[level],
            *([fact] if fact else []),
        )
        for level in LEVELS
        for form in forms
    )


CRL_SIX = crl_rows(CRL_CHOICE)
CRL_OMEGA = ("CRL, class, relative, alpha = 0.01 Omega", "CRL", {"level": "class", "form": "relative"})


def crl_sweep(level, alphas, kappas):
    """CRL's relative form at one level: alpha varied at kappa 3, kappa varied at alpha 0.5."""
    pairs = [(a, 3) for a in alphas] + [(0.5, k) for k in kappas]
    return tuple(
        (f"{level}, alpha {a:g}, kappa {k}", "CRL", {"level": level, "alpha": a, "kappa": k}) for a, k in pairs
    )


# With 1,000 images in a large class a step-imbalanced run costs as much as a long-tailed one with 2,000.
FASHION_STEP = replace(FASHION_LT, profile="step", n_max=1000)
MNIST_STEP = replace(FASHION_STEP, data="mnist")

# Chosen by `results.chosen` from the table mfw-select.
MFW_CHOICE = {"strength": 2.0, "gamma": 0.5, "stage": "stage3"}
CDT_GAMMA = 0.2

MIXUP, MANIFOLD = ("mixup", "Mixup", {"alpha": 1.0}), ("manifold mixup", "ManifoldMixup", {"alpha": 1.0})
MFW_ROW = ("MFW", "MFW", MFW_CHOICE)
MFW_GRID = tuple(
    (f"MFW, strength {s:g}, gamma {g:g}, {stage}", "MFW", {"strength": s, "gamma": g, "stage": stage})
    for s, g, stage in product((0.5, 1.0, 2.0, 4.0), (0.5, 1.0), ("stage2", "stage3"))
)
MFW_ABLATIONS = tuple(
    (f"MFW, {text}", "MFW", MFW_CHOICE | change)
    for text, change in (
        *((f"strength {s:g}", {"strength": s}) for s in (0.5, 1.0, 2.0, 4.0, 8.0)),
        *((f"after {stage}", {"stage": stage}) for stage in ("input", "stage1", "stage2", "stage3")),
        *((f"partner from {which}", {"partner": which}) for which in ("major", "minor", "group")),
        ("nothing mixed in", {"partner": "none"}),
        ("lambda from 0", {"low": 0.0}),
        ("all classes weakened", {"weakened": "all"}),
        ("small classes weakened", {"weakened": "small"}),  # should hurt
    )
    if MFW_CHOICE | change != MFW_CHOICE
)


def deferred(protocol, label="deferred re-weighting", method="Weighted", **hyper):
    """A row whose inverse-frequency weights start after four fifths of the epochs, as in the field's protocol.

    The loss is torch's weighted mean, as there: under milestones a mean over samples would learn 5 to 25 times slower.
    """
    return label, method, {**hyper, "start": protocol.epochs * 4 // 5, "reduction": "weights"}


def mfw_rows(split, net, protocol):
    """The rows of chapter 07."""
    return rows(
        split,
        net,
        protocol,
        CE,
        BASELINES[1],
        deferred(protocol, scheme="inverse"),
        MIXUP,
        MANIFOLD,
        ("Remix", "Remix", {"alpha": 1.0}),
        ("CDT", "CDT", {"gamma": CDT_GAMMA}),
        MFW_ROW,
        deferred(protocol, "MFW + deferred re-weighting", "MFW", **MFW_CHOICE),
    )


def mfw_claims():
    """The claims of the abstract of Ye et al. 2021, as comparisons that runs can answer. Fixed before a run was seen.

    Claims 1 to 4, of the process, are read at stage 3 of LeNet on Fashion-MNIST; 5 and 6, of the result, in the four
    tables of ratio 100.
    """
    ours, ce, claims = MFW_ROW[0], CE[0], []
    kinds = {"step": "step", "lt": "long-tailed"}
    for short, kind in kinds.items():
        of = lambda sign, label, column, when: (sign, f"mfw-instruments-{short}", label, column, when)  # noqa: B023, E731
        lead = lambda sign, label, when: [of(sign, label, "train_major", when), of(-sign, label, "train_minor", when)]  # noqa: B023, E731
        process = (
            (
                1,
                "early, most minor training images are taken for major ones",
                50.0,
                of(1, ce, "minor_as_major", "early"),
            ),
            (1, "early, minor training accuracy is lower", 0.0, *lead(1, ce, "early")),
            (2, "minor gradients are more than twice as large", 2.0, of(1, ce, "gradient_ratio", "all")),
            (
                3,
                "at the end minor classes are over-fitted more than major ones",
                0.0,
                of(1, ce, "gap_minor", "last"),
                of(-1, ce, "gap_major", "last"),
            ),
            (4, "MFW brings training accuracies nearer", 0.0, *lead(1, ce, "all"), *lead(-1, ours, "all")),
            (
                4,
                "MFW brings gradients nearer",
                0.0,
                of(1, ce, "gradient_imbalance", "all"),
                of(-1, ours, "gradient_imbalance", "all"),
            ),
            (
                4,
                "MFW over-fits minor classes less",
                0.0,
                of(1, ce, "gap_minor", "last"),
                of(-1, ours, "gap_minor", "last"),
            ),
        )
        claims += [Claim(number, f"{text}: {kind}", tuple(terms), above) for number, text, above, *terms in process]
    for short, name in (("fashion", "Fashion-MNIST"), ("mnist", "MNIST")):
        of = lambda sign, kind, label: (sign, f"mfw-{short}-{kind}-100", label, "balanced_accuracy")  # noqa: B023, E731
        for kind, text in kinds.items():
            rivals = [c.label for c in mfw_rows(FASHION_STEP, "lenet", SMALL) if not c.label.startswith(ours)]
            claims += [
                Claim(5, f"MFW is better than {rival}: {name}, {text}", (of(1, kind, ours), of(-1, kind, rival)))
                for rival in rivals
            ]
        gain = [of(s * t, kind, label) for s, kind in ((1, "step"), (-1, "lt")) for t, label in ((1, ours), (-1, ce))]
        claims.append(Claim(6, f"MFW gains more on step than on long-tailed data: {name}", tuple(gain)))
    return tuple(claims)


DOS_ROUNDS = {  # the same epochs for every row of a table
    DOS_MNIST: {"start": 3, "every": 2},
    DOS_CIFAR: {"start": 20, "every": 5},
    DOS_SVHN: {"start": 8, "every": 4},
    CIFAR_SHORT: {"start": 5, "every": 1},
    SMALL: {"start": 8, "every": 4},
    CIFAR_200: {"start": 120, "every": 20},
}


def dos_row(protocol, k=5, label=None, **hyper):
    """DOS in the rounds of a protocol."""
    return label or f"DOS, k = {k}", "DOS", {"k": k, **DOS_ROUNDS[protocol], **hyper}


def abstract_row(protocol, groups, text="", **hyper):
    """DOS with abstract labels in the rounds of a protocol."""
    hyper = {"k": 5, "groups": groups, **DOS_ROUNDS[protocol], **hyper}
    return f"DOS + abstract labels, G = {groups}{text}", "DOSAbstract", hyper


def dos_over_sampling(protocol):
    """Images repeated until all classes are as large: as many steps as DOS, without its loss. The control [R]."""
    return "over-sampling", "OverSampling", {"whole": True, "start": DOS_ROUNDS[protocol]["start"]}


def cnn_rows(split, net, protocol):
    """The network, and two classifiers on its features: one training, three rows."""
    labels = (("CNN", None), ("CNN-CL, kNN", "knn"), ("CNN-CL, logistic regression", "logistic"))
    return tuple(Cell(label, split, net, protocol, "CNNCL", reading=reading) for label, reading in labels)


def dos_table(title, split, net, protocol, seeds, device="cpu"):
    """The table of Ando and Huang 2017 for one data set and one share p; without p, for balanced data."""
    hyper = {} if split.profile == "reduced" else {"minority": "all"}
    control = [dos_over_sampling(protocol)] if split.profile == "reduced" else []
    methods = rows(split, net, protocol, *control, *(dos_row(protocol, k, **hyper) for k in (3, 5, 10)))
    return Table(title, cnn_rows(split, net, protocol) + methods, seeds, device, metric="macro_f1")


def common_rows(protocol):
    """Cross entropy, its deferred weights, and one row of each method of the book: those of the common tables."""
    dos = dos_row(protocol, minority="half")
    return CE, deferred(protocol, scheme="inverse"), CRL_SIX[0], CDB_DYNAMIC, dos, MFW_ROW


OFTEN = "over-sampling, as often as DOS"


def common_claims():
    """What the book asks of its common table on Fashion-MNIST. Fixed before DOS had a run in it; all its other rows had
    been seen in their chapters.

    Each method against cross entropy (1), against logit adjustment (2), which costs nothing, and against deferred
    re-weighting (3), the simplest of the strong ones; DOS against its own visits (4).
    """
    methods = [label for label, *_ in common_rows(SMALL)[2:]]
    asked = [
        (k, m, rival) for k, rival in ((1, CE[0]), (2, "logit adjustment"), (3, deferred(SMALL)[0])) for m in methods
    ]
    asked.append((4, "DOS, k = 5", OFTEN))
    term = lambda sign, label: (sign, "methods-fashion", label, "balanced_accuracy")  # noqa: E731
    return tuple(Claim(k, f"{m} is better than {rival}", (term(1, m), term(-1, rival))) for k, m, rival in asked)


DOS_SWEPT = Split("mnist", "reduced", share=0.99, reduce=4, order="seed", valid=100)
DOS_FASHION = Split("fashion-mnist", "reduced", share=0.9, reduce=4, order="seed")
DOS_CHANGES = (  # one at a time
    *((f"lambda {v:g}", {"lambda_": v}) for v in (0.0, 0.1, 3.0, 10.0)),
    ("distances over their spread", {"scale": "spread"}),
    ("distances over their spread, lambda 0.1", {"scale": "spread", "lambda_": 0.1}),
    ("distances as they are", {"scale": "none"}),
    ("distances as they are, lambda 0.01", {"scale": "none", "lambda_": 0.01}),
    ("distances over D", {"scale": "features"}),
    ("w uniform over their sum", {"w": "uniform"}),
    ("w equal", {"w": "equal"}),
    ("equations (1) to (5)", {"w": "none"}),
    ("v with gradient", {"v": "live"}),
    ("r = 0.25 / R", {"r": 0.25}),
    ("r = 2 / R", {"r": 2.0}),
    ("f ends at F400", {"stage": "stage3"}),
)


def with_valid(split, net, protocol, *methods):
    """The rows of baselines that train on the held-out images too: what CDB's validation set costs the others."""
    return rows(
        replace(split, train_on_valid=True), net, protocol, *((f"{m[0]} + validation", *m[1:]) for m in methods)
    )


def cdb_facts(ratio, *methods):
    """The methods with the key of the paper's number for CIFAR-100-LT at this ratio, where one is known."""
    return tuple((*m, key) if (key := f"cdb/cifar100-lt-{ratio}/{m[0]}") in facts() else m for m in methods)


TABLES = {
    "digits": Table("Digits, long-tailed, ratio 20", rows(DIGITS_LT, "mlp", DIGITS, CE, BASELINES[1]), together(3)),
    "fashion": Table(
        "Fashion-MNIST, long-tailed, ratio 100", rows(FASHION_LT, "lenet", SMALL, *BASELINES), together(10)
    ),
    "mnist": Table("MNIST, long-tailed, ratio 100", rows(MNIST_LT, "lenet", SMALL, *BASELINES), together(10)),
    "cifar10": Table(
        "CIFAR-10, long-tailed, ratio 100, short protocol",
        rows(CIFAR10_LT, "resnet8", CIFAR_SHORT, *BASELINES[:5]),
        together(3),
    ),
    "fashion-seeds": Table(
        "Fashion-MNIST: order, draw and training seeds crossed", rows(FASHION_LT, "lenet", SMALL, CE), crossed(3)
    ),
    "crl-fashion": Table(
        "CRL on Fashion-MNIST, long-tailed, ratio 100",
        rows(FASHION_LT, "lenet", SMALL, *BASELINES, *CRL_SIX, CRL_OMEGA),
        together(10),
    ),
    "crl-fashion-10": Table(
        "CRL on Fashion-MNIST, long-tailed, ratio 10",
        rows(replace(FASHION_LT, ratio=10), "lenet", SMALL, CE, BASELINES[1], BASELINES[6], *CRL_SIX, CRL_OMEGA),
        together(5),
    ),
    "crl-fashion-balanced": Table(
        "CRL on balanced Fashion-MNIST",
        rows(FASHION_BALANCED, "lenet", SMALL, CE, *crl_rows(CRL_CHOICE_BALANCED)),
        together(5),
    ),
    "crl-balanced-claim": Table(
        "CRL on balanced Fashion-MNIST, the relative form, enough seeds for a test",
        rows(FASHION_BALANCED, "lenet", SMALL, CE, *crl_rows(CRL_CHOICE_BALANCED, FORMS[:1])),
        together(10),
    ),
    "crl-batch": Table(
        "CRL on Fashion-MNIST, long-tailed, ratio 100, batches of 128",
        rows(FASHION_LT, "lenet", SMALL_LARGE, CE, CRL_SIX[0], CRL_SIX[3], CRL_OMEGA),
        together(10),
    ),
    "crl-cifar10": Table(
        "CRL on CIFAR-10, long-tailed, ratio 100, short protocol",
        rows(CIFAR10_LT, "resnet8", CIFAR_SHORT, *BASELINES[:5], CRL_SIX[0], CRL_SIX[2], CRL_SIX[3]),
        together(3),
    ),
    "crl-sweep": Table(
        "CRL on Fashion-MNIST, long-tailed, ratio 100: alpha and kappa, judged on the validation images",
        rows(
            FASHION_LT,
            "lenet",
            SMALL,
            CE,
            ("class, alpha 0.0049, Omega as a share", "CRL", {"level": "class", "alpha": 0.0049}),
            *(row for level in LEVELS for row in crl_sweep(level, CRL_ALPHAS, CRL_KAPPAS)),
        ),
        together(3, first=100),
    ),
    "crl-sweep-balanced": Table(
        "CRL on balanced Fashion-MNIST: alpha, judged on the validation images",
        rows(
            FASHION_BALANCED,
            "lenet",
            SMALL,
            CE,
            *(row for level in LEVELS for row in crl_sweep(level, CRL_ALPHAS[:3], ())),
        ),
        together(3, first=100),
    ),
    "crl-attributes": Table(
        "Fashion-MNIST, long-tailed, ratio 100, with two labels an image: kind of garment, ankle boot or not",
        rows(FASHION_LABELS, "lenet", SMALL, CE, CRL_SIX[0], CRL_SIX[3], CRL_OMEGA),
        together(5),
    ),
    "cdb-fashion": Table(
        "CDB on Fashion-MNIST, long-tailed, ratio 100",
        rows(FASHION_LT, "lenet", SMALL, *BASELINES, *CDB_OURS, CDB_CODE)
        + with_valid(FASHION_LT, "lenet", SMALL, CE, BASELINES[1], BASELINES[6]),
        together(10),
    ),
    "cdb-cifar10": Table(
        "CDB on CIFAR-10, long-tailed, ratio 100, short protocol",
        rows(CIFAR10_LT, "resnet8", CIFAR_SHORT, *BASELINES[:5], CDB_FIXED[1], CDB_DYNAMIC),
        together(3),
    ),
    "cdb-ablations": Table(
        "CDB on Fashion-MNIST: what matters",
        rows(FASHION_LT, "lenet", SMALL, *CDB_ABLATIONS),
        together(5),
    ),
    "cdb-noise": Table(
        "CDB on Fashion-MNIST with 25 validation images a class",
        rows(replace(FASHION_LT, valid=25), "lenet", SMALL, CE, CDB_ABLATIONS[0], CDB_ABLATIONS[2]),
        together(5),
    ),
    "cdb-long": Table(
        "CDB on Fashion-MNIST, long-tailed, ratio 100, trained three times as long",
        rows(FASHION_LT, "lenet", SMALL_LONG, CE, CDB_FIXED[1], CDB_DYNAMIC),
        together(3),
    ),
    "cdb-fashion-10": Table(
        "CDB on Fashion-MNIST, long-tailed, ratio 10",
        rows(replace(FASHION_LT, ratio=10), "lenet", SMALL, CE, BASELINES[1], BASELINES[6], *CDB_OURS),
        together(5),
    ),
    "mfw-select": Table(  # long-tailed, since on step-imbalanced data gamma does nothing: shares are 0 or 1
        "MFW and CDT on Fashion-MNIST, long-tailed, ratio 100: the grid, judged on the validation images",
        rows(
            FASHION_LT,
            "lenet",
            SMALL,
            *MFW_GRID,
            *((f"CDT, gamma {g:g}", "CDT", {"gamma": g}) for g in (0.1, 0.2, 0.3)),
        ),
        together(2, first=100),
    ),
    **{
        f"mfw-{name}-{ratio}": Table(
            f"MFW on {title}, ratio {ratio}",
            mfw_rows(replace(split, ratio=ratio), "lenet", SMALL),
            together(10 if ratio == 100 else 5),
        )
        for ratio in (100, 10)
        for name, title, split in (
            ("fashion-step", "Fashion-MNIST, step-imbalanced", FASHION_STEP),
            ("fashion-lt", "Fashion-MNIST, long-tailed", FASHION_LT),
            ("mnist-step", "MNIST, step-imbalanced", MNIST_STEP),
            ("mnist-lt", "MNIST, long-tailed", MNIST_LT),
        )
    },
    "mfw-cifar10": Table(
        "MFW on CIFAR-10, long-tailed, ratio 100, short protocol",
        mfw_rows(CIFAR10_LT, "resnet8", CIFAR_SHORT),
        together(3),
    ),
    **{
        f"mfw-instruments-{name}": Table(
            f"Training accuracy and gradients at stage 3, each epoch: Fashion-MNIST, {title}, ratio 100",
            tuple(
                replace(cell, instrument="stage3")
                for cell in rows(split, "lenet", SMALL_WATCHED, CE, MIXUP, MANIFOLD, MFW_ROW)
            ),
            together(10),
        )
        for name, title, split in (("step", "step-imbalanced", FASHION_STEP), ("lt", "long-tailed", FASHION_LT))
    },
    "mfw-ablations": Table(
        "MFW on Fashion-MNIST, step-imbalanced, ratio 100: what matters",
        rows(FASHION_STEP, "lenet", SMALL, CE, MFW_ROW, *MFW_ABLATIONS),
        together(5),
    ),
    **{  # the field's counts, without a held-out part: these rows are held against the field's numbers
        f"mfw-cifar{classes}-{short}-{ratio}": Table(
            f"MFW on CIFAR-{classes}, {title}, ratio {ratio}, ResNet-32, 200 epochs",
            mfw_rows(Split(f"cifar{classes}", profile, ratio, n_max=n_max), "resnet32", CIFAR_200),
            together(3),
            device="cuda",
        )
        for classes, n_max in ((10, 5000), (100, 500))
        for short, title, profile in (("lt", "long-tailed", "long_tailed"), ("step", "step-imbalanced", "step"))
        for ratio in (100, 10)
    },
    **{
        f"cdb-mnist-{share:g}": Table(
            f"MNIST, 4 against 9, majority share {share:g}",
            rows(
                Split("mnist", "pair", share=share, n_max=5000, valid=100, classes=(9, 4)),
                "lenet",
                PAIR,
                *BASELINES[:5],
                *CDB_OURS,
                ("CDB, tau 0.5, floor 0.05", "CDB", {"tau": 0.5, "floor": 0.05}),
            ),
            together(10),
            metric="accuracy",
        )
        for share in (0.9, 0.95, 0.98, 0.99, 0.995)
    },
    "crl-cifar100-select": Table(
        "CRL on balanced CIFAR-100: alpha, judged on the validation images",
        rows(
            Split("cifar100", "balanced", n_max=475, valid=25),
            "resnet32",
            CIFAR_200,
            CE,
            *(row for level in LEVELS for row in crl_sweep(level, (0.05, *CRL_ALPHAS[:3]), ())),
        ),
        together(1, first=100),
        device="cuda",
    ),
    "crl-cifar100-balanced": Table(
        "CRL on balanced CIFAR-100",
        rows(
            Split("cifar100", "balanced"),
            "resnet32",
            CIFAR_200,
            (*CE, "crl/cifar100-balanced/cross entropy"),
            *crl_rows(CRL_CHOICE_CIFAR100, FORMS[:1], "crl/cifar100-balanced/CRL"),
        ),
        together(3),
        device="cuda",
        metric="accuracy",
    ),
    **{
        f"crl-{split.data}-{name}-100": Table(
            f"CRL on {'CIFAR-100' if split.data == 'cifar100' else 'CIFAR-10'}, {title}, ratio 100",
            rows(
                replace(split, profile=profile, draw="seed"),
                "resnet32",
                CIFAR_200,
                CE,
                deferred(CIFAR_200, scheme="inverse"),
                CRL_SIX[0],
                CRL_SIX[3],
            ),
            together(3),
            device="cuda",
        )
        for split in (CIFAR10_LT, CIFAR100_LT)
        for name, profile, title in (("lt", "long_tailed", "long-tailed"), ("step", "step", "step"))
    },
    **{
        f"methods-{split.data}-{name}-100": Table(
            f"The methods of the book on {title}, {text}, ratio 100",
            rows(replace(split, profile=profile, draw="seed"), "resnet32", CIFAR_200, *common_rows(CIFAR_200)),
            together(5),
            device="cuda",
        )
        for split, title in ((CIFAR10_LT, "CIFAR-10"), (CIFAR100_LT, "CIFAR-100"))
        for name, profile, text in (("lt", "long_tailed", "long-tailed"), ("step", "step", "step-imbalanced"))
    },
    **{
        f"dos-{name}-{p:g}": dos_table(
            f"DOS on {title}, four classes without {100 * p:g} % of their images",
            Split(name, "reduced", share=p, reduce=4, order="seed"),
            "dos_net",
            DOS_MNIST,
            together(seeds),
        )
        for name, title, seeds in (("mnist", "MNIST", 10), ("fashion-mnist", "Fashion-MNIST", 6))
        for p in (0.99, 0.95, 0.9)
    },
    "dos-fashion-live": Table(  # made after DOS had lost to over-sampling there, to test an explanation
        "DOS on Fashion-MNIST, four classes without 90 %, with gradient through the neighbours",
        cnn_rows(DOS_FASHION, "dos_net", DOS_MNIST)[:1]
        + rows(
            DOS_FASHION,
            "dos_net",
            DOS_MNIST,
            dos_over_sampling(DOS_MNIST),
            dos_row(DOS_MNIST),
            dos_row(DOS_MNIST, label="DOS, v with gradient", v="live"),
        ),
        together(6),
        metric="macro_f1",
    ),
    "methods-fashion": Table(
        "The methods of the book on Fashion-MNIST, long-tailed, ratio 100",
        rows(
            FASHION_LT,
            "lenet",
            SMALL,
            *common_rows(SMALL),
            BASELINES[1],
            BASELINES[5],
            (OFTEN, *dos_over_sampling(SMALL)[1:]),
        ),
        together(10),
    ),
    "methods-cifar10": Table(
        "The methods of the book on CIFAR-10, long-tailed, ratio 100, short protocol",
        rows(
            CIFAR10_LT,
            "resnet8",
            CIFAR_SHORT,
            *common_rows(CIFAR_SHORT),
            BASELINES[1],
            (OFTEN, *dos_over_sampling(CIFAR_SHORT)[1:]),
        ),
        together(3),
    ),
    "dos-mnist-balanced": dos_table(
        "DOS on balanced MNIST", Split("mnist", "balanced"), "dos_net", DOS_MNIST, together(6)
    ),
    "dos-choices": Table(
        "DOS on MNIST, p = 0.99: what the paper leaves open, judged on the validation images",
        rows(
            DOS_SWEPT,
            "dos_net",
            DOS_MNIST,
            CE,
            dos_over_sampling(DOS_MNIST),
            dos_row(DOS_MNIST),
            *(dos_row(DOS_MNIST, label=f"DOS, {text}", **change) for text, change in DOS_CHANGES),
        ),
        together(2, first=100),
    ),
    "dos-abstract-mnist": Table(
        "DOS with abstract labels on MNIST, p = 0.99",
        rows(
            Split("mnist", "reduced", share=0.99, reduce=4, order="seed"),
            "dos_net",
            DOS_MNIST,
            dos_row(DOS_MNIST),
            abstract_row(DOS_MNIST, 2),
            abstract_row(DOS_MNIST, 4),
            abstract_row(DOS_MNIST, 2, ", head alone", block_weight=0.0),
            abstract_row(DOS_MNIST, 2, ", blocks alone", head_weight=0.0),
        ),
        together(6),
        metric="macro_f1",
    ),
    "dos-cifar10": Table(
        "DOS on CIFAR-10, long-tailed, ratio 100, short protocol",
        rows(
            CIFAR10_LT,
            "resnet8",
            CIFAR_SHORT,
            CE,
            dos_over_sampling(CIFAR_SHORT),
            dos_row(CIFAR_SHORT, minority="half"),
            abstract_row(CIFAR_SHORT, 2, minority="half"),
        ),
        together(3),
    ),
    **{
        f"dos-{name}-{p:g}" if p else f"dos-{name}-balanced": dos_table(
            f"DOS on {title}, " + (f"{reduce} classes without {100 * p:g} % of their images" if p else "balanced"),
            Split(name, "reduced", share=p, reduce=reduce, order="seed") if p else Split(name, "balanced"),
            net,
            protocol,
            together(5),
            device="cuda",
        )
        for name, title, net, protocol, reduce, shares in (
            ("cifar10", "CIFAR-10", "dos_net_large", DOS_CIFAR, 4, (0.99, 0.95, 0.9, None)),
            ("cifar100", "CIFAR-100", "dos_net_large", DOS_CIFAR, 40, (0.95, 0.9)),
            ("svhn", "SVHN", "dos_net", DOS_SVHN, 4, (0.99, 0.95, 0.9, None)),
        )
        for p in shares
    },
    **{
        f"dos-abstract-{split.data}-{name}": Table(
            f"DOS with abstract labels on {title}, {text}",
            rows(
                split,
                net,
                protocol,
                CE,
                dos_over_sampling(protocol),
                dos_row(protocol, **hyper),
                *(abstract_row(protocol, g, **known, **hyper) for g in groups),
            ),
            together(3),
            device="cuda",
        )
        for split, title, few, groups, known in (
            (CIFAR10_LT, "CIFAR-10", 4, (2, 5), {}),
            (
                replace(CIFAR100_LT, draw="seed"),
                "CIFAR-100",
                40,
                (2, 20),
                {"super_classes": data.SUPER_CLASSES["cifar100"]},
            ),
        )
        for name, split, text, net, protocol, hyper in (
            (
                "0.95",
                Split(split.data, "reduced", share=0.95, reduce=few, order="seed"),
                f"{few} classes without 95 % of their images",
                "dos_net_large",
                DOS_CIFAR,
                {},
            ),
            ("lt-100", split, "long-tailed, ratio 100", "resnet32", CIFAR_200, {"minority": "half"}),
        )
    },
    **{
        f"cdb-cifar100-{ratio}": Table(
            f"CDB on CIFAR-100-LT, ratio {ratio}, the released protocol",
            rows(
                replace(CIFAR100_LT, ratio=ratio),
                "resnet32",
                CDB_RELEASED,
                *cdb_facts(ratio, CE, BASELINES[3], *CDB_OURS, CDB_CODE),
            ),
            together(3),
            device="cuda",
        )
        for ratio in (100, 200, 50, 20, 10)
    },
}

# ---------------------------------------------------------------------------------------------------------------------
# The queue of the GPU, most valuable first: parts of tables, as (table, number of seeds, labels of cells or all).

BOTH, CIFARS = ("lt", "step"), ("cifar10", "cifar100")
STAGES = {
    "stage-1": (
        *((f"methods-{name}-{profile}-100", 3, ()) for name in CIFARS for profile in BOTH),
        ("cdb-cifar100-100", 3, (CE[0], "focal", "CDB, tau 1", CDB_DYNAMIC[0], CDB_CODE[0])),
        ("crl-cifar100-balanced", 3, (CE[0], CRL_SIX[0][0])),
    ),
    "stage-2": (
        *((f"cdb-cifar100-{ratio}", 3, ()) for ratio in (100, 200, 50, 20, 10)),
        *((f"mfw-{name}-{profile}-100", 3, ()) for name in CIFARS for profile in BOTH),
        *((f"dos-abstract-{name}-{what}", 3, ()) for name in CIFARS for what in ("lt-100", "0.95")),
        *((f"crl-{name}-{profile}-100", 3, ()) for name in CIFARS for profile in BOTH),
        ("crl-cifar100-balanced", 3, ()),
        *((f"mfw-{name}-{profile}-10", 3, ()) for name in CIFARS for profile in BOTH),
    ),
    "stage-3": (
        *((f"methods-{name}-{profile}-100", 5, ()) for name in CIFARS for profile in BOTH),
        ("crl-cifar100-select", 1, ()),
        *((f"dos-cifar10-{p}", 5, ()) for p in (0.99, 0.95, 0.9, "balanced")),
        *((f"dos-cifar100-{p}", 5, ()) for p in (0.95, 0.9)),
        *((f"dos-svhn-{p}", 5, ()) for p in (0.99, 0.95, 0.9, "balanced")),
    ),
}
