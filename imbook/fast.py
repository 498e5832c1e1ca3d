"""The same mathematics faster on a GPU: a whole training step as one CUDA graph, launched at once.

A step of ResNet-32 is hundreds of small kernels, and launching them one by one takes longer than the arithmetic.
`imbook.train.fit(..., fast=True)` trains by `Step`. What a method must keep, so that its step can be captured: shapes
that do not depend on values, nothing read back by the host, buffers written with copy_.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imbook.data import AnyBatches
from imbook.instruments import FeatureGradients
from imbook.precision import (
    HALF,
    Counters,
    Scaler,
    autocast,
    check_precision,
    compiled_blocks,
    compiles,
    describe,
    switches,
)

__all__ = ["CaptureError", "Step", "Watch", "describe"]

class CaptureError(RuntimeError):
    """The training step of a method cannot be captured; the message names the method and the operation.

    Where it has a cause (`__cause__`) the capture itself broke off, and the process should end: the torch of now may
    leave its allocator and generators in the state of a capture. Without one the step was refused before it.
    """


class Step:
    """A training step that is given positions alone: it gathers, augments and normalises the images itself.

    On a CUDA device there is one graph per batch size, captured when that size first comes (the full batch, the smaller
    last one) and replayed from then on; on another device the same operations run one by one. A graph reads and writes
    fixed places in memory. Where `epoch` finds that a tensor has moved, or a plain attribute of the method has changed,
    it drops the graphs and captures anew.

    A context: within it residual blocks are compiled and TF32 is switched, where `precision` says so.
    train: `imbook.data.Batches`; optimiser: fused SGD; its learning rate becomes a tensor on the device.
    gradients: the `imbook.instruments.FeatureGradients` that watches, or None. precision: see `imbook.train.fit`.
    backend: of torch.compile for the residual blocks (default: 'inductor' where they are compiled, else none).
    `CaptureError` where the step cannot be captured: there is no slow path in silence. ValueError for batches that are
    not in memory, and for a precision that the device does not have.
    """

    def __init__(
        self, net: nn.Module, method: nn.Module, optimiser: torch.optim.Optimizer, train: AnyBatches,
        gradients: FeatureGradients | None = None, precision: str | None = None, backend: str | None = None,
    ) -> None:  # fmt: skip
        if not hasattr(train, "positions"):
            raise ValueError(
                f"a fast step gathers its images on the device, and {type(train).__name__} reads them one by one: "
                "train with fast=False, or hold the images in memory (imbook.data.Batches)"
            )
        self.net, self.method, self.optimiser, self.gradients = net, method, optimiser, gradients
        self.train: Any = train
        self.device, self.precision = train.device, precision
        check_precision(precision, self.device)
        self.backend = backend or ("inductor" if compiles(net, self.device, precision) else None)
        self.scaler = Scaler(self.device) if precision == "fp16" else None
        if gradients is not None and self.scaler is not None:
            gradients.scale = self.scaler.scale
        # On CUDA fused SGD reads a rate of float32 only.
        self.rate = torch.zeros((), dtype=torch.float32 if self.captures else torch.float64, device=self.device)
        self.graphs: dict[int, Captured] = {}
        self.fixed: Any = None
        self.pool: Any = None

    def __enter__(self) -> "Step":
        self.within = ExitStack()
        self.within.enter_context(switches(self.precision))
        if self.precision in HALF and self.captures:  # half precision is slower than float32 in the other format
            self.net.to(memory_format=torch.channels_last)
        if self.backend is not None:
            self.within.enter_context(compiled_blocks(self.net, self.train.batch, self.backend))
        return self

    def __exit__(self, *_: Any) -> None:
        self.within.close()

    @property
    def captures(self) -> bool:
        """Whether this device replays graphs."""
        return self.device.type == "cuda"

    def epoch(self, losses: Tensor) -> None:
        """The steps of one pass over the training set; losses[b] becomes that of batch b. Waits for nothing."""
        for group in self.optimiser.param_groups:
            self.rate.fill_(group["lr"])
            group["lr"] = self.rate
            for p in group["params"] if group["momentum"] else ():  # the first step would make it, within the graph
                if "momentum_buffer" not in self.optimiser.state[p]:
                    self.optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
        if self.captures and self.fixed != (now := self.what_is_fixed()):
            self.graphs.clear()
            self.fixed, self.pool = now, self.new_pool()
        for b, i in enumerate(self.train.positions()):
            losses[b] = self(i)
        for graph in self.graphs.values():
            graph.count()

    def __call__(self, i: Tensor) -> Tensor:
        """One step on the batch at positions i (B,); returns the loss, a scalar that the next step overwrites."""
        if not self.captures:
            return self.run(i)
        if len(i) not in self.graphs:
            self.graphs[len(i)] = self.capture(i.clone())
        return self.graphs[len(i)].replay(i)

    def run(self, i: Tensor) -> Tensor:
        """The step itself, operation by operation."""
        x, y = self.train.take(i)
        with autocast(self.precision, self.device):
            loss = self.method(self.net, x, y, i)
        self.optimiser.zero_grad()
        if self.scaler is None:
            loss.backward()
            self.optimiser.step()
        else:
            self.scaler.step(loss, self.optimiser)
        return loss.detach()

    def capture(self, i: Tensor) -> "Captured":
        """The graph of a step on batches as large as i (B,): nothing is trained by it."""
        counters, graph = Counters(self.net), self.new_graph()
        with _timed_algorithms(), graph.aside():
            numbers = self.check(i, counters)
            with counters.out():
                self.warm_up(i)
        self.optimiser.zero_grad()  # so that the graph makes its own gradients
        with _timed_algorithms(), self.untouched(), counters.out():
            try:
                loss = graph.record(lambda: self.run(i))
            except Exception as error:
                self.fixed = None  # the memory pool of a capture that failed is not used again
                raise CaptureError(
                    f"{type(self.method).__name__}: the training step cannot be captured, it failed at {_place(error)} "
                    f"({error}). Train with fast=False, or rewrite that operation"
                ) from error
            kept = (self.gradients.norms, self.gradients.labels) if self.gradients else ()
            return Captured(graph, i, loss, [(some, some[-1]) for some in kept], counters, numbers)

    def check(self, i: Tensor, counters: Counters) -> list[int]:
        """One step under `Watch`, which leaves nothing behind; returns what it adds to each of the counters.

        `CaptureError` naming each operation for which the host would wait. Nothing can be compiled under a watch, so
        what is captured afterwards runs without it.
        """
        before = counters.read()
        with self.untouched():
            with torch.compiler.set_stance("force_eager"), Watch() as watch:
                self.run(i)
            after = counters.read()
        if watch.waits:
            raise CaptureError(
                f"{type(self.method).__name__}: the training step cannot be captured, as the host waits for the "
                f"device in {', '.join(dict.fromkeys(watch.waits))}. Train with fast=False, or write it with "
                "static shapes (a mask and torch.where, no values read back)"
            )
        return [b - a for a, b in zip(before, after)]

    def warm_up(self, i: Tensor) -> None:
        """Two steps that leave nothing behind: what is compiled, or timed, is so afterwards."""
        with self.untouched():
            for _ in range(2):
                self.run(i)

    def new_graph(self) -> "Graph":
        return Graph(self.device, self.pool, self.train.generator)

    def new_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within it steps may run: afterwards network, method, momentum and random numbers are as they were."""
        tensors = [*self.tensors(), *self.momentum()]
        saved = [t.detach().clone() for t in tensors]
        generators = [g for g in (_generator(self.device), self.train.generator) if g is not None]
        states = [g.get_state() for g in generators]
        noted = len(self.gradients.norms) if self.gradients else 0
        try:
            yield
        finally:
            with torch.no_grad():
                for t, before in zip(tensors, saved):
                    t.copy_(before)
            for g, state in zip(generators, states):
                g.set_state(state)
            if self.gradients:
                del self.gradients.norms[noted:], self.gradients.labels[noted:]

    def tensors(self) -> list[Tensor]:
        """All parameters and buffers of network, method and scaler."""
        modules = [m for m in (self.net, self.method, self.scaler) if m is not None]
        return [t for m in modules for some in (m.parameters(), m.buffers()) for t in some]

    def momentum(self) -> list[Tensor]:
        """The optimiser's buffers."""
        return [s["momentum_buffer"] for s in self.optimiser.state.values() if s.get("momentum_buffer") is not None]

    def what_is_fixed(self) -> tuple[Any, ...]:
        """What a graph has taken as it was at capture: where tensors lie, and the method's plain attributes."""
        own = {k: v for k, v in vars(self.method).items() if not k.startswith("_")}
        loose = [v for v in own.values() if isinstance(v, torch.Tensor)]
        plain = {k: repr(v) for k, v in own.items() if isinstance(v, int | float | str | tuple | list | dict | None)}
        tensors = [*self.tensors(), *self.momentum(), *loose, self.train.x, self.train.y]
        return [(t.data_ptr(), t.shape) for t in tensors], plain, self.net.training


