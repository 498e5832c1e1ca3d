"""What an error costs: calibration and thresholds on validation data, intervals on test data, the choice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

DRAWS = 1000  # of the bootstrap


class Costs:
    """What each kind of error costs: matrix (C, C), rows the true classes, columns the decisions, 0 on the diagonal.

    per_class: each class counts the same, whatever its size: the cost is then the mean over classes, which for errors
    of cost 1 is 1 - balanced accuracy. Otherwise it is the mean over pictures, at the frequencies of the data.
    """

    def __init__(self, matrix: np.ndarray, per_class: bool) -> None:
        self.matrix, self.per_class = np.asarray(matrix, float), per_class

    @classmethod
    def read(cls, path: str | Path | None, classes: Sequence[str]) -> "Costs":
        """From a CSV file: class names in its header and in its first column (the true ones); None: 1 per class.

        ValueError for other names, for numbers that are missing or negative, and for a diagonal that is not 0.
        """
        if path is None:
            return cls(1 - np.eye(len(classes)), per_class=True)
        try:
            frame = pd.read_csv(path, index_col=0)
            frame.index, frame.columns = frame.index.map(str), frame.columns.map(str)
            matrix = frame.loc[list(classes), list(classes)].to_numpy(float)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{path}: {error}; costs are a CSV file whose header and first column are {list(classes)}"
            ) from error
        if not (matrix >= 0).all() or np.diag(matrix).any() or not np.isfinite(matrix).all() or not matrix.any():
            raise ValueError(f"{path}: costs are finite, from 0, with 0 on the diagonal and some above 0")
        return cls(matrix, per_class=False)

    def mean(self, confusion: np.ndarray) -> Any:
        """Mean cost of decisions: (...,) for confusion matrices (..., C, C)."""
        if not self.per_class:
            return (confusion * self.matrix).sum((-2, -1)) / confusion.sum((-2, -1))
        with np.errstate(invalid="ignore"):
            by_class = (confusion * self.matrix).sum(-1) / confusion.sum(-1)  # nan where a class has no picture
        return np.nanmean(by_class, -1)

    def decide(self, p: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """The decisions of least expected cost: int64 (N,). p: probabilities (N, C) at the frequencies `prior` (C,).

        With cost 1 per class that is the largest p_c / prior_c: adjusted logits.
        """
        matrix = self.matrix / prior[:, None] if self.per_class else self.matrix
        return (p @ matrix).argmin(1)


class Calibration:
    """Probabilities from logits by two numbers fitted on validation data: softmax(slope h + tau log prior).

    slope is one over a temperature (Guo et al. 2017); tau puts back the class frequencies that re-sampling or weights
    have taken out, 0 after plain cross entropy and near 1 after balanced training. Without data they are 1 and 0.
    """

    def __init__(self, h: np.ndarray, y: np.ndarray, prior: np.ndarray) -> None:
        self.log_prior, own = np.log(prior), np.arange(len(y))

        def loss(at):
            fitted = log_softmax(self.logits(h, *at), 1)[own, y].sum() / max(len(y), 1)
            return 1e-3 * (at**2).sum() - fitted  # bounded if separable

        self.log_slope, self.tau = minimize(loss, np.zeros(2), bounds=[(-4, 4), (-2, 4)]).x

    def logits(self, h: np.ndarray, log_slope: float, tau: float) -> np.ndarray:
        return np.exp(log_slope) * h + tau * self.log_prior

    def __call__(self, h: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) of logits h (N, C)."""
        return softmax(self.logits(h, self.log_slope, self.tau), 1)


