"""Metrics from one confusion matrix (C, C), rows the true classes, and one score matrix (N, C).

One rule for a class without samples: every metric of it is nan, and every mean leaves it out, as scikit-learn does when
it is given the labels that occur. A class that has samples and is never predicted has precision, recall and F1 0.
Chapter 01 says which of the metrics lie.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Matrix = Tensor | Sequence[Sequence[float]] | dict[str, Any]  # (C, C), as a record holds it too: see `compact`
DENSE = 2000  # classes up to which a record holds every cell


def confusion(scores: Tensor, y: Tensor) -> Tensor:
    """How often each true class (row) was predicted as each class (column): int64 (C, C).

    scores: (N, C), or predicted classes (N,) with C the largest label of both + 1; y: int64 (N,). A class without
    samples has a row of zeros. ValueError where there are no samples, a label has no column in the scores, or a score
    is nan.
    """
    if len(y) == 0:
        raise ValueError("no samples: metrics need at least one")
    if scores.is_floating_point() and scores.isnan().any():
        raise ValueError(f"the scores of sample {int(scores.isnan().flatten(1).any(1).int().argmax())} are nan")
    if scores.ndim == 1:
        predicted, classes = scores, int(torch.maximum(scores.max(), y.max())) + 1
    else:
        predicted, classes = scores.argmax(1), scores.shape[1]
    counts = torch.bincount(y * classes + predicted, minlength=classes**2)
    if len(counts) > classes**2:
        raise ValueError(f"a label of {int(y.max())}, and scores of {classes} classes")
    return counts.view(classes, classes)


def compact(matrix: Tensor) -> list[list[int]] | dict[str, Any]:
    """A confusion matrix as plain data for a record, which every metric here takes again.

    A list of C rows; above `DENSE` classes {'classes': C, 'cells': [[row, column, number], ...]}, as most are empty.

    >>> torch.equal(dense(compact(torch.eye(3000))), torch.eye(3000))
    True
    """
    if len(matrix) <= DENSE:
        return matrix.tolist()
    row, column = matrix.nonzero(as_tuple=True)
    return {"classes": len(matrix), "cells": torch.stack([row, column, matrix[row, column].long()], 1).tolist()}


def dense(matrix: Matrix) -> Tensor:
    """A confusion matrix as a tensor (C, C), from any form that a record holds."""
    if not isinstance(matrix, dict):
        return torch.as_tensor(matrix)
    row, column, number = torch.tensor(matrix["cells"]).T
    return torch.zeros(matrix["classes"], matrix["classes"]).index_put((row, column), number.float())


def accuracy(matrix: Matrix) -> float:
    """The share of samples predicted right: a float in [0, 1]. Classes without samples have no part in it."""
    matrix = _float(matrix)
    return (matrix.diagonal().sum() / matrix.sum()).item()


def recall(matrix: Matrix) -> Tensor:
    """Recall per class (its accuracy, or sensitivity): float64 (C,); nan where a class has no samples."""
    matrix = _float(matrix)
    return matrix.diagonal() / matrix.sum(1)


def precision(matrix: Matrix) -> Tensor:
    """Precision per class: float64 (C,); 0 where a class is never predicted, nan where it has no samples."""
    matrix = _float(matrix)
    return _where_there_are_samples(matrix.diagonal() / matrix.sum(0).clamp(min=1), matrix)


def f1(matrix: Matrix) -> Tensor:
    """F1 per class, the harmonic mean of precision and recall: float64 (C,); nan where a class has no samples.

    0 where precision and recall are 0.
    """
    matrix = _float(matrix)
    return _where_there_are_samples(2 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1)).clamp(min=1), matrix)


def macro_f1(matrix: Matrix) -> float:
    """Mean F1 over the classes that have samples: a float in [0, 1]."""
    return f1(matrix).nanmean().item()


def balanced_accuracy(matrix: Matrix) -> float:
    """Mean recall over the classes that have samples: a float in [0, 1]. Source: Brodersen et al. 2010."""
    return recall(matrix).nanmean().item()


def g_mean(matrix: Matrix) -> float:
    """Geometric mean of the recalls of the classes that have samples: a float in [0, 1].

    0 as soon as one of them is never found.

    Source: Kubat and Matwin 1997.
    """
    by_class = recall(matrix)
    return by_class[~by_class.isnan()].log().mean().exp().item()


def auprc(scores: Tensor, y: Tensor) -> Tensor:
    """Area under the precision-recall curve per class, one against the rest, as average precision: float64 (C,).

    scores: (N, C), comparable from sample to sample: probabilities, not logits (these are defined only up to a constant
    per sample). y: (N,); nan where a class has no samples. Computed by scikit-learn.
    """
    from sklearn.metrics import average_precision_score

    truth = y.cpu()[:, None] == torch.arange(scores.shape[1])
    return torch.tensor(
        [
            average_precision_score(t, s) if t.any() else float("nan")
            for t, s in zip(truth.T.numpy(), scores.T.cpu().double().numpy())
        ],
        dtype=torch.float64,
    )


def calibration_error(scores: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the softmax of the scores: a float in [0, 1].

    scores: logits (N, C); y: (N,); equally wide bins of confidence; the mean over samples of |accuracy - confidence|
    per bin. No mean over classes, so one without samples has no part in it. Source: Guo et al. 2017, equation 3.
    """
    confidence, predicted = scores.double().softmax(1).max(1)
    right = (predicted == y).double()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=scores.device).index_add_(0, which, right - confidence)
    return (gap.abs().sum() / len(y)).item()


def summary(scores: Tensor, y: Tensor) -> dict[str, float]:
    """All single numbers of this module for one label.

    accuracy, balanced_accuracy, macro_f1, g_mean, macro_auprc, calibration_error. Means over classes leave out those
    without samples. ValueError as for `confusion`.
    """
    matrix = confusion(scores, y)
    return {
        "accuracy": accuracy(matrix),
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "g_mean": g_mean(matrix),
        "macro_auprc": auprc(scores.softmax(1), y).nanmean().item(),
        "calibration_error": calibration_error(scores, y),
    }


def _where_there_are_samples(values: Tensor, matrix: Tensor) -> Tensor:
    return torch.where(matrix.sum(1) > 0, values, torch.nan)


def _float(matrix: Matrix) -> Tensor:
    return dense(matrix).double()
