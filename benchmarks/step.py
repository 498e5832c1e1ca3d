"""The loop of this book, its slow twin and its fast form, in one run and one table: python benchmarks/step.py

The slow twin is what a tutorial usually shows: a Dataset of PIL images with torchvision's transforms, a DataLoader, and
an eager loop with torch.optim.SGD, on the same images and the same network. All are timed in alternation, a round
each, after twin and loop were found to give the same numbers. Then every method of the book, with what it does between
two epochs.

First table: the chain from the twin to the fast form, one change per row, each with its gain over the row before (the
median of the ratios, round by round; its range in brackets).

Second table, columns: milliseconds per step of the slow twin, of `fit` and of `fit(fast=True)` (on a CPU that is the
plain loop, and is not timed twice); the step over that of cross entropy, its range over the rounds in brackets; the
share of the roofline: the least time that the step's arithmetic or its memory traffic takes, over the time measured.
FLOP are counted by torch. Bytes are those of an unfused step: each operation, forward, backward and of the optimiser,
reads its inputs and writes its outputs once. A fused step can therefore come out above 1.

On a GPU also several processes at once, with and without the multi-process service (where it is installed):
milliseconds per step of all of them together. With `--json` the file holds, whole, what was measured so far, after
each row; with `--budget` the script stops when the time is spent.

Numbers of different machines, or of a machine that does something else meanwhile, do not compare: ratios within one run
do.
"""

import argparse
import copy
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
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
from imbook.data.batches import sizes
from imbook.methods import METHODS, CrossEntropy
from imbook.methods.crl import LEVELS
from imbook.precision import best_precision
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
        images, source = noise(name, number), f"noise in the shape of {name}"
    x, y = images.x, images.y
    if name == "digits":
        x, source = x.repeat_interleave(4, 2).repeat_interleave(4, 3), "digits, enlarged 4 times"
    some = torch.arange(number) % len(y)
    return replace(images, x=x[some], y=y[some]), source