def confusions(decisions: np.ndarray, y: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    """One confusion matrix per group: (G, C, C), float64. y, decisions, groups: int64 (N,)."""
    number = np.unique(groups, return_inverse=True)[1]
    cell = (number * classes + y) * classes + decisions
    return np.bincount(cell, minlength=(number.max() + 1) * classes**2).reshape(-1, classes, classes).astype(float)


def weights(by_group: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """How often the bootstrap draws each group, yielded in pieces: float64 (50, G). by_group: (G, C, C).

    Groups are drawn with replacement within strata: those whose rarest class is the same. So a small class
    rarely vanishes from a draw. With one class in each group none does; without groups each class is drawn on its own.
    """
    rng, of = np.random.default_rng(seed), by_group.sum(2)  # (G, C)
    stratum = np.where(of > 0, of.sum(0), np.inf).argmin(1)  # (G,)
    members = [np.flatnonzero(stratum == c) for c in np.unique(stratum)]
    for _ in range(0, draws, 50):
        w = np.zeros((50, len(by_group)))
        for m in members:
            w[:, m] = rng.multinomial(len(m), np.full(len(m), 1 / len(m)), 50)
        yield w


def drawn(by_group: np.ndarray, **measures: Callable[[np.ndarray], Any]) -> dict[str, np.ndarray]:
    """Measures of the bootstrap's confusion matrices: {name: (DRAWS, ...)}. by_group: (G, C, C); measures: functions.

    The draws depend on the labels and groups alone, so those of two rows are paired.
    """
    flat, shape, found = by_group.reshape(len(by_group), -1), by_group.shape[1:], {name: [] for name in measures}
    for w in weights(by_group):
        c = (w @ flat).reshape(-1, *shape)
        for name, measure in measures.items():
            found[name].append(measure(c))
    return {name: np.concatenate(values) for name, values in found.items()}


def interval(values: Any) -> list[Any]:
    """The 95 % percentile interval: [low, high]."""
    return np.nanquantile(values, [0.025, 0.975], axis=0).tolist()


def accuracy(c: np.ndarray) -> Any:
    """The share of pictures decided right: (...,) for confusion matrices (..., C, C)."""
    return np.trace(c, axis1=-2, axis2=-1) / c.sum((-2, -1))


def recall(c: np.ndarray) -> np.ndarray:
    """Recall per class: (..., C); nan where a class has no picture."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.diagonal(c, axis1=-2, axis2=-1) / c.sum(-1)


def balanced_accuracy(c: np.ndarray) -> Any:
    """The mean recall of the classes that have pictures: (...,)."""
    return np.nanmean(recall(c), -1)


def macro_f1(c: np.ndarray) -> Any:
    """The mean F1 of the classes that have pictures: (...,)."""
    diagonal, rows = np.diagonal(c, axis1=-2, axis2=-1), c.sum(-1)
    f1 = 2 * diagonal / np.maximum(rows + c.sum(-2), 1e-12)
    return np.nanmean(np.where(rows > 0, f1, np.nan), -1)


MEASURES = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1}


def equal(c: np.ndarray) -> np.ndarray:
    """The confusion matrix as it would be if all classes had equally many pictures: rows sum to 1."""
    return c / np.maximum(c.sum(-1, keepdims=True), 1)


def choose(cost: Mapping[str, float], simplicity: Sequence[str]) -> str:
    """The reading of the least validation cost, among equals the simplest: its name.

    cost: {name: mean validation cost}; simplicity: names, the simplest first.
    """
    return min(cost, key=lambda name: (round(cost[name], 9), simplicity.index(name)))


def simplest(cost: Mapping[str, float], error: Mapping[str, float], simplicity: Sequence[str]) -> str:
    """The simplest reading whose validation cost is within one standard error of the least: its name.

    error: {name: standard error of its difference to the least}. Source: the rule of Breiman et al. 1984.
    """
    least = min(cost.values())
    return min((name for name in cost if cost[name] - least <= error[name]), key=simplicity.index)


def images_for(n: Sequence[int], cost: Sequence[float], gain: float) -> tuple[float | None, float]:
    """How many more pictures of the smallest class would lower the cost by `gain`: (more, gain per doubling).

    n: pictures of that class; cost: at these, each a sequence of two or more. A line through cost against log2(n),
    carried on beyond the largest n: a sketch. more is None where the line does not fall, inf where it never gets there.
    """
    slope = float(np.polyfit(np.log2(n), cost, 1)[0])
    if slope > -1e-9:
        return None, -slope
    doublings = gain / -slope
    return (float("inf") if doublings > 20 else float(max(n) * (2**doublings - 1))), -slope
