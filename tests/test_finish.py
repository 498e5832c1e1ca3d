"""What the finished pages hold: figures pixel by pixel, scripts where needed, values together, sections to search."""

import base64
import io
import json

import finish
import numpy as np
import pytest
from PIL import Image

SCRIPTS = """<head><script src="../_static/vendor/fontawesome/6.5.2/js/all.min.js?digest=1"></script>
<link href="../_static/vendor/fontawesome/6.5.2/css/all.min.css?digest=1" rel="stylesheet" />
<script>window.MathJax = {"options": {}}</script>
<script defer="defer" src="../_static/mathjax/tex-svg.js?v=1"></script>
<link rel="stylesheet" type="text/css" href="../_static/custom.css?v=1" /></head>"""
ARTICLE = r"""<article class="bd-article"><section id="top"><h1>Over-sampling<a class="headerlink">#</a></h1>
<p>The ratio <span class="math notranslate">\(\rho\)</span> is large.</p>
<section id="code"><h2>How it is done</h2><p>Draw again.</p><div class="cell_input"><pre>import torch
weights = class_weights(n)</pre></div><div class="cell_output"><pre>tensor(1.0)</pre></div>
</section></section></article>"""


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "L", "P"])
def test_a_figure_keeps_every_pixel(tmp_path, mode):
    (tmp_path / "_images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    before = Image.fromarray(pixels, "RGBA").convert(mode)
    before.save(tmp_path / "_images/a.png", compress_level=0)
    finish.figures(tmp_path)
    (path,) = (tmp_path / "_images").iterdir()
    assert path.name == "a.webp"
    with Image.open(path) as after:
        assert np.array_equal(np.asarray(after.convert("RGBA")), np.asarray(before.convert("RGBA")))


def test_pages_name_the_figures_that_are_there(tmp_path):
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images/a.webp").touch()
    text = finish.images(tmp_path, '<img src="../_images/a.png"/><img src="../_images/b.png"/>')
    assert text == '<img src="../_images/a.webp"/><img src="../_images/b.png"/>'


def test_frames_of_a_moving_figure_become_files_that_wait(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    drawn = io.BytesIO()
    Image.fromarray(pixels).save(drawn, "PNG")
    page = f'<img src="data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}" alt="x" hidden>'
    text = finish.frames(tmp_path, page, "../")
    (path,) = (tmp_path / "_images").iterdir()
    assert text == f'<img loading="lazy" src="../_images/{path.name}" alt="x" hidden>'
    with Image.open(path) as after:
        assert np.array_equal(np.asarray(after), pixels)
    assert finish.frames(tmp_path, text, "../") == text


def test_formulas_script_stays_with_formulas():
    with_formula, without = (finish.lighter(SCRIPTS + article) for article in (ARTICLE, "<p>none</p>"))
    assert "tex-svg" in with_formula and "window.MathJax" in with_formula
    assert "athjax" not in without.lower() and "custom.css" in without
    assert "fontawesome" not in with_formula + without


def test_no_page_waits_for_the_search_of_sphinx():
    """Newer themes load it on every page, 50 KB before the first word is drawn; the search page has the book's own."""
    names = ("_static/searchtools.js", "_static/language_data.js?v=1", "searchindex.js")
    theirs = "".join(f'<script src="../{name}"></script>\n' for name in names) + "</head>"
    assert finish.lighter(theirs) == "</head>"
    page = finish.search(finish.lighter(theirs))
    assert page.count("<script") == 2 and "_static/sections.js" in page and finish.search(page) == page


def test_icons_come_before_the_books_own_style_once():
    once = finish.with_icons(SCRIPTS)
    assert once.index("../_static/icons.css") < once.index("custom.css") and finish.with_icons(once) == once


def test_a_value_and_its_spread_stay_together():
    assert finish.together("81.1 ± 1.4, 80 % ± 2, a ± b") == "81.1\u00a0±\u00a01.4, 80 % ± 2, a ± b"


def test_signatures_are_no_definitions_and_arrows_have_names():
    signature = '<dl>\n<dd><em class="sig-param">h</em></dd>\n<dd><em class="sig-param">z</em></dd>\n</dl>'
    page = finish.named('<summary><span class="toctree-toggle"></span></summary>' + signature + "<dl><dd>D</dd></dl>")
    assert page.count("<dd>") == 1 and page.count("<dl>") == 1 and '<summary aria-label="' in page


def test_a_list_stands_within_an_item_of_its_list():
    page = finish.named("<ul><li>a</li>\n<ul><li>b</li><ul><li>c</li></ul></ul><li>d</li></ul>")
    assert page == "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li>\n<li>d</li></ul>"


def test_sections_hold_prose_without_formulas_and_code_without_imports():
    top, code = finish.sections(ARTICLE)
    assert top == ("top", "Over-sampling", "The ratio … is large.", "")
    assert code == ("code", "How it is done", "Draw again.", "weights class_weights")
    rows = json.loads(finish.searchable({"book/a.html": ARTICLE, "search.html": ""}).split(" = ")[1].rstrip(";\n"))
    assert [row[:4] for row in rows] == [["book/a.html", "top", "Over-sampling", "Over-sampling"],
                                         ["book/a.html", "code", "Over-sampling", "How it is done"]]  # fmt: skip


def test_an_icon_that_the_theme_lacks_is_named(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/all.css").write_text('.fa-bars:before{content:"\\f0c9"}')
    with pytest.raises(ValueError, match="theme does not have: nonsense"):
        finish.icons(tmp_path, ['<i class="fa-solid fa-bars"></i><i class="fas fa-nonsense"></i>'])


def test_a_folder_without_a_book_is_refused(tmp_path):
    with pytest.raises(ValueError, match="make book"):
        finish.finish(tmp_path)
