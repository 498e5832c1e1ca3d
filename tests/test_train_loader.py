"""Training from a Dataset that is read image by image is training from memory: `fit`, `evaluate`, checkpoints."""

from dataclasses import replace

import pytest
import torch
import toys
from torch.utils.data import Dataset

from imbook import data
from imbook.data.loader import Loader
from imbook.methods import METHODS, CrossEntropy, LogitAdjusted
from imbook.protocol import Protocol
from imbook.train import evaluate, fit

RUN = Protocol("run", epochs=3, batch=16, lr=0.05)


class Files(Dataset):
    """The images of a set, normalised one by one."""

    def __init__(self, images):
        whole = data.Batches(images)
        self.x, self.y = whole.normalise(whole.x), images.y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, k):
        return self.x[k], int(self.y[k])


def sets(kind, n=(24, 12, 6), seed=0, shuffle=0, **options):
    images = toys.images(n, seed=seed)
    if kind == "memory":
        return data.Batches(images, batch=16, seed=shuffle)
    return Loader(Files(images), batch=16, seed=shuffle, labels=images.y, classes=3, **options)


def train_one(kind, name="CrossEntropy", protocol=RUN, shuffle=None, **options):
    train, valid = sets(kind, shuffle=shuffle), sets(kind, (6, 6, 6), seed=1, shuffle=None)
    late = {"start": 1} if name in ("DOS", "DOSAbstract", "Weighted", "LDAM", "OverSampling") else {}
    torch.manual_seed(0)
    method = METHODS[name](train.n, **late)
    net = toys.net(method=method)
    torch.manual_seed(0)
    return fit(net, method, train, valid, valid, protocol=protocol, **options), net.state_dict(), train


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_from_a_loader_as_from_memory(name):
    (curve, state, train), (its, same, read) = (train_one(kind, name) for kind in ("memory", "files"))
    assert torch.equal(train.order, read.order) and torch.equal(train.y, read.y)
    for k in state:
        assert torch.allclose(state[k].double(), same[k].double(), atol=1e-4), k
    assert [row["loss"] for row in curve] == pytest.approx([row["loss"] for row in its], rel=1e-4)


def test_evaluation_in_order():
    net, method = toys.net(), LogitAdjusted(torch.tensor([24, 12, 6]))
    found = [evaluate(net, sets(kind), method) for kind in ("memory", "files")]
    assert torch.equal(found[0][1], found[1][1]) and torch.allclose(found[0][0], found[1][0], atol=1e-5)


def test_a_run_from_a_loader_resumes_bit_for_bit(tmp_path):
    def stop(epoch, row):
        if epoch == 2:
            raise KeyboardInterrupt

    file = tmp_path / "run.pt"
    curve, state, _ = train_one("files", "OverSampling", shuffle=0)
    with pytest.raises(KeyboardInterrupt):
        train_one("files", "OverSampling", shuffle=0, checkpoint=file, every=1, tick=stop)
    its, again, _ = train_one("files", "OverSampling", shuffle=0, checkpoint=file)
    assert toys.same(curve, its) and toys.same(state, again)
    with pytest.raises(ValueError, match="another run .*data.train"):
        fit(toys.net(), CrossEntropy(), sets("files", (24, 12, 5)), protocol=RUN, checkpoint=file)


def test_what_a_protocol_states_of_a_loader():
    with pytest.raises(ValueError, match="states batch 8, the training set was made with batch 16: make them equal"):
        train_one("files", protocol=replace(RUN, batch=8))
    for change in (dict(crop=4), dict(flip=True)):
        with pytest.raises(ValueError, match="augmented by their own transforms: put crop=0, flip=False"):
            train_one("files", protocol=replace(RUN, **change))


def test_a_fast_step_needs_images_in_memory():
    with pytest.raises(ValueError, match="Loader reads them one by one: train with fast=False"):
        train_one("files", fast=True)
