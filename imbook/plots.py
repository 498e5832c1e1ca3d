"""The book's figures: each function takes data and `ax=None` and returns the matplotlib axes.

Classes are coloured from head (dark) to tail (light) by one palette that colour-blind readers can order; methods take
seaborn's colour-blind palette in the order they come in.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import colormaps


def palette(classes):
    """Colours from head to tail: a list of `classes` RGB triples, dark to light, never near white."""
    return [colormaps["viridis"](v)[:3] for v in np.linspace(0, 0.88, classes)]


def class_sizes(n, names=None, ax=None, log=True):
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


def strip(runs, metric="balanced_accuracy", ax=None):
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
        palette=_methods(labels),
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


def recall_by_size(runs, ax=None):
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


def curves(rows, column, ax=None, scale=100):
    """Mean over the runs against the epoch, band of one standard deviation, a line a method.

    rows: `imbook.results.curves`; column: one of its columns, where a list of numbers counts as their mean (of several
    labels an image: the mean over the labels of these); scale: multiplies.
    """
    points = rows[["label", "epoch"]].assign(value=rows[column].map(_mean) * scale)
    ax = _band(points, "epoch", "value", ax)
    ax.set(xlabel="epoch", ylabel=column)
    return ax


def confusion(matrix, names=None, ax=None):
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


def decision_regions(net, x, y, ax=None, margin=0.6, lines=200, shift=None):
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
        ax.scatter(*x[y == c].T, s=14, color=colour, edgecolor="white", linewidth=0.3, label=f"class {c}")
    ax.set(xlabel="$x_1$", ylabel="$x_2$", xlim=(left, right), ylim=(low, high))
    return ax


def _axes(ax, width=6.4, height=3.4):
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def _mean(value):
    return np.mean([_mean(v) for v in value]) if isinstance(value, list) else np.mean(value)


def _methods(labels):
    few = len(labels) <= 10  # the palette for colour-blind readers has ten colours and would repeat them
    return dict(zip(labels, sns.color_palette("colorblind" if few else "husl", len(labels))))


def _band(points, x, y, ax, errorbar="sd", **line):
    ax = _axes(ax)
    labels = list(dict.fromkeys(points["label"]))
    sns.lineplot(
        points, x=x, y=y, hue="label", hue_order=labels, palette=_methods(labels), errorbar=errorbar, ax=ax, **line
    )
    ax.legend(title=None, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
