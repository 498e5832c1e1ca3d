"""The loop of this book, its slow twin and its fast form, in one run and one table: python benchmarks/step.py

The slow twin is what a tutorial usually shows: a Dataset of PIL images with torchvision's transforms, a DataLoader, and
an eager loop with torch.optim.SGD, on the same images and the same network. All are timed in alternation, a round
each, after twin and loop were found to give the same numbers. Then every method of the book, with what it does between
two epochs.

First table: the stages between the twin and the fast form, one change a row, each with its gain over the row before
(the median of the ratios, round by round; its range in brackets).

Second table, columns: milliseconds a step of the slow twin, of `fit` and of `fit(fast=True)` (on a CPU that is the
plain loop, and is not timed twice); the step over that of cross entropy, its range over the rounds in brackets; the
share of the roofline: the least time that the step's arithmetic or its memory traffic takes, over the time measured.
FLOP are counted by torch. Bytes are those of an unfused step: each operation, forward, backward and of the optimiser,
reads its inputs and writes its outputs once. A fused step can therefore come out above 1.

Numbers of different machines, or of a machine that does something else meanwhile, do not compare: ratios within one run
do.
"""

import argparse
import copy
import math
import os
import platform
import statistics
import time
from dataclasses import replace
from functools import partial

import pandas as pd
import timing
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2.functional import to_pil_image

from imbook import data, fast, nets
from imbook.methods import METHODS, CrossEntropy
from imbook.methods.crl import LEVELS
from imbook.train import Protocol, fit

BATCH = 128
NATURAL = {"lenet": "mnist", "resnet32": "cifar10"}  # the set a network was made for
SHAPES = {"mnist": (1, 28), "cifar10": (3, 32)}
# TFLOP/s (TF32 without sparsity; the T4 has float32 only) and TB/s of memory. Source: the vendor's data sheets.
PEAKS = {"H200": (494.5, 4.8), "H100 80GB HBM3": (494.5, 3.35), "T4": (8.1, 0.32)}


def load(name, number):
    """The first images of a set (digits are enlarged 4 times), or noise of the same shape where the set is missing."""
    try:
        images, _ = data.load(name)
        source = name
    except FileNotFoundError:
        channels, size = SHAPES[name]
        g = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (number, channels, size, size), dtype=torch.uint8, generator=g)
        y = torch.randint(0, 10, (number,), generator=g)
        names = tuple(map(str, range(10)))
        images, source = (
            data.Images(x, y, names, (0.5,) * channels, (0.25,) * channels),
            f"noise in the shape of {name}",
        )
    x, y = images.x, images.y
    if name == "digits":
        x, source = x.repeat_interleave(4, 2).repeat_interleave(4, 3), "digits, enlarged 4 times"
    some = torch.arange(number) % len(y)
    return replace(images, x=x[some], y=y[some]), source


def build(name, images):
    """The network, drawn from seed 0."""
    torch.manual_seed(0)
    channels, size = images.x.shape[1:3]
    return nets.lenet(10, channels, size) if name == "lenet" else nets.resnet32(10, channels)


class Files(Dataset):
    """Images as torchvision's data sets give them: PIL in, transforms one image at a time."""

    def __init__(self, images, crop, flip):
        self.images, self.y = [to_pil_image(x) for x in images.x], images.y.tolist()
        steps = [transforms.RandomCrop(images.x.shape[2:], crop)] if crop else []
        steps += [transforms.RandomHorizontalFlip()] if flip else []
        steps += [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)]
        self.transform = transforms.Compose([*steps, transforms.Normalize(images.mean, images.std)])

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.y[i]


class Twin:
    """The slow twin; one call is one epoch and returns its seconds."""

    def __init__(self, net, images, protocol, workers, device):
        keep = dict(persistent_workers=True) if workers else {}
        files = Files(images, protocol.crop, protocol.flip)
        self.loader = DataLoader(files, protocol.batch, shuffle=True, num_workers=workers, **keep)
        self.net = copy.deepcopy(net).to(device, memory_format=torch.contiguous_format)
        self.optimiser = plain_sgd(self.net, protocol)
        self.criterion, self.device = nn.CrossEntropyLoss(), device

    def __call__(self):
        began = time.perf_counter()
        self.net.train()
        for x, y in self.loader:
            x, y = x.to(self.device), y.to(self.device)
            self.optimiser.zero_grad()
            loss = self.criterion(self.net(x), y)
            loss.backward()
            self.optimiser.step()
        loss.item()  # waits for the device
        return time.perf_counter() - began


