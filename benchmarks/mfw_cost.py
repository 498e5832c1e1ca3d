"""What MFW and its relatives cost beside cross entropy: python benchmarks/mfw_cost.py [FILE] [--quick]

Times, in turn so that a busy machine slows all alike: a training step of each method that mixes against cross
entropy's, and a short run with the instruments (feature gradients, confusion of the training images) against one
without. Writes one JSON record; the chapter reads it. --quick: few rounds, to see that it works.
"""

import copy
import sys

import torch
from timing import images, in_turn, ratio, spread, step_ratios, write

from imbook import data, nets, records
from imbook.methods import CDT, MFW, CrossEntropy, ManifoldMixup, Mixup, Remix
from imbook.train import Protocol, fit

# network, channels, pixels, classes, batch, batches a round, rounds
SETTINGS = {
    "LeNet, batch 32": (nets.lenet, 1, 28, 10, 32, 8, 40),
    "ResNet-32, batch 128": (nets.resnet32, 3, 32, 100, 128, 1, 12),
}
METHODS = {"MFW": MFW, "mixup": Mixup, "manifold mixup": ManifoldMixup, "Remix": Remix, "CDT": CDT}
SHORT = Protocol("short", epochs=2, batch=32, lr=0.01, watch=1)


def measure_steps(make, channels, pixels, classes, batch, batches, rounds):
    """The step of each method over that of cross entropy, for step-imbalanced class counts."""
    torch.manual_seed(0)
    few = list(data.Batches(images(batch * batches, channels, pixels, classes), batch=batch))
    net, n = make(classes=classes, channels=channels), torch.tensor(data.step_counts(1000, 100, classes))
    methods = {"cross entropy": CrossEntropy(), **{name: method(n) for name, method in METHODS.items()}}
    return step_ratios(net, methods, few, rounds)


def measure_instruments(rounds):
    """A run of two epochs of LeNet, each followed by an evaluation, with both instruments over one without."""
    torch.manual_seed(0)
    start = nets.lenet()
    sets = [data.Batches(images(size, 1, 28, 10), batch=32) for size in (2560, 5120)]  # as many test images a step
    run = lambda stage: fit(  # noqa: E731
        copy.deepcopy(start), CrossEntropy(), sets[0], test=sets[1], protocol=SHORT, instrument=stage
    )
    seconds = in_turn({"without": lambda: run(None), "with": lambda: run("stage3")}, rounds)
    return dict(seconds={k: spread(v) for k, v in seconds.items()}, ratio=ratio(seconds["with"], seconds["without"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    paths = [a for a in sys.argv[1:] if a != "--quick"]
    record = dict(
        steps={name: measure_steps(*s[:-1], 3 if quick else s[-1]) for name, s in SETTINGS.items()},
        instruments=measure_instruments(3 if quick else 20),
        quick=quick,
    )
    write(record, paths[0] if paths else records.RECORDS / "cost-mfw.json")
    for name, found in record["steps"].items():
        print(name, {row: round(r["median"], 3) for row, r in found["ratio"].items()})
    print("instruments", record["instruments"]["ratio"])
