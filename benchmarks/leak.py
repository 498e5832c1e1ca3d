"""What a split that leaks claims on the digits, and what one seed of a learning curve does: benchmarks/leak.py [FILE]

Chapter 09 asks whether a random split overstates the result where images come in groups. The digits with the sizes of
its folder, in groups of three, two ways. "neighbours": three digits that follow each other in the file, as in that
folder. "copies": one digit and two noisy copies of it, so a third as many digits. Each set is split twenty times by
groups and twenty times at random, and cross entropy is trained on each split. Written are the balanced accuracy on the
split's own test part, the share of its images that have a group in training, and the balanced accuracy on fresh digits,
those that are in neither set: what the same network is worth.

The trial also draws a learning curve from one seed. Here it is drawn from twenty, on one split of "neighbours" by
groups: the cost (100 less the balanced accuracy) with a quarter, half and all of the rarest digit's training images.
Which of them are kept is drawn anew with each seed. One JSON record; the chapter reads it.
"""

import sys

import numpy as np
import torch
from timing import write

from imbook import data, nets, records
from imbook.methods import CrossEntropy
from imbook.metrics import balanced_accuracy, confusion
from imbook.train import Protocol, evaluate, fit
from imbook.yours import split

MANY = (178, 120, 80, 60, 40, 30, 24, 18, 15, 12)  # images per class, in groups of three
NOISE = 24  # standard deviation, in grey levels of 255
SPLITS = range(0, 60, 3)  # `split.parts` draws from its seed on three times: no two of these share a draw
SEEDS = range(20)  # of the learning curve
PROTOCOL = Protocol("digits, leak", epochs=24, batch=16, lr=0.05)


def made(kind):
    """(Images, groups int64 (N,)) of "neighbours" or "copies"."""
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(0)
    take = [np.flatnonzero(digits.target == c)[:n_c] for c, n_c in enumerate(MANY)]
    if kind == "copies":
        take = [np.repeat(of[: len(of) // 3], 3) for of in take]
    number = np.concatenate([1000 * c + np.arange(len(of)) // 3 for c, of in enumerate(take)])
    x, y = (some[np.concatenate(take)] for some in (digits.images * 255 / 16, digits.target))
    if kind == "copies":
        again = np.r_[False, number[1:] == number[:-1]]  # all but the first of each group
        x[again] += NOISE * rng.standard_normal(x[again].shape)
    pixels = torch.from_numpy(x.round().clip(0, 255).astype(np.uint8))[:, None]
    return data.Images(pixels, torch.from_numpy(y), tuple("0123456789"), (0.5,), (0.25,)), number


def fresh():
    """Images: the digits that are in neither set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    of = np.concatenate([np.flatnonzero(digits.target == c)[n_c:] for c, n_c in enumerate(MANY)])
    pixels = torch.from_numpy((digits.images[of] * 255 / 16).round().astype(np.uint8))[:, None]
    classes = tuple("0123456789")
    return data.Images(pixels, torch.from_numpy(digits.target[of]), classes, (0.5,), (0.25,), gaps=True)


def trained(images, train, tests, seed):
    """The balanced accuracy on each of tests, `Batches`, in per cent: cross entropy trained on positions train (N,)."""
    torch.manual_seed(seed)
    net, batches = nets.mlp(64, 10), data.Batches(images, torch.from_numpy(train), PROTOCOL.batch, seed=seed)
    fit(net, CrossEntropy(), batches, protocol=PROTOCOL, seed=seed)
    return [100 * balanced_accuracy(confusion(*evaluate(net, test))) for test in tests]


def claim(images, groups, way, seed):
    """One split "by groups" or "at random", in per cent: [accuracy on its test part, leaked share, on fresh digits]."""
    y = images.y.numpy()
    train, _, test = split.parts(y, groups, images.classes, seed) if way == "by groups" else split.at_random(y, seed)
    tests = [data.Batches(images, torch.from_numpy(test)), data.Batches(fresh())]
    claimed, true = trained(images, train, tests, seed)
    return [claimed, 100 * split.leaked(train, test, groups), true]


def curve(images, groups, seed):
    """{images kept of the rarest digit: cost in per cent}, a quarter, half and all of them."""
    y = images.y.numpy()
    train, _, test = split.parts(y, groups, images.classes)
    rare, rest = (train[keep] for keep in (y[train] == y.max(), y[train] != y.max()))
    mixed = np.random.default_rng(seed).permutation(rare)
    parts = [mixed[: max(1, round(len(rare) * share))] for share in (0.25, 0.5, 1)]
    tests = [data.Batches(images, torch.from_numpy(test))]
    return {len(some): 100 - trained(images, np.r_[rest, some], tests, seed)[0] for some in parts}


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else records.RECORDS / "leak-digits.json"
    claims = {}
    for kind in ("neighbours", "copies"):
        images, groups = made(kind)
        claims[kind] = {way: [claim(images, groups, way, s) for s in SPLITS] for way in ("by groups", "at random")}
        by, at = (np.array(claims[kind][way])[:, 0] for way in ("by groups", "at random"))
        print(f"{kind}: by groups {by.mean():.1f} %, at random {at.mean():.1f} %, more in {(at > by).sum()}")
    images, groups = made("neighbours")
    curves = [curve(images, groups, seed) for seed in SEEDS]
    write(dict(claims=claims, curves=curves), path)
