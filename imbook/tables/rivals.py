"""Chapter 03, the rivals: simple methods, eight settings each, one chosen on validation images, and what it reaches.

The four methods of the book are tuned here by the same rule and with the same number of settings, for chapter 08.
"""

import json
from collections.abc import Collection
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from imbook.methods.afterwards import EPOCHS, RATES, TAUS
from imbook.rows import Row, Split, Table
from imbook.tables.common import CE, FASHION_LT, FASHION_STEP, MNIST_LT, MNIST_STEP, SMALL, together
from imbook.train import Protocol

SMALL_ONCE = replace(SMALL, name="small, evaluated once", watch=20)
Setting = tuple[str, str, dict[str, Any], str | None]  # what is varied, in words; method; hyper-parameters; reading


def settings(protocol: Protocol) -> dict[str, tuple[Setting, ...]]:
    """{family: its settings}: the first is what a reader would take untuned, and there are eight at most."""
    late, rounds = protocol.epochs * 4 // 5, {"start": protocol.epochs * 2 // 5, "every": protocol.epochs // 5}
    weigh = lambda start, **scheme: ("Weighted", {**scheme, "start": start, "reduction": "weights"})  # noqa: E731
    families: dict[str, list[tuple[Any, ...]]] = {
        "class weights": [
            (f"{text}, from epoch {start}", *weigh(start, **scheme))
            for start in (0, late)
            for text, scheme in (
                ("inverse frequency", {"scheme": "inverse"}),
                *((f"effective number, beta {b:g}", {"scheme": "effective", "beta": b}) for b in (0.999, 0.99, 0.9)),
            )
        ],
        "over-sampling": [
            (f"power {q:g}, from epoch {start}", "OverSampling", {"start": start} | ({"power": q} if q < 1 else {}))
            for start in (0, late)
            for q in (1.0, 0.75, 0.5, 0.25)
        ],
        "focal loss": [
            (f"gamma {g:g}, alpha {alpha or 1}", "Focal", {"gamma": g} | ({"alpha": alpha} if alpha else {}))
            for alpha in (None, "inverse")
            for g in (2.0, 0.5, 1.0, 5.0)
        ],
        "label smoothing": [
            (f"epsilon {e:g}", "LabelSmoothing", {"epsilon": e}) for e in (0.1, 0.02, 0.05, 0.15, 0.2, 0.3, 0.4, 0.5)
        ],
        "logit adjustment": [(f"tau {t:g}", "Afterwards", {}, f"adjusted, tau {t:g}") for t in _first(TAUS, 1.0)],
        "balanced softmax": [(f"tau {t:g}", "BalancedSoftmax", {"tau": t}) for t in _first(TAUS, 1.0)],
        "re-trained classifier": [
            (text, "Afterwards", {}, f"re-trained, {text}")
            for lr, e in _first(tuple(product(RATES, EPOCHS)), (0.1, 10))
            for text in (f"rate {lr:g}, {e} epochs",)
        ],
        "tau-normalisation": [(f"tau {t:g}", "Afterwards", {}, f"normalised, tau {t:g}") for t in _first(TAUS, 1.0)],
        "moved thresholds": [("no setting", "Afterwards", {}, "moved thresholds")],
        "CDT": [(f"gamma {g:g}", "CDT", {"gamma": g}) for g in (0.2, 0.025, 0.05, 0.1, 0.15, 0.25, 0.3, 0.4)],
        "mixup": [(f"alpha {a:g}", "Mixup", {"alpha": a}) for a in (1.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.5, 2.0)],
        "CRL": [
            ("class, alpha 0.01 Omega", "CRL", {"level": "class"}),
            *(
                (f"{level}, alpha {a:g}", "CRL", {"level": level, "alpha": a})
                for level, alphas in (("class", (0.1, 0.25, 0.5, 0.75)), ("instance", (0.1, 0.25, 0.5)))
                for a in alphas
            ),
        ],
        "CDB": [
            ("dynamic tau", "CDB", {"tau": "dynamic"}),
            *((f"tau {t:g}", "CDB", {"tau": t}) for t in (0.25, 0.5, 1.0, 1.5, 2.0)),
            ("dynamic tau, smoothed 0.9", "CDB", {"tau": "dynamic", "smooth": 0.9}),
            ("tau 1, smoothed 0.9", "CDB", {"tau": 1.0, "smooth": 0.9}),
        ],
        "DOS": [
            (f"k {k}, lambda {l:g}, v {v}", "DOS", {"k": k, "lambda_": l, "v": v, "minority": "half"} | rounds)
            for k, v in ((5, "stored"), (3, "stored"), (3, "live"))  # six: a live run takes eight times as long
            for l in (1.0, 0.1)  # noqa: E741
        ],
        "MFW": [
            (f"strength {s:g}, after {stage}", "MFW", {"strength": s, "stage": stage})
            for stage in ("stage3", "stage2")
            for s in (1.0, 0.5, 2.0, 4.0)
        ],
    }
    return {name: tuple((*s, None)[:4] for s in made) for name, made in families.items()}


