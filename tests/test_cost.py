"""What runs cost on paper: operations by hand, counts that add up, and every assumption an input."""

import re
from dataclasses import replace
from pathlib import Path

import growth
import pytest
import torch

from imbook import cost, data, large, tables
from imbook.cost import Machine

ROW = tables.TABLES["imagenet-lt"].rows[0]
N = cost.published("imagenet-lt")


def test_operations_are_those_counted_by_hand():
    """DeepID2's size: 2 * outputs * inputs * kernel of each layer, no pooling, no bias."""
    side, flops, parameters, inputs = 64, 0, 0, 3
    for maps, kernel in ((20, 4), (40, 3), (60, 3), (80, 2)):
        side = side - kernel + 1
        flops += 2 * side**2 * maps * inputs * kernel**2
        parameters += maps * (inputs * kernel**2 + 1)
        inputs, side = maps, side if maps == 80 else side // 2
    d = 60 * 6**2 + 80 * 5**2
    flops += 2 * (d * 160 + 160 * 80)
    parameters += (d + 1) * 160 + 161 * 80
    assert cost.operations("deepid2", (2,) * 40, (3, 64, 64)) == (flops, parameters)


def test_operations_of_the_large_networks():
    flops, parameters = cost.operations("resnet50", 1000, (3, 224, 224))
    assert abs(flops / 8.18e9 - 1) < 0.01 and parameters == 25_557_032  # torchvision's page: 4.09 G multiply-adds
    flops, parameters = cost.operations("r3d_18", 400, (3, 16, 112, 112))
    assert abs(flops / 2 / 40.7e9 - 1) < 0.01 and parameters == 33_371_472  # the same page


def test_counts_fall_and_add_up():
    for name, (total, classes, largest, smallest) in cost.COUNTS.items():
        n = cost.published(name)
        assert len(n) == classes == large.LARGE[name].classes and n[0] == largest and n[-1] == smallest
        assert (n.diff() <= 0).all() and abs(int(n.sum()) / total - 1) < 0.001
        assert total == large.LARGE[name].samples[0]
    assert cost.published("egtea").sum() == large.LARGE["egtea"].samples[0]
    assert len(cost.published("celeba")) == 40
    with pytest.raises(ValueError, match="cannot hold 5"):
        cost.long_tail(5, 10, 4, 1)
    with pytest.raises(ValueError, match="the size of x-domain is not known to us"):
        cost.published("x-domain")


def test_an_estimate_by_hand():
    machine = Machine("m", flops=1e12, used=0.5, reads=10.0, link=1e9, dollars=2.0)
    one, eight = cost.estimate(ROW, N, machine, gpus=(1, 8))
    images = 93 * int(N.sum())  # 90 epochs, and three evaluations
    assert one["images"] == images and one["steps"] == 90 * -(-int(N.sum()) // 512)
    assert one["bound"] == "reading" and one["hours"] == pytest.approx(images / 10 / 3600)
    assert eight["hours"] == pytest.approx(one["hours"] / 8) and eight["gpu_hours"] == pytest.approx(one["gpu_hours"])
    assert eight["dollars"] == pytest.approx(2 * eight["gpu_hours"])
    flops, parameters = cost.operations("resnet10", 1000, (3, 224, 224))
    (fed,) = cost.estimate(ROW, N, replace(machine, reads=1e9), gpus=(1,))
    assert fed["bound"] == "compute"
    assert fed["hours"] == pytest.approx(flops * (3 * 90 + 3) * int(N.sum()) / 0.5e12 / 3600)
    (tied,) = cost.estimate(ROW, N, replace(machine, reads=1e9, link=1e6), gpus=(64,))
    assert tied["bound"] == "gradients"
    assert tied["hours"] == pytest.approx(one["steps"] * 2 * 63 / 64 * 4 * parameters / 1e6 / 3600)
    (tables,) = cost.estimate(ROW, N, replace(machine, reads=1e9, link=1e6), gpus=(64,), gathered=12 * parameters)
    assert tables["bound"] == "gradients" and tables["hours"] == pytest.approx(4 * tied["hours"])
    (small,) = cost.estimate(ROW, N, replace(machine, reads=1e9, flops=1e18, launch=9.0), gpus=(1,))
    assert small["bound"] == "launching" and small["hours"] == pytest.approx(one["steps"] * 9 / 3600)
    assert cost.crossover(machine, flops) == pytest.approx(0.5e12 / 3 / flops)


def test_over_sampling_is_counted():
    dos = replace(ROW, method="DOS", hyper={"minority": "half", "start": 45, "every": 15})
    small = N <= N.max() / 2
    visited = int((N * torch.where(small, (N.max() / N).round(), 1)).sum())
    assert cost.visits(dos, N) == [int(N.sum())] * 45 + [visited] * 45
    assert visited > 8 * int(N.sum())


@pytest.mark.parametrize("name", sorted(cost.SHAPES.keys() - {"x-domain", "tiny-imagenet"}))
def test_every_table_can_be_estimated(name):
    table = tables.TABLES[large.LARGE[name].table]
    for line in cost.estimate(table.rows[-1], cost.published(name)):
        assert 0 < line["hours"] < 1000 and line["gpu_hours"] == line["hours"] * line["gpus"]


def test_what_a_method_keeps():
    n = torch.tensor([100, 10])
    assert cost.state_bytes("DOS", n, features=64, batch=32)["kept"] == 110 * (4 * 64 + 8 * 5 + 8)
    assert cost.state_bytes("CrossEntropy", n, 64, 32) == dict(kept=0, step=4 * 32 * 2)
    assert cost.neighbour_operations(n, 64) == 2 * 64 * (100**2 + 10**2)
    assert cost.neighbour_operations(n, 64, n < 50) == 2 * 64 * 10**2


def test_the_benchmark_measures_every_method():
    found = growth.measure(classes=4, each=6, batch=8, rounds=2)
    assert found.keys() == growth.methods(torch.tensor([2, 2])).keys()
    for name, of in found.items():
        assert of["step_ms"]["n"] == 2 and of["step_mb"] > 0 and (of["visits"] > 1) == (name == "DOS"), name
        assert 0 < of["step_ms"]["low"] <= of["step_ms"]["median"] <= of["step_ms"]["high"], name
    assert found["cross entropy"]["ratio"]["median"] == 1
    found = growth.search(200, rounds=2)
    assert found["blocks, float64 (DOS)"]["recall"] == 1
    if found.get("faiss", True) is not None:
        assert found["faiss, exact"]["recall"] > 0.99


def test_the_hours_on_the_page_are_those_computed():
    page = (Path(__file__).resolve().parents[1] / "book/data.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\|.*\| `([\w-]+)`[^|]*\|[^|]*\| ([\d.]+) \|$", page, re.MULTILINE))
    assert found.keys() >= {"imagenet-lt", "inaturalist2018", "tiny-imagenet-lt-100", "egtea", "celeba", "deepfashion"}
    for table, hours in found.items():
        row = tables.TABLES[table].rows[0]
        name = row.split.data
        n = cost.published(name)
        if row.split.profile == "long_tailed":
            n = torch.tensor(data.long_tailed_counts(row.split.n_max, row.split.ratio, len(n)))
        (line,) = cost.estimate(row, n, gpus=(1,))
        assert float(hours) == pytest.approx(line["hours"], abs=0.05 if line["hours"] > 1 else 0.006), table
