"""The methods, one file each; `METHODS` maps the names that records use to the classes imported here.

A new method needs one line in this file, its import.
"""
# ruff: noqa: F401

import typing

from imbook.methods.afterwards import Afterwards, TemperatureScaled
from imbook.methods.baselines import (
    CDT,
    LDAM,
    BalancedSoftmax,
    CrossEntropy,
    Focal,
    LabelSmoothing,
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

#: Every method by its class's name, {name: class}.
METHODS: dict[str, typing.Any] = {name: made for name, made in globals().copy().items() if isinstance(made, type)}

__all__ = ["METHODS", *METHODS]
