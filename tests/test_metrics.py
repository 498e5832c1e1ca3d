"""Metrics: against scikit-learn on random predictions, against literal loops, and at the edges."""

import inspect
import math

import pytest
import sklearn.metrics as reference
import torch

from imbook import metrics


@pytest.fixture(params=range(4))
def predictions(request):
    """Scores (200, 5) that are right more often than not, labels of very different frequency, and what they predict."""
    g = torch.Generator().manual_seed(request.param)
    y = torch.cat([torch.arange(5), torch.multinomial(torch.tensor([50.0, 20, 10, 5, 2]), 195, True, generator=g)])
    scores = torch.randn(200, 5, generator=g) + 1.2 * torch.eye(5)[y]
    return scores, y, scores.argmax(1)


def test_against_scikit_learn(predictions):
    scores, y, predicted = predictions
    matrix = metrics.confusion(scores, y)
    assert torch.equal(matrix, metrics.confusion(predicted, y))
    assert matrix.tolist() == reference.confusion_matrix(y, predicted).tolist()
    precision, recall, f1, _ = reference.precision_recall_fscore_support(y, predicted, zero_division=0)
    assert metrics.recall(matrix).tolist() == pytest.approx(recall.tolist())
    assert metrics.precision(matrix).tolist() == pytest.approx(precision.tolist())
    assert metrics.f1(matrix).tolist() == pytest.approx(f1.tolist())
    assert metrics.accuracy(matrix) == pytest.approx(reference.accuracy_score(y, predicted))
    assert metrics.balanced_accuracy(matrix) == pytest.approx(reference.balanced_accuracy_score(y, predicted))
    expected = reference.average_precision_score(torch.eye(5)[y].numpy(), scores.numpy(), average=None)
    assert metrics.auprc(scores, y).tolist() == pytest.approx(expected.tolist())


def test_summary_collects_the_numbers(predictions):
    scores, y, predicted = predictions
    summary = metrics.summary(scores, y)
    assert list(summary) == "accuracy balanced_accuracy macro_f1 g_mean macro_auprc calibration_error".split()
    assert summary["macro_f1"] == pytest.approx(reference.f1_score(y, predicted, average="macro"))
    expected = reference.average_precision_score(torch.eye(5)[y].numpy(), scores.softmax(1).numpy(), average="macro")
    assert summary["macro_auprc"] == pytest.approx(expected), "of probabilities"
    moved = scores + torch.arange(200.0)[:, None]
    assert metrics.summary(moved, y) == pytest.approx(summary, abs=1e-4), "logits mean the same with a constant added"
    matrix = metrics.confusion(scores, y)
    assert summary["accuracy"] == metrics.accuracy(matrix) and summary["g_mean"] == metrics.g_mean(matrix)
    assert summary["balanced_accuracy"] == metrics.balanced_accuracy(matrix)
    assert summary["calibration_error"] == metrics.calibration_error(scores, y)


def test_g_mean_by_hand(predictions):
    scores, y, predicted = predictions
    product = 1.0
    for c in range(5):
        of_class = predicted[y == c]
        product *= (of_class == c).sum().item() / len(of_class)
    assert metrics.g_mean(metrics.confusion(scores, y)) == pytest.approx(product ** (1 / 5))


def test_calibration_error_by_hand(predictions):
    scores, y, predicted = predictions
    for bins in (15, 10, 1):
        total = 0.0
        for m in range(bins):
            right, confidence = [], []
            for s, label, p in zip(scores.double(), y, predicted):
                top = s.softmax(0).max().item()
                if m / bins < top <= (m + 1) / bins:
                    right.append(float(p == label))
                    confidence.append(top)
            if right:
                total += len(right) / len(y) * abs(sum(right) / len(right) - sum(confidence) / len(right))
        assert metrics.calibration_error(scores, y, bins) == pytest.approx(total)


def test_calibration_of_a_sure_and_of_an_honest_guess():
    y = torch.tensor([0, 1, 0, 1])
    sure = torch.tensor([[100.0, 0.0]]).repeat(4, 1)
    assert metrics.calibration_error(sure, y) == pytest.approx(0.5)
    assert metrics.calibration_error(torch.zeros(4, 2), y) == pytest.approx(0)
    assert metrics.calibration_error(100 * torch.eye(2)[y], y) == pytest.approx(0)


