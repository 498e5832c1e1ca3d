"""Training, validation and test parts without leakage: what belongs together stays on one side."""

import warnings
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

FOLDS = 5  # one for validation, one for test


def merge(groups: Sequence[str] | None, together: Sequence[Sequence[int]], n: int) -> np.ndarray:
    """One number per picture, int64 (n,): equal where pictures share a group or a list in `together`.

    groups: one name per picture, or None: each its own. together: lists of positions, such as exact duplicates.
    """
    number = np.arange(n) if groups is None else np.unique(np.array(groups, dtype=object), return_inverse=True)[1]
    links = [(number[a], number[b]) for some in together for a, b in zip(some, some[1:])]
    if not links:
        return number
    a, b = np.array(links).T
    size = int(number.max()) + 1
    return connected_components(coo_matrix((np.ones(len(a)), (a, b)), (size, size)))[1][number].astype(np.int64)


def parts(
    y: np.ndarray, groups: np.ndarray, classes: Sequence[str], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of training, validation and test, three sorted vectors of 60, 20 and 20 %: groups whole, stratified.

    y: int64 (N,); groups: int64 (N,); classes: names, for messages. Each part keeps the class frequencies as nearly as
    whole groups allow: of some draws of scikit-learn's StratifiedGroupKFold (StratifiedKFold where each picture is its
    own group) the one is taken whose rarest classes are spread best. ValueError for a class in fewer than three groups,
    which cannot be in all parts, and where no draw has each class in each part.
    """
    for c, name in enumerate(classes):
        if (many := len(np.unique(groups[y == c]))) < 3:
            raise ValueError(
                f"class {name!r} has {(y == c).sum()} pictures in {many} group{'s' * (many != 1)}: it needs 3 groups "
                "or more to be in training, validation and test; add pictures, or merge it with another class"
            )
    alone = len(np.unique(groups)) == len(y)
    best: Any = (np.inf,)
    for draw in range(3 if len(y) < 20_000 else 1):
        kind = StratifiedKFold if alone else StratifiedGroupKFold
        with warnings.catch_warnings():  # a class with fewer members than folds: that is looked at below
            warnings.simplefilter("ignore")
            splits = kind(FOLDS, shuffle=True, random_state=seed + draw).split(y, y, None if alone else groups)
            folds = [fold for _, fold in splits]
        count = np.array([np.bincount(y[fold], minlength=len(classes)) for fold in folds])  # (5, C)
        for valid, test in permutations(range(FOLDS), 2):
            share = count[[valid, test]] / count.sum(0)  # (2, C)
            empty = (share == 0).sum() + (share.sum(0) == 1).sum()
            best = min(best, (empty, float(np.abs(share - 1 / FOLDS).max()), draw, valid, test, folds), key=_rank)
    empty, _, _, valid, test, folds = best
    if empty:
        raise ValueError("no split has each class in each part: the groups are too large, or tie classes together")
    rest = np.concatenate([fold for k, fold in enumerate(folds) if k not in (valid, test)])
    return np.sort(rest), np.sort(folds[valid]), np.sort(folds[test])


def _rank(candidate):
    return candidate[:5]


def at_random(y: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The split that leaks: positions as in `parts`, stratified, with no regard to groups."""
    return parts(y, np.arange(len(y)), tuple(map(str, range(int(y.max()) + 1))), seed)


def leaked(train: np.ndarray, test: np.ndarray, groups: np.ndarray) -> float:
    """The share of test pictures whose group is also in training: a float in [0, 1]."""
    return float(np.isin(groups[test], groups[train]).mean())
