"""The benchmark's chain of loops, its counts of work, its time limit, and the page that is made from its records."""

import json
import math
import sys

import pytest
import step
import step_costs
import torch

from imbook import data, nets
from imbook.train import Protocol


def images(number):
    x = torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return data.Images(x, torch.arange(number) % 10, tuple(map(str, range(10))), (0.5,), (0.25,))


def test_loops_are_compared_round_by_round_with_the_one_before():
    seconds = {"twin, 0 workers": [8.0, 16.0, 8.0], "tensors": [4.0, 4.0, 2.0], "plain": [2.0, 1.0, 1.0], "fast": []}
    first, second, third = step.chain_of("lenet", seconds, "twin, 0 workers", 4)
    assert first == {"network": "lenet", "row": "slow twin, 0 workers", "ms a step": 2000, "gain": "-"}
    assert second["gain"] == "4.00 (2.00 to 4.00)" and second["ms a step"] == 1000
    assert third["gain"] == "2.00 (2.00 to 4.00)"


def test_the_written_loop_takes_the_steps_of_fit():
    protocol = Protocol("p", epochs=2, batch=130, lr=0.01)
    torch.manual_seed(0)
    net = nets.lenet()
    written = step.Written(net, images(260), protocol, "cpu", torch.contiguous_format)
    written(), written()
    ours = step.Ours(net, images(260), protocol, "cpu")
    ours()
    for a, b in zip(written.net.parameters(), ours.net.parameters()):
        assert torch.allclose(a, b, atol=1e-6) and not torch.equal(a, torch.zeros_like(a))


def test_work_of_a_linear_step():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    ours = step.Ours(net, images(260), Protocol("p", epochs=1, batch=20, lr=0.01), "cpu")
    flop, moved = ours.work()
    assert flop == 2 * 2 * 20 * 784 * 10  # forward, and the gradient of the weights
    assert moved > 4 * (20 * 784 + 5 * 7840)  # inputs; weights, gradient and momentum, read and written


@pytest.fixture
def record():
    line = {"network": "resnet32", "method": "CrossEntropy", "batch": 128, "plain": 9.0, "fast": "plain loop"}
    return {
        "device": "a processor", "threads": 1, "versions": {"torch": "2", "python": "3"}, "time": "2026-01-02T03",
        "batch": 128,
        "resnet32": {"data": "noise", "chain": [{"row": "slow twin", "ms a step": 12.0, "gain": "-"}]},
        "table": [{**line, "over CE's": "1.00 (1.00 to 1.00)", "GFLOP": 81.0, "GB": 3.2}],
    }  # fmt: skip


def test_page(tmp_path, record):
    assert "Measured by hand on one H100" in step_costs.page(tmp_path)
    folder = tmp_path / "imbook/records"
    folder.mkdir(parents=True)
    (folder / "steps-cpu.json").write_text(json.dumps(record))
    page = step_costs.page(tmp_path)
    assert "| slow twin | 12 | – |" in page and "| CrossEntropy | 9 | 1.00 (1.00 to 1.00) |" in page
    # 97 batches of 12,406 images, 200 epochs: 0.01 s of arithmetic each at 8.1 TFLOP/s, and 0.01 s at 0.32 TB/s
    assert "19,400 steps" in page and "3.2 minutes of arithmetic" in page and "3.2 minutes of memory" in page
    assert "Measured by hand on one H100" in page
    gpu = record | {"device": "NVIDIA H200"}
    rows = [{"processes": 5, "service": True, "batch": 128, "ms a step": 1.65}]
    gpu["resnet32"] = record["resnet32"] | {"processes": rows, "precision": "bf16"}
    gpu["table"] = [record["table"][0] | {"fast": 0.9}]
    (folder / "steps-h200.json").write_text(json.dumps(gpu))
    page = step_costs.page(tmp_path)
    assert "by hand" not in page and "| CrossEntropy | 0.9 | 1.00 (1.00 to 1.00) |" in page
    assert "| 5 | with | 1.65 |" in page
    cut_short = record | {"table": [], "lenet": {"data": "noise"}}
    (folder / "steps-cpu.json").write_text(json.dumps(cut_short))
    assert "slow twin" in step_costs.page(tmp_path), "what a time limit left"


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(step, "load", lambda name, number: (step.noise(name, min(number, 640)), "noise"))


