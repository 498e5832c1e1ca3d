"""The bridge to torch's DataLoader: mini-batches of any map-style Dataset, read and transformed by worker processes."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from imbook.data.batches import describe, sizes
from imbook.data.images import check_labels
from imbook.data.imbalance import counts
from imbook.distributed import least, own


class Loader:
    """Mini-batches of a Dataset that does not fit in memory or has transforms of its own: trained on like `Batches`.

    Iterating yields x (B, ...) as the dataset's transforms make it, y (B,), or (B, labels), and i (B,): the positions
    of the samples in the dataset. A single sample left over joins the batch before it, as BatchNorm cannot train on
    one. `n`, `y`, `order`, `generator`, `len`, `plain`, `inputs` and `identity` are those of `Batches`; `order` may be
    set before any pass. `crop` and `flip` are None: augmentation is the dataset's. While `fit` trains over several
    ranks each reads its own rows of x alone.

    dataset: map-style, sample k is (x, y), x a float tensor, y a whole number, or a vector of them. labels: of all
    samples, (N,) or (N, labels); default those that the dataset keeps (see `labels_of`), so that none is read for
    them. classes: C, for several labels one number per label; default the number of `dataset.classes`, else the largest
    label + 1, where each class must have a sample. plain: the same samples without augmentation, for `plain` and
    `inputs`, default the dataset itself. batch, seed, device, dtype: as in `Batches`; workers: processes that read, 0
    for none.

    Every sample is read with torch's, Python's and NumPy's global generators set by a number of its own, and they are
    put back afterwards: one seed gives one order and one augmentation, with any number of workers. That number is
    drawn anew at each visit; in `plain`, in `inputs` and without a seed it is the sample's position, so that whatever a
    dataset draws there is the same at every pass.

    Raises ValueError for what is no map-style dataset, for labels that do not fit (see `Images`) and, when it is read,
    for a sample that is not (x, y), whose x is no finite float tensor, whose shape is not that of its batch or whose y
    is not its label, naming its position. Chapter 09 trains with it.
    """

    crop = flip = None

    def __init__(
        self,
        dataset: Any,
        batch: int = 128,
        seed: int | None = None,
        labels: Tensor | Sequence[Any] | None = None,
        classes: int | Sequence[int] | None = None,
        plain: Any = None,
        workers: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        plain = dataset if plain is None else plain
        for some in (dataset, plain):
            _check_map_style(some)
        if len(dataset) == 0 or len(plain) != len(dataset) or batch < 1:
            raise ValueError(
                f"{len(dataset)} samples, {len(plain)} in plain, in batches of {batch}: all must be at least 1, and "
                "plain holds the same samples"
            )
        if classes is None and labels is None:
            classes = _number_of_classes(dataset)
        y = _whole(labels_of(dataset) if labels is None else labels, "labels")
        if len(y) != len(dataset):
            raise ValueError(f"{len(y)} labels for {len(dataset)} samples: give one per sample, in their order")
        told = classes is not None
        if not told:
            largest = y.amax(0).clamp(min=0) + 1
            classes = int(largest) if y.ndim == 1 else tuple(largest.tolist())
        known: Any = classes
        y = check_labels(y, known, gaps=told)
        self.n = counts(y, known) if y.ndim == 1 else tuple(map(counts, y.T, known))  # (C,)
        self.dataset, self.y = dataset, y.to(device)
        self.batch, self.dtype = batch, dtype
        self.order = torch.arange(len(dataset), device=device)
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._readers = tuple(_loader(_Reader(some, y, dtype), workers, self.device) for some in (dataset, plain))

    @property
    def device(self) -> torch.device:
        """Where batches are put."""
        return self.y.device

    def __len__(self) -> int:
        return len(sizes(len(self.order), self.batch, least()))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = self.order.cpu()
        seeds = order
        if self.generator is not None:
            order = order[torch.randperm(len(order), generator=self.generator)]
            seeds = torch.randint(2**31, (len(order),), generator=self.generator)
        parts = sizes(len(order), self.batch, least())
        return self._read(self._readers[0], order.split(parts), seeds.split(parts), own)

    def plain(self, batch: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All N samples once, in order, from the dataset without augmentation: yields x, y, i as above.

        batch: default that of training.
        """
        parts = own(torch.arange(len(self.y))).split(batch or self.batch)
        return self._read(self._readers[1], parts, parts, lambda t: t)

    def inputs(self, i: Tensor) -> Tensor:
        """x of the samples at positions i (B,), without augmentation: (B, ...). Reads in this process."""
        where = i.tolist()
        return self._readers[1].dataset[where, where].to(self.device)

    def identity(self) -> list[Any]:
        """What tells this set from another, as plain data: class counts, N, a hash of labels and file names."""
        return describe(self.n, self.y, *_files(self.dataset))

    def _read(
        self, reader: DataLoader, parts: Sequence[Tensor], seeds: Sequence[Tensor], rows: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        sampler: Any = reader.sampler
        keys = sampler.start([rows(i) for i in parts], [rows(s) for s in seeds])
        for i, x in zip(parts, reader):
            i = i.to(self.device)
            yield x.to(self.device, non_blocking=True), self.y[i], i
            if sampler.keys is not keys and reader.num_workers:
                raise RuntimeError("a new pass began before this one ended: worker processes serve one at a time")


class _Reader(Dataset):
    """What a worker holds: turns (positions, seeds) into one batch x."""

    def __init__(self, dataset: Any, y: Tensor, dtype: torch.dtype) -> None:
        self.dataset, self.y, self.dtype = dataset, y, dtype

    def __getitem__(self, key: tuple[list[int], list[int]]) -> Tensor:
        with _global_generators() as seed_all:
            samples = []
            for i, seed in zip(*key):
                seed_all(seed)
                samples.append(self.check(i, self.dataset[i]))
        for i, x in zip(key[0], samples):
            if x.shape != samples[0].shape:
                raise ValueError(
                    f"sample {i} has x {tuple(x.shape)}, sample {key[0][0]} {tuple(samples[0].shape)}: give all one "
                    "shape, with a resize or crop among the transforms"
                )
        return torch.stack(samples)

    def check(self, i: int, sample: Any) -> Tensor:
        """x of a sample in the type asked for; ValueError where it is not as the `Loader` says."""
        name = f"sample {i} of {type(self.dataset).__name__}"
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(f"{name} is {_brief(sample)}: a sample must be (x, y)")
        x, y = sample
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise ValueError(
                f"x of {name} is {_brief(x)}: it must be a float tensor; for pictures end the transforms with "
                "v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)"
            )
        if not x.isfinite().all():
            raise ValueError(f"x of {name} is not finite: mend that sample or its transforms")
        if not _equal(y, self.y[i]):
            raise ValueError(
                f"{name} comes with y = {y}, but its label is {self.y[i].tolist()}: pass labels= in the order of the "
                "samples, as the dataset gives them after its target_transform"
            )
        return x.to(self.dtype)


class _Keys:
    """The sampler: what DataLoader sends to the workers, set before each pass."""

    keys: tuple[Any, ...] = ()

    def start(self, orders: Sequence[Tensor], seeds: Sequence[Tensor]) -> tuple[Any, ...]:
        self.keys = (orders, seeds)
        return self.keys

    def __iter__(self) -> Iterator[tuple[list[int], list[int]]]:
        return ((i.tolist(), s.tolist()) for i, s in zip(*self.keys))

    def __len__(self) -> int:
        return len(self.keys[0])


def labels_of(dataset: Any) -> Tensor:
    """The labels of a map-style dataset, int64 (N,) or (N, labels), without reading a sample.

    They are its `targets`, `labels`, or the second entries of its `samples` (torchvision's sets have one of these), the
    last tensor of a TensorDataset, those of the whole for a Subset and of the parts for a ConcatDataset. ValueError
    where there are none.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part) for part in dataset.datasets])
    if isinstance(dataset, TensorDataset):
        return _whole(dataset.tensors[-1], "the last tensor")
    for name in ("targets", "labels", "samples"):
        found = getattr(dataset, name, None)
        if found is not None:
            found = [sample[1] for sample in found] if name == "samples" else found
            return _whole(found, f"{type(dataset).__name__}.{name}")
    raise ValueError(
        f"{type(dataset).__name__} keeps no targets, labels or samples: pass labels=, one whole number per sample"
    )


def _whole(labels: Any, name: str) -> Tensor:
    try:
        y = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: {error}; pass labels=, one whole number per sample, 0 to C-1") from error
    if y.ndim not in (1, 2) or y.is_floating_point():
        raise ValueError(f"{name} {tuple(y.shape)} of type {y.dtype}: pass labels=, whole numbers (N,) or (N, labels)")
    return y.long()


def _check_map_style(dataset: Any) -> None:
    name = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise ValueError(f"a {name} is no dataset: give Loader(loader.dataset, batch=..., workers=...)")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"{name} is no map-style dataset: positions and class counts need len(dataset) and dataset[k]; write a "
            "Dataset with both, or read it into imbook.data.Images"
        )


def _number_of_classes(dataset: Any) -> int | None:
    """How many classes a dataset names, None where it names none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return len(names) if isinstance(names, list | tuple) and all(isinstance(c, str) for c in names) else None


def _files(dataset: Any) -> list[str]:
    """The names of a dataset's files below its root; empty where it has none."""
    if isinstance(dataset, Subset):
        files = _files(dataset.dataset)
        return [files[i] for i in dataset.indices] if files else []
    samples = getattr(dataset, "samples", None) or ()
    paths = [os.fspath(s[0]) for s in samples if isinstance(s, tuple | list) and isinstance(s[0], str | os.PathLike)]
    root = os.path.join(os.fspath(getattr(dataset, "root", None) or ""), "")
    return [path.removeprefix(root).replace(os.sep, "/") for path in paths]


def _loader(reader: _Reader, workers: int, device: torch.device) -> DataLoader:
    return DataLoader(
        reader,
        batch_size=None,  # a key is a batch
        sampler=_Keys(),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else each pass draws from torch's global one
    )


@contextmanager
def _global_generators() -> Iterator[Callable[[int], None]]:
    """Within it a function seeds torch's, Python's and NumPy's global generators; afterwards they are as they were."""
    before = torch.default_generator.get_state(), random.getstate(), np.random.get_state()

    def seed_all(seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would reach the GPU as well
        random.seed(seed)
        np.random.seed(seed)

    try:
        yield seed_all
    finally:
        torch.default_generator.set_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


def _equal(y: Any, label: Tensor) -> bool:
    try:
        return torch.equal(torch.as_tensor(y).long(), label)
    except (TypeError, ValueError, RuntimeError):
        return False


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of type {value.dtype}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list) else "")
