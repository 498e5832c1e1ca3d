"""Summaries, comparisons against scipy, and verdicts at their borders."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import toys
from statsmodels.stats import multitest

from imbook import records, results, verdicts
from imbook.methods import METHODS

pytestmark = pytest.mark.usefixtures("shipped")


@pytest.fixture
def table():
    return toys.table(seeds=3)


@pytest.fixture
def folder(tmp_path, table):
    """All runs of the table but the last: accuracy .50 .51 .52 and .60 .61."""
    for k, (row, seeds) in enumerate(table.runs()[:-1]):
        accuracy = 0.5 + 0.1 * (row.label == "Weighted") + 0.01 * seeds["train"]
        records.save(toys.record(row, seeds, accuracy, order=k), tmp_path / "out")
    return tmp_path / "out"


def test_a_summary_shows_mean_spread_and_the_paper(table, folder):
    table = replace(table, rows=(replace(table.rows[0], fact="one"), table.rows[1]))
    shown = verdicts.summary(table, folder)
    assert shown.loc["CrossEntropy", ["done", "planned"]].tolist() == [3, 3]
    assert shown.loc["Weighted", ["done", "planned"]].tolist() == [2, 3]
    assert shown["mean"].tolist() == pytest.approx([51, 60.5])
    assert shown["sd"].tolist() == pytest.approx([1, math.sqrt(0.5)]), "of a sample: divided by n - 1"
    assert shown.loc["CrossEntropy", ["paper", "mark", "verdict"]].tolist() == [50, "P", "reproduced (48.5 to 53.5)"]
    assert shown.loc["Weighted", "verdict"] == "not available"


def test_claims_are_judged_like_comparisons_and_corrected_by_number(table):
    seeds = [dict(order=s, draw=s, train=s) for s in range(8)]
    table = replace(table, seeds=tuple(seeds))
    rng, made = np.random.default_rng(1), {}
    for row, height in zip(table.rows, (0.5, 0.8)):
        for s in seeds:
            record = toys.record(row, s, height + 0.01 * rng.random())
            record["curve"] = [
                dict(epoch=e, train=[1, 0.4], test=[0.9, 0.1 * s["train"] / 8], gradient=[1.0, 2.0 + e],
                     train_confusion=[[4, 0], [3, 1]])
                for e in range(1, 21)
            ]  # fmt: skip
            made[record["key"]] = record
    frames = {"t": results.frame(table, records=made)}
    low, high = (row.label for row in table.rows)
    claim = lambda number, *terms, above=0.0: verdicts.Claim(number, "x", terms, above)  # noqa: E731
    metric = "balanced_accuracy"
    found = verdicts.judge(
        [
            claim(1, (1, "t", high, metric), (-1, "t", low, metric)),
            claim(1, (1, "t", low, metric), (-1, "t", high, metric)),
            claim(2, (1, "t", low, "gradient_ratio", "early"), above=3.5),
            claim(2, (1, "t", low, "gradient_ratio", "all"), above=12.5),
            claim(2, (1, "t", low, "gradient_ratio", "last"), above=22.0),
            claim(3, (1, "t", low, "gap_minor", "last"), (-1, "t", low, "gap_major", "last")),
            claim(4, (1, "t", low, "minor_as_major", "early"), above=50.0),
            claim(5, (1, "t", "no such row", metric)),
            claim(1, (1, "u", high, metric), (-1, "t", low, metric)),
        ],
        frames | {"u": frames["t"]},
    )
    by_compare = verdicts.compare(frames["t"], low).loc[high]
    assert found.loc[0, "difference"] == pytest.approx(by_compare["difference"])
    assert found.loc[0, "p"] == by_compare["p"] and found.loc[0, "p_holm"] == pytest.approx(2 * by_compare["p"])
    assert found["verdict"].tolist() == [
        "holds", "reversed", *["does not hold"] * 3, "holds", "holds", "not tested", "holds",
    ]  # fmt: skip
    assert found["difference"][2:5].tolist() == pytest.approx([0, 0, 0])
    assert found.loc[5, "difference"] == pytest.approx(np.mean([30 - 10 * s / 8 for s in range(8)]))
    assert found.loc[8, "p_holm"] == by_compare["p"]  # another table, alone
    assert found["n"].tolist() == [8] * 7 + [0, 8] and found.loc[6, "difference"] == 25


def frame(**columns):
    """Runs with one number each, a column a label."""
    return pd.DataFrame(
        {"label": label, **dict.fromkeys(results.SEEDS, s), "balanced_accuracy": v, "stale": False}
        for label, values in columns.items()
        for s, v in enumerate(values)
    )


NUMBERS = {
    "base": [50.0, 52, 49, 51, 53, 50.5, 48, 52.5],
    "better": [53.0, 54.1, 52.3, 53.2, 55.4, 54.0, 50.5, 55.1],
    "worse": [45.0, 47.3, 45.1, 46.2, 49.4, 46.6, 43.9, 46.8],
    "alike": [50.3, 51.6, 49.5, 51.2, 52.2, 50.4, 48.7, 51.9],
}


def test_differences_are_paired_over_the_seeds():
    table = verdicts.compare(frame(**NUMBERS), "base")
    assert list(table.index) == ["better", "worse", "alike"]
    for label in table.index:
        d = np.array(NUMBERS[label]) - np.array(NUMBERS["base"])
        row = table.loc[label]
        interval = scipy.stats.ttest_rel(NUMBERS[label], NUMBERS["base"]).confidence_interval(0.95)
        assert row["n"] == 8 and row["difference"] == pytest.approx(d.mean())
        assert [row["low"], row["high"]] == pytest.approx(list(interval))
        assert row["resolves"] == pytest.approx((interval.high - interval.low) / 2)
        assert row["p"] == pytest.approx(scipy.stats.wilcoxon(d, method="exact").pvalue)
    assert table["verdict"].tolist() == ["holds", "reversed", "does not hold"]


def test_pairs_are_matched_by_their_seeds():
    runs = frame(**NUMBERS)
    shuffled = runs.sample(frac=1, random_state=0)
    a, b = verdicts.compare(runs, "base"), verdicts.compare(shuffled, "base")
    pd.testing.assert_frame_equal(a.sort_index(), b.sort_index())
    missing = runs[(runs["label"] != "better") | (runs["train_seed"] < 6)]
    assert verdicts.compare(missing, "base").loc["better", "n"] == 6
    d = np.array(NUMBERS["better"][:6]) - np.array(NUMBERS["base"][:6])
    assert verdicts.compare(missing, "base").loc["better", "difference"] == pytest.approx(d.mean())


def test_holm_s_correction_by_hand():
    """Sorted p times 4, 3, 2, 1, never falling, never above 1."""
    signs = {"a": [1] * 7, "b": [-1] + [1] * 6, "c": [1, -1] * 3 + [1], "d": [-1, 1] * 3 + [1]}
    d = {k: [s * (1 + 0.1 * j) for j, s in enumerate(v)] for k, v in signs.items()}
    table = verdicts.compare(frame(base=[0.0] * 7, **d), "base")
    p = [scipy.stats.wilcoxon(d[k]).pvalue for k in "abcd"]
    assert p == pytest.approx([1 / 64, 2 / 64, 52 / 64, 30 / 64])
    assert table["p_holm"].tolist() == pytest.approx([4 / 64, 6 / 64, 60 / 64, 60 / 64])
    table = verdicts.compare(frame(base=[0.0] * 7, d=d["d"], c=d["c"], also_c=[-v for v in d["c"]]), "base")
    assert table["p_holm"].tolist() == [1, 1, 1]


def test_equal_runs_do_not_differ():
    table = verdicts.compare(frame(base=[50.0] * 8, same=[50.0] * 8), "base")
    assert table.loc["same", ["difference", "p", "p_holm", "verdict"]].tolist() == [0, 1, 1, "does not hold"]


def test_a_baseline_without_runs_is_refused():
    with pytest.raises(ValueError, match="no runs of 'nothing': choose from"):
        verdicts.compare(frame(**NUMBERS), "nothing")


@pytest.mark.parametrize(
    "n, low, high, p, verdict",
    [
        (6, 0.1, 2.0, 0.049, "holds"),
        (5, 0.1, 2.0, 0.001, "not tested"),
        (6, 0.1, 2.0, 0.05, "does not hold"),
        (6, 0.0, 2.0, 0.01, "does not hold"),
        (6, -0.1, 2.0, 0.01, "does not hold"),
        (6, -2.0, -0.1, 0.01, "reversed"),
        (6, -2.0, 0.0, 0.01, "does not hold"),
        (6, -2.0, -0.1, 0.2, "does not hold"),
        (6, float("nan"), float("nan"), 0.01, "does not hold"),
    ],
)
def test_the_verdict_on_a_claim(n, low, high, p, verdict):
    assert verdicts.claim_verdict(n, low, high, p) == verdict


@pytest.mark.parametrize(
    "paper, values, verdict",
    [
        (None, [50, 51], "not available"),
        (50, [], "pending"),
        (51, [50], "reproduced (n too small)"),
        (49, [50], "reproduced (n too small)"),
        (42.67, [41.67], "reproduced (n too small)"),  # 1.0000000000000000 and a little
        (51.01, [50], "within 2 points (n too small)"),
        (52, [50], "within 2 points (n too small)"),
        (47.9, [50], "within 3 points (n too small)"),
        (53, [50, float("nan")], "within 3 points (n too small)"),
        (53.01, [50], "not reproduced (n too small)"),
        (50, [60, 63], "not reproduced (n too small)"),  # 12 points away: the wide interval of two runs does not help
        (54, [46, 50, 54], "not reproduced (40.1 to 59.9)"),  # inside a wide interval
        (50.5, [46, 50, 54], "reproduced (40.1 to 59.9)"),
        (54, [50, 50.1, 49.9], "not reproduced (49.8 to 50.2)"),
        (50, [float("nan")], "pending"),
    ],
)
def test_the_verdict_on_a_number(paper, values, verdict):
    assert verdicts.reproduction(paper, pd.Series(values, dtype=float)) == verdict


def test_the_interval_beside_a_verdict_is_scipy_s():
    values = pd.Series([50.0, 53.0, 49.0, 52.0])
    low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    assert verdicts.reproduction(51, values) == f"reproduced ({low:.1f} to {high:.1f})"


def test_p_values_are_those_of_scipy_and_statsmodels():
    """Signed-rank and Holm, on many random sets of runs, ties and zeros among them."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        base = rng.normal(50, 1, 7)
        columns = {f"row {k}": base + rng.normal(k / 2 - 1, 1, 7).round(seed % 3) for k in range(5)}
        found = verdicts.compare(frame(base=base, **columns), "base")
        p = [scipy.stats.wilcoxon(columns[label] - base).pvalue for label in found.index]
        assert found["p"].tolist() == pytest.approx(p)
        assert found["p_holm"].tolist() == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_differences_in_words():
    lines = [(2.55, 1.84, 3.26, "holds"), (-0.04, -0.26, 0.31, "does not hold"), (-14.33, -16.6, -12.03, "reversed"),
             (1.0, 0.2, 1.8, "not tested")]  # fmt: skip
    compared = pd.DataFrame(lines, columns=["difference", "low", "high", "verdict"], index=list("abcd"), dtype=object)
    assert verdicts.worded(compared).to_dict() == {
        "a": "2.6 (1.8 to 3.3) *", "b": "0.0 (-0.3 to 0.3)", "c": "-14.3 (-16.6 to -12.0) *", "d": "1.0 (0.2 to 1.8)"
    }  # fmt: skip
    assert verdicts.worded(compared, 2)["b"] == "-0.04 (-0.26 to 0.31)"
    assert verdicts.worded(compared.iloc[:0]).empty


