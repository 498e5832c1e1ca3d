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


def numbers(runs):
    """Means of cross entropy, of logit adjustment untuned and tuned; who stays behind the last; what is ahead of it."""
    mean = runs.groupby("label")[["balanced_accuracy", "head", "tail"]].mean()
    verdict = gaps(runs)
    ahead = [
        f"{label}, by {line['difference']:.1f} points ({line['low']:.1f} to {line['high']:.1f})"
        for label, line in verdict[verdict["verdict"] == "holds"].iterrows()
    ]
    behind = sum(verdict.loc[list(METHODS), "verdict"] == "reversed")
    counted = {4: "All four", 0: "None of the four"}.get(behind, f"{behind} of the four")
    return mean.loc[["cross entropy", f"{FREE}, untuned", FREE]], counted, "; ".join(ahead) or "nothing"


def sentence(title, runs):
    name, kind = title.split(", ")
    mean, counted, ahead = numbers(runs)
    (plain, free, tuned), whole = mean[["tail", "head"]].to_numpy(), mean["balanced_accuracy"].tolist()
    return (
        f"On {kind} {name} ({runs['label'].value_counts().max()} runs per method, one small network) cross entropy "
        f"finds {plain[0]:.0f} % of the images of the three rarest classes. Logit adjustment, one subtraction after "
        f"training, finds {free[0]:.0f} % as it comes and {tuned[0]:.0f} % tuned on validation images; the four "
        f"largest classes pay for it, {plain[1]:.0f}, {free[1]:.0f} and {tuned[1]:.0f} %. The mean recall of all "
        f"classes is {whole[0]:.1f}, {whole[1]:.1f} and {whole[2]:.1f} %. {counted} published methods, tuned in the "
        f"same way, stay behind tuned logit adjustment. What is ahead of it: {ahead}."
    )


def again(title, runs):
    """The same of a further set, in short."""
    name, kind = title.split(", ")
    mean, counted, ahead = numbers(runs)
    plain, free, tuned = mean["balanced_accuracy"]
    return (
        f"On {kind} {name} these means are {plain:.1f}, {free:.1f} and {tuned:.1f} %. {counted} published methods stay "
        f"behind, and what is ahead: {ahead}."
    )


def draw(found, path):
    first = next(iter(found.values()))
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    shown: pd.DataFrame = gaps(first)
    plots.differences(shown, ax, f"points of balanced accuracy, to {FREE}")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def page(found):
    (first, *rest) = found.items()
    return " ".join([sentence(*first), *(again(*of) for of in rest)])


if __name__ == "__main__":
    sets = complete()
    draw(sets, Path(sys.argv[1]))
    print(page(sets))
