"""The sets that readers bring: small made sets in their formats, through the real command to a record that reloads."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import miniatures
import pytest
import torch
import toys
from torchvision.transforms.v2 import functional as TF

from imbook import data, experiments, large, records, results, tables
from imbook.__main__ import main
from imbook.data import clips, files
from imbook.rows import Split, Table

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {  # what makes a miniature, and the tables that train on it
    "imagenet-lt": (miniatures.imagenet_lt, ("imagenet-lt",)),
    "inaturalist2018": (miniatures.inaturalist2018, ("inaturalist2018",)),
    "tiny-imagenet": (miniatures.tiny_imagenet, ("tiny-imagenet-lt-100", "tiny-imagenet-step-100")),
    "egtea": (miniatures.egtea, ("egtea",)),
    "celeba": (miniatures.celeba, ("celeba",)),
    "deepfashion": (miniatures.deepfashion, ("deepfashion",)),
    "x-domain": (miniatures.x_domain, ("x-domain",)),
}


@pytest.fixture
def root(tmp_path, monkeypatch, shipped):
    """An empty data root, no records, small pictures, and nothing kept of another test's sets."""
    shutil.copy(ROOT / "imbook/records/paper_facts.json", shipped)
    monkeypatch.setenv("IMBOOK_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr(large, "SIDE", 35)
    monkeypatch.setattr(large, "CLIP_SIDE", 28)
    for some in (experiments._load, experiments._parts, experiments._class_sizes):
        some.cache_clear()
    yield tmp_path / "sets"
    for some in (experiments._load, experiments._parts, experiments._class_sizes):
        some.cache_clear()


def make(name, root, monkeypatch):
    given = (root, monkeypatch) if name == "celeba" else (root,)
    if name == "egtea":
        pytest.importorskip("av")
    PLAIN[name][0](*given)


def test_every_set_has_a_miniature_and_tables():
    assert PLAIN.keys() == large.LARGE.keys()
    for name, (_, its) in PLAIN.items():
        assert large.LARGE[name].table in its
        for table in its:
            assert {row.split.data for row in tables.TABLES[table].rows} == {name}


@pytest.mark.parametrize("name", large.LARGE)
def test_a_set_that_is_not_there_says_what_to_do(name, root, capsys):
    table = large.LARGE[name].table
    with pytest.raises(FileNotFoundError) as error:
        large.parts(name)
    for part in (*large.LARGE[name].needs, str(root), "IMBOOK_DATA", f"python -m imbook run {table}"):
        assert part in str(error.value)
    label = tables.TABLES[table].rows[0].label
    given = ["run", table, "--device", "cpu", "--seeds", "1", "--row", label, "--out", str(root / "runs")]
    assert main(given) == 1
    assert "IMBOOK_DATA" in capsys.readouterr().out and not list((root / "runs").glob("*.json"))
    with pytest.raises(ValueError, match=f"{name} cannot be downloaded by this command: .* IMBOOK_DATA"):
        main(["data", name])


def test_an_unknown_set_is_refused(root):
    with pytest.raises(ValueError, match="unknown set 'imagenet': choose from imagenet-lt, "):
        large.parts("imagenet")


KEPT = {
    "celeba": ("CRL, instance, relative",),
    "egtea": ("CDB, dynamic tau",),
    "imagenet-lt": ("CDB, dynamic tau",),
    "inaturalist2018": ("MFW",),
    "tiny-imagenet": ("MFW",),
}


@pytest.mark.parametrize("name", large.LARGE)
def test_the_command_goes_through_the_real_loaders(name, root, monkeypatch, tmp_path):
    """`python -m imbook run TABLE --dry` on the miniature: a record of each kind of row, that reloads."""
    make(name, root, monkeypatch)
    if name == "egtea":  # no weights of Kinetics are here
        monkeypatch.setattr("torchvision.models.video.r3d_18", tiny_r3d)
    for table in PLAIN[name][1]:
        shrink(table, monkeypatch)
        labels = [row.label for row in tables.TABLES[table].rows]
        labels = [label for label in KEPT.get(name, labels[:2]) if label in labels]
        given = [word for label in labels for word in ("--row", label)]
        out = tmp_path / table
        assert main(["run", table, "--dry", "--device", "cpu", "--seeds", "1", *given, "--out", str(out)]) == 0
        made = [r for path in out.glob("dry-*.json") for r in records.read(path)]
        asked = [row for row in tables.TABLES[table].rows if any(label in row.label for label in labels)]
        assert len(made) == len({row.key(dict(order=0, draw=0, train=0)) for row in asked}) >= 1
        for record in made:
            assert record["dry"] and len(record["curve"]) == 2 and record["curve"][0]["loss"] > 0


def tiny_r3d(weights=None):
    """The same network in a hundredth of its size."""
    from torchvision.models.video.resnet import BasicBlock, Conv3DSimple, VideoResNet

    class Stem(torch.nn.Sequential):
        def __init__(self):
            super().__init__(torch.nn.Conv3d(3, 64, 3, (1, 4, 4)), torch.nn.ReLU())

    assert weights is not None and weights.name == "KINETICS400_V1"
    return VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], Stem)


