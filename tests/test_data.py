"""Data: profiles, splits, refusals, missing and damaged sets, batches against torchvision's loader."""

import hashlib
import http.client
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional as TF

from imbook import data

CIFAR10 = torch.arange(10).repeat(5000)  # labels alone decide a split
CIFAR100 = torch.arange(100).repeat(500)


def sizes(y, index):
    return data.counts(y[index], int(y.max()) + 1).tolist()


# Profiles


@pytest.mark.parametrize(
    "y, ratio, total", [(CIFAR10, 100, 12_406), (CIFAR10, 10, 20_431), (CIFAR100, 100, 10_847), (CIFAR100, 10, 19_573)]
)
def test_long_tailed_totals_of_the_field(y, ratio, total):
    assert len(data.long_tailed(y, ratio, seed=0)) == total


def test_long_tailed_profile_of_the_field():
    n = sizes(CIFAR10, data.long_tailed(CIFAR10, 100, seed=0))
    assert n == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize("ratio, total", [(100, 25_250), (10, 27_500)])
def test_step_totals_of_the_field(ratio, total):
    n = sizes(CIFAR10, data.step(CIFAR10, ratio, seed=0))
    assert sum(n) == total and n == [5000] * 5 + [5000 // ratio] * 5


def test_step_with_an_odd_number_of_classes_gives_the_middle_one_to_the_minority():
    assert data.step_counts(100, 10, 5) == [100, 100, 10, 10, 10]


@pytest.mark.parametrize("ratio, total", [(200, 9_022), (100, 10_302), (50, 11_975), (20, 15_111), (10, 18_591)])
def test_the_released_split_of_cdb(ratio, total):
    y = CIFAR100[torch.randperm(len(CIFAR100), generator=torch.Generator().manual_seed(3))]
    rest, valid = data.holdout(y, 25, None)
    train = rest[data.long_tailed(y[rest], ratio, seed=None, n_max=475)]
    assert len(train) == total
    n = data.long_tailed_counts(475, ratio, 100)
    for c in range(100):
        in_file_order = torch.nonzero(y == c).flatten()
        assert torch.equal(valid[y[valid] == c], in_file_order[-25:])
        assert torch.equal(train[y[train] == c], in_file_order[: n[c]])


def test_rounding_does_not_take_an_image():
    assert data.long_tailed_counts(49, 49, 2) == [49, 1], "49 * 49 ** -1 is a little less than 1"


def test_order_permutes_the_profile():
    order = data.class_order(10, seed=4)
    n = torch.tensor(sizes(CIFAR10, data.long_tailed(CIFAR10, 100, seed=0, order=order)))
    assert n[order].tolist() == data.long_tailed_counts(5000, 100, 10) and n.argmax() == order[0]
    assert data.class_order(10, None).tolist() == list(range(10))
    assert sorted(order.tolist()) == list(range(10)) and not torch.equal(order, data.class_order(10, 5))


def test_reduced_takes_the_share_from_the_named_classes_only():
    y = torch.arange(4).repeat(100)
    assert sizes(y, data.reduced(y, [1, 3], 0.95, seed=0)) == [100, 5, 100, 5]
    assert sizes(y, data.reduced(y, [2], 0.9, seed=0)) == [100, 100, 10, 100]


def test_pair_gives_class_0_the_share():
    y = torch.arange(2).repeat(6000)
    assert sizes(y, data.pair(y, 5000, 0.995, seed=0)) == [4975, 25]
    assert sizes(y, data.pair(y, 5000, 0.9, seed=0)) == [4500, 500]


def test_holdout_is_balanced_and_leaves_the_rest():
    y = toys.images().y
    rest, held = data.holdout(y, 3, seed=0)
    assert sizes(y, held) == [3, 3, 3]
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(y)))


