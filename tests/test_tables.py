"""What the book declares: the stored listing of all runs, rows that can be drawn and run, the queue, the claims."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import renew_tables
import torch
import toys

from imbook import data, experiments, records, tables
from imbook.large import LARGE
from imbook.tables import CHAPTERS, MILLISECONDS, QUEUE, TABLES, check_name, rivals
from imbook.tables.mfw import mfw_claims
from imbook.tables.side_by_side import common_claims
from imbook.workers import Request, missing
from tools import choose

SEEDS = dict(order=0, draw=1, train=2)
ROWS = {(name, row.label): row for name, table in TABLES.items() for row in table.rows}


def test_labels_of_a_table_are_its_own():
    for table in TABLES.values():
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels), table.title
        assert table.metric in ("accuracy", "balanced_accuracy", "macro_f1", "g_mean", "macro_auprc")


def test_every_named_fact_is_known():
    known = records.facts()
    assert all(row.fact in known for row in ROWS.values() if row.fact)
    for name, fact in known.items():
        assert {"value", "mark", "source"} <= set(fact) and fact["mark"] in "PSCR", name


def test_what_is_declared_is_what_is_listed():
    """A key that changes by mistake loses every record made under it."""
    listed, found = json.loads(renew_tables.LISTING.read_text()), renew_tables.declared(TABLES)
    changed = sorted(name for name in {**listed, **found} if listed.get(name) != found.get(name))
    assert list(listed) == list(found) and not changed, (
        f"{', '.join(changed) or 'the order'}: keys, labels, titles, devices or metrics are others than in "
        f"{renew_tables.LISTING.name}. If that is meant: python tests/renew_tables.py"
    )


def test_a_changed_key_is_noticed(declared):
    name, table = next(iter(TABLES.items()))
    before = renew_tables.declared({name: table})[name]
    changes = [dict(title="x"), dict(device="cuda"), dict(metric="accuracy"), dict(seeds=table.seeds[:1]),
               dict(rows=table.rows[::-1]), dict(rows=(replace(table.rows[0], label="x"), *table.rows[1:])),
               dict(rows=(replace(table.rows[0], net="lenet"), *table.rows[1:]))]  # fmt: skip
    after = [renew_tables.declared({name: replace(table, **change)})[name] for change in changes]
    assert len({before, *after}) == len(changes) + 1


def test_each_chapter_s_tables_are_in_one_file_of_its_own():
    from importlib import import_module

    files = {p.stem for p in Path(tables.__file__).parent.glob("*.py")} - {"__init__", "common"}
    assert set(CHAPTERS) == files
    assert [name for chapter in CHAPTERS for name in import_module(f"imbook.tables.{chapter}").TABLES] == list(TABLES)


def test_a_name_that_is_not_there_gets_the_nearest():
    assert check_name("digits", TABLES) == "digits"
    with pytest.raises(ValueError) as error:
        check_name("fashio-seeds", TABLES)
    assert "'fashio-seeds': did you mean fashion-seeds" in str(error.value) and len(str(error.value)) < 200
    with pytest.raises(ValueError, match="no table is named '§': `python -m imbook list` names all"):
        check_name("§", TABLES)


# The rivals


@pytest.mark.parametrize("epochs", [20, 60])
def test_every_family_has_as_many_settings_and_its_untuned_one_first(epochs):
    protocol = replace(rivals.SMALL_ONCE, epochs=epochs)
    families = rivals.settings(protocol)
    fewer = {"moved thresholds": 1, "DOS": 6}
    assert all(len(made) == fewer.get(family, 8) for family, made in families.items())
    untuned = {family: made[0][1:3] for family, made in families.items()}
    assert untuned["over-sampling"] == ("OverSampling", {"start": 0})
    assert untuned["class weights"][1] == {"scheme": "inverse", "start": 0, "reduction": "weights"}
    assert untuned["DOS"][1] | {"start": epochs * 2 // 5, "every": epochs // 5} == untuned["DOS"][1]
    late = {s[2]["start"] for s in families["class weights"]}
    assert late == {0, epochs * 4 // 5}


def test_the_settings_are_those_that_the_validation_images_choose():
    assert choose.chosen(records.load()) == rivals.CHOICE


@pytest.fixture
def some_choice():
    """Of each family its last setting."""
    return {family: rivals.labels(family)[-1] for family in rivals.settings(rivals.SMALL_ONCE)}


def test_a_final_table_holds_each_family_tuned_and_untuned(some_choice):
    declared = rivals.finals(rivals.SETS["fashion-lt"][1], "lenet", rivals.SMALL_ONCE, some_choice)
    rows = {row.label: row for row in declared}
    families = rivals.settings(rivals.SMALL_ONCE)
    for family, made in families.items():
        for label, setting in ((family, made[-1]), (f"{family}, untuned", made[0])):
            if label in rows:
                row = rows[label]
                assert (row.method, row.reading) == (setting[1], setting[3]) and setting[2].items() <= row.hyper.items()
        assert family in rows and (f"{family}, untuned" in rows) == (len(made) > 1)
    for family in rivals.ON_TOP:  # one training gives both
        on_top = rows[f"{family} + adjusted logits"]
        assert on_top.reading == "adjusted, tau 1" and on_top.key(SEEDS) == rows[family].key(SEEDS)
    control, mined = (rows[f"{label} + adjusted logits"].hyper for label in ("CRL's control", "CRL"))
    assert control["rho"] == 0 and "rho" not in mined and control["alpha"] == mined["alpha"]  # all but the mining
    assert rows["class weights and over-sampling"].hyper == {"weighted": True}
    for family, setting in (("balanced softmax", {"tau": 1.0}), ("label smoothing", {"epsilon": 0.1})):
        after = rows[f"{family}, and adjusted after"]
        assert after.hyper == setting and after.reading == "adjusted, tau 1"
        assert after.key(SEEDS) == rows[f"{family}, untuned"].key(SEEDS)
    trained = {row.key(SEEDS) for row in rows.values()}
    afterwards = [row for row in rows.values() if row.method == "Afterwards"]
    assert len({row.key(SEEDS) for row in afterwards}) == 1 and len(trained) < len(rows) - len(afterwards)


def test_the_control_of_deep_over_sampling_begins_with_it():
    """Repetition from the epoch on from which DOS repeats, on the same data, read with the same adjustment."""
    for row in TABLES["rivals-repetition-100"].rows:
        name = next(name for name, (title, _) in rivals.SETS.items() if row.label.endswith(f": {title}"))
        dos = next(r for r in TABLES[f"rivals-{name}-100"].rows if r.label == "DOS + adjusted logits")
        assert (row.split, row.net, row.protocol, row.reading) == (dos.split, dos.net, dos.protocol, dos.reading)
        assert row.hyper == {"whole": True, "start": dos.hyper["start"]}


def test_seeds_suffice_for_the_corrected_rank_test():
    """With n pairs its p is 2 / 2^n at least, so that too few seeds could show nothing, however clear it was."""
    finals = {name: TABLES[name] for name in TABLES if name.startswith("rivals-") and name.endswith(("-100", "-10"))}
    compared = {name: table for name, table in finals.items() if "moved thresholds" in {r.label for r in table.rows}}
    assert len(compared) == 2 * len(rivals.SETS) + len(rivals.CIFAR_SETS)
    for name, table in compared.items():
        alone = [row for row in table.rows if not any(k in row.label for k in ("untuned", " and ", "adjusted"))]
        assert 2 / 2 ** len(table.seeds) * (len(alone) - 1) < 0.05, name


# The queue


class Labels:
    """A data set of which only the labels are there: as many of each class as the official set has, in mixed order."""

    def __init__(self, name):
        classes, size = {"cifar10": (10, 5000), "cifar100": (100, 500), "svhn": (10, 4000)}[name]
        mixed = torch.randperm(classes * size, generator=torch.Generator().manual_seed(0))
        self.y, self.classes = (torch.arange(classes * size) % classes)[mixed], tuple(map(str, range(classes)))


@pytest.fixture
def without_data(monkeypatch):
    monkeypatch.setattr(experiments, "_load", lambda name: (Labels(name), None))
    experiments._class_sizes.cache_clear()
    yield
    experiments._class_sizes.cache_clear()


def test_a_part_of_the_queue_takes_eight_minutes_at_most(without_data, tmp_path):
    """By the steps of its runs, whatever has been run before; as declared, and as the formula of its split says."""
    for name in QUEUE:
        jobs, minutes = missing(Request((name,), tmp_path), have={}), 0
        for job in jobs:
            split, protocol = job.row.split, job.row.protocol
            count = experiments.steps(job.row)
            if split.profile == "long_tailed" and job.row.method not in ("DOS", "OverSampling"):
                classes = {"cifar10": 10, "cifar100": 100}[split.data]
                images = sum(data.long_tailed_counts(split.n_max, split.ratio, classes))
                images += classes * split.valid * split.train_on_valid
                assert abs(count / protocol.epochs - images / protocol.batch) <= 1, job
            minutes += count * MILLISECONDS[protocol.batch] / 60_000
        assert 0 < minutes <= 8, f"{name}: {minutes:.1f} minutes"


def test_a_part_of_the_queue_names_rows_and_seeds_that_are_there(tmp_path):
    """Every one of them is a run of its own: no label stands for the run of another, no run is in two parts."""
    seen = set()
    for name, pieces in QUEUE.items():
        asked = 0
        for table, sets, labels in pieces:
            assert TABLES[table].device == "cuda" and max(sets) < len(TABLES[table].seeds)
            there = [row.label for row in TABLES[table].rows]
            assert set(labels) <= set(there), (name, set(labels) - set(there))
            asked += len(sets) * len(labels or there)
        runs = {job.row.key(job.seeds) for job in missing(Request((name,), tmp_path), have={})}
        assert len(runs) == asked and not runs & seen, name
        seen |= runs


def test_the_first_parts_answer_the_first_questions():
    for name, table in (("part-1", "cdb-cifar100-100"), ("part-2", "methods-cifar10-lt-100")):
        ((found, _, labels),) = QUEUE[name]
        assert found == table and "cross entropy" in labels
    assert {"CDB, tau 1", "CDB, dynamic tau"} <= set(QUEUE["part-1"][0][2])
    assert "logit adjustment" in QUEUE["part-2"][0][2]


@pytest.mark.parametrize("name", TABLES)
def test_a_caption_says_what_varies(name):
    """The class order of a split by index does not vary, whatever the seeds; nor does a draw by file order."""
    table = TABLES[name]
    caption = table.caption()
    assert caption.startswith(f"{table.title}: {table.metric.replace('_', ' ')} in per cent, mean and sd over ")
    assert f" {len(table.seeds)} set" in caption
    varied, _, fixed = table.varied().partition("; the same in all runs: ")
    for seed, words in (("order", "class order"), ("draw", "draw of the images"), ("train", "training")):
        used = seed == "train" or any(getattr(row.split, seed) == "seed" for row in table.rows)
        varies = used and len({seeds[seed] for seeds in table.seeds}) > 1
        assert (words in varied) == varies and (words in fixed) == (not varies), words


# Splits and claims


def test_tables_on_one_split_share_their_runs():
    found = lambda name: {row.key(SEEDS): row.label for row in TABLES[name].rows}  # noqa: E731
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
    of_chapters = set().union(*(found(name) for name in ("crl-fashion", "cdb-fashion", "mfw-fashion-lt-100")))
    new = {label for key, label in found("methods-fashion").items() if key not in of_chapters}
    assert new == {"DOS, k = 5", "over-sampling, as often as DOS"}


@cache
def official(name):
    return (data.load("digits") if name == "digits" else toys.real(name))[0]


DRAWN = {row.split for row in ROWS.values() if row.split.data not in LARGE}  # test_large.py has the others


@pytest.mark.parametrize("split", sorted(DRAWN, key=str), ids=str)
def test_the_split_of_every_row(split):
    """From the labels alone: training and validation are disjoint, validation balanced, the profile as asked."""
    images = official(split.data)
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
    if split.profile == "gaussian":
        assert n == data.gaussian_counts(split.n_max, split.share, len(n))
    if split.profile == "pair":
        assert n == [int(split.n_max * split.share + 1e-9), split.n_max - int(split.n_max * split.share + 1e-9)]


@pytest.mark.parametrize("claims", [mfw_claims(), common_claims()], ids=["chapter 07", "common tables"])
def test_every_claim_names_rows_that_are_run_with_enough_seeds(claims):
    together = Counter((claim.number, claim.terms[0][1]) for claim in claims)
    for (_, table), size in together.items():  # else no result could pass the corrected test
        assert size * 2 / 2 ** len(TABLES[table].seeds) < 0.05
    for claim in claims:
        for _, table, label, column, *when in claim.terms:
            rows = {row.label: row for row in TABLES[table].rows}
            assert label in rows and len(TABLES[table].seeds) >= 6, claim
            assert (rows[label].instrument is not None) == bool(when), claim
            assert when in ([], ["early"], ["all"], ["last"]) and bool(when) != (column == "balanced_accuracy"), claim
