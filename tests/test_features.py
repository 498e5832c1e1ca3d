"""Classifiers on features: those of scikit-learn on what the network hands to its head, beside unchanged training."""

import numpy as np
import pytest
import torch
import toys
from sklearn.neighbors import KNeighborsClassifier

from imbook import data, metrics, nets
from imbook.methods import CNNCL, DOS, CrossEntropy
from imbook.methods.features import OnFeatures, embed, readings
from imbook.train import Protocol, evaluate, fit

RUN = Protocol("toy", epochs=3, batch=16, lr=0.05)


def sets():
    return tuple(data.Batches(toys.images(n, seed=s), batch=16, seed=5) for s, n in ((0, (24, 12, 6)), (1, (9, 9, 9))))


def test_features_are_what_the_head_sees():
    net, (train, _) = toys.net().eval(), sets()
    with torch.no_grad():
        z = embed(net, train)
        assert z.shape == (42, 64) and torch.allclose(net.head(z), net(train.normalise(train.x)), atol=1e-5)
        below = embed(net, train, "stage1")
        assert torch.equal(below, torch.cat([net[:2](x).flatten(1) for x, _, _ in train.plain()]))
        assert torch.equal(embed(net, train, "input"), train.normalise(train.x).flatten(1))


def test_embedding_is_in_evaluation_mode_and_leaves_no_trace():
    net, (train, _) = toys.net(), sets()
    net.stage1.eval()  # as where a part is frozen
    before, modes = {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]
    z = embed(net, train)
    assert toys.same(before, net.state_dict()) and modes == [m.training for m in net.modules()] and not z.requires_grad
    assert torch.equal(z, embed(net.eval(), train))


def test_what_is_not_finite_is_named():
    net, (train, _) = toys.net().eval(), sets()
    plain = train.normalise
    seventh = lambda x: (x == train.x[7]).flatten(1).all(1)[:, None, None, None]  # noqa: E731
    train.normalise = lambda x: torch.where(seventh(x), torch.nan, plain(x))
    with torch.no_grad(), pytest.raises(ValueError, match=r"the inputs of 1 of 42 samples .* positions \[7\]: mend"):
        embed(net, train)
    train.normalise = plain
    with torch.no_grad(), pytest.raises(ValueError, match=r"the features of 42 of 42 .* \[0, 1, 2, 3, 4\]: the net"):
        net.stage1[0].conv1.weight.fill_(torch.inf)
        embed(net, train, "stage1")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_features_of_any_dtype_are_read(dtype):
    net = nets.mlp(64, 3).to(dtype).eval()
    train = data.Batches(toys.images(), batch=16, dtype=dtype)
    with torch.no_grad():
        for reading in readings(net, train).values():
            scores = reading.predict(net, train.inputs(torch.arange(9)))
            assert scores.dtype == torch.promote_types(dtype, torch.float32)
            assert torch.allclose(scores.exp().sum(1), torch.ones(9, dtype=scores.dtype), atol=1e-5)


def test_the_stage_is_where_classifiers_read():
    net, (train, test) = toys.net(), sets()
    method = CNNCL(stage="stage1")
    fit(net, method, train, test=test, protocol=RUN)
    for reading in method.readings.values():
        assert reading.stage == "stage1"
        assert getattr(reading.classifier, "n_features_in_", None) == 16 * 8 * 8


def test_training_is_that_of_cross_entropy_bit_for_bit():
    runs = []
    for method in (CrossEntropy(), CNNCL()):
        net, (train, test) = toys.net(), sets()
        runs.append((net.state_dict(), fit(net, method, train, test=test, protocol=RUN)))
    assert toys.same(*runs)


@pytest.mark.parametrize("make", [CNNCL, lambda: DOS(torch.tensor([24, 12, 6]), k=2, start=1, every=1, read=True)])
def test_readings_are_those_of_scikit_learn(make):
    net, (train, test), method = toys.net(), sets(), make()
    assert method.readings == {}
    fit(net, method, train, test=test, protocol=RUN)
    assert set(method.readings) == {"knn", "logistic"}
    net.eval()
    with torch.no_grad():
        z, seen = (torch.cat([net[:-1](x) for x, _, _ in batches.plain()]) for batches in (train, test))
    d = (seen.double()[:, None] - z.double()).square().sum(2)  # (27, 42)
    votes = torch.stack([torch.bincount(train.y[row.topk(5, largest=False).indices], minlength=3) for row in d])
    scores, y = evaluate(net, test, method.readings["knn"])
    assert torch.allclose(scores.exp(), votes / 5) and torch.equal(y, test.y)

    mean, std = z.double().mean(0), z.double().std(0, correction=0)  # the penalised likelihood is at its optimum
    scale = torch.where(std > 0, std, 1)
    model = method.readings["logistic"].classifier[-1]
    W = torch.tensor(model.coef_, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(model.intercept_, dtype=torch.float64, requires_grad=True)
    logits = (z.double() - mean) / scale @ W.T + bias
    loss = torch.nn.functional.cross_entropy(logits, train.y, reduction="sum") + 0.5 * W.square().sum()
    assert all(g.abs().max() < 0.02 for g in torch.autograd.grad(loss, (W, bias)))
    scores, _ = evaluate(net, test, method.readings["logistic"])
    with torch.no_grad():
        expected = ((seen.double() - mean) / scale @ W.T + bias).softmax(1)
    assert torch.allclose(scores.exp().double(), expected, atol=1e-4)
    assert metrics.accuracy(metrics.confusion(scores, test.y)) > 0.4


def test_a_class_that_was_not_seen_is_never_predicted():
    net, (_, test) = toys.net().eval(), sets()
    images = toys.images((20, 4, 10))
    train = data.Batches(images, (images.y != 1).nonzero().flatten(), batch=16)
    reading = OnFeatures(KNeighborsClassifier(3))
    with torch.no_grad():
        reading.finish(net, train)
        scores = reading.predict(net, test.normalise(test.x))
    assert scores.shape == (27, 3) and (scores[:, 1] == -np.inf).all()
    assert torch.allclose(scores.exp().sum(1), torch.ones(27))
    assert metrics.summary(scores, test.y)["accuracy"] > 0


def test_fitting_twice_gives_the_same():
    net, (train, test) = toys.net().eval(), sets()
    with torch.no_grad():
        one, two = readings(net, train), readings(net, train)
    for name in one:
        assert torch.equal(evaluate(net, test, one[name])[0], evaluate(net, test, two[name])[0])
