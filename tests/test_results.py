"""Frames of records and what chapters read from them, against plain loops; the choice of hyper-parameters."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys

from imbook import records, results, verdicts
from imbook.methods import METHODS
from imbook.rows import Row, Split, Table
from imbook.tables.common import together

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


def test_class_balanced_accuracy_by_attribute(table):
    row, seeds = table.rows[0], table.seeds[0]
    several = dict(confusion=[[[9, 1], [5, 5]], [[8, 2, 0], [0, 0, 0], [7, 0, 3]]], n=[[40, 5], [30, 15, 0]])
    made = {r["key"]: r for r in (toys.record(row, seeds, **several), toys.record(row, table.seeds[1]))}
    rows = results.by_attribute(results.frame(table, records=made))
    assert rows["attribute"].tolist() == [0, 1, 0] and rows["train_seed"].tolist() == [0, 0, 1]
    assert rows["balanced_accuracy"].tolist() == pytest.approx([70, 55, 65]), "a class without samples does not count"
    assert rows["least_recall"].tolist() == pytest.approx([50, 30, 50])
    assert rows["ratio"].tolist() == [8, math.inf, 4] and set(rows["label"]) == {row.label}


def test_a_frame_has_a_row_a_run(table, folder):
    runs = results.frame(table, folder)
    assert list(runs["label"]) == ["CrossEntropy"] * 3 + ["Weighted"] * 2
    assert runs["balanced_accuracy"].tolist() == pytest.approx([50, 51, 52, 60, 61])
    assert runs[results.SEEDS].values.tolist() == [[s] * 3 for s in (0, 1, 2, 0, 1)]
    assert not runs["stale"].any() and runs["record"][0]["key"] == table.rows[0].key(table.seeds[0])


def test_a_frame_without_runs(table, tmp_path):
    assert results.frame(table, tmp_path).empty and "balanced_accuracy" in results.frame(table, tmp_path)
    assert verdicts.summary(table, tmp_path)["done"].tolist() == [0, 0]


def test_a_changed_method_makes_its_records_stale(table, folder, monkeypatch):
    monkeypatch.setattr(METHODS["Weighted"], "version", 2)
    assert results.frame(table, folder)["stale"].tolist() == [False] * 3 + [True] * 2


def test_dry_records_stay_out_of_tables(table, tmp_path):
    row, seeds = table.runs()[0]
    records.save(toys.record(row, seeds, dry=True), tmp_path)
    records.save(toys.record(row, seeds, dry=True, key=f"dry-{row.key(seeds)}"), tmp_path)
    assert len(records.load(tmp_path)) == 2 and results.frame(table, tmp_path).empty


def read(table, labels):
    """The first row of a table under several labels, each (label, reading)."""
    row, run = table.rows[0], table.seeds[0]
    readings = {"knn": {"metrics": {"accuracy": 0.9}, "confusion": [[[3, 0], [0, 3]]]}}
    rows = tuple(replace(row, label=label, reading=reading) for label, reading in labels)
    record = toys.record(row, run, accuracy=0.5, readings=readings)
    return Table("read", rows, (run,)), {record["key"]: record}


def test_a_reading_stands_for_the_prediction_of_the_same_run(table):
    shown, made = read(table, (("network", None), ("neighbours", "knn")))
    runs = results.frame(shown, records=made).set_index("label")
    assert runs["accuracy"].to_dict() == {"network": 50.0, "neighbours": 90.0}
    assert runs.loc["neighbours", "record"]["confusion"] == [[[3, 0], [0, 3]]] and len(shown.runs()) == 1
    assert runs.loc["network", "record"]["confusion"] == [[[40, 10], [25, 25]]]
    once = results.one_each(results.frame(shown, records=made))
    assert once["label"].tolist() == ["network"] and len(results.one_each(results.frame(shown, records={}))) == 0


def test_a_reading_has_the_validation_accuracy_of_its_own(table):
    """And none where none was measured of it: that of the network's own prediction is another number."""
    shown, made = read(table, (("network", None), ("neighbours", "knn")))
    (record,) = made.values()
    record["curve"][-1]["valid"] = [0.25, 0.75]
    runs = results.frame(shown, records=made).set_index("label")
    assert runs["valid"]["network"] == 50 and runs.loc["neighbours", ["train", "valid"]].isna().all()
    record["readings"]["knn"]["valid"] = [0.75, 1.0]
    assert results.frame(shown, records=made).set_index("label")["valid"].to_dict() == pytest.approx(
        {"network": 50, "neighbours": 87.5}
    )


