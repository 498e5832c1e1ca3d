"""Print what a step costs on each device, from imbook/records/steps-*.json, for book/_generated/step-costs.md.

The records are written by benchmarks/step.py, whose folder must be on the path. The estimate for a T4 uses the FLOP and
bytes that it counts.
"""

import json
from pathlib import Path

from step import PEAKS

from imbook.data import long_tailed_counts
from imbook.tables.common import CIFAR_200

IMAGES = int(sum(long_tailed_counts(5000, 100, 10)))  # of long-tailed CIFAR-10, ratio 100: the run that is estimated


def rows(header, lines):
    """A Markdown table: a list of names and lists of cells; None and "-" become an empty cell's dash."""
    show = lambda v: "–" if v in (None, "-") else f"{v:.3g}" if isinstance(v, float) else str(v)  # noqa: E731
    table = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join("| " + " | ".join(map(show, line)) + " |" for line in table)


def stages(record):
    """The way from the slow twin to the fastest loop, a table a network."""
    parts = []
    for name in networks(record):
        lines = [[s["stage"], s["ms a step"], s["gain"]] for s in record[name]["stages"]]
        lines[0][0] = lines[0][0].replace(" 1 workers", " 1 worker")
        parts += [f"**{name}**, batch {record['batch']}, images: {record[name]['data']}"]
        parts += [rows(["stage", "ms a step", "gain (×)"], lines)]
    return parts


def methods(record):
    """A step of every method over that of cross entropy, a column a network."""
    names = networks(record)
    of = {(line["network"], line["method"]): line for line in record["table"]}
    header = ["method", *(f"{name}: {what}" for name in names for what in ("ms a step", "over cross entropy"))]
    lines = []
    for method in dict.fromkeys(line["method"] for line in record["table"]):
        cells = [of[name, method] for name in names]
        quick = [c["plain"] if isinstance(c["fast"], str) else c["fast"] for c in cells]
        lines.append([method, *(v for c, ms in zip(cells, quick) for v in (ms, c["over CE's"]))])
    return rows(header, lines)


def networks(record):
    return [name for name in ("lenet", "resnet32") if name in record]


def estimate(records):
    """Minutes of a run on a T4, from the counted work of a step of ResNet-32; None without such a record."""
    lines = [line for r in records for line in r["table"] if line["network"] == "resnet32"]
    counted = [line for line in lines if line["method"] == "CrossEntropy"]
    if not counted:
        return None
    flop, moved = 1e9 * counted[0]["GFLOP"], 1e9 * counted[0]["GB"]
    number = CIFAR_200.epochs * -(-IMAGES // CIFAR_200.batch)
    compute, traffic = (number * work / (1e12 * peak) / 60 for work, peak in zip((flop, moved), PEAKS["T4"]))
    return (
        "## A T4, estimated\n\n"
        f"No T4 was at hand. A step of ResNet-32 with cross entropy at batch {counted[0]['batch']} is "
        f"{flop / 1e9:.1f} GFLOP and, unfused, moves {moved / 1e9:.2f} GB. A run of {number:,} steps (long-tailed "
        f"CIFAR-10, ratio 100, {CIFAR_200.epochs} epochs) then needs {compute:.1f} minutes of arithmetic at the T4's "
        f"peak in float32, and {traffic:.1f} minutes of memory traffic if nothing is fused and no cache helps. That is "
        "the least. Neither peak is reached in practice: our guess is twice the larger of the two, "
        f"{2 * max(compute, traffic):.0f} minutes."
    )


def page(root):
    """The Markdown text."""
    parts = ["<!-- Generated from the records by `make generated`. Do not edit. -->"]
    paths = sorted(root.glob("imbook/records/steps-*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    for r in records:
        parts += [f"## {r['device'].strip()}, {r['threads']} {'thread' if r['threads'] == 1 else 'threads'}"]
        parts += [f"torch {r['versions']['torch']}, python {r['versions']['python']}, {r['time'][:10]}"]
        parts += ["### Stage by stage", *stages(r), "### Method by method", methods(r)]
    if not any("NVIDIA" in r["device"] for r in records):
        parts += ["## A GPU", "Pending: nothing has been measured on a GPU yet."]
    return "\n\n".join([*parts, *filter(None, [estimate(records)])]) + "\n"


if __name__ == "__main__":
    print(page(Path(__file__).resolve().parents[1]), end="")
