"""Records as tables: what the chapters call to read the runs. Comparisons of rows are in `imbook.verdicts`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from imbook.records import load

if TYPE_CHECKING:
    from imbook.rows import Table

SEEDS = ["order_seed", "draw_seed", "train_seed"]
PARTS = ["head", "middle", "tail"]


def frame(
    table: "Table", folder: str | Path | None = None, records: dict[str, dict[str, Any]] | None = None
) -> pd.DataFrame:
    """The finished runs of a table: a DataFrame with one row per run, in the order of its rows and seeds.

    table: an `imbook.experiments.Table`. Columns: label, method, order_seed, draw_seed, train_seed; every metric in per
    cent; head, middle, tail (mean recall of the thirds of the classes by size, see `imbook.data.head_middle_tail`),
    train and valid (class-balanced accuracy on the training and the validation images after the last epoch), all in per
    cent and nan where the run has none; train_seconds (of training alone), seconds, peak_mb; stale (the method's
    mathematics has changed since: `run` makes it again, comparisons refuse it); record (the whole record).
    A row with a `reading` has the metrics, confusion and auprc of that reading, in the record as well; `one_each` drops
    such repeats of a run.
    """
    from imbook.methods import METHODS

    records = load(folder) if records is None else records
    found = [
        {
            "label": row.label,
            "method": row.method,
            **{f"{k}_seed": v for k, v in seeds.items()},
            **{k: 100 * v for k, v in r["metrics"].items()},
            **_by_size(r),
            **{of: _balanced(r[of] if of in r else r["curve"][-1].get(of)) for of in ("train", "valid")},
            **{k: r.get(k) for k in ("train_seconds", "seconds", "peak_mb")},
            "stale": r["method_version"] != METHODS[row.method].version,
            "record": r,
        }
        for row in table.rows
        for seeds in table.seeds
        if (r := _read(records.get(row.key(seeds)), row.reading)) is not None and not r["dry"]
    ]
    columns = ["label", "method", *SEEDS, table.metric, *PARTS, "train", "valid", "seconds", "stale", "record"]
    return pd.DataFrame(found, columns=None if found else columns)


def _read(record: dict[str, Any] | None, reading: str | None) -> dict[str, Any] | None:
    """The record with the results of a reading in the place of its own; nan for what was not measured of it."""
    if record is None or reading is None:
        return record
    return {**record, "train": None, "valid": None, **record["readings"][reading]}


def _by_size(record: dict[str, Any]) -> dict[str, float]:
    """Mean recall of head, middle and tail in per cent; nan for several labels per image."""
    from imbook.data import head_middle_tail
    from imbook.metrics import recall

    if isinstance(record["n"][0], list):
        return dict.fromkeys(PARTS, math.nan)
    by_class, part = 100 * recall(record["confusion"][0]), head_middle_tail(record["n"])
    return {name: by_class[part == k].nanmean().item() for k, name in enumerate(PARTS)}


def _balanced(by_class: Any) -> float:
    """Mean of the recalls that a curve holds, in per cent; classes without images are nan there and do not count."""
    return math.nan if by_class is None else 100 * _mean_of(by_class)


def _mean_of(value: Any) -> float:
    if not isinstance(value, list):
        return value
    return pd.Series([_mean_of(v) for v in value], dtype=float).mean()


def fresh(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs as they are; ValueError where one is stale, as its method computes something else today.

    A table that a reader derived from a frame has no column `stale`: what makes such tables here checks beforehand.
    """
    if "stale" in runs and runs["stale"].any():
        labels = ", ".join(dict.fromkeys(runs.loc[runs["stale"], "label"]))
        raise ValueError(
            f"{int(runs['stale'].sum())} runs are of an older version of their method ({labels}): make them again with "
            "`python -m imbook run TABLE`, or leave these rows out"
        )
    return runs