def test_holm_s_correction_keeps_its_order_of_rows():
    """By the definition, for every order of five p values: the k-th smallest times 5 - k, never falling, at most 1."""
    p = [0.001, 0.01, 0.011, 0.2, 0.9]
    expected = dict(zip(p, [0.005, 0.04, 0.04, 0.4, 0.9]))
    for order in itertools.permutations(p):
        assert verdicts._holm(pd.Series(order)).tolist() == pytest.approx([expected[v] for v in order])


@pytest.fixture
def changed(monkeypatch):
    monkeypatch.setattr(METHODS["Weighted"], "version", 2)


def test_stale_runs_are_marked_in_a_summary_and_not_averaged(table, folder, changed):
    shown = verdicts.summary(table, folder)
    assert shown[["done", "stale"]].values.tolist() == [[3, 0], [0, 2]]
    assert shown.loc["CrossEntropy", "mean"] == pytest.approx(51) and math.isnan(shown.loc["Weighted", "mean"])


def test_stale_runs_are_refused_in_comparisons(table, folder, changed):
    runs = results.frame(table, folder)
    claim = lambda label: verdicts.Claim(1, "x", ((1, "t", label, "balanced_accuracy"),))  # noqa: E731
    for compared in (
        lambda: verdicts.compare(runs, "CrossEntropy"),
        lambda: verdicts.versus(table, runs, "CrossEntropy"),
        lambda: verdicts.versus(table, runs[runs["label"] == "Weighted"], "CrossEntropy"),
        lambda: verdicts.between(runs, "Weighted", "CrossEntropy"),
        lambda: verdicts.judge([claim("Weighted")], {"t": runs}),
    ):
        with pytest.raises(ValueError, match=r"2 runs are of an older version .*\(Weighted\).*imbook run TABLE"):
            compared()
    verdicts.judge([claim("CrossEntropy")], {"t": runs})


