"""The methods, one file each; `METHODS` maps the names that records use to their classes."""

from imbook.methods.baselines import (
    BalancedSoftmax,
    CrossEntropy,
    Focal,
    LDAM,
    LogitAdjusted,
    OverSampling,
    Weighted,
)

METHODS = {m.__name__: m for m in (CrossEntropy, Weighted, Focal, OverSampling, LogitAdjusted, BalancedSoftmax, LDAM)}

__all__ = ["METHODS", *METHODS]
