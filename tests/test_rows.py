"""What is declared: keys that stay, splits that can be drawn, declarations that are refused."""

from dataclasses import fields, replace

import pytest
import torch
import toys

from imbook import data
from imbook.rows import Row, Split, Table
from imbook.tables.common import crossed, together
from imbook.train import Protocol

SEEDS = dict(order=0, draw=1, train=2)
ROW = Row("a row", Split("digits", ratio=10, n_max=40, order="seed"), "mlp", Protocol("p", epochs=2, lr=0.05))


def key(**changes):
    return replace(ROW, **changes).key(SEEDS)


def test_a_key_is_the_same_for_ever():
    """Records are found by their keys: a change here loses every record made before."""
    assert ROW.identity(SEEDS) == {
        "split": {"data": "digits", "ratio": 10, "n_max": 40, "order": "seed"},
        "net": "mlp",
        "protocol": {"epochs": 2, "lr": 0.05},
        "method": "CrossEntropy",
        "hyper": {},
        "seeds": {"order": 0, "draw": 1, "train": 2},
    }
    assert ROW.key(SEEDS) == "210c0fcb09b40456"


def test_what_a_key_ignores():
    assert key(label="another", fact="some/fact", reading="knn") == ROW.key(SEEDS)
    assert key(protocol=replace(ROW.protocol, name="q")) == ROW.key(SEEDS)
    assert key(protocol=Protocol("p", 2, 128, 0.05, momentum=0.9, decay=0.1)) == ROW.key(SEEDS), (
        "fields at their default"
    )
    indexed = replace(ROW, split=replace(ROW.split, order="index", draw="file"))
    assert indexed.key(SEEDS) == indexed.key(dict(order=5, draw=6, train=2)), "seeds that are not used"


@pytest.mark.parametrize(
    "changes",
    [
        dict(protocol=replace(ROW.protocol, lr=0.1)),
        dict(protocol=replace(ROW.protocol, epochs=3)),
        dict(split=replace(ROW.split, ratio=20)),
        dict(split=replace(ROW.split, valid=5)),
        dict(split=replace(ROW.split, order="index")),
        dict(net="lenet"),
        dict(method="Focal"),
        dict(instrument="stage2"),
    ],
    ids=str,
)
def test_what_a_key_depends_on(changes):
    assert key(**changes) != ROW.key(SEEDS)
    assert all(ROW.key({**SEEDS, name: 9}) != ROW.key(SEEDS) for name in SEEDS)


def test_a_hyper_parameter_belongs_to_the_key_and_a_whole_number_is_its_fraction():
    of = lambda method, **hyper: key(method=method, hyper=hyper)  # noqa: E731
    assert of("Focal", gamma=1.0) != of("Focal", gamma=2.0) != of("Focal")
    assert of("LogitAdjusted", tau=1) == of("LogitAdjusted", tau=1.0), "written either way it is one run"
    assert of("CDB", tau=1) == of("CDB", tau=1.0) != of("CDB", tau="dynamic")
    assert of("MFW", strength=2) == of("MFW", strength=2.0) and of("MFW", start=4) != of("MFW", start=5)
    row = replace(ROW, method="Weighted", hyper={"scheme": "inverse", "start": 48, "beta": 1})
    assert row.identity(SEEDS)["hyper"] == {"scheme": "inverse", "start": 48, "beta": 1.0}
    assert type(row.hyper["start"]) is int and type(row.hyper["beta"]) is float
    assert replace(ROW, split=replace(ROW.split, ratio=10.0)).key(SEEDS) == ROW.key(SEEDS)


def test_a_key_knows_every_field():
    """Of split and protocol: a field that were left out would give two runs one record."""
    changed = dict(data="mnist", profile="step", ratio=20, n_max=50, valid=5, order="index", draw="file",
                   labels=((0,) * 10,))  # fmt: skip
    rows = [replace(ROW, split=replace(ROW.split, **{k: v})) for k, v in changed.items()]
    held_out = replace(ROW.split, valid=5, train_on_valid=True)
    other = [Split("digits", "pair", share=share, n_max=9, classes=classes) for share, classes in
             ((0.9, (0, 1)), (0.8, (0, 1)), (0.9, (1, 0)))]  # fmt: skip
    other += [Split("digits", "reduced", share=0.5, reduce=r) for r in (1, 2)]
    rows += [replace(ROW, split=split) for split in (held_out, *other)]
    assert {f.name for f in fields(Split)} == {*changed, "train_on_valid", "share", "classes", "reduce"}
    settings = dict(epochs=3, batch=64, lr=0.1, momentum=0.8, weight_decay=0.1, warmup=1, milestones=(1,), decay=0.5,
                    cosine=True, crop=1, flip=True, prior_bias=True, watch=2)  # fmt: skip
    assert {f.name for f in fields(Protocol)} == {*settings, "name"}
    rows += [replace(ROW, protocol=replace(ROW.protocol, **{k: v})) for k, v in settings.items()]
    keys = [row.key(SEEDS) for row in (ROW, *rows)]
    assert len(set(keys)) == len(keys)


