"""From a declaration to a record: everything declared arrives where it is used, and each method can be run."""

import inspect
import json
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import toys

from imbook import data, experiments, metrics, records, results, verdicts
from imbook.experiments import make, run, steps
from imbook.large import LARGE
from imbook.methods import METHODS
from imbook.rows import NETS, Row, Split, Table
from imbook.tables import TABLES
from imbook.train import Protocol, evaluate, fit

SEEDS = dict(order=0, draw=1, train=2)
ROW = Row("a row", Split("digits", ratio=10, n_max=40, order="seed"), "mlp", Protocol("p", epochs=2, lr=0.05))
ROWS = {(name, row.label): row for name, table in TABLES.items() for row in table.rows}


def test_an_instrument_belongs_to_the_key_where_there_is_one():
    assert ROW.instrument is None and "instrument" not in ROW.identity(SEEDS)
    key = lambda stage: replace(ROW, instrument=stage).key(SEEDS)  # noqa: E731
    assert key("stage2") not in (ROW.key(SEEDS), key("stage1"))
    record = run(replace(ROW, instrument="stage2"), SEEDS)
    assert record["instrument"] == "stage2" and record["key"] == key("stage2")
    for row in record["curve"]:
        assert len(row["gradient"]) == 10 and min(row["gradient"]) > 0
        assert [sum(r) for r in row["train_confusion"]] == record["n"]
        diagonal = [row["train_confusion"][c][c] / record["n"][c] for c in range(10)]
        assert row["train"] == pytest.approx(diagonal, abs=1e-5)
    assert json.loads(json.dumps(record)) == record
    plain = run(ROW, SEEDS)
    assert plain["confusion"] == record["confusion"] and "gradient" not in plain["curve"][0]


# The wiring: what is declared arrives where it is used

PROFILES = {
    "long_tailed": dict(ratio=10, n_max=40),
    "step": dict(profile="step", ratio=10, n_max=40),
    "reduced": dict(profile="reduced", share=0.5, reduce=2),
    "pair": dict(profile="pair", share=0.9, n_max=40, classes=(3, 1)),
    "balanced": dict(profile="balanced", n_max=30),
}
HELD_OUT = {"nothing": {}, "10 a class": dict(valid=10), "10, trained on": dict(valid=10, train_on_valid=True)}


