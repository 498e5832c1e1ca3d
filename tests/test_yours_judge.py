"""Costs, calibration, intervals and the choice, against scikit-learn and literal loops."""

import numpy as np
import pytest
from sklearn import metrics as sk

from imbook.yours import judge

RNG = np.random.default_rng(0)
Y = RNG.choice(3, 400, p=[0.7, 0.2, 0.1])
H = RNG.normal(size=(400, 3)) + 2 * np.eye(3)[Y]
D = H.argmax(1)
C = judge.confusions(D, Y, np.zeros(400, int), 3)[0]


def test_measures_are_those_of_scikit_learn():
    assert np.array_equal(C, sk.confusion_matrix(Y, D))
    assert judge.accuracy(C) == pytest.approx(sk.accuracy_score(Y, D))
    assert judge.balanced_accuracy(C) == pytest.approx(sk.balanced_accuracy_score(Y, D))
    assert judge.macro_f1(C) == pytest.approx(sk.f1_score(Y, D, average="macro"))
    assert judge.recall(C) == pytest.approx(sk.recall_score(Y, D, average=None))
    weights = 1 / np.bincount(Y)[Y]
    assert judge.accuracy(judge.equal(C)) == pytest.approx(sk.accuracy_score(Y, D, sample_weight=weights))
    assert judge.macro_f1(judge.equal(C)) == pytest.approx(sk.f1_score(Y, D, average="macro", sample_weight=weights))


def test_costs_are_the_literal_ones():
    even = judge.Costs.read(None, ("a", "b", "c"))
    assert even.mean(C) == pytest.approx(1 - sk.balanced_accuracy_score(Y, D))
    matrix = np.array([[0, 1, 2], [5, 0, 1], [9, 3, 0]])
    costs = judge.Costs(matrix, per_class=False)
    assert costs.mean(C) == pytest.approx(np.mean([matrix[a, b] for a, b in zip(Y, D)]))
    assert costs.mean(np.stack([C, 2 * C])).shape == (2,)


def test_decisions_have_the_least_expected_cost():
    p, prior = RNG.dirichlet(np.ones(3), 50), np.array([0.7, 0.2, 0.1])
    assert np.array_equal(judge.Costs.read(None, "abc").decide(p, prior), (p / prior).argmax(1))
    matrix = np.array([[0, 1, 2], [5, 0, 1], [9, 3, 0]])
    literal = [min(range(3), key=lambda j: sum(q[c] * matrix[c, j] for c in range(3))) for q in p]
    assert judge.Costs(matrix, per_class=False).decide(p, prior).tolist() == literal


def test_a_cost_file_is_read_by_names(tmp_path):
    path = tmp_path / "costs.csv"
    path.write_text(",b,a\na,2,0\nb,0,7\n")
    costs = judge.Costs.read(path, ("a", "b"))
    assert costs.matrix.tolist() == [[0, 2], [7, 0]] and not costs.per_class
    bad = (",a\na,0\n", ",a,b\na,0,-1\nb,1,0\n", ",a,b\na,1,1\nb,1,0\n", ",a,b\na,0,x\nb,1,0\n", ",a,b\na,0,0\nb,0,0")
    for text in bad:
        path.write_text(text)
        with pytest.raises(ValueError, match="costs.csv: "):
            judge.Costs.read(path, ("a", "b"))


def test_calibration_undoes_a_temperature_and_a_prior_shift():
    rng, prior = np.random.default_rng(1), np.array([0.7, 0.2, 0.1])
    p = rng.dirichlet([0.7, 0.3, 0.2], 20_000)
    y = (p.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    own = np.bincount(y) / len(y)
    h = (np.log(np.maximum(p, 1e-12)) - np.log(own)) * 3  # balanced training, three times too sure
    found = judge.Calibration(h, y, own)
    assert np.exp(found.log_slope) == pytest.approx(1 / 3, abs=0.03) and found.tau == pytest.approx(1, abs=0.05)
    assert np.abs(found(h) - p).mean() < 0.01
    assert len(prior) == 3


def test_calibration_of_separable_scores_stays_finite():
    found = judge.Calibration(20 * np.eye(3)[Y], Y, np.bincount(Y) / len(Y))
    assert np.isfinite(found(H)).all()


def test_the_bootstrap_is_the_literal_one():
    groups = np.repeat(np.arange(100), 4)
    by_group = judge.confusions(D, Y, groups, 3)
    assert by_group.shape == (100, 3, 3) and np.array_equal(by_group.sum(0), C)
    draws = judge.drawn(by_group, a=judge.accuracy)["a"]
    literal = [judge.accuracy(sum(k * c for k, c in zip(w, by_group)))
               for w in next(iter(judge.weights(by_group)))]  # fmt: skip
    assert draws[:50] == pytest.approx(literal) and len(draws) == judge.DRAWS
    low, high = judge.interval(draws)
    assert low < judge.accuracy(C) < high


def test_the_interval_of_single_pictures_is_that_of_a_proportion():
    by_group = judge.confusions(D, Y, np.arange(400), 3)
    draws = judge.drawn(by_group, r=judge.recall)["r"]
    r, n = judge.recall(C), np.bincount(Y)
    assert draws.std(0) == pytest.approx(np.sqrt(r * (1 - r) / n), rel=0.15)
    assert np.isfinite(draws).all(), "no class vanishes from a draw"


def test_groups_widen_the_interval():
    y, groups = np.repeat(np.arange(2), 100), np.arange(200) // 10
    right = (groups % 2 == 0).astype(int)  # whole groups are right or wrong
    d = np.where(right, y, 1 - y)
    draws = (judge.drawn(judge.confusions(d, y, g, 2), a=judge.accuracy)["a"] for g in (np.arange(200), groups))
    alone, whole = map(np.std, draws)
    assert whole > 2.5 * alone


def test_the_choice():
    order = ["a", "b", "c"]
    assert judge.choose({"a": 0.3, "b": 0.2, "c": 0.2}, order) == "b"
    assert judge.simplest({"a": 0.3, "b": 0.2, "c": 0.1}, {"a": 0.1, "b": 0.11, "c": 0}, order) == "b"


def test_how_many_more_pictures():
    more, per_doubling = judge.images_for([10, 20, 40], [0.4, 0.3, 0.2], 0.1)
    assert more == pytest.approx(40) and per_doubling == pytest.approx(0.1)
    assert judge.images_for([10, 20], [0.1, 0.2], 0.1)[0] is None
    assert judge.images_for([1, 2, 3], [2 / 3] * 3, 0.1)[0] is None
    assert judge.images_for([10, 20], [0.2, 0.2 - 1e-6], 0.1)[0] == float("inf")
