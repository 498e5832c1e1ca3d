"""Mixing images or features together with their labels: mixup, manifold mixup, Remix. Chapter 07 holds them beside MFW.

Each batch is mixed with a random permutation of itself. Shapes are static and randomness is drawn on the device.
"""

from collections.abc import Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imbook.methods.baselines import wide
from imbook.nets import tap
from imbook.train import Method


def draw_share(a: Tensor) -> Tensor:
    """l ~ Beta(a, a), independently for each number of a, and 1 where a is 0: the shape, dtype and device of a.

    a: at least 0. Computed from the logarithms of two Gamma variables, as a small one underflows: log Gamma(a) is
    log Gamma(a + 1) + log(u) / a, u uniform. An a below 1e-6 counts as 1e-6. Uses torch's global generator.
    """
    b = a.clamp(min=1e-6).expand(2, *a.shape)
    gamma = torch.distributions.Gamma(b + 1, torch.ones_like(b), validate_args=False).sample()
    u = 1 - torch.rand_like(b)  # in (0, 1]
    log = gamma.log() + u.log() / b
    return torch.where(a > 0, torch.sigmoid(log[0] - log[1]), 1)


def mix(z: Tensor, partner: Tensor | None, lambda_: Tensor) -> Tensor:
    """lambda_i z_i + (1 - lambda_i) z_partner(i): the shape of z. Where lambda is 1 it is z_i to the last bit.

    z: (B, ...); partner: int64 (B,), positions in the batch, or None: nothing is mixed in, the result is lambda_i z_i;
    lambda_: (B,), or a scalar tensor for all, cast to the dtype of z.
    """
    lambda_ = lambda_.to(z.dtype).view(-1, *[1] * (z.ndim - 1))
    own = lambda_ * z
    return own if partner is None else own + (1 - lambda_) * z[partner]


def shuffle(y: Tensor) -> Tensor:
    """A random permutation of the batch: int64 (B,), on the device of y."""
    return torch.rand(len(y), device=y.device).argsort()


def mixed_cross_entropy(h: Tensor, y: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """The mean of share_i * -log p_y(i) + (1 - share_i) * -log p_y(partner(i)): a scalar.

    h: logits (B, C); y: (B,); partner: (B,); share: (B,), or a scalar tensor. Shares of 1 give F.cross_entropy(h, y) to
    the last bit. Computed in float32 at least.
    """
    log_p = F.log_softmax(wide(h), 1)  # (B, C)
    share = share.to(log_p.dtype)
    own, other = (log_p.gather(1, t[:, None]).squeeze(1) for t in (y, y[partner]))  # (B,)
    return F.nll_loss(log_p, y) + ((1 - share) * (own - other)).mean()


class Mixup(Method):
    """Images and labels mixed with those of another image of the batch, by one lambda ~ Beta(alpha, alpha) a batch.

    alpha 0 is cross entropy. lambda is drawn in float32 whatever the dtype of the images. Source: Zhang et al. 2018.
    """

    def __init__(self, n: Tensor | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        if not alpha >= 0:
            raise ValueError(f"alpha {alpha}: at least 0")
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    def draw(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's partner, int64 (B,), and the batch's lambda, a scalar tensor."""
        return shuffle(y), draw_share(self.alpha.float())

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        partner, lambda_ = self.draw(y)
        return mixed_cross_entropy(self.logits(net, x, partner, lambda_), y, partner, lambda_)

    def logits(self, net: nn.Module, x: Tensor, partner: Tensor, lambda_: Tensor) -> Tensor:
        """h of the mixed images: (B, C)."""
        return tap(net, x, {"input": lambda z: mix(z, partner, lambda_)})


class ManifoldMixup(Mixup):
    """Mixup of the features after a stage that is drawn anew for each batch; labels are mixed alike.

    stages: the stages to draw from, names of any submodules of the network, or 'input'; one name fixes it. All of them
    mix, but by a share of 1 where they were not drawn, so that no step differs in shape from another and the draw stays
    on the device. Source: Verma et al. 2019; input and the first two stages are our choice [R].
    """

    def __init__(
        self, n: Tensor | None = None, alpha: float = 1.0, stages: Sequence[str] = ("input", "stage1", "stage2")
    ) -> None:
        super().__init__(n, alpha)
        if isinstance(stages, str) or not stages or len(set(stages)) < len(stages):
            raise ValueError(f"stages {stages!r}: a tuple that names at least one, each once, such as ('stage1',)")
        self.stages = tuple(stages)

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        partner, lambda_ = self.draw(y)
        drawn, passed = torch.randint(len(self.stages), (), device=y.device), count()
        change = lambda z: mix(z, partner, torch.where(drawn == next(passed), lambda_, 1))  # noqa: E731
        return mixed_cross_entropy(tap(net, x, dict.fromkeys(self.stages, change)), y, partner, lambda_)


def remix_share(lambda_: Tensor, n_own: Tensor, n_other: Tensor, kappa: float, tau: float) -> Tensor:
    """The label's share lambda_y of Remix: the shape of n_own.

    0 where n_own >= kappa n_other and lambda < tau; 1 where n_other >= kappa n_own and 1 - lambda < tau; else lambda.
    lambda_: a scalar tensor; n_own, n_other: images of the classes of the two samples mixed, (B,).
    """
    to_other = (n_own >= kappa * n_other) & (lambda_ < tau)
    to_own = (n_other >= kappa * n_own) & (1 - lambda_ < tau)
    return torch.where(to_other, 0, torch.where(to_own, 1, lambda_))


class Remix(Mixup):
    """Mixup in which a mixture of a large and a small class gets the small one's label, unless it is too small a part.

    kappa: from which ratio of the class sizes; tau: the small class's share must be above 1 - tau. tau 0 is mixup.
    Source: Chou et al. 2020.
    """

    def __init__(self, n: Tensor, alpha: float = 1.0, kappa: float = 3.0, tau: float = 0.5) -> None:
        super().__init__(n, alpha)
        if not kappa >= 1 or not 0 <= tau <= 1:
            raise ValueError(f"kappa {kappa}, tau {tau}: kappa is at least 1, tau in [0, 1]")
        self.kappa, self.tau = kappa, tau
        self.register_buffer("n", n.double())  # (C,)

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        partner, lambda_ = self.draw(y)
        share = remix_share(lambda_, self.n[y], self.n[y[partner]], self.kappa, self.tau)
        return mixed_cross_entropy(self.logits(net, x, partner, lambda_), y, partner, share)
