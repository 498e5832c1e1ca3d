"""Data sets as uint8 tensors, index vectors that make them imbalanced, and mini-batches for training.

Chapter 01 shows the profiles, chapter 02 builds `Batches` step by step.
"""

from imbook.data.batches import Batches, shift
from imbook.data.folders import folder, table
from imbook.data.images import Images, moments
from imbook.data.imbalance import (
    class_counts,
    class_order,
    counts,
    draw,
    gaussian,
    gaussian_counts,
    head_middle_tail,
    holdout,
    long_tailed,
    long_tailed_counts,
    pair,
    reduced,
    resample,
    step,
    step_counts,
)
from imbook.data.loader import Loader, labels_of
from imbook.data.official import RAW_MD5, SOURCES, SUPER_CLASSES, Source, data_root, download, load

AnyBatches = Batches | Loader  # what methods and training take

__all__ = [
    "RAW_MD5",
    "SOURCES",
    "SUPER_CLASSES",
    "AnyBatches",
    "Batches",
    "Images",
    "Loader",
    "Source",
    "class_counts",
    "class_order",
    "counts",
    "data_root",
    "download",
    "draw",
    "folder",
    "gaussian",
    "gaussian_counts",
    "head_middle_tail",
    "holdout",
    "labels_of",
    "load",
    "long_tailed",
    "long_tailed_counts",
    "moments",
    "pair",
    "reduced",
    "resample",
    "shift",
    "step",
    "step_counts",
    "table",
]
