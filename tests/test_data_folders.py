"""A reader's own pictures: one folder per class, a table, every mode that a picture may have, and all that is wrong."""

import io
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from imbook import data
from imbook.data.pictures import decode


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path, seed=0, size=(6, 6), mode="RGB"):
    """A picture of noise in a mode, (height, width) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, *size, 3)).convert(mode).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Classes 'b', 'a cat' and 'Käse 2' with 3, 2 and 1 pictures, one of them in a folder within its class."""
    names = ("b/1.png", "b/10.PNG", "b/2.jpg", "a cat/x y.bmp", "a cat/deep/er.png", "Käse 2/ö.png")
    for k, name in enumerate(names):
        picture(tmp_path / "set" / name, k, size=(6, 6))
    return tmp_path / "set"


# Folders


def test_a_folder_is_what_torchvision_reads(root):
    images = data.folder(root, size=6)
    twin = ImageFolder(root, v2.PILToTensor())
    assert images.classes == tuple(twin.classes) == ("Käse 2", "a cat", "b") and not images.labels
    assert torch.equal(images.x, torch.stack([x for x, _ in twin])) and images.y.tolist() == twin.targets
    assert (images.mean, images.std) == data.moments(images.x) and images.x.dtype == torch.uint8


def test_size_and_channels(root):
    assert data.folder(root).x.shape == (6, 3, 64, 64)
    grey = data.folder(root, size=5, channels=1)
    assert grey.x.shape == (6, 1, 5, 5) and len(grey.mean) == 1
    wide = picture(root / "b/0.png", 9, size=(4, 10))
    cut = Image.open(wide).crop((3, 0, 7, 4))
    position = data.folder(root, size=4).y.tolist().index(2)
    assert torch.equal(data.folder(root, size=4).x[position], v2.PILToTensor()(cut)), "the middle square"
    for wrong in (dict(size=0), dict(channels=2)):
        with pytest.raises(ValueError, match="size .* at least 1 pixel; channels .*: 1 or 3"):
            data.folder(root, **wrong)


def test_a_test_set_is_read_like_the_training_set(root, tmp_path):
    train = data.folder(root, size=7, channels=1)
    picture(tmp_path / "test/b/1.png")
    test = data.folder(tmp_path / "test", like=train)
    assert test.classes == train.classes and test.y.tolist() == [2] and test.gaps
    assert (test.mean, test.std) == (train.mean, train.std) and test.x.shape == (1, 1, 7, 7)
    assert data.Batches(test).n.tolist() == [0, 0, 1]
    picture(tmp_path / "test/dog/1.png")
    with pytest.raises(ValueError, match=r"class 'dog', which is not among those of training: \['Käse 2', 'a cat'"):
        data.folder(tmp_path / "test", like=train)