def numbered(first, by_class=60):
    """Images of 5 classes in mixed order whose pixels hold their number, from `first` on."""
    number = first + torch.arange(5 * by_class)
    x = torch.stack([number // 256, number % 256], 1).view(-1, 1, 1, 2).repeat(1, 3, 16, 8).to(torch.uint8)
    y = (torch.arange(5 * by_class) * 7 + first) % 5
    return data.Images(x, y, tuple("abcde"), (0.25,) * 3, (0.5,) * 3)


def numbers(batches):
    """The numbers of the images of a set, in order."""
    x = batches.x.long()
    return x[:, 0, 0, 0] * 256 + x[:, 0, 0, 1]


@pytest.fixture
def sets(monkeypatch):
    """Training images 0 to 299 and test images 1000 to 1299 stand for a data set."""
    both = numbered(0), numbered(1000)
    monkeypatch.setattr(experiments, "_load", lambda name: both)
    return both


@pytest.mark.parametrize("held_out", HELD_OUT)
@pytest.mark.parametrize("order", ["index", "seed"])
@pytest.mark.parametrize("drawn", ["file", "seed"])
@pytest.mark.parametrize("profile", PROFILES)
def test_each_set_holds_the_images_of_its_own(sets, profile, drawn, order, held_out):
    """Training, validation and test sets of every profile, order and draw, image by image."""
    split = Split("digits", **PROFILES[profile], **HELD_OUT[held_out], order=order, draw=drawn)
    _, method, train, valid, test = make(replace(ROW, split=split), SEEDS)
    own, its_test = (s.only(split.classes) if split.classes else s for s in sets)
    number = lambda images: images.x[:, 0, 0, 0].long() * 256 + images.x[:, 0, 0, 1]  # noqa: E731
    assert torch.equal(numbers(test), number(its_test)) and torch.equal(test.y, its_test.y), "all of them, in order"
    index, held = split.indices(own.y, SEEDS)
    assert torch.equal(numbers(train), number(own)[index]) and torch.equal(train.y, own.y[index])
    assert len(set(numbers(train).tolist())) == len(train.y) and int(numbers(train).max()) < 300
    assert torch.equal(train.n, data.counts(own.y[index])) and method.arguments["n"][1] == train.n.tolist()
    if split.valid:
        assert torch.equal(numbers(valid), number(own)[held]) and torch.equal(valid.y, own.y[held])
        assert data.counts(valid.y).tolist() == [10] * len(own.classes) and int(numbers(valid).max()) < 300
        shared = set(numbers(train).tolist()) & set(numbers(valid).tolist())
        assert len(shared) == (len(valid.y) if split.train_on_valid else 0)
    else:
        assert valid is None
    # The class that is rank r in the order has the r-th of the profile's sizes.
    ranked = data.class_order(len(own.classes), SEEDS["order"] if order == "seed" else None)
    sizes = {
        "long_tailed": data.long_tailed_counts(40, 10, 5),
        "step": data.step_counts(40, 10, 5),
        "reduced": [int((60 - split.valid) * 0.5)] * 2 + [60 - split.valid] * 3,
        "pair": [36, 4],
        "balanced": [30] * 5,
    }[profile]
    by_rank = torch.arange(2) if profile == "pair" else ranked
    assert (train.n[by_rank] - (split.valid if split.train_on_valid else 0)).tolist() == sizes
    # Which images: the first of each class in file order, the last held out; or another draw for another seed.
    other = [make(replace(ROW, split=split), {**SEEDS, "draw": seed}) for seed in (1, 2)]
    assert torch.equal(numbers(other[0][2]), numbers(train))
    assert torch.equal(numbers(other[1][2]), numbers(train)) == (drawn == "file")
    if drawn == "file" and split.valid and not split.train_on_valid:
        for c in range(len(own.classes)):
            assert numbers(train)[train.y == c].max() < numbers(valid)[valid.y == c].min()


@pytest.mark.parametrize("used", ["order", "draw", "train"])
def test_each_seed_decides_its_own(sets, used):
    """The classes' order, the images drawn, or the network and the order of batches: nothing else changes."""
    row = replace(ROW, split=replace(ROW.split, valid=5), protocol=replace(ROW.protocol, batch=16))
    net, _, train, valid, _ = make(row, SEEDS)
    its_net, _, its_train, its_valid, _ = make(row, {**SEEDS, used: 11})
    assert torch.equal(train.n, its_train.n) == (used != "order")
    assert torch.equal(numbers(valid), numbers(its_valid)) == (used != "draw")
    if used != "order":
        assert torch.equal(numbers(train), numbers(its_train)) == (used != "draw")
        first, its_first = (next(iter(t.positions())) for t in (train, its_train))
        assert torch.equal(first, its_first) == (used != "train")
    assert toys.same(net.state_dict(), its_net.state_dict()) == (used != "train")
    assert train.generator.initial_seed() == 2 and valid.generator is None


@pytest.mark.parametrize("net", sorted(NETS.keys() - {"r3d_18", "deepid2"}))  # weights from elsewhere; larger pictures
def test_the_network_is_that_of_the_row_and_the_training_seed(sets, net):
    made, *_ = make(replace(ROW, net=net), SEEDS)
    takes = inspect.signature(NETS[net]).parameters
    torch.manual_seed(2)
    wanted = dict(classes=5, inputs=3 * 256, channels=3, size=16)
    expected = NETS[net](**{k: v for k, v in wanted.items() if k in takes})
    assert type(made) is type(expected) and toys.same(made.state_dict(), expected.state_dict())


def test_batches_are_as_the_protocol_and_the_images_say(sets):
    protocol = replace(ROW.protocol, batch=17, crop=3, flip=True)
    _, _, train, valid, test = make(replace(ROW, split=replace(ROW.split, valid=5), protocol=protocol), SEEDS)
    assert (train.batch, train.crop, train.flip, train.generator.initial_seed()) == (17, 3, True, 2)
    for some in (valid, test):
        assert (some.crop, some.flip, some.generator) == (0, False, None), "only training images are augmented"
    for some in (train, valid, test):
        assert some.device.type == "cpu"
        assert torch.allclose(some.normalise(some.x[:3]), (some.x[:3] / 255 - 0.25) / 0.5)


def test_all_sets_lie_on_the_device_that_is_asked_for(sets, monkeypatch):
    asked, batches = [], data.Batches

    def on_a_device(*given, **named):
        bound = inspect.signature(batches).bind(*given, **named)
        asked.append(bound.arguments.pop("device"))
        return batches(*bound.args, **bound.kwargs)

    monkeypatch.setattr(data, "Batches", on_a_device)
    make(replace(ROW, split=replace(ROW.split, valid=5)), SEEDS, device="cuda")
    assert asked == ["cuda"] * 3


def test_the_method_gets_the_class_counts_and_its_hyper_parameters(sets):
    hyper = {"scheme": "effective", "beta": 0.75, "start": 3, "reduction": "weights"}
    _, method, train, _, _ = make(replace(ROW, method="Weighted", hyper=hyper), SEEDS)
    expected = METHODS["Weighted"](train.n, **hyper)
    assert type(method) is METHODS["Weighted"] and method.arguments == expected.arguments


@pytest.fixture
def spied(sets, monkeypatch):
    """What `run` calls fit and evaluate with: a dict of the arguments of each, filled by a run."""
    seen = {"evaluate": []}

    def spy_fit(*given, **named):
        bound = inspect.signature(fit).bind(*given, **named)
        bound.apply_defaults()
        seen["fit"] = bound.arguments
        return fit(*given, **{**named, "fast": False})

    def spy_evaluate(*given):
        seen["evaluate"].append(given)
        return evaluate(*given)

    def spy_make(*given):
        seen["made"] = make(*given)
        return seen["made"]

    for name, spy in (("fit", spy_fit), ("evaluate", spy_evaluate), ("make", spy_make)):
        monkeypatch.setattr(experiments, name, spy)
    return seen


def test_a_run_passes_on_all_that_it_is_given(spied, tmp_path):
    ticks = []
    row = replace(ROW, split=replace(ROW.split, valid=5), instrument="stage2", protocol=replace(ROW.protocol, batch=16))
    tick = lambda *what: ticks.append(what)  # noqa: E731
    record = run(row, SEEDS, "cpu", tmp_path / "c.pt", tick, fast=True)
    net, method, train, valid, test = spied["made"]
    given = spied["fit"]
    assert [given[k] for k in ("net", "method", "train", "valid", "test")] == [net, method, train, valid, test]
    assert given["protocol"] == row.protocol and given["seed"] == 2 and given["groups"] is None
    assert given["instrument"] == "stage2" and given["checkpoint"] == tmp_path / "c.pt"
    assert given["tick"] is tick and given["fast"] is True and given["parameters"] is None
    assert [epoch for epoch, _ in ticks] == [1, 2] and record["fast"].startswith("plain loop on cpu")
    assert spied["evaluate"] == [(net, test, method)], "never the validation images"
    assert record["n"] == train.n.tolist() and "readings" not in record
    plain = run(replace(row, instrument=None), {**SEEDS, "train": 9})
    assert (spied["fit"]["seed"], spied["fit"]["fast"], spied["fit"]["checkpoint"]) == (9, False, None)
    assert spied["fit"]["instrument"] is None and "fast" not in plain


def test_a_dry_run_is_short_and_otherwise_the_same(spied):
    hyper = {"scheme": "inverse", "start": 48}
    protocol = replace(ROW.protocol, epochs=60, batch=16, warmup=5, cosine=True, watch=7, crop=1, flip=True)
    row = replace(ROW, split=replace(ROW.split, valid=5), method="Weighted", hyper=hyper, protocol=protocol)
    record = run(row, SEEDS, dry=True)
    net, method, train, valid, test = spied["made"]
    assert spied["fit"]["protocol"] == replace(protocol, epochs=2, warmup=1, watch=1)
    assert method.arguments["start"] == 1, "what starts late is run, too"
    assert len(train.y) == 16 and valid.y.tolist() == [0, 1, 2, 3, 4] and len(test.y) == 100
    whole = make(row, SEEDS)
    assert {*numbers(train).tolist()} <= {*numbers(whole[2]).tolist()}
    assert {*numbers(valid).tolist()} <= {*numbers(whole[3]).tolist()}
    assert int(numbers(test).min()) >= 1000 and len(numbers(test).unique()) == 100
    assert method.arguments["n"] == whole[1].arguments["n"], "the true class counts"
    assert record["key"] == "dry-" + row.key(SEEDS) and record["dry"] is True
    assert record["protocol"]["epochs"] == 2, "the record says what was run"


def test_groups_are_those_of_the_class_sizes(monkeypatch):
    some, seen = toys.images([30] * 24), {}
    monkeypatch.setattr(experiments, "_load", lambda name: (some, some))
    monkeypatch.setattr(experiments, "fit", lambda *a, **k: seen.update(k) or fit(*a, **k))
    row = replace(ROW, split=Split("digits", ratio=10, order="seed"))
    record = run(row, SEEDS)
    assert seen["groups"].tolist() == data.head_middle_tail(torch.tensor(record["n"])).tolist() == record["groups"]
    assert len(set(record["n"])) > 3 and record["n"] != sorted(record["n"], reverse=True)


def test_seconds_of_a_resumed_run_are_those_of_all_its_parts(tmp_path, monkeypatch):
    """Each epoch takes a second of a clock of our own; the first part stops after 3 of 5."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(stop=None):
        def tick(epoch, entry):
            now[0] += 1
            if epoch == stop:
                raise InterruptedError

        return tick

    row = replace(ROW, protocol=replace(ROW.protocol, epochs=5))
    with pytest.raises(InterruptedError):
        run(row, SEEDS, checkpoint=tmp_path / "c.pt", tick=slow(stop=3))
    now[0] += 1000  # the pause between
    assert run(row, SEEDS, checkpoint=tmp_path / "c.pt", tick=slow())["seconds"] == 5
    assert run(row, SEEDS, tick=slow())["seconds"] == 5, "as without a stop"


def test_peak_memory_is_that_of_the_run():
    """Not of what the process did before: 400 MB here. What it adds itself counts."""
    run(ROW, SEEDS, dry=True)
    torch.ones(10**8).sum()
    after = run(ROW, SEEDS, dry=True)["peak_mb"]
    assert after is None or after < 200
    more = run(ROW, SEEDS, dry=True, tick=lambda epoch, entry: torch.ones(10**8).sum())["peak_mb"]
    assert more is None or more > 300


# Runs


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
    row = replace(ROW, method=method, hyper=hyper, protocol=replace(ROW.protocol, epochs=3, batch=16))
    net, made, train, _, _ = make(row, SEEDS)
    taken = 0

    def count(epoch, row):
        nonlocal taken
        taken += len(train)

    fit(net, made, train, protocol=row.protocol, tick=count)
    assert steps(row) == steps(row, train.n) == taken


def one_of_each():
    """A row for each pair of network and method that some table uses; those of large sets are in test_large.py."""
    pairs = {}
    for (name, _), row in ROWS.items():
        if row.split.data in LARGE:
            continue
        pairs.setdefault((row.net, row.method), pytest.param(row, id=f"{name}-{row.net}-{row.method}"))
    return pairs.values()


@pytest.mark.parametrize("row", one_of_each())
def test_a_dry_run_of_each_network_and_method(row, tmp_path):
    if row.split.data != "digits":
        toys.real(row.split.data)
    row = replace(row, protocol=replace(row.protocol, batch=min(row.protocol.batch, 32)))
    record = run(row, SEEDS, dry=True)
    assert record["dry"] and record["key"] == f"dry-{row.key(SEEDS)}" and len(record["curve"]) == 2
    assert records.load(records.save(record, tmp_path).parent)[record["key"]]["metrics"] == record["metrics"]
    assert 0 <= record["metrics"]["balanced_accuracy"] <= 1


@pytest.fixture(scope="module")
def record():
    return run(ROW, SEEDS)


def test_a_record_says_all_about_its_run(record):
    assert record["key"] == ROW.key(SEEDS) and not record["dry"]
    assert {k: record[k] for k in ROW.identity(SEEDS)} == ROW.identity(SEEDS)
    assert sorted(record["n"], reverse=True) == data.long_tailed_counts(40, 10, 10) and record["groups"] is None
    assert [sum(row) for row in record["confusion"][0]] == [50] * 10
    assert record["metrics"]["accuracy"] == sum(record["confusion"][0][c][c] for c in range(10)) / 500
    assert len(record["auprc"][0]) == 10 and record["method_version"] == 1
    assert [row["epoch"] for row in record["curve"]] == [1, 2]
    assert record["curve"][-1]["test"] == pytest.approx(
        [record["confusion"][0][c][c] / 50 for c in range(10)], abs=1e-5
    )
    for name in ("device", "threads", "versions", "source", "time"):
        assert record[name], name
    assert record["peak_mb"] is None or record["peak_mb"] >= 0
    assert 0 < record["curve"][0]["seconds"] < record["curve"][1]["seconds"] <= record["seconds"] + 0.01  # rounded
    assert record["train_seconds"] == round(record["curve"][1]["seconds"], 2)
    assert json.loads(json.dumps(record)) == record


def test_a_record_holds_an_evaluation_of_each_reading(record, tmp_path):
    read = run(replace(ROW, method="CNNCL"), SEEDS)
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
            again = run(replace(ROW, method="CNNCL"), SEEDS, checkpoint=tmp_path / "c", tick=tick)
    assert again["readings"] == read["readings"]


def test_logits_are_also_adjusted_on_top_of_any_method():
    """From the same training: its own results, and those with tau log n_c / N taken off, on both sets."""
    plain = replace(ROW, method="Mixup", split=replace(ROW.split, valid=5))
    also = replace(plain, adjusted=(0.5, 1))
    assert len({plain.key(SEEDS), also.key(SEEDS), replace(plain, adjusted=(1.0,)).key(SEEDS)}) == 3
    assert also.key(SEEDS) == replace(plain, adjusted=(0.5, 1.0)).key(SEEDS)
    record = run(also, SEEDS)
    assert run(plain, SEEDS)["confusion"] == record["confusion"] and record["adjusted"] == [0.5, 1.0]
    net, method, train, valid, test = make(plain, SEEDS)
    fit(net, method, train, valid, test, protocol=plain.protocol, seed=SEEDS["train"])
    for tau in (0.5, 1.0):
        reading = record["readings"][f"adjusted, tau {tau:g}"]
        for batches, found in ((test, None), (valid, reading["valid"])):
            scores, y = evaluate(net, batches, method)
            matrix = metrics.confusion(scores - tau * (train.n / train.n.sum()).log(), y)
            if found is None:
                assert matrix.tolist() == reading["confusion"][0] != record["confusion"][0]
            else:
                assert found == pytest.approx(metrics.recall(matrix).tolist(), abs=1e-5)


def test_each_reading_of_other_last_layers_is_judged_on_both_sets():
    record = run(replace(ROW, method="Afterwards", split=replace(ROW.split, valid=5)), SEEDS)
    assert len(record["readings"]) == 25
    assert all(set(r) == {"metrics", "confusion", "auprc", "valid"} for r in record["readings"].values())
    assert json.loads(json.dumps(record)) == record


def test_a_record_names_the_commit_that_was_loaded(monkeypatch):
    """Not the one that the checkout has moved on to while the run trained."""
    head = ["before"]
    answer = lambda *arguments, **options: type("git", (), {"stdout": f"{head[0]}\n", "returncode": 0})  # noqa: E731
    monkeypatch.setattr(records.subprocess, "run", answer)
    records.commit.cache_clear()
    assert run(ROW, SEEDS, tick=lambda epoch, row: head.__setitem__(0, "after"))["commit"] == "before"
    records.commit.cache_clear()


def test_a_run_is_decided_by_its_seeds(record):
    again = run(replace(ROW, label="another label"), SEEDS)
    for name in ("confusion", "metrics", "auprc", "n", "key"):
        assert again[name] == record[name], name
    for name in SEEDS:
        assert run(ROW, {**SEEDS, name: 7})["confusion"] != record["confusion"], name


def test_a_run_goes_on_from_its_checkpoint(record, tmp_path):
    class Stop(Exception):
        pass

    def stop(epoch, row):
        raise Stop

    row = replace(ROW, protocol=replace(ROW.protocol, epochs=12))
    with pytest.raises(Stop):
        run(
            row, SEEDS, checkpoint=tmp_path / "c.pt", tick=lambda epoch, row: stop(epoch, row) if epoch == 11 else None
        )
    seen = []
    resumed = run(row, SEEDS, checkpoint=tmp_path / "c.pt", tick=lambda epoch, row: seen.append(epoch))
    assert seen == [12] and resumed["confusion"] == run(row, SEEDS)["confusion"]


def test_many_classes_are_watched_in_three_groups(monkeypatch):
    """With more than 20 classes the curve holds head, middle and tail instead of a number a class."""
    some = toys.images([20] * 24)
    monkeypatch.setattr(experiments, "_load", lambda name: (some, some))
    row = replace(ROW, split=Split("digits", ratio=10))
    record = run(row, SEEDS)
    assert record["groups"] == [c // 8 for c in range(24)]
    assert len(record["curve"][-1]["test"]) == 3 and len(record["confusion"][0]) == 24
    by_class = [record["confusion"][0][c][c] / 20 for c in range(24)]
    expected = [sum(by_class[8 * g : 8 * g + 8]) / 8 for g in range(3)]
    assert record["curve"][-1]["test"] == pytest.approx(expected, abs=1e-5)


LABELS = ((0, 1, 0, 0, 0, 2, 0, 2, 3, 2), (0, 0, 0, 0, 0, 0, 0, 0, 0, 1))


SEVERAL = replace(ROW, split=replace(ROW.split, order="index", valid=5, labels=LABELS))


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
    (row,) = {row.split: row for row in TABLES["crl-attributes"].rows}.values()
    toys.real("fashion-mnist")
    n = data.long_tailed_counts(2000, 100, 10)
    kind, boot = make(row, SEEDS)[2].n
    assert kind.tolist() == [n[0] + n[2] + n[3] + n[4] + n[6], n[1], n[5] + n[7] + n[9], n[8]]
    assert boot.tolist() == [sum(n) - 20, 20]


def test_a_dry_run_keeps_the_true_class_counts():
    row = replace(ROW, method="Weighted", protocol=replace(ROW.protocol, batch=8))
    _, whole, *_ = make(row, SEEDS)
    _, method, train, _, test = make(row, SEEDS, dry=True)
    assert torch.equal(whole.target, method.target) and len(train.y) == 8 and len(test.y) == 100


def test_the_training_seed_draws_the_network_and_the_batches():
    net, _, train, _, _ = make(ROW, SEEDS)
    other, _, its_train, _, _ = make(ROW, {**SEEDS, "train": 3})
    assert torch.equal(train.x, its_train.x) and not torch.equal(net.head.weight, other.head.weight)
    first, its_first = (next(iter(t))[2] for t in (train, its_train))
    assert not torch.equal(first, its_first)


def test_the_precision_arrives_and_is_recorded(monkeypatch):
    """By default the fastest of the device, with fast alone; half precision gives other numbers under the same key."""
    row = replace(ROW, protocol=replace(ROW.protocol, epochs=10))
    plain, fast, half = (run(row, SEEDS, **how) for how in ({}, {"fast": True}, {"fast": True, "precision": "bf16"}))
    assert "fast" not in plain and fast["fast"] == "plain loop on cpu" and half["fast"] == "plain loop on cpu, bf16"
    assert plain["key"] == fast["key"] == half["key"]
    losses = [[entry["loss"] for entry in record["curve"]] for record in (plain, fast, half)]
    assert losses[0] == losses[1] != losses[2] and losses[2] == pytest.approx(losses[0], rel=0.05)
    monkeypatch.setattr("imbook.experiments.best_precision", lambda device: "bf16")
    assert run(ROW, SEEDS, fast=True)["fast"] == "plain loop on cpu, bf16" and "fast" not in run(ROW, SEEDS)
