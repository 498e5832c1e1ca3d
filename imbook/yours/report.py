"""The report of a trial: one HTML file that needs no other, and one PNG."""

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from imbook.yours import measure
from imbook.yours.look import ALIKE
from imbook.yours.pictures import batch_size

SHORT = 1000  # steps of a run, below which the report warns

STYLE = """
:root { color-scheme: light dark; --text: #1d2126; --back: #fff; --line: #d5d9de; --soft: #f3f5f7; --mark: #a8531f; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7ea; --back: #16191d; --line: #3a4048; --soft: #22272d; --mark: #f0a56b; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto;
  max-width: 60rem; padding: 1rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
td, th { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } tr.chosen { color: var(--mark); font-weight: 600; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.box { background: var(--soft); border-left: 4px solid var(--mark); padding: .6rem 1rem; }
pre { background: var(--soft); padding: .6rem; white-space: pre-wrap; } figure { margin: 1rem 0; }
figcaption { font-size: .9rem; opacity: .85; }
@media (max-width: 42rem) { figure { overflow-x: auto; } figure img { max-width: none; width: 32rem; } }
"""

def write(out: Path) -> Path:
    """Write report.html, report.png and result.json of a trial's folder from what is finished; the HTML's path.

    ValueError for a folder that holds no trial, or no finished run.
    """
    from imbook.yours import figures, trial

    out = Path(out)
    found = measure.result(out)
    trial.write(out / "result.json", json.dumps(found, indent=1, ensure_ascii=True).encode())
    trial.write(out / "report.png", _png(figures.overview(found, recommendation(found))))
    trial.write(out / "report.html", page(found).encode("utf-8", "replace"))
    return out / "report.html"


def page(found: dict[str, Any]) -> str:
    """The HTML text of a result."""
    name = Path(found["trial"]["path"]).name
    parts = [
        f"<h1>Trial of {escape(name)}</h1>", _recommendation(found), _looked(found), _split(found), _table(found),
        _decisions(found), _mistakes(found), _curve(found), _again(found),
    ]  # fmt: skip
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>Trial of {escape(name)}</title><style>{STYLE}</style>'
        f"</head><body>{''.join(parts)}</body></html>"
    )


