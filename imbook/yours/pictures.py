"""From the files of a trial to sets of batches and networks."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from imbook import nets
from imbook.data import AnyBatches, Batches, Images, Loader, moments, shift
from imbook.data.pictures import decode
from imbook.yours.look import Files

IN_MEMORY = 1 << 30  # bytes of pixels; above, pictures are read from their files again in each epoch
OWN = ("lenet", "resnet8", "resnet32")  # the book's networks; all other names are torchvision's


class FileSet(Dataset):
    """Some pictures of a set as (x, y), x float32 (3, size, size), normalised; augment: random shift, and flip."""

    def __init__(
        self, files: Files, index: Any, size: int, mean: Sequence[float], std: Sequence[float],
        augment: bool = False, flip: bool = False,
    ) -> None:  # fmt: skip
        self.paths = [str(files.root / files.paths[k]) for k in index]  # texts: cheap to hand to worker processes
        self.targets, self.classes = torch.as_tensor(files.y[index]), list(files.classes)
        self.size, self.augment, self.flip = size, augment, flip
        self.mean, self.std = (torch.tensor(m).view(-1, 1, 1) for m in (mean, std))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        x = read([self.paths[k]], self.size)  # (1, 3, size, size)
        if self.augment:
            top, left = torch.randint(self.size // 4 + 1, (2, 1))
            x = shift(x, top, left, self.size // 8)
            x = x.flip(-1) if self.flip and torch.rand(()) < 0.5 else x
        return (x[0] / 255 - self.mean) / self.std, int(self.targets[k])


def batch_size(train: int) -> int:
    """Pictures per batch, for so many training pictures."""
    return 64 if train >= 1000 else 16


def read(paths: Sequence[str | Path], size: int) -> torch.Tensor:
    """Pictures as uint8 (N, 3, size, size); OSError or ValueError that names the file."""
    from pathlib import Path

    return decode([Path(p) for p in paths], size)


class Sets:
    """The pictures of a trial, in memory where they fit, and batches of any part of them.

    size: pixels of a side; train: the positions whose mean and standard deviation normalise all pictures. `streams`
    says whether pictures are read from their files again in each epoch.
    """

    def __init__(
        self, files: Files, train: np.ndarray, size: int, batch: int, flip: bool = False, device: str = "cpu",
        workers: int = 0,
    ) -> None:  # fmt: skip
        self.files, self.size, self.flip, self.device, self.workers = files, size, flip, device, workers
        self.batch, self.crop = batch, size // 8
        self.streams = len(files.paths) * 3 * size**2 > IN_MEMORY
        some = np.random.default_rng(0).permutation(train)[:2000] if self.streams else np.arange(len(files.paths))
        x = read([files.root / files.paths[k] for k in some], size)
        mean, std = moments(x if self.streams else x[torch.as_tensor(train)])
        self.mean, self.std = mean, tuple(max(s, 1e-3) for s in std)  # pictures of one colour have no deviation
        self.images: Any = None
        if not self.streams:
            self.images = Images(x, torch.as_tensor(files.y), files.classes, self.mean, self.std)

    def protocol(self, **given: Any) -> dict[str, Any]:
        """Arguments of `Protocol` that these batches stand to: batch, crop and flip."""
        own = dict(crop=0, flip=False) if self.streams else dict(crop=self.crop, flip=self.flip)
        return dict(batch=self.batch, **own, **given)

    def train(self, index: Any, seed: int) -> AnyBatches:
        """Shuffled and augmented batches of the pictures at some positions."""
        if not self.streams:
            return Batches(self.images, index, self.batch, seed, self.crop, self.flip, self.device)
        return self._loader(index, seed, augment=True)

    def plain(self, index: Any) -> AnyBatches:
        """Batches for evaluation."""
        if not self.streams:
            return Batches(self.images, index, self.batch, device=self.device)
        return self._loader(index, None, augment=False)

    def _loader(self, index, seed, augment):
        of = lambda augment: FileSet(self.files, index, self.size, self.mean, self.std, augment, self.flip)  # noqa: E731
        many = dict(workers=self.workers, device=self.device)
        return Loader(of(augment), self.batch, seed, plain=of(False), **many)


def check_backbone(name: str, pretrained: bool) -> None:
    """ValueError for a network that neither the book nor torchvision has, or that has no pretrained weights."""
    if name in OWN:
        if pretrained:
            raise ValueError(f"{name} has no pretrained weights: choose a network of torchvision, such as resnet18")
        return
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ValueError(f"unknown network {name!r}: choose {', '.join(OWN)}, or one of torchvision's, as resnet18")


def network(name: str, classes: int, size: int, pretrained: bool) -> tuple[torch.nn.Module, str]:
    """A network with a new classifier, and a sentence that says which weights it starts from.

    pretrained: ask torchvision for its default weights, from its cache or by download; where that fails, weights are
    random and the sentence says why.
    """
    if name in OWN:
        made = nets.lenet(classes, 3, size) if name == "lenet" else getattr(nets, name)(classes)
        return made, "random weights: trained from scratch"
    from torchvision import models

    why = "as asked"
    if pretrained:
        try:
            net, said = models.get_model(name, weights="DEFAULT"), "weights pretrained by torchvision"
            return nets.replace_classifier(net, classes), said
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # no network, a damaged file
            why = f"the pretrained ones could be had neither from torchvision's cache nor by download ({error})"
    net = models.get_model(name, weights=None)
    return nets.replace_classifier(net, classes), f"RANDOM weights: {why}"
