"""Checkpoints: a file of another run is refused with what differs, a damaged one by name, and it is written whole."""

import os
import random
import time
from dataclasses import replace
from itertools import count

import pytest
import torch
import toys
from torch import nn

from imbook import checkpoints, data, nets
from imbook.methods import CrossEntropy, Weighted
from imbook.protocol import Protocol
from imbook.train import fit

SHORT = Protocol("short", epochs=2, batch=16, lr=0.05)


def train_one(file, images=None, index=None, shuffle=0, net=None, method=None, protocol=SHORT, **options):
    train = data.Batches(images or toys.images(), index, protocol.batch, shuffle, protocol.crop, protocol.flip)
    options = {"valid": held(), "test": held()} | options
    return fit(net or toys.net(), method or CrossEntropy(), train, protocol=protocol, checkpoint=file, **options)


def held(seed=1, n=(6, 6, 6)):
    return data.Batches(toys.images(n, seed=seed))


def without_a_bias():
    net = toys.net()
    net.head = nn.Linear(64, 3, bias=False)
    return net


# Another run


OTHERS = [
    ("data.train", lambda: dict(images=toys.images(seed=5))),
    ("data.train", lambda: dict(index=torch.arange(41, -1, -1))),  # the same counts
    ("data.valid", lambda: dict(valid=held(2))),
    ("data.test", lambda: dict(test=held(2))),
    ("data.test: .* there, None here", lambda: dict(test=None)),
    ("shuffled: 0 there, 1 here", lambda: dict(shuffle=1)),
    ("groups: None there, .0, 0, 1. here", lambda: dict(groups=torch.tensor([0, 0, 1]))),
    ("instrument: None there, 'stage1' here", lambda: dict(instrument="stage1")),
    ("seed: 0 there, 3 here", lambda: dict(seed=3)),
    ("protocol.lr: 0.05 there, 0.06 here", lambda: dict(protocol=replace(SHORT, lr=0.06))),
    ("protocol.crop: 0 there, 1 here", lambda: dict(protocol=replace(SHORT, crop=1))),
    ("method.name: 'CrossEntropy' there, 'Weighted' here", lambda: dict(method=Weighted(torch.tensor([24, 12, 6])))),
    ("net.head.bias: .3. there, None here", lambda: dict(net=without_a_bias())),
    ("net.stage1.0.weight: None there, .* here.*43 more", lambda: dict(net=nets.mlp(64, 3))),
    ("precision: None there, 'bf16' here", lambda: dict(fast=True, precision="bf16")),
]


@pytest.mark.parametrize("told, change", OTHERS)
def test_a_checkpoint_of_another_run_says_what_differs(told, change, tmp_path):
    """Other images of the same counts, another network, another validation set: the old curve was returned for all."""
    file = tmp_path / "run.pt"
    curve = train_one(file)
    with pytest.raises(ValueError, match=f"{file} holds a checkpoint of another run .*{told}.*remove it"):
        train_one(file, **change())
    assert toys.same(train_one(file), curve)


def test_a_subset_of_parameters_is_part_of_the_run(tmp_path):
    file = tmp_path / "run.pt"
    for some, other in ((None, "head"), ("head", "stage3"), ("head", None)):
        file.unlink(missing_ok=True)
        nets_ = [toys.net() for _ in range(2)]
        chosen = [None if s is None else net.get_submodule(s).parameters() for s, net in zip((some, other), nets_)]
        train_one(file, net=nets_[0], parameters=chosen[0])
        with pytest.raises(ValueError, match="another run .*parameters: .* there, .* here"):
            train_one(file, net=nets_[1], parameters=chosen[1])


def test_a_long_argument_is_told_from_another(tmp_path):
    """repr shortens a tensor of more than a thousand numbers."""
    n, other = torch.ones(2000), torch.ones(2000)
    other[1000] = 2
    made = [CrossEntropy(n).arguments, CrossEntropy(other).arguments]
    assert repr(n) == repr(other) and made[0] != made[1]
    assert checkpoints.plain({"a": (1, [2.5, None]), "b": torch.tensor([1])}) == {
        "a": [1, [2.5, None]],
        "b": ["torch.int64", [1]],
    }


# Damage


def test_any_flipped_bit_is_found(tmp_path):
    file = tmp_path / "run.pt"
    train_one(file)
    whole, places = file.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[places.randrange(len(whole))] ^= 1 << places.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file} is damaged: remove it, then run again"):
            checkpoints.read(file)
    for size in (0, 1, 31, 32, 1000, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{file} is damaged: remove it, then run again"):
            train_one(file)
    file.write_bytes(whole)
    assert checkpoints.read(file)["epoch"] == 2


@pytest.mark.parametrize("change", ["gone", "shape", "kind", "order", "random"])
def test_a_whole_file_with_the_wrong_things_in_it_is_damaged_too(change, tmp_path):
    file = tmp_path / "run.pt"
    train_one(file)
    state = checkpoints.read(file)
    if change == "gone":
        del state["optimiser"]
    elif change == "shape":
        state["net"]["head.weight"] = torch.ones(2, 2)
    elif change == "kind":
        state["net"] = 3
    elif change == "order":
        del state["order"]
    else:
        state["cpu"] = torch.zeros(3, dtype=torch.uint8)
    checkpoints.write(file, state)
    with pytest.raises(ValueError, match=f"{file} is damaged: remove it, then run again"):
        train_one(file)
    for other in (torch.ones(3), [1]):
        checkpoints.write(file, other)
        with pytest.raises(ValueError, match=f"{file} is damaged: remove it"):
            train_one(file)


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (done.append(("sync", os.fstat(d).st_size)), sync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", os.stat(a).st_size)), rename(a, b)))
    checkpoints.write(tmp_path / "deep/run.pt", {"a": torch.ones(1000)})
    (first, size), (second, its) = done
    assert (first, second) == ("sync", "rename") and size == its > 4000
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["run.pt"]


def test_seconds_go_on_in_a_resumed_run(tmp_path, monkeypatch):
    """`elapsed` counts evaluation and all else; the curve's seconds are those of training."""
    file, clock = tmp_path / "run.pt", count(0, 1)
    monkeypatch.setattr(time, "perf_counter", clock.__next__)
    assert checkpoints.elapsed(None) == checkpoints.elapsed(file) == 0

    def stop(epoch, row):
        if epoch == 3:
            raise KeyboardInterrupt

    protocol, seen = replace(SHORT, epochs=5), []
    with pytest.raises(KeyboardInterrupt):
        train_one(file, protocol=protocol, tick=stop)
    seen.append(checkpoints.elapsed(file))
    curve = train_one(file, protocol=protocol)
    assert curve[-1]["seconds"] == 5
    # one call at the start, two an epoch and one at each save, a second each
    assert seen == [7] and checkpoints.elapsed(file) == 7 + 5
