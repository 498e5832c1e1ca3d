"""Chapter 05, CDB: difficulty-balanced weights, their tau, and what tames their swings."""

from dataclasses import replace
from typing import Any

from imbook.records import facts
from imbook.rows import Row, Split, Table
from imbook.tables.common import BASELINES, CE, CIFAR100_LT, FASHION_LT, SMALL, rows, together
from imbook.train import Protocol

#: `SMALL` with every epoch recorded: weights that swing from one epoch to the next look calm in every second one.
SMALL_EPOCHS = replace(SMALL, name="small, each epoch recorded", watch=1)
SMALL_LONG = replace(SMALL, name="small, three times as long", epochs=60, watch=6)
PAIR = Protocol("pair", epochs=5, batch=64, lr=0.03, cosine=True, watch=5)
#: The protocol of CDB's released code, for CIFAR-100-LT [C].
CDB_RELEASED = Protocol(
    "cdb-released", 240, 32, 0.1, milestones=(160, 210), decay=0.01, crop=4, flip=True, prior_bias=True, watch=5
)
CDB_FIXED = tuple((f"CDB, tau {tau:g}", "CDB", {"tau": tau}) for tau in (0.5, 1.0, 1.5, 2.0))
CDB_DYNAMIC = ("CDB, dynamic tau", "CDB", {"tau": "dynamic"})
CDB_OURS = (*CDB_FIXED, CDB_DYNAMIC)
CDB_CODE = ("CDB, released tau", "CDB", {"tau": "dynamic", "variant": "released"})
CDB_SMOOTHED = tuple((f"CDB, smoothed {keep:g}", "CDB", {"tau": "dynamic", "smooth": keep}) for keep in (0.5, 0.9))
CDB_SMALL_CHANGES = (
    ("CDB, floor 0.05", "CDB", {"tau": "dynamic", "floor": 0.05}),
    ("CDB, mean over weights", "CDB", {"tau": "dynamic", "reduction": "weights"}),
)


def with_valid(split: Split, net: str, protocol: Protocol, *methods: tuple[Any, ...]) -> tuple[Row, ...]:
    """The rows of baselines that train on the held-out images too: what CDB's validation set costs the others."""
    return rows(
        replace(split, train_on_valid=True), net, protocol, *((f"{m[0]} + validation", *m[1:]) for m in methods)
    )


def cdb_facts(ratio: int, *methods: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    """The methods with the key of the paper's number for CIFAR-100-LT at this ratio, where one is known."""
    return tuple((*m, key) if (key := f"cdb/cifar100-lt-{ratio}/{m[0]}") in facts() else m for m in methods)


TABLES = {
    "cdb-fashion": Table(
        "CDB on Fashion-MNIST, long-tailed, ratio 100",
        rows(FASHION_LT, "lenet", SMALL, *BASELINES, *CDB_OURS, CDB_CODE)
        + with_valid(FASHION_LT, "lenet", SMALL, CE, BASELINES[1], BASELINES[6]),
        together(10),
    ),
    "cdb-epochs": Table(
        "CDB on Fashion-MNIST, long-tailed, ratio 100, each epoch recorded",
        rows(FASHION_LT, "lenet", SMALL_EPOCHS, CDB_DYNAMIC),
        together(5),
    ),
    "cdb-smoothed": Table(
        "CDB smoothed, on Fashion-MNIST, long-tailed, ratio 100",
        rows(FASHION_LT, "lenet", SMALL, CE, BASELINES[1], BASELINES[5], CDB_FIXED[0], CDB_DYNAMIC, CDB_SMOOTHED[1]),
        together(10),
    ),
    "cdb-ablations": Table(
        "CDB on Fashion-MNIST: what matters",
        rows(FASHION_LT, "lenet", SMALL, CDB_DYNAMIC, *CDB_SMOOTHED, *CDB_SMALL_CHANGES),
        together(10),
    ),
    "cdb-noise": Table(
        "CDB on Fashion-MNIST with 25 validation images per class",
        rows(replace(FASHION_LT, valid=25), "lenet", SMALL, CE, CDB_DYNAMIC, CDB_SMOOTHED[1]),
        together(10),
    ),
    "cdb-long": Table(
        "CDB on Fashion-MNIST, long-tailed, ratio 100, trained three times as long",
        rows(FASHION_LT, "lenet", SMALL_LONG, CE, CDB_FIXED[1], CDB_DYNAMIC),
        together(10),
    ),
    "cdb-fashion-10": Table(
        "CDB on Fashion-MNIST, long-tailed, ratio 10",
        rows(replace(FASHION_LT, ratio=10), "lenet", SMALL, CE, BASELINES[1], BASELINES[6], *CDB_OURS),
        together(10),
    ),
    **{
        f"cdb-mnist-{share:g}": Table(
            f"MNIST, 4 against 9, majority share {share:g}",
            rows(
                Split("mnist", "pair", share=share, n_max=5000, valid=100, classes=(9, 4)),
                "lenet",
                PAIR,
                *BASELINES[:5],
                *CDB_OURS,
                CDB_SMOOTHED[1],
                ("CDB, tau 0.5, floor 0.05", "CDB", {"tau": 0.5, "floor": 0.05}),
            ),
            together(10),
            metric="accuracy",
        )
        for share in (0.9, 0.95, 0.98, 0.99, 0.995)
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
