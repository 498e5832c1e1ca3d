"""The simple methods every other one is held against. Chapter 03 compares them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imbook.data import AnyBatches
from imbook.nets import CosineHead, classifier
from imbook.train import Method


def wide(t: Tensor) -> Tensor:
    """t in float32 where its dtype is a shorter one: sums, powers and random numbers need its digits."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


class CrossEntropy(Method):
    """Plain cross entropy, mean over the batch, summed over the labels where an image has several (y (B, labels))."""

    several_labels = True

    def __init__(self, n: Tensor | tuple[Tensor, ...] | None = None) -> None:
        super().__init__()

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        h = net(x)  # (B, C)
        if isinstance(h, tuple):
            return sum(F.cross_entropy(wide(h_j), y[:, j]) for j, h_j in enumerate(h))  # type: ignore[return-value]
        return F.cross_entropy(wide(h), y)


def inverse_frequency(n: Tensor) -> Tensor:
    """w_c proportional to 1 / n_c, mean 1: float32 (C,). n: images a class, (C,), each at least 1."""
    return _mean_one(1 / n.double())


def effective_number(n: Tensor, beta: float = 0.999) -> Tensor:
    """w_c proportional to (1 - beta) / (1 - beta^n_c), mean 1: float32 (C,). beta 0: all 1; to 1: inverse frequency.

    Source: Cui et al. 2019 (class-balanced loss). ValueError for beta outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta {beta}: choose from 0 up to, but not including, 1")
    return _mean_one((1 - beta) / (1 - beta ** n.double()))


def _mean_one(w: Tensor) -> Tensor:
    if not w.isfinite().all():
        raise ValueError("a class without images has no weight: leave it out of the set")
    return (w / w.mean()).float()


def weighted_cross_entropy(h: Tensor, y: Tensor, w: Tensor, reduction: str = "samples") -> Tensor:
    """w_y * -log p_y, averaged: a scalar. h: logits (B, C); y: (B,); w: (C,), not negative.

    reduction: 'samples' divides by B, 'weights' by the batch's sum of weights (as torch's cross_entropy(weight=w) does;
    0 where that sum is 0). With w of ones both are F.cross_entropy to the last bit. Summed in float32 at least.
    """
    h = wide(h)
    w = w.to(h.dtype)
    total = F.cross_entropy(h, y, weight=w, reduction="sum")
    if reduction == "samples":
        return total / len(y)
    return total / w[y].sum().clamp(min=torch.finfo(w.dtype).tiny)


class Weighted(Method):
    """Cross entropy with one weight per class: the mean of w_y * -log p_y.

    scheme: 'inverse' (`inverse_frequency`) or 'effective' (`effective_number` with `beta`). start: weights are 1 before
    this epoch (deferred re-weighting, Cao et al. 2019), with None they stay 1. reduction: 'samples' divides by the
    batch size, 'weights' by the batch's sum of weights, as torch's cross_entropy(weight=...) and the field's deferred
    re-weighting do. Under 'samples' a step's loss changes scale when the weights come on, which under milestones is
    another learning rate. ValueError for a class without images, where weights are used.
    """

    def __init__(
        self, n: Tensor, scheme: str = "inverse", beta: float = 0.999, start: int | None = 0, reduction: str = "samples"
    ) -> None:
        super().__init__()
        if scheme not in ("inverse", "effective") or reduction not in ("samples", "weights"):
            raise ValueError(
                f"scheme {scheme!r}, reduction {reduction!r}: choose 'inverse' or 'effective', 'samples' or 'weights'"
            )
        self.start, self.reduction = start, reduction
        weigh = {"inverse": inverse_frequency, "effective": lambda n: effective_number(n, beta)}[scheme]
        self.register_buffer("target", torch.ones(len(n)) if start is None else weigh(n))  # (C,)
        self.register_buffer("w", self.target.clone() if start == 0 else torch.ones_like(self.target))

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        return weighted_cross_entropy(net(x), y, self.w, self.reduction)

    def update(self, epoch: int, net: nn.Module, train: AnyBatches, valid: AnyBatches | None) -> dict[str, Any]:
        if epoch == self.start:
            self.w.copy_(self.target)
        return {}


class Focal(Method):
    """Focal loss: the mean of alpha_y (1 - p_y)^gamma * -log p_y. gamma 0 without alpha is cross entropy.

    alpha: None (1 for every class) or 'inverse' (`inverse_frequency`, mean 1; ValueError without n or for a class
    without images). gamma: from 0. Source: Lin et al. 2017, equation 5, for several classes.
    """

    def __init__(self, n: Tensor | None = None, gamma: float = 1.0, alpha: str | None = None) -> None:
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma {gamma}: at least 0")
        if alpha not in (None, "inverse") or (alpha and n is None):
            raise ValueError(f"alpha {alpha!r}: None, or 'inverse' together with the class counts n")
        self.gamma = gamma
        self.register_buffer("alpha", None if alpha is None or n is None else inverse_frequency(n))  # (C,)

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        log_p = F.log_softmax(wide(net(x)), 1).gather(1, y[:, None]).squeeze(1)  # (B,)
        rest = -torch.expm1(log_p)  # 1 - p_y, 0 where the network is sure; a power below 1 has no slope there
        losses = -(rest.clamp(min=torch.finfo(rest.dtype).tiny) ** self.gamma) * log_p  # (B,)
        return (losses if self.alpha is None else self.alpha[y] * losses).mean()


class LabelSmoothing(Method):
    """Cross entropy with smoothed labels: 1 - epsilon of each label stays, the rest is shared by all classes alike.

    epsilon 0 is cross entropy; ValueError outside [0, 1). Source: Szegedy et al. 2016, section 7.
    """

    def __init__(self, n: Tensor | None = None, epsilon: float = 0.1) -> None:
        super().__init__()
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon {epsilon}: choose from 0 up to, but not including, 1")
        self.epsilon = epsilon

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        return F.cross_entropy(wide(net(x)), y, label_smoothing=self.epsilon)


def log_prior(n: Tensor, tau: float = 1.0) -> Tensor:
    """tau * log(n_c / N): (C,). n: images a class (C,); ValueError where a class has none."""
    if n.min() < 1:
        raise ValueError("a class without images has no prior: leave it out of the set")
    return tau * (n / n.sum()).log()


def over_sample(
    y: Tensor, per_class: int | Sequence[int] | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Positions in y such that every class appears `per_class` times, default n_max: int64 (C * per_class,).

    per_class: one number for all classes, or one for each. A class is repeated whole as often as it fits; the remainder
    is drawn without replacement. y: int64 (N,); a class without samples stays without. generator: of the draw, default
    torch's global one.
    """
    n = torch.bincount(y).tolist()
    wanted = [per_class or max(n)] * len(n) if per_class is None or isinstance(per_class, int) else per_class
    picked = []
    for c, size in enumerate(n):
        if size == 0:
            continue
        there = torch.nonzero(y == c).flatten()
        whole, rest = divmod(wanted[c], size)
        shuffled = there[torch.randperm(size, generator=generator).to(y.device)]
        picked += [there.repeat(whole), shuffled[:rest]]
    return torch.cat(picked)


