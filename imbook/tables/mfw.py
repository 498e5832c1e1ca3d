"""Chapter 07, MFW: its grid, its four settings, the instruments, ablations, and the claims of its abstract."""

from dataclasses import replace
from itertools import product

from imbook.rows import Row, Split, Table
from imbook.tables.common import (
    BASELINES,
    CE,
    CIFAR_200,
    FASHION_LT,
    FASHION_STEP,
    MNIST_LT,
    MNIST_STEP,
    SMALL,
    deferred,
    rows,
    together,
)
from imbook.train import Protocol
from imbook.verdicts import Claim

SMALL_WATCHED = replace(SMALL, name="small, watched each epoch", watch=1)
#: Chosen by `results.chosen` from the table mfw-select.
MFW_CHOICE = {"strength": 2.0, "gamma": 0.5, "stage": "stage3"}
#: Of CDT, chosen by the same rule.
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

MFW_TOLD = ("MFW, after stage1", "MFW, partner from minor", "MFW, nothing mixed in", "MFW, lambda from 0")


def mfw_rows(split: Split, net: str, protocol: Protocol) -> tuple[Row, ...]:
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


def mfw_claims() -> tuple[Claim, ...]:
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


TABLES = {
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
            together(10),
        )
        for ratio in (100, 10)
        for name, title, split in (
            ("fashion-step", "Fashion-MNIST, step-imbalanced", FASHION_STEP),
            ("fashion-lt", "Fashion-MNIST, long-tailed", FASHION_LT),
            ("mnist-step", "MNIST, step-imbalanced", MNIST_STEP),
            ("mnist-lt", "MNIST, long-tailed", MNIST_LT),
        )
    },
    **{
        f"mfw-instruments-{name}": Table(
            f"Training accuracy and gradients at stage 3, each epoch: Fashion-MNIST, {title}, ratio 100",
            tuple(
                replace(row, instrument="stage3")
                for row in rows(split, "lenet", SMALL_WATCHED, CE, MIXUP, MANIFOLD, MFW_ROW)
            ),
            together(10),
        )
        for name, title, split in (("step", "step-imbalanced", FASHION_STEP), ("lt", "long-tailed", FASHION_LT))
    },
    "mfw-ablations": Table(
        "MFW on Fashion-MNIST, step-imbalanced, ratio 100: what matters",
        rows(FASHION_STEP, "lenet", SMALL, CE, MFW_ROW, *MFW_ABLATIONS),
        together(10),
    ),
    "mfw-ablations-lt": Table(  # where MFW gains; the changes that told most on step data
        "MFW on Fashion-MNIST, long-tailed, ratio 100: what matters",
        rows(FASHION_LT, "lenet", SMALL, CE, MFW_ROW, *(row for row in MFW_ABLATIONS if row[0] in MFW_TOLD)),
        together(10),
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
}