class Graph:
    """A CUDA graph of one function."""

    def __init__(self, device: torch.device, pool: Any, generator: torch.Generator | None) -> None:
        self.graph, self.device, self.pool, self.generator = torch.cuda.CUDAGraph(), device, pool, generator

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within it work goes to another stream, as before a capture."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Capture a function; returns what it returned, tensors that each replay overwrites."""
        if self.generator is not None:
            with warnings.catch_warnings():  # newer versions of torch do this by themselves, and say so
                warnings.simplefilter("ignore")
                self.graph.register_generator_state(self.generator)
        outside = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self.graph, pool=self.pool):
                return work()
        except Exception:
            torch.cuda.set_stream(outside)
            raise

    def replay(self) -> None:
        self.graph.replay()


class Captured:
    """A graph of a step, its positions i (B,) and loss, the (list, tensor) pairs that the instrument notes, and the
    numbers by which a step raises BatchNorm's counters.
    """

    def __init__(
        self, graph: Graph, i: Tensor, loss: Tensor, noted: list[tuple[list[Tensor], Tensor]], counters: Counters,
        numbers: list[int],
    ) -> None:  # fmt: skip
        self.graph, self.i, self.loss, self.noted = graph, i, loss, noted
        self.counters, self.numbers, self.replays = counters, numbers, 0

    def replay(self, i: Tensor) -> Tensor:
        self.i.copy_(i)
        self.graph.replay()
        for kept, static in self.noted:
            kept.append(static.clone())
        self.replays += 1
        return self.loss

    def count(self) -> None:
        """Add the steps since the last call to the counters."""
        self.counters.add([number * self.replays for number in self.numbers])
        self.replays = 0