class OverSampling(CrossEntropy):
    """Cross entropy on class-balanced sampling: each epoch visits every class equally often, N / C times, so that it
    has as many steps as plain training: the tail is repeated, the head thinned out anew each epoch.

    whole: each class n_max times instead, so that nothing is thinned out and an epoch is longer. power: between no
    re-sampling (0) and classes equally often (1, the default): class c has N n_c^(1 - power) / sum of n^(1 - power)
    visits; 0.5 is square-root sampling. start: the order is left alone before this epoch. weighted: also weigh each
    class by its inverse frequency, which corrects the imbalance twice; chapter 03 shows what that does. ValueError for
    a power outside [0, 1], or below 1 together with `whole`.
    Source: the class-balanced sampling of Kang et al. 2020, section 3; `power` is 1 - q there.
    """

    several_labels = False

    def __init__(
        self, n: Tensor | None = None, whole: bool = False, start: int = 0, power: float = 1.0, weighted: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= power <= 1 or (whole and power < 1):
            raise ValueError(f"power {power}, whole {whole}: power is from 0 to 1, and 1 where whole is True")
        if weighted and n is None:
            raise ValueError("weighted=True needs the class counts n")
        self.whole, self.start, self.power = whole, start, power
        self.register_buffer("w", inverse_frequency(n) if weighted and n is not None else None)  # (C,)

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        if self.w is None:
            return super().forward(net, x, y, i)
        return weighted_cross_entropy(net(x), y, self.w, "weights")

    def per_class(self, n: Tensor) -> int | list[int]:
        """Visits of an epoch: one number for each class, or one per class. n: images per class (C,)."""
        if self.whole or self.power == 1:
            return int(n.max()) if self.whole else -(-int(n.sum()) // len(n))
        share = torch.where(n > 0, n.double() ** (1 - self.power), 0)
        return (n.sum() * share / share.sum()).round().long().clamp(min=1).tolist()

    def visits(self, n: Any, epoch: int) -> int:
        if epoch < self.start:
            return super().visits(n, epoch)
        each = self.per_class(n)
        return int((n > 0).sum()) * each if isinstance(each, int) else sum(k for k, n_c in zip(each, n) if n_c > 0)

    def update(self, epoch: int, net: nn.Module, train: Any, valid: AnyBatches | None) -> dict[str, Any]:
        if epoch >= self.start:
            train.order = over_sample(train.y, self.per_class(train.n))
        return {}


class LogitAdjusted(CrossEntropy):
    """Cross entropy in training; at test time the scores are logits - tau * log(n_c / N).

    Source: Menon et al. 2021.
    """

    several_labels = False

    def __init__(self, n: Tensor, tau: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("shift", log_prior(n, tau))  # (C,)

    def predict(self, net: nn.Module, x: Tensor) -> Tensor:
        return net(x) - self.shift


class BalancedSoftmax(Method):
    """Cross entropy of logits + tau * log(n_c / N): the logit-adjusted loss.

    Source: Menon et al. 2021; Ren et al. 2020.
    """

    def __init__(self, n: Tensor, tau: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("shift", log_prior(n, tau))  # (C,)

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        return F.cross_entropy(net(x) + self.shift, y)


class CDT(Method):
    """Class-dependent temperatures: in training, cross entropy of the logits h_c / (n_max / n_c)^gamma.

    gamma 0 is cross entropy; scores at test time are the logits as they are. Source: Ye et al. 2020.
    """

    def __init__(self, n: Tensor, gamma: float = 0.2) -> None:
        super().__init__()
        if not gamma >= 0 or n.min() < 1:
            raise ValueError(f"gamma {gamma}, smallest class {n.min()}: gamma from 0, and at least one image per class")
        self.register_buffer("temperature", ((n.max() / n.double()) ** gamma).float())  # (C,), at least 1

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        return F.cross_entropy(net(x) / self.temperature, y)


def subtract_margins(cosine: Tensor, y: Tensor, m: Tensor) -> Tensor:
    """cosine_c - m_c at the sample's own class c = y, the cosines themselves elsewhere: (B, C).

    cosine: (B, C); y: (B,); m: margins (C,).
    """
    own = y[:, None] == torch.arange(len(m), device=y.device)  # (B, C), one_hot would look at the values of y
    return cosine - own * m


class LDAM(Weighted):
    """Label-distribution-aware margins with deferred re-weighting.

    It needs a network whose classifier is `imbook.nets.CosineHead`: `replace_classifier(net, CosineHead(D, C))`. The
    margin of class c is proportional to n_c^(-1/4), the largest `margin`; logits are scaled by `scale`. scheme, beta,
    start, reduction: see `Weighted`. ValueError for a class without images, and in training for another classifier.
    Source: Cao et al. 2019.
    """

    version = 2  # 1 took the mean over samples, and its class vectors started with torch's default length

    def __init__(
        self, n: Tensor, margin: float = 0.5, scale: float = 30.0, scheme: str = "effective", beta: float = 0.9999,
        start: int | None = 160, reduction: str = "weights",
    ) -> None:  # fmt: skip
        super().__init__(n, scheme, beta, start, reduction)
        if n.min() < 1:
            raise ValueError("a class without images has no margin: leave it out of the set")
        m = n.double() ** -0.25
        self.scale = scale
        self.register_buffer("m", (m * margin / m.max()).float())  # (C,)

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        name = classifier(net)
        layer = net.get_submodule(name)
        if not isinstance(layer, CosineHead):
            size = f"{getattr(layer, 'in_features', 'D')}, {len(self.m)}"
            raise ValueError(
                f"LDAM needs a classifier of cosines, {name!r} is {layer}: call imbook.nets.replace_classifier(net, "
                f"CosineHead({size})) before training"
            )
        h = self.scale * subtract_margins(wide(net(x)), y, self.m)  # (B, C)
        return weighted_cross_entropy(h, y, self.w, self.reduction)
