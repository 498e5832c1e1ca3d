"""Summaries, paired comparisons and verdicts, by rules that are fixed here before the runs. Every chapter uses them.

Chapter 02 derives the rules: pairing over seeds, the t-interval, the signed-rank test with Holm's correction.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from imbook.records import facts
from imbook.results import SEEDS, frame, fresh, progress

if TYPE_CHECKING:
    from imbook.rows import Table


def summary(
    table: "Table", folder: str | Path | None = None, records: dict[str, dict[str, Any]] | None = None
) -> pd.DataFrame:
    """One line per row of a table: a DataFrame.

    Runs done of those planned, how many of them are stale (their method has changed since; they are not averaged), mean
    and sd over the others, the paper's number with its mark, the verdict (`reproduction`).
    """
    runs, known = frame(table, folder, records), facts()
    lines = []
    for row in table.rows:
        own = runs[runs["label"] == row.label]
        values = own.loc[~own["stale"].astype(bool), table.metric]
        fact = known[row.fact] if row.fact else {}
        lines.append(
            {
                "label": row.label,
                "done": len(values),
                "planned": len({row.key(s) for s in table.seeds}),
                "stale": len(own) - len(values),
                "mean": values.mean(),
                "sd": values.std(),
                "paper": fact.get("value"),
                "mark": fact.get("mark", ""),
                "verdict": reproduction(fact.get("value"), values),
            }
        )
    return pd.DataFrame(lines).set_index("label")


def reproduction(paper: float | None, values: Sequence[float] | pd.Series) -> str:
    """The verdict on one number of a paper, in points: a string.

    The distance decides, so that a wide spread over few seeds cannot help: 'reproduced' where the mean of our runs is
    within 1 point of the paper's number, 'within x points' where it is within 3, x rounded up, else 'not reproduced'.
    Behind it stands the 95 % t-interval of our mean, as in 'reproduced (61.2 to 62.9)', and below three runs '(n too
    small)'. 'not available' without the paper's number, 'pending' without runs.
    """
    if paper is None:
        return "not available"
    values = pd.Series(values, dtype=float).dropna()
    if values.empty:
        return "pending"
    mean, half = values.mean(), _half_width(values)
    gap = round(abs(mean - paper), 6)  # 42.67 is one point from 41.67
    said = "reproduced" if gap <= 1 else f"within {math.ceil(gap)} points" if gap <= 3 else "not reproduced"
    return f"{said} (n too small)" if len(values) < 3 else f"{said} ({mean - half:.1f} to {mean + half:.1f})"


def versus(
    table: "Table", runs: pd.DataFrame, baseline: str, metric: str | None = None, extra: Sequence[str] = (),
    digits: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """A table with the paired differences to one of its rows: a DataFrame, one line per row of the table.

    runs: its `frame`. Columns: n, mean and sd of the metric (default: the table's), the mean of each column in `extra`,
    then difference, low, high, p_holm and verdict of `compare`. A row without runs has n 0 and the verdict 'pending'.
    Numbers are rounded to `digits`, p to three. ValueError for stale runs.
    """
    metric, by = metric or table.metric, fresh(runs).groupby("label", sort=False)
    shown = pd.DataFrame({"n": by.size(), "mean": by[metric].mean(), "sd": by[metric].std()})
    for column in extra:
        shown[column] = by[column].mean()
    compared = ["difference", "low", "high", "p_holm", "verdict"]
    differences = compare(runs, baseline, metric)[compared] if {baseline} < set(runs["label"]) else pd.DataFrame()
    shown = shown.join(differences.reindex(columns=compared)).astype({"verdict": object})
    shown = shown.reindex([row.label for row in table.rows]).fillna({"n": 0})
    shown.loc[shown["n"] == 0, "verdict"] = "pending"
    numbers = ["mean", "sd", *extra, "difference", "low", "high"]
    return shown.astype({"n": int}).round(dict.fromkeys(numbers, digits) | {"p_holm": 3})


def between(runs: pd.DataFrame, better: str, worse: str, metric: str = "balanced_accuracy") -> dict[str, Any]:
    """The rule's answer to "`better` is better than `worse`": a dict of n, difference, low, high and verdict.

    Corrected over all rows of `runs`; give it the two rows alone to correct over nothing. 'not tested', with n 0, where
    one of them has no runs.
    """
    if not {better, worse} <= set(runs["label"]):
        return dict(n=0, difference=math.nan, low=math.nan, high=math.nan, verdict="not tested")
    return compare(runs, worse, metric).loc[better, ["n", "difference", "low", "high", "verdict"]].to_dict()


def compare(runs: pd.DataFrame, baseline: str, metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Differences to one row, paired over the seeds: a DataFrame, one line per label.

    Columns: n (pairs), difference, low, high (95 % t-interval), resolves (half that interval: the smallest difference
    this n can tell from none), p (Wilcoxon signed rank, two-sided), p_holm (corrected over the rows), verdict
    (`claim_verdict`).
    Raises ValueError where the baseline has no runs, and for stale runs (`fresh`).
    """
    wide = fresh(runs).pivot_table(index=SEEDS, columns="label", values=metric, sort=False)
    if baseline not in wide:
        raise ValueError(f"no runs of {baseline!r}: choose from {list(wide)}")
    if len(wide.columns) == 1:
        raise ValueError(f"only {baseline!r} has runs: there is nothing to compare it with")
    others = wide.columns.drop(baseline)
    table = pd.DataFrame([_paired(wide[label] - wide[baseline]) for label in others], index=others)
    if not table["n"].any():
        raise ValueError(f"no seeds are common to {baseline!r} and another row: there is nothing to pair")
    table["p_holm"] = _holm(table["p"])
    table["verdict"] = [claim_verdict(*line) for line in table[["n", "low", "high", "p_holm"]].itertuples(index=False)]
    return table


def worded(compared: pd.DataFrame, digits: int = 1) -> pd.Series:
    """Paired differences as texts, 'difference (low to high)', with ' *' behind it where the rule holds or is reversed.

    compared: lines of `compare`, or a table of several `between`; the texts have its index. digits: after the point.
    """
    numbers = compared[["difference", "low", "high"]].astype(float).round(digits) + 0.0  # no -0.0
    texts = [f"{d:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})" for d, low, high in numbers.to_numpy()]
    stars = [" *" if verdict in ("holds", "reversed") else "" for verdict in compared["verdict"]]
    return pd.Series([text + star for text, star in zip(texts, stars, strict=True)], index=compared.index, dtype=object)


@dataclass(frozen=True)
class Claim:
    """A claim about some tables: that a sum over their runs is above a number, in the mean over the seeds.

    number: claims of one number whose first terms are of one table are corrected together. terms: (sign, table, label,
    column) or (sign, table, label, column, when), added up for each set of seeds. column: a metric of `frame`, or a
    column of `progress`, then a mean over the epochs of when: 'early' (the first tenth), 'all' or 'last'. above: the
    number.
    """

    number: int
    text: str
    terms: tuple[tuple, ...]
    above: float = 0.0


def judge(claims: Sequence[Claim], frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the records say of some claims: a DataFrame, one line per claim.

    claims: `Claim`s; frames: {table: `frame`}. Columns: number, claim, n (sets of seeds with all runs), difference
    (mean of the sum less `above`), low, high, resolves, p as in `compare`, p_holm (corrected over the claims of a
    number and table) and verdict (`claim_verdict`).
    """
    rows, once = [], cache(lambda table: progress(frames[table]))
    for claim in claims:
        values = sum(term[0] * _one_number(frames, once, *term[1:]) for term in claim.terms)
        rows.append(dict(number=claim.number, claim=claim.text, **_paired(values - claim.above)))
    table = pd.DataFrame(rows)
    together = [table["number"], [claim.terms[0][1] for claim in claims]]
    table["p_holm"] = table.groupby(together)["p"].transform(_holm)
    table["verdict"] = [claim_verdict(*line) for line in table[["n", "low", "high", "p_holm"]].itertuples(index=False)]
    return table


def ranks(frames: Mapping[str, pd.DataFrame], labels: Sequence[str], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """The rank of each row on each data set by its mean over the runs, 1 the best: a DataFrame, data sets by rows.

    frames: {data set: `frame`}; labels: the rows that are ranked; equals share the mean of their ranks. ValueError
    where a data set lacks one of them, as a rank among fewer is another number, and for stale runs.
    """
    lines = {}
    for name, runs in frames.items():
        means = fresh(runs).groupby("label")[metric].mean()
        if missing := [label for label in labels if label not in means]:
            raise ValueError(f"{name} has no runs of {', '.join(missing)}: run them, or leave the row or the set out")
        lines[name] = means[list(labels)].rank(ascending=False)
    return pd.DataFrame(lines).T


def critical_difference(rows: int, sets: int, level: float = 0.05) -> float:
    """How far apart mean ranks must be for a test of all pairs at `level` to tell two rows apart: a number.

    rows: how many are ranked (at least 2), on how many data sets. The Nemenyi test. Source: Demsar, Statistical
    Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006, equation for CD.
    """
    from scipy.stats import studentized_range

    if rows < 2 or sets < 1:
        raise ValueError(f"{rows} rows on {sets} data sets: at least 2 rows are ranked on at least 1 data set")
    q = studentized_range.isf(level, rows, math.inf) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * sets))


def _one_number(
    frames: Mapping[str, pd.DataFrame], progress_of: Callable[[str], pd.DataFrame], table: str, label: str, column: str,
    when: str | None = None,
) -> pd.Series:  # fmt: skip
    """A number for each set of seeds of a row: a Series, empty where nothing has run."""
    runs = fresh(frames[table][frames[table]["label"] == label])
    if when is None or runs.empty:
        return runs.set_index(SEEDS).reindex(columns=[column])[column].astype(float)
    rows = progress_of(table)
    last = rows["epoch"].max()
    between = {"early": (1, last / 10), "all": (1, last), "last": (last, last)}[when]
    return rows[(rows["label"] == label) & rows["epoch"].between(*between)].groupby(SEEDS)[column].mean()


def _paired(d: pd.Series) -> dict[str, float]:
    """Mean of the differences d, their 95 % t-interval and the signed-rank test, of those that are there."""
    from scipy.stats import wilcoxon

    d = d.dropna()
    half, p = _half_width(d), wilcoxon(d).pvalue if (d != 0).any() else 1.0
    mean = d.mean()
    return dict(n=len(d), difference=mean, low=mean - half, high=mean + half, resolves=half, p=p)


def _holm(p: pd.Series) -> pd.Series:
    """Holm's correction, in the order of p: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    by_p = p.sort_values()
    return (by_p * list(range(len(by_p), 0, -1))).cummax().clip(upper=1)[p.index]


def claim_verdict(n: int, low: float, high: float, p_holm: float) -> str:
    """Whether 'better than the baseline' holds: a string.

    'holds' where the whole interval is above 0 and p_holm < 0.05, else 'does not hold'. 'reversed' where it holds the
    other way round; 'not tested' with fewer than 6 pairs, where no signed-rank test can reach 0.05.
    """
    if n < 6:
        return "not tested"
    if p_holm < 0.05 and (low > 0 or high < 0):
        return "holds" if low > 0 else "reversed"
    return "does not hold"


def _half_width(values: pd.Series) -> float:
    from scipy.stats import t

    n = len(values)
    return t.ppf(0.975, n - 1) * values.std() / n**0.5 if n > 1 else float("nan")
