"""The memory of a training step of each method beside cross entropy's: python benchmarks/step_memory.py [RECORD]

On one thread of a processor, by torch's profiler: the most that the allocations of a step (forward, backward, update)
stand above where it began, the second step after the method's first update, and what the method keeps between steps.
Nothing is timed. Weights, momentum and the batch itself are the same for all and left out. Writes JSON records, which
the chapters read: step-memory-cpu (the methods) and step-memory-rivals-cpu (the rivals), or the one that is named. What
torch allocates differs a little from processor to processor: compare within a record.
"""

import gc
import sys

import torch
from timing import images, peak, steps, write

from imbook import data, nets, records
from imbook.methods import (
    CDB,
    CDT,
    CRL,
    DOS,
    MFW,
    BalancedSoftmax,
    CrossEntropy,
    DOSAbstract,
    Focal,
    LabelSmoothing,
    LogitAdjusted,
    Mixup,
    OverSampling,
    Weighted,
)

# network, channels, pixels, classes, largest class, ratio, batch
SETTINGS = {
    "LeNet, batch 32": (nets.lenet, 1, 28, 10, 2000, 100, 32),
    "ResNet-32, batch 128": (nets.resnet32, 3, 32, 100, 100, 20, 128),
    "C6-C16-F400-F120, batch 60": (nets.dos_net, 1, 28, 10, 2000, 100, 60),
}


def methods(n):
    often = dict(k=5, start=0, every=1)
    return {
        "cross entropy": CrossEntropy(),
        "over-sampling": OverSampling(n, whole=True),
        "CRL, class": CRL(n, level="class", alpha=0.1),
        "CRL, instance": CRL(n, level="instance", alpha=0.1),
        "CDB": CDB(n),
        "MFW": MFW(n),
        "DOS": DOS(n, **often),
        "DOS, live": DOS(n, v="live", **often),
        "DOS, live, lean": DOS(n, v="live", lean=True, **often),
        "DOS + abstract labels": DOSAbstract(n, groups=2, **often),
    }


def rivals(n):
    return {
        "cross entropy": CrossEntropy(),
        "class weights": Weighted(n, reduction="weights"),
        "focal loss": Focal(n, gamma=2.0),
        "label smoothing": LabelSmoothing(n),
        "logit adjustment": LogitAdjusted(n),
        "balanced softmax": BalancedSoftmax(n),
        "CDT": CDT(n),
        "mixup": Mixup(n, alpha=1.0),
        "over-sampling": OverSampling(n),
    }


RECORDS = {"step-memory-cpu": methods, "step-memory-rivals-cpu": rivals}


def measure(rows, make, channels, pixels, classes, largest, ratio, batch):
    """{method: MB of a step, its ratio to cross entropy's, MB kept}, each from the same start."""
    torch.manual_seed(0)
    made = images(largest * classes, channels, pixels, classes)
    sizes = data.long_tailed_counts(largest, ratio, classes)
    index = torch.cat([torch.nonzero(made.y == c)[:k, 0] for c, k in enumerate(sizes)])
    net, found = make(classes=classes, channels=channels), {}
    for name, method in rows(data.counts(made.y[index])).items():
        train = data.Batches(made, index, batch=batch, seed=0)
        optimiser = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, fused=True)
        with torch.no_grad():
            method.update(0, net, train, train)
        first, second = (some for some, _ in zip(train, range(2), strict=False))
        steps(net, method, optimiser, [first])
        optimiser.zero_grad()  # the profiler cannot see what it did not see allocated
        gc.collect()
        kept = sum(b.numel() * b.element_size() for b in method.buffers())
        found[name] = dict(step_mb=peak(lambda: steps(net, method, optimiser, [second])) / 1e6, kept_mb=kept / 1e6)  # noqa: B023
    plain = found["cross entropy"]["step_mb"]
    return {name: dict(**of, ratio=of["step_mb"] / plain) for name, of in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or RECORDS:
        record = dict(settings={k: measure(RECORDS[name], *setting) for k, setting in SETTINGS.items()})
        write(record, records.RECORDS / f"{name}.json")
        for setting, of in record["settings"].items():
            print(setting, {method: round(v["ratio"], 2) for method, v in of.items()})