def test_the_best_of_some_rows_may_be_a_reading(table):
    labels = (("network", None), ("one", "one"), ("two", "two"), ("three", "three"))
    row, run = table.rows[0], table.seeds[0]
    valid = {"one": [0.5, 0.7], "two": [0.9, 0.9], "three": [0.9, 0.9]}
    plain = {"metrics": {"accuracy": 0.1}, "confusion": [[[3, 0], [0, 3]]]}
    readings = {k: {**plain, "valid": v} for k, v in valid.items()}
    shown = Table("read", tuple(replace(row, label=label, reading=reading) for label, reading in labels), (run,))
    made = {row.key(run): toys.record(row, run, readings=readings)}
    assert results.best(shown, ["one", "two", "three"], records=made) == "two"
    assert results.best(shown, ["three", "two"], records=made) == "three"
    assert results.best(shown, ["one"], records={}) is None
    with pytest.raises(ValueError, match="has no row four"):
        results.best(shown, ["one", "four"], records=made)
    with pytest.raises(ValueError, match="network: no validation images"):
        results.best(shown, ["network", "one"], records=made)


def test_a_run_that_is_shown_twice_counts_once_in_the_provenance(table, monkeypatch):
    shown, made = read(table, (("network", None), ("neighbours", "knn")))
    monkeypatch.setattr(results, "load", lambda: made)
    assert "| t | 1 of 1 |" in results.provenance_table({"t": shown})


def reduced(n, confusion, auprc=None, reduce=2):
    """A run of a 'reduced' split with these training and test counts, as `frame` gives it."""
    record = {"key": "k", "n": n, "confusion": [confusion], "auprc": [auprc or [0.5] * len(n)]}
    record["split"] = {"profile": "reduced", "reduce": reduce, "share": 0.9}
    return pd.DataFrame([{"label": "a", "order_seed": 1, "draw_seed": 2, "train_seed": 3, "record": record}])


def test_averages_over_minority_and_majority_against_the_loop():
    n, matrix = [500, 50, 480, 450, 48], np.random.default_rng(0).integers(1, 40, (5, 5))
    matrix[:, 4] = 0  # a class that is never predicted: precision and F1 are 0
    runs = results.minority_majority(reduced(n, matrix.tolist(), [0.9, 0.2, 0.8, 0.7, 0.4]))
    assert list(runs.loc[0, ["label", "order_seed", "draw_seed", "train_seed"]]) == ["a", 1, 2, 3]
    for side, classes in (("minority", (1, 4)), ("majority", (0, 2, 3))):
        p = [matrix[c, c] / matrix[:, c].sum() if matrix[:, c].sum() else 0 for c in classes]
        r = [matrix[c, c] / matrix[c].sum() for c in classes]
        f = [2 * a * b / (a + b) if a + b else 0 for a, b in zip(p, r)]
        assert runs.loc[0, f"{side}_precision"] == pytest.approx(100 * np.mean(p))
        assert runs.loc[0, f"{side}_recall"] == pytest.approx(100 * np.mean(r))
        assert runs.loc[0, f"{side}_f1"] == pytest.approx(100 * np.mean(f))
    assert runs.loc[0, "minority_auprc"] == pytest.approx(30) and runs.loc[0, "majority_auprc"] == pytest.approx(80)


def test_the_minority_must_be_the_classes_that_were_reduced():
    matrix = [[1] * 4 for _ in range(4)]
    with pytest.raises(ValueError, match="k: 1 classes have at most half .* but 2 were reduced"):
        results.minority_majority(reduced([500, 500, 300, 50], matrix))
    balanced = reduced([500, 490, 480, 470], matrix)
    balanced.loc[0, "record"]["split"] = {"profile": "balanced"}
    runs = results.minority_majority(balanced)
    assert math.isnan(runs.loc[0, "minority_f1"]) and runs.loc[0, "majority_f1"] == 25


