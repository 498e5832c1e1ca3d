"""The book's figures: each function takes data and `ax=None` and returns the matplotlib axes.

Classes are coloured from head (dark) to tail (light) by one palette that colour-blind readers can order. A method has
the same colour in every figure of the book (`COLOURS`).
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor, nn

#: The colour of each method in every figure, by the beginning of a row's label. The book's four are the strongest.
COLOURS = {
    "CRL": "#d55e00",
    "CDB": "#b5179e",
    "DOS": "#009e73",
    "MFW": "#e69f00",
    "cross entropy": "#4d4d4d",
    "logit adjustment": "#0072b2",
    "balanced softmax": "#56b4e9",
    "moved thresholds": "#7f9ccb",
    "class weights": "#8c6d31",
    "inverse frequency": "#8c6d31",
    "deferred re-weighting": "#c49c94",
    "class-balanced": "#bcbd22",
    "over-sampling": "#637939",
    "focal": "#ad494a",
    "label smoothing": "#a1a1a1",
    "re-trained classifier": "#17becf",
    "tau-normalisation": "#9edae5",
    "CDT": "#756bb1",
    "mixup": "#7b4173",
    "manifold mixup": "#ce6dbd",
    "Remix": "#de9ed6",
}
_ALIASES = {"CNN-CL": "over-sampling", "CNN": "cross entropy"}  # the names of the paper of deep over-sampling


def colours(labels: Sequence[str]) -> dict[str, Any]:
    """{label: colour}: that of the method whose name the label begins with.

    Of several rows of one method the first has its colour and the others lighter ones. A label that begins with no
    method of `COLOURS` (a reader's own) takes one of seaborn's colour-blind palette that no other label here has.
    """
    made, seen, own = {}, dict.fromkeys(COLOURS.values(), 0), iter(sns.color_palette("husl", len(labels)))
    of = {label: _method(label) for label in dict.fromkeys(labels)}
    for label, method in of.items():
        if method is None:
            made[label] = next(own)
            continue
        colour = COLOURS[method]
        rows = sum(m is not None and COLOURS[m] == colour for m in of.values())
        shades = sns.light_palette(colour, rows + 2, reverse=True)[:rows]  # none of them near white
        made[label] = shades[seen[colour]]
        seen[colour] += 1
    return made


def _method(label: str) -> str | None:
    names = {**dict(zip(COLOURS, COLOURS)), **_ALIASES}
    return next((names[name] for name in sorted(names, key=len, reverse=True) if label.startswith(name)), None)


def palette(classes: int) -> list[tuple[float, float, float]]:
    """Colours from head to tail: a list of `classes` RGB triples, dark to light, never near white."""
    return [colormaps["viridis"](v)[:3] for v in np.linspace(0, 0.88, classes)]


def class_sizes(
    n: Tensor | Sequence[int], names: Sequence[str] | None = None, ax: Axes | None = None, log: bool = True
) -> Axes:
    """Bars of the images a class, in the order given. n: (C,) counts; names: C labels; log: logarithmic axis."""
    ax = _axes(ax)
    n = [int(v) for v in n]
    ax.bar(range(len(n)), n, color=palette(len(n)))
    if names is not None:
        ax.set_xticks(range(len(n)), names, rotation=40, ha="right")
    ax.set(
        xlabel="class, largest first" if names is None else "",
        ylabel="training images",
        yscale="log" if log else "linear",
    )
    return ax


def strip(runs: pd.DataFrame, metric: str = "balanced_accuracy", ax: Axes | None = None) -> Axes:
    """One point a run and a bar at the mean, a row a method.

    runs: `imbook.results.frame`; metric: one of its columns.
    """
    labels = list(dict.fromkeys(runs["label"]))
    ax = _axes(ax, height=0.9 + 0.4 * len(labels))
    sns.stripplot(
        runs,
        x=metric,
        y="label",
        hue="label",
        order=labels,
        hue_order=labels,
        palette=colours(labels),
        legend=False,
        ax=ax,
        size=4,
        alpha=0.7,
    )
    for row, label in enumerate(labels):
        mean = runs.loc[runs["label"] == label, metric].mean()
        ax.plot([mean, mean], [row - 0.32, row + 0.32], color="black", linewidth=2)
    ax.set(xlabel=f"{metric.replace('_', ' ')} (%)", ylabel="")
    return ax


def differences(
    compared: pd.DataFrame, ax: Axes | None = None, unit: str = "points of balanced accuracy", rule: bool = False
) -> Axes:
    """Paired differences with their intervals: a dot and a bar per row, a line at 0, the first row on top.

    compared: difference, low and high (see `imbook.verdicts.compare`), the rows' names in the index. unit: of the axis.
    The dot is full where the interval excludes 0, else empty; it has the colour of the row's method (`COLOURS`), or is
    black. Rows without a number are left empty. rule: full only where the column verdict is 'holds' or 'reversed', too.
    """
    ax = _axes(ax, height=0.8 + 0.28 * len(compared))
    told = compared["verdict"].isin(["holds", "reversed"]) if rule else [True] * len(compared)
    numbers = compared[["difference", "low", "high"]].to_numpy(dtype=float)
    for row, ((difference, low, high), holds) in enumerate(zip(numbers, told, strict=True)):
        found, method = (low > 0 or high < 0) and holds, _method(str(compared.index[row]))
        colour = "black" if method is None else COLOURS[method]
        ax.plot([low, high], [row, row], color=colour, linewidth=1.6)
        ax.plot(difference, row, "o", color=colour, markerfacecolor=colour if found else "white", markersize=6)
    ax.axvline(0, color="grey", linewidth=1)
    ax.set(xlabel=f"difference, {unit}", ylim=(len(compared) - 0.5, -0.5))
    ax.set_yticks(range(len(compared)), compared.index)
    return ax


def ranks(ranked: pd.DataFrame, distance: float, ax: Axes | None = None) -> Axes:
    """A critical-difference diagram: rows by their mean rank, the best on the left; bars join what is not told apart.

    ranked: ranks, data sets by rows (`imbook.verdicts.ranks`); distance: `imbook.verdicts.critical_difference`. The bar
    at the top shows its length. Source: Demsar 2006.
    """
    mean = ranked.mean().sort_values()
    joined = [(i, max(j for j, r in enumerate(mean) if r - mean.iloc[i] <= distance)) for i in range(len(mean))]
    joined = [(i, j) for k, (i, j) in enumerate(joined) if j > i and (k == 0 or j > joined[k - 1][1])]
    ax, half = _axes(ax, height=1.2 + 0.16 * (len(mean) + 2 * len(joined))), (len(mean) + 1) // 2
    first = -0.5 - 0.4 * len(joined)
    for k, (label, rank) in enumerate(mean.items()):
        left, method = k < half, _method(str(label))
        end, y = (0.8, first - k) if left else (len(mean) + 0.2, first - (len(mean) - 1 - k))
        colour = "black" if method is None else COLOURS[method]
        ax.plot([rank, rank, end], [0, y, y], color=colour, linewidth=1.4)
        ax.text(end, y, f" {label} ({rank:.1f}) ", ha="right" if left else "left", va="center")
    for k, (i, j) in enumerate(joined):
        ax.plot([mean.iloc[i] - 0.04, mean.iloc[j] + 0.04], [-0.4 * (k + 1)] * 2, color="black", linewidth=4)
    ax.plot([1, 1 + distance], [1.6, 1.6], color="black", linewidth=2)
    ax.text(1 + distance / 2, 1.8, f"critical difference {distance:.1f}", ha="center", va="bottom")
    ax.set(xlim=(0.7, len(mean) + 0.3), ylim=(first - half, 2.6), yticks=[], xticks=range(1, len(mean) + 1))
    ax.xaxis.set_ticks_position("top"), ax.spines[["left", "right", "bottom"]].set_visible(False)
    ax.spines["top"].set_position(("data", 0))
    return ax


def recall_by_size(runs: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Recall of the class at each rank of size, head to tail: mean over the runs, band of one standard error.

    runs: `imbook.results.frame`; ranks are taken run by run, since the tail may be another class in each. Of several
    labels an image the classes of all are ranked together.
    """
    points = []
    for _, run in runs.iterrows():
        matrices = [np.array(m, dtype=float) for m in run["record"]["confusion"]]
        by_class = np.hstack([100 * m.diagonal() / m.sum(1) for m in matrices])
        order = np.argsort(-np.hstack(run["record"]["n"]), kind="stable")
        points += [{"label": run["label"], "rank": r + 1, "recall": by_class[c]} for r, c in enumerate(order)]
    ax = _band(pd.DataFrame(points), "rank", "recall", ax, errorbar="se", marker="o")
    ticks = range(1, len(order) + 1, -(-len(order) // 20))
    ax.set(xlabel="class by size (1: the largest)", ylabel="recall (%)", xticks=ticks)
    return ax


def curves(rows: pd.DataFrame, column: str, ax: Axes | None = None, scale: float = 100) -> Axes:
    """Mean over the runs against the epoch, band of one standard deviation, a line a method.

    rows: `imbook.results.curves`; column: one of its columns, where a list of numbers counts as their mean (of several
    labels an image: the mean over the labels of these); scale: multiplies.
    """
    points = rows[["label", "epoch"]].assign(value=rows[column].map(_mean) * scale)
    ax = _band(points, "epoch", "value", ax)
    ax.set(xlabel="epoch", ylabel=column)
    return ax


def confusion(matrix: Any, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """The confusion matrix, each row as shares of its true class. matrix: (C, C) counts, rows the true classes."""
    ax = _axes(ax, width=4.6, height=4)
    matrix = np.asarray(matrix, dtype=float)
    shares = 100 * matrix / matrix.sum(1, keepdims=True)
    labels = range(len(matrix)) if names is None else names
    annotate = len(matrix) <= 12
    sns.heatmap(
        shares, vmin=0, vmax=100, cmap="cividis", square=True, annot=annotate, fmt=".0f", annot_kws={"size": 7},
        xticklabels=labels, yticklabels=labels, cbar_kws={"label": "% of the true class"}, ax=ax,
    )  # fmt: skip
    ax.set(xlabel="predicted class", ylabel="true class")
    return ax


def decision_regions(
    net: nn.Module, x: Tensor, y: Tensor, ax: Axes | None = None, margin: float = 0.6, lines: int = 200,
    shift: Tensor | None = None,
) -> Axes:  # fmt: skip
    """The regions that a network on the plane assigns to each class, and the points. x: float (N, 2); y: int64 (N,).

    shift: (C,) subtracted from the logits before the largest is taken (a moved threshold).
    """
    ax = _axes(ax, width=4, height=4)
    (left, low), (right, high) = (x.min(0).values - margin).tolist(), (x.max(0).values + margin).tolist()
    grid_x, grid_y = torch.meshgrid(torch.linspace(left, right, lines), torch.linspace(low, high, lines), indexing="xy")
    with torch.no_grad():
        scores = net(torch.stack([grid_x, grid_y], -1).view(-1, 2).to(x.dtype))
    region = (scores if shift is None else scores - shift).argmax(1).view(lines, lines)
    colours = palette(scores.shape[1])
    levels = np.arange(scores.shape[1] + 1) - 0.5
    ax.contourf(grid_x, grid_y, region, levels=levels, colors=colours, alpha=0.25)
    ax.contour(grid_x, grid_y, region, levels=levels[1:-1], colors="black", linewidths=1.2)
    for c, colour in enumerate(colours):
        ax.scatter(x[y == c, 0], x[y == c, 1], s=14, color=colour, edgecolor="white", linewidth=0.3, label=f"class {c}")
    ax.set(xlabel="$x_1$", ylabel="$x_2$", xlim=(left, right), ylim=(low, high))
    return ax


def _axes(ax: Axes | None, width: float = 6.4, height: float = 3.4) -> Axes:
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def _mean(value: Any) -> float:
    return float(np.mean([_mean(v) for v in value] if isinstance(value, list) else value))


def _band(points: pd.DataFrame, x: str, y: str, ax: Axes | None, errorbar: str = "sd", **line: Any) -> Axes:
    ax = _axes(ax)
    labels = list(dict.fromkeys(points["label"]))
    sns.lineplot(
        points, x=x, y=y, hue="label", hue_order=labels, palette=colours(labels), errorbar=errorbar, ax=ax, **line
    )
    ax.legend(title=None, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
