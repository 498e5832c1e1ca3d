"""The figures of a trial's report; each draws on the axes that it is given."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image, ImageOps

PLAIN = "#4d4d4d"  # cross entropy, as in the whole book
PARTS = {"train": "#31688e", "valid": "#8fa8b8", "test": "#111111"}  # black: the choice, too; no method's colour
OTHERS = "#999999"
SHOWN, EACH, PAIRS, SIDE = 10, 8, 6, 64  # of the findings: classes, pictures per class, pairs, pixels of a side


def findings(root: str | Path, table: pd.DataFrame, found: dict[str, Any]) -> Figure:
    """What lies in a folder, on one page: pictures per class, their sizes, samples, and the pairs most alike.

    root: folder of the paths in table; table, found: as `look.examine` and `look.findings` give them.
    """
    pairs = found["near"][:PAIRS]
    figure = plt.figure(figsize=(10, 5.4 if pairs else 3.8), layout="constrained")
    above, *below = figure.subfigures(2 if pairs else 1, 1, height_ratios=[7, 3] if pairs else [1], squeeze=False)[:, 0]
    counts, sizes_, samples = above.subplots(1, 3, width_ratios=[3, 3, 4])
    _counts(found, counts)
    seen = table[(table["error"] == "") & (table["width"] > 0)]
    sizes_.plot(seen["width"], seen["height"], "o", ms=3, alpha=0.3, color=PARTS["train"])
    sizes_.set(xscale="log", yscale="log", xlabel="width (pixels, log)", ylabel="height (pixels, log)", title="Sizes")
    for axis in (sizes_.xaxis, sizes_.yaxis):
        axis.set_major_locator(LogLocator(2))
        axis.set_major_formatter("{x:.0f}")
        axis.set_minor_locator(NullLocator())
    sizes_.margins(0.1)
    _samples(Path(root), seen, found["classes"][:SHOWN], samples)
    for part in below:
        part.suptitle(f"Look-alikes: the first {len(pairs)} of {len(found['near'])} pairs, with their similarity")
        for ax, (i, j, similarity) in zip(part.subplots(1, PAIRS).flat, pairs):
            ax.imshow(_tiles([[Path(root) / table["path"].iloc[k] for k in (i, j)]]))
            ax.set_title(f"{similarity:.3f}\n" + " | ".join(_short(table["label"].iloc[[i, j]])), fontsize="small")
        for ax in part.axes:
            ax.axis("off")
    return figure


def _counts(found, ax):
    n, names = found["n"], _short(found["classes"])
    bars = ax.barh(range(len(n)), n, color=PARTS["train"])
    ax.bar_label(bars, padding=2, fontsize="small")
    ax.set(yticks=range(len(n)), yticklabels=names, xscale="log", xlim=(0.7, max(n) * 8), xlabel="pictures (log)")
    ax.set_title(f"Pictures per class, ratio {found['ratio']:.1f}")
    ax.invert_yaxis()


def _samples(root, seen, names, ax):
    """Pictures evenly from each class's files, a class per row."""
    rows = []
    for name in names:
        paths = seen["path"][seen["label"] == name].tolist()
        rows.append([root / paths[k] for k in np.linspace(0, len(paths) - 1, min(EACH, len(paths))).astype(int)])
    ax.imshow(_tiles(rows))
    ax.set(xticks=[], yticks=(np.arange(len(rows)) + 0.5) * (SIDE + 4), yticklabels=_short(names), title="Samples")
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)


