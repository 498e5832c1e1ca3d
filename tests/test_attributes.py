"""Attribute sets: small made sets in the formats of CelebA, DeepFashion and CSV, and everything that may be wrong."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CelebA

from imbook import attributes, metrics, nets
from imbook.data import Batches
from imbook.methods import CrossEntropy
from imbook.train import Protocol, evaluate, fit


def picture(path, seed, width=18, height=22):
    """A picture of noise; returns its pixels as a reader will find them, (height, width, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    with Image.open(path) as file:
        return np.asarray(file)


def square(pixels, size):
    """The slow twin: cut the middle square by hand, let PIL resize it: uint8 (3, size, size)."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    cut = Image.fromarray(pixels[top : top + side, left : left + side])
    return torch.from_numpy(np.array(cut.resize((size, size), Image.Resampling.BILINEAR))).permute(2, 0, 1)


def check_moments(parts):
    x = parts[0].x.double() / 255
    for images in parts:
        assert images.mean == pytest.approx(x.mean((0, 2, 3)).tolist())
        assert images.std == pytest.approx(x.std((0, 2, 3), correction=0).tolist())


def learns_something(images):
    """One epoch through the package: a head a label, one confusion matrix a label."""
    torch.manual_seed(0)
    train = Batches(images, batch=2, seed=0)
    net = nets.resnet8(tuple(map(len, images.classes)))
    fit(net, CrossEntropy(train.n), train, protocol=Protocol("one", epochs=1, batch=2))
    scores, y = evaluate(net, train)
    matrices = [metrics.confusion(s, y[:, j]) for j, s in enumerate(scores)]
    assert [m.shape[0] for m in matrices] == list(map(len, images.classes))
    assert all(m.sum() == len(images.y) for m in matrices)
    assert [n.tolist() for n in train.n] == [m.sum(1).tolist() for m in matrices]


# CelebA

NAMES = ("5_o_Clock_Shadow", "Bald", "Young")
VALUES = torch.tensor([[-1, 1, 1], [1, -1, 1], [-1, -1, 1], [-1, -1, -1], [1, -1, 1], [-1, 1, -1], [1, 1, 1]])
PART = (0, 0, 0, 1, 1, 2, 2)


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """A made set of 7 pictures with 3 attributes; torchvision is told the checksums of the made lists."""
    folder = tmp_path / "celeba"
    files = [f"{k + 1:06}.jpg" for k in range(7)]
    pixels = [picture(folder / "img_align_celeba" / f, seed=k) for k, f in enumerate(files)]
    rows = lambda values: "".join(f"{f} {v}\n" for f, v in zip(files, values, strict=True))  # noqa: E731
    lists = {
        "list_attr_celeba.txt": f"7\n{' '.join(NAMES)} \n"  # the real list, too, has a space there and aligns with two
        + rows(" ".join(f"{v:2}" for v in row) for row in VALUES.tolist()),
        "list_eval_partition.txt": rows(PART),
        "identity_CelebA.txt": rows(range(7)),
        "list_bbox_celeba.txt": "7\nimage_id x_1 y_1 width height\n" + rows(["1 2 3 4"] * 7),
        "list_landmarks_align_celeba.txt": "7\nlefteye_x lefteye_y\n" + rows(["1 2"] * 7),
    }
    for name, text in lists.items():
        (folder / name).write_text(text)
    known = [(i, hashlib.md5(lists.get(f, "").encode()).hexdigest(), f) for i, _, f in CelebA.file_list]
    monkeypatch.setattr(CelebA, "file_list", known)
    return tmp_path, pixels


def test_celeba_in_its_official_parts(celeba):
    root, pixels = celeba
    parts = attributes.load_celeba(root, size=8)
    assert [len(p.y) for p in parts] == [3, 2, 2]
    expected_x, expected_y = [square(p, 8) for p in pixels], (VALUES + 1) // 2
    start = 0
    for images in parts:
        assert images.labels == NAMES and images.classes == (("no", "yes"),) * 3
        assert images.x.shape[1:] == (3, 8, 8) and images.x.dtype == torch.uint8 and images.y.dtype == torch.int64
        stop = start + len(images.y)
        assert torch.equal(images.x, torch.stack(expected_x[start:stop]))
        assert torch.equal(images.y, expected_y[start:stop])
        start = stop
    check_moments(parts)
    learns_something(parts[0])


def test_celeba_below_the_data_root(celeba, monkeypatch):
    monkeypatch.setenv("IMBOOK_DATA", str(celeba[0]))
    assert attributes.load_celeba(size=4)[0].x.shape == (3, 3, 4, 4)


def test_the_example_of_the_book_runs(celeba, monkeypatch):
    monkeypatch.setenv("IMBOOK_DATA", str(celeba[0]))
    page = (Path(__file__).resolve().parents[1] / "book/data.md").read_text()
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    names = {}
    exec(example, names)
    assert [h.shape[1] for h in names["net"](torch.zeros(1, 3, 32, 32))] == [2, 2, 2]
    for file in [f for _, _, f in CelebA.file_list if f.endswith(".txt")]:
        assert file in page, "the layout names every list"


def test_a_celeba_that_is_not_there_or_damaged(celeba, tmp_path):
    root, _ = celeba
    for wrong in (root / "nowhere", root):
        if wrong == root:
            (root / "celeba/list_attr_celeba.txt").write_text("7\n")  # another content: the checksum differs
        with pytest.raises(FileNotFoundError, match=f"celeba is missing or damaged in {wrong}/celeba .* IMBOOK_DATA"):
            attributes.load_celeba(wrong, size=8)


def test_a_picture_of_celeba_that_is_not_there_or_damaged(celeba):
    root, _ = celeba
    file = root / "celeba/img_align_celeba/000002.jpg"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"no picture"):
        file.write_bytes(content)
        with pytest.raises(OSError, match="picture 2 of 3 is damaged: .*000002.jpg"):
            attributes.load_celeba(root, size=8)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="picture 2 of 3 is not there: .*000002.jpg"):
        attributes.load_celeba(root, size=8)


# DeepFashion

PICTURES = tuple(f"img/Sheer_Blouse/img_{k:08}.jpg" for k in range(7))
CATEGORY = (2, 1, 3, 1, 1, 2, 3)  # from 1
ATTRIBUTES = ("a-line", "abstract chevron print", "zip")
MARKS = ("-1 1 -1", "-1 -1 1", "1 -1 -1", "-1 1 1", "-1 -1 -1", "1 1 1", "-1 -1 1")
STATUS = ("train", "test", "train", "val", "train", "test", "val")


@pytest.fixture
def fashion(tmp_path):
    """A made set of 7 pictures; a function that writes a list anew, and the pixels."""
    folder = tmp_path / "deepfashion"

    def write(name, rows, number=None):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{row}\n" for row in rows)
        (folder / name).write_text(f"{len(rows) if number is None else number}\nname_of  columns\n{text}")

    write("Anno/list_category_cloth.txt", ["Anorak          1", "Blazer          1", "Jumpsuit        3"])
    write("Anno/list_category_img.txt", [f"{p}    {c}" for p, c in zip(PICTURES, CATEGORY)])
    write("Anno/list_attr_cloth.txt", [f"{name}      {k}" for k, name in enumerate(ATTRIBUTES)])
    write("Anno/list_attr_img.txt", [f"{p}    {m}" for p, m in zip(PICTURES[::-1], MARKS[::-1])])  # in another order
    write("Eval/list_eval_partition.txt", [f"{p}    {s}" for p, s in zip(PICTURES, STATUS)])
    pixels = [picture(folder / "Img" / p, seed=k, width=20, height=15 + k) for k, p in enumerate(PICTURES)]
    return tmp_path, write, pixels


def test_deepfashion_in_its_official_parts(fashion):
    root, _, pixels = fashion
    parts = attributes.load_deepfashion(root, size=8)
    for images, status in zip(parts, ("train", "val", "test"), strict=True):
        which = [k for k, s in enumerate(STATUS) if s == status]
        assert images.labels == ("category", *ATTRIBUTES)
        assert images.classes == (("Anorak", "Blazer", "Jumpsuit"), *((("no", "yes"),) * 3))
        expected = [[CATEGORY[k] - 1, *((int(m) + 1) // 2 for m in MARKS[k].split())] for k in which]
        assert images.y.tolist() == expected and images.y.dtype == torch.int64
        assert torch.equal(images.x, torch.stack([square(pixels[k], 8) for k in which]))
    check_moments(parts)
    learns_something(parts[0])


def test_some_labels_of_deepfashion_in_the_order_asked_for(fashion):
    whole = attributes.load_deepfashion(fashion[0], size=4)[0]
    some = attributes.load_deepfashion(fashion[0], size=4, labels=("zip", "category", "abstract chevron print"))[0]
    assert some.labels == ("zip", "category", "abstract chevron print") and [len(c) for c in some.classes] == [2, 3, 2]
    assert torch.equal(some.y, whole.y[:, [3, 0, 2]])


def test_unknown_attributes_of_deepfashion_are_refused_or_counted_as_no(fashion):
    root, write, _ = fashion
    whole = attributes.load_deepfashion(root, size=4)[0]
    write("Anno/list_attr_img.txt", [f"{p} {m.replace('-1', '0', 1)}" for p, m in zip(PICTURES, MARKS)])
    with pytest.raises(ValueError, match=r"img_00000000.jpg has 0 for 'a-line': .* pass unknown='no'"):
        attributes.load_deepfashion(root, size=4)
    assert torch.equal(attributes.load_deepfashion(root, size=4, unknown="no")[0].y, whole.y)
    kept = attributes.load_deepfashion(root, size=4, labels=("category",))[0]
    assert torch.equal(kept.y, whole.y[:, :1]), "what is not asked for may be unknown"
    with pytest.raises(ValueError, match="unknown 'yes': choose 'no', or None"):
        attributes.load_deepfashion(root, size=4, unknown="yes")


@pytest.mark.parametrize(
    "name, rows, number, message",
    [
        ("Anno/list_attr_img.txt", [f"{p} {m}" for p, m in zip(PICTURES, MARKS)], 8, "has 7 rows, its first .* says 8"),
        ("Anno/list_attr_img.txt", [f"{PICTURES[0]} 1 1"], None, "has 2 attributes in list_attr_img.txt, not 3"),
        ("Anno/list_attr_img.txt", [f"{PICTURES[0]} 1 2 1"], None, "has 2 for 'abstract chevron print': .* 1, -1"),
        ("Anno/list_attr_img.txt", [f"{PICTURES[0]} 1 1 1"], None, "img_00000001.jpg, test: .* no labels left"),
        ("Anno/list_category_img.txt", [f"{PICTURES[0]} 4"], None, "has category 4: .* from 1 to 3"),
        ("Anno/list_category_img.txt", [f"{PICTURES[0]} 0"], None, "has category 0"),
        ("Anno/list_category_img.txt", [f"{PICTURES[6]} 1"], None, "img_00000005.jpg has nothing for 'category'"),
        ("Eval/list_eval_partition.txt", [f"{PICTURES[0]} query"], None, "query: the part is not train, val or test"),
        ("Eval/list_eval_partition.txt", [f"{PICTURES[0]} train", f"{PICTURES[0]} test"], None, "no labels left"),
        ("Eval/list_eval_partition.txt", [f"{PICTURES[0]} train"], None, "has no picture of val, test"),
        ("Eval/list_eval_partition.txt", [PICTURES[0]], None, "partition.txt is damaged in row 1 .* not two fields"),
        ("Anno/list_category_img.txt", [f"{PICTURES[0]} two"], None, "has category two"),
        ("Anno/list_attr_img.txt", [], "many", "list_attr_img.txt is damaged in row 1 .*: unpack the set again"),
    ],
)
def test_lists_of_deepfashion_that_do_not_fit(fashion, name, rows, number, message):
    root, write, _ = fashion
    write(name, rows, number)
    with pytest.raises(ValueError, match=message):
        attributes.load_deepfashion(root, size=4)


def test_what_deepfashion_does_not_have(fashion):
    root, _, _ = fashion
    for wrong in (("sleeve",), ()):
        with pytest.raises(ValueError, match=r"labels \[.*\]: choose at least one of 'category' and the 3 attributes"):
            attributes.load_deepfashion(root, size=4, labels=wrong)
    (root / "deepfashion/Img" / PICTURES[4]).unlink()
    with pytest.raises(FileNotFoundError, match="picture 3 of 3 is not there: .*img_00000004.jpg"):
        attributes.load_deepfashion(root, size=4)
    (root / "deepfashion/Eval/list_eval_partition.txt").unlink()
    with pytest.raises(FileNotFoundError, match="list_eval_partition.txt is not there: set IMBOOK_DATA"):
        attributes.load_deepfashion(root, size=4)


def test_a_list_of_deepfashion_that_is_no_text(fashion):
    root, _, _ = fashion
    for content in (b"", b"1\nnames\n\xff\xfe"):
        (root / "deepfashion/Anno/list_attr_cloth.txt").write_bytes(content)
        with pytest.raises(ValueError, match="list_attr_cloth.txt is damaged in row 1"):
            attributes.load_deepfashion(root, size=4)


def test_a_tilde_is_the_home(celeba, fashion, monkeypatch):
    monkeypatch.setenv("HOME", str(celeba[0]))
    assert attributes.load_celeba("~", size=4)[0].x.shape == attributes.load_deepfashion("~", size=4)[0].x.shape


# CSV

ROWS = ("a.png,long,10,x", "sub/b.png,short,9,x", "c.png,long,10,y", "a.png,none at all,2,y")
COLUMNS = ("sleeve", "colour")


@pytest.fixture
def csv(tmp_path):
    """A function that writes a CSV file beside its three pictures, and the pixels by name."""
    pixels = {
        n: picture(tmp_path / n, seed=k, width=9, height=7) for k, n in enumerate(("a.png", "sub/b.png", "c.png"))
    }

    def write(*rows, header="image,sleeve,colour,other"):
        (tmp_path / "set.csv").write_text("\n".join([header, *rows]) + "\n")
        return tmp_path / "set.csv"

    return write, pixels


def test_a_csv_of_attributes(csv):
    write, pixels = csv
    images = attributes.load_csv(write(*ROWS), COLUMNS, size=5)
    assert images.labels == COLUMNS
    assert images.classes == (("long", "none at all", "short"), ("2", "9", "10")), "numbers in the order of numbers"
    assert images.y.tolist() == [[0, 2], [2, 1], [0, 2], [1, 0]] and images.y.dtype == torch.int64
    expected = [square(pixels[name], 5) for name in ("a.png", "sub/b.png", "c.png", "a.png")]
    assert torch.equal(images.x, torch.stack(expected))
    check_moments([images])
    learns_something(images)


def test_a_csv_with_given_classes(csv):
    write, _ = csv
    train = attributes.load_csv(write(*ROWS), COLUMNS, size=5)
    classes = dict(zip(train.labels, train.classes))
    test = attributes.load_csv(write("c.png, short, 2, x"), COLUMNS, size=5, classes=classes)
    assert test.classes == train.classes and test.y.tolist() == [[2, 0]]
    test = replace(test, mean=train.mean, std=train.std)
    assert torch.allclose(Batches(test).normalise(test.x), Batches(train).normalise(train.x[2:3]))
    turned = attributes.load_csv(write(*ROWS), ("other",), size=5, classes={"other": ["y", "z", "x"]})
    assert turned.y.tolist() == [[2], [2], [0], [0]] and turned.classes == (("y", "z", "x"),)


def test_the_pictures_of_a_csv_may_lie_elsewhere(csv, tmp_path):
    write, pixels = csv
    path = write(*ROWS, header="file,sleeve,colour,other").rename(tmp_path / "sub/elsewhere.csv")
    images = attributes.load_csv(path, COLUMNS, image="file", root=tmp_path, size=5)
    assert torch.equal(images.x[1], square(pixels["sub/b.png"], 5))
    with pytest.raises(FileNotFoundError, match="picture 1 of 4 is not there: .*sub/a.png"):
        attributes.load_csv(path, COLUMNS, image="file", size=5)


@pytest.mark.parametrize(
    "rows, options, message",
    [
        (ROWS, dict(columns=("sleeve", "neck")), r"set.csv has no column \['neck'\]: choose from \['image', 'sleeve'"),
        (ROWS, dict(image="file"), r"no column \['file'\]"),
        (ROWS, dict(columns=()), "name at least one column"),
        (ROWS, dict(classes={"other": ["x", "y"]}), "name at least one column, and all with classes"),
        (("a.png,long,1,x", "c.png,,2,x"), {}, "row 2: 'sleeve' is empty"),
        (("a.png,long,1,x", "c.png,short,NA,x"), {}, "row 2: 'colour' is empty or reads as a missing value"),
        (("a.png,long,1,x", "c.png"), {}, "row 2: 'sleeve' is empty"),
        (("a.png,long,1,x", ",short,2,x"), {}, "row 2: 'image' is empty"),
        (ROWS, dict(classes={"sleeve": ["long", "short"]}), "row 4: sleeve is 'none at all', .* not among .'long'"),
        (ROWS[:1], {}, r"classes \['long'\] of 'sleeve': two or more different ones"),
        (ROWS, dict(classes={"colour": ["2", "9", "10", "9"]}), "of 'colour': two or more different ones"),
        ((), {}, "has no rows"),
        (("a.png,long,1,x,1", "c.png,short,2,x,1"), {}, "more fields than its header"),
        (ROWS, dict(size=0), "size 0: at least 1 pixel"),
    ],
)
def test_a_csv_that_does_not_fit(csv, rows, options, message):
    with pytest.raises(ValueError, match=message):
        attributes.load_csv(csv[0](*rows), **{"columns": COLUMNS, **options})


def test_a_picture_of_a_csv_that_is_not_there_or_damaged(csv, tmp_path):
    write, _ = csv
    path = write("a.png,long,1,x", "d.png,short,2,x")
    with pytest.raises(FileNotFoundError, match="picture 2 of 2 is not there: .*d.png"):
        attributes.load_csv(path, COLUMNS)
    (tmp_path / "d.png").write_text("no picture")
    with pytest.raises(OSError, match="picture 2 of 2 is damaged: .*d.png"):
        attributes.load_csv(path, COLUMNS)


def test_grey_and_transparent_pictures_have_three_channels(tmp_path):
    for mode, name in (("L", "a.png"), ("RGBA", "b.png")):
        Image.new(mode, (4, 4), 200 if mode == "L" else (10, 20, 30, 40)).save(tmp_path / name)
    (tmp_path / "set.csv").write_text("image,kind\na.png,0\nb.png,1\n")
    x = attributes.load_csv(tmp_path / "set.csv", ("kind",), size=2).x
    assert x[0].unique().tolist() == [200] and x[1, :, 0, 0].tolist() == [10, 20, 30]


def test_more_pictures_than_a_chunk(tmp_path):
    """Decoded in chunks of a thousand, counted in chunks of a thousand."""
    levels = [k % 251 for k in range(2100)]
    for k in range(251):
        Image.new("RGB", (2, 2), (k, 0, 255 - k)).save(tmp_path / f"{k}.png")
    rows = "".join(f"{v}.png,{v % 2}\n" for v in levels)
    (tmp_path / "set.csv").write_text(f"image,odd\n{rows}")
    images = attributes.load_csv(tmp_path / "set.csv", ("odd",), size=1)
    assert images.x[:, 0].flatten().tolist() == levels and images.y.flatten().tolist() == [v % 2 for v in levels]
    check_moments([images])
