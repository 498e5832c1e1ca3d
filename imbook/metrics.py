"""Metrics from one confusion matrix (C, C), rows the true classes, and one score matrix (N, C).

Chapter 01 says which of them lie.
"""

import torch


def confusion(scores, y):
    """How often each true class (row) was predicted as each class (column): int64 (C, C).

    scores: (N, C), or predicted classes (N,) with C the largest label of both + 1; y: int64 (N,). ValueError where a
    label has no column in the scores.
    """
    if scores.ndim == 1:
        predicted, classes = scores, int(torch.maximum(scores.max(), y.max())) + 1
    else:
        predicted, classes = scores.argmax(1), scores.shape[1]
    counts = torch.bincount(y * classes + predicted, minlength=classes**2)
    if len(counts) > classes**2:
        raise ValueError(f"a label of {int(y.max())}, and scores of {classes} classes")
    return counts.view(classes, classes)


def accuracy(matrix):
    """The share of samples predicted right: a float in [0, 1]."""
    matrix = _float(matrix)
    return (matrix.diagonal().sum() / matrix.sum()).item()


def recall(matrix):
    """Recall of each class (its accuracy, or sensitivity): float64 (C,); nan where a class has no samples."""
    matrix = _float(matrix)
    return matrix.diagonal() / matrix.sum(1)


def precision(matrix):
    """Precision of each class: float64 (C,); 0 where the class was never predicted (scikit-learn's convention)."""
    matrix = _float(matrix)
    return matrix.diagonal() / matrix.sum(0).clamp(min=1)


def f1(matrix):
    """F1 of each class, the harmonic mean of precision and recall: float64 (C,); 0 where both are 0."""
    matrix = _float(matrix)
    return 2 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1)).clamp(min=1)


def balanced_accuracy(matrix):
    """Mean recall over the classes that have samples: a float in [0, 1]. Source: Brodersen et al. 2010."""
    return recall(matrix).nanmean().item()


def g_mean(matrix):
    """Geometric mean of the recalls: a float in [0, 1], 0 as soon as one class is never found.

    Source: Kubat and Matwin 1997.
    """
    by_class = recall(matrix)
    return by_class[~by_class.isnan()].log().mean().exp().item()


def auprc(scores, y):
    """Area under each class's precision-recall curve, one against the rest, as average precision: float64 (C,).

    scores: (N, C), comparable from sample to sample: probabilities, not logits (these are defined only up to a constant
    a sample). y: (N,); nan where a class has no samples. Computed by scikit-learn.
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


def calibration_error(scores, y, bins=15):
    """Expected calibration error of the softmax of the scores: a float in [0, 1].

    scores: logits (N, C); y: (N,); equally wide bins of confidence; the mean over samples of |accuracy - confidence|
    a bin. Source: Guo et al. 2017, equation 3.
    """
    confidence, predicted = scores.double().softmax(1).max(1)
    right = (predicted == y).double()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=scores.device).index_add_(0, which, right - confidence)
    return (gap.abs().sum() / len(y)).item()


def summary(scores, y):
    """All single numbers of this module for one label.

    accuracy, balanced_accuracy, macro_f1, g_mean, macro_auprc, calibration_error.
    """
    matrix = confusion(scores, y)
    return {
        "accuracy": accuracy(matrix),
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": f1(matrix).mean().item(),
        "g_mean": g_mean(matrix),
        "macro_auprc": auprc(scores.softmax(1), y).nanmean().item(),
        "calibration_error": calibration_error(scores, y),
    }


def _float(matrix):
    return torch.as_tensor(matrix).double()
