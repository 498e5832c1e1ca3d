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
    mean = runs.groupby("label")[["balanced_accuracy", "head", "tail"]].mean()
    plain, free, tuned = (mean.loc[label] for label in ("cross entropy", f"{FREE}, untuned", FREE))
    verdict = gaps(runs)
    ahead = [
        f"{label}, by {line['difference']:.1f} points ({line['low']:.1f} to {line['high']:.1f})"
        for label, line in verdict[verdict["verdict"] == "holds"].iterrows()
    ]
    behind = sum(verdict.loc[list(METHODS), "verdict"] == "reversed")
    counted = {4: "All four", 0: "None of the four"}.get(behind, f"{behind} of the four")
    return (
        f"On {kind} {name} ({runs['label'].value_counts().max()} runs per method, one small network) cross entropy "
        f"finds {plain['tail']:.0f} % of the images of the three rarest classes. Logit adjustment, one subtraction "
        f"after training, finds {free['tail']:.0f} % as it comes and {tuned['tail']:.0f} % tuned on validation images; "
        f"the four largest classes pay for it, {plain['head']:.0f}, {free['head']:.0f} and {tuned['head']:.0f} %. The "
        f"mean recall of all classes is {plain['balanced_accuracy']:.1f}, {free['balanced_accuracy']:.1f} and "
        f"{tuned['balanced_accuracy']:.1f} %. {counted} published methods, tuned in the same way, stay behind tuned "
        f"logit adjustment. What is ahead of it: {'; '.join(ahead) or 'nothing'}."
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