def test_a_table_lists_each_run_once_and_whole_seeds_first():
    table = toys.table(seeds=3)
    runs = table.runs()
    assert len(runs) == 6 and [(row.label, s["train"]) for row, s in runs[:3]] == [
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


def test_a_table_s_seeds_are_named_in_words():
    by_index, by_seed = (Row("r", Split("digits", ratio=10, n_max=40, order=order, draw=draw), "mlp", ROW.protocol)
                         for order, draw in (("index", "file"), ("seed", "seed")))  # fmt: skip
    varied = lambda row, seeds: Table("t", (row,), seeds).varied()  # noqa: E731
    assert varied(by_seed, together(2)) == "varied over the seeds: class order, draw of the images, training"
    assert varied(by_index, together(2)) == (
        "varied over the seeds: training; the same in all runs: class order, draw of the images"
    )
    assert varied(by_seed, (SEEDS, {**SEEDS, "draw": 7})) == (
        "varied over the seeds: draw of the images; the same in all runs: class order, training"
    )
    assert varied(by_seed, (SEEDS,)).startswith("varied over the seeds: nothing; the same in all runs: class order")
    assert Table("Title", (by_seed,), together(3), metric="macro_f1").caption() == (
        "Title: macro f1 in per cent, mean and sd over 3 sets of seeds "
        "(varied over the seeds: class order, draw of the images, training)"
    )
    assert "over 1 set of seeds (" in Table("Title", (by_seed,), together(1)).caption()


# Declarations that are refused


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(data="mnits", ratio=10), "data 'mnits': choose from 'digits', 'mnist'"),
        (dict(profile="longtailed", ratio=10), "profile 'longtailed': choose from 'long_tailed', 'step'"),
        (dict(ratio=10, order="seeds"), "order 'seeds': choose from 'index', 'seed'"),
        (dict(ratio=10, draw="files"), "draw 'files': choose from 'seed', 'file'"),
        (dict(), "profile 'long_tailed' needs ratio"),
        (dict(profile="step"), "needs ratio"),
        (dict(profile="pair", share=0.9), "profile 'pair' needs classes, n_max"),
        (dict(profile="reduced", share=0.9), "needs reduce"),
        (dict(profile="balanced", ratio=10), "profile 'balanced' does not use ratio: leave it out"),
        (dict(ratio=10, share=0.5), "'long_tailed' does not use share"),
        (dict(profile="reduced", share=0.5, reduce=2, n_max=9), "'reduced' does not use n_max"),
        (dict(ratio=10, classes=(0, 1)), "'long_tailed' does not use classes"),
        (dict(ratio=0.5), "ratio 0.5: .* 1 or more"),
        (dict(ratio=float("nan")), "ratio nan"),
        (dict(ratio=float("inf")), "ratio inf"),
        (dict(profile="reduced", share=1.5, reduce=2), "share 1.5"),
        (dict(profile="balanced", n_max=-1), "n_max -1"),
        (dict(profile="balanced", n_max=2.5), "n_max 2.5"),
        (dict(ratio=10, valid=-1), "valid -1"),
        (dict(ratio=10, train_on_valid=True), "valid 0: .* train_on_valid"),
        (dict(profile="pair", share=0.9, n_max=9, classes=(3, 3)), r"classes \(3, 3\): each class once"),
    ],
    ids=str,
)
def test_a_split_that_means_nothing_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Split(**{"data": "digits", **settings})


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(net="resnet19"), "a row: net 'resnet19': choose from mlp, lenet"),
        (dict(method="Cdb"), "a row: method 'Cdb': choose from .*CDB"),
        (dict(method="Focal", hyper={"gama": 1.0}), "a row: Focal has no gama: choose from gamma"),
        (dict(method="CDB", hyper={"tau": 1.0, "scheme": "inverse"}), "CDB has no scheme"),
    ],
    ids=str,
)
def test_a_row_that_means_nothing_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        replace(ROW, **settings)


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(rows=()), "at least one"),
        (dict(rows=(ROW, ROW)), "each with a label of its own"),
        (dict(seeds=()), "each set names order, draw, train"),
        (dict(seeds=(dict(order=0, draw=0),)), "each set names order, draw, train"),
        (dict(device="gpu"), "Title: device 'gpu': choose from cpu, cuda"),
        (dict(metric="f1"), "Title: metric 'f1': choose from accuracy"),
    ],
    ids=str,
)
def test_a_table_that_means_nothing_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Table(**{"title": "Title", "rows": (ROW,), "seeds": (SEEDS,), **settings})


# Splits


def test_the_smallest_class_of_every_profile_is_last_in_its_order():
    split = replace(ROW.split, order="seed")
    y = data.load("digits")[0].y
    train, _ = split.indices(y, SEEDS)
    order = data.class_order(10, SEEDS["order"])
    assert data.counts(y[train])[order].tolist() == data.long_tailed_counts(40, 10, 10)
    other, _ = split.indices(y, {**SEEDS, "draw": 5})
    assert torch.equal(data.counts(y[other]), data.counts(y[train])) and not torch.equal(other, train)


def test_profiles_of_a_split():
    y = torch.arange(4).repeat(100)
    n = lambda **options: data.counts(y[Split("mnist", **options).indices(y, SEEDS)[0]]).tolist()  # noqa: E731
    assert n(profile="step", ratio=10) == [100, 100, 10, 10]
    assert n(profile="balanced", n_max=30) == [30] * 4 and n(profile="balanced") == [100] * 4
    assert sorted(n(profile="reduced", reduce=2, share=0.9)) == [10, 10, 100, 100]
    assert n(profile="reduced", reduce=1, share=0.9) == [10, 100, 100, 100]
    assert n(ratio=10, valid=20) == data.long_tailed_counts(80, 10, 4)
    assert n(ratio=10, valid=20, train_on_valid=True) == [m + 20 for m in data.long_tailed_counts(80, 10, 4)]


def test_a_split_from_files_takes_the_ends():
    y = torch.arange(4).repeat(100)
    train, valid = Split("mnist", ratio=10, valid=20, draw="file").indices(y, SEEDS)
    assert torch.equal(valid, torch.arange(320, 400)) and train.max() < 320 and train[y[train] == 3].max() == 4 * 7 + 3
