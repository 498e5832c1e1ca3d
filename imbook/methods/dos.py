"""Deep over-sampling: a minority image is drawn again and again, each time towards another mixture of its neighbours.

The neighbours are those of its class in the network's own features. Source: Ando and Huang 2017 (arXiv 1704.07515v3),
equation numbers are the paper's. `DOSAbstract` adds abstract labels (Ando 2018): only the abstract of that paper was
at hand, and all that stands below its line is our reconstruction [R]. Derived in chapter 06.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imbook import distributed
from imbook.data import AnyBatches
from imbook.methods.baselines import wide
from imbook.methods.features import embed, readings
from imbook.nets import features, tap
from imbook.train import Method

BLOCK = 2**22  # distances held at once: 32 MB of float64


def nearest(z: Tensor, k: int) -> Tensor:
    """The k nearest other rows of each row, nearest first: int64 (n, k).

    z: (n, D), n > k >= 1. Squared Euclidean distances in float64, a block of rows at a time.
    """
    z = z.double() - z.double().mean(0)  # smaller numbers, smaller rounding
    norm, found = z.square().sum(1), []
    for own in torch.arange(len(z), device=z.device).split(max(1, BLOCK // len(z))):
        d = torch.addmm(norm, z[own], z.T, alpha=-2)  # (block, n), without the norm of the row: the same order
        d[own - own[0], own] = torch.inf
        found.append(d.topk(k, largest=False).indices)
    return torch.cat(found)


def neighbours(z: Tensor, y: Tensor, k: int, classes: Tensor) -> Tensor:
    """The k nearest neighbours of the same class, as positions in z, nearest first: int64 (N, k).

    z: (N, D); y: (N,); classes: bool (C,), those whose neighbours are sought; rows of other classes hold their own
    position. Where a class has no k others, those it has are repeated in order; one sample alone is its own.
    """
    away = torch.zeros(len(z), k, dtype=torch.int64, device=z.device)  # from its own position
    for c in distributed.share(classes.nonzero().flatten().tolist()):
        there = (y == c).nonzero().flatten()
        if len(there) > 1:
            some = nearest(z[there], min(k, len(there) - 1))
            away[there] = there[some[:, torch.arange(k, device=z.device) % some.shape[1]]] - there[:, None]
    return torch.arange(len(z), device=z.device)[:, None] + distributed.total(away)  # (N, k)


def draw_weights(law: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Equations (6) and (7): w >= 0 with sum 1 in each row, of `shape` (B, k). The paper leaves the law open [R].

    law: 'simplex' (every w equally likely), 'uniform' (k uniform numbers over their sum: nearer to the middle) or
    'equal' (1 / k each, nothing is drawn). like: a tensor of the dtype and device wanted; drawn in float32 at least.
    """
    if law == "equal":
        return like.new_full(shape, 1 / shape[1])
    w = wide(like).new_empty(shape)
    w = w.exponential_().clamp(min=torch.finfo(w.dtype).tiny) if law == "simplex" else 1 - w.uniform_()  # never 0
    return (w / w.sum(1, keepdim=True)).to(like.dtype)


def squared_distance(z: Tensor, v: Tensor) -> Tensor:
    """||f(x) - v||^2 to each v: (B, K), in float32 at least. z: (B, D), v: (B, K, D)."""
    return (wide(z)[:, None] - wide(v)).square().sum(2)


def loss_f(d: Tensor, w: Tensor) -> Tensor:
    """Equation (8), sum_i w_i ||f(x) - v_i||^2; with w = 1 equation (3): (B,). d: squared distances (B, K); w: same."""
    return (w * d).sum(1)


def rho(d: Tensor, w: Tensor) -> Tensor:
    """Equation (10), exp(-w_i ||f(x) - v_i||^2) / Z; with w = 1 equation (5): (B, K), rows sum to 1.

    A softmax: shifted by the largest exponent, so that it is finite where every exp(-d) underflows to 0.
    """
    return (-w * d).softmax(1)


