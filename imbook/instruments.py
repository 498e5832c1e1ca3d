"""Instruments: what is measured of a training run while it runs, and changes nothing in it."""

from typing import Any

import torch
from torch import Tensor, nn


class FeatureGradients:
    """The mean norm of dL/dz of each class over the samples since the last `take`: how hard the loss pulls at features.

    z_i is what the `stage` of `net` puts out for sample i of a training step: before mixing, where a method mixes after
    that stage. dL/dz_i is the gradient of the method's loss times B, the size of the batch: where the loss is a mean
    over samples that do not touch, that of the sample's own loss. Where they touch (mixing, BatchNorm after the stage)
    it is the whole gradient, with what reaches z_i by way of other samples. The norm is Euclidean, over all numbers of
    z_i; the class is the sample's own label y_i, also where labels are mixed.

    A context in which `method` and `net` carry the hooks; nothing waits for the device before `take`. n: (C,), images a
    class. Raises ValueError for a stage that the network does not have or that no gradient reaches, and for several
    labels an image. Derived in chapter 07.
    """

    def __init__(self, net: nn.Module, method: nn.Module, stage: str, n: Tensor | tuple[Tensor, ...]) -> None:
        if isinstance(n, tuple):
            raise ValueError(f"gradients a class need one label an image, here are {len(n)}: leave out the instrument")
        names = [name for name, _ in net.named_modules() if name]
        if stage not in names:
            raise ValueError(f"stage {stage!r}: choose from {', '.join(names)}")
        self.net, self.method, self.stage, self.classes = net, method, stage, len(n)
        self.scale: Tensor | None = None  # a scalar tensor where the loss is scaled before it is differentiated
        self.norms, self.labels = [], []  # of each batch, (B,): summed by `take`, so that a step has one operation more

    def __enter__(self) -> "FeatureGradients":
        self.hooks = [
            self.method.register_forward_pre_hook(self._note_labels),
            self.net.get_submodule(self.stage).register_forward_hook(self._note_features),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def take(self) -> list[float]:
        """The mean norms, a list of C floats (nan for a class without samples); counting starts anew."""
        sizes = torch.tensor([len(y) for y in self.labels])
        norm, y = torch.cat(self.norms).double(), torch.cat(self.labels)
        norm = norm * sizes.repeat_interleave(sizes).to(norm.device)  # B times that of the mean
        if self.scale is not None:  # a step whose gradients overflowed was none
            norm, y = norm[norm.isfinite()], y[norm.isfinite()]
        sums = torch.zeros(2, self.classes, dtype=norm.dtype, device=norm.device)  # norms and samples of each class
        sums.index_add_(1, y, torch.stack([norm, torch.ones_like(norm)]))
        self.norms.clear(), self.labels.clear()
        return (sums[0] / sums[1]).tolist()

    def _note_labels(self, method: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.y = arguments[2]

    def _note_features(self, stage: nn.Module, arguments: tuple[Any, ...], z: Tensor) -> None:
        if not torch.is_grad_enabled():  # an evaluation
            return
        if not z.requires_grad or len(z) != len(self.y):
            raise ValueError(
                f"stage {self.stage!r} puts out {len(z)} rows for {len(self.y)} labels, "
                f"gradient: {z.requires_grad}; choose a stage with parameters in it or before it, one row a sample"
            )
        y = self.y
        z.register_hook(lambda g: self._add(g, y))

    def _add(self, g: Tensor, y: Tensor) -> None:
        wide = torch.promote_types(g.dtype, torch.float32)  # squares overflow in half precision
        norm = torch.linalg.vector_norm(g, dim=tuple(range(1, g.ndim)), dtype=wide)
        self.norms.append(norm if self.scale is None else norm / self.scale)
        self.labels.append(y)
