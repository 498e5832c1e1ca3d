"""What lies in a folder of pictures, and how it is split."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from imbook.yours import look, split


def picture(seed, side=24, mode="RGB"):
    """Noise in 6 x 6 blocks: it has a perceptual hash of its own."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 12, 6 and 3 pictures, with names that are hard to read."""
    root = tmp_path / "my set"
    for c, (name, many) in enumerate({"große Zellen": 12, "b": 6, "c d": 3}.items()):
        (root / name).mkdir(parents=True)
        for k in range(many):
            mode = ("RGB", "L", "RGBA")[k % 3]
            picture(100 * c + k, mode=mode).save(root / name / f"Bild {k // 2} nº {k}.png")
    return root


def test_a_folder_is_found(folder):
    files = look.find(folder)
    assert files.classes == ("b", "c d", "große Zellen") and np.bincount(files.y).tolist() == [6, 3, 12]
    assert files.groups is None and files.paths[0] == "b/Bild 0 nº 0.png"
    found = look.findings(look.examine(files), files)
    assert found["ratio"] == 4 and found["modes"] == {"RGB": 7, "L": 7, "RGBA": 7} and found["looked"] == 21
    assert found["sizes"] == [[24, 24, 24]] * 2
    assert [found[k] for k in ("unreadable", "duplicates", "conflicts", "near", "odd")] == [[]] * 5


def test_decomposed_umlauts_are_one_class_name(folder):
    (folder / "große Zellen").rename(folder / unicodedata.normalize("NFD", "grüne Zellen"))
    assert "grüne Zellen" in look.find(folder).classes


def test_what_is_wrong_is_named(folder):
    first = folder / "b" / "Bild 0 nº 0.png"
    (folder / "b" / "broken.png").write_bytes(first.read_bytes()[:100])
    (folder / "b" / "empty.jpg").write_bytes(b"")
    (folder / "c d" / "twin.png").write_bytes(first.read_bytes())  # the same file under another label
    picture(0).convert("L").resize((48, 48)).save(folder / "große Zellen" / "alike.jpg", quality=80)
    picture(77, side=400).resize((400, 90)).save(folder / "b" / "wide.png")
    (folder / "notes.txt").write_text("x")
    files = look.find(folder)
    frame = look.examine(files)
    found = look.findings(frame, files)
    name = frame["path"].tolist().__getitem__
    assert [path for path, _ in found["unreadable"]] == ["b/broken.png", "b/empty.jpg"]
    assert all("damaged" in why for _, why in found["unreadable"])
    assert [sorted(map(name, g)) for g in found["duplicates"]] == [["b/Bild 0 nº 0.png", "c d/twin.png"]]
    assert found["conflicts"] == found["duplicates"] and found["left_out"] == ["notes.txt"]
    assert list(map(name, found["odd"])) == ["b/wide.png"] and found["n"] == [7, 4, 13]
    near = [({name(i), name(j)}, similarity) for i, j, similarity in found["near"]]
    assert near[0][0] == {"große Zellen/Bild 0 nº 0.png", "große Zellen/alike.jpg"} and len(near) == 1


def test_bad_input_is_an_error_that_names_it(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nowhere is neither a folder"):
        look.find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="one folder per class"):
        look.find(folder / "b")
    with pytest.raises(ValueError, match="does not match b/Bild 0 nº 0.png"):
        look.find(folder, groups="photo")
    with pytest.raises(ValueError, match=r"'\(' is neither a column nor a regular expression"):
        look.find(folder, groups="(")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="class 'empty' has no pictures"):
        look.find(folder)
    broken = tmp_path / "all broken"
    for name in "ab":
        (broken / name).mkdir(parents=True)
        (broken / name / "x.png").write_bytes(b"no")
    files = look.find(broken)
    with pytest.raises(ValueError, match="class 'a' has no picture that can be read"):
        look.findings(look.examine(files), files)


