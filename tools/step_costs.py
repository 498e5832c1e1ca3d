"""Print what a step costs on each device, from imbook/records/steps-*.json, for book/_generated/step-costs.md.

The records are written by benchmarks/step.py, whose folder must be on the path. The estimate for a T4 uses the FLOP and
bytes that it counts.
"""

import json
from pathlib import Path

from step import PEAKS

from imbook.data import long_tailed_counts
from imbook.tables.common import CIFAR_200

BY_HAND = """## One H100, measured by hand

Measured by hand on one H100 80GB (torch 2.11, 2 CPU cores), 2026-11-27, until `steps-h100.json` exists. ResNet-32 on
CIFAR-10, whole steps: augmentation, forward, backward, SGD; medians over seconds of running.

| loop | ms a step, batch 128 | batch 32 |
| --- | ---: | ---: |
| plain loop, TF32 | 15.5 | – |
| a step as one CUDA graph, channels_last, TF32 | 3.9 to 4.4 | 2.3 |
| bfloat16 | 3.1 to 3.4 | 2.0 |
| bfloat16, residual blocks through torch.compile | 2.76 | – |
| bfloat16 in the contiguous format instead of channels_last | 6.9 | – |

Several processes at once, bfloat16, batch 128: milliseconds per step of all together.

| processes | multi-process service | ms a step |
| --- | ---: | ---: |
| 4 | without | 3.2 |
| 4 | with | 1.88 |
| 4, compiled blocks | with | 1.65 |
| 5, whole runs with evaluation and loading | with | about 2.0 |

A single small network leaves most of such a card idle: 16 channels fill a tensor core badly, and a step of a bfloat16
graph is 612 kernels. Processes side by side help only where the multi-process service lets their kernels overlap.
"""
IMAGES = int(sum(long_tailed_counts(5000, 100, 10)))  # of long-tailed CIFAR-10, ratio 100: the run that is estimated


def rows(header, lines):
    """A Markdown table: a list of names and lists of values; None and "-" become a dash."""
    show = lambda v: "–" if v in (None, "-") else f"{v:.3g}" if isinstance(v, float) else str(v)  # noqa: E731
    table = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join("| " + " | ".join(map(show, line)) + " |" for line in table)


def chain(record):
    """The way from the slow twin to the fastest loop, one table per network."""
    parts = []
    for name in networks(record):
        lines = [[s["row"], s["ms a step"], s["gain"]] for s in record[name]["chain"]]
        lines[0][0] = lines[0][0].replace(" 1 workers", " 1 worker")
        parts += [f"**{name}**, batch {record['batch']}, images: {record[name]['data']}"]
        parts += [rows(["loop", "ms a step", "gain (×)"], lines)]
        several = [
            [p["processes"], "with" if p["service"] else "without", p["ms a step"]]
            for p in record[name].get("processes", [])
        ]
        if several:
            parts += [
                f"Several processes at once, {record[name]['precision']}: milliseconds per step of all together.",
                rows(["processes", "multi-process service", "ms a step"], several),
            ]
    return parts


def methods(record):
    """A step of every method over that of cross entropy, two columns per network."""
    names = networks(record)
    of = {(line["network"], line["method"]): line for line in record["table"]}
    header = ["method", *(f"{name}: {what}" for name in names for what in ("ms a step", "over cross entropy"))]
    lines = []
    for method in dict.fromkeys(line["method"] for line in record["table"]):
        found = [of.get((name, method)) for name in names]  # None where the time was over before
        quick = [f and (f["plain"] if isinstance(f["fast"], str) else f["fast"]) for f in found]
        lines.append([method, *(v for f, ms in zip(found, quick) for v in (ms, f and f["over CE's"]))])
    return rows(header, lines)


def networks(record):
    return [name for name in ("lenet", "resnet32") if record.get(name, {}).get("chain")]


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
        parts += ["### From the tutorial's loop to this book's", *chain(r)]
        parts += ["### Method by method", methods(r)] if r["table"] else []
    if not any("NVIDIA" in r["device"] for r in records):
        parts += [BY_HAND]
    return "\n\n".join([*parts, *filter(None, [estimate(records)])]) + "\n"


if __name__ == "__main__":
    print(page(Path(__file__).resolve().parents[1]), end="")
