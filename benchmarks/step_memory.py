"""The memory of a training step of each method beside cross entropy's: python benchmarks/step_memory.py [FILE]

On one thread of a processor, by torch's profiler: the most that the allocations of a step (forward, backward, update)
stand above where it began, the second step after the method's first update, and what the method keeps between steps.
Nothing is timed. Weights, momentum and the batch itself are the same for all and left out. Writes one JSON record; the
chapters read it.
"""

import gc
import sys

import torch
from timing import images, peak, steps, write

from imbook import data, nets, records
from imbook.methods import CDB, CRL, DOS, MFW, CrossEntropy, DOSAbstract, OverSampling

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


def measure(make, channels, pixels, classes, largest, ratio, batch):
    """{method: MB of a step, its ratio to cross entropy's, MB kept}, each from the same start."""
    torch.manual_seed(0)
    made = images(largest * classes, channels, pixels, classes)
    sizes = data.long_tailed_counts(largest, ratio, classes)
    index = torch.cat([torch.nonzero(made.y == c)[:k, 0] for c, k in enumerate(sizes)])
    net, found = make(classes=classes, channels=channels), {}
    for name, method in methods(data.counts(made.y[index])).items():
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
    path = sys.argv[1] if len(sys.argv) > 1 else records.RECORDS / "step-memory-cpu.json"
    record = dict(settings={name: measure(*setting) for name, setting in SETTINGS.items()})
    write(record, path)
    for name, of in record["settings"].items():
        print(name, {method: round(v["ratio"], 2) for method, v in of.items()})
