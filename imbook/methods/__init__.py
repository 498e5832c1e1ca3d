"""The methods, one file each; `METHODS` maps the names that records use to their classes."""

from imbook.methods.baselines import (
    CDT,
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
from imbook.methods.dos import DOS, DOSAbstract
from imbook.methods.features import CNNCL
from imbook.methods.mfw import MFW
from imbook.methods.mixup import ManifoldMixup, Mixup, Remix

METHODS = {
    m.__name__: m
    for m in (
        *(CrossEntropy, Weighted, Focal, OverSampling, LogitAdjusted, BalancedSoftmax, LDAM, CDT),
        *(Mixup, ManifoldMixup, Remix, CDB, CRL, MFW),
        *(CNNCL, DOS, DOSAbstract),
    )
}

__all__ = ["METHODS", *METHODS]