def noise(name, number):
    channels, size = SHAPES[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (number, channels, size, size), dtype=torch.uint8, generator=g)
    names = tuple(map(str, range(10)))
    return data.Images(x, torch.arange(number) % 10, names, (0.5,) * channels, (0.25,) * channels)


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

    The first warms up, and captures where `graph` is set; precision: see `fit`; blocks: whether residual blocks are
    compiled where the precision says so; tf32: torch's switch for convolutions.
    """

    def __init__(
        self, net, images, protocol, device, method=None, graph=False, precision=None, blocks=True, tf32=True
    ):  # fmt: skip
        self.net, self.protocol = copy.deepcopy(net), replace(protocol, epochs=2)
        self.train = data.Batches(images, None, protocol.batch, 0, protocol.crop, protocol.flip, device)
        self.valid = data.Batches(images, torch.arange(250), device=device)
        self.method, self.blocks, self.tf32 = method or CrossEntropy(), blocks, tf32
        self.options, self.counted = dict(fast=graph, precision=precision), None
        if type(self.method).__name__ == "LDAM":
            self.net.head = nets.CosineHead(self.net.head.in_features, self.net.head.out_features)

    @property
    def steps(self):
        """Training steps of the epoch that is timed."""
        return len(sizes(self.method.visits(self.train.n, 1), self.train.batch))

    def __call__(self):
        valid, compiles = self.valid if self.method.needs_valid else None, fast.compiles
        torch.backends.cudnn.allow_tf32 = self.tf32
        fast.compiles = compiles if self.blocks else lambda *_: False
        try:
            first, second = fit(self.net, self.method, self.train, valid, protocol=self.protocol, **self.options)
        finally:
            torch.backends.cudnn.allow_tf32, fast.compiles = True, compiles
        return second["seconds"] - first["seconds"]

    def work(self):
        """FLOP and bytes of a step (see above), of a network that was trained before; counted once."""
        if self.counted:
            return self.counted
        optimiser = torch.optim.SGD(
            [*self.net.parameters(), *self.method.parameters()], 0.0, self.protocol.momentum, fused=True
        )
        step = fast.Step(self.net, self.method, optimiser, self.train)
        i = self.train.order[: self.protocol.batch]
        step.run(i)  # the first makes the momentum
        with FlopCounterMode(display=False) as flop, Traffic() as traffic:
            step.run(i)
        self.counted = flop.get_total_flops(), traffic.bytes
        return self.counted


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


class Spent(Exception):
    """The time given by --budget is over."""


class Limit:
    """A time limit in seconds, None for none."""

    def __init__(self, seconds):
        self.end = math.inf if seconds is None else time.perf_counter() + seconds

    def check(self):
        if time.perf_counter() > self.end:
            raise Spent


def alternate(contestants, rounds, seconds, limit, keep):
    """Add the seconds of each contestant to {name: list}: one warm-up each, then A B C ... A B C ...

    keep() is called after each; `Spent` where the limit is over. What fails is taken out.
    """
    seconds |= {name: [] for name in contestants}
    for r in range(rounds + 1):
        for name, contestant in contestants.items():
            if name not in seconds:
                continue
            limit.check()
            try:
                spent = contestant()
            except (fast.CaptureError, ValueError) as error:  # what the others take is still worth knowing
                print(f"  {name}: not timed. {error}")
                del seconds[name]
                continue
            if r:
                seconds[name].append(spent)
                keep()


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def loops_of(net, images, protocol, device):
    """The loops that are timed with cross entropy, {name: contestant}."""
    ours = partial(Ours, net, images, protocol, device)
    loops = {f"twin, {w} workers": Twin(net, images, protocol, w, device) for w in (0, 1, 2)}
    loops["tensors"] = Written(net, images, protocol, device, torch.contiguous_format)
    if any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters()):
        loops["channels_last"] = Written(net, images, protocol, device, torch.preserve_format)
    loops["plain"] = ours()
    if device == "cuda":
        half = best_precision(device)
        loops |= {"plain, without TF32": ours(tf32=False), "fast": ours(graph=True)}
        loops |= {"fast, half": ours(graph=True, precision=half, blocks=False)}
        loops |= {"fast, half, compiled blocks": ours(graph=True, precision=half)}
    return loops


def time_loops(name, images, protocol, rounds, device, out, limit, keep):
    """Cross entropy by every loop: seconds in out["loops"], the chain in out["chain"]."""
    loops = loops_of(build(name, images), images, protocol, device)
    seconds, steps = out.setdefault("loops", {}), -(-len(images.y) // protocol.batch)
    out["steps"] = steps
    if device == "cuda":
        out["precision"] = best_precision(device)

    def note():
        twins = [who for who in seconds if who.startswith("twin") and seconds[who]]
        out["best"] = min(twins, key=lambda w: statistics.median(seconds[w])) if twins else None
        out["chain"] = chain_of(name, seconds, out["best"], steps)
        keep()

    alternate(loops, rounds, seconds, limit, note)
    for who in seconds:
        ratio = spread([a / b for a, b in zip(seconds[who], seconds["plain"])])
        print(f"  {who:28}{1000 * statistics.median(seconds[who]) / steps:9.3f} ms a step, {ratio} of the plain loop's")


CHAIN = {  # the loops whose gain over the one before is a row of its own
    "tensors": "images as tensors on the device, whole batches at once",
    "channels_last": "channels_last",
    "plain": "fused SGD, nothing waits: the book's loop",
    "fast": "a step as one CUDA graph",
    "fast, half": "half precision, channels_last",
    "fast, half, compiled blocks": "residual blocks through torch.compile",
}


def chain_of(name, seconds, best, steps):
    """From the best slow twin to the fastest loop: rows with milliseconds per step and the gain over the row before."""
    chain = [who for who in (best, *CHAIN) if seconds.get(who)]
    rows = []
    for before, who in zip([None, *chain], chain):
        gain = spread([a / b for a, b in zip(seconds[before], seconds[who])]) if before else "-"
        ms = 1000 * statistics.median(seconds[who]) / steps
        rows.append({"network": name, "row": CHAIN.get(who, f"slow {who}"), "ms a step": ms, "gain": gain})
    return rows


def time_methods(name, images, protocol, rounds, device, peak, out, limit, keep, table):
    """Every method: milliseconds per step in out["methods"], rows in the table."""
    net, n, gpu = build(name, images), data.counts(images.y), device == "cuda"
    makers = {m: make for m, make in METHODS.items() if m not in ("CRL", "CNNCL")}  # CNNCL trains as cross entropy
    makers |= {f"CRL, {level}": partial(METHODS["CRL"], level=level, alpha=0.5) for level in LEVELS}
    makers |= {m: partial(METHODS[m], start=0, every=2) for m in ("DOS", "DOSAbstract")}  # within a round
    kinds = ("plain", "fast") if gpu else ("plain",)
    methods = {
        f"{m}, {kind}": Ours(net, images, protocol, device, make(n), kind == "fast")
        for m, make in makers.items()
        for kind in kinds
    }
    seconds, others = {}, [row for row in table if row["network"] != name]

    def note():
        out["methods"] = {who: [1000 * s / methods[who].steps for s in some] for who, some in seconds.items() if some}
        table[:] = others + rows_of(name, makers, methods, out, protocol, peak, kinds[-1])
        keep()

    alternate(methods, rounds, seconds, limit, note)


def rows_of(name, makers, methods, out, protocol, peak, kind):
    """The rows of the second table: of the methods that were timed, and cross entropy with them."""
    each, rows = out["methods"], []
    if f"CrossEntropy, {kind}" not in each:
        return rows
    for m in (m for m in makers if f"{m}, {kind}" in each):
        plain, quick = each[f"{m}, plain"], each.get(f"{m}, fast")
        over = [a / b for a, b in zip(quick or plain, each[f"CrossEntropy, {kind}"])]
        flop, moved = methods[f"{m}, plain"].work()
        floor = 1000 * max(flop / peak[0], moved / peak[1]) / 1e12 if peak else float("nan")
        twin = 1000 * statistics.median(out["loops"][out["best"]]) / out["steps"] if out.get("best") else float("nan")
        rows.append(
            {
                "network": name,
                "batch": protocol.batch,
                "method": m,
                "slow twin": twin if m == "CrossEntropy" else float("nan"),
                "plain": statistics.median(plain),
                "fast": statistics.median(quick) if quick else "plain loop",
                "plain/fast": statistics.median(a / b for a, b in zip(plain, quick)) if quick else float("nan"),
                "over CE's": spread(over),
                "GFLOP": flop / 1e9,
                "GB": moved / 1e9,
                "roofline": floor / statistics.median(quick or plain),
            }
        )
    return rows


@contextmanager
def service():
    """The multi-process service of a GPU, for processes that get the environment that this yields; None without it."""
    if shutil.which("nvidia-cuda-mps-control") is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        started = subprocess.run(["nvidia-cuda-mps-control", "-d"], env=env)
        try:
            yield env if started.returncode == 0 else None
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], env=env, input="quit\n", text=True)


def work_for(seconds, name, device, batch):
    """One of several processes: prepare, say so, wait for a line, train for that time, print what was done."""
    images = noise(NATURAL[name], max(20 * batch, 320))
    augment = dict(crop=4, flip=True) if images.x.shape[1] == 3 else {}
    train = data.Batches(images, None, batch, 0, **augment, device=device)
    net = build(name, images).to(device).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.01, 0.9, fused=True)
    losses, steps = torch.zeros(len(train), device=device), 0
    with fast.Step(net, CrossEntropy(), optimiser, train, precision=best_precision(device)) as step:
        step.epoch(losses), losses.sum().item()
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            step.epoch(losses), losses.sum().item()
            steps += len(train)
    print(json.dumps({"steps": steps, "seconds": time.perf_counter() - began}), flush=True)


def processes(number, seconds, name, device, batch, env=None):
    """Several processes that train at once: milliseconds per step of all of them together."""
    command = [sys.executable, __file__, "--work", str(seconds), "--nets", name, "--device", device]
    command += ["--batch", str(batch)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    children = [subprocess.Popen(command, **pipes) for _ in range(number)]
    try:
        for child in children:
            while (line := child.stdout.readline()) != "ready\n":
                if not line:
                    raise RuntimeError(f"a process ended with {child.wait()} before it was ready")
        for child in children:
            child.stdin.write("go\n"), child.stdin.flush()
        done = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    finally:
        for child in children:
            child.kill()
    return 1000 / sum(d["steps"] / d["seconds"] for d in done)


def time_processes(name, device, batch, out, limit, keep, seconds=8):
    """Rows of several processes, without the multi-process service and with it, in out["processes"]."""
    rows = out.setdefault("processes", [])
    for with_service in (False, True):
        with service() if with_service else nullcontext(None) as env:
            if with_service and env is None:
                print("  no multi-process service here")
                return
            for number in (1, 4, 5):
                limit.check()
                ms = processes(number, seconds, name, device, batch, env)
                rows.append({"processes": number, "service": with_service, "batch": batch, "ms a step": ms})
                print(f"  {number} processes, {'with' if with_service else 'without'} the service: {ms:.3f} ms a step")
                keep()


def compare_dos(rounds, device, limit, keep, out):
    """An epoch of deep over-sampling over one of the plain network, on MNIST without 90 % of four classes.

    With its search and embedding at the start of a round: once with one draw per image, so with as many steps as the
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
    seconds = {}
    found = out.setdefault("dos", {"steps": {name: c.steps for name, c in contestants.items()}})

    def note():
        plain = seconds["the network"]
        found["seconds"] = seconds
        found["ratio"] = {name: [a / b for a, b in zip(seconds[name], plain)] for name in draws if seconds.get(name)}
        keep()

    alternate(contestants, rounds, seconds, limit, note)
    for name, values in found["ratio"].items():
        print(f"  {name:16}{spread(values)} times an epoch of the network, {found['steps'][name]} steps")


