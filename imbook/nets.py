"""The book's networks, and the features and classifier of any network.

The book's networks are nn.Sequential of named stages, the last of them `head`. `classes` is C for one label per image;
for several labels it is a tuple of numbers of classes, and the network returns a tuple of logits (see `Heads`).
Chapter 02 opens LeNet; the residual networks are those of He et al. 2016 for CIFAR.

`classifier`, `replace_classifier`, `features` and `tap` work on any nn.Module. A *stage* is 'input' (x itself), the
name of any submodule as in `net.named_modules()` ('stage3', 'layer4', 'encoder.layers.encoder_layer_1'), or None for
what the classifier is given.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from imbook.distributed import enter, leave


def mlp(inputs: int, classes: int | tuple[int, ...], width: int = 64) -> nn.Sequential:
    """Two hidden layers: flat, stage1, stage2, head. Input (B, ...) with `inputs` numbers a sample; logits (B, C)."""
    return _stages(
        flat=nn.Flatten(),
        stage1=nn.Sequential(nn.Linear(inputs, width), nn.ReLU()),
        stage2=nn.Sequential(nn.Linear(width, width), nn.ReLU()),
        head=_head(width, classes),
    )


def lenet(classes: int | tuple[int, ...] = 10, channels: int = 1, size: int = 28) -> nn.Sequential:
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


def dos_net_large(classes: int | tuple[int, ...] = 10, channels: int = 3, size: int = 32) -> nn.Sequential:
    """`dos_net` in its larger form, C20-C50-F500-F120."""
    return dos_net(classes, channels, size, (20, 50), (500, 120))


def dos_net(
    classes: int | tuple[int, ...] = 10, channels: int = 1, size: int = 28, maps: tuple[int, int] = (6, 16),
    units: tuple[int, int] = (400, 120),
) -> nn.Sequential:  # fmt: skip
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

    def __init__(self, inputs: int, maps: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, maps, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.stride, self.extra = stride, (maps - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(x)), inplace=True)
        z = self.bn2(self.conv2(z))
        if self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, self.extra, self.extra])
        return F.relu(z + x, inplace=True)


def resnet(depth: int, classes: int | tuple[int, ...] = 10, channels: int = 3) -> nn.Sequential:
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


def resnet8(classes: int | tuple[int, ...] = 10, channels: int = 3) -> nn.Sequential:
    """`resnet` with 8 layers."""
    return resnet(8, classes, channels)


def resnet32(classes: int | tuple[int, ...] = 10, channels: int = 3) -> nn.Sequential:
    """`resnet` with 32 layers: 464,154 parameters for 10 classes."""
    return resnet(32, classes, channels)


def classifier(net: nn.Module) -> str:
    """The name of the network's classifier, as in `net.named_modules()`: 'head', or the last linear layer there is.

    'head' (or the last linear layer within it) where the network has a submodule of that name, else the last nn.Linear
    that `named_modules` lists: 'fc', 'classifier.3' and 'heads.head' in torchvision's networks. ValueError without one.
    """
    within = {name: m for name, m in net.named_modules() if name.split(".")[0] == "head"}
    linear = [name for name, m in (within or dict(net.named_modules())).items() if isinstance(m, nn.Linear)]
    if linear or within:
        return linear[-1] if linear else "head"
    raise ValueError(f"{type(net).__name__} has no linear layer to classify: name the layer that does it 'head'")


def replace_classifier(net: nn.Module, classes: int | Sequence[int] | nn.Module, name: str | None = None) -> nn.Module:
    """Put a new classifier in the place of the old one, in any network; returns the network.

    classes: C for nn.Linear(D, C), a tuple of numbers for `Heads`, or the layer itself, such as CosineHead(D, C), D
    being the number of features that the old one takes. name: the layer to replace (default: `classifier(net)`). The
    new layer takes the old one's device and dtype. ValueError for a name that is not there and for another D.

    >>> replace_classifier(resnet8(10), CosineHead(64, 5)).head
    CosineHead(in_features=64, out_features=5, bias=False)
    """
    name = classifier(net) if name is None else name
    old = _submodule(net, name)
    inputs = getattr(old, "in_features", None)  # D
    if isinstance(classes, nn.Module):
        new = classes
    elif inputs is None:
        raise ValueError(f"{name!r} is {old}, which does not say how many features it takes: pass a layer")
    else:
        new = _head(inputs, tuple(classes) if isinstance(classes, list | tuple) else classes)
    if inputs is not None and getattr(new, "in_features", inputs) != inputs:
        raise ValueError(f"{name!r} takes {inputs} features, the new layer takes {new.in_features}: make it fit")
    like = next(old.parameters(), None)
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, new if like is None else new.to(like))
    return net


def features(net: nn.Module, x: Tensor, stage: str | None = None) -> Tensor:
    """z, what `stage` puts out for x, the features that the classifier is given where stage is None: (B, ...).

    The network runs as far as that stage, where it is called for the first time: what comes later is neither computed
    nor, as BatchNorm is, updated. ValueError as `tap`.
    """

    def stop(z: Tensor) -> Tensor:
        raise _Reached(z)

    try:
        tap(net, x, {stage: stop})
    except _Reached as reached:
        found = reached.z
    return found


def tap(net: nn.Module, x: Tensor, changes: Mapping[str | None, Callable[[Tensor], Tensor]]) -> Any:
    """net(x), where what some stages put out is replaced on its way: h (B, C), or a tuple of logits.

    changes: {stage: function}; each function is given what its stage puts out, z (B, ...), and returns what goes on
    from there: z itself, if it only reads. It may return more rows than it was given, and it may call the network.
    Uses forward hooks, so it needs no network of a particular form; it adds no operation of its own.

    ValueError for a stage that the network does not have (it lists those there are), that is not called or is called
    more than once in a pass, that puts out anything but one tensor with a row for each of the B samples, or whose
    output is read and then overwritten by the next layer, such as ReLU(inplace=True).
    """
    taps = _Taps(net, len(x), changes)
    try:
        return taps.finish(net(enter(changes["input"](leave(x))) if "input" in changes else x))
    finally:
        taps.remove()


class _Reached(Exception):
    """Ends the pass of `features`: the stage is reached."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z