def quick(tmp_path, *more):
    """A whole run of the script on noise, as small as can be; returns its record."""
    options = ["--nets", "lenet", "--rounds", "1", "--steps", "1", "--threads", "1"]
    step.main([*options, "--json", str(tmp_path / "steps.json"), *more])
    return json.loads((tmp_path / "steps.json").read_text())


def test_a_whole_run_writes_after_each_row(tmp_path, monkeypatch, capsys, few):
    written, write = [], step.timing.write
    monkeypatch.setattr(step.timing, "write", lambda r, *rest: (written.append(len(str(r))), write(r, *rest)))
    record = quick(tmp_path, "--method-rounds", "1")
    assert list(record["lenet"]["loops"]) == [*(f"twin, {w} workers" for w in range(3)), "tensors", "plain"]
    assert [row["row"] for row in record["lenet"]["chain"]][1:] == [step.CHAIN["tensors"], step.CHAIN["plain"]]
    assert len(record["table"]) == len(record["lenet"]["methods"]) > 15 and len(record["dos"]["ratio"]) == 2
    assert len(written) == 2 + 5 + len(record["table"]) + 3 and written == sorted(written)
    assert "the methods, milliseconds a step" in capsys.readouterr().out


def test_a_budget_ends_the_run_and_keeps_what_there_is(tmp_path, monkeypatch, capsys, few):
    checks, check = [], step.Limit.check

    def counted(self):
        checks.append(self.end)
        if len(checks) > 8:  # in the first round after the warm-up, after three loops
            self.end = 0
        check(self)

    monkeypatch.setattr(step.Limit, "check", counted)
    record = quick(tmp_path, "--budget", "8m")
    assert {k: len(v) for k, v in record["lenet"]["loops"].items() if v} == {f"twin, {w} workers": 1 for w in range(3)}
    assert record["table"] == [] and "stopped: the budget is spent" in capsys.readouterr().out
    assert math.isfinite(checks[0])


def test_durations():
    assert [step.duration(t) for t in ("90", "90s", "8m", "2h")] == [90, 90, 480, 7200]


def test_a_row_that_fails_is_left_out(capsys):
    def fails():
        raise ValueError("no such device")

    seconds, kept = {}, []
    step.alternate({"a": lambda: 1.0, "b": fails}, 2, seconds, step.Limit(None), lambda: kept.append(1))
    assert seconds == {"a": [1.0, 1.0]} and len(kept) == 2
    assert "b: not timed. no such device" in capsys.readouterr().out


def test_steps_of_a_method_that_repeats_images():
    made, n = images(260), torch.tensor([26] * 10)
    n[0] = 5
    ours = step.Ours(nets.mlp(784, 10), made, Protocol("p", 1, 16), "cpu", step.METHODS["DOS"](n, start=0))
    assert ours.steps == -(-int((ours.method.times * ours.train.n).sum()) // 16) > 260 // 16


def test_several_processes_train_at_once():
    assert 0 < step.processes(2, 0.1, "lenet", "cpu", 16) < 1000


def test_the_multi_process_service_is_left_out_where_it_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with step.service() as env:
        assert env is None
    program = tmp_path / "nvidia-cuda-mps-control"
    log = str(tmp_path / "log")
    program.write_text(f"#!{sys.executable}\nimport sys\nopen({log!r}, 'a').write(repr(sys.argv[1:]))\n")
    program.chmod(0o755)
    with step.service() as env:
        assert env["CUDA_MPS_PIPE_DIRECTORY"]
    assert (tmp_path / "log").read_text() == "['-d'][]", "started, and ended"
