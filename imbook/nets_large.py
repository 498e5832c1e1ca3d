"""Networks for the sets of `imbook.large`: torchvision's, with the book's classifier, and one of DeepID2's size.

In a file of its own because `imbook.nets` needs no torchvision. A stage is named as torchvision names it: 'layer4' is
the last one before pooling.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imbook.nets import replace_classifier

Classes = int | tuple[int, ...]


def resnet10(classes: Classes = 1000) -> nn.Module:
    """The residual network with one block per stage, for 224 x 224 pixels: logits (B, C). ImageNet-LT's of CDB [C].

    torchvision's ResNet of basic blocks; input (B, 3, height, width); a tuple of classes gives a tuple of logits.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    return _ready(ResNet(BasicBlock, [1, 1, 1, 1]), classes)


def resnet18(classes: Classes = 1000) -> nn.Module:
    """torchvision's resnet18 with weights drawn anew; as `resnet10`."""
    from torchvision.models import resnet18 as make

    return _ready(make(), classes)


def resnet50(classes: Classes = 1000) -> nn.Module:
    """torchvision's resnet50 with weights drawn anew; as `resnet10`."""
    from torchvision.models import resnet50 as make

    return _ready(make(), classes)


def r3d_18(classes: Classes = 19) -> nn.Module:
    """torchvision's r3d_18 with its weights of Kinetics-400: input (B, 3, frames, 112, 112), logits (B, C).

    In the place of the 3D ResNeXt-101 that CDB's released code takes [R]. The weights are read from torch's cache, and
    downloaded to it where they are not there; FileNotFoundError that names the file where that fails.
    """
    from torchvision.models.video import R3D_18_Weights
    from torchvision.models.video import r3d_18 as make

    weights = R3D_18_Weights.KINETICS400_V1
    try:
        net = make(weights=weights)
    except OSError as error:  # no network, no disk
        folder = torch.hub.get_dir() + "/checkpoints"
        raise FileNotFoundError(
            f"the weights of r3d_18 are not in {folder} and could not be downloaded ({error}): put {weights.url} there"
        ) from error
    return replace_classifier(net, classes)


class _Both(nn.Module):
    """What the third stage puts out, and the fourth convolution of it, side by side: (B, D)."""

    def __init__(self, inputs: int, maps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, maps, 2)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.flatten(1), F.relu(self.conv(z)).flatten(1)], 1)


def deepid2(classes: Classes = 10_000, channels: int = 3, size: int = 64) -> nn.Sequential:
    """A network of DeepID2's size, four convolutions and a layer of 160 units: stage1 to stage5, head. Logits (B, C).

    CRL used "DeepID2 (5-layer CNN)" for CelebA [S]. Maps 20, 40, 60 and 80, kernels 4, 3, 3 and 2, pooling after the
    first three, 160 units that see the last two stages: as public re-implementations have it [S]. Shared weights in all
    convolutions and square inputs are ours [R]. Input (B, channels, size, size), size at least 31 else ValueError.
    Source: Sun, Chen, Wang, Tang 2014.
    """
    side = size
    for kernel in (4, 3, 3):
        side = (side - kernel + 1) // 2
    if side < 2:
        raise ValueError(f"images of {size} x {size} are too small for this network: at least 31 x 31")
    stage: Any = lambda i, o, k: nn.Sequential(nn.Conv2d(i, o, k), nn.ReLU(), nn.MaxPool2d(2))  # noqa: E731
    net = nn.Sequential()
    net.add_module("stage1", stage(channels, 20, 4))
    net.add_module("stage2", stage(20, 40, 3))
    net.add_module("stage3", stage(40, 60, 3))
    net.add_module("stage4", _Both(60, 80))
    net.add_module("stage5", nn.Sequential(nn.Linear(60 * side**2 + 80 * (side - 1) ** 2, 160), nn.ReLU()))
    net.add_module("head", nn.Linear(160, 1))
    replace_classifier(net, classes)
    return net


def _ready(net: nn.Module, classes: Classes) -> nn.Module:
    return replace_classifier(net, classes).to(memory_format=torch.channels_last)
