"""Picture files to tensors: one reader for folders, tables and attribute sets."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

#: Pillow's modes whose values have one meaning: 8 bits or fewer per channel, and 16 bits of grey.
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(paths: Sequence[Path], size: int, channels: int = 3) -> Tensor:
    """The middle square of each picture, resized: uint8 (N, channels, size, size).

    channels: 3 (grey pictures repeat their channel) or 1 (colours become grey). Palettes are looked up, transparency
    is left out, 16 bits of grey are scaled to 8, a photo is turned as its EXIF data says; of several frames the first
    is read. Raises FileNotFoundError for a picture that is not there, OSError for one that cannot be read, ValueError
    for one whose mode has no fixed range (floats, 32-bit integers, LAB), each naming the file.
    """
    if size < 1 or channels not in (1, 3):
        raise ValueError(f"size {size}: at least 1 pixel; channels {channels}: 1 or 3")
    for k, path in enumerate(paths):
        if not path.is_file():
            raise FileNotFoundError(f"picture {k + 1} of {len(paths)} is not there: {path}")
    x = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)

    def read(k: int) -> None:
        try:
            with Image.open(paths[k]) as file:
                file.load()
                picture = ImageOps.exif_transpose(file)
                picture.format = file.format
        except Exception as error:  # Pillow's readers raise many kinds
            raise OSError(f"picture {k + 1} of {len(paths)} is damaged: {paths[k]} ({error})") from error
        picture = _eight_bits(picture, paths[k]).convert("RGB" if channels == 3 else "L")
        x[k] = TF.pil_to_tensor(TF.resize(TF.center_crop(picture, min(picture.size)), [size, size]))

    with ThreadPoolExecutor() as pool:  # decoding releases Python's lock
        for chunk in torch.arange(len(paths)).split(1000):
            list(pool.map(read, chunk.tolist()))
    return x


def _eight_bits(picture: Image.Image, path: Path) -> Image.Image:
    """The picture in a mode of 8 bits; 16 bits of grey are divided by 257, so that 65535 becomes 255."""
    sixteen = picture.mode in SIXTEEN_BITS or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if sixteen:
        return Image.fromarray((np.asarray(picture).astype(np.int64) / 257).round().astype(np.uint8))
    if picture.mode not in EIGHT_BITS:
        raise ValueError(
            f"{path} has mode {picture.mode!r} ({picture.format}), whose values have no fixed range: save it with 8 "
            "or 16 bits per pixel, or scale it in a Dataset of your own (imbook.data.Loader)"
        )
    return picture.convert("RGBA") if "transparency" in picture.info else picture
