"""Print what the book found, in one paragraph for the landing page, and draw its figure.

    python tools/found.py book/_static/found.png > book/_generated/found.md

Words and numbers follow from the committed records; a set of data is named once all its runs are there.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402

from imbook import plots, records, results, verdicts  # noqa: E402
from imbook.tables import TABLES, rivals  # noqa: E402

FREE, MOVED = "logit adjustment", "moved thresholds"
SIMPLE = (MOVED, "balanced softmax", "re-trained classifier", "class weights", "over-sampling",
          "tau-normalisation", "focal loss", "mixup", "CDT", "label smoothing", "cross entropy")  # fmt: skip
METHODS = ("CRL", "CDB", "DOS", "MFW")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
IN_WORDS = {MOVED: "one moved threshold per class, fitted on validation images",
            "mixup": "mixup (which trains on blends of two images)"}  # fmt: skip


def complete(ratio=100):
    """{title: runs} of the sets of one ratio, largest to smallest class, with all seeds of all rows."""
    have, found = records.load(), {}
    for name, (title, _) in rivals.SETS.items():
        table = TABLES.get(f"rivals-{name}-{ratio}")
        runs = None if table is None else results.frame(table, records=have)
        if runs is not None and len(runs) == len(table.rows) * len(table.seeds):
            found[title] = runs
    if not found:
        raise SystemExit(f"no table of the rivals is complete: run `python -m imbook run rivals-fashion-lt-{ratio}`")
    return found


def gaps(runs):
    """Paired differences to logit adjustment, all tuned, the best first."""
    own = runs[runs["label"].isin([FREE, *SIMPLE, *METHODS])]
    return verdicts.compare(own, FREE).sort_values("difference", ascending=False)


def gain(runs):
    """Logit adjustment less cross entropy, tested alone."""
    return verdicts.between(runs[runs["label"].isin([FREE, "cross entropy"])], FREE, "cross entropy")


def listed(words):
    """'a', 'a and b', 'a, b and c'."""
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last


def against(verdict):
    """What the four published methods are to logit adjustment, in words."""
    behind = [m for m in METHODS if verdict.loc[m, "verdict"] == "reversed"]
    level = [m for m in METHODS if verdict.loc[m, "verdict"] == "does not hold"]
    if len(behind) == len(METHODS):
        return f"it was ahead of all four published methods ({listed(METHODS)})"
    if len(behind) + len(level) < len(METHODS) or not behind:
        raise SystemExit("a published method is ahead of logit adjustment, or none behind it: write this sentence anew")
    return f"it was ahead of {listed(behind)} and not told apart from {listed(level)}"


def advice(found):
    """What to do first, and what it was ahead of on which set. SystemExit where the records do not carry it."""
    for title, runs in found.items():
        if gain(runs)["verdict"] != "holds":
            raise SystemExit(f"{title}: {FREE} is not ahead of cross entropy, so the landing page may not advise it")
    each = {title: against(gaps(runs)) for title, runs in found.items()}
    where = {k: places([t for t, own in each.items() if own == k], found) for k in dict.fromkeys(each.values())}
    return (
        "**Start with logit adjustment: subtract the log of the class sizes from a trained network's outputs (its "
        "logits, before the softmax).** "
        f"With a factor on that log chosen on validation images, {'; '.join(f'on {t} {k}' for k, t in where.items())}. "
        "The methods are in our versions, tuned by the same rule; the largest class has 100 times the images of the "
        "smallest."
    )


def named(title):
    name, kind = title.split(", ")
    return f"{kind} {name}"


def places(titles, found):
    """Some of the sets in words: 'all four sets', 'both MNIST sets', 'long-tailed MNIST'."""
    if len(titles) == len(found) > 2:
        return f"all {NUMBERS[len(found)]} sets"
    by_name = {}
    for title in titles:
        by_name.setdefault(title.split(", ")[0], []).append(named(title))
    return listed([f"both {name} sets" if len(own) == 2 else own[0] for name, own in by_name.items()])


def price(title, runs):
    """What the rare classes gain and the common ones pay, on one set."""
    shown = results.mean_sd(runs, ["head", "tail"], digits=0)
    plain, once = (shown.loc[label] for label in ("cross entropy", f"{FREE}, untuned"))
    return (
        f"Without the factor, on {named(title)}, it finds {once['tail']} % of the images of the three rarest classes, "
        f"where cross entropy finds {plain['tail']} %; the four largest classes pay for it, with {once['head']} "
        f"instead of {plain['head']} % (mean ± standard deviation, {runs['label'].value_counts().max()} runs of a "
        "small network)."
    )


def ahead(found):
    """The rows that are ahead of logit adjustment by themselves: least to largest difference, and on which sets."""
    told = {}
    for title, runs in found.items():
        verdict = gaps(runs).round(1)
        for label, line in verdict[verdict["verdict"] == "holds"].iterrows():
            told.setdefault(label, {})[title] = line["difference"]
    rows = []
    for label, gain in told.items():
        ends = list(dict.fromkeys(f"{end(gain.values()):.1f}" for end in (min, max)))
        rows.append(f"{IN_WORDS.get(label, label)}, by {' to '.join(ends)} points on {places(list(gain), found)}")
    return (
        f"Alone, ahead of logit adjustment with its factor: {'; '.join(rows)}."
        if rows
        else "No method alone was ahead of logit adjustment with its factor."
    )


def on_top(found):
    """Which methods are ahead of logit adjustment with adjusted logits of their own, all tuned, and which behind."""
    rows = [f"{family} + adjusted logits" for family in rivals.ON_TOP]
    told, behind = {}, {}
    for title, runs in found.items():
        compared = verdicts.compare(runs[runs["label"].isin([FREE, *rows])], FREE).round(1)  # as chapter 08 rounds
        for label, line in compared.iterrows():
            family, gain = label.split(" + ")[0], line["difference"]
            if line["verdict"] == "holds":
                told.setdefault(family, {})[title] = gain
            elif line["verdict"] == "reversed":
                behind.setdefault(family, []).append(title)
    order = sorted(told, key=lambda family: -max(told[family].values()))
    where = {places(list(told[family]), found): [] for family in order}
    for family in order:
        gains = listed([f"{gain:.1f}" for gain in told[family].values()])
        where[places(list(told[family]), found)].append(f"{IN_WORDS.get(family, family)} by {gains}")
    none = [title for title in found if not any(title in gain for gain in told.values())]
    said = [f"on {sets} {listed(gains)} points" for sets, gains in where.items()]
    said += [f"on {places(none, found)} nothing was"] if none else []
    lost = [f"{family} on {places(sets, found)}" for family, sets in behind.items()]
    text = f"With the log subtracted from a method's own outputs, ahead of it were: {'; '.join(said)}."
    return f"{text} Behind it, with the log subtracted, were {listed(lost)}." if lost else text


def milder(found, mild):
    """What remains at ratio 10, with the settings of ratio 100."""
    few, many = ([f"{gain(of[title])['difference']:.1f}" for title in mild] for of in (mild, found))
    behind = [title for title, runs in mild.items() if gaps(runs)["verdict"][MOVED] == "reversed"]
    alone = ahead(mild) + (f" Moved thresholds were behind it on {places(behind, mild)}." if behind else "")
    text = (
        f"Where the largest class has only ten times the images of the smallest ({places(list(mild), mild)}, in the "
        "order of the figure, with the settings chosen at ratio 100), logit adjustment with its factor gains "
        f"{listed(few)} points over cross entropy (at ratio 100: {listed(many)}). {alone} {on_top(mild)}"
    )
    return text.replace(IN_WORDS["mixup"], "mixup")  # explained above


def cells():
    """The exception: what the two trials on blood cells of chapter 09 found of the platelets."""
    brief, longer = (
        json.loads((records.RECORDS / f"{name}.json").read_text()) for name in ("yours-bccd", "yours-bccd-30")
    )
    rows = "cross entropy", "cross entropy, adjusted logits", "cross entropy, moved thresholds", "over-sampling"
    each = [{r["name"]: r for r in trial["rows"]} for trial in (brief, longer)]
    times, rest = divmod(longer["plan"]["epochs"], brief["plan"]["epochs"])
    plain, _, moved, repeated = (100 * each[0][row]["recall"][0][0] for row in rows)
    later, _, later_moved = (100 * each[1][row]["recall"][0][0] for row in rows[:3])
    between = [of[rows[1]]["difference"] for of in each]  # mean, low, high, to cross entropy
    as_told = all(low <= 0 <= high for _, low, high in between) and later_moved > later > repeated > moved > plain
    seeds, *others = {of[row]["seeds"] for of in each for row in rows[:3]} | {each[0][rows[3]]["seeds"]}
    if not as_told or rest or others or brief["classes"][0] != "Platelets":
        raise SystemExit("the trials on blood cells found something else: write this sentence anew")
    return (
        f"On blood cells ({seeds} seeds) no gain of adjusted logits was found. In a short trial moved thresholds found "
        f"{moved:.0f} % and over-sampling {repeated:.0f} % of the platelets where cross entropy found {plain:.0f} %; "
        f"trained {times} times as long, cross entropy found {later:.0f} %, and with moved thresholds "
        f"{later_moved:.0f} %."
    )


def draw(found, path):
    """A panel for each set, the rows in the order of their mean over the sets."""
    each = {title: gaps(runs) for title, runs in found.items()}
    mean: pd.Series = pd.DataFrame({title: gap["difference"] for title, gap in each.items()}).mean(axis=1)
    order, lines = mean.sort_values(ascending=False).index, (len(each) + 1) // 2
    size = dict(figsize=(8, 3.8 * lines + 0.4), layout="constrained")
    figure, axes = plt.subplots(lines, 2, sharey=True, squeeze=False, **size)
    for ax, (title, gap) in zip(axes.flat, each.items()):
        plots.differences(gap.loc[order], ax, "points", rule=True)
        ax.set_title(title, fontsize=10)
    for ax in axes.flat[len(each) :]:
        ax.axis("off")
    figure.suptitle(f"Balanced accuracy less that of {FREE}", fontsize=11)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def page(found, mild):
    first, second = (advice(found), price(*next(iter(found.items())))), (ahead(found), on_top(found))
    return "\n\n".join([" ".join(first), " ".join(second), milder(found, mild), cells()])


if __name__ == "__main__":
    sets = complete()
    draw(sets, Path(sys.argv[1]))
    print(page(sets, complete(10)))
