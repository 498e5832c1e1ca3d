"""One plain training loop for every method of the book, its protocol, and checkpoints that resume bit for bit.

Chapter 02 builds `fit` line by line.
"""

import inspect
import logging
import math
import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from imbook.fast import Step, describe
from imbook.metrics import confusion, recall
from imbook.nets import prior_bias


@dataclass(frozen=True)
class Protocol:
    """The contract of an experiment: all that training depends on besides data, network, method and seeds.

    epochs, batch: passes over the training set and samples a step. lr, momentum, weight_decay: of SGD.
    warmup: epochs of linear warm-up. milestones, decay: the rate is multiplied by `decay` from each of these epochs on;
    cosine: instead, half a cosine from lr to 0. crop, flip: augmentation (see `imbook.data.Batches`).
    prior_bias: start the head's bias at -log(C - 1) and exempt it from weight decay. watch: evaluate every that many
    epochs, and at the last. Change one with dataclasses.replace. ValueError for values that cannot be.
    """

    name: str
    epochs: int
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    cosine: bool = False
    crop: int = 0
    flip: bool = False
    prior_bias: bool = False
    watch: int = 1

    def __post_init__(self):
        if min(self.epochs, self.batch, self.watch) < 1 or self.lr <= 0 or not 0 <= self.warmup < self.epochs:
            raise ValueError(f"{self}: epochs, batch and watch start at 1, lr above 0, and warmup ends before epochs")
        if self.cosine and self.milestones:
            raise ValueError(f"{self}: a cosine schedule has no milestones")


def learning_rate(protocol, epoch):
    """The learning rate of one epoch (0, 1, ...): a pure function of the protocol.

    >>> p = Protocol("demo", epochs=200, lr=0.1, warmup=5, milestones=(160, 180), decay=0.01)
    >>> [round(learning_rate(p, e), 7) for e in (0, 4, 5, 159, 160, 180)]
    [0.02, 0.1, 0.1, 0.1, 0.001, 1e-05]
    """
    if epoch < protocol.warmup:
        return protocol.lr * (epoch + 1) / protocol.warmup
    if protocol.cosine:
        return (
            protocol.lr * (1 + math.cos(math.pi * (epoch - protocol.warmup) / (protocol.epochs - protocol.warmup))) / 2
        )
    return protocol.lr * protocol.decay ** sum(epoch >= m for m in protocol.milestones)