class Written:
    """The loop of `fit` written out, before its last changes; one call is one epoch and returns its seconds."""

    def __init__(self, net, images, protocol, device, layout):
        self.net = copy.deepcopy(net).to(device, memory_format=layout)
        self.train = data.Batches(images, None, protocol.batch, 0, protocol.crop, protocol.flip, device)
        self.optimiser, self.method = plain_sgd(self.net, protocol), CrossEntropy()

    def __call__(self):
        began = time.perf_counter()
        self.net.train()
        for x, y, i in self.train:
            self.optimiser.zero_grad()
            loss = self.method(self.net, x, y, i)
            loss.backward()
            self.optimiser.step()
        loss.item()  # waits for the device
        return time.perf_counter() - began


class Ours:
    """The book's `fit` with `Batches`; one call trains two epochs and returns the seconds noted of the second.

    The first warms up, and captures where `fast` is set; then variants: what is changed in `imbook.fast`.
    """

    def __init__(self, net, images, protocol, device, method=None, graph=False, **variants):
        self.net, self.protocol, self.graph = copy.deepcopy(net), replace(protocol, epochs=2), graph
        self.train = data.Batches(images, None, protocol.batch, 0, protocol.crop, protocol.flip, device)
        self.valid = data.Batches(images, torch.arange(250), device=device)
        self.method, self.variants = method or CrossEntropy(), {"HALF": False, "COMPILED": False} | variants
        self.tf32 = self.variants.pop("tf32", True)
        if type(self.method).__name__ == "LDAM":
            self.net.head = nets.CosineHead(self.net.head.in_features, self.net.head.out_features)

    def __call__(self):
        valid = self.valid if self.method.needs_valid else None
        for name, value in self.variants.items():
            setattr(fast, name, value)
        torch.backends.cudnn.allow_tf32 = self.tf32
        first, second = fit(self.net, self.method, self.train, valid, protocol=self.protocol, fast=self.graph)
        torch.backends.cudnn.allow_tf32, fast.HALF, fast.COMPILED = True, False, False
        return second["seconds"] - first["seconds"]

    def work(self):
        """FLOP and bytes of a step (see above), of a network that was trained before."""
        optimiser = torch.optim.SGD(
            [*self.net.parameters(), *self.method.parameters()], 0.0, self.protocol.momentum, fused=True
        )
        step = fast.Step(self.net, self.method, optimiser, self.train)
        i = self.train.order[: self.protocol.batch]
        step.run(i)  # the first makes the momentum
        with FlopCounterMode(display=False) as flop, Traffic() as traffic:
            step.run(i)
        return flop.get_total_flops(), traffic.bytes


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, each input and output once; views move nothing."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read, written = (
            [t for t in tree_leaves(some) if isinstance(t, torch.Tensor)] for some in ((args, kwargs), out)
        )
        where = {t.untyped_storage().data_ptr() for t in read}
        view = written and all(t.untyped_storage().data_ptr() in where for t in written)
        if func._schema.is_mutable and not written:  # such as the optimiser's, which gives nothing back
            written = read
        if not (view and not func._schema.is_mutable) and "empty" not in str(func):
            self.bytes += sum(t.numel() * t.element_size() for t in read + written)
        return out


def plain_sgd(net, protocol):
    return torch.optim.SGD(
        net.parameters(), protocol.lr, protocol.momentum, weight_decay=protocol.weight_decay, foreach=False, fused=False
    )


