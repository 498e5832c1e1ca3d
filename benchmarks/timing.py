"""What the cost scripts share: made images, a clock, steps of training, times taken in turn, and peak memory."""

import json
import statistics
import time

import torch

from imbook import data, records


def images(size, channels, pixels, classes):
    """Noise images, since the time does not depend on what they show."""
    x = torch.randint(256, (size, channels, pixels, pixels), dtype=torch.uint8)
    return data.Images(
        x, torch.arange(size) % classes, tuple(map(str, range(classes))), (0.5,) * channels, (0.25,) * channels
    )


def clock(work):
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def steps(net, method, optimiser, batches):
    for x, y, i in batches:
        loss = method(net, x, y, i)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def in_turn(work, rounds):
    """Seconds of each job, {name: list}: a round to warm up, then forwards and backwards by turns."""
    seconds = {name: [] for name in work}
    for k in range(rounds + 1):
        for name in sorted(work, reverse=bool(k % 2)):
            spent = clock(work[name])
            if k:
                seconds[name].append(spent)
    return seconds


def spread(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return dict(median=middle, low=low, high=high, n=len(values))


def ratio(a, b):
    """The spread of a / b, round by round."""
    return spread([x / y for x, y in zip(a, b)])


def step_ratios(net, methods, batches, rounds):
    """Milliseconds of a training step of each method, {name: method}, and its ratio to that of "cross entropy"."""
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)
    work = {name: lambda method=method: steps(net, method, optimiser, batches) for name, method in methods.items()}
    seconds = in_turn(work, rounds)
    return dict(
        milliseconds={name: spread([1e3 * v / len(batches) for v in values]) for name, values in seconds.items()},
        ratio={name: ratio(seconds[name], seconds["cross entropy"]) for name in methods if name != "cross entropy"},
    )


def peak(work):
    """Bytes: the most that torch's allocations of a call stand above where they began."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def write(record, path, device="cpu"):
    """The record with its provenance, as readable JSON: the file is whole at any time."""
    plain = records.rounded(record | records.provenance(device), 4)
    records.write(path, (json.dumps(plain, indent=1) + "\n").encode())
