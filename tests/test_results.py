"""Records: written whole or not at all, read back, summarised; comparisons against scipy; verdicts at their borders."""

import gzip
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import toys

from imbook import results
from imbook.experiments import TABLES, Row, Split, Table, together
from imbook.methods import METHODS


def made(cell, seeds, accuracy=0.5, **changes):
    """A record as `run` makes them, without a run."""
    names = "accuracy balanced_accuracy macro_f1 g_mean macro_auprc calibration_error".split()
    return {
        "key": cell.key(seeds),
        "dry": False,
        **cell.identity(seeds),
        "n": [40, 10],
        "metrics": dict.fromkeys(names, accuracy),
        "confusion": [[[40, 10], [25, 25]]],
        "curve": [
            {"epoch": e, "lr": 0.1, "loss": 1 / e, "seconds": e, "train": [1, 0.5], "test": [accuracy, 0]}
            for e in (1, 2)
        ],
        "seconds": 3.6,
        "method_version": METHODS[cell.method].version,
        "device": "a processor",
        "threads": 1,
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "source": records.source_hash(),
        "time": "2026-01-02T03:04:05+00:00",
        **changes,
    }


@pytest.fixture(autouse=True)
def no_shipped_records(tmp_path, monkeypatch, request):
    """Tests of one folder see only that folder."""
    if "shipped" not in request.node.name:
        empty = tmp_path / "shipped"
        empty.mkdir()
        (empty / "paper_facts.json").write_text(json.dumps({"one": {"value": 50.0, "mark": "P", "source": "x"}}))
        monkeypatch.setattr(results, "RECORDS", empty)


@pytest.fixture
def table():
    return toys.table(seeds=3)


@pytest.fixture
def folder(tmp_path, table):
    """All runs of the table but the last: accuracy .50 .51 .52 and .60 .61."""
    for k, (cell, seeds) in enumerate(table.runs()[:-1]):
        accuracy = 0.5 + 0.1 * (cell.label == "Weighted") + 0.01 * seeds["train"]
        records.save(made(cell, seeds, accuracy, order=k), tmp_path / "out")
    return tmp_path / "out"


# Writing and reading


