"""The methods, one file each; `METHODS` maps the names that records use to their classes."""

from imbook.methods.baselines import (
    LDAM,
    BalancedSoftmax,
    CrossEntropy,
    Focal,
    LogitAdjusted,
    OverSampling,
    Weighted,
)
from imbook.methods.cdb import CDB
from imbook.methods.crl import CRL

METHODS = {
    m.__name__: m for m in (CrossEntropy, Weighted, Focal, OverSampling, LogitAdjusted, BalancedSoftmax, LDAM, CDB, CRL)
}

__all__ = ["METHODS", *METHODS]
