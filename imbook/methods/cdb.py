"""Class-wise difficulty-balanced loss: a class weighs as much as it is difficult, measured on held-out images.

Source: Sinha, Ohashi, Nakamura, ACCV 2020 (arXiv 2010.01824); equation numbers are the paper's. Derived in chapter 05.
"""

from typing import Any

import torch
from torch import Tensor, nn

from imbook.data import AnyBatches
from imbook.methods.baselines import weighted_cross_entropy
from imbook.metrics import confusion, recall
from imbook.train import Method, evaluate


def difficulty(accuracy: Tensor) -> Tensor:
    """Equation 1: d_c = 1 - A_c, (C,).

    accuracy: (C,) in [0, 1], each class's share of held-out samples predicted right. Raises ValueError for a
    class that has none (nan).
    """
    if accuracy.isnan().any():
        missing = accuracy.isnan().nonzero().flatten().tolist()
        raise ValueError(f"classes {missing} have no validation image, so no difficulty: hold out at least one of each")
    return 1 - accuracy


def weights(difficulty: Tensor, tau: float | Tensor) -> Tensor:
    """Equation 2, w_c = d_c^tau, scaled to sum to C as the released code does: (C,).

    difficulty: (C,) in [0, 1]; tau: at least 0, a number or a scalar tensor; 0 gives all ones. A perfect class
    (d_c = 0) has weight 0 until it errs again, as the equation says. Where all classes are perfect the equation gives
    0 / 0: they are equally difficult, and all weights are 1.
    """
    w = difficulty**tau
    total, tiny = w.sum(), torch.finfo(w.dtype).tiny
    scaled = w * len(w) / total.clamp(min=tiny)
    return torch.where(total > 0, scaled, torch.ones_like(w))


def dynamic_tau(accuracy: Tensor, variant: str = "paper", eps: float = 0.01) -> Tensor:
    """Equations 3 and 4, or what the released CIFAR code does instead: a scalar tensor.

    'paper': tau = 2 / (1 + exp(-b)), b = max A / (min A + eps) - 1, in [0.53, 2). 'released': the sigmoid of b + 1,
    in [0.5, 1). accuracy: (C,) in [0, 1]; eps: 0.01 in the released code.

    >>> A = torch.tensor([0.9, 0.6])
    >>> [round(dynamic_tau(A, v).item(), 3) for v in ("paper", "released")]
    [1.233, 0.814]
    """
    if variant not in ("paper", "released") or not eps > 0:
        raise ValueError(f"variant {variant!r}, eps {eps}: choose 'paper' or 'released', and eps above 0")
    ratio = accuracy.max() / (accuracy.min() + eps)
    return 2 * torch.sigmoid(ratio - 1) if variant == "paper" else torch.sigmoid(ratio)


class CDB(Method):
    """Cross entropy with weights that follow each class's difficulty (equation 7), renewed before each epoch.

    tau: a number, or 'dynamic' (of `variant` 'paper' or 'released'). reduction: 'samples' (the released CIFAR code; the
    mean of w_y * -log p_y) or 'weights' (its ImageNet code). smooth: share of the previous accuracies kept in a moving
    average, 0 in the paper; floor: least difficulty of a class, 0 in the paper; both are ours [R].
    The weights are 1 in the first epoch. Logs w, tau and accuracy, those used in the epoch.
    """

    needs_valid = True

    def __init__(
        self, n: Tensor, tau: float | str = "dynamic", variant: str = "paper", reduction: str = "samples",
        smooth: float = 0.0, floor: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if tau != "dynamic" and not (isinstance(tau, int | float) and tau >= 0):
            raise ValueError(f"tau {tau!r}: a number from 0 up, or 'dynamic'")
        if variant not in ("paper", "released") or reduction not in ("samples", "weights"):
            raise ValueError(
                f"variant {variant!r}, reduction {reduction!r}: 'paper' or 'released', 'samples' or 'weights'"
            )
        if not (0 <= smooth < 1 and 0 <= floor < 1):
            raise ValueError(f"smooth {smooth}, floor {floor}: both from 0 up to, but not including, 1")
        self.tau, self.variant, self.reduction, self.smooth, self.floor = tau, variant, reduction, smooth, floor
        self.register_buffer("w", torch.ones(len(n)))  # (C,)
        self.register_buffer("accuracy", torch.zeros(len(n), dtype=torch.float64))  # (C,), of the last update

    def forward(self, net: nn.Module, x: Tensor, y: Tensor, i: Tensor) -> Tensor:
        return weighted_cross_entropy(net(x), y, self.w, self.reduction)

    def update(self, epoch: int, net: nn.Module, train: AnyBatches, valid: Any) -> dict[str, Any]:
        if epoch == 0:
            return {"w": self.w.clone(), "tau": None, "accuracy": None}
        measured = recall(confusion(*evaluate(net, valid)))
        keep = self.smooth if epoch > 1 else 0.0
        self.accuracy.copy_(keep * self.accuracy + (1 - keep) * measured)
        d = difficulty(self.accuracy).clamp(min=self.floor)
        if self.tau == "dynamic":
            tau = dynamic_tau(self.accuracy, self.variant)
        else:
            tau = torch.tensor(float(self.tau))
        self.w.copy_(weights(d, tau))
        return {"w": self.w.clone(), "tau": tau.item(), "accuracy": self.accuracy.clone()}
