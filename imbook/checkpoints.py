"""Checkpoints: a file is written whole or not at all, and read as it was written or refused.

A file is what torch.save writes, followed by 32 bytes, the sha256 of all before them; torch.load reads it as well.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imbook import records
from imbook.data import AnyBatches
from imbook.distributed import from_first


def write(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state`, a dict of tensors and plain data, to `path`: complete on the disk before it takes the name."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    records.write(path, buffer.getvalue() + hashlib.sha256(buffer.getbuffer()).digest())


def read(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What `write` wrote, tensors on `device`. No code in the file is run.

    ValueError for a file that is damaged in any way, or that `write` did not write.
    """
    return _decoded(path, Path(path).read_bytes(), device)


def _decoded(path: str | Path, content: bytes, device: str | torch.device) -> dict[str, Any]:
    payload, digest = content[:-32], content[-32:]
    try:
        if hashlib.sha256(payload).digest() != digest:
            raise ValueError("its checksum is another")
        state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # there is no list of what a decoder may raise on bytes that it did not write
        raise _damaged(path, error) from error


def save(path: str | Path, identity: dict[str, Any], parts: dict[str, Any], train: AnyBatches, **more: Any) -> None:
    """Write a checkpoint of a run.

    identity: plain data, equal for two runs only if they are the same; parts: {name: module or optimiser}; train: the
    training set, whose order and generator are kept beside torch's own generators; more: plain data.
    """
    cuda = torch.cuda.get_rng_state(train.device) if train.device.type == "cuda" else None
    batches = None if train.generator is None else train.generator.get_state()
    states = {name: part.state_dict() for name, part in parts.items()}
    random = dict(order=train.order, batches=batches, cpu=torch.get_rng_state(), cuda=cuda)
    write(path, dict(identity=identity, **states, **random, **more))


def restore(path: str | Path, identity: dict[str, Any], parts: dict[str, Any], train: AnyBatches) -> dict[str, Any]:
    """Put parts, training set and generators back to what `save` wrote; returns all that is in the file, a dict.

    Over several ranks only the first needs the file, and their number may be another than that which wrote it.

    ValueError where the checkpoint is of another run, naming what differs, and where the file is damaged.
    """
    state = _decoded(path, from_first(Path(path).read_bytes), train.device)
    there = state.get("identity")
    if there != identity:
        raise ValueError(
            f"{path} holds a checkpoint of another run ({_differences(there, identity)}): remove it, or name another "
            "file"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        train.order = state["order"]
        if state["batches"] is not None:
            train.generator.set_state(state["batches"].cpu())  # type: ignore[union-attr]
        torch.set_rng_state(state["cpu"].cpu())
        if state["cuda"] is not None and train.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu(), train.device)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    return state


def elapsed(path: str | Path | None) -> float:
    """Seconds that the runs before have spent on a checkpoint's epochs, evaluation included; 0.0 without a file."""
    return read(path)["elapsed"] if path is not None and Path(path).exists() else 0.0


def plain(value: Any) -> Any:
    """A value as plain data, whole: `repr` would shorten a long tensor, and then two runs would look the same."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return value if isinstance(value, int | float | str | None) else repr(value)


def shapes(net: nn.Module) -> dict[str, list[int] | None]:
    """The names and shapes of a network's parameters and buffers: {name: list}, None for one that is not made yet."""
    lazy = torch.nn.parameter.is_lazy
    return {name: None if lazy(t) else list(t.shape) for name, t in net.state_dict(keep_vars=True).items()}


def _damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged: remove it, then run again ({type(error).__name__}: {error})")


def _differences(there: Any, here: dict[str, Any]) -> str:
    if not isinstance(there, dict):
        return "of another version of this package"
    flat, its = _flat(here), _flat(there)
    names = [k for k in {**flat, **its} if flat.get(k) != its.get(k)]
    short = lambda v: repr(v) if len(repr(v)) < 40 else repr(v)[:37] + "..."  # noqa: E731
    told = [f"{k}: {short(its.get(k))} there, {short(flat.get(k))} here" for k in names[:3]]
    return "; ".join(told) + (f"; {len(names) - 3} more" if len(names) > 3 else "")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: v for k, some in tree.items() for name, v in _flat(some, f"{prefix}.{k}" if prefix else k).items()}