def test_nothing_to_compare_is_an_error_and_not_an_empty_table(table):
    runs = frame(**NUMBERS)
    with pytest.raises(ValueError, match="only 'base' has runs: there is nothing to compare"):
        verdicts.compare(runs[runs["label"] == "base"], "base")
    apart = runs[(runs["label"] == "base") == (runs["train_seed"] < 4)]
    with pytest.raises(ValueError, match="no seeds are common to 'base' and another row"):
        verdicts.compare(apart, "base")


def test_versus_is_the_comparison_beside_the_means():
    rows = tuple(replace(toys.table().rows[0], label=label) for label in (*NUMBERS, "later"))
    table, runs = replace(toys.table(), rows=rows), frame(**NUMBERS)
    shown, by = verdicts.versus(table, runs, "base", extra=["train_seed"]), verdicts.compare(runs, "base")
    assert list(shown.index) == [*NUMBERS, "later"] and shown["n"].tolist() == [8, 8, 8, 8, 0]
    for label, values in NUMBERS.items():
        assert shown.loc[label, "mean"] == round(np.mean(values), 1)
        assert shown.loc[label, "sd"] == round(np.std(values, ddof=1), 1) and shown.loc[label, "train_seed"] == 3.5
    for label in by.index:
        assert shown.loc[label, ["difference", "low", "high"]].tolist() == pytest.approx(
            by.loc[label, ["difference", "low", "high"]].astype(float).round(1).tolist()
        )
        assert shown.loc[label, "p_holm"] == round(by.loc[label, "p_holm"], 3)
        assert shown.loc[label, "verdict"] == by.loc[label, "verdict"]
    assert shown.loc["later", "verdict"] == "pending"
    assert shown["difference"].isna().tolist() == [True, False, False, False, True]
    alone = verdicts.versus(table, runs[runs["label"] == "better"], "base")
    assert alone["difference"].isna().all() and alone.loc["base", "verdict"] == "pending"
    other = verdicts.versus(table, runs.assign(accuracy=7.0), "base", "accuracy")
    assert set(other["mean"].dropna()) == {7.0} and other.loc["better", "difference"] == 0