def one_each(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `frame` without those whose run stands there already, under another label."""
    return runs[~runs["record"].map(lambda r: r["key"]).duplicated()]


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """The curves of the runs of `frame`, long: one row per run and evaluated epoch, with label and seeds beside it."""
    return pd.DataFrame(
        {**run[["label", *SEEDS]], **row, "run": run["record"]["key"]}
        for _, run in runs.iterrows()
        for row in run["record"]["curve"]
    )


def by_class(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of the curves that holds one number per class, long: one row per run, epoch and class.

    Columns: label, the seeds, epoch, class, images (in training), value. Epochs in which the column is empty (a method
    that has measured nothing yet) are left out.
    """
    return pd.DataFrame(
        {**run[["label", *SEEDS]], "epoch": entry["epoch"], "class": c, "images": n, "value": entry[column][c]}
        for _, run in runs.iterrows()
        for entry in run["record"]["curve"]
        if entry.get(column)
        for c, n in enumerate(run["record"]["n"])
    )


def epochs(runs: pd.DataFrame) -> pd.DataFrame:
    """Balanced test accuracy of each run in per cent, reported in three ways: one row per run, label and seeds beside.

    last (the book's rule), held_out (the epoch that is best on the validation images; nan without them) and best (the
    best test epoch: what must not be reported). Only evaluated epochs count. Chapter 02.
    """
    lines = []
    for _, run in runs.iterrows():
        curve = run["record"]["curve"]
        test = [_balanced(row["test"]) for row in curve]
        valid = [_balanced(row.get("valid")) for row in curve]
        chosen_epoch = None if math.isnan(valid[-1]) else max(range(len(valid)), key=valid.__getitem__)
        held_out = math.nan if chosen_epoch is None else test[chosen_epoch]
        lines.append({**run[["label", *SEEDS]], "last": test[-1], "held_out": held_out, "best": max(test)})
    return pd.DataFrame(lines)


def recalls(runs: pd.DataFrame) -> pd.DataFrame:
    """Recall of each class, long: one row per run and class with label, seeds, class, rank, images and recall.

    rank: of the class by size, 1 the largest (of equals the first); images: in training; recall in per cent. The
    classes of several labels per image are ranked together.
    """
    from imbook.metrics import recall

    lines = []
    for _, run in runs.iterrows():
        r = run["record"]
        n = pd.Series(sum(r["n"], []) if isinstance(r["n"][0], list) else r["n"])
        by_class = pd.concat([pd.Series(100 * recall(m).numpy()) for m in r["confusion"]], ignore_index=True)
        rank = n.rank(ascending=False, method="first").astype(int)
        one = pd.DataFrame({"class": range(len(n)), "rank": rank, "images": n, "recall": by_class})
        lines.append(one.assign(**run[["label", *SEEDS]]))
    return pd.concat(lines, ignore_index=True)[["label", *SEEDS, "class", "rank", "images", "recall"]]


def precision_recall(runs: pd.DataFrame, paper: str | None = None) -> pd.DataFrame:
    """Precision and recall of each class in per cent, means over the runs: one line per label and class.

    runs: `frame`, of one label per image, whose classes keep their size from run to run. Columns: label, class, images
    (mean in training), precision, recall; with `paper`, a prefix of records/paper_facts.json such as 'dos/table-1b',
    also paper_precision and paper_recall, nan where the paper's number is not known.
    """
    from imbook.metrics import precision, recall
    from imbook.records import facts

    lines = [
        {"label": run["label"], "class": c, "images": n, "precision": 100 * p, "recall": 100 * r}
        for _, run in fresh(runs).iterrows()
        for matrix in run["record"]["confusion"][:1]
        for c, (n, p, r) in enumerate(
            zip(run["record"]["n"], precision(matrix).tolist(), recall(matrix).tolist(), strict=True)
        )
    ]
    table = pd.DataFrame(lines).groupby(["label", "class"], sort=False).mean().reset_index()
    if paper is not None:
        for of in ("precision", "recall"):
            known = [facts().get(f"{paper}/class {c}/{of}", {}).get("value", math.nan) for c in table["class"]]
            table[f"paper_{of}"] = known
    return table


def validation(runs: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy on the validation images, one row per label: n, mean and sd in per cent. What a grid shows."""
    rows = runs.groupby("label", sort=False)["valid"].agg(["size", "mean", "std"])
    return rows.rename(columns={"size": "n", "std": "sd"})


def mean_sd(runs: pd.DataFrame, metrics: Sequence[str], digits: int = 1) -> pd.DataFrame:
    """Mean ± sd over the runs of each row as text, one line per label: what a chapter's table shows."""
    by = runs.groupby("label", sort=False)[list(metrics)]
    mean, sd = (table.map(f"{{:.{digits}f}}".format) for table in (by.mean(), by.std()))
    return mean + "\u00a0±\u00a0" + sd


def by_attribute(runs: pd.DataFrame) -> pd.DataFrame:
    """Class-balanced accuracy of each label of an image, long: one row per run and label.

    runs: `frame`. Columns: label (the row's), the seeds, attribute (0, 1, ...: which label of the image), ratio
    (largest over smallest training class), balanced_accuracy and least_recall (that of the worst class), in per cent.
    The mean of balanced_accuracy over the attributes is that of `frame`. Source: equations 17 and 18 of the paper of
    `imbook.methods.crl`; chapter 04.
    """
    from imbook.metrics import recall

    rows = []
    for _, run in fresh(runs).iterrows():
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


def minority_majority(runs: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall, F1 and AUPRC averaged over the minority and over the majority classes, one row per run.

    runs: `frame`, of one label per image. Columns: label, the seeds, minority_precision, ..., majority_auprc, in per
    cent; nan where there is no such class. A class is of the minority where it has at most half as many training images
    as the middle class (`imbook.methods.dos.small_classes`). ValueError where a 'reduced' split reduces another number
    of classes. Source: the tables of Ando and Huang 2017; chapter 06.
    """
    import torch

    from imbook import metrics
    from imbook.methods.dos import small_classes

    rows = []
    for _, run in fresh(runs).iterrows():
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


def progress(runs: pd.DataFrame) -> pd.DataFrame:
    """How training goes for small and for large classes: one row per run and evaluated epoch.

    runs: `frame`, of one label per image. Columns: label, the seeds, epoch; then, as means over the classes of a side,
    minor (at most as many training images as the lower median) or major (more): train_minor, train_major, test_minor,
    test_major (recall in per cent), gap_minor, gap_major (train less test, in points). Of rows with an `instrument`
    also gradient_minor, gradient_major (mean norm of dL/dz), gradient_ratio (minor over major), gradient_imbalance (the
    absolute log2 of that) and minor_as_major (share of a minor class's training images that are predicted as some major
    class, in per cent). ValueError where all classes are equally large, and for curves of class groups, which runs of
    more than 20 classes keep. Source: the claims of Ye et al. 2021; chapter 07.
    """
    import torch

    rows = []
    for _, run in fresh(runs).iterrows():
        n = torch.tensor(run["record"]["n"])
        major = n > n.median()
        if not major.any():
            raise ValueError(f"{run['record']['key']}: no class is larger than the middle one, so none is major")
        if run["record"].get("groups") is not None:
            raise ValueError(
                f"{run['record']['key']}: its curve holds the mean recalls of class groups, not of its {len(n)} "
                "classes; minor and major classes can be told apart up to 20 classes"
            )
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


def best(
    table: "Table", labels: Sequence[str], folder: str | Path | None = None,
    records: dict[str, dict[str, Any]] | None = None,
) -> str | None:  # fmt: skip
    """Which of some rows does best on the validation images at the last epoch: its label, or None while runs of them
    are missing.

    table: an `imbook.experiments.Table` that holds a grid; labels: of its rows, in the order in which equals are
    preferred. Best is the highest mean recall, over the validation classes that have images and over the row's runs.
    Nothing is read of the test images. ValueError for a label that the table does not have, where a run measured
    nothing on validation images, and for runs of an older version of their method.
    """
    if unknown := set(labels) - {row.label for row in table.rows}:
        raise ValueError(f"{table.title!r} has no row {', '.join(sorted(unknown))}: choose from those it has")
    runs = frame(table, folder, records)
    runs = fresh(runs[runs["label"].isin(labels)])
    if len(runs) < len(labels) * len(table.seeds):
        return None
    mean = runs.groupby("label")["valid"].mean()
    if mean.isna().any():
        raise ValueError(f"{', '.join(mean.index[mean.isna()])}: no validation images, so nothing to choose by")
    return max(labels, key=lambda label: mean[label])


def chosen(
    table: "Table", method: str, folder: str | Path | None = None, records: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any] | None:
    """The hyper-parameters of a method that do best on the validation images (see `best`): a dict, or None while runs
    of its rows are missing.

    method: a name of `imbook.methods.METHODS`. ValueError where no row of the table has it, and as `best`.
    """
    rows = {row.label: row for row in table.rows if row.method == method}
    if not rows:
        raise ValueError(f"no row of {table.title!r} has the method {method!r}: choose from those it has")
    label = best(table, list(rows), folder, records)
    return None if label is None else rows[label].hyper


def provenance_table(tables: Mapping[str, "Table"]) -> str:
    """Where the committed records come from: a Markdown table, one row per table and device.

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
