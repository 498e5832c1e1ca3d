"""What several chapters do alike: show code, compare versions of a loss, count kept bytes, train a run here."""

import ast
import inspect
import math
import os
import re
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from imbook import nets

if TYPE_CHECKING:
    from imbook.rows import Row, Table


def source(*things: Any) -> str:
    """The code of functions without docstrings and type hints: a text, a blank line between them."""
    return "\n\n".join(_code(thing).strip() for thing in things)


def _code(function: Any) -> str:
    lines = textwrap.dedent(inspect.getsource(function)).splitlines(keepends=True)
    (outer,) = ast.parse("".join(lines)).body
    if not isinstance(outer, ast.FunctionDef):
        raise ValueError(f"{function!r} is no function: name the methods of a class one by one")
    inner = [some for some in ast.walk(outer) if isinstance(some, ast.FunctionDef)]
    for each in sorted(inner, key=lambda some: -some.lineno):
        for argument in ast.walk(each.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        head = " " * each.col_offset + f"def {each.name}({ast.unparse(each.args)}):\n"
        first = each.body[bool(ast.get_docstring(each))]
        lines[each.lineno - 1 : first.lineno - 1] = [head.replace("'", '"')]
    return re.sub(" *# type: ignore.*", "", "".join(lines))


def small_net() -> nn.Sequential:
    """A network with BatchNorm and dropout, in float64: 64 inputs in any shape, stages flat to head, 10 classes."""
    torch.manual_seed(1)
    stages = dict(flat=nn.Flatten(), stage1=nn.Linear(64, 16), norm=nn.BatchNorm1d(16), drop=nn.Dropout(0.2))
    return nn.Sequential(OrderedDict(**stages, head=nn.Linear(16, 10))).double()


def three_steps(
    net: nn.Module, loss: Callable[..., Tensor], batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    training: bool = True, lr: float = 0.5,
) -> tuple[float, Tensor, Tensor]:  # fmt: skip
    """Loss, gradient and state after three steps of SGD, to hold two versions of a method against each other.

    loss(net, x, y, i, k) -> the loss of step k = 0, 1, 2 on a batch of `batches`; training: the network's mode.
    Returns (loss, gradient of the first parameter, all parameters and buffers as one vector of float64).
    """
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for k, (x, y, i) in zip(range(3), batches):
        net.train(training)
        value = loss(net, x, y, i, k)
        optimiser.zero_grad(), value.backward(), optimiser.step()
    state = torch.cat([v.flatten().double() for v in net.state_dict().values()])
    gradient: Any = next(net.parameters()).grad
    return value.item(), gradient.clone(), state


def kept_bytes(forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass while forward() runs."""
    sizes = []

    def pack(t: Tensor) -> Tensor:
        sizes.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(sizes)


def moons(n: Sequence[int], seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Two half moons with n[c] points each, and their classes: x float32 (N, 2), y int64 (N,).

    noise: standard deviation of what is added to both coordinates; the moons have radius 1.
    """
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(2).repeat_interleave(torch.tensor(n))
    t = math.pi * torch.rand(len(y), generator=g)
    x = torch.where(y == 0, t.cos(), 1 - t.cos()), torch.where(y == 0, t.sin(), 0.5 - t.sin())
    return torch.stack(x, 1) + noise * torch.randn(len(y), 2, generator=g), y


def learn(
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor], x: Tensor, y: Tensor, seed: int, steps: int,
    batch: int | None = None, lr: float = 0.1,
) -> nn.Sequential:  # fmt: skip
    """A small network for points in the plane, trained for some steps of SGD with momentum 0.9; returns the network.

    loss(net, x, y, i) -> a scalar: a method of the book, say. batch: points per step, drawn anew; None: all of them.
    """
    torch.manual_seed(seed)
    net = nets.mlp(2, 2, width=32)
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        i = torch.arange(len(y)) if batch is None else torch.randperm(len(y))[:batch]
        optimiser.zero_grad()
        loss(net, x[i], y[i], i).backward()
        optimiser.step()
    return net


def quartiles(q: dict[str, float] | None) -> str:
    """A measured ratio as text, 'median (low to high)'. q: dict(median, low, high), or None: 'not measured'."""
    return f"{q['median']:.2f} ({q['low']:.2f} to {q['high']:.2f})" if q else "not measured"


def train_here(
    table: "Table", label: str | None = None, hyper: dict[str, Any] | None = None, **shorter: Any
) -> list[tuple["Row", dict[str, Any]]]:
    """Train runs of a table on this machine, beside the records: a list of (row, record).

    The environment variable IMBOOK_TRAIN decides: '0' trains nothing, 'all' every run of the table on whatever device
    there is; without it the first run of the row `label` (default: the first row) where there is a CUDA device, with
    the fields of its protocol in `shorter` and some of its hyper-parameters replaced. A missing data set is downloaded.
    Shows a progress bar per run.
    """
    from imbook import data
    from imbook.experiments import run

    wanted, cuda = os.environ.get("IMBOOK_TRAIN", ""), torch.cuda.is_available()
    queue = table.runs()
    if wanted != "all":
        row, seeds = next((r, s) for r, s in queue if label in (None, r.label))
        short = replace(row, protocol=replace(row.protocol, **shorter), hyper=row.hyper | (hyper or {}))
        queue = [(short, seeds)] if cuda and wanted != "0" else []
    if not queue:
        print("Nothing is trained here: the tables read the committed records.")
    made = []
    for row, seeds in queue:
        try:
            data.load(row.split.data)
        except FileNotFoundError:
            data.download(row.split.data)
        with tqdm(total=row.protocol.epochs, desc=f"{row.label}, seed {seeds['train']}") as bar:
            made.append((row, run(row, seeds, "cuda" if cuda else "cpu", tick=lambda *_, bar=bar: bar.update())))
    return made
