"""`python -m imbook try` and `report`: the plan, whole trials on made folders, what is stopped goes on."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from imbook.yours import pictures, report, trial
from imbook.yours.trial import Options, make_plan, try_out

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of 60, 24 and 9 noisy pictures that differ in colour, three per photograph, one file broken."""
    root, rng = tmp_path_factory.mktemp("data") / "größe & <co>", np.random.default_rng(0)
    for c, (name, many) in enumerate({"red": 60, "green": 24, "blå ü": 9}.items()):
        (root / name).mkdir(parents=True)
        for k in range(many):
            x = rng.integers(0, 160, (20, 20, 3))
            x[..., c] += 60
            Image.fromarray(x.astype(np.uint8)).save(root / name / f"photo{k // 3} {k}.png")
    (root / "red" / "photo99 broken.png").write_bytes(b"\x89PNG")
    return root


def options(folder, out, **given):
    return Options(**{"path": folder, "out": out, "groups": r"photo\d+", "seeds": 2, "epochs": 2, "size": 16, **given})


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The folder of a trial by the documented command in a process of its own, and what that printed."""
    out = tmp_path_factory.mktemp("trial") / "out"
    command = [sys.executable, "-m", "imbook", "try", str(folder), "--groups", r"[^/]+/photo\d+", "--out", str(out)]
    command += ["--seeds", "2", "--epochs", "2", "--size", "16", "--budget", "5m"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    return out, run.stdout


def test_the_command_says_beforehand_what_it_does(finished):
    _, said = finished
    assert re.search(r"left out, cannot be read: .*red/photo99 broken.png", said)
    assert "93 pictures, 3 classes; training, validation, test: " in said and "random weights" in said
    assert re.search(r"8 runs of 2 epochs.*about \d+\.\d minutes on this cpu", said)
    assert "all runs are done\nreport: " in said


def test_the_numbers_are_those_of_scikit_learn(finished):
    out, _ = finished
    found = json.loads((out / "result.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) >= {"cross entropy", "cross entropy, adjusted logits", "MFW, by cost", "CRL", "over-sampling"}
    split = pd.read_csv(out / "split.csv")
    assert split.groupby("group")["part"].nunique().max() == 1
    n = split[split["part"] == "train"]["label"].map(found["classes"].index).value_counts().sort_index().to_numpy()
    assert n.tolist() == found["train"]
    for name, shift in (("cross entropy", 0), ("cross entropy, adjusted logits", np.log(n / n.sum()))):
        runs = [np.load(out / f"runs/cross-entropy-{seed}.npz") for seed in range(rows[name]["seeds"])]
        for part, key in (("test", "cost"), ("valid", "valid_cost")):
            each = [1 - sk.balanced_accuracy_score(r[f"y_{part}"], (r[f"h_{part}"] - shift).argmax(1)) for r in runs]
            value = rows[name][key]
            assert np.mean(each) == pytest.approx(value[0] if part == "test" else value)
        each = [sk.accuracy_score(r["y_test"], (r["h_test"] - shift).argmax(1)) for r in runs]
        assert np.mean(each) == pytest.approx(rows[name]["accuracy"][0])
    finalists = {k: v["valid_cost"] for k, v in rows.items() if v["seeds"] == 2}
    assert finalists[found["chosen"]] == min(finalists.values())
    assert found["curve"]["n"][0] < found["curve"]["n"][1] < found["curve"]["n"][2] == min(found["train"])
    assert set(found["random"]) == {"by groups", "at random"}


def test_the_report_needs_no_other_file(finished, folder):
    out, _ = finished
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "größe &amp; &lt;co&gt;" in text and "<co>" not in text and "blå ü" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "http" not in text and text.count("<img") >= 6
    assert all(re.findall(r'<img alt="([^"]*)"', text))
    assert "python -m imbook try" in text and "prefers-color-scheme: dark" in text and "width=device-width" in text
    with Image.open(out / "report.png") as drawn:
        assert min(drawn.size) > 500
    before = text
    run = subprocess.run([sys.executable, "-m", "imbook", "report", str(out)], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0 and "report: " in run.stdout
    assert (out / "report.html").read_text(encoding="utf-8") == before


def test_a_report_leaves_the_drawing_as_it_was(finished):
    """Else a notebook that writes a report shows no figure afterwards."""
    import matplotlib
    from matplotlib import pyplot as plt

    plt.switch_backend("svg")
    own = plt.figure()
    before = plt.get_fignums()  # the reader's own, and what other tests have left
    report.write(finished[0])
    assert matplotlib.get_backend() == "svg" and plt.get_fignums() == before and plt.gcf() is own
    plt.close(own)


def test_the_same_call_again_trains_nothing(finished, folder, monkeypatch):
    out, _ = finished
    monkeypatch.setattr(trial, "fit", None)
    monkeypatch.setattr(trial.look, "examine", None)
    again = options(folder, out, groups=r"[^/]+/photo\d+")
    assert try_out(again)[1] == "all runs are done"
    with pytest.raises(ValueError, match=r"holds another trial \(size: 16, now 24\)"):
        try_out(replace(again, size=24))


@pytest.mark.parametrize("error, said", [(KeyboardInterrupt, "interrupted"), (trial.Stop, "time is up")])
def test_what_is_stopped_goes_on_to_the_same_numbers(folder, tmp_path, monkeypatch, error, said):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setattr(trial.Trial, "labels", lambda self: ["cross entropy", "over-sampling"])
    try_out(options(folder, whole, groups=None, seeds=1))
    real, calls = trial.fit, []

    def stopped(*given, tick, **named):
        def counted(done, row):
            tick(done, row)
            calls.append(done)
            if len(calls) in (1, 4):
                raise error

        return real(*given, tick=counted, **named)

    monkeypatch.setattr(trial, "fit", stopped)
    shown, ended = try_out(options(folder, cut, groups=None, seeds=1))
    assert shown is None and ended.startswith(f"{said}: no run is finished yet")
    shown, ended = try_out(options(folder, cut, groups=None, seeds=1))
    assert shown is not None and ended.startswith(said) and "runs are missing" in ended
    assert try_out(options(folder, cut, groups=None, seeds=1))[1] == "all runs are done"
    for path in sorted((whole / "runs").glob("*.npz")):
        one, two = np.load(path), np.load(cut / "runs" / path.name)
        assert all(np.array_equal(one[k], two[k]) for k in one), path.name
    assert not list((cut / "runs").glob("*.pt"))


def test_a_report_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no trial: python -m imbook try"):
        report.write(tmp_path)


def test_bad_options_are_named_before_any_work(folder, tmp_path):
    with pytest.raises(ValueError, match="unknown network 'resnet1'"):
        try_out(options(folder, tmp_path / "a", backbone="resnet1"))
    with pytest.raises(ValueError, match="lenet has no pretrained weights"):
        try_out(options(folder, tmp_path / "a", pretrained=True))
    (tmp_path / "costs.csv").write_text(",red\nred,0\n")
    with pytest.raises(ValueError, match="costs.csv: "):
        try_out(options(folder, tmp_path / "a", costs=tmp_path / "costs.csv"))
    assert not (tmp_path / "a").exists()


# -- the plan ---------------------------------------------------------------------------------------------------------

SECONDS = {"cross entropy": 1.0, "deferred weights": 1.0, "over-sampling": 1.0, "MFW": 1.0, "CRL": 2.0}


@pytest.mark.parametrize("budget", [1, 50, 80, 120, 200, 300, 1000, 10_000])
def test_a_plan_keeps_to_its_budget(budget):
    made = make_plan(SECONDS, budget, seeds=3)
    assert 5 <= made["epochs"] <= 30
    if made["left_out"][-1:] != ["more seeds than 1"]:
        tried = [k for k, seed, _ in made["coarse"] if seed == 0 and k != "cross entropy"]
        final = [SECONDS["cross entropy"], *sorted((SECONDS[k] for k in tried), reverse=True)[:2]]
        known = sum(SECONDS[label] for label, _, _ in made["runs"])
        seconds = made["epochs"] * (known + sum(final) * (made["seeds"] - made["first_seeds"]))
        assert seconds <= 0.8 * budget


def test_a_plan_leaves_out_in_order():
    assert make_plan(SECONDS, 10_000, 3)["left_out"] == [] and make_plan(SECONDS, 10_000, 3)["first_seeds"] == 2
    order = ["learning curve", "CRL", "MFW", "random split", "more seeds than 2", "over-sampling", "more seeds than 1"]
    for budget in (150, 110, 90, 70, 50, 30, 1):
        left = make_plan(SECONDS, budget, 3)["left_out"]
        assert left == order[: len(left)]
    assert left == order
    assert [run[0] for run in make_plan(SECONDS, 1, 3)["runs"]] == ["cross entropy", "deferred weights"]


# -- pictures and networks --------------------------------------------------------------------------------------------


def test_streaming_gives_what_memory_gives(folder, monkeypatch):
    files = trial.look.find(folder)
    files = files.only(np.array(["broken" not in p for p in files.paths]))
    index = np.arange(0, 90, 3)
    whole = pictures.Sets(files, index, 16, 8)
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    stream = pictures.Sets(files, index, 16, 8)
    assert stream.streams and not whole.streams
    for a, b in zip(whole.plain(index).plain(8), stream.plain(index).plain(8)):
        assert np.allclose(a[0], b[0], atol=1e-5) == (stream.mean == whole.mean) and a[1].equal(b[1])
    shapes = {tuple(x.shape[1:]) for x, _, _ in stream.train(index, 0)}
    assert shapes == {(3, 16, 16)} and stream.protocol()["crop"] == 0 and whole.protocol()["crop"] == 2


def test_weights_that_cannot_be_had_are_said_to_be_random(monkeypatch):
    from torchvision import models

    def get(name, weights):
        if weights:
            raise OSError("no network")
        return models.squeezenet1_1() if name == "x" else models.resnet18()

    monkeypatch.setattr(models, "get_model", get)
    net, said = pictures.network("resnet18", 3, 64, pretrained=True)
    assert said.startswith("RANDOM weights: the pretrained ones") and "no network" in said
    assert net.fc.out_features == 3
    assert pictures.network("resnet18", 3, 64, pretrained=False)[1] == "RANDOM weights: as asked"


def test_parts_of_the_curve_cut_the_smallest_class(folder, tmp_path):
    files = trial.look.find(folder)
    files = files.only(np.array(["broken" not in p for p in files.paths]))
    made = trial.Trial(options(folder, tmp_path), files, np.arange(93))
    n = {part: np.bincount(files.y[made.positions(part)[0]]) for part in ("", "a half", "a quarter")}
    small = n[""].argmin()
    assert (np.delete(n[""], small) == np.delete(n["a quarter"], small)).all()
    assert n["a half"][small] == round(n[""][small] / 2) and n["a quarter"][small] == max(1, round(n[""][small] / 4))
    assert set(made.positions("a quarter")[0]) < set(made.positions("a half")[0]) < set(made.parts[0])
