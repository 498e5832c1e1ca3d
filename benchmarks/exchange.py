"""What gathering costs a step over two processes: python benchmarks/exchange.py [FILE]

The steps of `benchmarks/growth.py` with 8,142 classes and 128 images (a linear classifier on 64 given features) by two
ranks with gloo on processors, with `loss="global"` and `loss="rank"` in turn, and by one process. Of each method: the
bytes of the tables that a step sums over ranks, both passes together, without the gradients of the weights; and the
processor time that rank 0 spends on a step, which unlike the time on a clock does not depend on what else a machine
does. Writes one JSON record; chapter 10 reads it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from growth import batches, methods, network
from timing import spread, write

from imbook import distributed, records

CLASSES, EACH, BATCH, ROUNDS, STEPS = 8142, 4, 128, 9, 3
WAYS = ("global", "rank")
summed = [0]  # bytes since the last step began


def counting(total=distributed.total):
    def counted(t):
        summed[0] += t.numel() * t.element_size()
        return total(t)

    return counted


def prepared():
    """Networks and methods that have had their first update, {name: (net, method)}, and the set."""
    torch.manual_seed(0)
    train, made = batches(CLASSES, EACH, BATCH), {}
    for name, method in methods(train.n).items():
        net = network(CLASSES)
        with torch.no_grad():
            method.update(0, net=net, train=train, valid=train)
        made[name] = net, method
    return made, train


def steps(net, method, train):
    """Processor milliseconds of a step, after one to warm up, and the bytes that the last one sums over ranks."""
    sgd, taken = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True), []
    with distributed.training(net, method):
        for _, (x, y, i) in zip(range(STEPS + 1), train, strict=False):
            summed[0], began = 0, time.process_time()
            loss = method(net, x, y, i)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            taken.append(1e3 * (time.process_time() - began))
    return sum(taken[1:]) / STEPS, summed[0]


def measure(ways):
    """{way: {method: (milliseconds of each round, bytes)}}, the ways in turn."""
    made, train = prepared()
    found = {way: {name: ([], []) for name in made} for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            with distributed.start("cpu", loss=way):
                for name, (net, method) in made.items():
                    for kept, value in zip(found[way][name], steps(net, method, train), strict=True):
                        kept.append(value)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.total = counting()
    if distributed.launched():
        found = measure(WAYS)
        if os.environ["RANK"] == "0":
            with open(sys.argv[1], "w") as file:
                json.dump(found, file)
        sys.exit()
    path = sys.argv[1] if len(sys.argv) > 1 else records.RECORDS / "exchange-cpu.json"
    with tempfile.NamedTemporaryFile() as file:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        subprocess.run([*torchrun, __file__, file.name], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        two = json.load(open(file.name))
    found = {"one": measure(WAYS[:1])["global"], **two}
    made = {
        name: dict(
            bytes={way: of[name][1][-1] for way, of in found.items()},
            milliseconds={way: spread(of[name][0]) for way, of in found.items()},
        )
        for name in found["one"]
    }
    write(dict(classes=CLASSES, batch=BATCH, features=64, methods=made), path)
    for name, of in made.items():
        print(name, of["bytes"], {way: round(v["median"], 1) for way, v in of["milliseconds"].items()})
