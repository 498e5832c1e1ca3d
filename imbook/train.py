"""One plain training loop for every method of the book, its protocol, and checkpoints that resume bit for bit.

Chapter 02 builds `fit` line by line.
"""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imbook import checkpoints, distributed
from imbook.data import AnyBatches
from imbook.fast import Step, describe
from imbook.instruments import FeatureGradients
from imbook.metrics import confusion, recall
from imbook.nets import classifier, prior_bias
from imbook.protocol import Protocol, check_stated, learning_rate

__all__ = ["FeatureGradients", "Method", "Protocol", "evaluate", "fit", "group_recall", "learning_rate"]


class Method(nn.Module):
    """What a method of the book is: a loss, and what it does between epochs and at test time.

    A method is made from the class counts and its hyper-parameters, `SomeMethod(n, tau=1)`, n int64 (C,), or a tuple of
    counts for several labels per image: ValueError where its `several_labels` is False.
    `version` is raised whenever the method's mathematics changes: records of older versions are then flagged.
    """

    version = 1
    needs_valid = False  # whether update() measures on a held-out balanced set
    readings: Mapping[str, "Method"] = {}  # by name: other ways to predict from the same network, set by finish()
    several_labels = False  # whether y may be (B, labels) and net(x) a tuple

    def __new__(cls, *given: Any, **named: Any) -> "Method":
        made = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(None, *given, **named)
        bound.apply_defaults()
        cls._check_labels(bound.arguments.get("n"))
        its = {k: v for k, v in bound.arguments.items() if k != "self"}
        made.arguments = checkpoints.plain(its)  # by them a checkpoint knows its run
        made._made_with, made._fitted = (given, named), False  # type: ignore[assignment]
        return made

    @classmethod
    def _check_labels(cls, n: Any) -> None:
        if isinstance(n, tuple) and not cls.several_labels:
            raise ValueError(
                f"{cls.__name__} is for one label an image, here are {len(n)}: choose a method whose several_labels is "
                "True, such as CrossEntropy"
            )

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...  # buffers and layers are of many types

    def restart(self) -> None:
        """Make the method anew, in place, from the arguments it was made with: what training left in it is gone.

        `fit` does so for a method that was fitted before. Random weights of the method's own layers are drawn anew from
        torch's global generator. ValueError where an argument is a module, which training has changed.
        """
        (given, named), own = self._made_with, {k: vars(self)[k] for k in ("arguments", "_made_with")}
        changed = [type(v).__name__ for v in (*given, *named.values()) if isinstance(v, nn.Module | nn.Parameter)]
        if changed:
            raise ValueError(
                f"{type(self).__name__} was trained before and holds a {changed[0]} that it was given, which is "
                "trained as well: make both anew for another training"
            )
        vars(self).clear()
        vars(self).update(own, _fitted=False)
        self.__init__(*given, **named)  # type: ignore[misc]

    def visits(self, n: Any, epoch: int) -> int:
        """How many images epoch `epoch` (0, 1, ...) visits: an integer, N unless the method changes `train.order`.

        n: as the method's own. Training steps are counted by it (`imbook.experiments.steps`).
        """
        return int((n[0] if isinstance(n, tuple) else n).sum())

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        x: (B, channels, height, width); y: (B,), or (B, labels); i: (B,) positions in the training set. Over several
        ranks x holds this rank's rows only: leave it to the network, or to `imbook.nets.tap` at the stage 'input'.
        """
        raise NotImplementedError

    def update(self, epoch: int, net: nn.Module, train: AnyBatches, valid: AnyBatches | None) -> dict[str, Any]:
        """Called before each epoch (0, 1, ...): returns a dict to log beside the curve.

        No gradient, network in evaluation mode. Random numbers may be drawn from torch's global generator: it is seeded
        from the run's seed and the epoch, and put back afterwards. Measure with `train.plain()`, which does not
        augment; set `train.order` to over-sample (`fit` puts it back when it ends), and give their number by `visits`.
        """
        return {}

    def finish(self, net: nn.Module, train: AnyBatches, valid: AnyBatches | None = None) -> None:
        """Called after the last epoch and before the last evaluation, under the conditions of `update`.

        For what is fitted to the trained network. It may set `readings`: a record holds an evaluation of each. What it
        makes is in no checkpoint: resuming a finished run calls it again. It must depend on its arguments alone.
        """

    def predict(self, net: nn.Module, x: Tensor) -> Any:
        """The scores that evaluation uses: (B, C), or a tuple of them for several labels an image."""
        return net(x)


def fit(
    net: nn.Module,
    method: Method,
    train: AnyBatches,
    valid: AnyBatches | None = None,
    test: AnyBatches | None = None,
    *,
    protocol: Protocol,
    seed: int = 0,
    parameters: Iterable[nn.Parameter] | None = None,
    groups: Tensor | None = None,
    instrument: str | None = None,
    checkpoint: str | Path | None = None,
    every: int = 10,
    tick: Callable[[int, dict[str, Any] | None], Any] | None = None,
    fast: bool = False,
    precision: str | None = None,
) -> list[dict[str, Any]]:
    """Train `net` with `method` under `protocol`; returns the curve, a list of dicts, one per evaluated epoch.

    train, valid, test: `imbook.data.Batches` or `imbook.data.Loader`, the last two optional. seed: of torch's global
    generator (drawing the network and the batches is the caller's). parameters: a subset to train; the rest is then
    frozen, BatchNorm statistics included. groups: int64 (C,), the curve gives the mean recall per group (default: the
    recall per class); a class without images has none (nan) and is left out of its group's mean.
    instrument: a stage; the curve then also gives `gradient`, the mean norm of dL/dz per class over the row's last
    epoch (see `FeatureGradients`), and `train_confusion` (C, C), of all training images after it, in evaluation mode.
    checkpoint: a file, written every `every` epochs; where it exists, training resumes from it, bit for bit on a CPU.
    tick: called as tick(epochs done, row or None) after each epoch; what it raises ends the run, after a checkpoint.
    fast: the same steps by `imbook.fast`, which logs what it does on this device (see `imbook.fast.describe`).
    precision: of fast steps: None (float32, TF32 as torch's switches say), 'float32' (no TF32), 'tf32', 'bf16' or
    'fp16' (autocast with channels_last and, on a GPU, compiled residual blocks; 'fp16' scales the loss).
    `imbook.precision.best_precision` names the fastest of a device.

    Within `imbook.distributed.start` all ranks train together, in one process's steps; tick is called on the first.

    Whatever is reused starts fresh: a method that was fitted before is made anew from its arguments
    (`Method.restart`), and `train.order` is each image once at the start and at the end, also after an error. The
    network goes on from the weights it has, and the training set's generator from where it is.

    Raises FloatingPointError (naming epoch, batch and checkpoint) when the loss is not finite. ValueError when the
    protocol states another batch, crop or flip than the training set was made with, the method needs a held-out set
    that is not given, the set has several labels per image and the method is for one, an image or a weight is not
    finite, or the checkpoint is of another run (of other data, network, method, protocol or seeds) or damaged.
    With fast, `imbook.fast.CaptureError` (naming method and operation) when the step cannot be captured. Derived in
    chapter 02.
    """
    type(method)._check_labels(train.n)
    check_stated(protocol, train)
    if method.needs_valid and valid is None:
        raise ValueError(f"{type(method).__name__} measures on a held-out balanced set: pass valid=Batches(...)")
    if precision is not None and not fast:
        raise ValueError(f"precision {precision!r} is for fast steps: fit(..., fast=True)")
    if method._fitted:
        method.restart()
    method._fitted = True  # type: ignore[assignment]
    device = train.device
    net.to(device), method.to(device)
    _check_weights(net)
    torch.manual_seed(seed)
    if protocol.prior_bias:
        prior_bias(net, len(train.n))
    frozen = parameters is not None
    trained = list(net.parameters() if parameters is None else parameters)
    optimiser = torch.optim.SGD(
        _decay_groups(net, [*trained, *method.parameters()], protocol),
        lr=protocol.lr,
        momentum=protocol.momentum,
        fused=True,
    )
    parts = dict(net=net, method=method, optimiser=optimiser)
    curve, start, spent, before, begun = [], 0, 0.0, 0.0, time.perf_counter()
    step: Any

    def save(epoch: int) -> None:
        more: Any = dict(epoch=epoch, spent=spent, elapsed=before + time.perf_counter() - begun, curve=curve)
        if distributed.rank() == 0:
            checkpoints.save(checkpoint, identity, parts, train, **more)  # type: ignore[arg-type]

    with (
        distributed.training(net, method, fast=fast, instrument=instrument is not None),
        _each_once(train),
        nullcontext() if instrument is None else FeatureGradients(net, method, instrument, train.n) as gradients,
        Step(net, method, optimiser, train, gradients, precision) if fast else nullcontext() as step,
    ):
        if fast:
            logging.getLogger(__name__).info("fast: %s", describe(net, device, precision))
            parts |= {} if step.scaler is None else {"scaler": step.scaler}
        if checkpoint is not None:
            sets = dict(train=train, valid=valid, test=test)
            identity = _identity(net, method, sets, protocol, seed, trained if frozen else None, groups, instrument)
            identity["precision"] = precision
            if distributed.from_first(Path(checkpoint).exists):
                state = checkpoints.restore(checkpoint, identity, parts, train)
                curve, start, spent, before = (state[k] for k in ("curve", "epoch", "spent", "elapsed"))
        if start == protocol.epochs:
            _finish(method, start, net, train, valid, seed)
        for epoch in range(start, protocol.epochs):
            began = time.perf_counter()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(protocol, epoch)
            logged = _update(method, epoch, net, train, valid, seed)
            net.train(not frozen)
            losses = torch.zeros(len(train), dtype=torch.promote_types(train.dtype, torch.float32), device=device)
            if fast:
                step.epoch(losses)
            else:
                for b, (x, y, i) in enumerate(train):
                    loss = method(net, x, y, i)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    losses[b] = loss.detach()
            gradient = None if gradients is None else gradients.take()
            losses = distributed.end(net, losses)
            _check_finite(losses, trained, train, epoch, checkpoint)
            if epoch + 1 == protocol.epochs:
                _finish(method, epoch + 1, net, train, valid, seed)
            spent += time.perf_counter() - began

            row = None
            if (epoch + 1) % protocol.watch == 0 or epoch + 1 == protocol.epochs:
                row = {
                    "epoch": epoch + 1,
                    "lr": learning_rate(protocol, epoch),
                    "loss": losses.mean().item(),
                    "seconds": spent,
                    **logged,
                }
                for name, batches in (("train", train), ("valid", valid), ("test", test)):
                    if batches is not None:
                        scores, y = evaluate(net, batches, method)
                        row[name] = group_recall(scores, y, len(train.n), groups)
                        if name == "train" and gradient is not None:
                            row |= {"gradient": gradient, "train_confusion": confusion(scores, y).tolist()}
                curve.append(row)
            saved = (epoch + 1) % every == 0 or epoch + 1 == protocol.epochs
            if checkpoint is not None and saved:
                save(epoch + 1)
            if tick is not None:
                try:
                    distributed.from_first(partial(tick, epoch + 1, row))
                except BaseException:  # a stop: what is trained by now is kept
                    if checkpoint is not None and not saved:
                        save(epoch + 1)
                    raise
    return curve


@torch.no_grad()
def evaluate(net: nn.Module, batches: AnyBatches, method: Method | None = None) -> tuple[Any, Tensor]:
    """The scores of all samples in order, in evaluation mode: scores (N, C) and labels (N,); modes are put back.

    Scores are `method.predict(net, x)`, or net(x) without a method; for several labels per image a tuple of (N, C_j).
    """
    predict = net if method is None else lambda x: method.predict(net, x)
    modules = [m for some in (net, method) if some is not None for m in some.modules()]
    modes = [m.training for m in modules]
    net.eval(), method is not None and method.eval()
    try:
        scores, labels = zip(*((predict(x), y) for x, y, _ in batches.plain()))
    finally:
        for m, mode in zip(modules, modes):
            m.training = mode
    join = lambda some: distributed.gather(torch.cat(some))  # noqa: E731
    joined = tuple(map(join, zip(*scores))) if isinstance(scores[0], tuple) else join(scores)
    return joined, distributed.gather(torch.cat(labels))


def group_recall(
    scores: Tensor | tuple[Tensor, ...], y: Tensor, classes: int, groups: Tensor | None = None
) -> list[Any]:
    """Mean recall of the classes in each group, a list; for several labels per image a list of such lists.

    scores: (N, C); y: (N,); groups: int64 (C,), default every class alone. A class without samples has no recall: it
    is left out of its group's mean, and nan stands where a group has no other.
    """
    if isinstance(scores, tuple):
        return [group_recall(s, y[:, j], s.shape[1]) for j, s in enumerate(scores)]
    by_class = recall(confusion(scores, y))
    if groups is None:
        return by_class.tolist()
    return [by_class[groups == g].nanmean().item() for g in range(int(groups.max()) + 1)]


def _update(
    method: Method, epoch: int, net: nn.Module, train: AnyBatches, valid: AnyBatches | None, seed: int
) -> dict[str, Any]:
    with _aside(method, epoch, net, train, seed):
        logged = method.update(epoch, net, train, valid) or {}
    distributed.begin(epoch, seed, train, method)
    return logged


def _finish(method: Method, epoch: int, net: nn.Module, train: AnyBatches, valid: Any, seed: int) -> None:
    mode = net.training
    with _aside(method, epoch, net, train, seed):
        method.finish(net, train, valid)
    net.train(mode)


@contextmanager
def _aside(method: Method, epoch: int, net: nn.Module, train: AnyBatches, seed: int) -> Iterator[None]:
    net.eval(), method.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[train.device] if train.device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + epoch)
        yield


def _decay_groups(net: nn.Module, parameters: list[nn.Parameter], protocol: Protocol) -> list[dict[str, Any]]:
    exempt = {id(net.get_submodule(classifier(net)).bias)} if protocol.prior_bias else set()
    return [
        dict(params=[p for p in parameters if id(p) not in exempt], weight_decay=protocol.weight_decay),
        *([dict(params=[p for p in parameters if id(p) in exempt], weight_decay=0.0)] if exempt else []),
    ]


@contextmanager
def _each_once(train: AnyBatches) -> Iterator[None]:
    """Within it a method may set the order: before and after it, an epoch visits each image once."""
    once = torch.arange(len(train.y), device=train.order.device)
    train.order = once
    try:
        yield
    finally:
        train.order = once


def _check_weights(net: nn.Module) -> None:
    tensors = {k: v for k, v in net.state_dict().items() if v.is_floating_point() and not nn.parameter.is_lazy(v)}
    if tensors and not torch.stack([v.isfinite().all() for v in tensors.values()]).all():
        names = [k for k, v in tensors.items() if not v.isfinite().all()]
        raise ValueError(f"the network's {names[0]} is not finite before training: make or load the network anew")


def _check_finite(
    losses: Tensor, parameters: list[nn.Parameter], train: AnyBatches, epoch: int, checkpoint: str | Path | None
) -> None:
    bad = ~losses.isfinite()
    if not bad.any() and torch.stack([p.isfinite().all() for p in parameters]).all():  # one wait for the device
        return
    for x, _, i in train.plain():
        wrong = ~x.flatten(1).isfinite().all(1)
        if wrong.any():
            raise ValueError(
                f"sample {int(i[wrong][0])} of the training set is not finite (found in epoch {epoch}): mend or "
                "remove it"
            )
    where = (
        f"batch {int(bad.int().argmax())} of {len(losses)}"
        if bad.any()
        else f"the last batch of {len(losses)} (weights)"
    )
    good = checkpoint if checkpoint is not None and Path(checkpoint).exists() else "none"
    raise FloatingPointError(
        f"the loss is not finite in epoch {epoch}, {where}; last good checkpoint: {good}. "
        "Lower the learning rate, or check the method's inputs"
    )


def _identity(
    net: nn.Module, method: Method, sets: dict[str, Any], protocol: Protocol, seed: int,
    trained: list[nn.Parameter] | None, groups: Tensor | None, instrument: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What makes a run another run, as plain data: two runs of equal identity have one curve."""
    train = sets["train"]
    chosen = None if trained is None else {id(p) for p in trained}
    return dict(
        method=dict(name=type(method).__name__, version=method.version, arguments=method.arguments),
        protocol=checkpoints.plain(asdict(protocol)),
        seed=seed,
        data={name: None if some is None else some.identity() for name, some in sets.items()},
        shuffled=None if train.generator is None else train.generator.initial_seed(),
        dtype=str(train.dtype),
        net=checkpoints.shapes(net),
        parameters=None if chosen is None else [name for name, p in net.named_parameters() if id(p) in chosen],
        groups=None if groups is None else groups.tolist(),
        instrument=instrument,
        **distributed.choices(),
    )