def _tiles(rows):
    """Pictures side by side in squares, one row each list of paths; those that are no longer there stay white."""
    whole = np.full((len(rows) * (SIDE + 4), max(map(len, rows)) * (SIDE + 4), 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, path in enumerate(row):
            if path.is_file():
                tile = _thumbnail(path, SIDE)
                height, width = tile.shape[:2]
                top, left = (SIDE + 4) * r + (SIDE - height) // 2, (SIDE + 4) * c + (SIDE - width) // 2
                whole[top : top + height, left : left + width] = tile
    return whole


def sizes(result: dict[str, Any], ax: Axes) -> Axes:
    """Pictures per class in each part, on a logarithmic axis."""
    at = np.arange(len(result["classes"]))
    for k, part in enumerate(PARTS):
        n = np.array(result["train"] if part == "train" else result["parts"][part])
        ax.barh(at + (k - 1) * 0.27, n, 0.25, color=PARTS[part], label=part)
    ax.set(yticks=at, yticklabels=_short(result["classes"]), xscale="log", xlabel="pictures (log)")
    ax.set_title("Pictures per class")
    ax.set_xlim(left=0.7)
    ax.invert_yaxis()
    ax.legend(fontsize="small")
    return ax


def dots(result: dict[str, Any], ax: Axes, key: str = "cost") -> Axes:
    """A test metric of each row with its interval, the chosen row in black, the least validation cost on top.

    key: of the rows: cost, balanced_accuracy, accuracy or macro_f1.
    """
    rows = sorted(result["rows"], key=lambda row: row["valid_cost"], reverse=True)
    for k, row in enumerate(rows):
        mean, low, high = row[key]
        colour = PARTS["test"] if row["name"] == result["chosen"] else OTHERS
        ax.plot([low, high], [k, k], color=colour, lw=2)
        ax.plot(mean, k, "o", color=colour)
    name = "cost" if key == "cost" else key.replace("_", " ").replace("f1", "F1")
    ax.set(yticks=range(len(rows)), xlabel=_cost_label(result) if key == "cost" else name)
    ax.set_title(f"Test {name}, 95 % interval")
    ax.set_yticklabels([row["name"] for row in rows], fontsize="small")
    return ax


def confusion(result: dict[str, Any], ax: Axes) -> Axes:
    """Share of each true class (row) that was decided as each class (column), in per cent; counts where C <= 12."""
    c = np.array(result["confusion"])
    share = 100 * c / np.maximum(c.sum(1, keepdims=True), 1)
    names, small = _short(result["classes"]), len(c) <= 12
    sns.heatmap(share, annot=small, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar=not small, ax=ax,
                xticklabels=names, yticklabels=names)  # fmt: skip
    ax.set(xlabel="decided", ylabel="true", title="Test decisions, % of each true class")
    ax.tick_params(axis="y", rotation=0)
    return ax


def calibration(result: dict[str, Any], ax: Axes) -> Axes:
    """Share right against confidence on test pictures, before and after calibration; larger points hold more."""
    found = result["calibration"]
    ax.plot([0, 1], [0, 1], color="#999999", lw=1)
    for (name, points), colour in zip(found["points"].items(), (OTHERS, PARTS["test"])):
        sure, right, many = np.array(points).T
        ax.plot(sure, right, color=colour, lw=1)
        ax.scatter(sure, right, 8 + 200 * many / many.sum(), color=colour, label=name, zorder=3)
    ax.set(xlabel="confidence", ylabel="share right", title="Calibration on test pictures")
    plt.setp(ax.legend(fontsize="small").legend_handles, sizes=[30])
    return ax


def curve(result: dict[str, Any], ax: Axes) -> Axes:
    """Test cost of cross entropy, first seed, against the pictures of the smallest class; dashed: the chosen row's."""
    found, chosen = result["curve"], next(row for row in result["rows"] if row["name"] == result["chosen"])
    ax.plot(found["n"], found["cost"], "o-", color=PLAIN, label="cross entropy")
    ax.axhline(chosen["cost"][0], color=PARTS["test"], ls="--", label="the choice")
    ax.set(xscale="log", xlabel=f"training pictures of {found['cls']} (log)", ylabel=_cost_label(result))
    ax.set_xticks(found["n"], list(map(str, found["n"])))
    ax.minorticks_off()
    ax.set_title("More pictures of the smallest class")
    ax.legend(fontsize="small")
    return ax


def sheet(root: str | Path, paths: Sequence[str], titles: Sequence[str], columns: int = 6, side: int = 96) -> Figure:
    """Pictures in a grid, titles above: a figure. Those that are no longer there stay empty."""
    rows = max(1, -(-len(paths) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.8 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, path, title in zip(axes.flat, paths, titles):
        if (Path(root) / path).is_file():
            ax.imshow(_thumbnail(Path(root) / path, side))
        ax.set_title(title, fontsize=7)
    return figure


def _thumbnail(path, side):
    with warnings.catch_warnings(), Image.open(path) as picture:
        warnings.simplefilter("ignore")
        return np.asarray(ImageOps.contain(ImageOps.exif_transpose(picture).convert("RGB"), (side, side)))


def overview(result: dict[str, Any], sentences: Sequence[str], columns: int = 3) -> Figure:
    """All figures of a result and its recommendation in one: the report's PNG."""
    drawn = [sizes, dots, confusion, calibration, *([curve] if result["curve"] else [])]
    rows = -(-(len(drawn) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.3 * columns, 4.5 * rows), layout="constrained")
    for ax in axes.flat[len(drawn) :]:
        ax.axis("off")
    for ax, draw in zip(axes.flat, drawn):
        draw(result, ax)
    text = "\n\n".join(fill(line, 58) for line in sentences)
    axes.flat[len(drawn)].text(0, 1, text, va="top", fontsize=11)
    return figure


def _cost_label(result):
    return "cost (mean over classes)" if result["per_class"] else "cost per picture"


def _short(names):
    return [name if len(name) < 18 else name[:16] + "…" for name in names]
