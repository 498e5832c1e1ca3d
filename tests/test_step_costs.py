"""The benchmark's chain of stages, its counts of work, and the page that is made from its records."""

import json

import pytest
import step
import step_costs
import torch

from imbook import data, nets
from imbook.train import Protocol


def images(number):
    x = torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return data.Images(x, torch.arange(number) % 10, tuple(map(str, range(10))), (0.5,), (0.25,))


def test_stages_are_compared_round_by_round_with_the_one_before():
    seconds = {"twin, 0 workers": [8.0, 16.0, 8.0], "tensors": [4.0, 4.0, 2.0], "plain": [2.0, 1.0, 1.0]}
    first, second, third = step.stages_of("lenet", seconds, "twin, 0 workers", 4)
    assert first == {"network": "lenet", "stage": "slow twin, 0 workers", "ms a step": 2000, "gain": "-"}
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
        "resnet32": {"data": "noise", "stages": [{"stage": "slow twin", "ms a step": 12.0, "gain": "-"}]},
        "table": [{**line, "over CE's": "1.00 (1.00 to 1.00)", "GFLOP": 81.0, "GB": 3.2}],
    }  # fmt: skip


def test_page(tmp_path, record):
    assert "Pending" in step_costs.page(tmp_path)
    folder = tmp_path / "imbook/records"
    folder.mkdir(parents=True)
    (folder / "steps-cpu.json").write_text(json.dumps(record))
    page = step_costs.page(tmp_path)
    assert "| slow twin | 12 | – |" in page and "| CrossEntropy | 9 | 1.00 (1.00 to 1.00) |" in page
    # 97 batches of 12,406 images, 200 epochs: 0.01 s of arithmetic each at 8.1 TFLOP/s, and 0.01 s at 0.32 TB/s
    assert "19,400 steps" in page and "3.2 minutes of arithmetic" in page and "3.2 minutes of memory" in page
    assert "Pending" in page
    gpu = record | {"device": "NVIDIA H200"}
    gpu["table"] = [record["table"][0] | {"fast": 0.9}]
    (folder / "steps-h200.json").write_text(json.dumps(gpu))
    page = step_costs.page(tmp_path)
    assert "Pending" not in page and "| CrossEntropy | 0.9 | 1.00 (1.00 to 1.00) |" in page