def duration(text):
    """Seconds of '90', '90s', '9m' or '2h'."""
    units = {"s": 1, "m": 60, "h": 3600}
    return float(text[:-1]) * units[text[-1]] if text[-1] in units else float(text)


def main(arguments=None):
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
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--json", help="also write all times to this file, whole after each row")
    parser.add_argument("--budget", type=duration, help="stop after this time, such as 90s or 8m")
    parser.add_argument("--work", type=float, metavar="SECONDS", help=argparse.SUPPRESS)  # a process among several
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    gpu, batch = options.device == "cuda", options.batch
    torch.backends.cudnn.benchmark = gpu  # for all loops alike: what was called before keeps its algorithm
    if options.work:
        return work_for(options.work, options.nets[0], options.device, batch)
    limit = Limit(options.budget)
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    where = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    peak = options.peak or next((v for k, v in PEAKS.items() if gpu and k in where), None)
    print(f"{where}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{busy}; torch {torch.__version__}")
    out, table = {"batch": batch}, []

    def keep():
        """What is measured by now: a time limit or an error further on must not lose it."""
        if options.json:
            empty = lambda v: None if isinstance(v, float) and math.isnan(v) else v  # noqa: E731
            rows = [{k: empty(v) for k, v in row.items()} for row in table]
            timing.write({**out, "table": rows}, options.json, options.device)

    def measure():
        for name in options.nets:
            steps = options.steps or (97 if gpu else 40 if name == "lenet" else 4)
            images, source = load(options.data or NATURAL[name], max(batch * steps, 320))
            augment = dict(crop=4, flip=True) if images.x.shape[1] == 3 else {}
            protocol = Protocol("benchmark", epochs=1, batch=batch, lr=0.01, **augment)
            print(f"\n{name} on {source}, batch {batch}, {len(images.y)} images a round, {options.rounds} rounds")
            check_parity(name, images)
            its = out[name] = {"data": source}
            time_loops(name, images, protocol, options.rounds, options.device, its, limit, keep)
            if gpu:
                time_processes(name, options.device, batch, its, limit, keep)
            if options.method_rounds:
                time_methods(
                    name, images, protocol, options.method_rounds, options.device, peak, its, limit, keep, table
                )
        if options.method_rounds:
            compare_dos(options.method_rounds, options.device, limit, keep, out)

    keep()
    try:
        measure()
    except Spent:
        print("\nstopped: the budget is spent")
    chain = [row for name in options.nets for row in out.get(name, {}).get("chain", [])]
    for title, rows in (("the chain", chain), ("the methods", table)):
        if rows:
            print(f"\n{where}: {title}, milliseconds a step")
            print(pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="-"))
    keep()


if __name__ == "__main__":
    main()