DRAWS = {
    "long_tailed": lambda seed: data.long_tailed(CIFAR10, 100, seed),
    "step": lambda seed: data.step(CIFAR10, 100, seed),
    "reduced": lambda seed: data.reduced(CIFAR10, [0, 1], 0.9, seed),
    "pair": lambda seed: data.pair(CIFAR10 % 2, 5000, 0.9, seed),
    "holdout": lambda seed: data.holdout(CIFAR10, 250, seed)[1],
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_decided_by_its_seed(name):
    a, b, c = DRAWS[name](1), DRAWS[name](1), DRAWS[name](2)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert (a.diff() > 0).all(), "sorted, each position once"


def test_a_draw_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    for make in DRAWS.values():
        make(0)
    data.class_order(10, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda y: data.long_tailed(y, 0.5, 0), "ratio 0.5: .* at least 1"),
        (lambda y: data.step(y, 0.99, 0), "ratio 0.99"),
        (lambda y: data.long_tailed(y * 0, 10, 0), "1 class: an imbalance needs at least two"),
        (lambda y: data.long_tailed(y, 1000, 0), "class 2 would be left with 0 images"),
        (lambda y: data.step(y, 10, 0, n_max=5), "class 1 would be left with 0 images"),
        (lambda y: data.long_tailed(y, 10, 0, n_max=101), "class 0 has 100 images, 101 were asked for"),
        (lambda y: data.long_tailed(y, 10, 0, order=[0, 1, 1]), r"order \[0, 1, 1\]: name each class"),
        (lambda y: data.step(y, 10, 0, order=[0, 1]), "name each class from 0 to 2 once"),
        (lambda y: data.reduced(y, [0], 1.0, 0), "share 1.0"),
        (lambda y: data.reduced(y, [0], -0.1, 0), "share -0.1"),
        (lambda y: data.reduced(y, [0], 0.999, 0), "class 0 would be left with 0 images"),
        (lambda y: data.pair(y, 50, 0.9, 0), "y has 3 classes"),
        (lambda y: data.pair(y.clamp(max=1), 50, 1.0, 0), "share 1.0"),
        (lambda y: data.pair(y.clamp(max=1), 50, 0.01, 0), "class 0 would be left with 0 images"),
        (lambda y: data.pair(y.clamp(max=1), 5000, 0.9, 0), "class 0 has 100 images, 4500"),
        (lambda y: data.holdout(y, 100, 0), "100 images per class: choose from 1 to 99"),
        (lambda y: data.holdout(y, 0, 0), "0 images per class"),
    ],
)
def test_the_impossible_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(torch.arange(3).repeat(100))


def test_only_keeps_and_relabels_in_the_order_given():
    some = toys.images((5, 6, 7))
    two = some.only((2, 0))
    assert two.classes == ("class 2", "class 0") and data.counts(two.y).tolist() == [7, 5]
    assert torch.equal(two.x[two.y == 1], some.x[some.y == 0]) and torch.equal(two.x[two.y == 0], some.x[some.y == 2])
    for bad in ((3,), (), (-1, 0), (1, 1)):
        with pytest.raises(ValueError, match="choose from 0 to 2"):
            some.only(bad)


def test_head_middle_tail():
    n = torch.tensor([5, 100, 50, 7, 30, 1])
    assert data.head_middle_tail(n).tolist() == [2, 0, 0, 1, 1, 2]
    assert data.head_middle_tail([3, 3, 3]).tolist() == [0, 1, 2], "ties keep the class order"
    assert data.counts(data.head_middle_tail(torch.arange(100))).tolist() == [34, 33, 33]


# Sets on disk


def test_digits_are_embedded():
    train, test = data.load("digits")
    assert data.counts(test.y).tolist() == [50] * 10 and len(train.y) + len(test.y) == 1797
    assert train.x.shape[1:] == (1, 8, 8) and train.x.dtype == torch.uint8 and train.x.max() == 255
    assert train.mean[0] == pytest.approx((train.x / 255).mean().item(), abs=1e-6)
    assert train.std[0] == pytest.approx((train.x / 255).std(correction=0).item(), abs=1e-6)


@pytest.mark.parametrize("name", data.SOURCES)
def test_normalisation_constants_are_those_of_the_set(name):
    train, test = toys.real(name)
    values = torch.arange(256, dtype=torch.float64) / 255
    for c in range(train.x.shape[1]):
        share = torch.bincount(train.x[:, c].flatten(), minlength=256) / train.x[:, c].numel()
        mean = (share * values).sum()
        assert mean.item() == pytest.approx(train.mean[c], abs=6e-5)
        assert (share * (values - mean) ** 2).sum().sqrt().item() == pytest.approx(train.std[c], abs=6e-5)
    assert train.x.shape[1:] == test.x.shape[1:]
    assert len(test.y) == {"svhn": 26_032, "stl10": 8_000}.get(name, 10_000)
    assert data.counts(train.y).min() >= (500 if name in ("cifar100", "stl10") else 4_600)


