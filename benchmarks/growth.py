"""How step time and memory grow with batch, classes and images per class: python benchmarks/growth.py [FILE]

For each method, on one thread of a processor: a training step (forward, backward, update) of a linear classifier on
features that are given, so that what is seen is the method and its classifier and not a network, against the batch B
and against the number of classes C (10 to 8,142); the update before an epoch against the images per class; the memory
that a step adds (the peak of what torch allocates, by its profiler). The methods are timed in turn, forwards and
backwards, and each time is a median with its quartiles. Then the search for neighbours: the exact one in
blocks of `imbook.methods.dos.nearest` against faiss, exact and HNSW, in seconds and recall; without faiss (pip install
faiss-cpu) only our own. Writes one JSON record.
"""

import sys
from functools import partial

import torch
from timing import clock, in_turn, peak, ratio, spread, write
from torch import nn

from imbook import data, records
from imbook.cost import neighbour_operations, state_bytes
from imbook.methods import CDB, CRL, DOS, MFW, BalancedSoftmax, CrossEntropy
from imbook.methods.dos import nearest

D, K, ROUNDS, ENOUGH = 64, 5, 15, 0.02  # ENOUGH: seconds that a timed job takes at least, by repeating the step
BATCHES, CLASSES, EACH = (32, 128, 512), (10, 100, 1000, 8142), (20, 200, 2000)
SEARCHED = (1000, 4000, 16_000)


def batches(classes, each, batch):
    """Features of 64 numbers as images of 1 x 8 x 8, classes in turn: `each` per class, fewer in the last half.

    There every second image is left out by its position, but the first of each class stays: with an even number of
    classes every other one of that half keeps `each` images and the others one.
    """
    y = torch.arange(classes * each) % classes
    y = y[(y < (classes + 1) // 2) | (torch.arange(len(y)) % 2 == 0) | (torch.arange(len(y)) < classes)]
    x = torch.rand(len(y), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = data.Images(x, y, tuple(map(str, range(classes))), (0.5,), (0.25,))
    return data.Batches(made, batch=batch, seed=0)


def network(classes):
    """A stage that keeps its input, and the classifier."""
    net = nn.Sequential()
    net.add_module("stage3", nn.Flatten())
    net.add_module("head", nn.Linear(D, classes))
    return net


def methods(n):
    return {
        "cross entropy": CrossEntropy(),
        "balanced softmax": BalancedSoftmax(n),
        "CDB": CDB(n),
        "CRL, class": CRL(n, level="class", alpha=0.1),
        "CRL, instance": CRL(n, level="instance", alpha=0.1),
        "MFW": MFW(n),
        "DOS": DOS(n, k=K, start=0, every=1, minority="half"),
    }


def job(method, classes, each, batch):
    """A training step and an update of `method` on its own network and batches: two functions without arguments."""
    torch.manual_seed(0)
    train, net = batches(classes, each, batch), network(classes)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)
    update = torch.no_grad()(partial(method.update, net=net, train=train, valid=train))
    update(0)
    x, y, i = next(iter(train))

    def step():
        loss = method(net, x, y, i)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    step()
    return step, partial(update, 1)


def measure(classes, each, batch, rounds=ROUNDS):
    """Of each method: milliseconds of a step and of an update with their quartiles, the step's ratio, MB of a step."""
    n = batches(classes, each, batch).n
    made = methods(n)
    jobs = {name: job(method, classes, each, batch) for name, method in made.items()}
    times = {name: max(1, round(ENOUGH / clock(step))) for name, (step, _) in jobs.items()}
    work = {name: lambda step=step, k=times[name]: [step() for _ in range(k)] for name, (step, _) in jobs.items()}
    steps = {name: [s / times[name] for s in seconds] for name, seconds in in_turn(work, rounds).items()}
    updates = in_turn({name: update for name, (_, update) in jobs.items()}, min(rounds, 3))
    milliseconds = lambda seconds: spread([1e3 * s for s in seconds])  # noqa: E731
    return {
        name: dict(
            step_ms=milliseconds(steps[name]),
            ratio=ratio(steps[name], steps["cross entropy"]),
            update_ms=milliseconds(updates[name]),
            step_mb=peak(jobs[name][0]) / 1e6,
            state_mb=sum(b.numel() * b.element_size() for b in method.buffers()) / 1e6,
            visits=method.visits(n, 1) / int(n.sum()),
        )
        for name, method in made.items()
    }


def search(size, rounds=3):
    """Seconds and recall of the ways to find 5 neighbours of each of `size` embeddings of 120 numbers."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(size // 20, 120, generator=g).repeat(20, 1) + 0.5 * torch.randn(size // 20 * 20, 120, generator=g)
    truth = nearest(z, K)
    recall = lambda some: (some[:, :, None] == truth[:, None]).any(2).double().mean().item()  # noqa: E731
    own = "blocks, float64 (DOS)"
    work, kept = {own: lambda: nearest(z, K)}, {own: truth}
    try:
        import faiss
    except ImportError:
        faiss = None

    def by(index):
        index.add(z.numpy())
        near = torch.from_numpy(index.search(z.numpy(), K + 1)[1])
        itself = near == torch.arange(len(z))[:, None]
        itself[~itself.any(1), -1] = True  # where itself was not found, the last goes
        return near[~itself].view(-1, K)

    def build(name, index):  # building included
        kept[name] = by(index())

    def hnsw():
        index = faiss.IndexHNSWFlat(120, 16)
        index.hnsw.efSearch = 32
        return index

    if faiss:
        faiss.omp_set_num_threads(1)
        indices = {"faiss, exact": partial(faiss.IndexFlatL2, 120), "faiss, HNSW 16, ef 32": hnsw}
        work |= {name: partial(build, name, index) for name, index in indices.items()}
    seconds = in_turn(work, rounds)
    found = {name: dict(seconds=spread(taken), recall=recall(kept[name])) for name, taken in seconds.items()}
    return found if faiss else found | {"faiss": None}


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else records.RECORDS / "growth-cpu.json"
    record = dict(
        features=D,
        neighbours=K,
        by_batch={str(b): measure(100, 20, b) for b in BATCHES},
        by_classes={str(c): measure(c, 4, 128) for c in CLASSES},
        by_images={str(e): measure(20, e, 128) for e in EACH},
        on_paper={
            str(c): {m: state_bytes(m, torch.full((c,), 4), D, 128, K) for m in ("CE", "CDB", "CRL", "MFW", "DOS")}
            for c in CLASSES
        },
        search={str(n): search(n) for n in SEARCHED},
        search_operations={str(n): neighbour_operations(torch.tensor([n]), 120) for n in SEARCHED},
    )
    write(record, path)
    for part in ("by_batch", "by_classes", "by_images"):
        for size, of in record[part].items():
            print(part, size, {name: round(v["step_ms"]["median"], 3) for name, v in of.items()})
    for size, of in record["search"].items():
        print("search", size, of)
