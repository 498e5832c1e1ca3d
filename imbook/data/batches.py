"""Mini-batches of a set that lies on the device. Chapter 02 builds `Batches` step by step."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imbook.data.images import Images
from imbook.data.imbalance import class_counts
from imbook.distributed import least, own


class Batches:
    """Mini-batches of a training or evaluation set that is resident on the device.

    Iterating yields x (B, channels, height, width) normalised, y (B,), or (B, labels) where an image has several, and
    i (B,): the positions of the samples in this set, 0 to N-1. The last batch may be smaller; a single image left over
    joins the batch before it, as BatchNorm cannot train on one. `n` holds the images per class, (C,), or a tuple of
    such counts, one per label. While `fit` trains over several ranks (see `imbook.distributed`) x holds the rank's own
    rows of the batch, and `plain` yields its own samples.

    images: `Images`; index: positions in them, or a mask (N,), default all; batch: B; seed: reshuffle at each pass with
    a generator of our own (None: in order); crop: pixels of zero padding, added before normalising, for a random crop
    (0: none); flip: random horizontal flips. `order` (any number of positions, repeats allowed) is what one pass
    visits: a method that over-samples sets it. dtype: of x, also float64, bfloat16 or float16.
    ValueError for positions that are not there, for a set or a batch of nothing, and for a channel with std 0.
    """

    def __init__(
        self, images: Images, index: Tensor | Sequence[int] | None = None, batch: int = 128, seed: int | None = None,
        crop: int = 0, flip: bool = False, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        index = torch.arange(len(images.y)) if index is None else as_positions(index, len(images.y))
        if len(index) == 0 or batch < 1:
            raise ValueError(f"{len(index)} images in batches of {batch}: both must be at least 1")
        if crop < 0:
            raise ValueError(f"crop {crop}: pixels of padding, 0 or more")
        if min(images.std) == 0:
            raise ValueError(f"std {images.std}: a channel of equal pixels cannot be normalised: leave it out")
        self.x = images.x[index].to(device)  # (N, channels, height, width), uint8, or float in [0, 1]
        self.y = images.y[index].to(device)  # (N,)
        self.n = class_counts(self.y, images.classes)  # (C,)
        self.order = torch.arange(len(index), device=device)
        self.batch, self.crop, self.flip = batch, crop, flip
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        self.dtype = dtype
        channel: Any = dict(dtype=torch.promote_types(dtype, torch.float32), device=device)  # half: result only
        one = 255 if self.x.dtype == torch.uint8 else 1  # what x / one = 1 is in x
        self.mean = torch.tensor(images.mean, **channel).view(-1, 1, 1) * one
        self.scale = 1 / (torch.tensor(images.std, **channel).view(-1, 1, 1) * one)

    @property
    def device(self) -> torch.device:
        """Where x and y lie."""
        return self.y.device

    def __len__(self) -> int:
        return len(sizes(len(self.order), self.batch, least()))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for i in self.positions():
            x, y = self.take(i)
            yield own(x), y, i

    def positions(self) -> tuple[Tensor, ...]:
        """The batches of one pass as positions alone, a tuple of int64 (B,): shuffles."""
        order = self.order
        if self.generator is not None:
            order = order[torch.randperm(len(order), generator=self.generator, device=order.device)]
        return order.split(sizes(len(order), self.batch, least()))

    def take(self, i: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of the batch at positions i (B,): augments."""
        return self.normalise(self.augment(self.x[i])), self.y[i]

    def plain(self, batch: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All N samples once, in order, without augmentation: yields x, y, i as above; uses no random numbers.

        batch: default 250, and 2,000 on a GPU, where launching many small batches would take longer than the work.
        """
        batch = batch or (2000 if self.y.is_cuda else 250)
        for i in own(torch.arange(len(self.y), device=self.y.device)).split(batch):
            yield self.inputs(i), self.y[i], i

    def normalise(self, x: Tensor) -> Tensor:
        """Pixels (B, channels, height, width) -> (x / 255 - mean) / std in this set's dtype; floats are not divided."""
        return ((x.to(self.mean.dtype) - self.mean) * self.scale).to(self.dtype)

    def inputs(self, i: Tensor) -> Tensor:
        """x of the samples at positions i (B,), normalised, without augmentation: (B, channels, height, width)."""
        return self.normalise(self.x[i])

    def identity(self) -> list[Any]:
        """What tells this set from another, as plain data: class counts, N, a hash of pixels, labels and moments."""
        return describe(self.n, self.y, self.x, self.mean, self.scale)

    def augment(self, x: Tensor) -> Tensor:
        """A random crop after zero padding, and a random flip: pixels in, pixels out, the same type and shape."""
        draw_ints = lambda high: torch.randint(high, (len(x),), generator=self.generator, device=x.device)  # noqa: E731
        if self.crop:
            top, left = draw_ints(2 * self.crop + 1), draw_ints(2 * self.crop + 1)
            x = shift(x, top, left, self.crop)
        if self.flip:
            x = torch.where(draw_ints(2).bool().view(-1, 1, 1, 1), x.flip(-1), x)
        return x


def shift(x: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Pad x with zeros on all sides and cut windows of the old size at (top, left), one a sample.

    x: (B, channels, height, width); top, left: int64 (B,), 0 to 2 * padding; returns the shape of x.
    """
    windows = F.pad(x, [padding] * 4).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def sizes(n: int, batch: int, least: int = 2) -> list[int]:
    """The sizes of the batches of one pass over n samples, a list of ints; fewer than `least` join the one before.

    >>> sizes(10, 4), sizes(9, 4), sizes(1, 4)
    ([4, 4, 2], [4, 5], [1])
    """
    full, rest = divmod(n, batch)
    if rest < least and full:
        return [batch] * (full - 1) + [batch + rest]
    return [batch] * full + [rest] * (rest > 0)


def as_positions(index: Tensor | Sequence[int], n: int) -> Tensor:
    """Positions among n samples, int64 (N,): a mask (n,) becomes the positions where it is True.

    ValueError for a mask of another length and for what is no position from 0 to n-1.
    """
    index = torch.as_tensor(index)
    if index.dtype == torch.bool and index.shape == (n,):
        return torch.nonzero(index).flatten()
    if index.dtype == torch.bool or index.ndim != 1 or (len(index) and index.is_floating_point()):
        raise ValueError(
            f"index {tuple(index.shape)} of type {index.dtype}: give whole positions (any number,), or a mask ({n},)"
        )
    index = index.long()
    if (wrong := (index < 0) | (index >= n)).any():
        raise ValueError(f"index has position {index[wrong][0]}: positions among {n} images are 0 to {n - 1}")
    return index


def describe(n: Tensor | tuple[Tensor, ...], y: Tensor, *content: Tensor | str) -> list[Any]:
    """Plain data that tell one set of batches from another: [class counts, N, 16 hex digits of a sha256].

    n: as `Batches.n`; y: the labels; content: what else makes the set, tensors or texts.
    """
    digest = hashlib.sha256()
    for part in (y, *content):
        if isinstance(part, torch.Tensor):
            digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
            digest.update(part.cpu().contiguous().numpy())  # type: ignore[arg-type]
        else:
            digest.update(str(part).encode())
    counts = [k.tolist() for k in n] if isinstance(n, tuple) else n.tolist()
    return [counts, len(y), digest.hexdigest()[:16]]