def shrink(name, monkeypatch):
    """Tiny-ImageNet's splits for a set of a few pictures."""
    table = tables.TABLES[name]
    if table.rows[0].split.n_max:
        split = replace(table.rows[0].split, n_max=3, ratio=2, valid=1)
        smaller = replace(table, rows=tuple(replace(row, split=split) for row in table.rows))
        monkeypatch.setitem(tables.TABLES, name, smaller)


# What is read


def test_imagenet_lt_is_read_from_its_lists(root):
    miniatures.imagenet_lt(root)
    parts = large.parts("imagenet-lt")
    assert data.counts(data.labels_of(parts.train)).tolist() == list(miniatures.COUNTS)
    assert [len(some) for some in (parts.train, parts.plain, parts.valid, parts.test)] == [13, 13, 6, 9]
    assert parts.test.classes == ("n01440764", "n01443537", "n01484850")
    assert parts.test.samples[4] == (str(root / "imagenet/val/ILSVRC2012_val_00000005.JPEG"), 1)
    x, y = parts.test[4]
    assert x.shape == (3, 35, 35) and y == 1
    from PIL import Image

    with Image.open(parts.test.samples[4][0]) as picture:  # by hand: shorter side to 40, middle 35, ImageNet's moments
        plain = TF.center_crop(TF.resize(picture.convert("RGB"), [40]), [35])
    by_hand = TF.normalize(TF.to_dtype(TF.to_image(plain), torch.float32, scale=True), *large.IMAGENET)
    assert torch.equal(x, by_hand)
    train, valid, test, n = large.batches(parts, batch=4, seed=0)
    assert isinstance(train, data.Loader) and n.tolist() == list(miniatures.COUNTS) == train.n.tolist()
    again = large.batches(parts, batch=4, seed=0)[0]
    assert all(torch.equal(a, b) for one, two in zip(train, again) for a, b in zip(one, two)), "one seed, one pass"
    assert not torch.equal(train.inputs(torch.tensor([0])), train.dataset[0][0][None]), "training augments"