def _first(values: tuple[Any, ...], default: Any) -> tuple[Any, ...]:
    return default, *(v for v in values if v != default)


def labels(family: str, protocol: Protocol = SMALL_ONCE) -> list[str]:
    """The labels of a family's settings in a grid, the untuned one first."""
    return [f"{family}: {text}" for text, *_ in settings(protocol)[family]]


def grid(split: Split, net: str, protocol: Protocol) -> tuple[Row, ...]:
    """Cross entropy and every setting of every family."""
    return Row(CE[0], split, net, protocol, "Afterwards"), *(
        Row(f"{family}: {text}", split, net, protocol, method, hyper, reading=reading)
        for family, made in settings(protocol).items()
        for text, method, hyper, reading in made
    )


# {set: {family: label}}, by `results.best` on the grids; `python -m tools.choose` writes it from the records.
CHOSEN = Path(__file__).with_name("rivals.json")
CHOICE: dict[str, dict[str, str]] = json.loads(CHOSEN.read_text())


def finals(
    split: Split, net: str, protocol: Protocol, choice: dict[str, str], families: Collection[str] = (),
    untuned: bool = True,
) -> tuple[Row, ...]:  # fmt: skip
    """Cross entropy; each family as it was chosen; logits adjusted on top of some of them.

    choice: {family: label in the grids}; under a protocol with other epochs the setting at its place. families: which
    of them, default all that are chosen. untuned: also each family's first setting, and what should not be combined.
    """
    rows, made = [Row(CE[0], split, net, protocol, "Afterwards")], settings(protocol)

    def add(label: str, setting: Setting, reading: str | None = None) -> None:
        _, method, hyper, own = setting
        also: Any = {} if method == "Afterwards" else {"adjusted": (1.0,)}
        rows.append(Row(label, split, net, protocol, method, hyper, reading=reading or own, **also))

    best = {f: made[f][labels(f).index(choice[f])] for f in families or made if f in choice}
    for family, setting in best.items():
        add(family, setting)
        if untuned and len(made[family]) > 1:
            add(f"{family}, untuned", made[family][0])
    if untuned:
        add("class weights and over-sampling", ("", "OverSampling", {"weighted": True}, None))
        for family in ("balanced softmax", "label smoothing"):
            add(f"{family}, and adjusted after", made[family][0], "adjusted, tau 1")
    for family in ON_TOP:
        if family in best:
            add(f"{family} + adjusted logits", best[family], "adjusted, tau 1")
    if "CRL" in best:  # CRL's smaller weight of cross entropy, and nothing mined
        hyper = {k: v for k, v in best["CRL"][2].items() if k != "level"} | {"rho": 0.0}
        add("CRL's control + adjusted logits", ("", "CRL", hyper, None), "adjusted, tau 1")
    return tuple(rows)


ON_TOP = ("mixup", "over-sampling", "CRL", "CDB", "DOS", "MFW")  # what logits are also adjusted on top of, at tau 1
# Half as many images as of Fashion-MNIST, so that a processor can make ten seeds: the rank test, corrected over a
# table's rows, needs as many (six pairs could show nothing).
CIFAR_SMALL = Protocol("cifar-small", 60, 32, 0.05, warmup=2, cosine=True, crop=4, flip=True, watch=20)
CIFAR_LONGER = replace(CIFAR_SMALL, name="cifar-small, longer", epochs=90, watch=30)
CIFAR_FAMILIES = ("class weights", "over-sampling", "logit adjustment", "balanced softmax", "re-trained classifier",
                  "tau-normalisation", "moved thresholds", "mixup", "CRL", "CDB", "DOS", "MFW")  # fmt: skip
