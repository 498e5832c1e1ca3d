"""Keys that stay, splits that can be drawn, and one short run of every pair of network and method."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import toys

from imbook import data, results
from imbook.experiments import Row, Split, Table, make, run, steps
from imbook.tables import QUEUE, TABLES
from imbook.tables.common import crossed, together
from imbook.tables.mfw import mfw_claims
from imbook.tables.side_by_side import common_claims
from imbook.train import Protocol, fit

SEEDS = dict(order=0, draw=1, train=2)
CELL = Row("a row", Split("digits", ratio=10, n_max=40, order="seed"), "mlp", Protocol("p", epochs=2, lr=0.05))
CELLS = {(name, cell.label): cell for name, table in TABLES.items() for cell in table.rows}


def key(**changes):
    return replace(CELL, **changes).key(SEEDS)


def test_an_instrument_belongs_to_the_key_where_there_is_one():
    assert CELL.instrument is None and "instrument" not in CELL.identity(SEEDS)
    assert key(instrument="stage2") not in (CELL.key(SEEDS), key(instrument="stage1"))
    record = run(replace(CELL, instrument="stage2"), SEEDS)
    assert record["instrument"] == "stage2" and record["key"] == key(instrument="stage2")
    for row in record["curve"]:
        assert len(row["gradient"]) == 10 and min(row["gradient"]) > 0
        assert [sum(r) for r in row["train_confusion"]] == record["n"]
        diagonal = [row["train_confusion"][c][c] / record["n"][c] for c in range(10)]
        assert row["train"] == pytest.approx(diagonal, abs=1e-5)
    assert json.loads(json.dumps(record)) == record
    plain = run(CELL, SEEDS)
    assert plain["confusion"] == record["confusion"] and "gradient" not in plain["curve"][0]


def test_a_key_is_the_same_for_ever():
    """Records are found by their keys: a change here loses every record made before."""
    assert CELL.identity(SEEDS) == {
        "split": {"data": "digits", "ratio": 10, "n_max": 40, "order": "seed"},
        "net": "mlp",
        "protocol": {"epochs": 2, "lr": 0.05},
        "method": "CrossEntropy",
        "hyper": {},
        "seeds": {"order": 0, "draw": 1, "train": 2},
    }
    assert CELL.key(SEEDS) == "210c0fcb09b40456"


def test_what_a_key_ignores():
    assert key(label="another", fact="some/fact", reading="knn") == CELL.key(SEEDS)
    assert key(protocol=replace(CELL.protocol, name="q")) == CELL.key(SEEDS)
    assert key(protocol=Protocol("p", 2, 128, 0.05, momentum=0.9, decay=0.1)) == CELL.key(SEEDS), (
        "fields at their default"
    )
    indexed = replace(CELL, split=replace(CELL.split, order="index", draw="file"))
    assert indexed.key(SEEDS) == indexed.key(dict(order=5, draw=6, train=2)), "seeds that are not used"


@pytest.mark.parametrize(
    "changes",
    [
        dict(protocol=replace(CELL.protocol, lr=0.1)),
        dict(protocol=replace(CELL.protocol, epochs=3)),
        dict(split=replace(CELL.split, ratio=20)),
        dict(split=replace(CELL.split, valid=5)),
        dict(split=replace(CELL.split, order="index")),
        dict(net="lenet"),
        dict(method="Focal"),
        dict(hyper={"gamma": 2.0}),
    ],
    ids=str,
)
def test_what_a_key_depends_on(changes):
    assert key(**changes) != CELL.key(SEEDS)
    assert all(CELL.key({**SEEDS, name: 9}) != CELL.key(SEEDS) for name in SEEDS)


def test_a_table_lists_each_run_once_and_whole_seeds_first():
    table = toys.table(seeds=3)
    runs = table.runs()
    assert len(runs) == 6 and [(c.label, s["train"]) for c, s in runs[:3]] == [
        ("CrossEntropy", 0),
        ("Weighted", 0),
        ("CrossEntropy", 1),
    ]
    twice = Table("t", (*table.rows, replace(table.rows[0], label="the same again")), table.seeds)
    assert len(twice.runs()) == 6


def test_sets_of_seeds():
    assert together(2) == (dict(order=0, draw=0, train=0), dict(order=1, draw=1, train=1))
    assert together(2, first=100) == (dict(order=100, draw=100, train=100), dict(order=101, draw=101, train=101))
    assert len({tuple(s.values()) for s in crossed(3)}) == 27 and set(crossed(3)[0]) == {"order", "draw", "train"}
    assert crossed(3)[:8] == crossed(2), "a longer list keeps its start"


def test_labels_of_a_table_are_its_own():
    for table in TABLES.values():
        labels = [cell.label for cell in table.rows]
        assert len(set(labels)) == len(labels), table.title
        assert table.metric in ("accuracy", "balanced_accuracy", "macro_f1", "g_mean", "macro_auprc")


def test_every_named_fact_is_known():
    known = records.facts()
    assert all(cell.fact in known for cell in CELLS.values() if cell.fact)
    for name, fact in known.items():
        assert {"value", "mark", "source"} <= set(fact) and fact["mark"] in "PSCR", name


def test_all_that_is_declared_for_the_gpu_is_in_a_stage():
    parts = [part for stage in QUEUE.values() for part in stage]
    assert {name for name, table in TABLES.items() if table.device == "cuda"} == {name for name, _, _ in parts}
    for name, number, labels in parts:
        assert number <= len(TABLES[name].seeds) and set(labels) <= {cell.label for cell in TABLES[name].rows}


def test_tables_on_one_split_share_their_runs():
    found = lambda name: {cell.key(SEEDS): cell.label for cell in TABLES[name].rows}  # noqa: E731
    for data_set in ("cifar10", "cifar100"):
        for profile in ("lt", "step"):
            shared = found(f"methods-{data_set}-{profile}-100")
            crl = set(found(f"crl-{data_set}-{profile}-100"))
            assert {shared[k] for k in crl & set(shared)} == {
                "cross entropy", "deferred re-weighting", "CRL, class, relative"
            }  # fmt: skip
        dos = set(found(f"dos-abstract-{data_set}-lt-100"))
        shared = found(f"methods-{data_set}-lt-100")
        assert {shared[k] for k in dos & set(shared)} == {"cross entropy", "DOS, k = 5"}
    of_chapters = set().union(*(found(f"{chapter}-cifar10") for chapter in ("crl", "cdb", "dos", "mfw")))
    assert set(found("methods-cifar10")) <= of_chapters
    of_chapters = set().union(*(found(name) for name in ("crl-fashion", "cdb-fashion", "mfw-fashion-lt-100")))
    new = {label for key, label in found("methods-fashion").items() if key not in of_chapters}
    assert new == {"DOS, k = 5", "over-sampling, as often as DOS"}


@pytest.mark.parametrize(
    "method, hyper",
    [
        ("CrossEntropy", {}),
        ("OverSampling", {}),
        ("OverSampling", {"whole": True, "start": 1}),
        ("DOS", {"k": 2, "start": 1, "every": 1, "minority": "half"}),
        ("DOS", {"k": 0, "start": 1}),
    ],
    ids=str,
)
def test_steps_are_those_of_the_run(method, hyper):
    cell = replace(CELL, method=method, hyper=hyper, protocol=replace(CELL.protocol, epochs=3, batch=16))
    net, made, train, _, _ = make(cell, SEEDS)
    taken = 0

    def count(epoch, row):
        nonlocal taken
        taken += len(train)

    fit(net, made, train, protocol=cell.protocol, tick=count)
    assert steps(cell) == steps(cell, train.n) == taken


# Splits


@pytest.mark.parametrize("split", sorted({c.split for c in CELLS.values()}, key=str), ids=str)
def test_the_split_of_every_cell(split):
    """From the labels alone: training and validation are disjoint, validation balanced, the profile as asked."""
    images, _ = data.load("digits") if split.data == "digits" else toys.real(split.data)
    if split.profile == "pair":
        images = images.only(split.classes)
    train, valid = split.indices(images.y, SEEDS)
    n = data.counts(images.y[train], len(images.classes))
    if valid is None:
        valid = torch.tensor([], dtype=torch.int64)
    else:
        assert data.counts(images.y[valid]).tolist() == [split.valid] * len(images.classes)
    overlap = torch.isin(valid, train)
    assert overlap.all() if split.train_on_valid else not overlap.any()
    assert len(train.unique()) == len(train)
    n = sorted((n - (split.valid if split.train_on_valid else 0)).tolist(), reverse=True)
    if split.profile == "long_tailed":
        assert n == data.long_tailed_counts(split.n_max, split.ratio, len(n))
    if split.profile == "pair":
        assert n == [int(split.n_max * split.share + 1e-9), split.n_max - int(split.n_max * split.share + 1e-9)]


def test_the_smallest_class_of_every_profile_is_last_in_its_order():
    split = replace(CELL.split, order="seed")
    y = data.load("digits")[0].y
    train, _ = split.indices(y, SEEDS)
    order = data.class_order(10, SEEDS["order"])
    assert data.counts(y[train])[order].tolist() == data.long_tailed_counts(40, 10, 10)
    other, _ = split.indices(y, {**SEEDS, "draw": 5})
    assert torch.equal(data.counts(y[other]), data.counts(y[train])) and not torch.equal(other, train)


def test_profiles_of_a_split():
    y = torch.arange(4).repeat(100)
    n = lambda **options: data.counts(y[Split("made", **options).indices(y, SEEDS)[0]]).tolist()  # noqa: E731
    assert n(profile="step", ratio=10) == [100, 100, 10, 10]
    assert n(profile="balanced", n_max=30) == [30] * 4 and n(profile="balanced") == [100] * 4
    assert sorted(n(profile="reduced", reduce=2, share=0.9)) == [10, 10, 100, 100]
    assert n(profile="reduced", reduce=1, share=0.9) == [10, 100, 100, 100]
    assert n(ratio=10, valid=20) == data.long_tailed_counts(80, 10, 4)
    assert n(ratio=10, valid=20, train_on_valid=True) == [m + 20 for m in data.long_tailed_counts(80, 10, 4)]


def test_a_split_from_files_takes_the_ends():
    y = torch.arange(4).repeat(100)
    train, valid = Split("made", ratio=10, valid=20, draw="file").indices(y, SEEDS)
    assert torch.equal(valid, torch.arange(320, 400)) and train.max() < 320 and train[y[train] == 3].max() == 4 * 7 + 3


# Runs


def one_of_each():
    """A cell for each pair of network and method that some table uses."""
    pairs = {}
    for (name, _), cell in CELLS.items():
        pairs.setdefault((cell.net, cell.method), pytest.param(cell, id=f"{name}-{cell.net}-{cell.method}"))
    return pairs.values()


@pytest.mark.parametrize("cell", one_of_each())
def test_a_dry_run_of_each_network_and_method(cell, tmp_path):
    if cell.split.data != "digits":
        toys.real(cell.split.data)
    record = run(cell, SEEDS, dry=True)
    assert record["dry"] and record["key"] == f"dry-{cell.key(SEEDS)}" and len(record["curve"]) == 2
    assert records.load(records.save(record, tmp_path).parent)[record["key"]]["metrics"] == record["metrics"]
    assert 0 <= record["metrics"]["balanced_accuracy"] <= 1


@pytest.fixture(scope="module")
def record():
    return run(CELL, SEEDS)


def test_a_record_says_all_about_its_run(record):
    assert record["key"] == CELL.key(SEEDS) and not record["dry"]
    assert {k: record[k] for k in CELL.identity(SEEDS)} == CELL.identity(SEEDS)
    assert sorted(record["n"], reverse=True) == data.long_tailed_counts(40, 10, 10) and record["groups"] is None
    assert [sum(row) for row in record["confusion"][0]] == [50] * 10
    assert record["metrics"]["accuracy"] == sum(record["confusion"][0][c][c] for c in range(10)) / 500
    assert len(record["auprc"][0]) == 10 and record["method_version"] == 1
    assert [row["epoch"] for row in record["curve"]] == [1, 2]
    assert record["curve"][-1]["test"] == pytest.approx(
        [record["confusion"][0][c][c] / 50 for c in range(10)], abs=1e-5
    )
    for name in ("device", "threads", "versions", "source", "time", "peak_mb"):
        assert record[name], name
    assert 0 < record["curve"][0]["seconds"] < record["curve"][1]["seconds"] <= record["seconds"] + 0.01  # rounded
    assert record["train_seconds"] == round(record["curve"][1]["seconds"], 2)
    assert json.loads(json.dumps(record)) == record


def test_a_record_holds_an_evaluation_of_each_reading(record, tmp_path):
    read = run(replace(CELL, method="CNNCL"), SEEDS)
    assert "readings" not in record and set(read["readings"]) == {"knn", "logistic"}
    assert read["confusion"] == record["confusion"], "the training is the same"
    for reading in read["readings"].values():
        assert set(reading) == {"metrics", "confusion", "auprc"} and reading["confusion"] != record["confusion"]
        assert sum(reading["confusion"][0][c][c] for c in range(10)) / 500 == reading["metrics"]["accuracy"] > 0.5
    assert json.loads(json.dumps(read)) == read

    class Stop(Exception):
        pass

    def stop(epoch, row):
        if epoch == 2:
            raise Stop

    for tick in (stop, None):  # killed after the last epoch: its readings are made again
        with pytest.raises(Stop) if tick else nullcontext():
            again = run(replace(CELL, method="CNNCL"), SEEDS, checkpoint=tmp_path / "c", tick=tick)
    assert again["readings"] == read["readings"]


def test_a_record_names_the_commit_that_was_loaded(monkeypatch):
    """Not the one that the checkout has moved on to while the run trained."""
    head = ["before"]
    answer = lambda *arguments, **options: type("git", (), {"stdout": f"{head[0]}\n"})  # noqa: E731
    monkeypatch.setattr(results.subprocess, "run", answer)
    records.commit.cache_clear()
    assert run(CELL, SEEDS, tick=lambda epoch, row: head.__setitem__(0, "after"))["commit"] == "before"
    records.commit.cache_clear()


def test_a_run_is_decided_by_its_seeds(record):
    again = run(replace(CELL, label="another label"), SEEDS)
    for name in ("confusion", "metrics", "auprc", "n", "key"):
        assert again[name] == record[name], name
    for name in SEEDS:
        assert run(CELL, {**SEEDS, name: 7})["confusion"] != record["confusion"], name


def test_a_run_goes_on_from_its_checkpoint(record, tmp_path):
    class Stop(Exception):
        pass

    def stop(epoch, row):
        raise Stop

    cell = replace(CELL, protocol=replace(CELL.protocol, epochs=12))
    with pytest.raises(Stop):
        run(
            cell, SEEDS, checkpoint=tmp_path / "c.pt", tick=lambda epoch, row: stop(epoch, row) if epoch == 11 else None
        )
    seen = []
    resumed = run(cell, SEEDS, checkpoint=tmp_path / "c.pt", tick=lambda epoch, row: seen.append(epoch))
    assert seen == [12] and resumed["confusion"] == run(cell, SEEDS)["confusion"]


def test_many_classes_are_watched_in_three_groups(monkeypatch):
    """With more than 20 classes the curve holds head, middle and tail instead of a number a class."""
    some = toys.images([20] * 24)
    monkeypatch.setattr(data, "load", lambda name: (some, some))
    cell = replace(CELL, split=Split("made", ratio=10))
    record = run(cell, SEEDS)
    assert record["groups"] == [c // 8 for c in range(24)]
    assert len(record["curve"][-1]["test"]) == 3 and len(record["confusion"][0]) == 24
    by_class = [record["confusion"][0][c][c] / 20 for c in range(24)]
    expected = [sum(by_class[8 * g : 8 * g + 8]) / 8 for g in range(3)]
    assert record["curve"][-1]["test"] == pytest.approx(expected, abs=1e-5)


LABELS = ((0, 1, 0, 0, 0, 2, 0, 2, 3, 2), (0, 0, 0, 0, 0, 0, 0, 0, 0, 1))
SEVERAL = replace(CELL, split=replace(CELL.split, order="index", valid=5, labels=LABELS))


def test_several_labels_are_derived_after_the_split():
    """The same images as with one label, in the same order, from the same network up to its head."""
    plain = replace(SEVERAL, split=replace(SEVERAL.split, labels=()))
    net, _, *sets = make(SEVERAL, SEEDS)
    one_label, _, *plain_sets = make(plain, SEEDS)
    for some, one in zip(sets, plain_sets, strict=True):
        assert torch.equal(some.x, one.x)
        for j, values in enumerate(LABELS):
            assert some.y[:, j].tolist() == [values[c] for c in one.y.tolist()]
    n = data.long_tailed_counts(40, 10, 10)
    kind = [n[0] + n[2] + n[3] + n[4] + n[6], n[1], n[5] + n[7] + n[9], n[8]]
    assert [n_j.tolist() for n_j in sets[0].n] == [kind, [sum(n) - n[9], n[9]]]
    assert SEVERAL.key(SEEDS) != plain.key(SEEDS)
    assert toys.same(net[:-1].state_dict(), one_label[:-1].state_dict())
    assert [h.shape[1] for h in net(sets[0].normalise(sets[0].x[:2]))] == [4, 2]


@pytest.mark.parametrize("dry", [False, True])
def test_a_run_with_several_labels_fills_a_record(dry, tmp_path):
    record = run(SEVERAL, SEEDS, dry=dry)
    assert json.loads(json.dumps(record)) == record and record["split"]["labels"] == [list(v) for v in LABELS]
    assert [len(m) for m in record["confusion"]] == [4, 2] and [len(a) for a in record["auprc"]] == [4, 2]
    assert record["groups"] is None and [len(n_j) for n_j in record["n"]] == [4, 2]
    assert [len(v) for v in record["curve"][-1]["test"]] == [4, 2] == [len(v) for v in record["curve"][-1]["valid"]]
    means = [sum(m[c][c] / sum(m[c]) for c in range(len(m))) / len(m) for m in record["confusion"]]
    assert record["metrics"]["balanced_accuracy"] == pytest.approx(sum(means) / 2, abs=1e-5)
    records.save(record, tmp_path)
    runs = results.frame(Table("Several", (SEVERAL,), (SEEDS,)), tmp_path)
    assert len(runs) == (0 if dry else 1), "a dry run is in no table"
    if not dry:
        assert results.by_attribute(runs)["balanced_accuracy"].tolist() == pytest.approx([100 * m for m in means])
        assert verdicts.summary(Table("Several", (SEVERAL,), (SEEDS,)), tmp_path)["done"].item() == 1


def test_many_labels_are_not_many_classes():
    """More than 20 labels: the curve still holds each class of each."""
    record = run(replace(SEVERAL, split=replace(SEVERAL.split, labels=LABELS * 11)), SEEDS, dry=True)
    assert len(record["curve"][-1]["test"]) == 22 and record["groups"] is None


def test_the_two_labels_of_fashion_mnist():
    (cell,) = {c.split: c for c in TABLES["crl-attributes"].rows}.values()
    toys.real("fashion-mnist")
    n = data.long_tailed_counts(2000, 100, 10)
    kind, boot = make(cell, SEEDS)[2].n
    assert kind.tolist() == [n[0] + n[2] + n[3] + n[4] + n[6], n[1], n[5] + n[7] + n[9], n[8]]
    assert boot.tolist() == [sum(n) - 20, 20]


def test_a_dry_run_keeps_the_true_class_counts():
    cell = replace(CELL, method="Weighted", protocol=replace(CELL.protocol, batch=8))
    _, whole, *_ = make(cell, SEEDS)
    _, method, train, _, test = make(cell, SEEDS, dry=True)
    assert torch.equal(whole.target, method.target) and len(train.y) == 8 and len(test.y) == 100


def test_the_training_seed_draws_the_network_and_the_batches():
    net, _, train, _, _ = make(CELL, SEEDS)
    other, _, its_train, _, _ = make(CELL, {**SEEDS, "train": 3})
    assert torch.equal(train.x, its_train.x) and not torch.equal(net.head.weight, other.head.weight)
    first, its_first = (next(iter(t))[2] for t in (train, its_train))
    assert not torch.equal(first, its_first)


@pytest.mark.parametrize("claims", [mfw_claims(), common_claims()], ids=["chapter 07", "common tables"])
def test_every_claim_names_rows_that_are_run_with_enough_seeds(claims):
    together = Counter((claim.number, claim.terms[0][1]) for claim in claims)
    for (_, table), size in together.items():  # else no result could pass the corrected test
        assert size * 2 / 2 ** len(TABLES[table].seeds) < 0.05
    for claim in claims:
        for _, table, label, column, *when in claim.terms:
            cells = {cell.label: cell for cell in TABLES[table].rows}
            assert label in cells and len(TABLES[table].seeds) >= 6, claim
            assert (cells[label].instrument is not None) == bool(when), claim
            assert when in ([], ["early"], ["all"], ["last"]) and bool(when) != (column == "balanced_accuracy"), claim
