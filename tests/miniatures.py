"""Made sets in the exact formats of the large ones, a few pictures or clips each, below a data root."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CelebA

COUNTS = (6, 4, 3)  # training images of each class


def picture(path, seed, width=48, height=40, format=None):
    """A picture of noise, the lighter the higher its seed's first digit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=format)


def imagenet_lt(root):
    """Three lists and the pictures that they name: 13 of training, 2 and 3 per class of validation and test."""
    ids, lists, k = ("n01440764", "n01443537", "n01484850"), {"train": [], "val": [], "test": []}, 0
    for y, (wnid, n) in enumerate(zip(ids, COUNTS)):
        lists["train"] += [(f"train/{wnid}/{wnid}_{j}.JPEG", y) for j in range(n)]
        lists["val"] += [(f"train/{wnid}/{wnid}_{j}.JPEG", y) for j in range(n, n + 2)]
        lists["test"] += [(f"val/ILSVRC2012_val_{3 * y + j + 1:08}.JPEG", y) for j in range(3)]
    (root / "imagenet-lt").mkdir(parents=True)
    for part, rows in lists.items():
        (root / f"imagenet-lt/ImageNet_LT_{part}.txt").write_text("".join(f"{name} {y}\n" for name, y in rows))
        for name, _ in rows:
            picture(root / "imagenet" / name, k := k + 1, format="JPEG")


def inaturalist2018(root):
    """Two files of JSON in COCO's form, and pictures in folders by super-category and category."""
    folder, k = root / "inaturalist2018", 0
    categories = [{"id": c, "name": f"species {c}", "supercategory": "Aves"} for c in range(3)]
    for part, sizes in (("train", COUNTS), ("val", (2, 2, 2))):
        images, annotations = [], []
        for y, n in enumerate(sizes):
            for _ in range(n):
                k += 1
                images.append({"id": 100 + k, "file_name": f"train_val2018/Aves/{y}/{k:032x}.jpg", "width": 48})
                annotations.append({"id": 100 + k, "image_id": 100 + k, "category_id": y})
                picture(folder / images[-1]["file_name"], k)
        whole = dict(info={}, images=images, annotations=annotations[::-1], categories=categories, licenses=[])
        (folder / f"{part}2018.json").write_text(json.dumps(whole))


def tiny_imagenet(root, classes=3, n=4):
    """Folders of 64 x 64 pictures, n per class, in an order of classes that is not the alphabet's."""
    folder, ids = root / "tiny-imagenet-200", [f"n0{9 - c}000000" for c in range(classes)]
    for c, wnid in enumerate(ids):
        for k in range(n):
            picture(folder / f"train/{wnid}/images/{wnid}_{k}.JPEG", 10 * c + k, 64, 64)
    (folder / "wnids.txt").write_text("\n".join(ids) + "\n")
    (folder / "words.txt").write_text("".join(f"{i}\tsomething, of words\n" for i in ids))
    lines = [f"val_{k}.JPEG\t{ids[k % classes]}\t0\t32\t44\t62\n" for k in range(2 * classes)]
    for k in range(2 * classes):
        picture(folder / f"val/images/val_{k}.JPEG", 100 + k, 64, 64)
    (folder / "val").mkdir(exist_ok=True)
    (folder / "val/val_annotations.txt").write_text("".join(lines))