def test_progress_of_small_and_large_classes_against_the_loop():
    rng = np.random.default_rng(0)
    n, rows = [30, 200, 5, 90, 40], []
    for epoch in (2, 4):
        train, test, gradient = rng.random((3, 5)).tolist()
        matrix = rng.integers(1, 9, (5, 5)).tolist()
        rows.append(dict(epoch=epoch, train=train, test=test, gradient=gradient, train_confusion=matrix))
    seeds = {"order_seed": 1, "draw_seed": 2, "train_seed": 3}
    runs = pd.DataFrame([{"label": "a", **seeds, "record": {"key": "k", "n": n, "curve": rows}}])
    found = results.progress(runs)
    assert found[["label", *seeds]].values.tolist() == [["a", 1, 2, 3]] * 2 and found["epoch"].tolist() == [2, 4]
    minor, major = (0, 2, 4), (1, 3)  # the middle class is one of the minor
    for row, (_, shown) in zip(rows, found.iterrows()):
        of = lambda column, classes: sum(row[column][c] for c in classes) / len(classes)  # noqa: E731, B023
        for name, classes in (("minor", minor), ("major", major)):
            assert shown[f"train_{name}"] == pytest.approx(100 * of("train", classes))
            assert shown[f"test_{name}"] == pytest.approx(100 * of("test", classes))
            assert shown[f"gap_{name}"] == pytest.approx(100 * (of("train", classes) - of("test", classes)), abs=1e-4)
            assert shown[f"gradient_{name}"] == pytest.approx(of("gradient", classes))
        assert shown["gradient_ratio"] == pytest.approx(of("gradient", minor) / of("gradient", major))
        to_major = [sum(row["train_confusion"][c][m] for m in major) / sum(row["train_confusion"][c]) for c in minor]
        assert shown["minor_as_major"] == pytest.approx(100 * sum(to_major) / 3)


def test_progress_needs_no_instrument_but_two_sides():
    record = {"key": "k", "n": [9, 3], "curve": [dict(epoch=1, train=[1.0, 0.5], test=[0.75, 0.25])]}
    runs = pd.DataFrame([{"label": "a", "order_seed": 0, "draw_seed": 0, "train_seed": 0, "record": record}])
    found = results.progress(runs)
    assert found["gap_minor"].tolist() == [25] and "gradient_ratio" not in found
    record["n"] = [5, 5]
    with pytest.raises(ValueError, match="k: no class is larger than the middle one"):
        results.progress(runs)


def test_curves_are_long(table, folder):
    rows = results.curves(results.frame(table, folder))
    assert len(rows) == 10 and rows["epoch"].tolist() == [1, 2] * 5
    assert rows["test"][0] == [0.5, 0] and rows["run"].nunique() == 5 and rows["label"][9] == "Weighted"


def test_provenance_of_the_committed_records(table, monkeypatch):
    records.archive([toys.record(*run) for run in table.runs()[:4]], records.RECORDS / "quick.jsonl.gz")
    lines = results.provenance_table({"quick": table, "empty": toys.table(lr=0.3)}).splitlines()
    rows = [c.strip() for c in lines[2].strip("|").split("|")]
    assert rows == ["quick", "4 of 6", "a processor", "1", "2.15.0", "3.11.7", "0.00", "2026-01-02", "2026-01-02"]
    assert lines[3].startswith("| empty | 0 of 4 | pending |") and len({line.count("|") for line in lines}) == 1


# The choice of hyper-parameters


def grid():
    """Two rows of Focal and one of CrossEntropy; a record of each run with its mean recall on validation images."""
    split = Split("digits", ratio=10, n_max=40, valid=5, order="seed")
    rows = [Row(f"gamma {g:g}", split, "mlp", toys.QUICK, "Focal", {"gamma": g}) for g in (0.5, 1.0, 2.0)]
    table = Table("grid", (*rows, Row("plain", split, "mlp", toys.QUICK)), together(2, first=100))
    valid = {"gamma 0.5": (0.5, 0.75), "gamma 1": (1.0, 0.5), "gamma 2": (0.625, 0.875), "plain": (1.0, 1.0)}
    curve = lambda v: [{"valid": [1.0, 1.0]}, {"valid": [v - 0.125, v + 0.125]}]  # noqa: E731
    made = {
        row.key(seeds): toys.record(row, seeds, curve=curve(v))
        for row in table.rows
        for seeds, v in zip(table.seeds, valid[row.label])
    }
    return table, made


