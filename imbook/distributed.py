"""One training over several processes, started by torchrun: each rank computes its rows of the same global batch.

A rank is one process with one device. `start` reads what torchrun says, and within it `imbook.train.fit` trains under
torch's DistributedDataParallel. Every rank draws the same batches and the same random numbers. The network sees the
rank's own rows; the method sees what the network puts out for the rows of all ranks, so its loss is that of one process
on the whole batch, whatever it is a mean of. Why the gradient is the same, too: the gathered rows carry the gradient
back to the rank that computed them, so that after `backward` a rank has its share of the gradient of the sum of all
ranks' losses, R times the loss, and DistributedDataParallel divides by R.

Without torchrun there is one rank, and every function here hands back what it is given.
"""

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

Some = TypeVar("Some")
# The option by which buffers are not sent around before each step; newer versions of torch have given it another name.
KNOWN = inspect.signature(DistributedDataParallel.__init__).parameters
BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in KNOWN else "broadcast_buffers"


class RankLost(ConnectionError):
    """Another rank has ended, or cannot be reached any more."""


@dataclass
class Ranks:
    """What `start` was told, and where a training stands."""

    rank: int
    size: int
    loss: str
    batchnorm: str
    options: dict[str, Any]
    training: bool = False  # within fit: sets and evaluations are shared
    stepping: bool = False  # within a training step
    own_stream: bool = False  # whether torch's global generators are the rank's own at this moment
    other: list[Tensor] = field(default_factory=list)  # the states of those that they are not


_ranks: Ranks | None = None
_starts = count()