def test_between_answers_one_question():
    runs = frame(**NUMBERS)
    by = verdicts.compare(runs, "base").loc["better"]
    answer = verdicts.between(runs, "better", "base")
    assert answer == {name: by[name] for name in ("n", "difference", "low", "high", "verdict")}
    assert verdicts.between(runs, "base", "better")["difference"] == -answer["difference"]
    assert verdicts.between(runs, "better", "never run")["verdict"] == "not tested"


def test_ranks_by_hand():
    def runs(**means):
        return pd.DataFrame(
            [{"label": k, "balanced_accuracy": v + d} for k, v in means.items() for d in (-1, 1)]
        )  # fmt: skip

    frames = {"one": runs(a=50, b=60, c=70, d=10), "two": runs(a=50, b=50, c=40, d=99)}
    assert verdicts.ranks(frames, ["a", "b", "c"]).to_numpy().tolist() == [[3, 2, 1], [1.5, 1.5, 3]]
    with pytest.raises(ValueError, match="two has no runs of e: run them"):
        verdicts.ranks({"two": frames["two"]}, ["a", "e"])


def test_critical_differences_are_demsar_s():
    """q of the Nemenyi test, table 5(a) of the paper; CD of its example: 4 classifiers, 14 data sets, 1.25."""
    q = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    for k, value in q.items():
        assert verdicts.critical_difference(k, 1) == pytest.approx(value * (k * (k + 1) / 6) ** 0.5, abs=2e-3 * k)
    assert verdicts.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    with pytest.raises(ValueError, match="at least 2 rows"):
        verdicts.critical_difference(1, 3)
