"""What a run costs before it is made: operations, GPU hours, minutes and money on 1, 8 or 64 GPUs, bytes of state.

Every assumption is a field of `Machine`, to be replaced by one's own measurement (`dataclasses.replace`); none of them
was measured by this book. What is counted exactly: multiply-adds of a network, by torch on a device without storage
('meta'), and the images that a method visits. `benchmarks/growth.py` measures what a method adds to a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import torch
from torch import Tensor

from imbook import large
from imbook.data.batches import sizes
from imbook.methods import METHODS
from imbook.rows import NETS, Row


@dataclass(frozen=True)
class Machine:
    """What is assumed of the machines: all fields are inputs, none is a result.

    flops: operations per second that one GPU could do in the precision used (TF32, by its data sheet: what `fit` does
    with a `Loader`); used: the share of them that training reaches; reads: pictures per second that the processors
    beside one GPU decode and augment; launch: seconds that a step takes at least, in which its kernels are launched
    one by one; link: bytes per second between two GPUs for gradients; dollars: per GPU and hour.
    """

    name: str = "H100, rented"
    flops: float = 495e12
    used: float = 0.25
    reads: float = 1_500.0
    launch: float = 0.005
    link: float = 50e9
    dollars: float = 3.0


#: What is seen of a picture or clip, by set: (channels, ...) of x.
SHAPES: dict[str, tuple[int, ...]] = {
    "imagenet-lt": (3, large.SIDE, large.SIDE),
    "inaturalist2018": (3, large.SIDE, large.SIDE),
    "egtea": (3, 10, large.CLIP_SIDE, large.CLIP_SIDE),
    "tiny-imagenet": (3, 64, 64),
    "celeba": (3, 64, 64),
    "deepfashion": (3, 64, 64),
    "x-domain": (3, 64, 64),
}


@cache
def operations(net: str, classes: int | tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    """Operations of a forward pass of one image, and parameters: two integers. A multiply-add counts as two operations.

    net: a name in `imbook.rows.NETS`; classes: as that takes; shape: of one x. Counted by torch's FlopCounterMode
    without computing anything. Weights that a network would load are not needed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from imbook.nets import replace_classifier

    with torch.device("meta"):
        if net == "r3d_18":  # the same layers without its weights
            from torchvision.models.video import r3d_18

            made = replace_classifier(r3d_18(), classes)
        else:
            made = NETS[net](classes=classes)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            made.eval()(torch.empty(1, *shape))
    return counter.get_total_flops(), sum(p.numel() for p in made.parameters())


def long_tail(total: int, classes: int, largest: int, smallest: int) -> Tensor:
    """Class counts that fall by a power from the largest to the smallest and sum to about `total`: int64 (C,).

    For sets whose counts are known only by these four numbers: n_c = smallest + (largest - smallest) * (1 - c/(C-1))^a,
    a by bisection. ValueError where no power fits.
    """
    if not smallest * classes <= total <= largest * classes:
        raise ValueError(f"{classes} classes of {smallest} to {largest} images cannot hold {total}")
    rank = 1 - torch.arange(classes, dtype=torch.float64) / (classes - 1)
    low, high = 0.0, 1e3
    for _ in range(100):
        a = (low + high) / 2
        low, high = (a, high) if (smallest + (largest - smallest) * rank**a).sum() > total else (low, a)
    return (smallest + (largest - smallest) * rank**low).round().long()


def visits(row: Row, n: Any) -> list[int]:
    """The images that each epoch of a row visits, a list: what over-sampling multiplies. n: class counts."""
    method = METHODS[row.method](n, **row.hyper)
    return [method.visits(n, epoch) for epoch in range(row.protocol.epochs)]


