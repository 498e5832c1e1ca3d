"""Networks as nn.Sequential of named stages.

`net[:k]` and `net[k:]` cut them, `net[:-1](x)` embeds, `net.head` classifies. `classes` is C for one label an image;
for several it is a tuple of numbers of classes, and the network returns a tuple of logits (see `Heads`).
Chapter 02 opens LeNet; the residual networks are those of He et al. 2016 for CIFAR.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def mlp(inputs, classes, width=64):
    """Two hidden layers: flat, stage1, stage2, head. Input (B, ...) with `inputs` numbers a sample; logits (B, C)."""
    return _stages(
        flat=nn.Flatten(),
        stage1=nn.Sequential(nn.Linear(inputs, width), nn.ReLU()),
        stage2=nn.Sequential(nn.Linear(width, width), nn.ReLU()),
        head=_head(width, classes),
    )


def lenet(classes=10, channels=1, size=28):
    """LeNet-5 with ReLU and max pooling: stage1, stage2, stage3, head. Input (B, channels, size, size); logits (B, C).

    Source: LeCun et al. 1998 (layer widths 6, 16, 120, 84; 61,706 parameters for 28 x 28).
    """
    side = ((size + 4 - 4) // 2 - 4) // 2  # padding 2 and a 5 x 5 kernel, pool, 5 x 5 kernel, pool
    if side < 1:
        raise ValueError(f"images of {size} x {size} are too small for LeNet: at least 12 x 12")
    return _stages(
        stage1=nn.Sequential(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        stage2=nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        stage3=nn.Sequential(nn.Flatten(), nn.Linear(16 * side**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        head=_head(84, classes),
    )


def dos_net_large(classes=10, channels=3, size=32):
    """`dos_net` in its larger form, C20-C50-F500-F120."""
    return dos_net(classes, channels, size, (20, 50), (500, 120))


def dos_net(classes=10, channels=1, size=28, maps=(6, 16), units=(400, 120)):
    """The networks of deep over-sampling, written C6-C16-F400-F120 and C20-C50-F500-F120.

    Stages: stage1, stage2, stage3, stage4, head.
    The paper gives maps and units; 5 x 5 kernels without padding and 2 x 2 max pooling are our choice [R].
    Input (B, channels, size, size); logits (B, C). Source: Ando and Huang 2017.
    """
    side = ((size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"images of {size} x {size} are too small for this network: at least 16 x 16")
    return _stages(
        stage1=nn.Sequential(nn.Conv2d(channels, maps[0], 5), nn.ReLU(), nn.MaxPool2d(2)),
        stage2=nn.Sequential(nn.Conv2d(maps[0], maps[1], 5), nn.ReLU(), nn.MaxPool2d(2)),
        stage3=nn.Sequential(nn.Flatten(), nn.Linear(maps[1] * side**2, units[0]), nn.ReLU()),
        stage4=nn.Sequential(nn.Linear(units[0], units[1]), nn.ReLU()),
        head=_head(units[1], classes),
    )


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a parameter-free shortcut.

    The shortcut is option A: every second pixel, zero channels.
    """

    def __init__(self, inputs, maps, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, maps, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.stride, self.extra = stride, (maps - inputs) // 2

    def forward(self, x):
        z = F.relu(self.bn1(self.conv1(x)), inplace=True)
        z = self.bn2(self.conv2(z))
        if self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, self.extra, self.extra])
        return F.relu(z + x, inplace=True)


def resnet(depth, classes=10, channels=3):
    """A residual network for 32 x 32 images: stem, stage1, stage2, stage3, pool, head.

    depth: 8, 14, 20, 32, ... = 6 k + 2; ValueError for another. Kaiming-normal weights.
    Input (B, channels, 32, 32); logits (B, C). Source: He et al. 2016, section 4.2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth {depth}: a CIFAR residual network has 6 k + 2 layers (8, 14, 20, 32, ...)")
    stage = lambda i, o: nn.Sequential(*(Block(i if b == 0 else o, o, 1 + (b == 0 and i < o)) for b in range(blocks)))  # noqa: E731
    net = _stages(
        stem=nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        ),
        stage1=stage(16, 16),
        stage2=stage(16, 32),
        stage3=stage(32, 64),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head=_head(64, classes),
    )
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return net.to(memory_format=torch.channels_last)  # convolutions then work in this format: 1.1 to 1.3 times faster


def resnet8(classes=10, channels=3):
    """`resnet` with 8 layers."""
    return resnet(8, classes, channels)


def resnet32(classes=10, channels=3):
    """`resnet` with 32 layers: 464,154 parameters for 10 classes."""
    return resnet(32, classes, channels)


def cut(net, stage):
    """k such that net[:k] ends with the named stage and net[k:] goes on from its features; 0 for 'input'.

    Raises ValueError for a stage that the network does not have.
    """
    names = ["input", *(name for name, _ in net.named_children())]
    if stage not in names:
        raise ValueError(f"stage {stage!r}: this network has {', '.join(names)}")
    return names.index(stage)


class CosineHead(nn.Linear):
    """A classifier without bias on the cosine of features and class vectors: (B, D) -> (B, C), values in [-1, 1].

    Source: the normalised head of Cao et al. 2019. Put it in place with `net.head = CosineHead(D, C)`.
    """

    def __init__(self, features, classes):
        super().__init__(features, classes, bias=False)

    def forward(self, z):
        return F.linear(F.normalize(z), F.normalize(self.weight))


class Heads(nn.Linear):
    """A classifier a label, for several labels an image: features (B, D) -> a tuple of logits (B, C_j), one a label.

    classes: the numbers C_j, each at least 2. One linear layer whose outputs are cut: as fast as a single head.
    """

    def __init__(self, features, classes):
        if not classes or min(classes) < 2:
            raise ValueError(f"classes {tuple(classes)}: one number a label, each at least 2")
        super().__init__(features, sum(classes))
        self.classes = tuple(classes)

    def forward(self, z):
        return super().forward(z).split(self.classes, 1)


def prior_bias(net, classes):
    """Set the head's bias to -log((1 - p) / p), p = 1 / classes, as CDB's released code does; returns the net.

    ValueError for several labels an image, which that code does not have, and for a head without a bias.
    """
    if isinstance(net.head, Heads) or net.head.bias is None:
        raise ValueError(
            f"the prior bias is for one label an image and a head with a bias, here is {net.head}: choose a protocol "
            "with prior_bias=False"
        )
    with torch.no_grad():
        net.head.bias.fill_(-torch.tensor(classes - 1.0).log())
    return net


def _head(features, classes):
    return Heads(features, classes) if isinstance(classes, tuple) else nn.Linear(features, classes)


def _stages(**stages):
    return nn.Sequential(OrderedDict(stages))