def check_parity(name, images):
    """The loops agree: 20 steps in float64 to 1e-9, in float32 inputs, first loss and gradients."""
    images = replace(images, x=images.x[:320], y=images.y[:320])
    protocol = Protocol("parity", epochs=1, batch=16, lr=0.001)  # at 0.01 rounding grows to 1e-9 in ResNet-32
    net = build(name, images)
    twin = copy.deepcopy(net).to(memory_format=torch.contiguous_format).double()
    ours, optimiser = copy.deepcopy(net).double(), plain_sgd(twin, protocol)
    fit(ours, CrossEntropy(), data.Batches(images, batch=16, dtype=torch.float64), protocol=protocol)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (images.mean, images.std))
    twin.train()
    for x, y in zip(images.x.split(16), images.y.split(16)):
        optimiser.zero_grad()
        nn.CrossEntropyLoss()(twin((x.double() / 255 - mean) / std), y).backward()
        optimiser.step()
    gap = max((a - b).abs().max().item() for a, b in zip(ours.parameters(), twin.parameters()))
    assert gap < 1e-9, f"{name}: weights differ by {gap} after 20 steps in float64"

    x, y, i = next(iter(data.Batches(images, batch=BATCH)))
    twin_x, twin_y = next(iter(DataLoader(Files(images, 0, False), BATCH)))
    loss, gradients = first_step(net, lambda net: CrossEntropy()(net, x, y, i))
    assert (x - twin_x).abs().max() < 1e-5, f"{name}: normalised images differ"
    twin_loss, its_gradients = first_step(net, lambda net: nn.CrossEntropyLoss()(net(x), twin_y))
    assert abs(loss - twin_loss) < 1e-5, f"{name}: first losses differ by {abs(loss - twin_loss)}"
    relative = furthest(gradients, its_gradients)
    assert relative < 1e-3, f"{name}: gradients differ by a relative {relative}"
    print(f"parity: weights {gap:.0e} after 20 steps in float64; first loss {abs(loss - twin_loss):.0e} in float32")
    print(f"        its gradients a relative {relative:.0e}")

    # The two memory formats are further apart: on a CPU BatchNorm sums less exactly in channels_last, and each
    # activation that rounding moves over ReLU's kink moves the gradient. Printed for both, not judged.
    contiguous = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    exact, its_exact = first_step(copy.deepcopy(net).double(), lambda net: CrossEntropy()(net, x.double(), y, i))
    other, its_other = first_step(contiguous, lambda net: CrossEntropy()(net, x, y, i))
    for what, value, gradient in (("ours", loss, gradients), ("contiguous format", other, its_other)):
        far = furthest(gradient, its_exact)
        print(f"  {what}: first loss {abs(value - exact):.0e} and gradients a relative {far:.0e} from float64")


def first_step(net, loss_of):
    """The loss of a network, and the gradient of each of its parameters."""
    net = copy.deepcopy(net).train()
    loss = loss_of(net)
    loss.backward()
    return loss.item(), [p.grad for p in net.parameters()]


