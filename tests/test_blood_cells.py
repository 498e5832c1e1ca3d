"""The pictures of blood cells that chapter 09 shows: which they are, and that they are those of the two trials."""

import base64
import io
import json

import numpy as np
from PIL import Image

from imbook import records
from tools import blood_cells


def trials():
    return [json.loads((records.RECORDS / f"yours-bccd{end}.json").read_text()) for end in ("", "-30")]


def test_the_record_holds_what_the_trials_name():
    shown, (brief, longer) = json.loads((records.RECORDS / "yours-bccd-cells.json").read_text()), trials()
    assert [path.split("/")[0] for path in list(shown)[:3]] == brief["classes"]
    for trial in (brief, longer):
        assert {mistake["path"] for mistake in trial["mistakes"][:2]} <= set(shown)
        assert {path for *pair, _ in trial["near"]["first"] for path in pair} <= set(shown)
    for picture in shown.values():
        opened = Image.open(io.BytesIO(base64.b64decode(picture)))
        assert opened.format == "JPEG" and max(opened.size) <= blood_cells.SIDE


def test_the_crop_of_median_size_comes_first_and_each_path_once(tmp_path):
    for side in (5, 200, 30):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(np.full((side, side, 3), side, np.uint8)).save(tmp_path / "a" / f"{side}.png")
    trial = {"classes": ["a"], "mistakes": [{"path": "a/200.png"}, {"path": "a/30.png"}, {"path": "a/x.png"}],
             "near": {"first": [["a/5.png", "a/200.png", 0.99]]}}  # fmt: skip
    assert blood_cells.paths(tmp_path, [trial, trial]) == ["a/30.png", "a/200.png", "a/5.png"]
    small = Image.open(io.BytesIO(base64.b64decode(blood_cells.small(tmp_path / "a" / "200.png"))))
    assert small.size == (96, 96) and abs(np.asarray(small).mean() - 200) < 2
