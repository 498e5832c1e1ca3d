"""What CRL costs beside cross entropy: python benchmarks/crl_cost.py [FILE] [--quick]

Times, in turn so that a busy machine slows all alike: a training step with each level and form against cross entropy's,
and the loss alone, forward and backward, over batch size, classes and kappa. Writes one JSON record; the chapter reads
it. --quick: few rounds, to see that it works.
"""

import sys

import torch
import torch.nn.functional as F
from timing import images, in_turn, spread, step_ratios, write

from imbook import data, nets, records
from imbook.methods import CRL, CrossEntropy
from imbook.methods.crl import FORMS, LEVELS, rectification

# network, channels, pixels, classes, batch, batches a round, rounds
SETTINGS = {
    "LeNet, batch 32": (nets.lenet, 1, 28, 10, 32, 8, 40),
    "ResNet-32, batch 128": (nets.resnet32, 3, 32, 100, 128, 1, 12),
}
AXES = {  # the others stay at batch 128, 10 classes, kappa 3
    "batch": (32, 64, 128, 256, 512, 1024),
    "classes": (10, 30, 100, 300, 1000),
    "kappa": (1, 3, 8, 25),
}
FEATURES = 64


def measure_steps(make, channels, pixels, classes, batch, batches, rounds):
    """The step of each level and form over that of cross entropy."""
    torch.manual_seed(0)
    train = data.Batches(images(batch * batches, channels, pixels, classes), batch=batch)
    few = list(train)
    net = make(classes=classes, channels=channels)
    rectified = {f"CRL, {level}, {form}": CRL(train.n, level, form, alpha=0.5) for level in LEVELS for form in FORMS}
    return step_ratios(net, {"cross entropy": CrossEntropy(), **rectified}, few, rounds)


def measure_loss(rounds, batch=128, classes=10, kappa=3):
    """Milliseconds of the loss alone, forward and backward, each with cross entropy's beside it."""
    torch.manual_seed(0)
    h = torch.randn(batch, classes, requires_grad=True)
    z = torch.randn(batch, FEATURES, requires_grad=True)
    y = torch.arange(batch) % classes
    losses = {"cross entropy": lambda: F.cross_entropy(h, y)} | {
        level: lambda level=level: rectification(h, z, y, level, kappa=kappa) for level in LEVELS
    }
    work = {name: lambda loss=loss: loss().backward() for name, loss in losses.items()}
    return {name: spread([1e3 * v for v in values]) for name, values in in_turn(work, rounds).items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    paths = [a for a in sys.argv[1:] if a != "--quick"]
    record = dict(
        steps={name: measure_steps(*s[:-1], 3 if quick else s[-1]) for name, s in SETTINGS.items()},
        loss={
            axis: {value: measure_loss(3 if quick else 30, **{axis: value}) for value in values}
            for axis, values in AXES.items()
        },
        features=FEATURES,
        quick=quick,
    )
    write(record, paths[0] if paths else records.RECORDS / "cost-crl.json")
    for name, found in record["steps"].items():
        print(name, {row: round(r["median"], 3) for row, r in found["ratio"].items()})
