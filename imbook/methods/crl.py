"""Class rectification loss: in each batch, minority classes are pushed away from the hardest of their look-alikes.

Source: Dong, Gong, Zhu, ICCV 2017 and TPAMI 2018; the paper was not at hand, equation numbers are those of two
reading notes [S]. Derived in chapter 04.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imbook.methods.baselines import CrossEntropy, wide
from imbook.nets import tap

LEVELS, FORMS = ("class", "instance"), ("relative", "absolute", "distribution")


def imbalance(n: Tensor) -> float:
    """Omega: the percentage of the samples that would have to move to another class to make all equal, in [0, 100).

    n: images a class, (C,). The paper's unit is not known; this reading is ours [R].

    >>> round(imbalance(torch.tensor([43, 1])), 1)
    47.7
    """
    n = n.double()
    return 100 * ((n - n.mean()).clamp(min=0).sum() / n.sum()).item()


def minority(y: Tensor, classes: int, rho: float = 0.5, budget: str = "kept") -> Tensor:
    """Equation 3: which classes of a batch are its minority, bool (C,).

    The smallest classes whose samples together are at most rho * B; of those, the ones with two samples or more, as a
    single one forms no pair; none for rho 0. y: (B,); classes: C; equally large classes are taken in the order of their
    numbers.
    budget: whether single samples use up a part of rho * B: 'kept' no, 'all' yes [R].
    """
    size = torch.zeros(classes, dtype=torch.int64, device=y.device).scatter_add(0, y, torch.ones_like(y))  # (C,)
    paired = size >= 2
    spent = torch.where(paired, size, 0) if budget == "kept" else size
    order = spent.argsort(stable=True)
    fits = spent[order].cumsum(0) <= rho * len(y)
    return torch.empty_like(fits).scatter(0, order, fits) & paired


def mine_classes(p: Tensor, y: Tensor, kappa: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Equations 4, 5 and 10, class level: the distances of each sample to its hard positives and negatives.

    Hard positives of class c are the kappa samples of c with the lowest score p_c, hard negatives the kappa others with
    the highest. p: (B, C), rows sum to 1; y: (B,). Returns d_pos = |p_a - p_+| and d_neg = p_a - p_-, each (B, K),
    K = min(kappa, B), p being the score of the anchor's class; and for each whether the entry exists, bool (B, K).
    """
    own = y[:, None] == torch.arange(p.shape[1], device=y.device)  # (B, C)
    k, anchor = min(kappa, len(y)), torch.arange(len(y), device=y.device)[:, None]
    low, positive = torch.where(own, p, math.inf).topk(k, dim=0, largest=False)  # (K, C)
    high, negative = torch.where(own, -math.inf, p).topk(k, dim=0)  # (K, C)
    is_pos = low.isfinite().T[y] & (positive.T[y] != anchor)  # (B, K), nobody is its own positive
    is_neg = high.isfinite().T[y]
    score = p.gather(1, y[:, None])  # (B, 1)
    d_pos = (score - p[positive.T[y], y[:, None]]).abs()
    d_neg = score - p[negative.T[y], y[:, None]]
    return d_pos, d_neg, is_pos, is_neg