def test_a_class_without_samples():
    y, scores = torch.tensor([0, 0, 1]), torch.eye(3)[torch.tensor([0, 1, 1])]
    matrix = metrics.confusion(scores, y)
    assert matrix.shape == (3, 3)
    recall = metrics.recall(matrix)
    assert recall[:2].tolist() == [0.5, 1.0] and math.isnan(recall[2])
    assert metrics.balanced_accuracy(matrix) == pytest.approx(0.75)
    assert metrics.g_mean(matrix) == pytest.approx(math.sqrt(0.5))
    assert metrics.auprc(scores, y)[2].isnan() and not metrics.auprc(scores, y)[:2].isnan().any()
    assert math.isfinite(metrics.summary(scores, y)["macro_auprc"])


@pytest.mark.parametrize("seed", range(6))
def test_absent_classes_against_scikit_learn(seed):
    """Classes 1 and 4 of 6 have no samples; some predictions name them all the same."""
    g = torch.Generator().manual_seed(seed)
    y = torch.tensor([0, 2, 3, 5])[torch.randint(4, (60,), generator=g)]
    scores = torch.randn(60, 6, generator=g) + torch.eye(6)[y]
    predicted, there = scores.argmax(1), [0, 2, 3, 5]
    assert (predicted == 1).any() and (predicted == 4).any()
    matrix, summary = metrics.confusion(scores, y), metrics.summary(scores, y)
    known = reference.precision_recall_fscore_support(y, predicted, labels=there, zero_division=0)
    for metric, expected in zip((metrics.precision, metrics.recall, metrics.f1), known):
        assert metric(matrix)[there].tolist() == pytest.approx(expected.tolist())
        assert metric(matrix)[[1, 4]].isnan().all()
    assert summary["macro_f1"] == pytest.approx(reference.f1_score(y, predicted, labels=there, average="macro"))
    with pytest.warns(UserWarning, match="not in y_true"):
        assert summary["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(y, predicted))
    p = scores.softmax(1)
    area = [reference.average_precision_score((y == c).numpy(), p[:, c].numpy()) for c in there]
    assert metrics.auprc(p, y)[there].tolist() == pytest.approx(area)
    assert summary["macro_auprc"] == pytest.approx(sum(area) / 4)
    assert summary["g_mean"] == pytest.approx(math.prod(known[1]) ** 0.25)
    assert summary["accuracy"] == pytest.approx(reference.accuracy_score(y, predicted))


def test_right_on_the_two_classes_that_are_there():
    """Three of five classes are absent, and every prediction is right."""
    summary = metrics.summary(torch.eye(5)[:2] * 9, torch.tensor([0, 1]))
    assert summary["macro_f1"] == reference.f1_score([0, 1], [0, 1], average="macro") == 1.0
    assert summary["accuracy"] == summary["balanced_accuracy"] == summary["g_mean"] == summary["macro_auprc"] == 1.0


def test_what_has_no_metric_is_refused():
    with pytest.raises(ValueError, match="no samples: metrics need at least one"):
        metrics.summary(torch.ones(0, 3), torch.ones(0, dtype=torch.int64))
    scores = torch.eye(3)
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="the scores of sample 1 are nan"):
        metrics.summary(scores, torch.arange(3))
    assert metrics.confusion(scores.nan_to_num(-torch.inf), torch.arange(3)).diagonal().tolist() == [1, 1, 1]


def test_the_rule_for_absent_classes_is_in_every_docstring():
    forms = ("compact", "dense")  # how a matrix is kept, no metric
    named = {name: f for name, f in vars(metrics).items() if inspect.isfunction(f) and not name.startswith("_")}
    public = [f for name, f in named.items() if name not in forms]
    assert len(public) == 11
    for f in public:
        text = " ".join(f.__doc__.split())
        assert any(words in text for words in ("without samples", "no samples", "have samples")), f.__name__


def test_a_class_that_is_never_predicted():
    matrix = metrics.confusion(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 1]))
    assert matrix.tolist() == [[1, 0], [2, 0]]
    assert metrics.precision(matrix).tolist() == pytest.approx([1 / 3, 0]) and metrics.f1(matrix)[1] == 0
    assert metrics.g_mean(matrix) == 0 and metrics.balanced_accuracy(matrix) == 0.5


def test_a_matrix_may_be_a_list():
    assert metrics.accuracy([[3, 1], [2, 4]]) == pytest.approx(0.7)
    assert metrics.recall([[3, 1], [2, 4]]).tolist() == pytest.approx([0.75, 2 / 3])


def test_a_label_without_a_column_is_named():
    with pytest.raises(ValueError, match="a label of 5, and scores of 3 classes"):
        metrics.confusion(torch.eye(3), torch.tensor([0, 1, 5]))
