"""MNIST-back-rotation, made from MNIST: digits turned by any angle on patches of photographs.

Larochelle et al. 2007 published the set; it was not at hand, and this module makes one by its recipe, on which public
descriptions of it agree [S]: each digit is turned by an angle drawn uniformly from 0 to 2 pi; its background is a patch
drawn at random from pictures without colour; patches with little texture are left out; 12,000 images are for training.
Ando and Huang 2017 use it "ten-fold augmented" [P].

Reconstructed here [R]: the pictures (the two photographs that come with scikit-learn, for the twenty of the original),
the least texture of a patch, which of digit and patch is seen (the lighter one), bilinear turning, what the ten folds
are (each of the 12,000 digits ten times, each time with another angle and another patch), and the test set (MNIST's
10,000 test digits once each; the published one has 50,000). So numbers on it stand beside the paper's, not for them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from imbook.data.images import Images, moments

#: Digits for training, as published, and how often each is drawn [P]; the least standard deviation of a patch [R].
DIGITS, FOLDS, TEXTURE = 12_000, 10, 20.0


def back_rotation(train: Images, test: Images, digits: int = DIGITS, folds: int = FOLDS) -> tuple[Images, Images]:
    """MNIST's training and test set -> those of MNIST-back-rotation: a pair of `Images`, the same at every call.

    The first `digits` training images, `folds` times each, one fold after the other, and all test images once. mean,
    std: of the new training set.
    """
    pictures = photographs()
    where = textured(pictures, test.x.shape[2])
    x = [perturbed(train.x[:digits], pictures, where, seed=fold) for fold in range(folds)]
    made = torch.cat(x), perturbed(test.x, pictures, where, seed=folds)
    constants = moments(made[0])
    return (
        Images(made[0], train.y[:digits].repeat(folds), train.classes, *constants),
        Images(made[1], test.y, test.classes, *constants),
    )


def photographs() -> Tensor:
    """scikit-learn's two photographs without their colours: uint8 (2, 427, 640)."""
    from sklearn.datasets import load_sample_images

    colours = torch.stack([torch.tensor(picture) for picture in load_sample_images().images]).double()
    return (colours @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).round().to(torch.uint8)


def perturbed(x: Tensor, pictures: Tensor, where: Tensor, seed: int) -> Tensor:
    """Each digit turned by an angle of its own, on a patch of its own: uint8 (N, 1, side, side).

    x: uint8 (N, 1, side, side); pictures: uint8 (P, height, width); where: the patches to draw from (K, 3), see
    `textured`; seed: of the angles and patches.
    """
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(len(x), generator=generator)
    chosen = where[torch.randint(len(where), (len(x),), generator=generator)]
    made = torch.empty_like(x)
    for some in torch.arange(len(x)).split(1000):
        digit = turned(x[some], angle[some])
        made[some] = torch.maximum(digit, patches(pictures, chosen[some], x.shape[2]))
    return made


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Images turned about their middle, bilinear, black from outside: uint8 (N, 1, side, side).

    x: uint8, the same shape; angle: radians (N,), counter-clockwise as seen.
    """
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, align_corners=False).round().to(torch.uint8)


def textured(pictures: Tensor, side: int, least: float = TEXTURE) -> Tensor:
    """Where the patches with texture lie: int64 (K, 3), picture, top and left.

    Those of side x side pixels whose standard deviation is at least `least`. pictures: uint8 (P, height, width).
    """
    mean, square = (F.avg_pool2d(p[:, None], side, stride=1) for p in (pictures.double(), pictures.double() ** 2))
    return ((square - mean**2)[:, 0] >= least**2).nonzero()


def patches(pictures: Tensor, where: Tensor, side: int) -> Tensor:
    """The patches at (picture, top, left): uint8 (N, 1, side, side). where: int64 (N, 3)."""
    k = torch.arange(side)
    picture, top, left = where.view(-1, 3, 1, 1).unbind(1)  # (N, 1, 1)
    return pictures[picture, top + k[:, None], left + k][:, None]