def mine_instances(z: Tensor, y: Tensor, kappa: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Equations 6, 7 and 11, instance level: Euclidean distances to the kappa farthest of the own class and the kappa
    nearest of the others.

    z: features (B, D); y: (B,). Returns as `mine_classes`.
    """
    d = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B)
    same, k = y[:, None] == y, min(kappa, len(y))
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    d_pos = torch.where(same & ~itself, d, -math.inf).topk(k).values  # (B, K)
    d_neg = torch.where(same, math.inf, d).topk(k, largest=False).values
    is_pos, is_neg = d_pos.isfinite(), d_neg.isfinite()
    return torch.where(is_pos, d_pos, 0), torch.where(is_neg, d_neg, 0), is_pos, is_neg


def relative(d_pos: Tensor, d_neg: Tensor, is_pos: Tensor, is_neg: Tensor, margin: float) -> Tensor:
    """Equation 9: the mean of max(0, margin + d_pos - d_neg) over all triplets, a scalar; 0 without triplets.

    d_pos, d_neg: (B, K); is_pos, is_neg: bool (B, K), which of them count.
    """
    triplet = is_pos[:, :, None] & is_neg[:, None, :]  # (B, K, K)
    return _mean((margin + d_pos[:, :, None] - d_neg[:, None, :]).relu(), triplet)


def absolute(d_pos: Tensor, d_neg: Tensor, is_pos: Tensor, is_neg: Tensor, margin: float) -> Tensor:
    """Equation 13: half of the mean d_pos^2 plus the mean max(margin - d_neg, 0)^2, over all pairs; a scalar."""
    return (_mean(d_pos**2, is_pos) + _mean((margin - d_neg).relu() ** 2, is_neg)) / 2


def distribution(d_pos: Tensor, d_neg: Tensor, is_pos: Tensor, is_neg: Tensor, low: float, bins: int = 40) -> Tensor:
    """Equations 14 to 16: the probability that d_neg <= d_pos, from two soft histograms; a scalar.

    Distances lie in [low, low + 2]; bins: how many [R], each 2 / bins wide.
    """
    h_pos, h_neg = soft_histogram(d_pos, is_pos, low, bins), soft_histogram(d_neg, is_neg, low, bins)
    return (h_pos * h_neg.cumsum(0)).sum()


def soft_histogram(d: Tensor, counted: Tensor, low: float, bins: int) -> Tensor:
    """Equation 15: the shares of the distances at bins + 1 nodes from low to low + 2, each distance divided linearly
    between its two neighbours: (bins + 1,), sum 1, or 0 where nothing is counted. d, counted: (B, K).
    """
    position = ((d - low) * bins / 2).clamp(0, bins)
    left = position.detach().floor().clamp(max=bins - 1)
    share = position - left
    node, counted = left.long().flatten(), counted.to(d.dtype)
    h = torch.zeros(bins + 1, dtype=d.dtype, device=d.device)
    h = h.index_add(0, node, ((1 - share) * counted).flatten()).index_add(0, node + 1, (share * counted).flatten())
    return h / counted.sum().clamp(min=1)


def rectification(
    h: Tensor, z: Tensor | None, y: Tensor, level: str = "class", form: str = "relative", kappa: int = 3,
    rho: float = 0.5, budget: str = "kept", margin: float | None = None, bins: int = 40,
) -> Tensor:  # fmt: skip
    """L_crl of one label (equations 9, 13 or 14), a scalar; 0, with a gradient of 0, in a batch without minority.

    h: logits (B, C); z: features (B, D), used at instance level; y: (B,). margin: default 0.5 at class level and
    2 pi / C at instance level (equation 12; which of the two belongs where is our reading [R]). The distribution form
    at instance level divides the features by their length, so that distances lie in [0, 2] [R]. Computed in float32 at
    least.
    """
    classes, h = h.shape[1], wide(h)
    if level == "class":
        d_pos, d_neg, is_pos, is_neg = mine_classes(h.softmax(1), y, kappa)
    else:
        z = wide(z)  # type: ignore[arg-type]
        d_pos, d_neg, is_pos, is_neg = mine_instances(F.normalize(z) if form == "distribution" else z, y, kappa)
    anchor = minority(y, classes, rho, budget)[y][:, None]  # (B, 1)
    pairs = d_pos, d_neg, is_pos & anchor, is_neg & anchor
    if form == "distribution":
        return distribution(*pairs, -1.0 if level == "class" else 0.0, bins)
    if margin is None:
        margin = 0.5 if level == "class" else 2 * math.pi / classes
    return (relative if form == "relative" else absolute)(*pairs, margin)


class CRL(CrossEntropy):
    """Equation 8: alpha * L_crl + (1 - alpha) * L_ce, for each label of an image, summed over the labels.

    level: 'class' or 'instance'; form: 'relative', 'absolute' or 'distribution'; kappa, rho, budget, margin, bins: see
    `rectification`. alpha: None for eta * Omega (`imbalance`) of each label, or a number for all of them; balanced
    data have Omega 0 and need a number. rho 0 mines nothing and leaves (1 - alpha) * L_ce, the control of chapter 04.
    ValueError for an alpha or rho outside [0, 1]. n: (C,), or a tuple of them.
    stage: where instance level takes the features, flattened: any stage of the network (see `imbook.nets`), default
    what the classifier is given.
    """

    def __init__(
        self,
        n: Tensor | tuple[Tensor, ...],
        level: str = "class",
        form: str = "relative",
        kappa: int = 3,
        alpha: float | None = None,
        eta: float = 0.01,
        rho: float = 0.5,
        budget: str = "kept",
        margin: float | None = None,
        bins: int = 40,
        stage: str | None = None,
    ) -> None:
        super().__init__()
        if level not in LEVELS or form not in FORMS or budget not in ("kept", "all"):
            raise ValueError(f"level {level!r}, form {form!r}, budget {budget!r}: {LEVELS}, {FORMS}, ('kept', 'all')")
        if kappa < 1 or bins < 1 or not 0 <= rho <= 1:
            raise ValueError(f"kappa {kappa}, bins {bins}, rho {rho}: kappa and bins from 1, rho in [0, 1]")
        omega = [imbalance(n_j) for n_j in (n if isinstance(n, tuple) else (n,))]
        if alpha is None and not all(omega):
            raise ValueError("a label with equally large classes has Omega 0, so no alpha: pass alpha, e.g. 0.1")
        self.alpha = [eta * o if alpha is None else float(alpha) for o in omega]  # one a label
        if not all(0 <= a <= 1 for a in self.alpha):
            raise ValueError(f"alpha {self.alpha} (eta {eta}, Omega {omega}): must lie in [0, 1]; lower eta")
        self.stage = stage
        self.settings: Any = dict(level=level, form=form, kappa=kappa, rho=rho, budget=budget, margin=margin, bins=bins)

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        h, z = self.scores(net, x)
        labels = zip(h, y.T) if isinstance(h, tuple) else [(h, y)]
        loss: Any = 0
        for a, (h_j, y_j) in zip(self.alpha, labels):
            mined = rectification(h_j, z, y_j, **self.settings)
            loss += a * mined + (1 - a) * F.cross_entropy(wide(h_j), y_j)
        return loss

    def scores(self, net: nn.Module, x: Tensor) -> tuple[Any, Tensor | None]:
        """Logits (B, C), or one such tensor per label, and features (B, D); None at class level, which has no use."""
        if self.settings["level"] == "class":
            return net(x), None
        read = []
        h = tap(net, x, {self.stage: lambda z: read.append(z) or z})
        return h, read[0].flatten(1)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).sum() / counted.sum().clamp(min=1)