def estimate(
    row: Row, n: Any, machine: Machine = Machine(), gpus: Sequence[int] = (1, 8, 64),
    shape: tuple[int, ...] | None = None, gathered: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Hours and money of one run, one line per number of GPUs: a list of dicts for a table.

    row: what is run; n: its class counts (or a tuple of them); machine: the assumptions; shape: of one x, default that
    of the row's set; gathered: bytes of the tables that the ranks sum in a step beside the gradients, both passes
    together (4 B C forward and as many backward for the outputs). Columns: gpus, steps, images (visited, evaluation
    included), bound ('compute', 'reading', 'launching' or 'gradients': which takes longest), hours, gpu_hours, dollars.

    A training step costs three forward passes, an evaluated image one; training images are evaluated as often as the
    protocol watches, test images are left out as few. A step takes the longest of its parts, which are assumed to
    overlap: operations / (flops * used), pictures decoded / reads (none where the set is in memory), launch, and an
    all-reduce of 2 (g - 1) / g * (4 bytes per parameter + gathered) over the link. The batch is the protocol's, shared
    by all GPUs.
    """
    several = isinstance(n, tuple)
    classes: Any = tuple(map(len, n)) if several else len(n)
    flops, parameters = operations(row.net, classes, SHAPES[row.split.data] if shape is None else shape)
    decoded = large.LARGE[row.split.data].decoded if row.split.data in large.LARGE else 0
    total, batch, each = int((n[0] if several else n).sum()), row.protocol.batch, visits(row, n)
    steps = sum(len(sizes(v, batch)) for v in each)
    watched = ceil(row.protocol.epochs / row.protocol.watch) * total
    lines = []
    for g in gpus:
        seconds = {
            "compute": flops * (3 * sum(each) + watched) / (g * machine.flops * machine.used),
            "reading": (sum(each) + watched) * decoded / (g * machine.reads),
            "launching": steps * machine.launch,
            "gradients": steps * 2 * (g - 1) / g * (4 * parameters + gathered) / machine.link,
        }
        bound = max(seconds, key=seconds.__getitem__)
        hours = seconds[bound] / 3600
        lines.append(
            dict(gpus=g, steps=steps, images=sum(each) + watched, bound=bound, hours=hours, gpu_hours=hours * g,
                 dollars=hours * g * machine.dollars)
        )  # fmt: skip
    return lines


#: (total, C, largest, smallest) of ImageNet-LT and iNaturalist 2018. The sums are the sets' own, the extremes are as
#: later papers report them [S].
COUNTS = {"imagenet-lt": (115_846, 1000, 1280, 5), "inaturalist2018": (437_513, 8142, 1000, 2)}


def published(name: str) -> Any:
    """Class counts to estimate with where the set itself is not here: (C,), or a tuple for several labels.

    'imagenet-lt' and 'inaturalist2018' by `long_tail` from `COUNTS`; 'egtea' as CDB's released code has them [C];
    of sets with several labels every label one in ten, since only the number of images matters for the time. ValueError
    for a set whose size we do not know.
    """
    known = large.LARGE[name]
    if name in COUNTS:
        return long_tail(*COUNTS[name])
    if name == "egtea":
        counts = (429, 779, 1421, 822, 129, 1335, 130, 308, 223, 249, 54, 54, 139, 42, 78, 117, 26, 15, 22)
        return torch.tensor(counts)
    if known.samples is None:
        raise ValueError(f"the size of {name} is not known to us: give its class counts")
    if name in ("celeba", "deepfashion"):
        yes = known.samples[0] // 10
        return (torch.tensor([known.samples[0] - yes, yes]),) * known.classes
    return torch.full((known.classes,), known.samples[0] // known.classes)


def state_bytes(method: str, n: Tensor, features: int, batch: int, k: int = 5, kappa: int = 3) -> dict[str, int]:
    """Bytes that a method needs beside the network, in float32 and int64: a dict of kept and of a step's own.

    kept: what stays between steps: DOS's table of N features and k neighbours, CDB's two numbers per class. step: what
    a step makes: scores (B, C), with CRL its mining (B, C) several times and its triplets (B, kappa, kappa), with DOS
    the neighbours' features (B, k, D) and scores (B k, C). On paper: `benchmarks/growth.py` measures.
    """
    images, classes = int(n.sum()), len(n)
    scores = 4 * batch * classes
    kept = {"DOS": images * (4 * features + 8 * k) + 8 * images, "CDB": 12 * classes, "MFW": 5 * classes}
    step = {
        "CRL": scores * 6 + 8 * batch * kappa**2,
        "DOS": scores * (1 + k) + 4 * batch * k * features,
        "MFW": scores,
    }
    return dict(kept=kept.get(method, 0), step=step.get(method, scores))


def neighbour_operations(n: Tensor, features: int, minority: Tensor | None = None) -> float:
    """Operations of one exact search for neighbours within classes: 2 D sum over classes of n_c^2.

    minority: bool (C,), the classes that are searched, default all.
    """
    searched = n if minority is None else n[minority]
    return 2.0 * features * float((searched.double() ** 2).sum())


def crossover(machine: Machine, flops: int) -> float:
    """Pictures per second that the processors beside one GPU must decode so that training does not wait for them.

    flops: of a forward pass; ValueError for none.
    """
    if flops < 1:
        raise ValueError(f"flops {flops}: of a forward pass, at least 1 (see `operations`)")
    return machine.flops * machine.used / (3 * flops)