def furthest(gradients, expected):
    """The largest relative difference of a parameter's gradient; those that vanish are left out."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(gradients, expected) if b.norm() > 1e-6)


def alternate(contestants, rounds):
    """Seconds of each contestant, {name: list}: one warm-up each, then A B C ... A B C ..."""
    seconds = {name: [] for name in contestants}
    for r in range(rounds + 1):
        for name, contestant in contestants.items():
            try:
                spent = contestant() if name in seconds else None
            except fast.CaptureError as error:  # what the others take is still worth knowing
                print(f"  {name}: not timed. {error}")
                spent, seconds = None, {k: v for k, v in seconds.items() if k != name}
            if r and spent is not None:
                seconds[name].append(spent)
    return seconds


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def time_network(name, images, protocol, rounds, method_rounds, device, peak, variants):
    """The rows of a network, and all times: cross entropy by every loop, then every method."""
    net, n, gpu = build(name, images), data.counts(images.y), device == "cuda"
    ours = partial(Ours, net, images, protocol, device)
    loops = {f"twin, {w} workers": Twin(net, images, protocol, w, device) for w in (0, 1, 2)}
    loops["tensors"] = Written(net, images, protocol, device, torch.contiguous_format)
    if any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters()):
        loops["channels_last"] = Written(net, images, protocol, device, torch.preserve_format)
    loops["plain"] = ours()
    if gpu:
        loops |= {"plain, without TF32": ours(tf32=False), "fast": ours(graph=True)}
    if gpu and variants:
        loops |= {
            "fast, bfloat16": ours(graph=True, HALF=True),
            "fast, compiled": ours(graph=True, COMPILED=True),
            "fast, bfloat16, compiled": ours(graph=True, HALF=True, COMPILED=True),
        }
    seconds, steps = alternate(loops, rounds), -(-len(images.y) // protocol.batch)
    twins = [who for who in seconds if who.startswith("twin")]
    best = min(twins, key=lambda w: statistics.median(seconds[w]))
    for who in seconds:
        ratio = spread([a / b for a, b in zip(seconds[who], seconds["plain"])])
        print(f"  {who:25}{1000 * statistics.median(seconds[who]) / steps:9.3f} ms a step, {ratio} of the plain loop's")
    stages = stages_of(name, seconds, best, steps)

    makers = {m: make for m, make in METHODS.items() if m not in ("CRL", "CNNCL")}  # CNNCL trains as cross entropy
    makers |= {f"CRL, {level}": partial(METHODS["CRL"], level=level, alpha=0.5) for level in LEVELS}
    makers |= {m: partial(METHODS[m], start=0, every=2) for m in ("DOS", "DOSAbstract")}  # within a round
    kinds = ("plain", "fast") if gpu else ("plain",)
    methods = {(m, kind): ours(make(n), kind == "fast") for m, make in makers.items() for kind in kinds}
    spent = alternate(methods, method_rounds) if method_rounds else {}
    each = {who: [1000 * s / len(methods[who].train) for s in some] for who, some in spent.items()}
    rows = []
    for m in (m for m in makers if (m, "plain") in each):
        plain, quick = each[m, "plain"], each.get((m, "fast"))
        over = [a / b for a, b in zip(quick or plain, each["CrossEntropy", kinds[-1]])]
        flop, moved = methods[m, "plain"].work()
        floor = 1000 * max(flop / peak[0], moved / peak[1]) / 1e12 if peak else float("nan")
        twin = statistics.median(seconds[best]) * 1000 / steps if m == "CrossEntropy" else float("nan")
        rows.append(
            {
                "network": name,
                "batch": protocol.batch,
                "method": m,
                "slow twin": twin,
                "plain": statistics.median(plain),
                "fast": statistics.median(quick) if quick else "plain loop",
                "plain/fast": statistics.median(a / b for a, b in zip(plain, quick)) if quick else float("nan"),
                "over CE's": spread(over),
                "GFLOP": flop / 1e9,
                "GB": moved / 1e9,
                "roofline": floor / statistics.median(quick or plain),
            }
        )
    times = {"loops": seconds, "steps": steps, "best": best, "stages": stages}
    return rows, {**times, "methods": {", ".join(w): v for w, v in each.items()}}


STAGES = {  # the loops whose gain over the one before is a stage of its own
    "tensors": "images as tensors on the device, whole batches at once",
    "channels_last": "channels_last",
    "plain": "fused SGD, nothing waits: the book's loop",
    "fast": "a step as one CUDA graph",
}


def stages_of(name, seconds, best, steps):
    """From the best slow twin to the fastest loop: rows with milliseconds a step and the gain over the row before."""
    chain = [best, *(who for who in STAGES if who in seconds)]
    rows = []
    for before, who in zip([None, *chain], chain):
        gain = spread([a / b for a, b in zip(seconds[before], seconds[who])]) if before else "-"
        ms = 1000 * statistics.median(seconds[who]) / steps
        rows.append({"network": name, "stage": STAGES.get(who, f"slow {who}"), "ms a step": ms, "gain": gain})
    return rows


def side_by_side(name, images, protocol, device):
    """Several networks in one process, a graph and a stream each: milliseconds a step, all of them together.

    For comparison with `python -m imbook run --workers`, processes. Random numbers are not those of a run alone: the
    graphs share torch's global generator.
    """
    found = {}
    for number in (1, 2, 4, 8):
        made = [Ours(build(name, images), images, protocol, device) for _ in range(number)]
        steps, streams = [], [torch.cuda.Stream() for _ in made]
        for each in made:
            net = each.net.to(device).train()
            optimiser = torch.optim.SGD(net.parameters(), protocol.lr, protocol.momentum, fused=True)
            steps.append(fast.Step(net, each.method, optimiser, each.train))
            steps[-1].epoch(torch.zeros(len(each.train), device=device))
        passes = [step.train.positions() for step in steps]
        torch.cuda.synchronize()  # from here on the streams wait for nothing
        began = time.perf_counter()
        for batches in zip(*passes):
            for step, stream, i in zip(steps, streams, batches):
                with torch.cuda.stream(stream):
                    step(i)
        torch.cuda.synchronize()
        found[number] = 1000 * (time.perf_counter() - began) / len(made[0].train) / number
        print(f"  {number} side by side: {found[number]:.3f} ms a step and network")
    return found


def compare_dos(rounds, device):
    """An epoch of deep over-sampling over one of the plain network, on MNIST without 90 % of four classes.

    With its search and embedding at the start of a round: once with one draw an image, so with as many steps as the
    plain network, and once with as many draws as make all classes equal (chapter 06).
    """
    images, source = load("mnist", 12_000)
    index = data.reduced(images.y, range(4), 0.9, seed=0)
    images = replace(images, x=images.x[index], y=images.y[index])
    protocol, net, n = Protocol("benchmark", epochs=1, batch=60, lr=0.01), nets.dos_net(), data.counts(images.y)
    draws = {"DOS, one draw": 1e-9, "DOS, all draws": 1.0}
    graph = device == "cuda"
    contestants = {"the network": Ours(net, images, protocol, device, graph=graph)}
    contestants |= {
        name: Ours(net, images, protocol, device, METHODS["DOS"](n, k=5, r=r, start=0, every=1), graph)
        for name, r in draws.items()
    }
    print(f"\ndos_net on {source}, batch 60, {len(images.y)} images, {rounds} rounds: an epoch")
    seconds = alternate(contestants, rounds)
    ratios = {name: [a / b for a, b in zip(seconds[name], seconds["the network"])] for name in draws}
    for name, values in ratios.items():
        print(f"  {name:16}{spread(values)} times an epoch of the network, {len(contestants[name].train)} steps")
    return {"seconds": seconds, "ratio": ratios, "steps": {name: len(c.train) for name, c in contestants.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", choices=["digits", "mnist", "cifar10"], help="default: the set a network was made for"
    )
    parser.add_argument("--nets", nargs="+", choices=list(NATURAL), default=list(NATURAL))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--method-rounds", type=int, default=5, help="rounds of the methods against cross entropy")
    parser.add_argument("--steps", type=int, help="steps a round (default: 40 for lenet, 4 for resnet32)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--peak", type=float, nargs=2, metavar=("TFLOPS", "TBS"), help=f"of the device; known: {', '.join(PEAKS)}"
    )
    parser.add_argument("--variants", action="store_true", help="on a GPU also bfloat16 and torch.compile: minutes")
    parser.add_argument("--json", help="also write all times to this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    gpu = options.device == "cuda"
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    where = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    peak = options.peak or next((v for k, v in PEAKS.items() if gpu and k in where), None)
    print(f"{where}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{busy}; torch {torch.__version__}")

    torch.backends.cudnn.benchmark = gpu  # for all loops alike: what was called before keeps its algorithm
    out = {"batch": BATCH}
    table = []

    def keep():
        """What is measured by now: a time limit or an error further on must not lose it."""
        if options.json:
            empty = lambda v: None if isinstance(v, float) and math.isnan(v) else v  # noqa: E731
            rows = [{k: empty(v) for k, v in row.items()} for row in table]
            timing.write({**out, "table": rows}, options.json, options.device)

    keep()
    for name in options.nets:
        steps = options.steps or (97 if gpu else 40 if name == "lenet" else 4)
        images, source = load(options.data or NATURAL[name], max(BATCH * steps, 320))
        augment = dict(crop=4, flip=True) if images.x.shape[1] == 3 else {}
        protocol = Protocol("benchmark", epochs=1, batch=BATCH, lr=0.01, **augment)
        print(f"\n{name} on {source}, batch {BATCH}, {len(images.y)} images a round, {options.rounds} rounds")
        check_parity(name, images)
        rows, times = time_network(
            name, images, protocol, options.rounds, options.method_rounds, options.device, peak, options.variants
        )
        table += rows
        out[name] = {"data": source, **times}
        keep()
        if gpu:
            out[name]["side by side"] = side_by_side(name, images, protocol, options.device)
            keep()
    if options.method_rounds:
        out["dos"] = compare_dos(options.method_rounds, options.device)
    stages = [row for name in options.nets for row in out[name]["stages"]]
    print(f"\n{where}: the stages, milliseconds a step")
    print(pd.DataFrame(stages).to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    if table:
        print(f"\n{where}: milliseconds a step")
        print(pd.DataFrame(table).to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="-"))
    keep()


if __name__ == "__main__":
    main()