def film(path, frames, side=48):
    """A video of `frames` pictures, each of one grey, lighter from frame to frame: needs PyAV."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for k in range(frames):
            grey = np.full((side, side, 3), 20 + 200 * k // max(frames - 1, 1), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode())


def egtea(root):
    """The lists of split 1 with three verbs, and clips of 12 to 30 frames."""
    folder, sessions = root / "egtea", ("OP01-R01-PastaSalad", "P02-R03-BaconAndEggs")
    (folder / "action_annotation").mkdir(parents=True)
    verbs = ("Read", "Take", "Put Down")
    (folder / "action_annotation/verb_idx.txt").write_text("".join(f"{v} {k + 1}\n" for k, v in enumerate(verbs)))
    k = 0
    for part, sizes in (("train", COUNTS), ("test", (2, 2, 2))):
        lines = []
        for verb, n in enumerate(sizes):
            for _ in range(n):
                session = sessions[k % 2]
                clip = f"{session}-{1000 + k}-{2000 + k}-F{k:06}-F{k + 20:06}"
                lines.append(f"{clip} {k + 1} {verb + 1} 3 {k}\n")
                film(folder / f"cropped_clips/{session}/{clip}.mp4", 12 + k)
                k += 1
        (folder / f"action_annotation/{part}_split1.txt").write_text("".join(lines))


def celeba(root, monkeypatch):
    """Eleven pictures with three attributes; torchvision is told the checksums of the made lists."""
    folder, names = root / "celeba", [f"{k + 1:06}.jpg" for k in range(11)]
    for k, name in enumerate(names):
        picture(folder / "img_align_celeba" / name, k, 18, 22)
    values = torch.where(torch.arange(33).view(11, 3) % torch.tensor([2, 3, 5]) == 0, 1, -1)
    rows = lambda each: "".join(f"{name} {v}\n" for name, v in zip(names, each))  # noqa: E731
    lists = {
        "list_attr_celeba.txt": "11\nBald Male Young \n" + rows(" ".join(map(str, v)) for v in values.tolist()),
        "list_eval_partition.txt": rows([0] * 7 + [1, 1, 2, 2]),
        "identity_CelebA.txt": rows(range(11)),
        "list_bbox_celeba.txt": "11\nimage_id x_1 y_1 width height\n" + rows(["1 2 3 4"] * 11),
        "list_landmarks_align_celeba.txt": "11\nlefteye_x lefteye_y\n" + rows(["1 2"] * 11),
    }
    for name, text in lists.items():
        (folder / name).write_text(text)
    known = [(i, hashlib.md5(lists.get(f, "").encode()).hexdigest(), f) for i, _, f in CelebA.file_list]
    monkeypatch.setattr(CelebA, "file_list", known)


def deepfashion(root):
    """Eleven pictures with a category and three attributes."""
    folder = root / "deepfashion"
    pictures = [f"img/Sheer_Blouse/img_{k:08}.jpg" for k in range(11)]
    marks = [" ".join("1" if (k + j) % (j + 2) == 0 else "-1" for j in range(3)) for k in range(11)]
    lists = {
        "Anno/list_category_cloth.txt": ["Anorak          1", "Jumpsuit        3"],
        "Anno/list_category_img.txt": [f"{p}    {k % 2 + 1}" for k, p in enumerate(pictures)],
        "Anno/list_attr_cloth.txt": ["a-line      3", "abstract chevron print      1", "zip      5"],
        "Anno/list_attr_img.txt": [f"{p}    {m}" for p, m in zip(pictures, marks)],
        "Eval/list_eval_partition.txt": [f"{p} {s}" for p, s in zip(pictures, ["train"] * 7 + ["val", "test"] * 2)],
    }
    for name, rows in lists.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{len(rows)}\nname  columns\n" + "".join(f"{row}\n" for row in rows))
    for k, name in enumerate(pictures):
        picture(folder / "Img" / name, k, 20, 22)


def x_domain(root):
    """Three tables with two attributes of two and three classes."""
    folder = root / "x-domain"
    for part, first, n in (("train", 0, 7), ("valid", 7, 3), ("test", 10, 3)):
        lines = ["image,colour,sleeve"]
        for k in range(first, first + n):
            picture(folder / f"pictures/{k}.jpg", k, 20, 24)
            lines.append(f"pictures/{k}.jpg,{('red', 'blue', 'black')[k % 3]},{'long' if k % 4 else 'short'}")
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")


def stl10(root, monkeypatch):
    """STL-10's binary files with two pictures per class; torchvision is told their checksums. Returns the pixels."""
    from torchvision.datasets import STL10

    folder = Path(root) / "stl10_binary"
    folder.mkdir(parents=True)
    names = "airplane bird car cat deer dog horse monkey ship truck".split()
    (folder / "class_names.txt").write_text("\n".join(names))
    contents = {}
    pixels = {}
    for part in ("train", "test"):
        x = np.random.default_rng(len(part)).integers(0, 256, (20, 3, 96, 96), dtype=np.uint8)
        contents[f"{part}_X.bin"] = x.transpose(0, 1, 3, 2).tobytes()  # column by column
        contents[f"{part}_y.bin"] = (np.arange(20, dtype=np.uint8) % 10 + 1).tobytes()
        pixels[part] = x
    lists = {"train_list": [], "test_list": []}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        known = [name, hashlib.md5(content).hexdigest()]
        lists["test_list" if name.startswith("test") else "train_list"].append(known)
    for which in lists:
        kept = [pair for pair in getattr(STL10, which) if pair[0] in contents]
        assert len(kept) == len(lists[which])
        monkeypatch.setattr(STL10, which, lists[which])
    return pixels
