"""Print what the book found, in one paragraph for the landing page, and draw its figure.

    python tools/found.py book/_static/found.png > book/_generated/found.md

Words and numbers follow from the committed records; a set of data is named once all its runs are there.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402

from imbook import plots, records, results, verdicts  # noqa: E402
from imbook.tables import TABLES, rivals  # noqa: E402

FREE = "logit adjustment"
SIMPLE = ("moved thresholds", "balanced softmax", "re-trained classifier", "class weights", "over-sampling",
          "tau-normalisation", "focal loss", "mixup", "cross entropy")  # fmt: skip
METHODS = ("CRL", "CDB", "DOS", "MFW")


def complete():
    """{title: runs} of the sets with all seeds of all rows."""
    have, found = records.load(), {}
    for name, (title, _) in rivals.SETS.items():
        table = TABLES.get(f"rivals-{name}-100")
        runs = None if table is None else results.frame(table, records=have)
        if runs is not None and len(runs) == len(table.rows) * len(table.seeds):
            found[title] = runs
    if not found:
        raise SystemExit("no table of the rivals is complete: run `python -m imbook run rivals-fashion-lt-100`")
    return found


def gaps(runs):
    """Paired differences to logit adjustment, all tuned, the best first."""
    own = runs[runs["label"].isin([FREE, *SIMPLE, *METHODS])]
    return verdicts.compare(own, FREE).sort_values("difference", ascending=False)


def sentence(title, runs):
    name, kind = title.split(", ")
    mean = runs.groupby("label")[["balanced_accuracy", "tail"]].mean()
    low, high = mean.loc["cross entropy"], mean.loc[FREE]
    verdict = gaps(runs)["verdict"]
    ahead = [label for label in (*SIMPLE, *METHODS) if verdict[label] == "holds"]
    behind = [label for label in METHODS if verdict[label] == "reversed"]
    counted = "All four" if len(behind) == 4 else f"{len(behind)} of the four" if behind else "None of the four"
    return (
        f"On {kind} {name} cross entropy finds {low['tail']:.0f} % of the images of the three rarest classes, and "
        f"logit adjustment, one subtraction after training, {high['tail']:.0f} %; the mean recall of all classes rises "
        f"from {low['balanced_accuracy']:.1f} to {high['balanced_accuracy']:.1f} %. {counted} published methods, tuned "
        "on validation images like everything else, stay behind it. "
        f"Ahead of it: {' and '.join(ahead) or 'nothing'}."
    )


def draw(found, path):
    first = next(iter(found.values()))
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    shown: pd.DataFrame = gaps(first)
    plots.differences(shown, ax, f"points of balanced accuracy, to {FREE}")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def page(found):
    return " ".join(sentence(title, runs) for title, runs in found.items())


if __name__ == "__main__":
    sets = complete()
    draw(sets, Path(sys.argv[1]))
    print(page(sets))
