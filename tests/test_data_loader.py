"""The bridge to DataLoader: labels without reading, positions, orders, seeds and workers, refusals, training."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from imbook import data, nets
from imbook.data import Loader
from imbook.methods import CrossEntropy
from imbook.train import Protocol, evaluate, fit


class Made(Dataset):
    """Samples that tell their position; `noise` adds what the three global generators draw."""

    def __init__(self, n=25, noise=True):
        self.targets, self.noise = torch.arange(n) % 3, noise

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, k):
        x = torch.full((4,), float(k))
        if self.noise:
            x[1:] += torch.tensor([torch.rand(()).item(), random.random(), np.random.rand()]) / 2
        return x, int(self.targets[k])


def passes(loader, epochs=2):
    return [[batch for batch in loader] for _ in range(epochs)]


def same(a, b):
    pairs = [pair for p, q in zip(a, b, strict=True) for u, v in zip(p, q, strict=True) for pair in zip(u, v)]
    return all(torch.equal(s, t) for s, t in pairs)


# What it yields


def test_each_sample_once_with_its_label_and_position():
    loader = Loader(Made(), batch=8, seed=3)
    orders = []
    for batches in passes(loader):
        assert [len(i) for _, _, i in batches] == [8, 8, 9] and len(loader) == 3, "the single one left over"
        for x, y, i in batches:
            assert torch.equal(x[:, 0], i.float()) and torch.equal(y, i % 3) and i.dtype == y.dtype == torch.int64
        orders.append(torch.cat([i for _, _, i in batches]))
        assert torch.equal(orders[-1].sort().values, torch.arange(25))
    assert not torch.equal(*orders)
    assert loader.n.tolist() == [9, 8, 8] and loader.device == torch.device("cpu") and loader.dtype == torch.float32
    assert loader.crop is None and loader.flip is None


def test_without_a_seed_in_order():
    loader = Loader(Made(), batch=10)
    first, second = passes(loader)
    assert torch.cat([i for _, _, i in first]).tolist() == list(range(25)) and same(first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_order_set_between_passes_is_what_is_visited(workers):
    loader = Loader(Made(), batch=4, seed=1, workers=workers)
    for order in ([5, 5, 5, 0, 1], [24], [7] * 9):
        loader.order = torch.tensor(order)
        batches = list(loader)
        assert sorted(torch.cat([i for _, _, i in batches]).tolist()) == sorted(order) and len(batches) == len(loader)
        for x, _, i in batches:
            assert torch.equal(x[:, 0].floor(), i.float())
    assert len({row[1].item() for x, _, _ in batches for row in x}) == 9, "each visit is augmented anew"


def test_seeds_decide_order_and_augmentation_whatever_the_workers():
    one = passes(Loader(Made(), batch=7, seed=3))
    assert same(one, passes(Loader(Made(), batch=7, seed=3)))
    assert same(one, passes(Loader(Made(), batch=7, seed=3, workers=2)))
    assert not same(one, passes(Loader(Made(), batch=7, seed=4)))
    noise = torch.cat([x[:, 1:] % 1 for epoch in one for x, _, _ in epoch])
    assert all(len(column.unique()) == 50 for column in noise.T), "no number comes twice"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_generator_repeats_what_followed(workers):
    loader = Loader(Made(), batch=7, seed=3, workers=workers)
    passes(loader, 1)
    state = loader.generator.get_state()
    expected = passes(loader)
    next(iter(loader))  # a pass that is given up
    fresh = Loader(Made(), batch=7, seed=9, workers=2 - workers)
    fresh.generator.set_state(state)
    assert same(expected, passes(fresh))
    loader.generator.set_state(state)
    assert same(expected, passes(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_left_alone(workers):
    states = lambda: (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))  # noqa: E731
    before, loader = states(), Loader(Made(), batch=7, seed=3, workers=workers)
    passes(loader), list(loader.plain()), loader.inputs(torch.tensor([1]))
    assert before == states()


def test_plain_and_inputs_read_the_dataset_without_augmentation():
    loader = Loader(Made(), batch=7, seed=3, plain=Made(noise=False))
    loader.order = torch.tensor([0, 0])
    before = loader.generator.get_state()
    parts = list(loader.plain(10))
    assert [len(i) for _, _, i in parts] == [10, 10, 5] and len(list(loader.plain())) == 4
    x, y, i = map(torch.cat, zip(*parts))
    assert torch.equal(i, torch.arange(25)) and torch.equal(y, i % 3)
    assert torch.equal(x, i.float()[:, None].expand(-1, 4))
    assert torch.equal(loader.inputs(torch.tensor([3, 3, 9])), x[[3, 3, 9]])
    assert torch.equal(before, loader.generator.get_state())


def test_plain_of_a_dataset_that_augments_is_the_same_at_every_pass():
    loader = Loader(Made(), batch=7, seed=3)
    x = torch.cat([x for x, _, _ in loader.plain()])
    list(loader)
    assert torch.equal(x, torch.cat([x for x, _, _ in loader.plain(3)]))
    assert torch.equal(loader.inputs(torch.tensor([20, 4])), x[[20, 4]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_x_has_the_type_asked_for(dtype):
    loader = Loader(Made(noise=False), batch=7, dtype=dtype)
    assert loader.dtype == dtype == next(iter(loader))[0].dtype == loader.inputs(torch.tensor([0])).dtype


def test_two_passes_at_once_are_refused_with_workers_and_right_without():
    for workers in (0, 2):
        loader = Loader(Made(), batch=5, seed=1, workers=workers)
        first = iter(loader)
        one = next(first)
        other = next(iter(loader))
        if workers:
            with pytest.raises(RuntimeError, match="a new pass began before this one ended"):
                list(first)
        else:
            seen = torch.cat([one[2], *(i for _, _, i in first)])
            assert sorted(seen.tolist()) == list(range(25)) and not torch.equal(one[2], other[2])


# Labels


def folder_of_pictures(path, n=(3, 2, 4)):
    for c, k in enumerate(n):
        (path / f"class {c}").mkdir(parents=True)
        for j in range(k):
            pixels = np.random.default_rng(10 * c + j).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / f"class {c}" / f"{j}.png")
    return path


class Bare(Dataset):
    """Six samples that keep what they are given, and cannot be read."""

    def __init__(self, **kept):
        vars(self).update(kept)

    def __len__(self):
        return 6

    def __getitem__(self, k):
        raise AssertionError("a sample is read")


Y = [2, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "dataset, expected",
    [
        (Bare(targets=Y), Y),
        (Bare(targets=torch.tensor(Y, dtype=torch.uint8)), Y),
        (Bare(labels=np.array(Y, dtype=np.int16)), Y),
        (Bare(samples=[(f"{k}.png", c) for k, c in enumerate(Y)]), Y),
        (Subset(Bare(targets=Y), [5, 2, 2]), [0, 1, 1]),
        (Subset(Subset(Bare(labels=Y), torch.tensor([5, 4, 0])), [2, 0]), [2, 0]),
        (ConcatDataset([Bare(labels=Y), Subset(Bare(targets=Y), [0])]), [*Y, 2]),
        (TensorDataset(torch.zeros(6, 2), torch.tensor(Y)), Y),
    ],
    ids=range(8),
)
def test_labels_are_found_without_reading_a_sample(dataset, expected):
    assert data.labels_of(dataset).tolist() == expected and data.labels_of(dataset).dtype == torch.int64
    loader = Loader(dataset, classes=3)
    assert loader.y.tolist() == expected and loader.n.tolist() == [expected.count(c) for c in range(3)]


def test_labels_that_are_given_count():
    loader = Loader(Bare(targets=[0] * 6, classes=["only"]), labels=Y)
    assert loader.y.tolist() == Y and loader.n.tolist() == [3, 2, 1]


def test_the_names_of_a_dataset_say_how_many_classes_there_are():
    named = Bare(targets=Y, classes=["a", "b", "c", "d"])
    assert Loader(named).n.tolist() == [3, 2, 1, 0] == Loader(Subset(named, range(6))).n.tolist()
    assert Loader(named, classes=5).n.tolist() == [3, 2, 1, 0, 0]


def test_several_labels_per_sample():
    y = torch.tensor([[0, 1], [1, 0], [0, 2], [1, 1]])
    both = TensorDataset(torch.arange(4.0)[:, None], y)
    loader = Loader(both, batch=2, seed=0)
    assert [n.tolist() for n in loader.n] == [[2, 2], [1, 2, 1]]
    for x, target, i in loader:
        assert torch.equal(target, y[i]) and torch.equal(x[:, 0], i.float())
    assert [n.tolist() for n in Loader(both, labels=y, classes=(3, 3)).n] == [[2, 2, 0], [1, 2, 1]]


# Refusals at the door


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Loader(Endless()), "Endless is no map-style dataset"),
        (lambda: Loader(iter([])), "list_iterator is no map-style dataset"),
        (lambda: Loader(DataLoader(Made())), r"a DataLoader is no dataset: give Loader\(loader.dataset, batch"),
        (lambda: Loader(Made(), plain=Endless()), "Endless is no map-style dataset"),
        (lambda: Loader(Made(), plain=Made(24)), "25 samples, 24 in plain"),
        (lambda: Loader(Made(0)), "0 samples"),
        (lambda: Loader(Made(), batch=0), "in batches of 0"),
        (lambda: Loader(Bare()), "Bare keeps no targets, labels or samples: pass labels="),
        (lambda: Loader(Bare(labels=["cat"] * 6)), "Bare.labels: .* pass labels="),
        (lambda: Loader(Bare(targets=torch.zeros(6))), r"Bare.targets \(6,\) of type torch.float32: pass labels="),
        (lambda: Loader(Bare(), labels=[0, 1]), "2 labels for 6 samples"),
        (lambda: Loader(Bare(), labels=[0, 1, 2, 3, -1, 0]), "label -1 at position 4: with 4 classes"),
        (lambda: Loader(Bare(), labels=[-1] * 6), "label -1 at position 0"),
        (lambda: Loader(Bare(), labels=[1, 2, 3, 3, 2, 1], classes=3), "label 3 at position 2: .* these start at 1"),
        (lambda: Loader(Bare(), labels=[0, 2, 2, 2, 0, 0]), "class 1 of 3 has no image: .* classes= to Loader"),
        (lambda: Loader(Bare(targets=Y, classes=["a", "b"])), "label 2 at position 0: with 2 classes"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Odd(Made):
    """Sample 5 is what is given."""

    def __init__(self, sample):
        super().__init__(8, noise=False)
        self.sample = sample

    def __getitem__(self, k):
        return self.sample if k == 5 else super().__getitem__(k)


GOOD = torch.zeros(4)


@pytest.mark.parametrize(
    "sample, message",
    [
        (GOOD, r"sample 5 of Odd is a tensor \(4,\) of type torch.float32: a sample must be \(x, y\)"),
        ({"x": GOOD, "y": 2}, "sample 5 of Odd is a dict"),
        ((GOOD, 2, 5), "sample 5 of Odd is a tuple of 3"),
        ((Image.new("L", (2, 2)), 2), "x of sample 5 of Odd is a Image: it must be a float tensor"),
        ((GOOD.to(torch.uint8), 2), r"x of sample 5 of Odd is a tensor \(4,\) of type torch.uint8: .* float tensor"),
        ((np.zeros(4, np.float32), 2), "x of sample 5 of Odd is a ndarray"),
        ((GOOD / 0, 2), "x of sample 5 of Odd is not finite"),
        ((torch.zeros(5), 2), r"sample 5 has x \(5,\), sample 0 \(4,\): give all one shape"),
        ((GOOD, 1), "sample 5 of Odd comes with y = 1, but its label is 2: pass labels="),
        ((GOOD, "cat"), "comes with y = cat, but its label is 2"),
        ((GOOD, torch.tensor([2])), "but its label is 2"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(sample, message):
    loader = Loader(Odd(sample), batch=8)
    for read in (lambda: list(loader), lambda: list(loader.plain())):
        with pytest.raises(ValueError, match=message):
            read()


def test_a_sample_that_does_not_fit_is_named_by_a_worker():
    with pytest.raises(ValueError, match="sample 5 of Odd is a str: a sample must be"):
        list(Loader(Odd("nothing"), batch=8, workers=1))


def test_a_target_transform_that_the_labels_do_not_know_is_found(tmp_path):
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    turned = ImageFolder(folder_of_pictures(tmp_path), to_tensor, target_transform=lambda c: 2 - c)
    with pytest.raises(ValueError, match="sample 0 of ImageFolder comes with y = 2, but its label is 0"):
        next(iter(Loader(turned)))
    assert Loader(turned, labels=[2 - c for c in turned.targets]).n.tolist() == [4, 2, 3]


# Identity


def test_the_identity_is_plain_and_knows_labels_and_files(tmp_path):
    one = ImageFolder(folder_of_pictures(tmp_path / "one"))
    moved = ImageFolder(folder_of_pictures(tmp_path / "elsewhere"))
    known = Loader(one, batch=2, seed=1).identity()
    assert known[:2] == [[3, 2, 4], 9] and len(known[2]) == 16 and known == Loader(moved, workers=1).identity()
    (tmp_path / "elsewhere/class 0/0.png").rename(tmp_path / "elsewhere/class 0/00.png")
    others = [
        Loader(ImageFolder(tmp_path / "elsewhere")),
        Loader(Subset(one, [0, 1, 2, 3, 4, 5, 6, 8, 7])),
        Loader(Subset(one, range(8))),
        Loader(one, labels=[0, 0, 0, 1, 1, 2, 2, 2, 1]),
        Loader(one, classes=4),
    ]
    plain = [repr(b.identity()) for b in others]
    assert len({repr(known), *plain}) == 6
    assert Loader(Subset(one, range(9))).identity() == known, "the same samples"
    assert Loader(Made()).identity() != Loader(Made(24)).identity()


# Over-sampling


def test_resample_is_torchs_weighted_random_sampler():
    y = torch.tensor([0] * 50 + [1] * 10 + [2] * 3)
    weights = 1 / data.counts(y).double()[y]
    ours = data.resample(y, 500, torch.Generator().manual_seed(4))
    theirs = list(Weighted(weights, 500, generator=torch.Generator().manual_seed(4)))
    assert ours.tolist() == theirs and ours.dtype == torch.int64
    assert len(data.resample(y)) == 63
    many = Counter(y[data.resample(y, 30_000, torch.Generator().manual_seed(0))].tolist())
    assert all(abs(many[c] - 10_000) < 400 for c in range(3)), "five standard deviations"
    with pytest.raises(ValueError, match="several labels"):
        data.resample(torch.zeros(4, 2, dtype=torch.int64))


def test_an_over_sampled_order_reaches_the_workers():
    y = torch.tensor([0] * 40 + [1] * 4)
    loader = Loader(TensorDataset(torch.arange(44.0)[:, None], y), batch=8, seed=0, workers=2)
    for epoch in range(2):
        loader.order = data.resample(loader.y, 200, torch.Generator().manual_seed(epoch))
        seen = torch.cat([i for _, _, i in loader])
        assert torch.equal(seen.sort().values, loader.order.sort().values)
        assert 70 < (y[seen] == 1).sum() < 130


# Training


def as_dataset(images):
    x = data.Batches(images).normalise(images.x)
    return TensorDataset(x, images.y)


def test_a_loader_is_trained_on_and_evaluated_as_batches_are():
    some = toys.images()
    scores = {}
    for name, batches in {
        "memory": data.Batches(some, batch=8),
        "none": Loader(as_dataset(some), batch=8),
        "two": Loader(as_dataset(some), batch=8, workers=2),
    }.items():
        net = toys.net()
        curve = fit(net, CrossEntropy(batches.n), batches, protocol=Protocol("short", 2, batch=8), test=batches)
        scores[name] = (evaluate(net, batches)[0], [row["loss"] for row in curve])
    assert all(torch.equal(scores["memory"][0], s) and scores["memory"][1] == c for s, c in scores.values())


def test_many_samples_begin_at_once():
    n = 200_000
    loader = Loader(Bare200k(n), batch=64, seed=0)
    x, y, i = next(iter(loader))
    assert x.shape == (64, 1) and loader.n.sum() == n and loader.dataset.read == 64, "no more than the batch"


class Bare200k(Dataset):
    def __init__(self, n):
        self.targets, self.read = [k % 7 for k in range(n)], 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, k):
        self.read += 1
        return torch.tensor([float(k)]), self.targets[k]


def test_the_readers_own_folder_trains_a_network(tmp_path):
    path = folder_of_pictures(tmp_path, (8, 6, 4))
    ready = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    train = Loader(
        ImageFolder(path, v2.Compose([v2.RandomHorizontalFlip(), *ready])),
        batch=6,
        seed=0,
        plain=ImageFolder(path, v2.Compose(ready)),
    )
    net = nets.resnet8(3)
    fit(net, CrossEntropy(train.n), train, protocol=Protocol("one", epochs=1, batch=6))
    scores, y = evaluate(net, train)
    assert scores.shape == (18, 3) and y.tolist() == [0] * 8 + [1] * 6 + [2] * 4
    memory = data.folder(path, size=6)
    x = torch.cat([x for x, _, _ in train.plain()])
    assert torch.allclose(x, (memory.x / 255 - 0.5) / 0.25, atol=1e-6) and Path(train.dataset.root) == path
