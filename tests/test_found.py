"""The paragraph of the landing page: which rows it compares, and that a row leaves it when the rule says so."""

import found
import pandas as pd
import pytest

from imbook.tables import rivals


@pytest.fixture(scope="module")
def sets():
    return found.complete()


def test_every_tuned_row_is_compared(sets):
    for name, choice in rivals.CHOICE.items():
        assert {found.FREE, *found.SIMPLE, *found.METHODS} == {"cross entropy", *choice}, name
    for runs in sets.values():
        assert set(found.gaps(runs).index) == {*found.SIMPLE, *found.METHODS}


def test_the_correction_counts_every_tuned_row(sets):
    """On long-tailed MNIST the lead of moved thresholds holds among fewer rows, and not among all."""
    gap = found.gaps(sets["MNIST, long-tailed"]).loc["moved thresholds"]
    assert gap["low"] > 0 and gap["verdict"] == "does not hold"
    assert "on both Fashion-MNIST sets and step-imbalanced MNIST" in found.ahead(sets)


def test_what_remains_at_ratio_10_is_told_from_its_own_runs(sets):
    mild = found.complete(10)
    told = found.milder(sets, mild)
    assert set(mild) <= set(sets) and told.count("mixup (") == 0
    for title, runs in mild.items():
        gain = [runs[runs["label"] == k]["balanced_accuracy"].mean() for k in (found.FREE, "cross entropy")]
        assert f"{gain[0] - gain[1]:.1f}" in told and len(runs) < len(sets[title])
    moved = {title: found.gaps(runs).loc[found.MOVED] for title, runs in mild.items()}
    behind = [title for title, gap in moved.items() if gap["verdict"] == "reversed" and gap["high"] < 0]
    assert behind and f"Moved thresholds were behind it on {found.places(behind, mild)}." in told


def test_a_set_counts_once_all_its_runs_are_there(monkeypatch):
    have, whole = found.records.load(), found.complete(10)
    name, title = next((name, title) for name, (title, _) in rivals.SETS.items() if title in whole)
    table = found.TABLES[f"rivals-{name}-10"]
    missing = table.rows[-1].key(table.seeds[-1])
    monkeypatch.setattr(found.records, "load", lambda: {key: r for key, r in have.items() if key != missing})
    assert set(found.complete(10)) == set(whole) - {title}


def test_lists_in_words(sets):
    assert found.listed(["a"]) == "a" and found.listed(["a", "b", "c"]) == "a, b and c"
    assert found.places(list(sets), sets) == "all four sets"
    behind = pd.DataFrame({"verdict": ["reversed"] * 4}, index=list(found.METHODS))
    assert found.against(behind) == "it was ahead of all four published methods (CRL, CDB, DOS and MFW)"
    with pytest.raises(SystemExit):
        found.against(behind.assign(verdict="holds"))