def test_what_is_left_out_is_told(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = data.folder(root, size=4)
    for name in ("b/.DS_Store", "b/notes.txt", "b/.hidden.png", "outside.png", "b/.cache/x.png", ".git/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r": 6 left out, .* class: .git, outside.png, b/.cache, .*, \.\.\."):
        after = data.folder(root, size=4)
    assert torch.equal(before.x, after.x) and before.classes == after.classes
    for name in ("b/.DS_Store", "b/.hidden.png", "outside.png", "b/.cache/x.png"):
        (root / name).unlink()
    with pytest.warns(UserWarning, match="left out, no pictures of a class: .*notes.txt$"):
        data.folder(root, size=4)


def test_a_name_that_two_systems_write_differently_is_one_class(root, tmp_path):
    picture(tmp_path / "test" / "Ka\u0308se 2" / "1.png")
    assert data.folder(tmp_path / "test", size=4, like=data.folder(root, size=4)).y.tolist() == [0]
    picture(root / "Ka\u0308se 2" / "1.png")
    with pytest.raises(ValueError, match="has two folders that read 'Käse 2': merge them"):
        data.folder(root, size=4)


def test_a_tilde_is_the_home(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(data.folder("~/set", size=4).y) == 6
    (root.parent / "set.csv").write_text("image,label\nset/b/1.png,0\nset/b/2.jpg,1\n")
    assert len(data.table("~/set.csv", size=4).y) == len(data.table("~/set.csv", root="~", size=4).y) == 2
    monkeypatch.setenv("IMBOOK_DATA", "~/x")
    assert data.data_root() == root.parent / "x"
    with pytest.raises(FileNotFoundError, match=f"mnist is missing or damaged in {root.parent}/y/MNIST"):
        data.load("mnist", "~/y")


def test_folders_that_do_not_fit(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder: give the folder that holds one folder per"):
        data.folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="1.png is no folder"):
        data.folder(root / "b/1.png")
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="class 'empty' has no pictures in .*empty: add some, or remove the folder"):
        data.folder(root)
    (root / "empty/a.txt").write_text("no picture")
    with pytest.raises(ValueError, match="class 'empty' has no pictures"):
        data.folder(root)


def test_one_class_only_or_none(root, tmp_path):
    picture(tmp_path / "one/a/1.png")
    with pytest.raises(ValueError, match=r"one has 1 class \['a'\]: put the pictures of each class in a folder"):
        data.folder(tmp_path / "one")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match=r"b has 0 class \[\]"):
        data.folder(root / "b")


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_a_picture_that_cannot_be_read_is_named(content, root):
    bad = root / "a cat/x y.png"
    whole = picture(bad, size=(40, 40)).read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(OSError, match="picture 3 of 7 is damaged: .*a cat/x y.png"):
        data.folder(root, size=4)


def test_every_flipped_byte_is_read_or_named(tmp_path):
    whole = bytearray(picture(tmp_path / "a.png").read_bytes())
    seen = set()
    for k in range(len(whole)):
        broken = bytearray(whole)
        broken[k] ^= 255
        (tmp_path / "a.png").write_bytes(broken)
        try:
            decode([tmp_path / "a.png"], 4)
        except (OSError, ValueError) as error:
            assert "a.png" in str(error)
            seen.add(type(error))
    assert OSError in seen


# Modes


def read(tmp_path, image, name="a.png", channels=3, **save):
    image.save(tmp_path / name, **save)
    return decode([tmp_path / name], image.size[0], channels)[0]


MADE = Image.fromarray(noise(1, 6, 6, 3))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_modes_of_8_bits(mode, tmp_path):
    image = MADE.convert(mode)
    rgb = torch.from_numpy(np.array(image.convert("RGBA").convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read(tmp_path, image), rgb)
    grey = read(tmp_path, image, channels=1)
    assert grey.shape == (1, 6, 6)
    if mode in ("1", "L", "LA"):
        assert torch.equal(read(tmp_path, image), grey.expand(3, 6, 6))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_modes_of_photographs(mode, tmp_path):
    flat = Image.new("RGB", (6, 6), (200, 30, 90)).convert(mode)
    name, save = ("a.tif", {}) if mode == "CMYK" else ("a.jpg", dict(quality=100))
    assert (read(tmp_path, flat, name, **save).float().mean((1, 2)) - torch.tensor([200.0, 30, 90])).abs().max() < 3


def test_a_palette_with_transparency(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = read(tmp_path, MADE.quantize(5), transparency=bytes([0, 100, 255, 3, 9]))
    assert torch.equal(x, torch.from_numpy(np.array(MADE.quantize(5).convert("RGB"))).permute(2, 0, 1))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_of_grey_are_scaled(name, tmp_path):
    values = np.array([[0, 256, 257, 32767], [32768, 40000, 65278, 65535], [1, 128, 129, 385], [9, 99, 999, 9999]])
    x = read(tmp_path, Image.fromarray(values.astype(np.uint16)), name)
    assert torch.equal(x, torch.from_numpy(np.round(values / 257).astype(np.uint8)).expand(3, 4, 4))
    assert x.max() == 255 and x[0, 0].tolist() == [0, 1, 1, 127]


def test_big_endian_16_bits(tmp_path):
    values = np.array([[0, 257 * 100], [257 * 7, 65535]], dtype=np.uint16)
    image = Image.frombytes("I;16B", (2, 2), values.astype(">u2").tobytes())
    assert read(tmp_path, image, "a.tif", channels=1)[0].tolist() == [[0, 100], [7, 255]]


@pytest.mark.parametrize(
    "image, mode",
    [
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "F"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "I"),
        (Image.new("LAB", (4, 4)), "LAB"),
    ],
    ids=["floats", "32 bits", "lab"],
)
def test_modes_without_a_fixed_range_are_refused_by_name(image, mode, tmp_path):
    with pytest.raises(ValueError, match=f"a.tif has mode '{mode}' .TIFF., whose values have no fixed range"):
        read(tmp_path, image, "a.tif")


def test_mixed_modes_and_sizes_come_together(tmp_path):
    for k, mode in enumerate(("L", "RGBA", "P", "RGB", "1", "LA")):
        picture(tmp_path / "set" / "ab"[k % 2] / f"{mode}.png", k, size=(5 + k, 9), mode=mode)
    Image.fromarray(noise(0, 5, 5).astype(np.uint16) * 257).save(tmp_path / "set/a/sixteen.png")
    assert data.folder(tmp_path / "set", size=5).x.shape == (7, 3, 5, 5)


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right shows it upright
    image = Image.fromarray(np.repeat(np.array([[0, 255], [0, 255]], np.uint8), 8, 0).repeat(8, 1))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=100)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    x = decode([tmp_path / "a.jpg"], 16, 1)[0, 0].float()
    assert x[:6].mean() < 20 and x[10:].mean() > 235, "left is now up"


# Tables


@pytest.fixture
def table(root, tmp_path):
    def write(text, encoding="utf-8"):
        (tmp_path / "list.csv").write_bytes(text.encode(encoding))
        return tmp_path / "list.csv"

    return write


ROWS = "image,label,colour\nset/b/1.png,10,red\nset/a cat/x y.bmp,9,blue\nset/Käse 2/ö.png,10,red\n"


def test_a_table_of_one_label(table, root):
    images = data.table(table(ROWS), size=6)
    assert images.classes == ("9", "10") and images.y.tolist() == [1, 0, 1] and images.labels == ()
    expected = decode([root / "b/1.png", root / "a cat/x y.bmp", root / "Käse 2/ö.png"], 6)
    assert torch.equal(images.x, expected) and (images.mean, images.std) == data.moments(expected)
    other = data.table(table(ROWS.replace("image", "file")), image="file", label="colour", channels=1)
    assert other.classes == ("blue", "red") and other.y.tolist() == [1, 0, 1] and other.x.shape == (3, 1, 64, 64)


def test_a_table_of_several_labels(table):
    images = data.table(table(ROWS), label=("colour", "label"), size=4)
    assert images.labels == ("colour", "label") and images.classes == (("blue", "red"), ("9", "10"))
    assert images.y.tolist() == [[1, 1], [0, 0], [1, 1]]
    test = data.table(table("image,label,colour\nset/b/1.png,9,red\n"), label=("colour", "label"), like=images)
    assert test.y.tolist() == [[1, 0]] and test.x.shape == (1, 3, 4, 4) and test.mean == images.mean


def test_classes_of_a_table_may_be_given(table, root):
    train = data.table(table(ROWS), size=5, classes=("9", "10", "11"))
    assert train.classes == ("9", "10", "11") and data.Batches(train).n.tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match=r"row 1: label is '10', which is not among \['9', '8'\]"):
        data.table(table(ROWS), classes=("9", "8"))
    test = data.table(table("image,label\nset/b/1.png,9\n"), like=train)
    assert test.y.tolist() == [0] and test.classes == train.classes and test.std == train.std
    for wrong in (dict(label=("label",)), dict(classes=("9", "10"))):
        with pytest.raises(ValueError, match="like has the classes .*: give no others"):
            data.table(table(ROWS), like=train, **wrong)


