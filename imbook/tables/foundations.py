"""Chapters 01 and 02: the simple methods, and how much a result varies from seed to seed."""

from dataclasses import replace

from imbook.rows import Table
from imbook.tables.common import (
    BASELINES,
    CE,
    DIGITS,
    DIGITS_LT,
    FASHION_LT,
    MNIST_LT,
    SMALL,
    crossed,
    rows,
    together,
)

TABLES = {
    "digits": Table("Digits, long-tailed, ratio 20", rows(DIGITS_LT, "mlp", DIGITS, CE, BASELINES[1]), together(3)),
    "fashion": Table(
        "Fashion-MNIST, long-tailed, ratio 100", rows(FASHION_LT, "lenet", SMALL, *BASELINES), together(10)
    ),
    "mnist": Table("MNIST, long-tailed, ratio 100", rows(MNIST_LT, "lenet", SMALL, *BASELINES), together(10)),
    "fashion-seeds": Table(
        "Fashion-MNIST: order, draw and training seeds crossed", rows(FASHION_LT, "lenet", SMALL, CE), crossed(3)
    ),
    "fashion-constant": Table(
        "Fashion-MNIST, long-tailed, ratio 100, at a constant learning rate",
        rows(FASHION_LT, "lenet", replace(SMALL, name="small, constant rate", cosine=False), CE),
        together(10),
    ),
}
