"""Records: written whole or not at all, synced, read back or named as damaged; claims; provenance; those shipped."""

import gzip
import json
import math
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import toys

from imbook import records, workers
from imbook.tables import TABLES


@pytest.fixture(autouse=True)
def only_this_folder(request):
    """Tests of one folder see only that folder."""
    if "shipped" not in request.node.name:
        request.getfixturevalue("shipped")


@pytest.fixture
def table():
    return toys.table(seeds=3)


def test_a_record_comes_back(table, tmp_path):
    record = toys.record(*table.runs()[0], odd=[float("nan"), 1e-30, None, "é"])
    path = records.save(record, tmp_path / "new/out")
    back = records.load(path.parent)[record["key"]]
    assert back.pop("file") == path.name == f"{record['key']}.json" and toys.same(back, record)
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_records_from_before_the_schema_had_a_number_are_read(table, tmp_path):
    old, new = toys.record(*table.runs()[0]), {**toys.record(*table.runs()[1]), "schema": records.SCHEMA}
    assert "schema" not in old
    for record in (old, new):
        records.save(record, tmp_path)
    assert records.load(tmp_path).keys() == {old["key"], new["key"]}
    records.archive([old, new], tmp_path / "both.jsonl.gz")
    assert [r["key"] for r in records.read(tmp_path / "both.jsonl.gz")] == sorted([old["key"], new["key"]])


@pytest.mark.parametrize("archived", [False, True])
def test_a_record_of_a_newer_schema_is_no_damaged_one(table, tmp_path, archived):
    """It may lack what this version needs: the error says what to install, and nobody is told to remove the file."""
    row, seeds = table.runs()[0]
    later = {**toys.record(row, seeds), "schema": records.SCHEMA + 1, "versions": {"imbook": "9.1.0"}}
    del later["curve"]
    path = tmp_path / "later.jsonl.gz" if archived else records.save(later, tmp_path)
    if archived:
        records.archive([later], path)
    said = f"{path.name} holds a record of schema 2, and imbook .* reads up to 1: install imbook 9.1.0"
    for read in (records.read, lambda path: records.load(path.parent)):
        with pytest.raises(records.NewerSchema, match=said) as caught:
            read(path)
        assert "remove" not in str(caught.value) and "damaged" not in str(caught.value)
    damaged = []
    assert records.load(tmp_path, damaged) == {} and "install imbook 9.1.0" in damaged[0]
    with pytest.raises(records.NewerSchema):  # a queue does not write over it
        workers._made(path, row)


def test_a_crash_while_saving_leaves_nothing_readable(table, tmp_path, monkeypatch):
    def crash(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    for save in (
        lambda: records.save(toys.record(*table.runs()[0]), tmp_path / "out"),
        lambda: records.archive([toys.record(*table.runs()[0])], tmp_path / "out/t.jsonl.gz"),
    ):
        with pytest.raises(KeyboardInterrupt):
            save()
        assert list((tmp_path / "out").iterdir()) == [], "not even a part of it"
    for name in ("k.json.7.part", "t.jsonl.gz.7.part"):  # a kill leaves it
        (tmp_path / "out" / name).write_bytes(b"{")
    assert records.load(tmp_path / "out") == {}


def test_a_crash_while_saving_keeps_the_older_record(table, tmp_path, monkeypatch):
    row, seeds = table.runs()[0]
    path = records.save(toys.record(row, seeds), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        records.save(toys.record(row, seeds, accuracy=0.9), tmp_path)
    assert path.read_bytes() == before


def test_an_archive_has_the_same_bytes_for_the_same_records(table, tmp_path):
    some = [toys.record(*run) for run in table.runs()]
    records.archive(some, tmp_path / "a.jsonl.gz")
    first = (tmp_path / "a.jsonl.gz").read_bytes()
    time.sleep(1.1)  # gzip stamps seconds
    shuffled = [dict(reversed(r.items())) for r in reversed(some)]
    records.archive(shuffled, tmp_path / "a.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == first
    back = records.load(tmp_path)
    assert sorted(back) == sorted(r["key"] for r in some)
    assert all(back[r["key"]] == {**r, "file": "a.jsonl.gz"} for r in some)


def test_the_latest_of_a_key_counts(table, tmp_path):
    row, seeds = table.runs()[0]
    old = toys.record(row, seeds, 0.1, time="2026-01-01T00:00:00+00:00")
    new = toys.record(row, seeds, 0.2, time="2026-02-01T00:00:00+00:00")
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
        ("0.json", b"[]"),
        ("0.json", b"7"),
        ("a.jsonl.gz", b""),
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"key": "a", "time": "b"}\n', mtime=0)[:-6]),
    ],
)
def test_a_damaged_record_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / name} is damaged .*remove it"):
        records.load(tmp_path)
    told = []
    assert records.load(tmp_path, told) == {} and len(told) == 1 and name in told[0]


def test_numbers_are_rounded_to_digits_that_count():
    value = {"a": [1.23456789, float("nan")], "b": (torch.tensor([0.1234567]), 7), "c": "x", "d": None, "e": 1.5e-8}
    out = records.rounded(value)
    assert out["a"][0] == 1.2346 and math.isnan(out["a"][1]) and out["b"] == [[0.12346], 7]
    assert (out["c"], out["d"], out["e"]) == ("x", None, 1.5e-8) and isinstance(out["b"][1], int)
    assert records.rounded(0.123456789, 3) == 0.123


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
from imbook import records
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


def flipped(content, bit):
    """The bytes with one bit turned round."""
    out = bytearray(content)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


