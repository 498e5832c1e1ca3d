"""Moving figures: one frame is shown at a time, by keyboard as well, and one without scripts."""

import base64
import io
import json
import re
import shutil
import subprocess

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

from imbook.moving import Moving  # noqa: E402


def drawn(heights):
    figures = []
    for height in heights:
        figure, ax = plt.subplots(figsize=(2, 1.5))
        ax.bar([0], [height])
        ax.set(ylim=(0, 10))
        figures.append(figure)
    return figures


@pytest.fixture
def moving():
    plt.close("all")
    return Moving(
        drawn([1, 5, 9]), ["epoch 1: 10 %", "epoch 2: 50 %", "epoch 3: <90 %>"], alt="One bar", label="epoch",
        data=[{"recall": r} for r in (0.1, 0.5, 0.9)],
    )  # fmt: skip


def test_each_figure_is_a_frame(moving):
    page = moving._repr_html_()
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    images = [Image.open(io.BytesIO(base64.b64decode(s))).convert("L") for s in sources]
    dark = [sum(image.histogram()[:200]) for image in images]
    assert len(sources) == 3 and dark == sorted(dark) and len(set(dark)) == 3, "a higher bar is more ink"
    assert plt.get_fignums() == [], "figures are closed, or the notebook shows them again"
    assert page == moving._repr_html_(), "the same frames give the same page"


def test_without_scripts_one_frame_is_shown_and_no_slider(moving):
    page = moving._repr_html_()
    assert re.findall(r"<img [^>]*?( hidden)?>", page) == [" hidden", " hidden", ""]
    assert "<label hidden>" in page and '<figcaption aria-live="polite">epoch 3: &lt;90 %&gt;</figcaption>' in page
    assert Moving(drawn([1, 2]), ["a", "b"], alt="", label="x", still=0)._repr_html_().index(" hidden") > 0


def test_the_numbers_are_in_the_page_as_plain_data(moving):
    plain = re.search(r'<script type="application/json">(.*?)</script>', moving._repr_html_())[1]
    assert json.loads(plain) == {"captions": moving.captions, "data": moving.data}
    assert repr(moving) == "3 frames by epoch: epoch 1: 10 %; epoch 2: 50 %; epoch 3: <90 %>"


def test_one_caption_per_frame():
    with pytest.raises(ValueError, match="2 figures, 1 captions: give one of each per frame"):
        Moving(drawn([1, 2]), ["a"], alt="", label="x")
    with pytest.raises(ValueError, match="1 figures, 1 captions, 2 data"):
        Moving(drawn([1]), ["a"], alt="", label="x", data=[1, 2])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_the_slider_moves_the_frames(moving, tmp_path):
    press = """<script>
      const slider = document.querySelector("input"), log = [];
      const state = () => [...document.querySelectorAll("img")].map(i => +!i.hidden).join("")
        + " " + document.querySelector("figcaption").textContent + " " + slider.getAttribute("aria-valuetext");
      log.push(state(), !slider.closest("[hidden]"));
      slider.value = 0; slider.dispatchEvent(new Event("input")); log.push(state());
      document.title = JSON.stringify(log);
    </script>"""
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>x</title>{moving._repr_html_()}{press}", encoding="utf-8")
    found = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    last, seen, first = json.loads(
        re.search(r"<title>(.*?)</title>", found)[1].replace("&lt;", "<").replace("&gt;", ">")
    )
    assert last == "001 epoch 3: <90 %> epoch 3: <90 %>" and seen is True
    assert first == "100 epoch 1: 10 % epoch 1: 10 %"
