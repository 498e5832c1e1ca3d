"""What the first run of a process loads, loaded: processes of tests that start from here start at once."""

import matplotlib
import scipy.stats  # noqa: F401
import seaborn  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo  # noqa: F401
import toys  # noqa: F401

import imbook.__main__
import imbook.plots
import imbook.verdicts  # noqa: F401
from imbook import experiments

torch.set_num_threads(1)
matplotlib.use("agg")
experiments._load("digits")