def test_an_unknown_set_is_refused():
    for use in (data.load, data.download):
        with pytest.raises(ValueError, match="unknown data set 'svnh': choose from digits, mnist"):
            use("svnh")


@pytest.mark.parametrize("name", data.SOURCES)
def test_a_missing_set_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setenv("IMBOOK_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        data.load(name)
    folder = str(tmp_path / data.SOURCES[name].folder)
    for part in (name, folder, "IMBOOK_DATA", f"python -m imbook data {name}"):
        assert part in str(error.value)
    assert not any(tmp_path.iterdir()), "reading writes nothing"


@pytest.mark.parametrize("name", data.SOURCES)
def test_one_wrong_byte_is_found(name, tmp_path):
    toys.real(name)
    folder = data.SOURCES[name].folder
    shutil.copytree(data.data_root() / folder, tmp_path / folder)
    file = next(f for f in sorted((tmp_path / folder).iterdir()) if "train" in f.name or "data_batch" in f.name)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileNotFoundError, match=f"{name} is missing or damaged in .*{folder}.*IMBOOK_DATA"):
        data.load(name, tmp_path)


def test_a_made_set_with_wrong_content_is_refused(tmp_path):
    for file in data.RAW_MD5["mnist"]:
        (tmp_path / "MNIST/raw").mkdir(parents=True, exist_ok=True)
        (tmp_path / "MNIST/raw" / file).write_bytes(b"not MNIST")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte is damaged"):
        data.load("mnist", tmp_path)


class Mirror:
    """Stands for a torchvision data set that downloads: writes four small files, and may fail on the way."""

    fails = None

    def __init__(self, root, train, download=False):
        folder = Path(root) / "MNIST/raw"
        folder.mkdir(parents=True, exist_ok=True)
        for file in data.RAW_MD5["mnist"]:
            if file.startswith("train") == train:
                if self.fails == file:
                    (folder / file).write_bytes(b"ha")  # half a file
                    raise RuntimeError("connection reset")
                (folder / file).write_bytes(b"new")


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setattr(data.official, "_torchvision", lambda source, *rest, **download: Mirror(*rest, **download))
    monkeypatch.setattr(data.official, "_check", lambda name, root: None)
    monkeypatch.setattr(Mirror, "fails", None)
    return Mirror