@pytest.mark.parametrize("name", ["0.json", "a.jsonl.gz"])
def test_a_single_bit_that_is_flipped_is_noticed_or_does_no_harm(table, tmp_path, name):
    """Each bit of the first and the last bytes, and 200 more: the right records, or an error that names the file."""
    some, path = [toys.record(*run) for run in table.runs()], tmp_path / name
    if name == "0.json":
        some = some[:1]
        records.save(some[0], tmp_path).rename(path)
    else:
        records.archive(some, path)
    content, told = path.read_bytes(), 0
    bits = random.Random(0).sample(range(8 * len(content)), 200)
    ends = [*range(8 * 30), *range(8 * (len(content) - 10), 8 * len(content))]
    for bit in {*bits, *ends}:
        path.write_bytes(flipped(content, bit))
        try:
            assert toys.same(records.read(path), sorted(some, key=lambda r: r["key"])), bit
        except ValueError as error:
            told += 1
            assert f"{path} is damaged" in str(error)
    assert told > 200


@pytest.mark.parametrize("name", ["0.json", "a.jsonl.gz"])
def test_a_file_that_ends_early_is_noticed(table, tmp_path, name):
    record, path = toys.record(*table.runs()[0]), tmp_path / name
    records.save(record, tmp_path).rename(path) if name == "0.json" else records.archive([record], path)
    content = path.read_bytes()
    for length in {0, 1, *range(2, len(content), 7), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            records.read(path)


def test_records_from_before_there_were_checksums_are_read(table, tmp_path):
    record = toys.record(*table.runs()[0])
    (tmp_path / "0.json").write_text(json.dumps(record))
    assert toys.same(records.read(tmp_path / "0.json"), [record])


def test_a_checksum_is_of_what_is_read_back(table, tmp_path):
    """Tuples and numbers as keys come back as lists and texts."""
    record = toys.record(*table.runs()[0], odd={2: (1, 2), 10: None})
    (back,) = records.read(records.save(record, tmp_path))
    assert back["odd"] == {"2": [1, 2], "10": None} and "checksum" not in back


def test_bytes_are_on_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (done.append(name), real(*a)))
    records.write(tmp_path / "new/folder/file", b"content")
    assert done == ["fsync", "replace"] and (tmp_path / "new/folder/file").read_bytes() == b"content"


def test_every_first_write_makes_its_folder(table, tmp_path, monkeypatch):
    """Also where the path starts with ~ or is relative."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    record = toys.record(*table.runs()[0])
    for k, place in enumerate(("a/b", "~/c/d", tmp_path / "e/f")):
        records.save(record, place)
        records.archive([record], f"{place}/g/{k}.jsonl.gz")
        with records.claim(f"{place}/h", "k") as mine:
            assert mine
    for folder in ("a/b", "c/d", "e/f"):
        assert (tmp_path / folder / f"{record['key']}.json").exists() and list((tmp_path / folder / "g").iterdir())
    assert not (tmp_path / "~").exists() and list(records.load("~/c/d")) == [record["key"]]


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True).stdout


COMMIT = "import sys; sys.path.insert(0, sys.argv[1]); from imbook import records; print(records.commit())"


def test_a_commit_is_that_of_a_repository_that_tracks_the_package(tmp_path):
    """The package copied into somebody's repository: untracked, ignored, then tracked."""
    place = tmp_path / "project/.venv/lib"
    (place / "imbook").mkdir(parents=True)
    for name in ("__init__.py", "records.py"):
        (place / "imbook" / name).write_bytes((records.PACKAGE / name).read_bytes())
    commit = lambda: subprocess.run(  # noqa: E731
        [sys.executable, "-c", COMMIT, place], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert commit() == "None", "no repository"
    git(tmp_path / "project", "init", "--quiet")
    (tmp_path / "project/own.py").write_text("")
    git(tmp_path / "project", "add", "own.py")
    git(tmp_path / "project", "commit", "--quiet", "-m", "theirs")
    assert commit() == "None", "their commit says nothing of this package"
    (tmp_path / "project/.gitignore").write_text(".venv")
    assert commit() == "None"
    git(tmp_path / "project", "add", "--force", ".venv/lib/imbook")
    git(tmp_path / "project", "commit", "--quiet", "-m", "with it")
    assert commit() == git(tmp_path / "project", "rev-parse", "--short=12", "HEAD").strip()


def test_the_shipped_records_belong_to_a_table():
    shipped = records.load()
    known = {row.key(seeds): (row, seeds) for table in TABLES.values() for row, seeds in table.runs()}
    for key, record in shipped.items():
        assert key in known, f"{record['file']}: {key} is in no table"
        row, seeds = known[key]
        assert not record["dry"] and {k: record[k] for k in row.identity(seeds)} == row.identity(seeds)
        sizes = record["n"] if isinstance(record["n"][0], list) else [record["n"]]  # several labels an image
        assert [len(m) for m in record["confusion"]] == [len(n) for n in sizes]
        assert record["curve"][-1]["epoch"] == row.protocol.epochs
        accuracies = [np.trace(m) / np.sum(m) for m in record["confusion"]]
        assert record["metrics"]["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-5)


def test_the_shipped_records_stand_under_their_table():
    for path in sorted(records.RECORDS.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        wanted = {row.key(seeds) for row, seeds in TABLES[name].runs()}
        assert {json.loads(line)["key"] for line in gzip.decompress(path.read_bytes()).splitlines()} <= wanted
    assert sum(f.stat().st_size for f in records.RECORDS.iterdir()) < 10e6, "a few MB in all"