@contextmanager
def start(
    device: str | torch.device | None = None, loss: str = "global", batchnorm: str = "global",
    backend: str | None = None, **options: Any,
) -> Iterator[torch.device]:  # fmt: skip
    """Within it training is over all ranks that torchrun has started; yields this rank's device, to put the sets on.

    Every rank runs the same script with the same seeds; what it prints or writes itself, it does where `rank()` is 0.

    device: 'cpu' or 'cuda', default 'cuda' where there is one. loss: 'global', the method sees the whole batch and all
    numbers are those of one process, or 'rank', each rank's rows are a batch of their own and their losses are
    averaged, weighted by their rows, as DistributedDataParallel alone does: then CRL mines, and mixup draws its
    partners, among the rows of a rank. batchnorm: 'global', its statistics are those of the whole batch (torch's
    SyncBatchNorm; on a CPU, which that does not know, the rows are gathered), or 'rank': those of the rank's rows, and
    running statistics are averaged over ranks after each epoch. backend: of torch.distributed, default NCCL for 'cuda'
    and gloo for 'cpu'. options: of DistributedDataParallel, such as find_unused_parameters=True.

    Dropout draws from a stream of each rank's own: with it, one process has other numbers. Raises ValueError for an
    unknown setting and for more ranks than GPUs; `RankLost` where another rank has ended.
    """
    global _ranks
    if loss not in ("global", "rank") or batchnorm not in ("global", "rank"):
        raise ValueError(f"loss {loss!r}, batchnorm {batchnorm!r}: both are 'global' or 'rank'")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not launched():
        yield chosen
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if chosen.type == "cuda" and chosen.index is None:
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"rank {rank} is number {local} on a machine with {torch.cuda.device_count()} GPUs: lower "
                "--nproc-per-node, or choose device='cpu'"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    store, *_ = next(dist.rendezvous("env://"))
    # torchrun's store outlives a start and all ranks that died: what is in it of them must not be read again
    store = dist.PrefixStore(f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_starts)}", store)
    # lengths and plain data go between the processors: nothing of them waits for a GPU
    backend = backend or ("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    _ranks = Ranks(rank, size, loss, batchnorm, options)
    try:
        yield chosen
        last = dist.barrier(async_op=True)  # kept: a thread of torch 2.6 that frees it would wait for the interpreter,
        last.wait()  # and the end of the group, which holds that, for the thread
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RankLost(
                f"rank {rank}: another rank has ended or cannot be reached, so the training ends. Its own message "
                "stands above or below; the last checkpoint is whole, and the same command goes on from it"
            ) from error
        raise
    finally:
        _ranks = None
    store.set(f"finished {rank}", "")  # none closes while another one reads
    with suppress(dist.DistError):  # the first rank may hold the store, and take it away when all have finished
        store.wait([f"finished {k}" for k in range(size)])
    dist.destroy_process_group()  # after an error the others may not answer: the end of the process does it then


def launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def rank() -> int:
    """This process's number, 0 to `size()` - 1. What is to be written or printed once, rank 0 does."""
    return 0 if _ranks is None else _ranks.rank


def size() -> int:
    """The number of ranks within `start`, R; else 1."""
    return 1 if _ranks is None else _ranks.size


def from_first(make: Callable[[], Some]) -> Some:
    """What make() returns on rank 0, on every rank; what it raises there is raised on every rank. Called by all."""
    if _ranks is None:
        return make()
    told: list[Any] = [None, None]
    if _ranks.rank == 0:
        try:
            told[0] = make()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def choices() -> dict[str, str]:
    """Those settings of `start` by which a training has other numbers than that of one process, {name: value}."""
    given = {} if _ranks is None else {"loss": _ranks.loss, "batchnorm": _ranks.batchnorm}
    return {f"{name} over ranks": value for name, value in given.items() if value != "global"}


def described() -> dict[str, int]:
    """What a record says of the ranks: {} for one process."""
    return {} if _ranks is None else {"ranks": _ranks.size}


# Within fit ----------------------------------------------------------------------------------------------------------


def least() -> int:
    """The fewest samples of a batch: 2 as BatchNorm needs, and within `fit` one for each rank."""
    return 2 if _training() is None else max(2, size())


def own(t: Tensor) -> Tensor:
    """The rows of a tensor that are this rank's: as even as can be, in order. ValueError for fewer rows than ranks."""
    ranks = _training()
    if ranks is None:
        return t
    if len(t) < ranks.size:
        raise ValueError(f"{len(t)} samples cannot be shared by {ranks.size} ranks: start fewer, or use larger batches")
    return t.tensor_split(ranks.size)[ranks.rank]


def share(items: Sequence[Some]) -> Sequence[Some]:
    """Those of some items that this rank works at."""
    ranks = _training()
    return items if ranks is None else items[ranks.rank :: ranks.size]


def gather(t: Tensor) -> Tensor:
    """The rows of all ranks in the order of the ranks, with gradient: (all rows, ...). t: (this rank's rows, ...)."""
    return t if _training() is None else _gather(t)[0]


def total(t: Tensor) -> Tensor:
    """The sum over all ranks of tensors of one shape, without gradient."""
    if _training() is None:
        return t
    t = t.detach().clone()
    dist.all_reduce(t)
    return t


def leave(z: Any) -> Any:
    """In a training step, from the network to the method: the rows of all ranks. z: a tensor, or a tuple of them."""
    ranks = _stepping()
    if ranks is None:
        return z
    _use_own_stream(ranks, False)
    return tuple(map(gather, z)) if isinstance(z, tuple) else gather(z)


def enter(z: Tensor) -> Tensor:
    """In a training step, from the method to the network: the rows of this rank."""
    ranks = _stepping()
    if ranks is None:
        return z
    _use_own_stream(ranks, True)
    return own(z)


@contextmanager
def training(net: nn.Module, method: nn.Module, **single: bool) -> Iterator[None]:
    """Within it the method's `forward` is that of DistributedDataParallel, and sets and evaluations are shared by all.

    All ranks start from the network of rank 0. single: {name: whether it is asked for}, what only one process can do:
    ValueError where one is.
    """
    ranks = _ranks
    if ranks is None:
        yield
        return
    if asked := [name for name, is_so in single.items() if is_so]:
        raise ValueError(f"fit(..., {asked[0]}=...) is for one process, here are {ranks.size}: leave it out")
    for t in (*net.parameters(), *net.buffers()):
        if not nn.parameter.is_lazy(t):
            dist.broadcast(t.detach(), 0)
    step, parallel = _Step(net, method, ranks), []

    def forward(net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        if not parallel:  # a layer of the method's own may get its size in its first update
            options: Any = {"device_ids": [x.device] if x.is_cuda else None, BUFFERS: False, **ranks.options}
            parallel.append(DistributedDataParallel(step, **options))
        return parallel[0](x, y, i)

    undo = _synchronise(net, ranks)
    hooks = [
        net.register_forward_pre_hook(lambda _, given: _stepping() and _use_own_stream(ranks, True)),
        net.register_forward_hook(lambda _, given, h: leave(h)),
    ]
    vars(method)["forward"] = forward
    ranks.training = True
    try:
        yield
    finally:
        ranks.training = ranks.stepping = False
        _use_own_stream(ranks, False)
        del vars(method)["forward"]
        for hook in hooks:
            hook.remove()
        undo()


def begin(epoch: int, seed: int, train: Any, method: nn.Module) -> None:
    """Before the steps of an epoch: see that all ranks stand alike, and seed the stream of this one.

    ValueError on every rank where one has another order, other labels, another method or another random state: its
    batches would be no parts of one.
    """
    ranks = _training()
    if ranks is None:
        return
    drawn = None if train.generator is None else train.generator.get_state()
    found = hashlib.sha256(repr((type(method).__name__, method.arguments, epoch, seed, train.batch)).encode())
    for t in (train.y, train.order, drawn, *_states(train.device)):
        found.update(b"" if t is None else t.cpu().contiguous().numpy())
    seen = _told_by_all(int.from_bytes(found.digest()[:7], "big"))
    if apart := [r for r, value in enumerate(seen) if value != seen[0]]:
        raise ValueError(
            f"rank {apart[0]} has other data, another order of them, another method or random state than rank 0 in "
            f"epoch {epoch}: make sets, network and method alike on every rank, with the same seeds and draws"
        )
    number = (seed * 1_000_003 + epoch) * 65_536 + 1 + ranks.rank
    devices = ["cpu", train.device] if train.device.type == "cuda" else ["cpu"]
    ranks.other = [torch.Generator(device).manual_seed(number % 2**63).get_state() for device in devices]


def end(net: nn.Module, losses: Tensor) -> Tensor:
    """After the steps of an epoch: the losses of its batches, (batches,), over all ranks; BatchNorm is made alike."""
    ranks = _training()
    if ranks is None:
        return losses
    if ranks.batchnorm == "rank":
        for t in filter(torch.is_floating_point, net.buffers()):
            t.copy_(total(t) / ranks.size)
    return total(losses) / ranks.size


class _Step(nn.Module):
    """What DistributedDataParallel wraps: the loss of this rank. x: own rows; y, i: of the whole batch."""

    def __init__(self, net: nn.Module, method: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.net, self.method, self.ranks = net, method, ranks

    def forward(self, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        loss: Any = type(self.method).forward
        if self.ranks.loss == "rank":
            weight = len(x) * self.ranks.size / len(y)
            _use_own_stream(self.ranks, True)
            found = weight * loss(self.method, self.net, x, own(y), own(i))
        else:
            self.ranks.stepping = True
            found = loss(self.method, self.net, x, y, i)
            self.ranks.stepping = False
        _use_own_stream(self.ranks, False)
        return found


class _Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum over ranks of theirs."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return total(t)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return total(g)


def _training() -> Ranks | None:
    return _ranks if _ranks is not None and _ranks.training else None


def _stepping() -> Ranks | None:
    return _ranks if _ranks is not None and _ranks.stepping else None


def _gather(t: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, and where those of this rank begin."""
    lengths = _told_by_all(len(t))
    before = sum(lengths[: rank()])
    placed = F.pad(t, [0, 0] * (t.ndim - 1) + [before, sum(lengths) - before - len(t)])
    return _Sum.apply(placed), before  # zeros elsewhere: the sum is each row as it is


def _told_by_all(number: int) -> list[int]:
    told = torch.zeros(size(), dtype=torch.int64)
    told[rank()] = number
    dist.all_reduce(told)
    return told.tolist()


def _states(device: torch.device) -> list[Tensor]:
    """The states of torch's global generators."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _use_own_stream(ranks: Ranks, wanted: bool) -> None:
    """Let torch's global generators be those of this rank alone, or those that are alike on all."""
    if wanted == ranks.own_stream or not ranks.other:
        return
    now = _states(torch.device("cuda" if len(ranks.other) > 1 else "cpu"))
    torch.set_rng_state(ranks.other[0])
    if len(ranks.other) > 1:
        torch.cuda.set_rng_state(ranks.other[1])
    ranks.other, ranks.own_stream = now, wanted


def _synchronise(net: nn.Module, ranks: Ranks) -> Callable[[], Any]:
    """Let BatchNorm take the rows of all ranks for its batch; returns what undoes it."""
    if ranks.batchnorm == "rank":
        return lambda: None
    layers = {name: m for name, m in net.named_modules() if isinstance(m, _BatchNorm)}
    if not any(p.is_cuda for p in net.parameters()):
        hooks = [hook for layer in layers.values() for hook in _on_all_rows(layer)]
        return lambda: [hook.remove() for hook in hooks]

    def put(name: str, layer: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        layer.train(net.get_submodule(name).training)
        setattr(net.get_submodule(parent), child, layer)

    for name, layer in layers.items():
        put(name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))  # shares weights and statistics with the old one
    return lambda: [put(name, layer) for name, layer in layers.items()]


def _on_all_rows(layer: nn.Module) -> list[Any]:
    """Hooks by which a layer in training is given the rows of all ranks, and puts out those of this one."""
    place = []

    def before(layer: nn.Module, given: tuple[Tensor, ...]) -> Any:
        if not layer.training or not torch.is_grad_enabled():
            return None
        rows, start = _gather(given[0])
        place.append((start, start + len(given[0])))
        return (rows, *given[1:])

    def after(layer: nn.Module, given: tuple[Tensor, ...], z: Tensor) -> Any:
        return z[slice(*place.pop())] if place else None

    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