def recommendation(found: dict[str, Any]) -> list[str]:
    """The recommendation and its reason, in plain sentences: a list."""
    rows = {row["name"]: row for row in found["rows"]}
    row, first = rows[found["chosen"]], rows[measure.FIRST]
    cost = "mean over classes" if found["per_class"] else "per picture"
    mean, low, high = row["difference"]
    use = f"Use {found['chosen']}: of the finalists it has"
    if high >= 0 and found["chosen"] != measure.FIRST:
        use = f"Nothing is clearly better than plain cross entropy. Of the finalists {found['chosen']} has"
    said = [
        f"{use} the lowest cost on validation pictures, {row['valid_cost']:.3f} ({cost}).",
        f"On the test pictures it costs {_with(row['cost'])}, plain cross entropy {_with(first['cost'])}.",
    ]
    if found["chosen"] == measure.FIRST:
        said.append("Nothing that was tried is clearly better than plain cross entropy.")
    elif high < 0:
        said.append(f"The difference is {_with(row['difference'])}: the interval excludes 0.")
    else:
        said.append(f"The difference is {_with(row['difference'])}: test pictures are too few to tell the two apart.")
    if row["seeds"] > 1 and found["chosen"] != measure.FIRST:
        less = sum(gap < 0 for gap in row["by_seed"])
        said.append(f"It costs less in {less} of {row['seeds']} training seeds; the interval leaves out their spread.")
    if found["simple"] != found["chosen"]:
        said.append(f"Simpler, and within one standard error of it on validation pictures: {found['simple']}.")
    steps = found["plan"]["epochs"] * -(-sum(found["train"]) // batch_size(sum(found["train"])))
    if steps < SHORT:
        said.append(
            f"Each run had {steps} steps. That is short: a method that repeats rare pictures may lead only because it "
            "learns them sooner. Before you decide, try more --epochs."
        )
    few = min(found["parts"]["test"])
    if few < 30:
        small = [name for name, many in zip(found["classes"], found["parts"]["test"]) if many == few]
        said.append(
            f"Class {' and '.join(small[:3])}{' and others' * (len(small) > 3)}: {few} test picture{'s' * (few != 1)}"
            f"{' each' * (len(small) > 1)}. So the recall is hardly known, and the intervals too narrow. Collect more."
        )
    return said


def _recommendation(found):
    begun = "".join(f"<p>{escape(line)}</p>" for line in recommendation(found))
    left = f"<p>Left out: {escape(', '.join(found['plan']['left_out']))}.</p>" if found["plan"]["left_out"] else ""
    weights = f"<p>Network: {escape(found['trial']['backbone'])}, {escape(found['plan']['weights'])}.</p>"
    return f'<div class="box">{begun}{weights}{left}</div>'


def _looked(found):
    look = found["look"]
    lines = [
        f"{look['files']} files, {look['looked']} of them examined; largest class over smallest: {look['ratio']:.1f}.",
        "Width {} to {} pixels (median {}), height {} to {} (median {}).".format(
            *(look["sizes"][k][j] for k in (0, 1) for j in (0, 2, 1))
        ),
        "Modes: " + ", ".join(f"{mode} {many}" for mode, many in look["modes"].items()) + ".",
        f"{len(look['unreadable'])} files cannot be read and are left out, {len(look['left_out'])} are no pictures of "
        f"a class, {len(look['odd'])} have odd sizes.",
        f"{len(look['duplicates'])} sets of exact duplicates (kept on one side of the split), {len(look['conflicts'])} "
        f"of them under several labels.",
        f"{len(look['near'])} pairs of pictures look alike (similarity from {ALIKE}), {found['near']['apart']} of them "
        "lie in two parts of the split. If they show one thing, give them one group (--groups), or remove one.",
    ]
    if len(look["near"]) > 0.05 * look["looked"]:
        lines.append("So many pairs say little: these pictures are too simple, or too small, for this test.")
    bad = "".join(f"<li>{escape(path)}: {escape(why)}</li>" for path, why in look["unreadable"][:10])
    text = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>What lies in the folder</h2><ul>{text}</ul><ul>{bad}</ul>{_page(found)}"


def _page(found):
    from imbook.yours import figures

    drawn = figures.findings(found["root"], measure.read_table(Path(found["out"]) / "files.csv"), found["look"])
    alt = "Pictures per class, widths and heights, samples of the classes, and the pairs that look most alike"
    below = "" if not found["near"]["first"] else " Look-alikes: " + "; ".join(
        f"{a} and {b}" for a, b, _ in found["near"]["first"]
    ) + "."  # fmt: skip
    return _figure(_png(drawn), alt, f"Samples come evenly from the files of each class.{below}")


def _split(found):
    from imbook.yours import figures

    groups = found["look"]["groups"]
    said = f"Groups: {groups}; all pictures of one group lie in one part. " if groups else "No groups were given. "
    said += (
        "Each part keeps the class frequencies of the data, the test part too. So accuracy is mostly about the large "
        "classes, balanced accuracy counts all classes alike, and F1 changes with the frequencies:"
    )
    frequencies = _rows(["test metric of the choice", *found["frequencies"]], [
        [key.replace("_", " "), *(f"{way[key]:.3f}" for way in found["frequencies"].values())]
        for key in ("accuracy", "balanced_accuracy", "macro_f1")
    ])  # fmt: skip
    random = ""
    if found["random"]:
        own, other = (found["random"][k]["balanced_accuracy"] for k in ("by groups", "at random"))
        random = (
            f"<p>A split at random would have claimed a balanced accuracy of {_with(other)} for cross entropy; "
            f"with groups kept whole it is {_with(own)}.</p>"
        )
    drawn = _drawn(figures.sizes, found, "Pictures per class in training, validation and test, on a logarithmic axis")
    return f"<h2>Split</h2><p>{escape(said)}</p>{frequencies}{random}{drawn}"


def _table(found):
    from imbook.yours import figures

    rows = sorted(found["rows"], key=lambda row: row["valid_cost"])
    header = ["method", "seeds", "validation cost", "test cost", "less cross entropy", "balanced accuracy", "accuracy",
              "macro F1"]  # fmt: skip
    lines = [
        [r["name"], str(r["seeds"]), f"{r['valid_cost']:.3f}", _with(r["cost"]), _with(r["difference"]),
         _with(r["balanced_accuracy"]), f"{r['accuracy'][0]:.3f}", f"{r['macro_f1'][0]:.3f}"]
        for r in rows
    ]  # fmt: skip
    at = [r["name"] for r in rows].index(found["chosen"])
    note = (
        "Brackets: 95 % intervals from a bootstrap over the groups of the test part; each row is the mean over seeds. "
        "Chosen on validation data alone. Adjusted logits subtract the log of the class shares; moved thresholds add "
        "one number per class, fitted to validation data; by cost: calibrated on validation data, then the decision of "
        "least expected cost."
    )
    recall = _rows(["recall", *found["classes"]], [[r["name"], *(_with(v) for v in r["recall"])] for r in rows], at)
    drawn = _drawn(figures.dots, found, "Test cost of every method with its interval; the chosen one in colour")
    return f"<h2>The methods compared</h2>{_rows(header, lines, at)}<p>{note}</p>{drawn}{recall}"


def _decisions(found):
    from imbook.yours import figures

    c = found["calibration"]
    said = (
        f"Calibration of the chosen method (seed {found['shown_seed']}, the median one): two numbers fitted on "
        f"validation data, slope {c['slope']:.2f} and prior shift {c['tau']:.2f}. Expected calibration error on test "
        f"{c['errors'][0]:.3f} before, {c['errors'][1]:.3f} after."
    )
    return (
        "<h2>Decisions</h2>" + _drawn(figures.confusion, found, "Confusion matrix of the chosen method on test data")
        + f"<p>{said}</p>" + _drawn(figures.calibration, found, "Share right against confidence, before and after")
    )  # fmt: skip


def _mistakes(found):
    from imbook.yours import figures

    if not found["mistakes"]:
        return "<h2>Worst mistakes</h2><p>None on the test pictures.</p>"
    paths = [m["path"] for m in found["mistakes"]]
    titles = [f"{m['true']} → {m['decided']}\n{100 * m['p']:.0f} %" for m in found["mistakes"]]
    listed = "".join(f"<li>{escape(p)}</li>" for p in paths)
    sheet = _png(figures.sheet(found["root"], paths, titles))
    caption = "Test pictures that were decided wrongly with the highest probability times cost: true → decided."
    return f"<h2>Worst mistakes</h2>{_figure(sheet, 'The worst mistakes', caption)}<ol>{listed}</ol>"


def curve_sentence(found: dict[str, Any]) -> str:
    """How many more pictures of the smallest class would buy as much as the choice: one sentence."""
    c = found["curve"]
    if c["gain"] <= 0:
        return "The choice gains nothing over plain cross entropy on the test part, so there is nothing to weigh."
    if c["more"] is None:
        return f"More pictures of {c['cls']} did not lower the cost here: the curve does not fall, so it says nothing."
    if c["more"] == float("inf"):
        return f"No number of pictures of {c['cls']} that one could collect would buy as much, by this curve."
    return (
        f"By this curve about {c['more']:.0f} more training pictures of {c['cls']} would lower the cost of plain cross "
        f"entropy as much as the choice does ({c['gain']:.3f}): one seed, three points, a sketch."
    )


def _curve(found):
    from imbook.yours import figures

    if not found["curve"]:
        return ""
    drawn = _drawn(figures.curve, found, "Test cost of cross entropy against the pictures of the smallest class")
    return f"<h2>More pictures instead?</h2><p>{escape(curve_sentence(found))}</p>{drawn}"


def _again(found):
    plan, versions = found["plan"], ", ".join(" ".join(pair) for pair in found["versions"].items())
    return (
        f"<h2>Run it again</h2><p>{plan['epochs']} epochs per run, {plan['size']} x {plan['size']} pixels, on "
        f"{plan['device']}; {versions}.</p><pre>{escape(found['command'])}</pre>"
    )


def _with(values):
    mean, low, high = values
    return "-" if np.isnan(mean) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _rows(header, lines, chosen=None):
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join(
        f"<tr{' class=chosen' if k == chosen else ''}>{''.join(f'<td>{escape(v)}</td>' for v in line)}</tr>"
        for k, line in enumerate(lines)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _drawn(draw, found, alt):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    draw(found, ax)
    return _figure(_png(figure), alt, "")


def _figure(png, alt, caption):
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">{below}</figure>'


def _png(figure):
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, bbox_inches="tight", format="png")
    plt.close(figure)
    return stream.getvalue()