def loss_g(h: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    """Equation (9), sum_i rho_i H(g(v_i), y); with the rho of (5) equation (4): (B,).

    h: logits g(v) (B, K, C); y: (B,); rho: (B, K).
    """
    each = F.cross_entropy(wide(h).flatten(0, 1), y.repeat_interleave(h.shape[1]), reduction="none")
    return (rho * each.view(rho.shape)).sum(1)


def small_classes(n: Tensor, rule: str = "median") -> Tensor:
    """Which classes are the minority, bool (C,). n: images a class (C,). The paper names them by hand; ours [R].

    rule: 'median' (at most half as many images as the middle class; of two middle ones the smaller), 'half' (at most
    half as many as the largest) or 'all' (every class: the paper's experiment on balanced data), else ValueError.
    """
    if rule not in ("median", "half", "all"):
        raise ValueError(f"minority {rule!r}: choose from 'median', 'half', 'all'")
    if rule == "all":
        return torch.ones_like(n, dtype=torch.bool)
    return n <= (n.median() if rule == "median" else n.max()) / 2


def scale_or_one(scale: Tensor, z: Tensor) -> Tensor:
    """The scale to divide squared distances by, a scalar tensor: 1 where it is 0, or only rounding.

    scale: a mean of squared distances between rows of z (N, D). Where features have collapsed to one point it is the
    rounding of their dtype, some 1e-14 of their squared length in float32, and nothing can be divided by that.
    """
    return torch.where(scale > (8 * torch.finfo(z.dtype).eps) ** 2 * wide(z).square().sum(1).mean(), scale, 1)


def variance_within(z: Tensor, y: Tensor, classes: int) -> Tensor:
    """The variance of each class's rows around their mean over that of all rows around theirs: float64 (C,).

    z: (N, D); y: (N,); nan for a class without samples. Small where a class is a tight cluster.
    """
    z = z.double()
    n = torch.bincount(y, minlength=classes)
    means = z.new_zeros(classes, z.shape[1]).index_add_(0, y, z) / n[:, None]  # (C, D)
    around = z.new_zeros(classes).index_add_(0, y, (z - means[y]).square().sum(1)) / n
    return around / (z - z.mean(0)).square().sum(1).mean()


class DOS(Method):
    """Deep over-sampling (algorithm 1).

    Cross entropy (2) up to epoch `start`; then a round every `every` epochs: all images are embedded, each image of a
    minority class gets its k nearest neighbours v of its class and is visited r * n_max / n_c times per epoch, rounded,
    each time with new weights w. Its loss is l'_g + lambda_ * l'_f, that of a majority image stays cross entropy.
    The network is g(f(x)): f ends with a stage, any of the network's submodules (see `imbook.nets`). One pass computes
    both terms: below the B images' features the stage puts out those of their B K neighbours, and g sees B (1 + K)
    rows. BatchNorm in g takes all of them for its batch, so that its statistics are those of images and neighbours
    together; the book's networks for this method have none.

    k: neighbours (paper: 3 to 10); 0 is plain training. r: draws per image, as a multiple of n_max / n_c: the paper's
    [1/R, k/R] is [1, k]. Open in the paper, and choices of ours [R]:
    minority: see `small_classes`. stage: the one that f ends with, default all before the classifier. lambda_: weight
    of l'_f. w: see `draw_weights`, or 'none': equations (1) to (5), the neighbours and the image itself, no weights.
    scale: what squared distances are divided by, measured each round: 'variance' (the mean squared distance of all
    features to their mean: no unit, and it stays when one class contracts), 'spread' (the mean over the minority's
    neighbours: no unit either, but it shrinks with the class, so that the pull does not fade), 'features' (D) or
    'none' (1, as printed); see also `scale_or_one`. v: 'stored' (fixed through the round: H(g(v), y) gives gradient to
    g only, and little but l'_f moves f for a minority image), 'live' (v = f of the neighbour's image, with gradient) or
    'fresh' (the same v, but its gradient is cut: the control that tells whether live ones help by their gradient).
    lean: 'live' and 'fresh' embed the neighbours of minority images alone: the same loss where f has no BatchNorm or
    dropout, for less on a CPU; no CUDA graph holds such a step, whose sizes depend on the batch.
    read: also read the features by k nearest neighbours and logistic regression (`imbook.methods.features.readings`).

    Logs round, spread (that mean, unscaled), and within and within_majority: the variance of features around the class
    mean over that around the mean of all, a mean over minority and majority classes.
    """

    version = 2  # 1 had the scale 'spread' by default

    def __init__(
        self, n: Tensor, k: int = 5, r: float = 1.0, start: int = 3, every: int = 2, minority: str = "median",
        stage: str | None = None, lambda_: float = 1.0, w: str = "simplex", scale: str = "variance", v: str = "stored",
        lean: bool = False, read: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, known in (
            ("w", w, ("simplex", "uniform", "equal", "none")),
            ("scale", scale, ("variance", "spread", "features", "none")),
            ("v", v, ("stored", "live", "fresh")),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r}: choose from {', '.join(map(repr, known))}")
        if k < 0 or k != int(k) or r <= 0 or start < 0 or every < 1 or lambda_ < 0:
            raise ValueError(
                f"k {k}, r {r}, start {start}, every {every}, lambda_ {lambda_}: k, start and lambda_ are at least 0, "
                "every at least 1, r above 0"
            )
        self.k, self.start, self.every, self.stage, self.lambda_ = k, start, every, stage, lambda_
        self.law, self.scale_by, self.v, self.lean, self.read = w, scale, v, lean, read
        small = small_classes(n, minority)
        times = torch.where(small, (r * n.max() / n.clamp(min=1)).round().clamp(min=1), 1)
        self.register_buffer("small", small)  # (C,)
        self.register_buffer("times", times.long())  # (C,), visits an epoch
        self.register_buffer("active", torch.zeros_like(small))  # (C,), small from the first round on
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("measured", torch.zeros(3, dtype=torch.float64))  # spread, within, within_majority
        self.register_buffer("near", torch.zeros(0, k, dtype=torch.int64))  # (N, k)
        self.register_buffer("z", torch.zeros(0, 0))  # (N, D), f(x) at the start of the round
        self.register_load_state_dict_pre_hook(_take_sizes)

    def visits(self, n: Any, epoch: int) -> int:
        began = self.k and epoch >= self.start
        return int((n * self.times.to(n.device)).sum()) if began else super().visits(n, epoch)

    def terms(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each image (B,), and its features f(x), flat (B, D)."""
        seen = []

        def extend(z: Tensor) -> Tensor:
            seen.append(z.flatten(1))
            if not self.k:
                return z
            seen.extend(self.targets(net, seen[0], i))
            return torch.cat([z, seen[1].reshape(-1, *z.shape[1:])])  # (B + B K, ...)

        h = wide(tap(net, x, {self.stage: extend}))  # (B + B K, C)
        plain = F.cross_entropy(h[: len(y)], y, reduction="none")
        if not self.k:
            return plain, seen[0]
        z, v, w = seen
        d = squared_distance(z, v) / self.scale  # (B, K)
        cluster = loss_g(h[len(y) :].view(*w.shape, -1), y, rho(d, w)) + self.lambda_ * loss_f(d, w)
        return torch.where(self.active[y], cluster, plain), z

    def targets(self, net: nn.Module, z: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        """The features v (B, K, D) of the neighbours of images i (B,), and weights w (B, K). z: their own (B, D)."""
        near = self.near[i]  # (B, K), K = k
        if self.law == "none":
            near = torch.cat([i[:, None], near], 1)  # equation (1): K = k + 1
            w = torch.ones_like(near, dtype=z.dtype)
        else:
            w = draw_weights(self.law, near.shape, z)
        v = self.z[near]
        lean = self.lean and distributed.size() == 1  # so few rows may be fewer than ranks
        some: Any = self.active[self.source.y[i]] if lean else slice(None)  # whose neighbours pass f
        if self.v != "stored" and len(used := near[some]):
            x = self.source.inputs(distributed.own(used.flatten()))
            fresh = features(net, x, self.stage).flatten(1).view(*used.shape, -1)
            fresh = fresh.detach() if self.v == "fresh" else fresh
            v = v.to(fresh.dtype).index_put((some,), fresh) if lean else fresh
        return v, w

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        if not self.k:
            return F.cross_entropy(wide(net(x)), y)
        return self.terms(net, x, y, i)[0].mean()

    def update(self, epoch: int, net: nn.Module, train: AnyBatches, valid: AnyBatches | None) -> dict[str, Any]:
        self.source = train
        begins = epoch >= self.start and (epoch - self.start) % self.every == 0
        if epoch == 0 or begins:
            z = embed(net, train, self.stage)  # (N, D)
            if epoch == 0:
                self.allocate(z)
            if begins:
                self.renew(z, train)
        return self.log(epoch) if epoch >= self.start else {}

    def allocate(self, z: Tensor) -> None:
        """Tables for the training set's features z (N, D), before the first epoch."""
        self.near = torch.arange(len(z), device=z.device)[:, None].repeat(1, self.k)
        self.z = torch.zeros_like(z)

    def renew(self, z: Tensor, train: AnyBatches) -> None:
        """Begin a round: new neighbours, targets and scale, from the features z (N, D) of all training images."""
        if not self.k:
            return
        self.z.copy_(z)
        self.near.copy_(neighbours(z, train.y, self.k, self.small))
        self.active.copy_(self.small)
        train.order = torch.arange(len(z), device=z.device).repeat_interleave(self.times[train.y])
        chosen = self.near[:, 0] != torch.arange(len(z), device=z.device)  # those that have a neighbour
        z = wide(z)
        spread = squared_distance(z[chosen], z[self.near[chosen]]).mean() if chosen.any() else z.new_zeros(())
        variance = (z - z.mean(0)).square().sum(1).mean()
        fixed, measured = {"none": 1, "features": z.shape[1]}, {"spread": spread, "variance": variance}
        self.scale.fill_(fixed.get(self.scale_by) or scale_or_one(measured[self.scale_by], self.z))
        within = variance_within(z, train.y, len(self.small))
        self.measured.copy_(torch.stack([spread, *(within[m].nanmean() for m in (self.small, ~self.small))]))

    def log(self, epoch: int) -> dict[str, Any]:
        """What is logged of an epoch in a round."""
        spread, within, within_majority = self.measured.tolist()
        logged = dict(round=(epoch - self.start) // self.every + 1, spread=spread, within=within)
        return {**logged, "within_majority": within_majority} if self.k else {}

    def finish(self, net: nn.Module, train: AnyBatches, valid: AnyBatches | None = None) -> None:
        if self.read:
            self.readings = readings(net, train)


def _take_sizes(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Tables and layers as those of the checkpoint: N, D and dtype are known only once a network has embedded a set."""
    for name, table in module.named_buffers(recurse=False):
        if prefix + name in state:
            setattr(module, name, torch.empty_like(state[prefix + name], device=table.device))
    for name, layer in module.named_children():
        if f"{prefix}{name}.weight" in state:
            layer.to(state[f"{prefix}{name}.weight"].dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Abstract labels. Everything below is our reconstruction [R]: how Ando 2018 makes the labels, its losses, architecture
# and numbers were not available to us; known is that labels are generated and guide features to different subspaces.


def abstract_labels(z: Tensor, y: Tensor, classes: int, groups: int, by: str = "classes") -> Tensor:
    """The abstract label of each image: int64 (N,), 0 to G-1. Our reconstruction [R].

    by: 'classes' joins the class means in the features (agglomerative, Ward), so that a class has one label;
    'instances' clusters the images themselves (k-means). z: (N, D); y: (N,); groups: G.
    """
    from sklearn.cluster import AgglomerativeClustering, KMeans

    if by == "instances":
        found = KMeans(min(groups, len(z)), n_init=3, random_state=0).fit_predict(z.double().cpu().numpy())
        return torch.as_tensor(found, device=y.device).long()
    n = torch.bincount(y, minlength=classes)
    there = n > 0
    means = z.new_zeros(classes, z.shape[1], dtype=torch.float64).index_add_(0, y, z.double())[there] / n[there, None]
    label = torch.zeros(classes, dtype=torch.int64, device=y.device)
    if min(groups, len(means)) > 1:
        found = AgglomerativeClustering(min(groups, len(means))).fit_predict(means.cpu().numpy())
        label[there] = torch.as_tensor(found, device=y.device).long()
    return label[y]


def keep_names(new: Tensor, old: Tensor, groups: int) -> Tensor:
    """The new labels renamed so that as many images as can be keep their old label: int64 (N,).

    Clusters have no order: without this the groups would change places, and blocks, from round to round.
    """
    from scipy.optimize import linear_sum_assignment

    shared = torch.bincount(new * groups + old, minlength=groups**2).view(groups, groups)
    rows, names = linear_sum_assignment(-shared.cpu().numpy())  # rows are 0 to G-1, in order
    return torch.as_tensor(names, device=new.device)[new]


def inside(z: Tensor, a: Tensor, groups: int) -> Tensor:
    """The share of each image's energy ||z||^2 that lies in its group's block of dimensions: (B,), in [0, 1].

    Our reconstruction [R]. z: (B, D); a: abstract labels (B,). Block g holds the dimensions d with d G // D = g. An
    image without energy (z = 0) has nothing outside: 1.
    """
    block = torch.arange(z.shape[1], device=z.device) * groups // z.shape[1]  # (D,)
    energy = z.square()  # (B, D)
    outside = torch.where(block == a[:, None], 0, energy).sum(1)
    return 1 - outside / energy.sum(1).clamp(min=torch.finfo(z.dtype).tiny)


class DOSAbstract(DOS):
    """DOS with abstract labels: our reconstruction [R] of the idea of Ando 2018.

    At each round images get abstract labels a (`abstract_labels`, named as in the round before). From then on the loss
    of every image has two more terms: head_weight * H(head(f(x)), a), the head being a linear layer of the method's
    own, in the features' dtype and trained with the network; and block_weight * (1 - `inside`), which draws f(x) to its
    group's block. One group, or both weights 0, is DOS. groups: G; by: see `abstract_labels`; super_classes: (C,) known
    ones to hold the groups against; all others: see `DOS`.

    Logs also groups (the label of most images of each class), energy (mean share inside the own block, over the images
    visited since the last epoch began) and rand (adjusted Rand index of groups and super_classes).
    """

    def __init__(
        self, n: Tensor, groups: int = 2, by: str = "classes", head_weight: float = 0.1, block_weight: float = 0.1,
        super_classes: tuple[int, ...] | None = None, **hyper: Any,
    ) -> None:  # fmt: skip
        super().__init__(n, **hyper)
        if groups < 1 or head_weight < 0 or block_weight < 0 or by not in ("classes", "instances"):
            raise ValueError(
                f"groups {groups}, head_weight {head_weight}, block_weight {block_weight}, by {by!r}: groups from 1, "
                "weights from 0, 'classes' or 'instances'"
            )
        if super_classes is not None and len(super_classes) != len(n):
            raise ValueError(f"{len(super_classes)} super-classes for {len(n)} classes: give one for each class")
        self.groups, self.by, self.head_weight, self.block_weight = groups, by, head_weight, block_weight
        self.super_classes = super_classes
        self.head = torch.nn.LazyLinear(groups)  # (B, D) -> (B, G)
        self.register_buffer("a", torch.zeros(0, dtype=torch.int64))  # (N,)
        self.register_buffer("on", torch.zeros(()))  # 1 from the first round on
        self.register_buffer("seen", torch.zeros(2))  # sum of `inside`, and images, since the last update

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        each, z = self.terms(net, x, y, i)
        a = self.a[i]
        share = inside(wide(z), a, self.groups)
        self.seen.add_(self.on * torch.stack([share.detach().sum(), torch.ones_like(share).sum()]))
        apart = self.head_weight * F.cross_entropy(wide(self.head(z)), a) + self.block_weight * (1 - share).mean()
        return each.mean() + self.on * apart

    def allocate(self, z: Tensor) -> None:
        super().allocate(z)
        self.a = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self.head.to(z.dtype)(z[:1])  # the layer now knows D

    def renew(self, z: Tensor, train: AnyBatches) -> None:
        super().renew(z, train)
        new = abstract_labels(z, train.y, len(self.small), self.groups, self.by)
        self.a.copy_(torch.where(self.on > 0, keep_names(new, self.a, self.groups), new))
        self.on.fill_(1)

    def log(self, epoch: int) -> dict[str, Any]:
        of_class = self.on.new_zeros(len(self.small), self.groups)
        of_class.index_put_((self.source.y, self.a), torch.ones_like(self.on), accumulate=True)
        groups = of_class.argmax(1)
        energy, images = distributed.total(self.seen).tolist()
        self.seen.zero_()
        logged = {**super().log(epoch), "groups": groups, "energy": energy / images if images else None}
        if self.super_classes is not None:
            from sklearn.metrics import adjusted_rand_score

            logged["rand"] = adjusted_rand_score(self.super_classes, groups.tolist())
        return logged
