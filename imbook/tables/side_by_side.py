"""Chapter 08: the methods of the book on common tables, and what is asked of them."""

from dataclasses import replace
from typing import Any

from imbook.rows import Table
from imbook.tables.cdb import CDB_DYNAMIC
from imbook.tables.common import (
    BASELINES,
    CE,
    CIFAR10_LT,
    CIFAR100_LT,
    CIFAR_200,
    FASHION_LT,
    SMALL,
    deferred,
    rows,
    together,
)
from imbook.tables.crl import CRL_SIX
from imbook.tables.dos import dos_over_sampling, dos_row
from imbook.tables.mfw import MFW_ROW
from imbook.train import Protocol
from imbook.verdicts import Claim


def common_rows(protocol: Protocol) -> tuple[tuple[Any, ...], ...]:
    """Cross entropy, logit adjustment, deferred weights, and one row of each method of the book: the common tables."""
    dos = dos_row(protocol, minority="half")
    return CE, BASELINES[5], deferred(protocol, scheme="inverse"), CRL_SIX[0], CDB_DYNAMIC, dos, MFW_ROW


OFTEN = "over-sampling, as often as DOS"


def common_claims() -> tuple[Claim, ...]:
    """What the book asks of its common table on Fashion-MNIST. Fixed before DOS had a run in it; all its other rows had
    been seen in their chapters.

    Each method against cross entropy (1), against logit adjustment (2), which costs nothing, and against deferred
    re-weighting (3), the simplest of the strong ones; DOS against its own visits (4).
    """
    methods = [label for label, *_ in common_rows(SMALL)[3:]]
    asked = [
        (k, m, rival) for k, rival in ((1, CE[0]), (2, "logit adjustment"), (3, deferred(SMALL)[0])) for m in methods
    ]
    asked.append((4, "DOS, k = 5", OFTEN))
    term = lambda sign, label: (sign, "methods-fashion", label, "balanced_accuracy")  # noqa: E731
    return tuple(Claim(k, f"{m} is better than {rival}", (term(1, m), term(-1, rival))) for k, m, rival in asked)


TABLES = {
    **{
        f"methods-{split.data}-{name}-100": Table(
            f"The methods of the book on {title}, {text}, ratio 100",
            rows(
                replace(split, profile=profile, draw="seed"),
                "resnet32",
                CIFAR_200,
                *common_rows(CIFAR_200),
                BASELINES[4],
            ),  # fmt: skip
            together(5),
            device="cuda",
        )
        for split, title in ((CIFAR10_LT, "CIFAR-10"), (CIFAR100_LT, "CIFAR-100"))
        for name, profile, text in (("lt", "long_tailed", "long-tailed"), ("step", "step", "step-imbalanced"))
    },
    "methods-fashion": Table(
        "The methods of the book on Fashion-MNIST, long-tailed, ratio 100",
        rows(
            FASHION_LT,
            "lenet",
            SMALL,
            *common_rows(SMALL),
            BASELINES[1],
            (OFTEN, *dos_over_sampling(SMALL)[1:]),
        ),
        together(10),
    ),
}