class Method(nn.Module):
    """What a method of the book is: a loss, and what it does between epochs and at test time.

    A method is made from the class counts and its hyper-parameters, `SomeMethod(n, tau=1)`, n int64 (C,), or a tuple of
    counts for several labels an image: ValueError where its `several_labels` is False.
    `version` is raised whenever the method's mathematics changes: records of older versions are then flagged.
    """

    version = 1
    needs_valid = False  # whether update() measures on a held-out balanced set
    readings = {}  # {name: Method}: other ways to predict from the same network, set by finish()
    several_labels = False  # whether y may be (B, labels) and net(x) a tuple

    def __new__(cls, *given, **named):
        made = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(None, *given, **named)
        bound.apply_defaults()
        cls._check_labels(bound.arguments.get("n"))
        made.arguments = {k: _plain(v) for k, v in bound.arguments.items()}  # by them a checkpoint knows its run
        made._made_with, made._fitted = (given, named), False
        return made

    @classmethod
    def _check_labels(cls, n):
        if isinstance(n, tuple) and not cls.several_labels:
            raise ValueError(
                f"{cls.__name__} is for one label an image, here are {len(n)}: choose a method whose several_labels is "
                "True, such as CrossEntropy"
            )

    def restart(self):
        """Make the method anew, in place, from the arguments it was made with: what training left in it is gone.

        `fit` does so for a method that was fitted before. Random weights of the method's own layers are drawn anew from
        torch's global generator. ValueError where an argument is a module, which training has changed.
        """
        (given, named), own = self._made_with, {k: vars(self)[k] for k in ("arguments", "_made_with")}
        changed = [type(v).__name__ for v in (*given, *named.values()) if isinstance(v, nn.Module | nn.Parameter)]
        if changed:
            raise ValueError(
                f"{type(self).__name__} was trained before and holds a {changed[0]} that it was given, which is trained "
                "as well: make both anew for another training"
            )
        vars(self).clear()
        vars(self).update(own, _fitted=False)
        self.__init__(*given, **named)

    def visits(self, n, epoch):
        """How many images epoch `epoch` (0, 1, ...) visits: an integer, N unless the method changes `train.order`.

        n: as the method's own. Training steps are counted by it (`imbook.experiments.steps`).
        """
        return int((n[0] if isinstance(n, tuple) else n).sum())

    def forward(self, net, x, y, i):
        """The loss of a batch, a scalar.

        x: (B, channels, height, width); y: (B,), or (B, labels); i: (B,) positions in the training set.
        """
        raise NotImplementedError

    def update(self, epoch, net, train, valid):
        """Called before each epoch (0, 1, ...): returns a dict to log beside the curve.

        No gradient, network in evaluation mode. Random numbers may be drawn from torch's global generator: it is seeded
        from the run's seed and the epoch, and put back afterwards. Measure with `train.plain()`, which does not
        augment; set `train.order` to over-sample.
        """
        return {}

    def finish(self, net, train):
        """Called after the last epoch and before the last evaluation, under the conditions of `update`.

        For what is fitted to the trained network. It may set `readings`: a record holds an evaluation of each. What it
        makes is in no checkpoint: resuming a finished run calls it again, so it must depend on net and train alone.
        """

    def predict(self, net, x):
        """The scores that evaluation uses: (B, C), or a tuple of them for several labels an image."""
        return net(x)


def fit(
    net,
    method,
    train,
    valid=None,
    test=None,
    *,
    protocol,
    seed=0,
    parameters=None,
    groups=None,
    instrument=None,
    checkpoint=None,
    every=10,
    tick=None,
    fast=False,
):
    """Train `net` with `method` under `protocol`; returns the curve, a list of dicts, one an evaluated epoch.

    train, valid, test: `imbook.data.Batches`, the last two optional. seed: of torch's global generator (drawing
    the network and the batches is the caller's). parameters: a subset to train; the rest is then frozen, BatchNorm
    statistics included. groups: int64 (C,), the curve gives mean recall a group (default: a class).
    instrument: a stage; the curve then also gives `gradient`, the mean norm of dL/dz of each class over the row's last
    epoch (see `FeatureGradients`), and `train_confusion` (C, C), of all training images after it, in evaluation mode.
    checkpoint: a file, written every `every` epochs; where it exists, training resumes from it, bit for bit on a CPU.
    tick: called as tick(epochs done, row or None) after each epoch; what it raises ends the run, after a checkpoint.
    fast: the same steps by `imbook.fast`, which logs what it chose for this device (see `imbook.fast.describe`).

    Raises FloatingPointError (naming epoch, batch and checkpoint) when the loss is not finite, ValueError when the
    method needs a held-out set that is not given, the set has several labels an image and the method is for one, or the
    checkpoint is of another run; with fast, `imbook.fast.CaptureError` (naming method and operation) when the step
    cannot be captured. Derived in chapter 02.
    """
    type(method)._check_labels(train.n)
    if method.needs_valid and valid is None:
        raise ValueError(f"{type(method).__name__} measures on a held-out balanced set: pass valid=Batches(...)")
    device = train.x.device
    net.to(device), method.to(device)
    torch.manual_seed(seed)
    if protocol.prior_bias:
        prior_bias(net, len(train.n))
    frozen = parameters is not None
    trained = list(parameters) if frozen else list(net.parameters())
    optimiser = torch.optim.SGD(
        _decay_groups(net, [*trained, *method.parameters()], protocol),
        lr=protocol.lr,
        momentum=protocol.momentum,
        fused=True,
    )
    curve, start, spent = [], 0, 0.0
    identity = _identity(method, protocol, seed, instrument)
    if checkpoint is not None and Path(checkpoint).exists():
        curve, start, spent = _restore(checkpoint, identity, net, method, optimiser, train)
    save = partial(_save, checkpoint, identity, net, method, optimiser, train, curve)
    if start == protocol.epochs:
        _finish(method, start, net, train, seed)

    watching = nullcontext() if instrument is None else FeatureGradients(net, method, instrument, train.n)
    with watching as gradients:
        step = Step(net, method, optimiser, train, gradients) if fast else None
        if fast:
            logging.getLogger(__name__).info("fast: %s", describe(net, device))
        for epoch in range(start, protocol.epochs):
            began = time.perf_counter()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(protocol, epoch)
            logged = _update(method, epoch, net, train, valid, seed)
            net.train(not frozen)
            losses = torch.zeros(len(train), dtype=train.mean.dtype, device=device)
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
            _check_finite(losses, trained, epoch, checkpoint)
            if epoch + 1 == protocol.epochs:
                _finish(method, epoch + 1, net, train, seed)
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
                save(epoch + 1, spent)
            if tick is not None:
                try:
                    tick(epoch + 1, row)
                except BaseException:  # a stop: what is trained by now is kept
                    if checkpoint is not None and not saved:
                        save(epoch + 1, spent)
                    raise
    return curve


