"""The parts of the measuring scripts that could be wrong without anybody seeing it."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from imbook import data, nets, records
from imbook.methods import CRL


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    yield importlib.import_module
    for name in ("timing", "per_rank", "step_memory"):
        sys.modules.pop(name, None)


def test_the_peak_is_that_of_what_stands_at_once(script):
    peak = script("timing").peak

    def work():
        first = torch.empty(1_000_000)  # 4 MB
        second = torch.empty(2_000_000)
        del first
        third = torch.empty(500_000)
        return second, third

    assert 12e6 <= peak(work) < 12.1e6


def test_memory_tells_what_live_neighbours_take(script):
    script("step_memory")
    of = json.loads((records.RECORDS / "step-memory-cpu.json").read_text())["settings"]
    for name, made in of.items():
        for method, found in made.items():
            expected = 6 if method == "DOS, live" else 3.5 if method == "DOS, live, lean" else 1  # one image and five
            assert found["ratio"] == pytest.approx(expected, rel=0.15), (name, method)
        assert made["DOS"]["kept_mb"] > made["CDB"]["kept_mb"] > 0 == made["cross entropy"]["kept_mb"]


def test_the_control_of_mining_per_rank_differs_in_the_pairs_alone(script):
    per_rank = script("per_rank")
    torch.manual_seed(0)
    y = torch.tensor([0] * 10 + [1] * 4 + [2] * 2)[torch.randperm(16)]
    x, net, i, n = torch.randn(16, 64), nets.mlp(64, 3), torch.arange(16), data.counts(y)
    gathered = CRL(n)(net, x, y, i)
    alone, control = (per_rank.over(1, kind)(n)(net, x, y, i) for kind in (per_rank.PerRank, per_rank.SameClasses))
    assert gathered.item() == pytest.approx(alone.item(), abs=1e-6) == control.item()
    # two ranks, by hand: the classes 1 and 2 are the batch's minority, whatever the ranks hold
    from imbook.methods import crl

    h, mined = net(x), 0.0
    for h_r, y_r in zip(h.tensor_split(2), y.tensor_split(2), strict=True):
        d_pos, d_neg, is_pos, is_neg = crl.mine_classes(h_r.softmax(1), y_r, 3)
        of_two = (y_r > 0)[:, None]
        mined = mined + crl.relative(d_pos, d_neg, is_pos & of_two, is_neg & of_two, 0.5) / 2
    a = CRL(n).alpha[0]
    expected = a * mined + (1 - a) * torch.nn.functional.cross_entropy(h, y)
    assert per_rank.over(2, per_rank.SameClasses)(n)(net, x, y, i).item() == pytest.approx(expected.item(), abs=1e-6)
