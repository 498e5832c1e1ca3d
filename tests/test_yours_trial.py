"""`python -m imbook try` and `report`: the plan, whole trials on made folders, what is stopped goes on."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk
from sklearn.datasets import load_digits
from torchvision import models

from imbook import plots, records
from imbook.__main__ import main
from imbook.methods.afterwards import moved_thresholds
from imbook.yours import figures, judge, measure, pictures, report, trial
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


def command(path, out, *more):
    """The documented command as a list; lasting seconds: two epochs of 16 pixels."""
    short = ["--seeds", "2", "--epochs", "2", "--size", "16", "--budget", "9m"]
    return [sys.executable, "-m", "imbook", "try", str(path), "--out", str(out), *short, *more]


def shell(*arguments, cwd=ROOT, **given):
    return subprocess.run(arguments, capture_output=True, text=True, cwd=cwd, timeout=580, **given)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The folder of a trial by the documented command in a process of its own, and what that printed."""
    out = tmp_path_factory.mktemp("trial") / "out"
    run = shell(*command(folder, out, "--groups", r"[^/]+/photo\d+"))
    assert run.returncode == 0, run.stderr
    return out, run.stdout


def test_the_command_says_beforehand_what_it_does(finished):
    _, said = finished
    broken = r"left out, cannot be read: .*red/photo99 broken.png \(is damaged \(cannot identify image file\)\)"
    assert re.search(broken, said)
    assert "93 pictures, 3 classes; training, validation, test: " in said and "random weights" in said
    assert re.search(r"8 runs of 2 epochs, then up to 2 seeds of .*: about \d+(\.\d minutes| seconds) on this", said)
    assert said.index(" on this cpu") < said.index("all runs are done\nreport: ")