class FeatureGradients:
    """The mean norm of dL/dz of each class over the samples since the last `take`: how hard the loss pulls at features.

    z_i is what the `stage` of `net` puts out for sample i of a training step: before mixing, where a method mixes after
    that stage. dL/dz_i is the gradient of the method's loss times B, the size of the batch: where the loss is a mean
    over samples that do not touch, that of the sample's own loss. Where they touch (mixing, BatchNorm after the stage)
    it is the whole gradient, with what reaches z_i by way of other samples. The norm is Euclidean, over all numbers of
    z_i; the class is the sample's own label y_i, also where labels are mixed.

    A context in which `method` and `net` carry the hooks; nothing waits for the device before `take`. n: (C,), images a
    class. Raises ValueError for a stage that the network does not have or that no gradient reaches, and for several
    labels an image. Derived in chapter 07.
    """

    def __init__(self, net, method, stage, n):
        if isinstance(n, tuple):
            raise ValueError(f"gradients a class need one label an image, here are {len(n)}: leave out the instrument")
        if stage not in dict(net.named_children()):
            raise ValueError(f"stage {stage!r}: choose from {', '.join(dict(net.named_children()))}")
        self.net, self.method, self.stage, self.classes = net, method, stage, len(n)
        self.norms, self.labels = [], []  # of each batch, (B,): summed by `take`, so that a step has one operation more

    def __enter__(self):
        self.hooks = [
            self.method.register_forward_pre_hook(self._note_labels),
            self.net.get_submodule(self.stage).register_forward_hook(self._note_features),
        ]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def take(self):
        """The mean norms, a list of C floats (nan for a class without samples); counting starts anew."""
        sizes = torch.tensor([len(y) for y in self.labels])
        norm, y = torch.cat(self.norms).double(), torch.cat(self.labels)
        norm = norm * sizes.repeat_interleave(sizes).to(norm.device)  # B times that of the mean
        sums = torch.zeros(2, self.classes, dtype=norm.dtype, device=norm.device)  # norms and samples of each class
        sums.index_add_(1, y, torch.stack([norm, torch.ones_like(norm)]))
        self.norms.clear(), self.labels.clear()
        return (sums[0] / sums[1]).tolist()

    def _note_labels(self, method, arguments):
        self.y = arguments[2]

    def _note_features(self, stage, arguments, z):
        if not torch.is_grad_enabled():  # an evaluation
            return
        if not z.requires_grad or len(z) != len(self.y):
            raise ValueError(
                f"stage {self.stage!r} puts out {len(z)} rows for {len(self.y)} labels, "
                f"gradient: {z.requires_grad}; choose a stage with parameters in it or before it, one row a sample"
            )
        y = self.y
        z.register_hook(lambda g: self._add(g, y))

    def _add(self, g, y):
        self.norms.append(torch.linalg.vector_norm(g, dim=tuple(range(1, g.ndim))))
        self.labels.append(y)


