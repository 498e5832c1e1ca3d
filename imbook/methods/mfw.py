"""MFW, major feature weakening: features of large classes are mixed with others, so that they are not fitted first.

Our reconstruction [R] from the abstract of "Procrustean training": no detail of the method was available. What is ours:
the law of lambda, the stage, the partner. Derived in chapter 07.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from imbook.methods.baselines import Weighted, weighted_cross_entropy
from imbook.methods.mixup import draw_share, mix, shuffle
from imbook.nets import tap


def weakening(n: Tensor, strength: float, gamma: float) -> Tensor:
    """The law of lambda [R]: a_c = strength * ((n_c - n_min) / (n_max - n_min))^gamma, float32 (C,).

    lambda = max(l, 1 - l), l ~ Beta(a_c, a_c): the larger the class, the nearer to 1/2. a_c is 0 for the smallest class
    and where all are equal; lambda is then 1. This function holds the law, so that the paper's own can replace it.
    n: images a class (C,); strength: at least 0; gamma: at least 0, below 1 middle classes are weakened more.
    """
    n = n.double()
    above = n - n.min()
    share = above / above.max().clamp(min=torch.finfo(n.dtype).tiny)
    return torch.where(above > 0, strength * share**gamma, 0).float()


def draw_lambda(a: Tensor, low: float = 0.5) -> Tensor:
    """lambda in [low, 1] [R]: max(l, 1 - l) with l ~ Beta(a, a), stretched from [1/2, 1] to [low, 1]; 1 where a is 0.

    a: at least 0, of any shape, which is the result's; low: in [0, 1], from 1/2 on the own share is the larger one.
    """
    l = draw_share(a)  # noqa: E741
    return 1 - 2 * (1 - low) * torch.minimum(l, 1 - l)


def mean_lambda(a: Tensor, low: float = 0.5) -> Tensor:
    """The expectation of `draw_lambda` [R]: for low 1/2 it is 1/2 + 4^-a Gamma(2a + 1) / (2 Gamma(a + 1)^2).

    Computed in float64, as the logarithms are large and their sum is small; the shape and dtype of a.

    >>> mean_lambda(torch.tensor([0.0, 1.0, 4.0]))
    tensor([1.0000, 0.7500, 0.6367])
    """
    b = a.double()
    log = torch.lgamma(2 * b + 1) - 2 * torch.lgamma(b + 1) - b * math.log(4)
    return (1 - (1 - low) * (1 - log.exp())).to(a.dtype)


def partners(y: Tensor, major: Tensor, which: str = "any") -> Tensor:
    """The sample that each one is mixed with [R]: int64 (B,).

    which: 'any', a random permutation of the batch; or drawn for each sample from those of the 'major' classes, of the
    'minor' classes, or of its own 'group' of the two; itself where there is none. y: (B,); major: bool (C,).
    """
    if which == "any":
        return shuffle(y)
    is_major = major[y]  # (B,)
    allowed = {"major": is_major, "minor": ~is_major, "group": is_major[:, None] == is_major}[which]
    ticket = torch.where(allowed, torch.rand(len(y), len(y), device=y.device), -1)
    ticket.diagonal().clamp_(min=-0.5)  # wins only against those that are not allowed
    return ticket.argmax(1)


class MFW(Weighted):
    """Cross entropy on features mixed in training by a share that grows with the class size; labels are kept. Ours [R].

    strength, gamma: see `weakening`; strength 0 and equal classes are cross entropy. stage: what it puts out is mixed;
    any submodule of the network, or 'input': the images. partner: see `partners`, or 'none': nothing is mixed in, z
    becomes lambda z; 'major' classes are those larger than the median. low: least lambda. weakened: 'large', the
    method; as ablations 'small', the law upside down, or 'all' classes by the strength alike. start: from this epoch on
    class weights are added (deferred re-weighting; `scheme`, `beta`, `reduction`: see `Weighted`), None: never. lambda
    is drawn in float32 whatever the dtype of the features.
    """

    def __init__(
        self,
        n: Tensor,
        strength: float = 1.0,
        gamma: float = 1.0,
        stage: str = "stage3",
        partner: str = "any",
        low: float = 0.5,
        weakened: str = "large",
        start: int | None = None,
        scheme: str = "inverse",
        beta: float = 0.999,
        reduction: str = "samples",
    ) -> None:
        super().__init__(n, scheme, beta, start, reduction)
        if not strength >= 0 or not gamma >= 0 or not 0 <= low <= 1:
            raise ValueError(f"strength {strength}, gamma {gamma}, low {low}: all from 0, low up to 1")
        if partner not in ("any", "major", "minor", "group", "none") or weakened not in ("large", "small", "all"):
            raise ValueError(
                f"partner {partner!r}, weakened {weakened!r}: 'any', 'major', 'minor', 'group' or 'none'; "
                "'large', 'small' or 'all'"
            )
        self.stage, self.partner, self.low = stage, partner, low
        a = torch.full((len(n),), float(strength)) if weakened == "all" else None
        self.register_buffer("a", weakening(n if weakened == "large" else -n, strength, gamma) if a is None else a)
        self.register_buffer("major", n > n.median())  # (C,), the lower median: half of the classes at most

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        return weighted_cross_entropy(tap(net, x, {self.stage: partial(self.weaken, y)}), y, self.w, self.reduction)

    def weaken(self, y: Tensor, z: Tensor) -> Tensor:
        """The features z (B, ...) of samples of the classes y (B,), mixed: the shape of z."""
        partner = None if self.partner == "none" else partners(y, self.major, self.partner)
        return mix(z, partner, draw_lambda(self.a[y].float(), self.low))
