"""The same mathematics faster on a GPU: a whole training step as one CUDA graph, launched at once.

A step of ResNet-32 is hundreds of small kernels, and launching them one by one takes longer than the arithmetic.
`imbook.train.fit(..., fast=True)` trains by `Step`. What a method must keep, so that its step can be captured: shapes
that do not depend on values, nothing read back by the host, buffers written with copy_.
"""

import warnings
from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The forward pass in bfloat16 (autocast), the loss through torch.compile: off until benchmarks/step.py, which times
# both, has shown on a GPU that they pay, and the tests that accuracy stays.
HALF, COMPILED = False, False


def describe(net, device):
    """What `fit(..., fast=True)` does on this device: 'cuda graph, channels_last, tf32', say, or the plain loop."""
    if device.type != "cuda":
        return f"plain loop on {device.type}"
    parts = {
        "cuda graph": True,
        "channels_last": any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters()),
        "tf32": torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability(device) >= (8, 0),
        "bfloat16": HALF,
        "torch.compile": COMPILED,
    }
    return ", ".join(name for name, on in parts.items() if on)


chosen = describe  # until its callers have moved


class CaptureError(RuntimeError):
    """The training step of a method cannot be captured; the message names the method and the operation.

    Where it has a cause (`__cause__`) the capture itself broke off, and the process should end: the torch of now may
    leave its allocator and generators in the state of a capture. Without one the step was refused before it.
    """