def test_a_table_with_groups(folder, tmp_path):
    paths = [p.relative_to(tmp_path).as_posix() for p in sorted(folder.rglob("*.png"))]
    rows = pd.DataFrame(dict(image=paths, label=["10" if "b/" in p else "9" for p in paths], patient=range(21)))
    rows.to_csv(tmp_path / "set.csv", index=False)
    files = look.find(tmp_path / "set.csv", groups="patient")
    assert files.classes == ("9", "10") and files.groups == tuple(map(str, range(21)))
    assert look.find(tmp_path / "set.csv", groups=r"Bild (\d)").groups[0] == "0"
    rows.assign(image=["x.png", *paths[1:]]).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(FileNotFoundError, match="row 1: picture .*x.png is not there"):
        look.find(tmp_path / "bad.csv")


def test_the_fingerprint_follows_the_files(folder):
    before = look.find(folder).fingerprint()
    assert look.find(folder).fingerprint() == before
    picture(5, side=30).save(folder / "b" / "Bild 0 nº 0.png")
    assert look.find(folder).fingerprint() != before


def test_what_there_is_no_time_for_is_not_looked_at(folder, monkeypatch):
    monkeypatch.setattr(look, "CHUNK", 5)
    files = look.find(folder)
    frame = look.examine(files, seconds=-1)
    assert frame["looked"].tolist() == [True] * 5 + [False] * 16
    found = look.findings(frame, files)
    assert (found["looked"], found["files"], sum(found["n"])) == (5, 21, 21)


def test_the_hash_is_the_literal_one():
    x = torch.randint(0, 256, (3, 1, 32, 36), dtype=torch.uint8)
    for picture_, code in zip(x, look.difference_hash(x)):
        bits = ""
        for r in range(8):
            cells = [picture_[0, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].float().mean() for c in range(9)]
            bits += "".join("1" if a > b else "0" for a, b in zip(cells[1:], cells))
        assert code == f"{int(bits, 2):016x}"


def framed(x):
    """A frame as of `examine`, of grey pictures x (N, 1, h, w)."""
    thumbnails = [t.tobytes() for t in look.thumbnails(x).numpy()]
    digests = [str(k) for k in range(len(x))]
    return pd.DataFrame(dict(hash=look.difference_hash(x), thumbnail=thumbnails, digest=digests))


def test_near_pairs_are_the_literal_ones(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (30, 1, 32, 32), generator=g, dtype=torch.uint8)
    noisy = (x[:3].float() * torch.tensor([1, 0.5, 0.8]).view(-1, 1, 1, 1) + torch.randn(3, 1, 32, 32, generator=g) * 4)
    flat = torch.full((2, 1, 32, 32), 90, dtype=torch.uint8)
    x = torch.cat([x, noisy.clamp(0, 255).byte(), x[4:5], flat])
    cells = look.thumbnails(x).double().view(36, -1)
    for least in (0.98, 0.9, 0.1):
        pairs = [(i, j) for i in range(36) for j in range(i + 1, 36) if cells[[i, j]].std(1).min() > 1]
        literal = {(i, j): np.corrcoef(cells[i], cells[j])[0, 1] for i, j in pairs}
        literal = {pair: r for pair, r in literal.items() if r >= least}
        found = look.near_pairs(framed(x), least)
        assert {(i, j): r for i, j, r in found} == pytest.approx(literal, abs=1e-4)
        assert [r for *_, r in found] == sorted((r for *_, r in found), reverse=True) and found[0][:2] == (4, 33)
    assert {p[:2] for p in look.near_pairs(framed(x))} == {(0, 30), (1, 31), (2, 32), (4, 33)}
    monkeypatch.setattr(look, "ALL_PAIRS", 10)
    codes = look.difference_hash(x)
    found = look.near_pairs(framed(x))
    assert found[0] == (4, 33, 1.0) and all(codes[i] == codes[j] for i, j, _ in found) and len(found) < 4
    monkeypatch.setattr(look, "MOST_PAIRS", 0)
    assert look.near_pairs(framed(x)) == []


