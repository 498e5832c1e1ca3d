"""Figures that a reader steps through: frames under a slider, in one piece of HTML that loads nothing."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["Moving"]

_SCRIPT = """(() => {
  const figure = document.getElementById("%s"), slider = figure.querySelector("input");
  const frames = figure.querySelectorAll("img"), caption = figure.querySelector("figcaption");
  const captions = JSON.parse(figure.querySelector("script").textContent).captions;
  const show = () => {
    frames.forEach((frame, k) => { frame.hidden = k != slider.value; });
    caption.textContent = captions[slider.value];
    slider.setAttribute("aria-valuetext", captions[slider.value]);
  };
  slider.addEventListener("input", show);
  slider.parentElement.hidden = false;
  show();
})();"""


class Moving:
    """A figure of several frames under a slider, which a mouse, a finger or the arrow keys move.

    As the last line of a cell it shows itself. Without scripts (a printed page, a preview) one frame is shown, still.

    figures: of matplotlib, one per frame, of one size; they are closed. captions: one per frame, plain text; alt: what
    is drawn, read aloud before the caption; label: of the slider, such as "epoch"; data: one value per frame that JSON
    can hold, kept in the page as plain data; still: the frame that is shown first, default the last. ValueError where
    the lengths differ.
    """

    def __init__(
        self, figures: Sequence[Figure], captions: Sequence[str], *, alt: str, label: str,
        data: Sequence[Any] | None = None, still: int = -1,
    ) -> None:  # fmt: skip
        if not figures or len(captions) != len(figures) or (data is not None and len(data) != len(figures)):
            raise ValueError(
                f"{len(figures)} figures, {len(captions)} captions"
                + (f", {len(data)} data" if data is not None else "")
                + ": give one of each per frame"
            )
        self.captions, self.alt, self.label, self.data = list(captions), alt, label, data
        self.still = range(len(figures))[still]
        self.frames = [_png(figure) for figure in figures]
        for figure in figures:
            plt.close(figure)

    def __repr__(self) -> str:
        return f"{len(self.frames)} frames by {self.label}: " + "; ".join(self.captions)

    def _repr_html_(self) -> str:
        images = [
            f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" style="max-width:100%" '
            f'alt="{html.escape(f"{self.alt}: {caption}")}"{"" if k == self.still else " hidden"}>'
            for k, (png, caption) in enumerate(zip(self.frames, self.captions))
        ]
        name = "moving-" + hashlib.sha256("".join(images).encode()).hexdigest()[:12]
        plain = json.dumps({"captions": self.captions, "data": self.data}, ensure_ascii=False).replace("<", "\\u003c")
        return "\n".join(
            [
                f'<figure id="{name}" class="moving" style="margin:0">',
                *images,
                f'<label hidden>{html.escape(self.label)} <input type="range" min="0" max="{len(images) - 1}" step="1" '
                f'value="{self.still}" style="width:min(100%, 28rem); vertical-align:middle"></label>',
                f'<figcaption aria-live="polite">{html.escape(self.captions[self.still])}</figcaption>',
                f'<script type="application/json">{plain}</script>',
                f"<script>{_SCRIPT % name}</script>",
                "</figure>",
            ]
        )


def _png(figure: Figure) -> bytes:
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=96)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(64).save(packed, "PNG", optimize=True)
    return packed.getvalue()
