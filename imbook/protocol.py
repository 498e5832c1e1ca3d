"""The contract of an experiment: epochs, batches, learning rate, augmentation. Chapter 02 explains it."""

import math
from dataclasses import dataclass

from imbook.data import AnyBatches


@dataclass(frozen=True)
class Protocol:
    """The contract of an experiment: all that training depends on besides data, network, method and seeds.

    epochs, batch: passes over the training set and samples per step. lr, momentum, weight_decay: of SGD.
    warmup: epochs of linear warm-up. milestones, decay: the rate is multiplied by `decay` from each of these epochs on;
    cosine: instead, half a cosine from lr to 0. crop, flip: augmentation (see `imbook.data.Batches`; `imbook.train.fit`
    refuses batches that were made with another batch, crop or flip).
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

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.watch) < 1 or self.lr <= 0 or not 0 <= self.warmup < self.epochs:
            raise ValueError(f"{self}: epochs, batch and watch start at 1, lr above 0, and warmup ends before epochs")
        if self.cosine and self.milestones:
            raise ValueError(f"{self}: a cosine schedule has no milestones")


def learning_rate(protocol: Protocol, epoch: int) -> float:
    """The learning rate of one epoch (0, 1, ...): a pure function of the protocol.

    >>> p = Protocol("demo", epochs=200, lr=0.1, warmup=5, milestones=(160, 180), decay=0.01)
    >>> [round(learning_rate(p, e), 7) for e in (0, 4, 5, 159, 160, 180)]
    [0.02, 0.1, 0.1, 0.1, 0.001, 1e-05]
    """
    if epoch < protocol.warmup:
        return protocol.lr * (epoch + 1) / protocol.warmup
    if protocol.cosine:
        share = (epoch - protocol.warmup) / (protocol.epochs - protocol.warmup)
        return protocol.lr * (1 + math.cos(math.pi * share)) / 2
    return protocol.lr * protocol.decay ** sum(epoch >= m for m in protocol.milestones)


def check_stated(protocol: Protocol, train: AnyBatches) -> None:
    """What a protocol states must be so, else ValueError: batches are made by the caller, their own numbers count."""
    if (train.crop, train.flip) == (None, None) and (protocol.crop or protocol.flip):
        raise ValueError(
            f"protocol {protocol.name!r} states crop {protocol.crop} and flip {protocol.flip}, but images of a "
            "DataLoader are augmented by their own transforms: put crop=0, flip=False in the protocol"
        )
    for name in ("batch", "crop", "flip"):
        stated, made = getattr(protocol, name), getattr(train, name)
        if made is not None and made != stated:
            raise ValueError(
                f"protocol {protocol.name!r} states {name} {stated}, the training set was made with {name} {made}: "
                f"make them equal, such as Batches(..., {name}=protocol.{name})"
            )