def test_a_film_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(look, "MOST_PAIRS", 7)
    x = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8).repeat(50, 1, 1, 1)
    assert len(look.near_pairs(framed(x))) == 7


@pytest.mark.parametrize("change", ["jpeg", "twice", "brighter", "less contrast"])
def test_a_changed_copy_is_found_and_a_stranger_is_not(tmp_path, change):
    for c in "ab":
        (tmp_path / c).mkdir()
        for k in range(6):
            picture(ord(c) + 10 * k, side=48).save(tmp_path / c / f"{k}.png")
    with Image.open(tmp_path / "a/0.png") as first:
        copy = {"twice": lambda p: p.resize((96, 96)), "brighter": lambda p: p.point(lambda v: 0.7 * v),
                "less contrast": lambda p: p.point(lambda v: 60 + 0.4 * v)}.get(change, lambda p: p)(first)  # fmt: skip
        copy.save(tmp_path / f"b/copy.{'jpg' if change == 'jpeg' else 'png'}", quality=50)
    files = look.find(tmp_path)
    near = look.findings(look.examine(files), files)["near"]
    assert [{files.paths[i], files.paths[j].split(".")[0]} for i, j, _ in near] == [{"a/0.png", "b/copy"}]


def test_small_digits_give_few_pairs():
    """Eight pixels a side: a rule on the hash alone called 1,276 pairs of these near-duplicates."""
    digits = load_digits()
    index = np.concatenate([np.flatnonzero(digits.target == c)[:n] for c, n in enumerate((178, 120, 80, 60, 40, 30))])
    x = torch.from_numpy(digits.images[index] * 255 / 16)[:, None].float()
    x = torch.nn.functional.interpolate(x, (32, 32), mode="bicubic").clamp(0, 255).byte()
    assert len(look.near_pairs(framed(x))) < len(x) / 8


# -- the split --------------------------------------------------------------------------------------------------------


def test_groups_and_duplicates_are_merged():
    assert split.merge(None, [], 3).tolist() == [0, 1, 2]
    merged = split.merge(("p", "q", "p", "r", "s"), [[1, 3]], 5)
    assert merged[0] == merged[2] and merged[1] == merged[3] and len(set(merged)) == 3


@pytest.mark.parametrize("size", [1, 4])
def test_no_group_is_on_two_sides_and_frequencies_are_kept(size):
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1, 2], [400, 80, 20]))
    groups = np.arange(500) // size
    train, valid, test = split.parts(y, groups, ("a", "b", "c"))
    assert np.sort(np.concatenate([train, valid, test])).tolist() == list(range(500))
    for some, others in ((train, valid), (train, test), (valid, test)):
        assert not set(groups[some]) & set(groups[others]) and split.leaked(some, others, groups) == 0
    for part in (valid, test):
        n = np.bincount(y[part], minlength=3)
        assert abs(n[0] - 80) <= 4 and abs(n[1] - 16) <= 3 and 2 <= n[2] <= 6
    again = split.parts(y, groups, ("a", "b", "c"))
    assert all(map(np.array_equal, (train, valid, test), again))
    if size > 1:
        leaky = split.at_random(y)
        assert split.leaked(leaky[0], leaky[2], groups) > 0.8


@pytest.mark.parametrize("few", [3, 4, 5])
def test_a_class_of_few_is_in_each_part(few):
    y = np.repeat([0, 1, 2], [200, 30, few])
    for part in split.parts(y, np.arange(len(y)), ("a", "b", "c")):
        assert np.bincount(y[part], minlength=3).min() >= 1


def test_a_class_in_too_few_groups_is_named():
    y = np.repeat([0, 1], [40, 8])
    with pytest.raises(ValueError, match="class 'rare' has 8 pictures in 2 groups: it needs 3"):
        split.parts(y, np.concatenate([np.arange(40), np.repeat([50, 51], 4)]), ("a", "rare"))
