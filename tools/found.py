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
IN_WORDS = {"moved thresholds": "one moved threshold per class, fitted on validation images"}


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


def counted(verdict):
    """How many of the four published methods are behind logit adjustment, in words."""
    behind = sum(verdict.loc[list(METHODS), "verdict"] == "reversed")
    return {4: "all four", 0: "none of the four"}.get(behind, f"{behind} of the four")


def advice(found):
    """What to do first, and on how many sets it was ahead of what. SystemExit where the records do not carry it."""
    for title, runs in found.items():
        plain = verdicts.between(runs[runs["label"].isin([FREE, "cross entropy"])], FREE, "cross entropy")
        if plain["verdict"] != "holds":
            raise SystemExit(f"{title}: {FREE} is not ahead of cross entropy, so the landing page may not advise it")
    each = {title: counted(gaps(runs)) for title, runs in found.items()}
    where = {n: " and on ".join(named(t) for t, k in each.items() if k == n) for n in dict.fromkeys(each.values())}
    beaten = "; ".join(f"on {sets} it was ahead of {n} published methods" for n, sets in where.items())
    return (
        "**Start with logit adjustment: subtract the log of the class sizes from a trained network's outputs.** "
        f"With a factor on that log chosen on validation images, {beaten} (CRL, CDB, DOS and MFW, in our versions, "
        "tuned by the same rule)."
    )


def named(title):
    name, kind = title.split(", ")
    return f"{kind} {name}"


def price(title, runs):
    """What the rare classes gain and the common ones pay, on one set."""
    mean = runs.groupby("label")[["head", "tail"]].mean()
    plain, once, tuned = (mean.loc[label] for label in ("cross entropy", f"{FREE}, untuned", FREE))
    return (
        f"On {named(title)} it finds {once['tail']:.0f} % of the images of the three rarest classes, where cross "
        f"entropy finds {plain['tail']:.0f} %; the four largest classes pay for it, with {once['head']:.0f} instead "
        f"of {plain['head']:.0f} % (means of {runs['label'].value_counts().max()} runs of one small network). With "
        f"the factor these become {tuned['tail']:.0f} and {tuned['head']:.0f} %."
    )


def ahead(found):
    """The simple rows that are ahead of logit adjustment, with the differences per set."""
    told = {}
    for title, runs in found.items():
        verdict = gaps(runs)
        for label, line in verdict[verdict["verdict"] == "holds"].iterrows():
            told.setdefault(label, []).append(f"{line['difference']:.1f} on {named(title)}")
    rows = [f"{IN_WORDS.get(label, label)}, by points: {', '.join(each)}" for label, each in told.items()]
    return f"What was ahead of it: {'; '.join(rows) or 'nothing'}."


def on_top(found):
    """Which methods gain with the same adjustment on top, against adjusted cross entropy, per set."""
    each = {}
    for title, runs in found.items():
        alone, rows = f"{FREE}, untuned", [f"{family} + adjusted logits" for family in rivals.ON_TOP]
        found_here = verdicts.compare(runs[runs["label"].isin([alone, *rows])], alone)
        held = found_here[found_here["verdict"] == "holds"].sort_values("difference", ascending=False)
        each[named(title)] = ", ".join(f"{row.split(' ')[0]} ({line['difference']:.1f} points)"
                                       for row, line in held.iterrows()) or "nothing"  # fmt: skip
    where = {gain: [title for title, own in each.items() if own == gain] for gain in dict.fromkeys(each.values())}
    told = "; ".join(f"{gain} on {' and '.join(titles)}" for gain, titles in where.items())
    return f"What gained with the logits adjusted on top: {told}."


def draw(found, path):
    first = next(iter(found.values()))
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    shown: pd.DataFrame = gaps(first)
    plots.differences(shown, ax, f"points of balanced accuracy, to {FREE}")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def page(found):
    return " ".join([advice(found), price(*next(iter(found.items()))), ahead(found), on_top(found)])


if __name__ == "__main__":
    sets = complete()
    draw(sets, Path(sys.argv[1]))
    print(page(sets))
