"""Chapter 04, CRL: class rectification in its six combinations, the choice of alpha and kappa, ablations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from imbook.methods.crl import FORMS, LEVELS
from imbook.rows import Split, Table
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

SMALL_LARGE = replace(SMALL, name="small, batches of 128", batch=128, lr=0.05)
FASHION_LABELS = replace(  # two labels of different imbalance: the kind of garment, and whether it is an ankle boot
    FASHION_LT, order="index", labels=((0, 1, 0, 0, 0, 2, 0, 2, 3, 2), (0, 0, 0, 0, 0, 0, 0, 0, 0, 1))
)
FASHION_BALANCED = Split("fashion-mnist", "balanced", n_max=500, valid=100)  # as many images as at ratio 100
#: Chosen by `imbook.results.chosen` from the table crl-sweep, by level.
CRL_CHOICE = {level: {"alpha": 0.1, "kappa": 3} for level in LEVELS}
#: The same from crl-sweep-balanced.
CRL_CHOICE_BALANCED = {level: {"alpha": 0.25, "kappa": 3} for level in LEVELS}
CRL_CHOICE_CIFAR100 = {level: {"alpha": 0.25, "kappa": 3} for level in LEVELS}  # waits for crl-cifar100-select
CRL_ALPHAS, CRL_KAPPAS = (0.1, 0.25, 0.5, 0.75, 0.9), (1, 8, 25)


def crl_rows(
    choice: dict[str, dict[str, Any]], forms: Sequence[str] = FORMS, fact: str | None = None
) -> tuple[tuple[Any, ...], ...]:
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
#: Controls of the same alpha with nothing mined: cross entropy times 1 - alpha.
CRL_SCALED = ("cross entropy x (1 - alpha), alpha = 0.1", "CRL", {"alpha": 0.1, "rho": 0.0})
CRL_SCALED_OMEGA = ("cross entropy x (1 - alpha), alpha = 0.01 Omega", "CRL", {"rho": 0.0})
CRL_SCALED_BALANCED = ("cross entropy x (1 - alpha), alpha = 0.25", "CRL", {"alpha": 0.25, "rho": 0.0})


def crl_sweep(level: str, alphas: Sequence[float], kappas: Sequence[int]) -> tuple[tuple[Any, ...], ...]:
    """CRL's relative form at one level: alpha varied at kappa 3, kappa varied at alpha 0.5."""
    pairs = [(a, 3) for a in alphas] + [(0.5, k) for k in kappas]
    return tuple(
        (f"{level}, alpha {a:g}, kappa {k}", "CRL", {"level": level, "alpha": a, "kappa": k}) for a, k in pairs
    )


TABLES = {
    "crl-fashion": Table(
        "CRL on Fashion-MNIST, long-tailed, ratio 100",
        rows(FASHION_LT, "lenet", SMALL, *BASELINES, *CRL_SIX, CRL_OMEGA),
        together(10),
    ),
    "crl-fashion-10": Table(
        "CRL on Fashion-MNIST, long-tailed, ratio 10",
        rows(replace(FASHION_LT, ratio=10), "lenet", SMALL, CE, BASELINES[1], BASELINES[6], *CRL_SIX, CRL_OMEGA),
        together(10),
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
    "crl-control": Table(
        "CRL and its controls on Fashion-MNIST, long-tailed, ratio 100",
        rows(FASHION_LT, "lenet", SMALL, CE, CRL_SCALED, CRL_SIX[0], CRL_SIX[3], CRL_SCALED_OMEGA, CRL_OMEGA),
        together(10),
    ),
    "crl-batch-control": Table(
        "CRL and its controls on Fashion-MNIST, long-tailed, ratio 100, batches of 128",
        rows(FASHION_LT, "lenet", SMALL_LARGE, CE, CRL_SCALED_OMEGA, CRL_OMEGA),
        together(10),
    ),
    "crl-balanced-control": Table(
        "CRL and its control on balanced Fashion-MNIST",
        rows(FASHION_BALANCED, "lenet", SMALL, CE, CRL_SCALED_BALANCED, *crl_rows(CRL_CHOICE_BALANCED, FORMS[:1])),
        together(10),
    ),
    "crl-balanced-fresh": Table(
        "CRL and its control on balanced Fashion-MNIST, seeds that no other table has",
        rows(FASHION_BALANCED, "lenet", SMALL, CE, CRL_SCALED_BALANCED, *crl_rows(CRL_CHOICE_BALANCED, FORMS[:1])),
        together(10, first=10),
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
        together(10),
    ),
    "crl-cifar100-select": Table(
        "CRL on balanced CIFAR-100: alpha, judged on the validation images",
        rows(
            Split("cifar100", "balanced", n_max=475, valid=25),
            "resnet32",
            CIFAR_200,
            *crl_sweep("class", (0.05, *CRL_ALPHAS[:2]), ()),
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
}
