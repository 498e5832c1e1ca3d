"""What deep over-sampling costs beside cross entropy: python benchmarks/dos_cost.py [FILE]

Times, in turn so that a busy machine slows all alike: a training step, the start of a round (embedding and neighbours),
whole epochs, each with the start of a round, of cross entropy, over-sampling and DOS, and the search among 6,000
embeddings. Writes one JSON record; the chapter reads it.
"""

import sys

import torch
from timing import images, in_turn, ratio, spread, steps, write

from imbook import data, nets, records
from imbook.methods import DOS, CrossEntropy, DOSAbstract, OverSampling
from imbook.methods.dos import nearest

# network, channels, pixels, images before the cut, classes cut, their share cut, batch, rounds of steps, of epochs
SETTINGS = {
    "C6-C16-F400-F120, MNIST, p = 0.9": (nets.dos_net, 1, 28, 12_000, 4, 0.9, 60, 30, 5),
    "C20-C50-F500-F120, CIFAR-10, p = 0.9": (nets.dos_net_large, 3, 32, 3_000, 4, 0.9, 50, 10, 3),
}
ONE_DRAW = 1e-9  # so few that each image is visited once: as many steps as the plain network


def measure(make, channels, pixels, size, cut, share, batch, rounds, epochs):
    torch.manual_seed(0)
    made = images(size, channels, pixels, 10)
    index = data.reduced(made.y, range(cut), share, seed=0)
    n = data.counts(made.y[index])
    methods = {
        "cross entropy": CrossEntropy(),
        "over-sampling": OverSampling(n, whole=True),
        "DOS, one draw": DOS(n, k=5, r=ONE_DRAW, start=0, every=1),
        "DOS": DOS(n, k=5, start=0, every=1),
        "DOS + abstract labels": DOSAbstract(n, k=5, groups=2, start=0, every=1),
        "DOS, live": DOS(n, k=5, start=0, every=1, v="live"),
        "DOS, live, lean": DOS(n, k=5, start=0, every=1, v="live", lean=True),
    }
    net = make(10, channels, pixels)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, fused=True)
    sets = {name: data.Batches(made, index, batch, seed=0) for name in methods}

    @torch.no_grad()
    def renew(name, epoch=1):
        methods[name].update(epoch, net, sets[name], None)

    for name in methods:
        renew(name, 0)
    few = {name: list(sets[name])[:8] for name in methods}
    work = {f"step, {name}": lambda name=name: steps(net, methods[name], optimiser, few[name]) for name in methods}
    work |= {f"round, {name}": lambda name=name: renew(name) for name in list(methods)[3:]}
    seconds = {
        name: [spent / (8 if name.startswith("step") else 1) for spent in values]
        for name, values in in_turn(work, rounds).items()
    }
    whole = in_turn(
        {name: lambda name=name: (renew(name), steps(net, methods[name], optimiser, sets[name])) for name in methods},
        epochs,
    )
    step = seconds["step, cross entropy"]
    return dict(
        milliseconds={name: spread([1e3 * v for v in values]) for name, values in seconds.items()},
        step_ratio={name: ratio(seconds[f"step, {name}"], step) for name in list(methods)[3:]},
        round_in_steps={name: ratio(seconds[f"round, {name}"], step) for name in list(methods)[3:]},
        epoch_seconds={name: spread(values) for name, values in whole.items()},
        epoch_ratio={name: ratio(values, whole["cross entropy"]) for name, values in whole.items()},
        steps_an_epoch={name: len(some) for name, some in sets.items()},
        training_images=len(index),
        state_bytes={name: sum(b.numel() * b.element_size() for b in m.buffers()) for name, m in methods.items()},
    )


def search():
    """Seconds to find 5 neighbours of each of 6,000 embeddings of 120 numbers, a whole class of MNIST."""
    z = torch.randn(6000, 120, generator=torch.Generator().manual_seed(0))
    return spread(in_turn({"search": lambda: nearest(z, 5)}, 5)["search"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else records.RECORDS / "cost-dos.json"
    record = dict(search_seconds=search(), settings={name: measure(*s) for name, s in SETTINGS.items()})
    write(record, path)
    for name, found in record["settings"].items():
        print(name, {k: round(v["median"], 3) for k, v in found["epoch_ratio"].items()})