@pytest.mark.parametrize("file", data.RAW_MD5["mnist"])
def test_a_download_that_fails_leaves_nothing(file, mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "fails", file)
    with pytest.raises(
        ConnectionError, match="mnist could not be downloaded .*python -m imbook data mnist.*IMBOOK_DATA"
    ):
        data.download("mnist", tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_download_that_fails_keeps_the_set_that_is_there(mirror, tmp_path, monkeypatch):
    folder = data.download("mnist", tmp_path)
    (folder / "train-labels-idx1-ubyte").write_bytes(b"old")
    monkeypatch.setattr(mirror, "fails", "t10k-labels-idx1-ubyte")
    with pytest.raises(ConnectionError):
        data.download("mnist", tmp_path)
    assert (folder / "train-labels-idx1-ubyte").read_bytes() == b"old" and len(list(folder.iterdir())) == 4


def test_a_download_replaces_the_set_whole(mirror, tmp_path):
    folder = data.download("mnist", tmp_path)
    assert folder == tmp_path / "MNIST/raw"
    (folder / "train-labels-idx1-ubyte").write_bytes(b"old")
    data.download("mnist", tmp_path)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == dict.fromkeys(data.RAW_MD5["mnist"], b"new")
    assert [f.name for f in tmp_path.iterdir()] == ["MNIST"]


def test_a_download_is_checked_before_it_appears(tmp_path, monkeypatch):
    monkeypatch.setattr(data.official, "_torchvision", lambda source, *rest, **download: Mirror(*rest, **download))
    monkeypatch.setattr(Mirror, "fails", None)
    with pytest.raises(ConnectionError, match="is damaged"):
        data.download("mnist", tmp_path)
    assert not any(tmp_path.iterdir())


BREAKS = [
    http.client.IncompleteRead(b"half", 100),
    http.client.BadStatusLine("nonsense"),
    urllib.error.URLError("no route"),
    TimeoutError("timed out"),
    EOFError("compressed file ended"),
    zlib.error("invalid block type"),
    tarfile.ReadError("unexpected end of data"),
]


@pytest.mark.parametrize("error", BREAKS, ids=repr)
def test_whatever_breaks_off_a_download_is_a_connection_error(error, mirror, tmp_path, monkeypatch):
    def breaks(source, root, train, download=False):
        (root / "half").write_bytes(b"ha")
        raise error

    monkeypatch.setattr(data.official, "_torchvision", breaks)
    with pytest.raises(ConnectionError, match=f"{type(error).__name__}: .*run again: python -m imbook data mnist"):
        data.download("mnist", tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [*BREAKS[4:], pickle.UnpicklingError("pickle data was truncated"), KeyError("data")])
def test_whatever_a_damaged_file_raises_says_what_to_do(error, tmp_path, monkeypatch):
    monkeypatch.setattr(data.official, "_check", lambda name, root: None)
    monkeypatch.setattr(data.official, "_torchvision", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(FileNotFoundError, match="cifar10 is missing or damaged .*python -m imbook data cifar10"):
        data.load("cifar10", tmp_path)


def test_a_library_that_is_missing_is_not_called_damage(mirror, tmp_path, monkeypatch):
    missing = ModuleNotFoundError("No module named 'scipy'")
    monkeypatch.setattr(data.official, "_torchvision", lambda *_, **__: (_ for _ in ()).throw(missing))
    for use in (data.load, data.download):
        with pytest.raises(ModuleNotFoundError, match="scipy"):
            use("svhn", tmp_path)


DOWNLOAD = """
import sys, time
from pathlib import Path
from imbook.data import official

def slow(source, root, train, download=False):
    (root / "half").write_bytes(b"ha")
    print("begun", flush=True)
    time.sleep(60)

official._torchvision = slow
official.download("mnist", sys.argv[1])
"""


@pytest.mark.skipif(data.official.fcntl is None, reason="no locks: leftovers go by their age")
def test_what_a_killed_download_left_goes_at_the_next_one(mirror, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, tmp_path], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    (running,) = tmp_path.glob(".partial-*")
    data.download("mnist", tmp_path)
    assert (running / "half").exists(), "another process is still at work there"
    process.kill()
    process.wait()
    (tmp_path / ".partial-older").mkdir()  # as earlier versions left them
    assert len(list(tmp_path.glob(".partial-*"))) == 2
    data.download("mnist", tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["MNIST"]


def test_without_locks_only_old_leftovers_go(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(data.official, "fcntl", None)
    for name, age in ((".partial-new", 3600), (".partial-old", 90_000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, times=(time.time() - age,) * 2)
    data.download("mnist", tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [".partial-new", "MNIST"]


def mat(folder, name, n, seed):
    """A made file in the form of SVHN's: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0. Returns its md5."""
    from scipy.io import savemat

    g = np.random.default_rng(seed)
    x = g.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    savemat(folder / name, {"X": x, "y": np.arange(1, n + 1, dtype=np.uint8)[:, None] % 10 + 1})
    return x, hashlib.md5((folder / name).read_bytes()).hexdigest()


def test_svhn_is_read_from_its_files(tmp_path, monkeypatch):
    from torchvision.datasets import SVHN

    folder = tmp_path / "svhn"
    folder.mkdir()
    made, known = {}, dict(SVHN.split_list)
    for split, n in (("train", 23), ("test", 11)):
        made[split], md5 = mat(folder, f"{split}_32x32.mat", n, len(made))
        known[split] = ["", f"{split}_32x32.mat", md5]
    monkeypatch.setattr(SVHN, "split_list", known)
    sets = data.load("svhn", tmp_path)
    for images, (split, n) in zip(sets, (("train", 23), ("test", 11))):
        assert images.x.shape == (n, 3, 32, 32) and images.x.dtype == torch.uint8 and images.x.is_contiguous()
        assert np.array_equal(images.x.numpy(), made[split].transpose(3, 2, 0, 1))
        assert images.y.tolist() == [(i % 10 + 1) % 10 for i in range(1, n + 1)] and images.y.dtype == torch.int64
        assert images.classes == tuple("0123456789")
        scaled = made["train"].transpose(2, 0, 1, 3).reshape(3, -1) / 255  # a row a channel
        assert images.mean == pytest.approx(scaled.mean(1)) and images.std == pytest.approx(scaled.std(1))
    (folder / "test_32x32.mat").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="svhn is missing or damaged in .*svhn .*python -m imbook data svhn"):
        data.load("svhn", tmp_path)


def test_svhn_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="svhn is missing or damaged .*IMBOOK_DATA"):
        data.load("svhn", tmp_path)


def test_the_data_root_is_the_variable_or_the_cache(monkeypatch):
    monkeypatch.setenv("IMBOOK_DATA", "/somewhere")
    assert data.data_root() == Path("/somewhere")
    monkeypatch.setenv("IMBOOK_DATA", "~/somewhere")
    assert data.data_root() == Path.home() / "somewhere"
    monkeypatch.delenv("IMBOOK_DATA")
    assert data.data_root() == Path.home() / ".cache/imbook"


# Batches


class Twin(Dataset):
    """The slow twin: one image at a time through torchvision's transforms, with the offsets it is told."""

    def __init__(self, images, visits, crop):
        self.images, self.visits, self.crop = images, visits, crop
        self.tensor = transforms.Compose([transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)])
        self.normalise = transforms.Normalize(images.mean, images.std)

    def __len__(self):
        return len(self.visits)

    def __getitem__(self, k):
        i, top, left, flip = self.visits[k]
        image = TF.to_pil_image(self.images.x[i])
        padded = TF.pad(image, [self.crop] * 4, fill=0)
        image = TF.crop(padded, top, left, *self.images.x.shape[2:])
        if flip:
            image = TF.horizontal_flip(image)
        return self.normalise(self.tensor(image)), int(self.images.y[i]), i


def visits(order, batch, crop, flip, seed, epochs):
    """Replays the draws of `Batches`: (position, top, left, flip) of every sample, epoch by epoch."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        rows = []
        for i in order[torch.randperm(len(order), generator=g)].split(batch):
            top, left = (torch.randint(2 * crop + 1, (len(i),), generator=g) if crop else 0 * i for _ in range(2))
            mirrored = torch.randint(2, (len(i),), generator=g) if flip else 0 * i
            rows += zip(i.tolist(), top.tolist(), left.tolist(), mirrored.tolist())
        yield rows


@pytest.mark.parametrize(
    "crop, flip, channels", [(0, False, 1), (2, True, 1), (2, True, 3), (3, False, 3), (0, True, 3)]
)
def test_batches_equal_torchvision(crop, flip, channels):
    some = toys.images((13, 9, 5), channels=channels)
    batches = data.Batches(some, batch=8, seed=7, crop=crop, flip=flip)
    for rows in visits(batches.order, 8, crop, flip, 7, epochs=2):
        loader = DataLoader(Twin(some, rows, crop), batch_size=8, shuffle=False)
        for (x, y, i), (twin_x, twin_y, twin_i) in zip(batches, loader, strict=True):
            assert torch.equal(i, twin_i) and torch.equal(y, twin_y)
            pixels = (x * torch.tensor(some.std).view(-1, 1, 1) + torch.tensor(some.mean).view(-1, 1, 1)) * 255
            twin = (twin_x * torch.tensor(some.std).view(-1, 1, 1) + torch.tensor(some.mean).view(-1, 1, 1)) * 255
            assert torch.equal(pixels.round(), twin.round()), "every pixel"
            assert torch.allclose(x, twin_x, atol=1e-5)


def test_every_offset_and_both_flips_occur():
    some = toys.images((400,))
    x = data.Batches(some, batch=400, seed=0, crop=2).augment(some.x)
    places = {
        (top, left)
        for top in range(5)
        for left in range(5)
        if (x == data.shift(some.x, torch.full((400,), top), torch.full((400,), left), 2)).flatten(1).all(1).any()
    }
    assert len(places) == 25
    flipped = data.Batches(some, batch=400, seed=0, flip=True).augment(some.x)
    share = (flipped == some.x.flip(-1)).flatten(1).all(1).float().mean().item()
    assert 0.4 < share < 0.6


def test_padding_is_zero_before_normalising():
    white = replace(toys.images(), x=torch.full((42, 1, 8, 8), 255, dtype=torch.uint8))
    x, _, _ = next(iter(data.Batches(white, batch=42, seed=0, crop=2)))
    assert x.min().item() == pytest.approx((0 - 0.4) / 0.3) and x.max().item() == pytest.approx((1 - 0.4) / 0.3)
    assert torch.unique(x.round(decimals=3)).numel() == 2


def test_batches_keep_the_ragged_end_and_visit_each_sample_once():
    some = toys.images((13, 9, 5))
    batches = data.Batches(some, batch=8, seed=1)
    first, second = ([(x, y, i) for x, y, i in batches] for _ in range(2))
    assert len(batches) == 4 and [len(i) for _, _, i in first] == [8, 8, 8, 3]
    orders = [torch.cat([i for _, _, i in epoch]) for epoch in (first, second)]
    assert all(torch.equal(o.sort().values, torch.arange(27)) for o in orders) and not torch.equal(*orders)
    again = data.Batches(some, batch=8, seed=1)
    assert torch.equal(torch.cat([i for _, _, i in again]), orders[0])
    assert not torch.equal(torch.cat([i for _, _, i in data.Batches(some, batch=8, seed=2)]), orders[0])
    for x, y, i in first:
        assert torch.equal(y, some.y[i]) and torch.equal(x, batches.normalise(some.x[i]))


def test_i_counts_within_the_training_set():
    some = toys.images((13, 9, 5))
    index = torch.tensor([20, 3, 11, 5, 26])
    batches = data.Batches(some, index, batch=2, seed=0)
    assert batches.n.tolist() == data.counts(some.y[index], 3).tolist()
    for x, y, i in batches:
        assert torch.equal(y, some.y[index[i]]) and torch.equal(x, batches.normalise(some.x[index[i]]))


def test_batches_without_a_seed_come_in_order():
    i = torch.cat([i for _, _, i in data.Batches(toys.images(), batch=8)])
    assert torch.equal(i, torch.arange(42))


def test_plain_does_not_augment_and_draws_nothing():
    some = toys.images()
    batches = data.Batches(some, batch=8, seed=1, crop=2, flip=True)
    batches.order = torch.tensor([0, 0, 0])
    before, everywhere = batches.generator.get_state(), torch.get_rng_state()
    parts = list(batches.plain(batch=10))
    assert torch.equal(torch.cat([x for x, _, _ in parts]), batches.normalise(some.x))
    assert torch.equal(torch.cat([i for _, _, i in parts]), torch.arange(42))
    assert torch.equal(torch.cat([y for _, y, _ in parts]), some.y)
    assert torch.equal(before, batches.generator.get_state()) and torch.equal(everywhere, torch.get_rng_state())


def test_augmentation_uses_its_own_generator():
    before = torch.get_rng_state()
    for _ in data.Batches(toys.images(), batch=8, seed=1, crop=2, flip=True):
        pass
    assert torch.equal(before, torch.get_rng_state())


def test_order_may_repeat_and_leave_out():
    batches = data.Batches(toys.images(), batch=4, seed=1)
    batches.order = torch.tensor([5, 5, 5, 0, 1, 2])
    assert len(batches) == 2
    assert sorted(torch.cat([i for _, _, i in batches]).tolist()) == [0, 1, 2, 5, 5, 5]


@pytest.mark.parametrize("n, batch, expected", [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])])
def test_a_single_image_left_over_joins_the_batch_before_it(n, batch, expected):
    batches = data.Batches(toys.images(), torch.arange(n), batch=batch, seed=1)
    for _ in range(2):
        parts = [i for _, _, i in batches]
        assert list(map(len, parts)) == expected and len(batches) == len(expected)
        assert sorted(torch.cat(parts).tolist()) == list(range(n))


def test_what_loops_and_checkpoints_ask_of_batches():
    some = toys.images()
    batches = data.Batches(some, torch.arange(20), batch=8, seed=1, crop=2, flip=True, dtype=torch.float64)
    i = torch.tensor([3, 3, 19])
    before = batches.generator.get_state()
    assert torch.equal(batches.inputs(i), batches.normalise(some.x[i])) and batches.inputs(i).dtype == torch.float64
    assert torch.equal(before, batches.generator.get_state()), "no random numbers"
    assert batches.device == torch.device("cpu") and batches.dtype == torch.float64


def test_the_identity_of_batches_is_plain_and_knows_their_content():
    some = toys.images()
    known = data.Batches(some, batch=8, seed=1).identity()
    assert known == json.loads(json.dumps(known)) and known[:2] == [[24, 12, 6], 42]
    assert known == data.Batches(some, batch=5, seed=2, crop=1, flip=True).identity(), "not what a protocol says"
    x, y = some.x.clone(), some.y.clone()
    x[7, 0, 0, 0] ^= 1
    other = int((y != y[0]).int().argmax())
    y[[0, other]] = y[[other, 0]]
    others = [
        data.Batches(replace(some, x=x)),
        data.Batches(replace(some, y=y)),
        data.Batches(replace(some, mean=(0.5,))),
        data.Batches(replace(some, std=(0.5,))),
        data.Batches(some, torch.arange(41)),
        data.Batches(some, torch.arange(42).flip(0)),
        data.Batches(some.derive(((0, 1, 2), (0, 1, 0)))),
    ]
    hashes = {known[2], *(b.identity()[2] for b in others)}
    assert len(hashes) == len(others) + 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_batches_yield_the_type_asked_for(dtype):
    some = toys.images(channels=3)
    batches = data.Batches(some, batch=8, seed=1, crop=1, flip=True, dtype=dtype)
    exact = (some.x.double() / 255 - 0.4) / 0.3
    x = torch.cat([x for x, _, _ in batches.plain()])
    assert x.dtype == dtype == next(iter(batches))[0].dtype and batches.dtype == dtype
    assert torch.equal(x, exact.to(dtype)) if dtype != torch.float64 else torch.allclose(x, exact, rtol=1e-12)


def test_batches_of_nothing_are_refused():
    with pytest.raises(ValueError, match="0 images in batches of 8"):
        data.Batches(toys.images(), torch.tensor([], dtype=torch.int64), batch=8)
    with pytest.raises(ValueError, match="in batches of 0"):
        data.Batches(toys.images(), batch=0)


def test_several_labels_an_image_stay_together():
    some = toys.images()
    both = some.derive(((0, 1, 2), (0, 1, 0)))
    assert both.classes == (("0", "1", "2"), ("0", "1")) and both.labels == ("label 1", "label 2")
    assert both.x is some.x and both.y.dtype == torch.int64
    two = data.Batches(both, batch=8, seed=0)
    for _, y, i in two:
        assert torch.equal(y[:, 0], some.y[i]) and torch.equal(y[:, 1], some.y[i] % 2)
    assert [n.tolist() for n in two.n] == [[24, 12, 6], [30, 12]]
    head = data.Batches(both, torch.nonzero(some.y == 0).flatten()[:5])
    assert [n.tolist() for n in head.n] == [[5, 0, 0], [5, 0]], "a class that is not there has its zero"


@pytest.mark.parametrize("labels", [((0, 1),), ((0, 0, 0),), ((0, 2, 2),), ((1, 2, 1),), ((0, 1, -1),), ((),)], ids=str)
def test_a_label_that_is_no_function_of_the_class_is_refused(labels):
    with pytest.raises(ValueError, match="give 3 values, one a class; 0, 1, ... all occur"):
        toys.images().derive(labels)


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.only((0, 1)),
        lambda s: s.derive(((0, 1),)),
        lambda s: data.counts(s.y),
        lambda s: data.draw(s.y, [1, 1], 0),
        lambda s: data.holdout(s.y, 2, 0),
        lambda s: data.long_tailed(s.y, 2, 0),
        lambda s: data.step(s.y, 2, 0),
        lambda s: data.reduced(s.y, [0], 0.5, 0),
        lambda s: data.pair(s.y, 10, 0.9, 0),
    ],
)
def test_what_is_for_one_label_refuses_several(use):
    both = toys.images().derive(((0, 1, 1), (0, 1, 0)))
    with pytest.raises(ValueError, match=r"y \(42, 2\) holds several labels an image, .* choose a column"):
        use(both)


def test_labels_and_names_fit_together():
    some = toys.images()
    both = some.derive(((0, 1, 1), (0, 1, 0)))
    wrong = [
        dict(y=some.y[:5]),
        dict(y=both.y),
        dict(labels=("one",)),
        dict(classes=both.classes),
        dict(y=both.y, classes=both.classes),
        dict(y=both.y, classes=both.classes, labels=("one",)),
        dict(y=both.y, classes=("no", "yes"), labels=("one", "two")),
        dict(y=both.y[:, :1], classes=both.classes, labels=("one", "two")),
    ]
    for changes in wrong:
        with pytest.raises(ValueError, match=r"42 images with y .*: y \(N,\) takes the C names, y \(N, labels\) one"):
            replace(some, **changes)