def test_the_choice_is_the_best_mean_on_the_last_validation():
    table, made = grid()
    assert results.chosen(table, "Focal", records=made) == {"gamma": 1.0}  # means 0.625, 0.75, 0.75: the first
    made[table.rows[2].key(table.seeds[1])]["curve"][-1]["valid"] = [0.9]
    assert results.chosen(table, "Focal", records=made) == {"gamma": 2.0}
    assert results.chosen(table, "CrossEntropy", records=made) == {}


def test_there_is_no_choice_before_all_runs_are_there():
    table, made = grid()
    del made[table.rows[0].key(table.seeds[1])]
    assert results.chosen(table, "Focal", records=made) is None
    assert results.chosen(table, "CrossEntropy", records=made) == {}, "its own runs are"


def test_a_class_without_validation_images_does_not_count_in_a_choice():
    table, made = grid()
    for seeds in table.seeds:
        made[table.rows[0].key(seeds)]["curve"][-1]["valid"] = [float("nan"), 0.9]
    assert results.chosen(table, "Focal", records=made) == {"gamma": 0.5}, "0.9 over the classes that have images"


def test_a_choice_that_cannot_be_made_is_an_error(monkeypatch):
    table, made = grid()
    with pytest.raises(ValueError, match="no row of 'grid' has the method 'CDB'"):
        results.chosen(table, "CDB", records=made)
    for seeds in table.seeds:
        del made[table.rows[0].key(seeds)]["curve"][-1]["valid"]
    with pytest.raises(ValueError, match="gamma 0.5: no validation images"):
        results.chosen(table, "Focal", records=made)
    monkeypatch.setattr(METHODS["Focal"], "version", 2)
    with pytest.raises(ValueError, match="6 runs are of an older version of their method"):
        results.chosen(table, "Focal", records=made)
    assert results.chosen(table, "CrossEntropy", records=made) == {}


def test_a_choice_is_not_made_on_test_images():
    table, made = grid()
    before = results.chosen(table, "Focal", records=made)
    for key in made:
        made[key] |= {"metrics": dict.fromkeys(made[key]["metrics"], 0.0), "confusion": [[[0, 50], [50, 0]]]}
    assert results.chosen(table, "Focal", records=made) == before


def test_a_frame_holds_what_each_column_says(table):
    """Values of its own in every column: none can stand for another."""
    row, seeds = table.rows[0], dict(order=1, draw=2, train=3)
    table = replace(table, rows=(row,), seeds=(seeds,))
    n, metrics = [90, 60, 40, 20, 10, 5], {"accuracy": 0.11, "balanced_accuracy": 0.12, "macro_f1": 0.13}
    right = [9, 8, 7, 6, 5, 4]
    matrix = [[right[c] if c == d else (10 - right[c]) * (d == (c + 1) % 6) for d in range(6)] for c in range(6)]
    curve = [dict(epoch=1, train=[0.1] * 6, valid=[0.2] * 6, test=[0.3] * 6),
             dict(epoch=2, train=[0.4] * 6, valid=[0.5] * 5 + [float("nan")], test=[0.6] * 6)]  # fmt: skip
    more = dict(seconds=21.0, train_seconds=20.0, peak_mb=300)
    record = toys.record(row, seeds, n=n, metrics=metrics, confusion=[matrix], curve=curve, **more)
    (line,) = results.frame(table, records={record["key"]: record}).to_dict("records")
    assert line.pop("record") == record
    assert line == pytest.approx(
        dict(
            label="CrossEntropy", method="CrossEntropy", order_seed=1, draw_seed=2, train_seed=3, accuracy=11,
            balanced_accuracy=12, macro_f1=13, head=85, middle=65, tail=45, train=40, valid=50, **more, stale=False,
        )
    )  # fmt: skip


def test_progress_above_twenty_classes_names_what_is_missing(table):
    row, seeds = table.rows[0], table.seeds[0]
    table, n = replace(table, rows=(row,), seeds=(seeds,)), list(range(60, 36, -1))
    matrix = [[5 * (c == d) for d in range(24)] for c in range(24)]
    curve = [dict(epoch=1, train=[0.1, 0.2, 0.3], test=[0.1, 0.2, 0.3])]
    record = toys.record(row, seeds, n=n, groups=[c // 8 for c in range(24)], confusion=[matrix], curve=curve)
    with pytest.raises(ValueError, match="mean recalls of class groups, not of its 24 classes"):
        results.progress(results.frame(table, records={record["key"]: record}))
