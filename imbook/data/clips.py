"""Video clips that stay on the disk: EGTEA Gaze+'s lists, and frames by PyAV, an optional extra of this package."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from imbook.data.files import Listed, Pictures, class_names, lines_of, whole_number

#: The share of the training list that is held out: 1,927 of 8,299 clips in CDB's released code [C].
HELD_OUT = 1927 / 8299


class Clips(Pictures):
    """Video files with a label each, read one by one: sample k is (transform(frames), y), x (3, frames, side, side).

    root, samples, classes: as in `imbook.data.files.Pictures`; frames: how many are taken of each clip, at equal
    distances; transform: from uint8 (frames, 3, height, width) to a float tensor of the same axes. Reading raises
    ImportError without PyAV, FileNotFoundError for a clip that is not there and OSError for a damaged one, naming it.
    """

    def __init__(
        self, root: str | Path, samples: Sequence[tuple[str, int]], classes: tuple[str, ...],
        transform: Callable[[Tensor], Tensor], frames: int = 10,
    ) -> None:  # fmt: skip
        super().__init__(root, samples, classes, transform)
        self.frames = frames

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        path, y = self.samples[k]
        return self.transform(read_frames(path, self.frames)).transpose(0, 1), y


def egtea(folder: Path, split: int = 1) -> dict[str, Listed]:
    """EGTEA Gaze+'s clips with their verbs: {'train' | 'valid' | 'test': (samples, classes)}. Source: Li et al. 2018.

    folder: holds action_annotation/verb_idx.txt (a verb and its number from 1 per line), train_split1.txt and
    test_split1.txt (clip, number of the action, of the verb, of one or more nouns), and the clips as
    cropped_clips/OP01-R01-PastaSalad/OP01-R01-PastaSalad-....mp4.
    The lists have no validation part; held out are the last clips of each verb in the list's order, `HELD_OUT` of them
    and at least one [R]: CDB's released code has as many, but which is not at hand. ValueError that names file and line
    for anything else, and for a verb with fewer than two training clips.
    """
    verbs = folder / "action_annotation/verb_idx.txt"
    names = {}
    for k, line in lines_of(verbs):
        names[whole_number(line[-1], verbs, k) - 1] = " ".join(line[:-1])
    lists = {}
    for part in ("train", "test"):
        path = folder / f"action_annotation/{part}_split{split}.txt"
        some = []
        for k, words in lines_of(path):
            if len(words) < 3:
                raise ValueError(f"{path}, line {k}: a clip and the numbers of its action and verb are expected")
            session = "-".join(words[0].split("-")[:3])
            some.append((f"cropped_clips/{session}/{words[0]}.mp4", whole_number(words[2], path, k) - 1))
        lists[part] = some
    train, valid = [], []
    for verb in sorted({y for _, y in lists["train"]}):
        own = [sample for sample in lists["train"] if sample[1] == verb]
        if len(own) < 2:
            raise ValueError(f"verb {names.get(verb, verb)!r} has {len(own)} training clip: at least 2 are needed")
        held = max(1, round(HELD_OUT * len(own)))
        train += own[:-held]
        valid += own[-held:]
    return {
        part: (some, class_names(names, some, verbs))
        for part, some in {"train": train, "valid": valid, "test": lists["test"]}.items()
    }


def read_frames(path: str | Path, count: int) -> Tensor:
    """`count` frames of a video at equal distances, the first and the last among them: uint8 (count, 3, height, width).

    A shorter video repeats frames. Decoded by PyAV from the start. Raises ImportError without it, FileNotFoundError for
    a file that is not there, OSError for one that cannot be decoded.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("clips are decoded by PyAV: pip install 'imbook[video]', or pip install av") from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"the clip is not there: {path}")
    try:
        with av.open(str(path)) as file:
            total = file.streams.video[0].frames or sum(1 for _ in file.decode(video=0))
        wanted = [round(float(k)) for k in torch.linspace(0, max(total - 1, 0), count)]
        found: dict[int, Tensor] = {}
        with av.open(str(path)) as file:
            for k, frame in enumerate(file.decode(video=0)):
                if k in wanted:
                    found[k] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                if k == wanted[-1]:
                    break
    except (av.FFmpegError, IndexError) as error:
        raise OSError(f"the clip is damaged: {path} ({error})") from error
    if not found:
        raise OSError(f"the clip is damaged: {path} has no frame")
    last = max(found)  # a header may promise more frames than there are
    return torch.stack([found[min(k, last)] for k in wanted])