def test_a_record_comes_back(table, tmp_path):
    record = made(*table.runs()[0], odd=[float("nan"), 1e-30, None, "é"])
    path = records.save(record, tmp_path / "new/out")
    back = records.load(path.parent)[record["key"]]
    assert back.pop("file") == path.name == f"{record['key']}.json" and toys.same(back, record)
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_a_crash_while_saving_leaves_nothing_readable(table, tmp_path, monkeypatch):
    def crash(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    for save in (
        lambda: records.save(made(*table.runs()[0]), tmp_path / "out"),
        lambda: records.archive([made(*table.runs()[0])], tmp_path / "out/t.jsonl.gz"),
    ):
        with pytest.raises(KeyboardInterrupt):
            save()
        assert len(list((tmp_path / "out").iterdir())) and records.load(tmp_path / "out") == {}


def test_a_crash_while_saving_keeps_the_older_record(table, tmp_path, monkeypatch):
    cell, seeds = table.runs()[0]
    path = records.save(made(cell, seeds), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        records.save(made(cell, seeds, accuracy=0.9), tmp_path)
    assert path.read_bytes() == before


def test_an_archive_has_the_same_bytes_for_the_same_records(table, tmp_path):
    records = [made(*run) for run in table.runs()]
    records.archive(records, tmp_path / "a.jsonl.gz")
    first = (tmp_path / "a.jsonl.gz").read_bytes()
    time.sleep(1.1)  # gzip stamps seconds
    shuffled = [dict(reversed(r.items())) for r in reversed(records)]
    records.archive(shuffled, tmp_path / "a.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == first
    back = records.load(tmp_path)
    assert sorted(back) == sorted(r["key"] for r in records)
    assert all(back[r["key"]] == {**r, "file": "a.jsonl.gz"} for r in records)


def test_the_latest_of_a_key_counts(table, tmp_path):
    cell, seeds = table.runs()[0]
    old = made(cell, seeds, 0.1, time="2026-01-01T00:00:00+00:00")
    new = made(cell, seeds, 0.2, time="2026-02-01T00:00:00+00:00")
    for archived, single in ((old, new), (new, old)):
        records.archive([archived], tmp_path / "a.jsonl.gz")
        records.save(single, tmp_path)
        assert records.load(tmp_path)[old["key"]]["metrics"]["accuracy"] == 0.2


@pytest.mark.parametrize(
    "name, content",
    [
        ("0.json", b'{"key": "abc", "ti'),
        ("0.json", b""),
        ("0.json", b'{"time": "2026"}'),
        ("0.json", b"\xff\xfe"),
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"key": "a", "time": "b"}\n', mtime=0)[:-6]),
    ],
)
def test_a_damaged_record_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    if content == b"":
        assert records.load(tmp_path) == {}
    else:
        with pytest.raises(ValueError, match=f"{tmp_path / name} is not a readable record .*remove it"):
            records.load(tmp_path)


def test_numbers_are_rounded_to_digits_that_count():
    value = {"a": [1.23456789, float("nan")], "b": (torch.tensor([0.1234567]), 7), "c": "x", "d": None, "e": 1.5e-8}
    out = records.rounded(value)
    assert out["a"][0] == 1.2346 and math.isnan(out["a"][1]) and out["b"] == [[0.12346], 7]
    assert (out["c"], out["d"], out["e"]) == ("x", None, 1.5e-8) and isinstance(out["b"][1], int)
    assert records.rounded(0.123456789, 3) == 0.123


def test_class_balanced_accuracy_by_attribute(table):
    cell, seeds = table.rows[0], table.seeds[0]
    several = dict(confusion=[[[9, 1], [5, 5]], [[8, 2, 0], [0, 0, 0], [7, 0, 3]]], n=[[40, 5], [30, 15, 0]])
    records = {r["key"]: r for r in (made(cell, seeds, **several), made(cell, table.seeds[1]))}
    rows = results.by_attribute(results.frame(table, records=records))
    assert rows["attribute"].tolist() == [0, 1, 0] and rows["train_seed"].tolist() == [0, 0, 1]
    assert rows["balanced_accuracy"].tolist() == pytest.approx([70, 55, 65]), "a class without samples does not count"
    assert rows["least_recall"].tolist() == pytest.approx([50, 30, 50])
    assert rows["ratio"].tolist() == [8, math.inf, 4] and set(rows["label"]) == {cell.label}


def test_provenance_without_git(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("git")

    assert records.provenance("cpu")["device"] and len(records.source_hash()) == 12
    monkeypatch.setattr(subprocess, "run", missing)
    records.commit.cache_clear()
    assert records.provenance("cpu")["commit"] is None
    records.commit.cache_clear()


HOLDER = """
import sys, time
from imbook import results
with records.claim(sys.argv[1], "k") as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_claim_is_one_worker_s_until_it_ends(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "True\n"
        with records.claim(tmp_path, "k") as mine, records.claim(tmp_path, "another") as free:
            assert not mine and free
    finally:
        holder.kill()
        holder.communicate()
    with records.claim(tmp_path, "k") as mine:
        assert mine, "released by the end of its holder, however it came"
    with records.claim(tmp_path, "k") as mine:
        assert mine


# Tables


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
    cell, seeds = table.runs()[0]
    records.save(made(cell, seeds, dry=True), tmp_path)
    records.save(made(cell, seeds, dry=True, key=f"dry-{cell.key(seeds)}"), tmp_path)
    assert len(records.load(tmp_path)) == 2 and results.frame(table, tmp_path).empty


def read(table, labels):
    """The first cell of a table under several labels, each (label, reading)."""
    cell, run, read = table.rows[0], table.seeds[0], {"knn": {"metrics": {"accuracy": 0.9}, "confusion": [[[1]]]}}
    cells = tuple(replace(cell, label=label, reading=reading) for label, reading in labels)
    record = made(cell, run, accuracy=0.5, readings=read)
    return Table("read", cells, (run,)), {record["key"]: record}


def test_a_reading_stands_for_the_prediction_of_the_same_run(table):
    shown, records = read(table, (("network", None), ("neighbours", "knn")))
    runs = results.frame(shown, records=records).set_index("label")
    assert runs["accuracy"].to_dict() == {"network": 50.0, "neighbours": 90.0}
    assert runs.loc["neighbours", "record"]["confusion"] == [[[1]]] and len(shown.runs()) == 1
    assert runs.loc["network", "record"]["confusion"] == [[[40, 10], [25, 25]]]
    once = results.one_each(results.frame(shown, records=records))
    assert once["label"].tolist() == ["network"] and len(results.one_each(results.frame(shown, records={}))) == 0


def test_a_run_that_is_shown_twice_counts_once_in_the_provenance(table, monkeypatch):
    shown, records = read(table, (("network", None), ("neighbours", "knn")))
    monkeypatch.setattr(results, "load", lambda: records)
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


def test_claims_are_judged_like_comparisons_and_corrected_by_number(table):
    seeds = [dict(order=s, draw=s, train=s) for s in range(8)]
    table = replace(table, seeds=tuple(seeds))
    rng, records = np.random.default_rng(1), {}
    for cell, height in zip(table.rows, (0.5, 0.8)):
        for s in seeds:
            record = made(cell, s, height + 0.01 * rng.random())
            record["curve"] = [
                dict(epoch=e, train=[1, 0.4], test=[0.9, 0.1 * s["train"] / 8], gradient=[1.0, 2.0 + e],
                     train_confusion=[[4, 0], [3, 1]])
                for e in range(1, 21)
            ]  # fmt: skip
            records[record["key"]] = record
    frames = {"t": results.frame(table, records=records)}
    low, high = (cell.label for cell in table.rows)
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


def test_curves_are_long(table, folder):
    rows = results.curves(results.frame(table, folder))
    assert len(rows) == 10 and rows["epoch"].tolist() == [1, 2] * 5
    assert rows["test"][0] == [0.5, 0] and rows["run"].nunique() == 5 and rows["label"][9] == "Weighted"


def test_a_summary_shows_mean_spread_and_the_paper(table, folder):
    cells = (Row(**{**vars(table.rows[0]), "fact": "one"}), table.rows[1])
    shown = verdicts.summary(type(table)(table.title, cells, table.seeds), folder)
    assert shown.loc["CrossEntropy", ["done", "planned"]].tolist() == [3, 3]
    assert shown.loc["Weighted", ["done", "planned"]].tolist() == [2, 3]
    assert shown["mean"].tolist() == pytest.approx([51, 60.5])
    assert shown["sd"].tolist() == pytest.approx([1, math.sqrt(0.5)]), "of a sample: divided by n - 1"
    assert shown.loc["CrossEntropy", ["paper", "mark", "verdict"]].tolist() == [50, "P", "reproduced"]
    assert shown.loc["Weighted", "verdict"] == "not available"


def test_provenance_of_the_committed_records(table, monkeypatch):
    records.archive([made(*run) for run in table.runs()[:4]], records.RECORDS / "quick.jsonl.gz")
    lines = results.provenance_table({"quick": table, "empty": toys.table(lr=0.3)}).splitlines()
    cells = [c.strip() for c in lines[2].strip("|").split("|")]
    assert cells == ["quick", "4 of 6", "a processor", "1", "2.15.0", "3.11.7", "0.00", "2026-01-02", "2026-01-02"]
    assert lines[3].startswith("| empty | 0 of 4 | pending |") and len({line.count("|") for line in lines}) == 1


# Comparisons


def frame(**columns):
    """Runs with one number each, a column a label."""
    return pd.DataFrame(
        {"label": label, **dict.fromkeys(results.SEEDS, s), "balanced_accuracy": v}
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
        (51, [50], "reproduced"),
        (49, [50], "reproduced"),
        (51.01, [50], "within 2 points"),
        (52, [50], "within 2 points"),
        (47.9, [50], "within 3 points"),
        (53, [50], "within 3 points"),
        (53.01, [50], "not reproduced"),
        (54, [46, 50, 54], "reproduced"),  # inside a wide interval
        (54, [50, 50.1, 49.9], "not reproduced"),
    ],
)
def test_the_verdict_on_a_number(paper, values, verdict):
    assert verdicts.reproduction(paper, pd.Series(values, dtype=float)) == verdict


def test_the_interval_of_a_mean():
    values = pd.Series([50.0, 53.0, 49.0, 52.0])
    low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    edge = (high - low) / 2
    assert verdicts.reproduction(51 + edge - 1e-9, values) == "reproduced"
    assert verdicts.reproduction(51 + edge + 1e-9, values) != "reproduced"


# The records that come with the package


def test_the_shipped_records_belong_to_a_table():
    records = records.load()
    known = {cell.key(seeds): (cell, seeds) for table in TABLES.values() for cell, seeds in table.runs()}
    for key, record in records.items():
        assert key in known, f"{record['file']}: {key} is in no table"
        cell, seeds = known[key]
        assert not record["dry"] and {k: record[k] for k in cell.identity(seeds)} == cell.identity(seeds)
        sizes = record["n"] if isinstance(record["n"][0], list) else [record["n"]]  # several labels an image
        assert [len(m) for m in record["confusion"]] == [len(n) for n in sizes]
        assert record["curve"][-1]["epoch"] == cell.protocol.epochs
        accuracies = [np.trace(m) / np.sum(m) for m in record["confusion"]]
        assert record["metrics"]["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-5)


def test_the_shipped_records_stand_under_their_table():
    for path in sorted(records.RECORDS.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        wanted = {cell.key(seeds) for cell, seeds in TABLES[name].runs()}
        assert {json.loads(line)["key"] for line in gzip.decompress(path.read_bytes()).splitlines()} <= wanted
    assert sum(f.stat().st_size for f in records.RECORDS.iterdir()) < 10e6, "a few MB in all"


# The choice of hyper-parameters


def grid():
    """Two cells of Focal and one of CrossEntropy; a record of each run with its mean recall on validation images."""
    split = Split("digits", ratio=10, n_max=40, valid=5, order="seed")
    cells = [Row(f"gamma {g:g}", split, "mlp", toys.QUICK, "Focal", {"gamma": g}) for g in (0.5, 1.0, 2.0)]
    table = Table("grid", (*cells, Row("plain", split, "mlp", toys.QUICK)), together(2, first=100))
    valid = {"gamma 0.5": (0.5, 0.75), "gamma 1": (1.0, 0.5), "gamma 2": (0.625, 0.875), "plain": (1.0, 1.0)}
    records = {
        cell.key(seeds): {
            "curve": [{"valid": [1.0, 1.0]}, {"valid": [v - 0.125, v + 0.125]}],
            "metrics": {"accuracy": 0},
        }
        for cell in table.rows
        for seeds, v in zip(table.seeds, valid[cell.label])
    }
    return table, records


def test_the_choice_is_the_best_mean_on_the_last_validation():
    table, records = grid()
    assert results.chosen(table, "Focal", records=records) == {"gamma": 1.0}  # means 0.625, 0.75, 0.75: the first
    records[table.rows[2].key(table.seeds[1])]["curve"][-1]["valid"] = [0.9]
    assert results.chosen(table, "Focal", records=records) == {"gamma": 2.0}
    assert results.chosen(table, "CrossEntropy", records=records) == {}


def test_there_is_no_choice_before_all_runs_are_there():
    table, records = grid()
    del records[table.rows[0].key(table.seeds[1])]
    assert results.chosen(table, "Focal", records=records) is None
    assert results.chosen(table, "CrossEntropy", records=records) == {}, "its own runs are"
