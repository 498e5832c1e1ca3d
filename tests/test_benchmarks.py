"""The parts of the measuring scripts that could be wrong without anybody seeing it."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from imbook import data, nets, records
from imbook.methods import CRL, crl


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    yield importlib.import_module
    for name in ("timing", "per_rank", "step_memory", "growth", "exchange", "leak"):
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


def test_no_rival_takes_much_memory(script):
    rows = set(script("step_memory").rivals(torch.tensor([20, 10])))
    of = json.loads((records.RECORDS / "step-memory-rivals-cpu.json").read_text())["settings"]
    for name, made in of.items():
        assert set(made) == rows, name
        assert [m for m, found in made.items() if found["ratio"] > 1] == ["mixup"] and made["mixup"]["ratio"] < 1.05


def test_the_controls_of_mining_per_rank(script):
    per_rank = script("per_rank")
    torch.manual_seed(0)
    y = torch.tensor([0] * 10 + [1] * 4 + [2] * 2)[torch.randperm(16)]
    x, net, i, n = torch.randn(16, 64), nets.mlp(64, 3), torch.arange(16), data.counts(y)
    gathered = CRL(n)(net, x, y, i).item()
    wide = dict(classes=True, positives=True, negatives=True)
    for same in (per_rank.over(1), per_rank.over(1, per_rank.Controls), per_rank.over(4, per_rank.Controls, **wide)):
        assert same(n)(net, x, y, i).item() == pytest.approx(gathered, abs=1e-6)

    # two ranks, triplet by triplet
    p, a, half = net(x).softmax(1), CRL(n).alpha[0], 8
    parts = [range(half), range(half, 16)]
    small = {k: [c for c in range(3) if crl.minority(y[list(part)], 3)[c]] for k, part in enumerate(parts)}
    for classes, positives, negatives in [(True, False, False), (False, True, False), (False, False, True)]:
        triplets = []
        for j in range(16):
            rank, c = j // half, int(y[j])
            if c not in ([1, 2] if classes else small[rank]):
                continue
            near, far = (range(16) if wide else parts[rank] for wide in (positives, negatives))
            low = sorted((k for k in near if y[k] == c), key=lambda k: p[k, c].item())[:3]  # noqa: B023
            high = sorted((k for k in far if y[k] != c), key=lambda k: -p[k, c].item())[:3]  # noqa: B023
            triplets += [
                (0.5 + (p[j, c] - p[u, c]).abs() - (p[j, c] - p[v, c])).relu() for u in low if u != j for v in high
            ]
        mined = sum(triplets) / len(triplets)
        expected = a * mined + (1 - a) * torch.nn.functional.cross_entropy(net(x), y)
        made = per_rank.over(2, per_rank.Controls, classes=classes, positives=positives, negatives=negatives)
        assert made(n)(net, x, y, i).item() == pytest.approx(expected.item(), abs=1e-6)


def test_mining_per_rank_at_other_learning_rates(script):
    per_rank = script("per_rank")
    of = json.loads((records.RECORDS / "per-rank-digits.json").read_text())
    seeds = [str(seed) for seed in per_rank.SEEDS]
    assert list(of["recall"]) == list(per_rank.WAYS) and list(of["rates"]) == [str(rate) for rate in per_rank.RATES]
    for found in (of["recall"], *of["rates"].values()):
        assert set(per_rank.AT_RATES) <= set(found)
        for curves in found.values():
            assert list(curves) == seeds and all(len(curve) == per_rank.PROTOCOL.epochs for curve in curves.values())
    images, _ = data.load("digits")
    n = data.counts(images.y[data.long_tailed(images.y, ratio=20, seed=100)])
    assert per_rank.RATES[0] * (1 - CRL(n).alpha[0]) == pytest.approx(per_rank.PROTOCOL.lr, rel=0.01)


def test_the_bytes_of_gathered_tables(script):
    script("exchange")
    of = json.loads((records.RECORDS / "exchange-cpu.json").read_text())
    scores, features = (4 * of["batch"] * of[size] for size in ("classes", "features"))
    assert len(of["methods"]) == 7
    for name, found in of["methods"].items():
        tables = 6 if name == "DOS" else 1  # an image and its five neighbours
        more = features * (name in ("CRL, instance", "MFW", "DOS"))  # given features have no gradient
        assert found["bytes"] == {"one": 0, "global": 2 * tables * scores + more, "rank": 0}, name


@pytest.mark.parametrize("kind", ["neighbours", "copies"])
def test_the_groups_whose_split_leaks(script, kind):
    leak = script("leak")
    images, groups = leak.made(kind)
    n = [many if kind == "neighbours" else many // 3 * 3 for many in leak.MANY]
    assert data.counts(images.y).tolist() == n and images.x.shape == (sum(n), 1, 8, 8)
    assert len(set(groups.tolist())) == sum(-(-n_c // 3) for n_c in n)
    x = images.x.float().flatten(1)
    apart = torch.stack([(x[0:177:3] - x[k:177:3]).square().mean(1).sqrt() for k in (1, 2)])  # of the zeros
    assert (apart < 1.3 * leak.NOISE).all() if kind == "copies" else apart.median() > 1.3 * leak.NOISE
    assert apart.min() > 0
    taken = x if kind == "neighbours" else x[::3]  # of the copies the digits themselves
    assert not (torch.cdist(leak.fresh().x.float().flatten(1), taken) == 0).any()


def test_the_record_of_splits_that_leak(script):
    leak = script("leak")
    of = json.loads((records.RECORDS / "leak-digits.json").read_text())
    for kind, ways in of["claims"].items():
        images, groups = leak.made(kind)
        assert {len(found) for found in ways.values()} == {len(leak.SPLITS)}
        assert not any(share for _, share, _ in ways["by groups"])
        train, _, test = leak.split.at_random(images.y.numpy(), leak.SPLITS[-1])
        assert ways["at random"][-1][1] == pytest.approx(100 * leak.split.leaked(train, test, groups), abs=0.01)
    assert len(of["curves"]) == len(leak.SEEDS) and all(list(curve) == ["2", "3", "6"] for curve in of["curves"])