SETS = {
    "fashion-lt": ("Fashion-MNIST, long-tailed", FASHION_LT),
    "fashion-step": ("Fashion-MNIST, step-imbalanced", FASHION_STEP),
    "mnist-lt": ("MNIST, long-tailed", MNIST_LT),
    "mnist-step": ("MNIST, step-imbalanced", MNIST_STEP),
}
CIFAR_SETS = {
    kind: (f"CIFAR-10, {title}", replace(like, data="cifar10", n_max=like.n_max // 2))
    for kind, title, like in (("lt", "long-tailed", FASHION_LT), ("step", "step-imbalanced", FASHION_STEP))
}
TABLES = {
    **{
        f"rivals-select-{name}": Table(
            f"The rivals and the methods on {title}, ratio 100: the grid, judged on the validation images",
            grid(split, "lenet", SMALL_ONCE),
            together(2, first=100),
        )
        for name, (title, split) in SETS.items()
    },
    **{  # ratio 10 with the settings chosen at ratio 100
        f"rivals-{name}-{ratio}": Table(
            f"The rivals and the methods on {SETS[name][0]}, ratio {ratio}",
            finals(replace(SETS[name][1], ratio=ratio), "lenet", SMALL_ONCE, choice, untuned=ratio == 100),
            together(10),
        )
        for ratio in (100, 10)
        for name, choice in CHOICE.items()
    },
    "rivals-temperature-100": Table(
        "Adjusted logits with one temperature fitted to validation images: calibration, ratio 100",
        tuple(
            Row(f"logit adjustment, temperature: {title}", split, "lenet", SMALL_ONCE, "TemperatureScaled",
                reading="adjusted, temperature")
            for title, split in SETS.values()
        ),
        together(10),
    ),
    "rivals-deferred-100": Table(
        "Inverse-frequency weights from epoch 16, with the mean over samples: the control of tuned class weights",
        tuple(
            Row(f"class weights, mean over samples: {title}", split, "lenet", SMALL_ONCE, "Weighted",
                {"scheme": "inverse", "start": SMALL_ONCE.epochs * 4 // 5, "reduction": "samples"})
            for title, split in SETS.values()
        ),
        together(10),
    ),
    "rivals-repetition-100": Table(
        "Each class as often as the largest, from where deep over-sampling starts, and logits adjusted: its control",
        tuple(
            Row(f"over-sampling, whole: {title}", split, "lenet", SMALL_ONCE, "OverSampling",
                {"whole": True, "start": SMALL_ONCE.epochs * 2 // 5}, reading="adjusted, tau 1", adjusted=(1.0,))
            for name, (title, split) in SETS.items() if name.startswith("mnist")
        ),
        together(10),
    ),
    **{  # settings as chosen on Fashion-MNIST with the same profile
        f"rivals-cifar10-{kind}-100": Table(
            f"The rivals and the methods on {title}, ratio 100, ResNet-8, {CIFAR_SMALL.epochs} epochs",
            (
                *finals(split, "resnet8", CIFAR_SMALL, CHOICE[f"fashion-{kind}"], CIFAR_FAMILIES, untuned=False),
                Row("CDB, tau 1", split, "resnet8", CIFAR_SMALL, "CDB", {"tau": 1.0}, adjusted=(1.0,)),
            ),
            together(10),
        )
        for kind, (title, split) in CIFAR_SETS.items()
        if f"fashion-{kind}" in CHOICE
    },
    "rivals-cifar10-longer-100": Table(
        f"Cross entropy in {CIFAR_LONGER.epochs} epochs: the control of {CIFAR_SMALL.epochs}, ResNet-8, ratio 100",
        tuple(
            Row(f"{label}: {title}", split, "resnet8", CIFAR_LONGER, "CrossEntropy", reading=reading, adjusted=(1.0,))
            for title, split in CIFAR_SETS.values()
            for label, reading in (("cross entropy", None), ("logit adjustment, untuned", "adjusted, tau 1"))
        ),
        together(6),
    ),
}