@pytest.mark.parametrize(
    "part, line, message",
    [
        ("train", "train/n01440764/x.JPEG", "train.txt, line 14: 2 words are expected"),
        ("train", "train/n01440764/x.JPEG one", "line 14: 'one' is no class"),
        ("train", "train/n01440764/x.JPEG 2", "class 2 has pictures in n01484850 and in n01440764"),
        ("train", "train/n09999999/x.JPEG 7", "classes must be numbered 0, 1, ... without gaps"),
        ("test", "train/n01440764/n01440764_0.JPEG 0", "test.txt names train/n01440764/n01440764_0.JPEG, .* train"),
        ("val", "train/n01440764/x.JPEG 3", "classes must be numbered"),
    ],
)
def test_lists_that_do_not_fit_are_refused(part, line, message, root):
    miniatures.imagenet_lt(root)
    with open(root / f"imagenet-lt/ImageNet_LT_{part}.txt", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        large.parts("imagenet-lt")


def test_a_picture_that_is_not_there_or_damaged_is_named(root):
    miniatures.imagenet_lt(root)
    parts = large.parts("imagenet-lt")
    path = parts.test.samples[1][0]
    with open(path, "wb") as file:
        file.write(b"no picture")
    with pytest.raises(OSError, match="picture 2 of 9 is damaged: .*00000002.JPEG"):
        parts.test[1]
    (root / "imagenet/val/ILSVRC2012_val_00000002.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match="picture 2 of 9 is not there: .*00000002.JPEG"):
        parts.test[1]


def test_inaturalist_is_read_from_its_json(root):
    miniatures.inaturalist2018(root)
    parts = large.parts("inaturalist2018")
    assert data.counts(data.labels_of(parts.train)).tolist() == list(miniatures.COUNTS)
    assert data.counts(data.labels_of(parts.test)).tolist() == [2, 2, 2] and parts.valid is None
    for path, y in parts.train.samples:  # annotations come in another order than images
        assert f"/Aves/{y}/" in path
    assert parts.train.classes == ("species 0", "species 1", "species 2")
    (root / "inaturalist2018/val2018.json").write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match="val2018.json is no JSON of iNaturalist"):
        large.parts("inaturalist2018")


def test_tiny_imagenet_is_read_from_its_folders(root):
    miniatures.tiny_imagenet(root)
    train, test = files.tiny_imagenet(root / "tiny-imagenet-200", size=8)
    assert train.classes == ("n09000000", "n08000000", "n07000000") and train.x.shape == (12, 3, 8, 8)
    assert train.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and test.y.tolist() == [0, 1, 2] * 2
    assert train.mean == test.mean
    annotated = root / "tiny-imagenet-200/val/val_annotations.txt"
    annotated.write_text(annotated.read_text().replace("n08000000", "n01000000", 1))
    with pytest.raises(ValueError, match="val_annotations.txt, line 2: n01000000 is not in wnids.txt"):
        files.tiny_imagenet(root / "tiny-imagenet-200")


def test_egtea_is_read_from_its_lists(root):
    pytest.importorskip("av")
    miniatures.egtea(root)
    parts = large.parts("egtea")
    assert parts.train.classes == ("Read", "Take", "Put Down")
    sizes = [data.counts(data.labels_of(some), 3).tolist() for some in (parts.train, parts.valid, parts.test)]
    assert sizes == [[5, 3, 2], [1, 1, 1], [2, 2, 2]], "the last clips of each verb are held out"
    x, y = parts.test[0]
    assert x.shape == (3, 10, 28, 28) and x.dtype == torch.float32 and y == 0
    brightness = x.mean((0, 2, 3))
    assert (brightness.diff() > 0).all(), "frames come in order"
    loader = data.Loader(parts.train, batch=2, seed=0)
    assert next(iter(loader))[0].shape == (2, 3, 10, 28, 28)


@pytest.mark.parametrize("length, count", [(30, 10), (10, 10), (4, 10), (1, 3), (25, 1)])
def test_frames_at_equal_distances(length, count, tmp_path):
    pytest.importorskip("av")
    miniatures.film(tmp_path / "film.mp4", length)
    frames = clips.read_frames(tmp_path / "film.mp4", count)
    assert frames.shape == (count, 3, 48, 48) and frames.dtype == torch.uint8
    wanted = [round(float(k)) for k in torch.linspace(0, length - 1, count)]
    grey = [20 + 200 * k // max(length - 1, 1) for k in wanted]
    assert (frames.double().mean((1, 2, 3)) - torch.tensor(grey)).abs().max() < 6  # the codec's loss


def test_a_clip_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    pytest.importorskip("av")
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        clips.read_frames(tmp_path / "nowhere.mp4", 2)
    (tmp_path / "broken.mp4").write_bytes(b"no film at all" * 100)
    with pytest.raises(OSError, match="the clip is damaged: .*broken.mp4"):
        clips.read_frames(tmp_path / "broken.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'imbook\[video\]'"):
        clips.read_frames(tmp_path / "broken.mp4", 2)


def test_weights_that_cannot_be_had_are_named(tmp_path, monkeypatch):
    from imbook import nets_large

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(FileNotFoundError, match="weights of r3d_18 are not in .*checkpoints.* put https://.*r3d_18"):
        nets_large.r3d_18(3)


def test_attributes_come_without_gaps_of_the_command(root, monkeypatch):
    miniatures.celeba(root, monkeypatch)
    parts = large.parts("celeba")
    train, valid, test, n = large.batches(parts, batch=2, seed=0, flip=True)
    assert isinstance(train, data.Batches) and [len(b.y) for b in (train, valid, test)] == [7, 2, 2]
    assert [k.tolist() for k in n] == [k.tolist() for k in train.n] and len(n) == 3
    miniatures.deepfashion(root)
    assert large.parts("deepfashion").train.labels == ("a-line", "abstract chevron print", "zip")
    miniatures.x_domain(root)
    parts = large.parts("x-domain")
    assert parts.train.labels == ("colour", "sleeve") and parts.test.classes == parts.train.classes
    assert parts.valid.mean == parts.train.mean


def test_stl10_is_read_from_its_files(tmp_path, monkeypatch):
    pixels = miniatures.stl10(tmp_path, monkeypatch)
    train, test = data.load("stl10", tmp_path)
    assert torch.equal(train.x, torch.from_numpy(pixels["train"])) and test.x.shape == (20, 3, 96, 96)
    assert train.y.tolist() == list(range(10)) * 2 and train.classes[7] == "monkey"


# Splits and records of large sets


def test_an_official_split_takes_the_set_as_it_is():
    for wrong in (dict(data="mnist"), dict(data="celeba", valid=5), dict(data="celeba", labels=((0, 1),))):
        with pytest.raises(ValueError, match="profile 'official' takes imagenet-lt"):
            Split(profile="official", **wrong)
    with pytest.raises(ValueError, match="does not use ratio"):
        Split("imagenet-lt", "official", ratio=10)


def test_a_set_in_parts_is_not_drawn_from(root):
    miniatures.imagenet_lt(root)
    row = replace(tables.TABLES["imagenet-lt"].rows[0], split=Split("imagenet-lt", ratio=2, n_max=3))
    with pytest.raises(ValueError, match="imagenet-lt comes in parts of its own: .* profile 'official'"):
        experiments.run(row, dict(order=0, draw=0, train=0), dry=True)


def test_steps_are_counted_from_the_lists(root):
    miniatures.imagenet_lt(root)
    row = tables.TABLES["imagenet-lt"].rows[0]
    assert experiments.steps(replace(row, protocol=replace(row.protocol, batch=5))) == 90 * 3


def test_a_large_confusion_matrix_is_kept_by_its_cells():
    from imbook import metrics

    y = torch.randint(2500, (4000,), generator=torch.Generator().manual_seed(0))
    predicted = torch.where(torch.arange(4000) % 3 == 0, (y + 1) % 2500, y)
    scores = torch.nn.functional.one_hot(predicted, 2500).float()
    whole = metrics.confusion(scores, y)
    kept = metrics.compact(whole)
    assert set(kept) == {"classes", "cells"} and len(kept["cells"]) < 4000
    assert torch.equal(metrics.dense(kept), whole.float())
    for metric in (metrics.recall, metrics.precision, metrics.f1):
        assert torch.equal(metric(kept).nan_to_num(), metric(whole).nan_to_num())
    assert metrics.compact(whole[:3, :3]) == whole[:3, :3].tolist()


def test_titles_say_what_they_need():
    for name, (_, its) in PLAIN.items():
        folders = {path.split("/")[0] for path in large.LARGE[name].needs}
        for table in its:
            title = tables.TABLES[table].title
            assert isinstance(tables.TABLES[table], Table) and all(folder in title for folder in folders)
            assert "in IMBOOK_DATA" in title


def test_precision_and_recall_stand_beside_the_paper(shipped):
    """DOS's table 1(b), whose two columns are exchanged in print."""
    shutil.copy(ROOT / "imbook/records/paper_facts.json", shipped)
    row = tables.TABLES["dos-table-1"].rows[0]
    matrix = torch.full((10, 10), 2) + 80 * torch.eye(10, dtype=torch.int64)
    matrix[4] = torch.tensor([10] * 4 + [10] + [10] * 5)
    made = [toys.record(row, seeds, confusion=[matrix.tolist()], n=[600] * 10) for seeds in table_seeds()]
    runs = results.frame(tables.TABLES["dos-table-1"], records={r["key"]: r for r in made})
    found = results.precision_recall(runs, "dos/table-1b").set_index("class")
    assert list(found.columns) == ["label", "images", "precision", "recall", "paper_precision", "paper_recall"]
    assert len(found) == 10 and found.loc[4, "recall"] == pytest.approx(10.0)
    assert found.loc[4, "precision"] == pytest.approx(100 * 10 / 28) and found.loc[0, "recall"] == pytest.approx(82.0)
    assert (found.loc[4, "paper_precision"], found.loc[4, "paper_recall"]) == (9.0, 92.0)
    exchanged = (found["paper_precision"] / found["paper_recall"]).sum()  # on a balanced test set recall / precision
    assert exchanged == pytest.approx(9.84, abs=0.005) and (found["paper_recall"] / found["paper_precision"]).sum() > 30
    assert "paper_recall" not in results.precision_recall(runs)


def table_seeds():
    seeds = tables.TABLES["dos-table-1"].seeds
    for some in seeds:
        assert set(data.class_order(10, some["order"])[:4].tolist()) == {0, 4, 5, 6}, "the paper's minority"
    return seeds
