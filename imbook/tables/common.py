"""What the tables of several chapters share: seeds, splits, protocols, the simple methods, and rows of each method."""

from dataclasses import replace
from itertools import product
from typing import Any

from imbook.rows import Row, Split
from imbook.train import Protocol

#: The protocol of runs on the digits. Those of the CPU are ours, chosen so that cross entropy has converged.
DIGITS = Protocol("digits", epochs=60, batch=32, lr=0.05, cosine=True, watch=2)
#: The protocol of runs on a CPU at 28 x 28 pixels.
SMALL = Protocol("small", epochs=20, batch=32, lr=0.02, cosine=True, watch=2)
#: The field's for CIFAR with ResNet-32, from LDAM's line of papers [R].
CIFAR_200 = Protocol(
    "cifar-200", 200, 128, 0.1, 0.9, 2e-4, warmup=5, milestones=(160, 180), decay=0.01, crop=4, flip=True, watch=5
)
#: Ours for CIFAR on a CPU.


def together(k: int, first: int = 0) -> tuple[dict[str, int], ...]:
    """k sets of seeds in which order, draw and training change together, from `first` on."""
    return tuple(dict(order=s, draw=s, train=s) for s in range(first, first + k))


def crossed(k: int) -> tuple[dict[str, int], ...]:
    """k^3 sets of seeds: every order with every draw with every training seed; those of crossed(k - 1) come first."""
    cube = sorted(product(range(k), repeat=3), key=max)
    return tuple(dict(order=o, draw=d, train=t) for o, d, t in cube)


def rows(split: Split, net: str, protocol: Protocol, *methods: tuple[Any, ...]) -> tuple[Row, ...]:
    """Rows that share everything but the method: each of `methods` is (label, method, hyper-parameters[, fact])."""
    return tuple(Row(label, split, net, protocol, method, hyper, *fact) for label, method, hyper, *fact in methods)


#: The row of plain cross entropy: (label, method, hyper-parameters).
CE = ("cross entropy", "CrossEntropy", {})
#: The rows that every chapter's tables hold beside its own method.
BASELINES = (
    CE,
    ("inverse frequency", "Weighted", {"scheme": "inverse"}),
    ("class-balanced", "Weighted", {"scheme": "effective", "beta": 0.999}),
    ("focal", "Focal", {"gamma": 1.0}),
    ("over-sampling", "OverSampling", {}),
    ("logit adjustment", "LogitAdjusted", {"tau": 1.0}),
    ("balanced softmax", "BalancedSoftmax", {"tau": 1.0}),
)

#: Long-tailed digits, ratio 20.
DIGITS_LT = Split("digits", ratio=20, n_max=120, order="seed")
#: Long-tailed Fashion-MNIST, ratio 100; 100 images of each class are held out for validation.
FASHION_LT = Split("fashion-mnist", ratio=100, n_max=2000, valid=100, order="seed")
#: Long-tailed MNIST, as `FASHION_LT`.
MNIST_LT = replace(FASHION_LT, data="mnist")
#: Long-tailed CIFAR-10, ratio 100, less 250 validation images of each class.
CIFAR10_LT = Split("cifar10", ratio=100, n_max=4750, valid=250)
#: Long-tailed CIFAR-100, ratio 100, less 25 validation images of each class.
CIFAR100_LT = Split("cifar100", ratio=100, n_max=475, valid=25, draw="file")

#: With 1,000 images in a large class a step-imbalanced run costs as much as a long-tailed one with 2,000.
FASHION_STEP = replace(FASHION_LT, profile="step", n_max=1000)
#: Step imbalance on MNIST, as `FASHION_STEP`.
MNIST_STEP = replace(FASHION_STEP, data="mnist")


def deferred(
    protocol: Protocol, label: str = "deferred re-weighting", method: str = "Weighted", **hyper: Any
) -> tuple[str, str, dict[str, Any]]:
    """A row whose inverse-frequency weights start after four fifths of the epochs, as in the field's protocol.

    The loss is torch's weighted mean, as there: under milestones a mean over samples would learn 5 to 25 times slower.
    """
    return label, method, {**hyper, "start": protocol.epochs * 4 // 5, "reduction": "weights"}
