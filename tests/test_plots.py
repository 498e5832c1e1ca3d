"""Figures: drawn on the axes given, which are returned, and showing the numbers given."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.colors import to_hex, to_rgb  # noqa: E402

from imbook import plots, results  # noqa: E402
from imbook.tables import TABLES  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def record(right, n=(30, 20, 10)):
    """A run in which class c is right `right[c]` times of 10, and else taken for the next class."""
    matrix = np.diag(right) + np.roll(np.diag(10 - np.array(right)), 1, axis=1)
    return {"confusion": [matrix.tolist()], "n": list(n), "key": str(right)}


@pytest.fixture
def runs():
    """Two methods, two seeds; in the second seed the order of the classes is turned round."""
    rows = [
        ("one", 0, 50.0, record([9, 5, 1])),
        ("one", 1, 60.0, record([3, 5, 9], (10, 20, 30))),
        ("two", 0, 70.0, record([8, 8, 4])),
        ("two", 1, 80.0, record([6, 8, 8], (10, 20, 30))),
    ]
    return pd.DataFrame(
        {"label": label, **dict.fromkeys(results.SEEDS, s), "balanced_accuracy": v, "record": r}
        for label, s, v, r in rows
    )


def line_of(ax, colour):
    """x and y of the line with points in a colour."""
    (line,) = [li for li in ax.lines if len(li.get_xdata()) and to_rgb(li.get_color()) == tuple(colour)]
    return list(line.get_xdata()), list(line.get_ydata())


def test_class_sizes():
    _, ax = plt.subplots()
    assert plots.class_sizes([100, 30, 5], ["a", "b", "c"], ax=ax) is ax
    assert [bar.get_height() for bar in ax.patches] == [100, 30, 5] and ax.get_yscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"] and ax.get_ylabel() == "training images"
    assert [bar.get_facecolor()[:3] for bar in ax.patches] == plots.palette(3)
    assert plots.class_sizes(torch.tensor([3, 2]), log=False).get_yscale() == "linear"


def test_differences():
    compared = pd.DataFrame(
        {"difference": [2.0, -1.0, 0.5, np.nan], "low": [1.0, -2.0, -0.5, np.nan], "high": [3.0, -0.2, 1.5, np.nan]},
        index=["better", "worse", "open", "pending"],
    )
    ax = plots.differences(compared)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(compared.index) and ax.yaxis_inverted()
    bars, dots = ax.lines[:-1:2], ax.lines[1:-1:2]
    for row, (low, high) in enumerate(compared[["low", "high"]].to_numpy()[:3]):
        assert list(bars[row].get_xdata()) == [low, high] and list(bars[row].get_ydata()) == [row, row]
        assert list(dots[row].get_xdata()) == [compared["difference"].iloc[row]]
    assert [d.get_markerfacecolor() for d in dots[:3]] == ["black", "black", "white"], "full: the interval excludes 0"
    judged = compared.assign(verdict=["holds", "does not hold", "does not hold", "not tested"])
    drawn = plots.differences(judged, ax=plt.subplots()[1], rule=True).lines
    assert [d.get_markerfacecolor() for d in drawn[1:6:2]] == ["black", "white", "white"], "full: the rule agrees, too"
    assert list(ax.lines[-1].get_xdata()) == [0, 0] and ax.get_xlabel() == "difference, points of balanced accuracy"
    drawn = plots.differences(compared.rename(index={"better": "MFW", "worse": "mixup"}), ax=plt.subplots()[1]).lines
    assert [line.get_color() for line in drawn[1:6:2]] == [plots.COLOURS["MFW"], plots.COLOURS["mixup"], "black"]


def test_strip(runs):
    _, ax = plt.subplots()
    assert plots.strip(runs, ax=ax) is ax
    points = [sorted(c.get_offsets()[:, 0]) for c in ax.collections if len(c.get_offsets())]
    assert points == [[50, 60], [70, 80]]
    means = [
        line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1 and line.get_color() == "black"
    ]
    assert means == [55, 75] and [t.get_text() for t in ax.get_yticklabels()] == ["one", "two"]
    assert ax.get_xlabel() == "balanced accuracy (%)"


def test_recall_by_size(runs):
    """The largest class comes first in each run, whichever it is."""
    _, ax = plt.subplots()
    assert plots.recall_by_size(runs, ax=ax) is ax
    colours = plots.colours(["one", "two"])
    assert line_of(ax, colours["one"]) == ([1, 2, 3], [90, 50, pytest.approx(20)])
    assert line_of(ax, colours["two"]) == ([1, 2, 3], [80, 80, 50])
    assert ax.get_ylabel() == "recall (%)" and [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "two"]


def test_recall_by_size_ranks_the_classes_of_all_labels_together(runs):
    record = {"confusion": [[[9, 1], [5, 5]], [[8, 2, 0], [0, 10, 0], [7, 0, 3]]], "n": [[40, 5], [30, 10, 5]]}
    ax = plots.recall_by_size(pd.DataFrame([{"label": "one", "record": record}]))
    assert line_of(ax, plots.colours(["one"])["one"]) == ([1, 2, 3, 4, 5], pytest.approx([90, 80, 100, 50, 30]))


def test_curves_of_several_labels_are_means_of_means():
    rows = pd.DataFrame({"label": "one", "epoch": e, "test": [[0.2, 0.4], [0.9, 0.9, 0.6]]} for e in (1, 2))
    ax = plots.curves(rows, "test")
    assert line_of(ax, plots.colours(["one"])["one"]) == ([1, 2], pytest.approx([55, 55]))


def test_curves():
    rows = pd.DataFrame(
        {"label": label, "epoch": e, "run": f"{label}{s}", "test": [v + s / 10, v - s / 10], "loss": v + s}
        for label, v in (("one", 0.5), ("two", 0.7))
        for s in (0, 1)
        for e in (1, 2)
    )
    _, ax = plt.subplots()
    assert plots.curves(rows, "test", ax=ax) is ax
    colours = plots.colours(["one", "two"])
    assert line_of(ax, colours["one"]) == ([1, 2], pytest.approx([50, 50]))
    assert line_of(ax, colours["two"]) == ([1, 2], pytest.approx([70, 70]))
    ax = plots.curves(rows, "loss", scale=1)
    assert line_of(ax, colours["one"])[1] == pytest.approx([1.0, 1.0]) and ax.get_xlabel() == "epoch"
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert [band.min(), band.max()] == pytest.approx([1 - 0.5**0.5, 1 + 0.5**0.5]), "one standard deviation"


def test_confusion():
    _, ax = plt.subplots()
    assert plots.confusion([[8, 2], [1, 3]], ["a", "b"], ax=ax) is ax
    assert np.asarray(ax.collections[0].get_array()).ravel().tolist() == pytest.approx([80, 20, 25, 75])
    assert [t.get_text() for t in ax.texts] == ["80", "20", "25", "75"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    assert not plots.confusion(np.eye(13)).texts, "no numbers in small fields"


def test_decision_regions():
    x, y = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [1.0, -0.5]]), torch.tensor([0, 1, 1])
    net = lambda points: torch.stack([-points[:, 0], points[:, 0]], 1)  # noqa: E731
    _, ax = plt.subplots()
    assert plots.decision_regions(net, x, y, ax=ax) is ax
    points = [c.get_offsets().tolist() for c in ax.collections if c.get_label().startswith("class")]
    assert points == [[[-1, 0]], [[1, 0.5], [1, -0.5]]]

    def boundary(ax):
        return np.concatenate([p.vertices for c in ax.collections[1:2] for p in c.get_paths()])[:, 0]

    assert np.allclose(boundary(ax), 0, atol=0.02), "the classes meet where their scores are equal"
    moved = plots.decision_regions(net, x, y, shift=torch.tensor([0.0, 1.0]))
    assert np.allclose(boundary(moved), 0.5, atol=0.02), "a shift takes from the second class"
    assert ax.get_xlim() == pytest.approx((-1.6, 1.6))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_palette_goes_from_dark_to_light(classes):
    luminance = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in plots.palette(classes)]
    assert len(luminance) == classes and luminance == sorted(luminance) and luminance[-1] < 0.85


def test_a_method_has_one_colour_in_the_whole_book():
    alone = {label: plots.colours([label])[label] for label in plots.COLOURS}
    assert {label: to_hex(c) for label, c in alone.items()} == plots.COLOURS, "whatever else is drawn or not"
    both = plots.colours(["mine", "MFW, strength 2", "cross entropy", "MFW, strength 4", "CNN-CL, kNN"])
    assert to_hex(both["MFW, strength 2"]) == plots.COLOURS["MFW"] and len(set(map(to_hex, both.values()))) == 5
    assert to_hex(both["CNN-CL, kNN"]) == plots.COLOURS["over-sampling"]
    assert to_hex(plots.colours(["mixup", "manifold mixup"])["manifold mixup"]) == plots.COLOURS["manifold mixup"]


def test_two_methods_never_share_a_colour():
    shared = {c for c in plots.COLOURS.values() if list(plots.COLOURS.values()).count(c) > 1}
    assert shared == {plots.COLOURS["class weights"]}, "inverse frequency is one of the class weights"


def test_every_row_of_a_common_table_has_its_methods_colour():
    common = [t for name, t in TABLES.items() if name.startswith(("methods-", "rivals-")) and "select" not in name]
    unknown = {row.label for table in common for row in table.rows if plots._method(row.label) is None}
    assert len(common) > 4 and unknown == set()


def test_ranks_join_what_is_not_told_apart():
    ranked = pd.DataFrame({"CRL": [4, 4], "mine": [1, 1], "MFW": [2, 3], "DOS": [3, 2]})
    ax = plots.ranks(ranked, 1.6)
    assert [t.get_text().strip() for t in ax.texts[:-1]] == ["mine (1.0)", "MFW (2.5)", "DOS (2.5)", "CRL (4.0)"]
    bars = [line for line in ax.lines if line.get_linewidth() == 4]
    ends = [[round(x, 2) for x in bar.get_xdata()] for bar in bars]
    assert ends == [[0.96, 2.54], [2.46, 4.04]], "first with the middle two, these with the last"
    assert not [line for line in plots.ranks(ranked, 0.5).lines if line.get_linewidth() == 4][1:], "the two equal ones"
    assert [line.get_color() for line in ax.lines[:2]] == ["black", plots.COLOURS["MFW"]]