class Watch(TorchDispatchMode):
    """Notes in `waits` the operations for which the host waits for the device, forward and backward.

    These are operations whose result's shape depends on values (nonzero, unique, an index that is a mask), that read
    values (item, if, equal), or that copy between devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if _waits(func, args, kwargs, out):
            self.waits.append(str(func))
        return out


def _waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
    tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
    copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
    if copies and len({t.device.type for t in tensors}) > 1:
        return True
    if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    if kwargs.get("output_size") is not None:  # repeat_interleave that is told
        return False
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _place(error: Exception) -> str:
    """The line of the method, or of the network, in which a capture broke off; ending it may have raised once more."""
    chain: list[BaseException] = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    frames = [f for e in reversed(chain) for f in reversed(traceback.extract_tb(e.__traceback__))]
    own = [f for f in frames if not any(part in f.filename for part in ("/torch/", "\\torch\\", "contextlib"))]
    last = next((f for f in own if f.filename != __file__), frames[0])
    return f"{last.line!r} ({last.filename}, line {last.lineno})"


def _generator(device: torch.device) -> torch.Generator | None:
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


@contextmanager
def _timed_algorithms() -> Iterator[None]:
    """cuDNN times its algorithms at the first call of each convolution in a process, and keeps the fastest.

    A convolution that was called before, untimed, keeps what it had.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