class _Taps:
    """The hooks of one pass, and what they have seen: {stage: (what it put out, the version of that tensor)}."""

    def __init__(self, net: nn.Module, rows: int, changes: Mapping[str | None, Callable[[Tensor], Tensor]]) -> None:
        self.net, self.rows, self.changes, self.busy = net, rows, changes, False
        self.seen: dict[str | None, tuple[Tensor, int | None]] = {}
        layers = {s: net.get_submodule(classifier(net)) if s is None else _submodule(net, s) for s in self._stages()}
        self.hooks = [self._before(layer) if s is None else self._after(layer, s) for s, layer in layers.items()]

    def _stages(self) -> list[str | None]:
        return [stage for stage in self.changes if stage != "input"]

    def _before(self, layer: nn.Module) -> RemovableHandle:
        return layer.register_forward_pre_hook(lambda _, given: (self._apply(None, given[0]), *given[1:]))

    def _after(self, layer: nn.Module, stage: str | None) -> RemovableHandle:
        return layer.register_forward_hook(lambda _, given, z: self._apply(stage, z))

    def _apply(self, stage: str | None, z: Any) -> Any:
        if self.busy:  # a change calls the network itself
            return z
        if not isinstance(z, torch.Tensor) or z.ndim < 1 or len(z) != self.rows:
            found = f"a tensor {tuple(z.shape)}" if isinstance(z, torch.Tensor) else f"a {type(z).__name__}"
            raise ValueError(f"{self._name(stage)} puts out {found} for {self.rows} samples: choose another stage")
        if stage in self.seen:
            raise ValueError(f"{self._name(stage)} is called more than once in a pass: choose another stage")
        self.busy = True
        z = leave(z)
        out = enter(self.changes[stage](z))
        self.busy = False
        self.seen[stage] = z, None if z.is_inference() else z._version
        return out

    def finish(self, h: Any) -> Any:
        """h, once all is well."""
        for stage in self._stages():
            if stage not in self.seen:
                raise ValueError(f"{self._name(stage)} is not called in a pass of the network: choose another stage")
            z, version = self.seen[stage]
            if version is not None and z._version != version:
                raise ValueError(f"{self._name(stage)} puts out what the next layer overwrites: name that next layer")
        return h

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _name(self, stage: str | None) -> str:
        return f"the input of {classifier(self.net)!r}" if stage is None else f"stage {stage!r}"


def _submodule(net: nn.Module, name: str) -> nn.Module:
    """The submodule of that name. ValueError that lists the names there are."""
    there = dict(net.named_modules())
    if name in there and name != "":
        return there[name]
    names = ["input", *sorted(filter(None, there), key=lambda some: some.count("."))]  # the outer ones first
    more = ", ... (all: net.named_modules())" if len(names) > 40 else ""
    raise ValueError(f"stage {name!r}: this network has {', '.join(names[:40])}{more}")


class CosineHead(nn.Linear):
    """A classifier without bias on the cosine of features and class vectors: (B, D) -> (B, C), values in [-1, 1].

    Its class vectors start with a random direction and length 1, as in the released code.
    Source: the normalised head of Cao et al. 2019. Put it in place with `replace_classifier(net, CosineHead(D, C))`.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes, bias=False)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1)))  # (C, D), rows of length 1

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(F.normalize(z), F.normalize(self.weight))


class Heads(nn.Linear):
    """A classifier per label, for several labels per image: features (B, D) -> a tuple of logits (B, C_j).

    classes: the numbers C_j, each at least 2. One linear layer whose outputs are cut: as fast as a single classifier.
    """

    def __init__(self, features: int, classes: Sequence[int]) -> None:
        if not classes or min(classes) < 2:
            raise ValueError(f"classes {tuple(classes)}: one number a label, each at least 2")
        super().__init__(features, sum(classes))
        self.classes = tuple(classes)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(z).split(self.classes, 1)


def prior_bias(net: nn.Module, classes: int) -> nn.Module:
    """Start the classifier as CDB's released code does; returns the network.

    The weight is drawn anew by torch's default for nn.Linear, from the global generator; the bias is
    -log((1 - p) / p), p = 1 / classes. ValueError for several labels per image, which that code does not have, and for
    a classifier without a bias.
    """
    layer: Any = net.get_submodule(classifier(net))
    if isinstance(layer, Heads) or getattr(layer, "bias", None) is None:
        raise ValueError(
            f"the prior bias is for one label per image and a classifier with a bias, here is {layer}: choose a "
            "protocol with prior_bias=False"
        )
    layer.reset_parameters()
    with torch.no_grad():
        layer.bias.fill_(-torch.tensor(classes - 1.0).log())
    return net


def _head(features: int, classes: Any) -> nn.Linear:
    return Heads(features, classes) if isinstance(classes, tuple) else nn.Linear(features, classes)


def _stages(**stages: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(stages))
