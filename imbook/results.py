"""One run, one record: plain data with its provenance. Saved atomically, loaded as a DataFrame, summarised with spread.

Records are committed below imbook/records, one compressed file a table;
`python -m imbook run` writes new ones elsewhere.
"""

import contextlib
import gzip
import hashlib
import json
import math
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

PACKAGE = Path(__file__).parent
RECORDS = PACKAGE / "records"
SEEDS = ["order_seed", "draw_seed", "train_seed"]


def rounded(value, digits=5):
    """Plain data with floats rounded to that many significant digits; tensors become lists. For compact records."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [rounded(v, digits) for v in value]
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


@cache
def source_hash():
    """sha256 of the package's Python files: 12 hexadecimal digits."""
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(
        b"".join(f.relative_to(PACKAGE).as_posix().encode() + f.read_bytes() for f in files)
    ).hexdigest()[:12]


def provenance(device):
    """Where and with what a run is made: a dict.

    Device name, threads, versions, commit, hash of the package's source, UTC time.
    """
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return dict(
        device=name,
        threads=torch.get_num_threads(),
        versions=dict(python=platform.python_version(), **{p: version(p) for p in ("torch", "torchvision", "numpy")}),
        commit=commit(),
        source=source_hash(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@cache
def commit():
    """The commit the package is checked out at, 12 hexadecimal digits; None outside a repository or without git."""
    with contextlib.suppress(OSError):  # no git on this machine
        git = subprocess.run(["git", "-C", PACKAGE, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        return git.stdout.strip() or None


def _processor():
    with contextlib.suppress(OSError, StopIteration):
        return next(s.split(":")[1].strip() for s in open("/proc/cpuinfo") if s.startswith("model name"))
    return platform.processor() or platform.machine()


def save(record, folder):
    """Write one record to folder/KEY.json, whole or not at all; returns the path."""
    path = Path(folder) / f"{record['key']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(record, separators=(",", ":"), allow_nan=True))
    os.replace(part, path)
    return path


def archive(records, path):
    """Write records into one compressed file, one a line, sorted by key: the same records give the same bytes."""
    records = [{k: v for k, v in r.items() if k != "file"} for r in records]  # `load` added it
    lines = "".join(
        json.dumps(r, separators=(",", ":"), sort_keys=True) + "\n" for r in sorted(records, key=lambda r: r["key"])
    )
    part = Path(path).with_suffix(f".{os.getpid()}.part")
    part.write_bytes(gzip.compress(lines.encode(), mtime=0))
    os.replace(part, path)


def load(folder=None):
    """All records, {key: record}: the package's, then those of `folder`; the latest of a key.

    folder: single files and archives. Raises ValueError naming the file where one cannot be read.
    """
    records = {}
    paths = sorted(RECORDS.glob("*.jsonl.gz"))
    if folder:  # by their whole endings: another worker may be writing an archive to a temporary name
        paths += sorted([*Path(folder).glob("*.json"), *Path(folder).glob("*.jsonl.gz")])
    for path in paths:
        try:
            text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
            for record in map(json.loads, text.splitlines()):
                if record["key"] not in records or record["time"] > records[record["key"]]["time"]:
                    records[record["key"]] = {**record, "file": path.name}
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} is not a readable record ({error!r}): remove it, and run its table again"
            ) from error
    return records


@contextlib.contextmanager
def claim(folder, key):
    """Hold the right to make one record; yields False where another worker on this file system holds it.

    The lock is the operating system's and ends with the process, however that ends.
    """
    import fcntl  # POSIX only, and only where runs are made

    path = Path(folder) / "locks" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def frame(table, folder=None, records=None):
    """The finished runs of a table: a DataFrame, one row a run, sorted by cell and seeds.

    table: an `imbook.experiments.Table`. Columns: label, order_seed, draw_seed, train_seed, every metric in per cent,
    seconds, stale (the method's mathematics has changed since), record (the whole record). A cell with a `reading` has
    the metrics, confusion and auprc of that reading, in the record as well; `one_each` drops such repeats of a run.
    """
    from imbook.methods import METHODS

    records = load(folder) if records is None else records
    found = [
        {
            "label": cell.label,
            **{f"{k}_seed": v for k, v in seeds.items()},
            **{k: 100 * v for k, v in r["metrics"].items()},
            "seconds": r["seconds"],
            "stale": r["method_version"] != METHODS[cell.method].version,
            "record": r,
        }
        for cell in table.cells
        for seeds in table.seeds
        if (r := _read(records.get(cell.key(seeds)), cell.reading)) is not None and not r["dry"]
    ]
    return pd.DataFrame(found, columns=None if found else ["label", *SEEDS, table.metric, "seconds", "stale", "record"])


def _read(record, reading):
    return record if record is None or reading is None else {**record, **record["readings"][reading]}


def one_each(runs):
    """The rows of `frame` without those whose run stands there already, under another label."""
    return runs[~runs["record"].map(lambda r: r["key"]).duplicated()]


def curves(runs):
    """The curves of the runs of `frame`, long: one row a run and evaluated epoch, with label and seeds beside it."""
    return pd.DataFrame(
        {**run[["label", *SEEDS]], **row, "run": run["record"]["key"]}
        for _, run in runs.iterrows()
        for row in run["record"]["curve"]
    )


def by_attribute(runs):
    """Class-balanced accuracy of each label of an image, long: one row a run and label.

    runs: `frame`. Columns: label (the row's), the seeds, attribute (0, 1, ...: which label of the image), ratio
    (largest over smallest training class), balanced_accuracy and least_recall (that of the worst class), in per cent.
    The mean of balanced_accuracy over the attributes is that of `frame`. Source: equations 17 and 18 of the paper of
    `imbook.methods.crl`; chapter 04.
    """
    from imbook.metrics import recall

    rows = []
    for _, run in runs.iterrows():
        n = run["record"]["n"]
        for j, n_j in enumerate(n if isinstance(n[0], list) else [n]):
            by_class = recall(run["record"]["confusion"][j])
            rows.append(
                {
                    **run[["label", *SEEDS]],
                    "attribute": j,
                    "ratio": max(n_j) / min(n_j) if min(n_j) else float("inf"),
                    "balanced_accuracy": 100 * by_class.nanmean().item(),
                    "least_recall": 100 * by_class[~by_class.isnan()].min().item(),
                }
            )
    return pd.DataFrame(rows)


def minority_majority(runs):
    """Precision, recall, F1 and AUPRC averaged over the minority and over the majority classes, one row a run.

    runs: `frame`, of one label an image. Columns: label, the seeds, minority_precision, ..., majority_auprc, in per
    cent; nan where there is no such class. A class is of the minority where it has at most half as many training images
    as the middle class (`imbook.methods.dos.small_classes`). ValueError where a 'reduced' split reduces another number
    of classes. Source: the tables of Ando and Huang 2017; chapter 06.
    """
    import torch

    from imbook import metrics
    from imbook.methods.dos import small_classes

    rows = []
    for _, run in runs.iterrows():
        r = run["record"]
        n, matrix = torch.tensor(r["n"]), torch.tensor(r["confusion"][0])
        small = small_classes(n)
        if r["split"].get("profile") == "reduced" and small.sum() != r["split"]["reduce"]:
            raise ValueError(
                f"{r['key']}: {int(small.sum())} classes have at most half of the images of the middle one, but "
                f"{r['split']['reduce']} were reduced: raise the share, so that it can be seen which they are"
            )
        by_class = dict(
            precision=metrics.precision(matrix),
            recall=metrics.recall(matrix),
            f1=metrics.f1(matrix),
            auprc=torch.tensor(r["auprc"][0]),
        )
        sides = (("minority", small), ("majority", ~small))
        values = {f"{side}_{k}": 100 * v[of].nanmean().item() for side, of in sides for k, v in by_class.items()}
        rows.append({**run[["label", *SEEDS]], **values})
    return pd.DataFrame(rows)


def progress(runs):
    """How training goes for small and for large classes: a row a run and evaluated epoch.

    runs: `frame`, of one label an image. Columns: label, the seeds, epoch; then, as means over the classes of a side,
    minor (at most as many training images as the lower median) or major (more): train_minor, train_major, test_minor,
    test_major (recall in per cent), gap_minor, gap_major (train less test, in points). Of cells with an `instrument`
    also gradient_minor, gradient_major (mean norm of dL/dz), gradient_ratio (minor over major), gradient_imbalance (the
    absolute log2 of that) and minor_as_major (share of a minor class's training images that are predicted as some major
    class, in per cent). ValueError where all classes are equally large. Source: the claims of Ye et al. 2021; chapter
    07.
    """
    import torch

    rows = []
    for _, run in runs.iterrows():
        n = torch.tensor(run["record"]["n"])
        major = n > n.median()
        if not major.any():
            raise ValueError(f"{run['record']['key']}: no class is larger than the middle one, so none is major")
        sides = {"minor": ~major, "major": major}
        for row in run["record"]["curve"]:
            by_class = {of: 100 * torch.tensor(row[of]) for of in ("train", "test")}
            if "gradient" in row:
                by_class["gradient"] = torch.tensor(row["gradient"])
            values = {f"{of}_{s}": v[there].mean().item() for of, v in by_class.items() for s, there in sides.items()}
            values |= {f"gap_{s}": values[f"train_{s}"] - values[f"test_{s}"] for s in sides}
            if "gradient" in row:
                ratio = values["gradient_ratio"] = values["gradient_minor"] / values["gradient_major"]
                values["gradient_imbalance"] = abs(math.log2(ratio)) if ratio > 0 else math.inf
                matrix = torch.tensor(row["train_confusion"], dtype=torch.float64)
                values["minor_as_major"] = 100 * (matrix[:, major].sum(1) / matrix.sum(1))[~major].mean().item()
            rows.append({**run[["label", *SEEDS]], "epoch": row["epoch"], **values})
    return pd.DataFrame(rows)


def chosen(table, method, folder=None, records=None):
    """The hyper-parameters of a method that do best on the validation images at the last epoch: a dict, or None while
    runs of its cells are missing.

    table: an `imbook.experiments.Table` that holds a grid; method: a name of `imbook.methods.METHODS`. Best is the
    highest mean recall, over the validation classes and the cell's runs; of equals the first. Nothing is read of the
    test images.
    """
    records, best = load(folder) if records is None else records, (-1.0, None)
    for cell in (c for c in table.cells if c.method == method):
        runs = [records.get(cell.key(seeds)) for seeds in table.seeds]
        if None in runs:
            return None
        last = [r["curve"][-1]["valid"] for r in runs]
        best = max(best, (sum(sum(v) / len(v) for v in last) / len(last), cell.hyper), key=lambda pair: pair[0])
    return best[1]


def facts():
    """The numbers of the papers that are known, {key: dict(value, mark, source)}; see the book's provenance page."""
    return json.loads((RECORDS / "paper_facts.json").read_text())


def provenance_table(tables):
    """Where the committed records come from: a Markdown table, a row an experiment table and device.

    tables: {name: Table}.
    """
    records = load()
    lines = [
        "| table | runs | device | threads | torch | python | core hours | from | to |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, table in tables.items():
        runs = list(one_each(frame(table, records=records))["record"])
        groups = {}
        for r in runs:
            groups.setdefault((r["device"], r["threads"], r["versions"]["torch"], r["versions"]["python"]), []).append(
                r
            )
        for where, some in groups.items():
            hours = sum(r["seconds"] * r["threads"] for r in some) / 3600
            days = sorted(r["time"][:10] for r in some)
            cells = [name, f"{len(some)} of {len(table.runs())}", *where, f"{hours:.2f}", days[0], days[-1]]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        if not runs:
            lines.append(f"| {name} | 0 of {len(table.runs())} | pending |" + " |" * 6)
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Summaries and verdicts. The rules are fixed here, before the runs, and every chapter uses them.


def summary(table, folder=None, records=None):
    """One row a cell: a DataFrame.

    Runs done of those planned, mean and sd over the runs, the paper's number with its mark, the verdict.
    """
    runs, known = frame(table, folder, records), facts()
    rows = []
    for cell in table.cells:
        values = runs.loc[runs["label"] == cell.label, table.metric]
        fact = known[cell.fact] if cell.fact else {}
        rows.append(
            {
                "label": cell.label,
                "done": len(values),
                "planned": len({cell.key(s) for s in table.seeds}),
                "mean": values.mean(),
                "sd": values.std(),
                "paper": fact.get("value"),
                "mark": fact.get("mark", ""),
                "verdict": reproduction(fact.get("value"), values),
            }
        )
    return pd.DataFrame(rows).set_index("label")


def reproduction(paper, values):
    """The verdict on one number of a paper, in points: a string.

    'reproduced': within 1 point of the mean of our runs, or inside their 95 % t-interval; 'within x points': within 3,
    x rounded up; else 'not reproduced'. 'not available' without the paper's number, 'pending' without runs.
    """
    if paper is None:
        return "not available"
    if not len(values):
        return "pending"
    gap = abs(values.mean() - paper)
    if gap <= max(1, _half_width(values)):
        return "reproduced"
    return f"within {int(-(-gap // 1))} points" if gap <= 3 else "not reproduced"


def compare(runs, baseline, metric="balanced_accuracy"):
    """Differences to one row, paired over the seeds: a DataFrame, one row a label.

    Columns: n (pairs), difference, low, high (95 % t-interval), resolves (half that interval: the smallest difference
    this n can tell from none), p (Wilcoxon signed rank, two-sided), p_holm (corrected over the rows), verdict
    (`claim_verdict`).
    Raises ValueError where the baseline has no runs.
    """
    wide = runs.pivot_table(index=SEEDS, columns="label", values=metric, sort=False)
    if baseline not in wide:
        raise ValueError(f"no runs of {baseline!r}: choose from {list(wide)}")
    if len(wide.columns) == 1:
        raise ValueError(f"only {baseline!r} has runs: there is nothing to compare it with")
    others = wide.columns.drop(baseline)
    table = pd.DataFrame([_paired(wide[label] - wide[baseline]) for label in others], index=others)
    table["p_holm"] = _holm(table["p"])
    table["verdict"] = [claim_verdict(*row) for row in table[["n", "low", "high", "p_holm"]].itertuples(index=False)]
    return table


@dataclass(frozen=True)
class Claim:
    """A claim about some tables: that a sum over their runs is above a number, in the mean over the seeds.

    number: claims of one number whose first terms are of one table are corrected together. terms: (sign, table, label,
    column) or (sign, table, label, column, when), added up for each set of seeds. column: a metric of `frame`, or a
    column of `progress`, then a mean over the epochs of when: 'early' (the first tenth), 'all' or 'last'. above: the
    number.
    """

    number: int
    text: str
    terms: tuple[tuple, ...]
    above: float = 0.0


def judge(claims, frames):
    """What the records say of some claims: a DataFrame, one row a claim.

    claims: `Claim`s; frames: {table: `frame`}. Columns: number, claim, n (sets of seeds with all runs), difference
    (mean of the sum less `above`), low, high, resolves, p as in `compare`, p_holm (corrected over the claims of a
    number and table) and verdict (`claim_verdict`).
    """
    rows, once = [], cache(lambda table: progress(frames[table]))
    for claim in claims:
        values = sum(term[0] * _one_number(frames, once, *term[1:]) for term in claim.terms)
        rows.append(dict(number=claim.number, claim=claim.text, **_paired(values - claim.above)))
    table = pd.DataFrame(rows)
    together = [table["number"], [claim.terms[0][1] for claim in claims]]
    table["p_holm"] = table.groupby(together)["p"].transform(_holm)
    table["verdict"] = [claim_verdict(*row) for row in table[["n", "low", "high", "p_holm"]].itertuples(index=False)]
    return table


def _one_number(frames, progress_of, table, label, column, when=None):
    """A number for each set of seeds of a row: a Series, empty where nothing has run."""
    runs = frames[table][frames[table]["label"] == label]
    if when is None or runs.empty:
        return runs.set_index(SEEDS).reindex(columns=[column])[column].astype(float)
    rows = progress_of(table)
    last = rows["epoch"].max()
    between = {"early": (1, last / 10), "all": (1, last), "last": (last, last)}[when]
    return rows[(rows["label"] == label) & rows["epoch"].between(*between)].groupby(SEEDS)[column].mean()


def _paired(d):
    """Mean of the differences d, their 95 % t-interval and the signed-rank test, of those that are there."""
    from scipy.stats import wilcoxon

    d = d.dropna()
    half, p = _half_width(d), wilcoxon(d).pvalue if (d != 0).any() else 1.0
    mean = d.mean()
    return dict(n=len(d), difference=mean, low=mean - half, high=mean + half, resolves=half, p=p)


def _holm(p):
    by_p = p.sort_values()
    return (by_p * list(range(len(by_p), 0, -1))).cummax().clip(upper=1)


def claim_verdict(n, low, high, p_holm):
    """Whether 'better than the baseline' holds: a string.

    'holds' where the whole interval is above 0 and p_holm < 0.05, else 'does not hold'. 'reversed' where it holds the
    other way round; 'not tested' with fewer than 6 pairs, where no signed-rank test can reach 0.05.
    """
    if n < 6:
        return "not tested"
    if p_holm < 0.05 and (low > 0 or high < 0):
        return "holds" if low > 0 else "reversed"
    return "does not hold"


def _half_width(values):
    from scipy.stats import t

    n = len(values)
    return t.ppf(0.975, n - 1) * values.std() / n**0.5 if n > 1 else float("nan")
