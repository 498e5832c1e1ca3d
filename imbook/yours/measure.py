"""From the scores of a trial's runs to its result: every row with intervals, the choice and its reason."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from imbook import __version__
from imbook.methods.afterwards import moved_thresholds
from imbook.metrics import calibration_error
from imbook.yours import judge
from imbook.yours.judge import Costs

FIRST = "cross entropy"
AS_TRAINED, ADJUSTED, MOVED, BY_COST = "", ", adjusted logits", ", moved thresholds", ", by cost"
FOLDS = 5  # of the validation pictures, for readings that are fitted to them
SIMPLICITY = [
    *(FIRST + way for way in (AS_TRAINED, ADJUSTED, MOVED, BY_COST)),
    *(label + way for label in ("deferred weights", "over-sampling", "MFW", "CRL") for way in (AS_TRAINED, BY_COST)),
]  # of readings, the simplest first


def read_table(path: Path) -> pd.DataFrame:
    """A trial's CSV file as it was written: texts stay texts, an empty field is ''."""
    texts = {k: str for k in ("path", "label", "part", "digest", "hash", "mode", "error")}
    return pd.read_csv(path, keep_default_na=False, dtype=texts, encoding_errors="surrogateescape")


class Runs:
    """All finished runs of a trial's folder: scores, split, costs."""

    def __init__(self, out: Path) -> None:
        out = Path(out)
        if not (out / "trial.json").exists() or not (out / "split.csv").exists():
            raise ValueError(f"{out} holds no trial: python -m imbook try FOLDER --out {out}")
        self.trial = json.loads((out / "trial.json").read_text())
        self.look = json.loads((out / "look.json").read_text())
        self.plan = json.loads((out / "plan.json").read_text())
        self.split, self.files = read_table(out / "split.csv"), read_table(out / "files.csv")
        self.classes = self.look["classes"]
        costs = None if self.trial["costs"] == "None" else self.trial["costs"]
        self.costs = Costs.read(costs, self.classes)
        self.found = {path.stem: dict(np.load(path)) for path in sorted((out / "runs").glob("*.npz"))}
        n = self.split[self.split["part"] == "train"]["label"].map(self.classes.index)
        self.n = np.bincount(n, minlength=len(self.classes))  # (C,)
        self.prior = self.n / self.n.sum()
        self.groups = {p: self.split["group"].to_numpy()[self.split["part"] == p] for p in ("valid", "test")}

    def seeds(self, label: str, part: str = "") -> list[dict[str, np.ndarray]]:
        """The runs of one method in the order of their seeds."""
        name = "-".join(filter(None, (label, part))).replace(" ", "-")
        return [run for stem, run in self.found.items() if stem.rpartition("-")[0] == name]

    def numbers(self, label: str) -> list[str]:
        """The seeds of one method's runs, in the order of `seeds`."""
        name = label.replace(" ", "-")
        return [seed for stem in self.found for of, _, seed in [stem.rpartition("-")] if of == name]

    def labels(self) -> list[str]:
        """The methods that have a run, the simplest first."""
        return [label for label in SIMPLICITY if "," not in label and self.seeds(label)]

    def readings(self, label: str) -> dict[str, list[dict[str, np.ndarray]]]:
        """{name of a reading: its decisions, a list per seed of {'valid': (N,), 'test': (N,)}}."""
        ways = (AS_TRAINED, ADJUSTED, MOVED, BY_COST) if label == FIRST else (AS_TRAINED, BY_COST)
        return {label + way: [self.decide(run, way) for run in self.seeds(label)] for way in ways}

    def decide(self, run: dict[str, np.ndarray], way: str) -> dict[str, np.ndarray]:
        """Decisions of one run on validation and test.

        What a way fits to the validation pictures decides the test part. The validation pictures themselves are decided
        by numbers that were fitted without their own fold of groups: else a row would be judged by what it was fitted
        to, the more in its favour the more numbers it has.
        """
        if way == BY_COST:
            return self.by_cost(run)
        if way == MOVED:
            return self.moved(run)
        shift = np.log(self.prior) if way == ADJUSTED else 0
        return {part: (run[f"h_{part}"] - shift).argmax(1) for part in ("valid", "test")}

    def moved(self, run: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Decisions with one number per class added to the adjusted logits, fitted to the validation pictures.

        A class that the fit does not see gets no number of its own, so it is decided by adjusted logits; if all
        pictures are of one group, that is every class.
        """
        h, test = (torch.from_numpy(run[f"h_{part}"] - np.log(self.prior)) for part in ("valid", "test"))
        y, fold = torch.from_numpy(run["y_valid"]), torch.from_numpy(self.fold())
        valid = h.clone()
        for k in range(FOLDS if fold.any() else 0):
            valid[fold == k] += moved_thresholds(h[fold != k], y[fold != k])
        return {"valid": valid.argmax(1).numpy(), "test": (test + moved_thresholds(h, y)).argmax(1).numpy()}

    def by_cost(self, run: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Decisions of least expected cost, with calibrated probabilities; without pictures to fit, as they come."""
        h, y, fold = run["h_valid"], run["y_valid"], self.fold()
        valid = np.empty(len(y), dtype=np.int64)
        for k in np.unique(fold):
            own = fold == k
            p = judge.Calibration(h[~own], y[~own], self.prior)
            valid[own] = self.costs.decide(p(h[own]), self.prior)
        return {"valid": valid, "test": self.costs.decide(self.calibrated(run)(run["h_test"]), self.prior)}

    def fold(self) -> np.ndarray:
        """Which of the FOLDS parts each validation picture is in, a group as a whole: int64 (N,)."""
        return np.unique(self.groups["valid"], return_inverse=True)[1] % FOLDS

    def calibrated(self, run: dict[str, np.ndarray]) -> judge.Calibration:
        """The calibration of a run, fitted on its validation scores."""
        return judge.Calibration(run["h_valid"], run["y_valid"], self.prior)

    def confusions(self, decisions: list[dict[str, np.ndarray]], part: str) -> np.ndarray:
        """Confusion matrices per group, the mean over seeds: (G, C, C)."""
        y, groups = self.seeds(FIRST)[0][f"y_{part}"], self.groups[part]
        each = [judge.confusions(d[part], y, groups, len(self.classes)) for d in decisions]
        return np.mean(each, 0)


def ranked(out: Path) -> list[str]:
    """The methods, the least validation cost of their readings first."""
    runs = Runs(out)
    cost = {}
    for label in runs.labels():
        means = [runs.costs.mean(runs.confusions(d, "valid").sum(0)) for d in runs.readings(label).values()]
        cost[label] = float(min(means))
    return sorted(cost, key=lambda label: cost[label])


def result(out: Path) -> dict[str, Any]:
    """All that a report says, as plain data. ValueError for a folder without a finished run."""
    runs = Runs(out)
    if not runs.seeds(FIRST):
        raise ValueError(f"{out} has no finished run of {FIRST}: the command that began it goes on from there")
    readings = {name: d for label in runs.labels() for name, d in runs.readings(label).items()}
    by_group = {name: {part: runs.confusions(d, part) for part in ("valid", "test")} for name, d in readings.items()}
    chosen, simple, valid = _choice(runs, by_group, readings)
    rows = [_row(runs, name, by_group[name]["test"], valid[name], readings) for name in readings]
    label, _, way = chosen.partition(",")
    shown = _median_seed(runs, readings[chosen])
    run = runs.seeds(label)[shown]
    folder = Path(runs.trial["path"])
    return dict(
        out=str(out), root=str(folder if folder.is_dir() else folder.parent), command=runs.trial["command"],
        classes=runs.classes, n=runs.look["n"], train=runs.n.tolist(), rows=rows, chosen=chosen, simple=simple,
        per_class=runs.costs.per_class, costs=runs.costs.matrix.tolist(), shown_seed=shown,
        parts={p: np.bincount(run[f"y_{p}"], minlength=len(runs.classes)).tolist() for p in ("valid", "test")},
        groups={p: len(set(g)) for p, g in runs.groups.items()},
        versions={"imbook": __version__, "torch": str(torch.__version__)},
        confusion=by_group[chosen]["test"].sum(0).tolist(),
        first_confusion=by_group[FIRST]["test"].sum(0).tolist(),
        frequencies=_frequencies(by_group[chosen]["test"].sum(0)),
        calibration=_calibration(runs, run), mistakes=_mistakes(runs, run, readings[chosen][shown]["test"]),
        near=_near(runs),
        random=_random(runs), curve=_curve(runs, by_group, chosen), look=runs.look, plan=runs.plan, trial=runs.trial,
    )  # fmt: skip


def _choice(runs, by_group, readings):
    """Chosen on validation data among the finalists: that reading, the simplest one near it, the cost of each."""
    cost = {name: float(runs.costs.mean(c["valid"].sum(0))) for name, c in by_group.items()}
    most = max(map(len, readings.values()))
    finalists = {name: cost[name] for name in cost if len(readings[name]) == most}
    chosen = judge.choose(finalists, SIMPLICITY)
    draws = {name: judge.drawn(by_group[name]["valid"], cost=runs.costs.mean)["cost"] for name in finalists}
    error = {name: float(np.std(d - draws[chosen])) for name, d in draws.items()}
    return chosen, judge.simplest(finalists, error, SIMPLICITY), cost


def _row(runs, name, test, valid, readings):
    """A reading's numbers; its difference in cost is to cross entropy as trained with the same seeds."""
    own = runs.numbers(name.partition(",")[0])
    same = [d for d, seed in zip(readings[FIRST], runs.numbers(FIRST), strict=True) if seed in own]
    first = runs.confusions(same, "test")
    measures = {"cost": runs.costs.mean, "recall": judge.recall, **judge.MEASURES}
    whole, draws = test.sum(0), judge.drawn(test, **measures)
    by_seed = lambda some: [float(runs.costs.mean(runs.confusions([d], "test").sum(0))) for d in some]  # noqa: E731
    gaps = np.subtract(by_seed(readings[name]), by_seed(same)).tolist()
    row = dict(name=name, seeds=len(own), valid_cost=valid, by_seed=gaps)  # in cost, to cross entropy of that seed
    for key in ("cost", *judge.MEASURES):
        row[key] = [float(measures[key](whole)), *judge.interval(draws[key])]
    paired = draws["cost"] - judge.drawn(first, cost=runs.costs.mean)["cost"]
    row["difference"] = [row["cost"][0] - float(runs.costs.mean(first.sum(0))), *judge.interval(paired)]
    ends = np.array(judge.interval(draws["recall"]))  # (2, C)
    row["recall"] = [[r, *its] for r, its in zip(judge.recall(whole).tolist(), ends.T.tolist())]
    return row


def _frequencies(confusion):
    """Each metric at the test part's own frequencies, and if all classes had equally many pictures."""
    ways = {"as in the test part": confusion, "classes equally frequent": judge.equal(confusion)}
    return {way: {k: float(m(c)) for k, m in judge.MEASURES.items()} for way, c in ways.items()}


def _median_seed(runs, decisions):
    y = runs.seeds(FIRST)[0]["y_valid"]
    one = np.zeros(len(y), dtype=np.int64)
    each = [runs.costs.mean(judge.confusions(d["valid"], y, one, len(runs.classes))[0]) for d in decisions]
    return int(np.argsort(each, kind="stable")[(len(each) - 1) // 2])


def _calibration(runs, run):
    """Calibration error on test before and after, slope and tau, and points (confidence, share right, how many)."""
    p, y = runs.calibrated(run), torch.from_numpy(run["y_test"])
    after, points = p(run["h_test"]), {}
    before = np.exp(run["h_test"] - run["h_test"].max(1, keepdims=True))
    before /= before.sum(1, keepdims=True)
    for name, some in (("before", before), ("after", after)):
        sure, right = some.max(1), some.argmax(1) == run["y_test"]
        bins = np.clip((sure * 10).astype(int), 0, 9)
        points[name] = [[float(sure[m].mean()), float(right[m].mean()), int(m.sum())] for b in range(10)
                        if (m := bins == b).any()]  # fmt: skip
    error = partial(calibration_error, y=y)
    errors = [error(torch.from_numpy(h)) for h in (run["h_test"], np.log(np.maximum(after, 1e-30)))]
    return dict(errors=errors, slope=float(np.exp(p.log_slope)), tau=float(p.tau), points=points)


def _mistakes(runs, run, decided, most=12):
    """The errors that were held for most probable, among those that cost: path, true, decided, probability."""
    p, y = runs.calibrated(run)(run["h_test"]), run["y_test"]
    sure = p[np.arange(len(y)), decided]
    wrong = np.flatnonzero(decided != y)
    worst = wrong[np.argsort(-sure[wrong] * runs.costs.matrix[y[wrong], decided[wrong]], kind="stable")][:most]
    paths = runs.split["path"].to_numpy()[runs.split["part"] == "test"]
    return [dict(path=str(paths[k]), true=runs.classes[y[k]], decided=runs.classes[decided[k]], p=float(sure[k]))
            for k in worst]  # fmt: skip


def _near(runs):
    """Pairs that look alike: how many of them lie in two parts of the split; the paths and similarity of the first."""
    part, paths = dict(zip(runs.split["path"], runs.split["part"])), runs.files["path"]
    pairs = [[str(paths[i]), str(paths[j]), r] for i, j, r in runs.look["near"]]
    return dict(apart=sum(part[a] != part[b] for a, b, _ in pairs), first=pairs[:6])


def _random(runs):
    """What a random split would have claimed for cross entropy: cost and accuracy, beside the split by groups."""
    found = runs.seeds(FIRST, "random split")
    if not found:
        return None
    of = {}
    for name, run in (("by groups", runs.seeds(FIRST)[0]), ("at random", found[0])):
        groups = runs.split["group"].to_numpy()[run["at_test"]]
        c = judge.confusions(run["h_test"].argmax(1), run["y_test"], groups, len(runs.classes))
        draws = judge.drawn(c, balanced=judge.balanced_accuracy)["balanced"]
        balanced = [float(judge.balanced_accuracy(c.sum(0))), *judge.interval(draws)]
        of[name] = dict(balanced_accuracy=balanced, accuracy=float(judge.accuracy(c.sum(0))))
    return of


def _curve(runs, by_group, chosen):
    """Cost of cross entropy against the pictures of the smallest class, and how many more the choice is worth."""
    found = [run for part in ("a quarter", "a half") for run in runs.seeds(FIRST, part)]
    if len(found) < 2:
        return None
    small = int(runs.n.argmin())
    found.append(runs.seeds(FIRST)[0])
    n = [int(run["n"][small]) for run in found]
    each = [judge.confusions(run["h_test"].argmax(1), run["y_test"], np.zeros(len(run["y_test"]), int),
                             len(runs.classes))[0] for run in found]  # fmt: skip
    cost = [float(runs.costs.mean(c)) for c in each]
    gain = float(runs.costs.mean(by_group[FIRST]["test"].sum(0)) - runs.costs.mean(by_group[chosen]["test"].sum(0)))
    more, doubling = judge.images_for(n, cost, gain) if gain > 0 else (0.0, judge.images_for(n, cost, 0)[1])
    return dict(cls=runs.classes[small], n=n, cost=cost, gain=gain, more=more, per_doubling=doubling)
