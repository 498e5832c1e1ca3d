"""In which numbers a fast step computes: float32, TF32, bfloat16 or float16, the latter two with compiled blocks.

Weights, momentum, losses and evaluation are float32 in all of them.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from imbook.nets import Block

#: The formats of two bytes, {name: torch's dtype}.
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: What a step can compute in: None (as the network is), 'float32', 'tf32' and the names of `HALF`.
PRECISIONS = (None, "float32", "tf32", *HALF)


def best_precision(device: str | torch.device) -> str | None:
    """The fastest precision of a device: 'bf16' on CUDA from capability 8 on, 'fp16' below (a T4), None on a CPU."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def check_precision(precision: str | None, device: torch.device) -> None:
    """ValueError for a precision that there is not, or that the device does not have."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: choose from {', '.join(map(repr, PRECISIONS))}")
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: choose precision='fp16'")


def describe(net: nn.Module, device: torch.device, precision: str | None = None) -> str:
    """What `fit(..., fast=True)` does on this device: 'cuda graph, channels_last, tf32', say, or the plain loop."""
    if device.type != "cuda":
        return f"plain loop on {device.type}" + (f", {precision}" if precision else "")
    tf32 = torch.backends.cudnn.allow_tf32 if precision is None else precision == "tf32"
    last = precision in HALF or any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters())
    parts = (
        ("cuda graph", True),
        ("channels_last", last),
        ("tf32", tf32 and torch.cuda.get_device_capability(device) >= (8, 0)),
        (precision, precision in HALF),
        ("compiled blocks", compiles(net, device, precision)),
    )
    return ", ".join(str(name) for name, on in parts if on)


def compiles(net: nn.Module, device: torch.device, precision: str | None) -> bool:
    """Whether residual blocks go through torch.compile: in half precision on CUDA, where Triton is installed."""
    there = any(type(m) is Block for m in net.modules())
    return there and device.type == "cuda" and precision in HALF and importlib.util.find_spec("triton") is not None


@contextmanager
def switches(precision: str | None) -> Iterator[None]:
    """Within it TF32 is on for 'tf32', off for 'float32', and as it was for the others."""
    conv, matrix = torch.backends.cudnn, torch.backends.cuda.matmul
    before = conv.allow_tf32, matrix.allow_tf32
    if precision in ("tf32", "float32"):
        conv.allow_tf32 = matrix.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        conv.allow_tf32, matrix.allow_tf32 = before


def autocast(precision: str | None, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass."""
    if precision not in HALF:
        return nullcontext()
    return torch.autocast(device.type, HALF[precision], cache_enabled=False)


@contextmanager
def compiled_blocks(net: nn.Module, batch: int, backend: str = "inductor") -> Iterator[None]:
    """Within it the residual blocks of `net` (`imbook.nets.Block`) compute a training batch by compiled code.

    Only batches of the size `batch`: evaluation, smaller batches, and a block with a hook inside it stay as they are.
    Blocks of equal shape share their code. Nothing can be compiled under a dispatch mode (such as `imbook.fast.Watch`).
    """
    plain, blocks = Block.forward, [m for m in net.modules() if type(m) is Block]
    quick = torch.compile(plain, dynamic=False, fullgraph=True, backend=backend)

    def forward_of(block: Block) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            fixed = block.training and torch.is_grad_enabled() and len(x) == batch
            return (quick if fixed and not _hooked(block) else plain)(block, x)

        return forward

    for block in blocks:
        block.forward = forward_of(block)  # type: ignore[assignment, method-assign]
    try:
        with _many_shapes():
            yield
    finally:
        for block in blocks:
            del block.forward


def _hooked(block: Block) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in block.modules() if m is not block)


def _many_shapes() -> AbstractContextManager[Any]:
    """torch.compile gives up after a few shapes of one function; a process may train networks of many."""
    config = torch._dynamo.config
    name = next(name for name in ("recompile_limit", "cache_size_limit") if hasattr(config, name))
    return config.patch({name: 64})


class Scaler(nn.Module):
    """A scale for the loss in float16, whose gradients would vanish: all of it on the device, so that a graph holds it.

    After a step whose gradients overflowed, which changes no weight, the scale is halved; after 2,000 good ones it is
    doubled.
    """

    scale: Tensor
    good: Tensor
    overflow: Tensor
    one: Tensor

    def __init__(self, device: str | torch.device, scale: float = 2.0**16) -> None:
        super().__init__()
        one: Any = dict(dtype=torch.float32, device=device)
        self.register_buffer("scale", torch.full((), scale, **one))
        self.register_buffer("good", torch.zeros((), dtype=torch.int32, device=device))  # steps since it changed
        self.register_buffer("overflow", torch.zeros((), **one), persistent=False)  # 1 where the last step overflowed
        self.register_buffer("one", torch.ones((), **one), persistent=False)

    def step(self, loss: Tensor, optimiser: Any) -> None:
        """Gradients of the scaled loss, and a step of the fused optimiser, which divides them by the scale."""
        (loss * self.scale).backward()
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        self.overflow.zero_()
        for dtype in dict.fromkeys(g.dtype for g in gradients):
            some = [g for g in gradients if g.dtype == dtype]
            torch._amp_foreach_non_finite_check_and_unscale_(some, self.overflow, self.one)
        optimiser.grad_scale, optimiser.found_inf = self.scale, self.overflow
        optimiser.step()
        del optimiser.grad_scale, optimiser.found_inf
        torch._amp_update_scale_(self.scale, self.good, self.overflow, 2.0, 0.5, 2000)


class Counters:
    """BatchNorm's counters of batches, which nothing reads in training: taken out of the step, added up afterwards."""

    def __init__(self, net: nn.Module) -> None:
        layers = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.layers: list[Any] = [m for m in layers if m.num_batches_tracked is not None and m.momentum is not None]
        self.places = [m.num_batches_tracked for m in self.layers]

    def read(self) -> list[int]:
        """The counters, a list of integers: waits for the device."""
        return torch.stack(self.places).tolist() if self.places else []

    def add(self, numbers: Sequence[int]) -> None:
        """Raise each counter by its number."""
        for place, number in zip(self.places, numbers):
            place.add_(number)

    @contextmanager
    def out(self) -> Iterator[None]:
        """Within it the layers do not count."""
        for m in self.layers:
            m.num_batches_tracked = None
        try:
            yield
        finally:
            for m, place in zip(self.layers, self.places):
                m.num_batches_tracked = place