class Step:
    """A training step that is given positions alone: it gathers, augments and normalises the images itself.

    On a CUDA device there is one graph a batch size, captured when that size first comes (the full batch, the smaller
    last one) and replayed from then on; on another device the same operations run one by one. A graph reads and writes
    fixed places in memory. Where `epoch` finds that a tensor has moved, or a plain attribute of the method has changed,
    it drops the graphs and captures anew.

    train: `imbook.data.Batches`; optimiser: fused SGD; its learning rate becomes a tensor on the device.
    gradients: the `imbook.train.FeatureGradients` that watches, or None. `CaptureError` where the step cannot be
    captured: there is no slow path in silence.
    """

    def __init__(self, net, method, optimiser, train, gradients=None):
        self.net, self.method, self.optimiser, self.train, self.gradients = net, method, optimiser, train, gradients
        self.device, self.half, self.loss_of = train.x.device, HALF, method
        if COMPILED:
            torch.compiler.reset()  # else it gives up on compiling, in silence, after some networks
            self.loss_of = torch.compile(method, dynamic=False)
        # On CUDA fused SGD reads a rate of float32 only.
        self.rate = torch.zeros((), dtype=torch.float32 if self.captures else torch.float64, device=self.device)
        self.graphs, self.fixed, self.pool = {}, None, None

    @property
    def captures(self):
        """Whether this device replays graphs."""
        return self.device.type == "cuda"

    def epoch(self, losses):
        """The steps of one pass over the training set; losses[b] becomes that of batch b. Waits for nothing."""
        for group in self.optimiser.param_groups:
            self.rate.fill_(group["lr"])
            group["lr"] = self.rate
            for p in group["params"] if group["momentum"] else ():  # the first step would make it, within the graph
                if "momentum_buffer" not in self.optimiser.state[p]:
                    self.optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
        if self.captures and self.fixed != (now := self.what_is_fixed()):
            self.graphs.clear()
            self.fixed, self.pool = now, torch.cuda.graph_pool_handle()
        for b, i in enumerate(self.train.positions()):
            losses[b] = self(i)

    def __call__(self, i):
        """One step on the batch at positions i (B,); returns the loss, a scalar that the next step overwrites."""
        if not self.captures:
            return self.run(i)
        if len(i) not in self.graphs:
            self.graphs[len(i)] = self.capture(i.clone())
        graph, positions, loss, noted = self.graphs[len(i)]
        positions.copy_(i)
        graph.replay()
        for kept, static in noted:
            kept.append(static.clone())
        return loss

    def run(self, i):
        """The step itself, operation by operation."""
        x, y = self.train.take(i)
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if self.half else nullcontext():
            loss = self.loss_of(self.net, x, y, i)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def capture(self, i):
        """The graph of a step, its positions i (B,) and loss, and (list, tensor) pairs that the instrument notes."""
        stream, graph = torch.cuda.Stream(self.device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with _timed_algorithms(), torch.cuda.stream(stream):
            self.warm_up(i)
        torch.cuda.current_stream().wait_stream(stream)
        if self.train.generator is not None:
            with warnings.catch_warnings():  # newer versions of torch do this by themselves, and say so
                warnings.simplefilter("ignore")
                graph.register_generator_state(self.train.generator)
        self.optimiser.zero_grad()  # so that the graph makes its own gradients
        watch, outside = Watch(), torch.cuda.current_stream()
        with _timed_algorithms(), self.untouched():
            try:
                with watch, torch.cuda.graph(graph, pool=self.pool):
                    loss = self.run(i)
            except Exception as error:
                self.fixed = None  # the memory pool of a capture that failed is not used again
                torch.cuda.set_stream(outside)
                raise CaptureError(
                    f"{type(self.method).__name__}: the training step cannot be captured, it failed at {watch.last} "
                    f"({error}). Train with fast=False, or rewrite that operation"
                ) from error
            kept = (self.gradients.norms, self.gradients.labels) if self.gradients else ()
            return graph, i, loss, [(some, some[-1]) for some in kept]

    def warm_up(self, i):
        """Two steps that leave nothing behind. `CaptureError` naming each operation for which the host would wait."""
        with self.untouched():
            with Watch() as watch:
                self.run(i)
            if watch.waits:
                raise CaptureError(
                    f"{type(self.method).__name__}: the training step cannot be captured, as the host waits for the "
                    f"device in {', '.join(dict.fromkeys(watch.waits))}. Train with fast=False, or write it with "
                    "static shapes (a mask and torch.where, no values read back)"
                )
            self.run(i)

    @contextmanager
    def untouched(self):
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

    def tensors(self):
        """All parameters and buffers of network and method."""
        return [t for m in (self.net, self.method) for some in (m.parameters(), m.buffers()) for t in some]

    def momentum(self):
        """The optimiser's buffers."""
        return [s["momentum_buffer"] for s in self.optimiser.state.values() if s.get("momentum_buffer") is not None]

    def what_is_fixed(self):
        """What a graph has taken as it was at capture: where tensors lie, and the method's plain attributes."""
        own = {k: v for k, v in vars(self.method).items() if not k.startswith("_")}
        loose = [v for v in own.values() if isinstance(v, torch.Tensor)]
        plain = {k: repr(v) for k, v in own.items() if isinstance(v, int | float | str | tuple | list | dict | None)}
        tensors = [*self.tensors(), *self.momentum(), *loose, self.train.x, self.train.y]
        return [(t.data_ptr(), t.shape) for t in tensors], plain, self.net.training


class Watch(TorchDispatchMode):
    """Notes the last operation, and in `waits` those for which the host waits for the device, forward and backward.

    These are operations whose result's shape depends on values (nonzero, unique, an index that is a mask), that read
    values (item, if, equal), or that copy between devices.
    """

    def __init__(self):
        super().__init__()
        self.last, self.waits = "its start", []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.last = str(func)
        out = func(*args, **kwargs)
        if _waits(func, args, kwargs, out):
            self.waits.append(self.last)
        return out


def _waits(func, args, kwargs, out):
    tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
    copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
    if copies and len({t.device.type for t in tensors}) > 1:
        return True
    if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    if kwargs.get("output_size") is not None:  # repeat_interleave that is told
        return False
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _generator(device):
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


@contextmanager
def _timed_algorithms():
    """cuDNN times its algorithms at the first call of each convolution in a process, and keeps the fastest.

    A convolution that was called before, untimed, keeps what it had.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