@pytest.mark.parametrize(
    "text, encoding, message",
    [
        (ROWS.replace(",", ";"), "utf-8", r"has no column \['image', 'label'\]: choose from \['image;label;colour'\]"),
        (ROWS, "latin-1", "list.csv cannot be read as a CSV file in UTF-8"),
        ("", "utf-8", "list.csv cannot be read as a CSV file"),
        ('image,label\n"set/b/1.png,1\n', "utf-8", "list.csv cannot be read as a CSV file"),
        ("image,label\n", "utf-8", "has no rows"),
        ("image,label\nset/b/1.png,\n", "utf-8", "row 1: 'label' is empty"),
        ("image,label\nset/b/1.png,x\nset/b/2.jpg,x\n", "utf-8", r"classes \['x'\] of 'label': two or more"),
    ],
)
def test_tables_that_do_not_fit(text, encoding, message, table):
    with pytest.raises(ValueError, match=message):
        data.table(table(text, encoding), size=4)


def test_a_table_with_a_mark_of_its_encoding(table):
    assert data.table(table(ROWS, "utf-8-sig"), size=4).y.tolist() == [1, 0, 1]


def test_pictures_of_a_table_that_are_not_there(table, tmp_path):
    with pytest.raises(FileNotFoundError, match="picture 2 of 3 is not there: .*x y.png"):
        data.table(table(ROWS.replace("x y.bmp", "x y.png")))
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        data.table(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("k", range(3))
def test_the_examples_of_the_book_run(k, tmp_path, monkeypatch):
    for part in ("train", "test"):
        rows = ["file,species"]
        for j, species in enumerate(("great tit", "wren")):
            for name in (f"{species}/{n}.png" for n in range(3)):
                picture(tmp_path / "birds" / part / name, seed=j)
                rows.append(f"{part}/{name},{species}")
        (tmp_path / f"birds/{part}.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "book/data.md").read_text()
    names = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[k].replace("workers=4", "workers=1"), names)
    x, y, i = next(iter(names["batches"]))
    assert x.shape == (6, 3, 64, 64) and y.bincount().tolist() == [3, 3] == names["batches"].n.tolist()
    if k < 2:
        assert names["test"].mean == names["train"].mean and names["test"].classes == ("great tit", "wren")


def test_what_is_read_is_trained_on(root):
    images = replace(data.folder(root, size=4), mean=(0.5,) * 3)
    x, y, i = next(iter(data.Batches(images, batch=6, seed=0)))
    assert x.shape == (6, 3, 4, 4) and torch.equal(y, images.y[i])