@torch.no_grad()
def evaluate(net, batches, method=None):
    """The scores of all samples in order, in evaluation mode: scores (N, C) and labels (N,); modes are put back.

    Scores are `method.predict(net, x)`, or net(x) without a method; for several labels an image a tuple of (N, C_j).
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
    scores = tuple(map(torch.cat, zip(*scores))) if isinstance(scores[0], tuple) else torch.cat(scores)
    return scores, torch.cat(labels)


def group_recall(scores, y, classes, groups=None):
    """Mean recall of the classes in each group, a list; for several labels an image a list of such lists."""
    if isinstance(scores, tuple):
        return [group_recall(s, y[:, j], s.shape[1]) for j, s in enumerate(scores)]
    by_class = recall(confusion(scores, y))
    if groups is None:
        return by_class.tolist()
    return [by_class[groups == g].nanmean().item() for g in range(int(groups.max()) + 1)]


def _plain(value):
    """An argument as plain data, whole: what `repr` shortens or says of an address would tell no two runs apart."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, int | float | str | None) else repr(value)


def _update(method, epoch, net, train, valid, seed):
    with _aside(method, epoch, net, train, seed):
        return method.update(epoch, net, train, valid) or {}


def _finish(method, epoch, net, train, seed):
    mode = net.training
    with _aside(method, epoch, net, train, seed):
        method.finish(net, train)
    net.train(mode)


@contextmanager
def _aside(method, epoch, net, train, seed):
    net.eval(), method.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[train.x.device] if train.x.is_cuda else []):
        torch.manual_seed(seed * 1_000_003 + epoch)
        yield


def _decay_groups(net, parameters, protocol):
    exempt = {id(net.head.bias)} if protocol.prior_bias else set()
    return [
        dict(params=[p for p in parameters if id(p) not in exempt], weight_decay=protocol.weight_decay),
        *([dict(params=[p for p in parameters if id(p) in exempt], weight_decay=0.0)] if exempt else []),
    ]


def _check_finite(losses, parameters, epoch, checkpoint):
    bad = ~losses.isfinite()
    if not bad.any() and torch.stack([p.isfinite().all() for p in parameters]).all():  # one wait for the device
        return
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


def _identity(method, protocol, seed, instrument):
    """What makes a run another run, as plain data."""
    surroundings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(protocol).items()}
    return [type(method).__name__, method.version, method.arguments, surroundings, seed, instrument]


def _save(path, identity, net, method, optimiser, train, curve, epoch, spent):
    state = dict(
        identity=identity,
        epoch=epoch,
        spent=spent,
        curve=curve,
        net=net.state_dict(),
        method=method.state_dict(),
        optimiser=optimiser.state_dict(),
        order=train.order,
        batches=None if train.generator is None else train.generator.get_state(),
        cpu=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state(train.x.device) if train.x.is_cuda else None,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(state, part)
    os.replace(part, path)


def _restore(path, identity, net, method, optimiser, train):
    state = torch.load(path, map_location=train.x.device, weights_only=True)
    if state["identity"] != identity:
        raise ValueError(
            f"{path} holds a checkpoint of another run ({state['identity']}): remove it, or name another file"
        )
    net.load_state_dict(state["net"])
    method.load_state_dict(state["method"])
    optimiser.load_state_dict(state["optimiser"])
    train.order = state["order"]
    if state["batches"] is not None:
        train.generator.set_state(state["batches"].cpu())
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), train.x.device)
    return state["curve"], state["epoch"], state["spent"]
