"""What CDB costs beside cross entropy: python benchmarks/cdb_cost.py [FILE]

Times, in turn so that a busy machine slows all alike: a training step of each, the renewal of the weights, and whole
epochs of cross entropy, of cross entropy that validates as often, and of CDB. Writes one JSON record; the chapter
reads it.
"""

import sys

import torch
from timing import clock, images, in_turn, ratio, spread, steps, write

from imbook import data, nets, records
from imbook.methods import CDB, CrossEntropy
from imbook.train import evaluate

# network, channels, pixels, classes, training images, held-out images a class, batch, rounds of steps, rounds of epochs
SETTINGS = {
    "LeNet, Fashion-MNIST, ratio 100": (nets.lenet, 1, 28, 10, 4958, 100, 32, 30, 5),
    "ResNet-32, CIFAR-100-LT, ratio 100": (nets.resnet32, 3, 32, 100, 10302, 25, 32, 5, 0),
}


def measure(make, channels, pixels, classes, size, held, batch, rounds, epochs):
    torch.manual_seed(0)
    train = data.Batches(images(size, channels, pixels, classes), batch=batch, seed=0)
    valid = data.Batches(images(held * classes, channels, pixels, classes))
    few = list(train)[:4]
    net = make(classes=classes, channels=channels)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)
    ce, cdb = CrossEntropy(), CDB(train.n)
    renew = lambda: cdb.update(1, net, train, valid)  # noqa: E731
    work = {
        "step, cross entropy": lambda: steps(net, ce, optimiser, few),
        "step, CDB": lambda: steps(net, cdb, optimiser, few),
        "validation, cross entropy": lambda: evaluate(net, valid),
        "validation and new weights, CDB": lambda: torch.no_grad()(renew)(),
    }
    seconds = {
        name: [spent / (len(few) if name.startswith("step") else 1) for spent in values]
        for name, values in in_turn(work, rounds).items()
    }
    whole = {name: [] for name in ("cross entropy", "cross entropy that validates", "CDB")}
    for _ in range(epochs):
        whole["cross entropy"].append(clock(lambda: steps(net, ce, optimiser, train)))
        whole["cross entropy that validates"].append(
            clock(lambda: (steps(net, ce, optimiser, train), evaluate(net, valid)))
        )
        whole["CDB"].append(clock(lambda: (torch.no_grad()(renew)(), steps(net, cdb, optimiser, train))))
    step = seconds["step, cross entropy"]
    return dict(
        milliseconds={name: spread([1e3 * v for v in values]) for name, values in seconds.items()},
        step_ratio=ratio(seconds["step, CDB"], step),
        validation_in_steps=ratio(seconds["validation and new weights, CDB"], step),
        steps_an_epoch=len(train),
        epoch_seconds={name: spread(values) for name, values in whole.items()} if epochs else None,
        epoch_ratio=ratio(whole["CDB"], whole["cross entropy"]) if epochs else None,
        epoch_ratio_validating=ratio(whole["CDB"], whole["cross entropy that validates"]) if epochs else None,
        training_images=size,
        held_out_images=held * classes,
        state_bytes=sum(b.numel() * b.element_size() for b in cdb.buffers()),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else records.RECORDS / "cost-cdb.json"
    record = dict(settings={name: measure(*s) for name, s in SETTINGS.items()})
    write(record, path)
    for name, found in record["settings"].items():
        print(f"{name}: step {found['step_ratio']['median']:.3f}, epoch {(found['epoch_ratio'] or {}).get('median')}")