def check_numbers(out, seeds=2):
    """Every number of cross entropy, with and without adjusted logits, from the scores by scikit-learn."""
    found = json.loads((out / "result.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    split = pd.read_csv(out / "split.csv", dtype={"label": str})
    assert split.groupby("group")["part"].nunique().max() == 1
    n = split[split["part"] == "train"]["label"].map(found["classes"].index).value_counts().sort_index().to_numpy()
    assert n.tolist() == found["train"]
    for name, shift in (("cross entropy", 0), ("cross entropy, adjusted logits", np.log(n / n.sum()))):
        runs = [np.load(out / f"runs/cross-entropy-{seed}.npz") for seed in range(rows[name]["seeds"])]
        valid, test = ([(r[f"y_{p}"], (r[f"h_{p}"] - shift).argmax(1)) for r in runs] for p in ("valid", "test"))
        assert rows[name]["valid_cost"] == pytest.approx(1 - mean(sk.balanced_accuracy_score, valid))
        assert rows[name]["cost"][0] == pytest.approx(1 - mean(sk.balanced_accuracy_score, test))
        assert rows[name]["accuracy"][0] == pytest.approx(mean(sk.accuracy_score, test))
        each = rows[name]["recall"]
        assert [r[0] for r in each] == pytest.approx(mean(partial(sk.recall_score, average=None), test))
        if name == "cross entropy":
            assert np.allclose(found["first_confusion"], mean(sk.confusion_matrix, test))
    finalists = {k: v["valid_cost"] for k, v in rows.items() if v["seeds"] == seeds}
    assert len(finalists) >= 3 and finalists[found["chosen"]] == min(finalists.values())
    return found, rows


def mean(metric, pairs):
    return np.mean([metric(y, decided) for y, decided in pairs], 0)


def test_the_numbers_are_those_of_scikit_learn(finished):
    found, rows = check_numbers(finished[0])
    assert set(rows) >= {"cross entropy", "cross entropy, adjusted logits", "MFW, by cost", "CRL", "over-sampling"}
    assert "cross entropy, moved thresholds" in rows
    assert found["curve"]["n"][0] < found["curve"]["n"][1] < found["curve"]["n"][2] == min(found["train"])
    assert set(found["random"]) == {"by groups", "at random"}


def test_a_row_is_not_judged_by_what_it_was_fitted_to(finished):
    """Test images by a fit to all validation images; these by fits without their own fold, whatever its labels are."""
    runs, rng = measure.Runs(finished[0]), np.random.default_rng(0)
    run = runs.seeds("cross entropy")[0]
    run = {**run, **{f"h_{part}": rng.normal(size=run[f"h_{part}"].shape) for part in ("valid", "test")}}
    adjusted = {part: torch.tensor(run[f"h_{part}"] - np.log(runs.prior)) for part in ("valid", "test")}
    shift = moved_thresholds(adjusted["valid"], torch.tensor(run["y_valid"]))
    moved, by_cost = runs.moved(run), runs.by_cost(run)
    assert (moved["test"] == (adjusted["test"] + shift).argmax(1).numpy()).all()
    p = judge.Calibration(run["h_valid"], run["y_valid"], runs.prior)(run["h_test"])
    assert (by_cost["test"] == runs.costs.decide(p, runs.prior)).all()
    for made, found in ((runs.moved, moved), (runs.by_cost, by_cost)):
        for group in np.unique(runs.groups["valid"]):
            own = runs.groups["valid"] == group
            other = made({**run, "y_valid": np.where(own, (run["y_valid"] + 1) % 3, run["y_valid"])})
            assert (other["valid"][own] == found["valid"][own]).all()
    easy = {**run, "h_valid": 3 * np.eye(3)[run["y_valid"]]}
    assert (runs.by_cost(easy)["test"] != by_cost["test"]).any(), "what is fitted does decide"
    runs.groups["valid"] = np.zeros(len(run["y_valid"]))  # all of one photograph: nothing is left to fit to
    assert (runs.moved(run)["valid"] == adjusted["valid"].argmax(1).numpy()).all()
    assert (runs.by_cost(run)["valid"] == adjusted["valid"].argmax(1).numpy()).all()  # the classes count alike here


def test_five_thousand_fifty_and_five(tmp_path):
    """A made folder: grey and RGBA pictures, spaces and umlauts in all names, one file broken; from another folder."""
    rng, root = np.random.default_rng(0), tmp_path / "meine Bilder"
    for c, (name, many) in enumerate({"große Zellen": 5000, "b": 50, "c d": 5}.items()):
        (root / name).mkdir(parents=True)
        for k, x in enumerate(rng.integers(0, 130, (many, 8, 8, 3)).astype(np.uint8)):
            x[2 * c : 2 * c + 3] += 90
            Image.fromarray(x).convert(("L", "RGBA")[k % 2]).save(root / name / f"Bild ö {k}.png")
    (root / "b/kaputt ß.png").write_bytes((root / "b/Bild ö 0.png").read_bytes()[:60])
    run = shell(*command("meine Bilder", "mein Versuch", "--size", "12", "--seeds", "1"), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "left out, cannot be read: meine Bilder/b/kaputt ß.png (is damaged" in run.stdout
    found, _ = check_numbers(tmp_path / "mein Versuch", seeds=1)
    assert found["n"] == [50, 5, 5000] and found["train"] == [30, 3, 3000] and found["parts"]["test"] == [10, 1, 1000]
    assert found["look"]["modes"] == {"L": 2528, "RGBA": 2527} or found["look"]["modes"] == {"RGBA": 2527, "L": 2528}
    assert found["look"]["ratio"] == 1000 and len(found["look"]["unreadable"]) == 1
    text = (tmp_path / "mein Versuch/report.html").read_text(encoding="utf-8")
    assert "große Zellen" in text and "Class c d: 1 test picture. So the recall is hardly known" in text


def test_a_set_that_a_package_ships_as_a_table(tmp_path):
    """scikit-learn's digits, three of them, written as files and a CSV with a column of groups."""
    digits, rows = load_digits(n_class=3), []
    for k, (x, y) in enumerate(zip(digits.images, digits.target)):
        if y == 0 or k % (3 * y) == 0:
            Image.fromarray((x * 255 / 16).astype(np.uint8)).save(tmp_path / f"{k}.png")
            rows.append(dict(image=f"{k}.png", label=f"digit {y}", sheet=f"sheet {k // 9}"))
    pd.DataFrame(rows).to_csv(tmp_path / "digits.csv", index=False)
    more = ("--groups", "sheet", "--size", "12", "--seeds", "1", "--epochs", "6")
    run = shell(*command("digits.csv", "out", *more), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found, rows = check_numbers(tmp_path / "out", seeds=1)
    assert found["look"]["groups"] == len(set(pd.read_csv(tmp_path / "digits.csv")["sheet"]))
    assert found["look"]["unreadable"] == [] and min(row["cost"][0] for row in rows.values()) < 0.3


def heard():
    """Ctrl-C is: tests that run in the background were started with it ignored, and would hand that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_control_c_keeps_what_is_done_and_the_same_command_goes_on(folder, tmp_path):
    for epochs in (4, 8, 16, 32):  # on a busy machine a trial may end before this test comes to stop it
        given = command(folder, f"out {epochs}", "--seeds", "1", "--epochs", str(epochs))
        process = subprocess.Popen(given, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   preexec_fn=heard)  # fmt: skip
        out = tmp_path / f"out {epochs}"
        first = out / "runs/cross-entropy-0.npz"
        while not first.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=300)
        kept = {p.name: p.read_bytes() for p in (out / "runs").glob("*.npz")}
        if process.returncode and len(kept) < 7:
            break
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert "interrupted" in said and "the same command goes on" in said
    assert first.name in kept and len(kept) < 7
    run = shell(*given, cwd=tmp_path)
    assert run.returncode == 0 and "all runs are done" in run.stdout, run.stderr
    assert all((out / "runs" / name).read_bytes() == content for name, content in kept.items())


def test_control_c_before_the_training_is_no_traceback(monkeypatch, capsys, tmp_path):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "try_out", interrupted)
    assert main(["try", str(tmp_path)]) == 130
    assert capsys.readouterr().out == "interrupted; the same command goes on from here\n"


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


def test_a_short_training_is_said(finished):
    """On the blood cells the order of the rows changes between 276 and 1,380 steps of each run."""
    said = {}
    for name in ("yours-bccd", "yours-bccd-30"):
        found = json.loads((records.RECORDS / f"{name}.json").read_text())
        said[found["plan"]["epochs"]] = " ".join(report.recommendation(found))
        assert found["train"] == [217, 2488, 224] and "Use over-sampling" in said[6]
        assert set(found["versions"]) == {"imbook", "torch"}
    assert "Each run had 276 steps. That is short" in said[6] and "That is short" not in said[30]
    assert "too few to tell the two apart" in said[30] and "one standard error" in said[30]
    assert "It costs less in 10 of 10 training seeds" in said[6] and "training seeds" in said[30]
    own = json.loads((finished[0] / "result.json").read_text())
    one_epoch = np.load(finished[0] / "runs/cross-entropy-0.npz")["n"].sum()
    assert f"Each run had {2 * int(np.ceil(one_epoch / 16))} steps." in " ".join(report.recommendation(own))


def test_a_row_with_fewer_seeds_is_held_against_the_same_seeds(finished, tmp_path):
    """Else the seeds that it lacks would be a part of its difference: here one that makes no error."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    path = out / "runs" / "cross-entropy-1.npz"
    run = dict(np.load(path))
    np.savez(path, **run | {"h_test": 9 * np.eye(run["h_test"].shape[1])[run["y_test"]]})
    rows = {row["name"]: row for row in measure.result(out)["rows"]}
    runs = measure.Runs(out)
    decided = [runs.decide(run, "") for run in runs.seeds("cross entropy")]
    each = [runs.costs.mean(runs.confusions([one], "test").sum(0)) for one in decided]
    fewer = [row for row in rows.values() if row["seeds"] == 1]
    assert fewer and each[0] > each[1] == 0 and rows["cross entropy"]["seeds"] == 2
    for row in fewer:
        assert row["difference"][0] == pytest.approx(row["cost"][0] - each[0], abs=1e-12)
    for row in rows.values():
        assert len(row["by_seed"]) == row["seeds"]
        assert np.mean(row["by_seed"]) == pytest.approx(row["difference"][0], abs=1e-12)
    two = [row for row in rows.values() if row["seeds"] == 2]
    assert len(two) > 1 and all(row["by_seed"][1] >= 0 for row in two)  # cross entropy of seed 1 makes no error here


def test_the_dashed_line_of_the_curve_is_the_chosen_row():
    for name in ("yours-bccd", "yours-bccd-30"):
        found = json.loads((records.RECORDS / f"{name}.json").read_text())
        curve, dashed = figures.curve(found, plt.subplots()[1]).lines
        plt.close()
        cost = {row["name"]: row["cost"][0] for row in found["rows"]}
        assert curve.get_color() == plots.COLOURS["cross entropy"]
        assert set(dashed.get_ydata()) == {cost[found["chosen"]]} and list(curve.get_ydata()) == found["curve"]["cost"]


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


def test_after_an_error_the_mended_command_may_use_the_same_folder(folder, tmp_path, monkeypatch):
    """An error that is found before the plan leaves nothing that another try would stumble over."""
    monkeypatch.setattr(trial.Trial, "labels", lambda self: ["cross entropy"])
    monkeypatch.setattr(trial, "CURVE", ())
    with pytest.raises(ValueError, match="at least 12 x 12"):
        try_out(options(folder, tmp_path / "out", size=8))
    with pytest.raises(ValueError, match="class 'blå ü' has 9 pictures in 1 group: it needs 3"):
        try_out(options(folder, tmp_path / "out", groups="[^/]+/"))
    assert try_out(options(folder, tmp_path / "out", groups=None, seeds=1))[1] == "all runs are done"
    assert json.loads((tmp_path / "out/look.json").read_text())["groups"] is None


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
    def get(name, weights):
        if weights:
            raise OSError("no network")
        return models.squeezenet1_1() if name == "x" else models.resnet18()

    monkeypatch.setattr(models, "get_model", get)
    net, said = pictures.network("resnet18", 3, 64, pretrained=True)
    assert said.startswith("RANDOM weights: the pretrained ones") and "no network" in said
    assert net.fc.out_features == 3
    assert pictures.network("resnet18", 3, 64, pretrained=False)[1] == "RANDOM weights: as asked"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """torch's cache in an empty folder, and no network: the folder for files of weights."""

    def refused(*given, **named):
        raise OSError("no network in this test")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refused)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


def fake_weights(path, monkeypatch):
    """Weights of a resnet18 in a file with the name that torchvision expects, its hash in the name; their source."""
    torch.manual_seed(7)
    whole = models.resnet18()
    torch.save(whole.state_dict(), path / "made.pth")
    digest = hashlib.sha256((path / "made.pth").read_bytes()).hexdigest()
    name = f"resnet18-{digest[:8]}.pth"
    (path / "made.pth").rename(path / name)
    monkeypatch.setattr(models.ResNet18_Weights.DEFAULT.value, "url", f"https://download.pytorch.org/models/{name}")
    return path / name, whole


def test_pretrained_weights_come_from_torchvision_s_cache_without_network(offline, monkeypatch):
    cached, whole = fake_weights(offline, monkeypatch)
    net, said = pictures.network("resnet18", 3, 64, pretrained=True)
    assert said == "weights pretrained by torchvision" and net.fc.weight.shape == (3, 512)
    for name, value in net.state_dict().items():
        assert name.startswith("fc.") or value.equal(whole.state_dict()[name]), name
    cached.unlink()
    assert pictures.network("resnet18", 3, 64, True)[1].endswith("by download (no network in this test)")


def test_the_name_of_the_cached_file_is_the_published_one(offline):
    whole = models.resnet18()
    torch.save(whole.state_dict(), offline / "resnet18-f37072fd.pth")
    net, said = pictures.network("resnet18", 3, 64, pretrained=True)
    assert said == "weights pretrained by torchvision" and net.conv1.weight.equal(whole.conv1.weight)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x04."])
def test_a_damaged_file_in_the_cache_is_said(offline, content):
    (offline / "resnet18-f37072fd.pth").write_bytes(content)
    assert pictures.network("resnet18", 3, 64, pretrained=True)[1].startswith("RANDOM weights: the pretrained ones")


def test_a_download_with_another_hash_is_refused(offline, tmp_path, monkeypatch):
    """torchvision compares the hash in a file's name while it downloads, here from a file."""
    cached, whole = fake_weights(offline, monkeypatch)
    source = tmp_path / cached.name
    monkeypatch.setattr(torch.hub, "urlopen", urllib.request.urlopen)
    monkeypatch.setattr(models.ResNet18_Weights.DEFAULT.value, "url", source.as_uri())
    content = cached.read_bytes()
    cached.unlink()
    source.write_bytes(content + b"x")
    assert "invalid hash value" in pictures.network("resnet18", 3, 64, pretrained=True)[1]
    source.write_bytes(content)
    net, said = pictures.network("resnet18", 3, 64, pretrained=True)
    assert said == "weights pretrained by torchvision" and net.conv1.weight.equal(whole.conv1.weight)


def test_a_trial_on_pretrained_weights(offline, monkeypatch, folder, tmp_path):
    """Each seed starts from them, at the small learning rate, and the report says so."""
    fake_weights(offline, monkeypatch)
    monkeypatch.setattr(trial.Trial, "labels", lambda self: ["cross entropy"])
    monkeypatch.setattr(trial, "CURVE", ())
    given = dict(backbone="resnet18", pretrained=True, size=32, seeds=1, epochs=1, groups=None)
    shown, ended = try_out(options(folder, tmp_path / "out", **given))
    assert ended == "all runs are done" and "weights pretrained by torchvision" in shown.read_text(encoding="utf-8")


def test_parts_of_the_curve_cut_the_smallest_class(folder, tmp_path):
    files = trial.look.find(folder)
    files = files.only(np.array(["broken" not in p for p in files.paths]))
    made = trial.Trial(options(folder, tmp_path), files, np.arange(93))
    n = {part: np.bincount(files.y[made.positions(part)[0]]) for part in ("", "a half", "a quarter")}
    small = n[""].argmin()
    assert (np.delete(n[""], small) == np.delete(n["a quarter"], small)).all()
    assert n["a half"][small] == round(n[""][small] / 2) and n["a quarter"][small] == max(1, round(n[""][small] / 4))
    assert set(made.positions("a quarter")[0]) < set(made.positions("a half")[0]) < set(made.parts[0])
