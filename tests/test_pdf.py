"""The printed book: its contents lead to the right pages, nothing leaves the sheet, formulas are drawn, code is whole.

Takes the finished pages that `make book` left. Skipped where no Chromium is found, unless IMBOOK_BROWSER=required.
"""

import os
import re
import unicodedata
from pathlib import Path

import pdf
import pytest
import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
long = pytest.mark.long


def bare(text):
    """The text without spaces, and without ligatures, which a PDF has."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


def test_chapters_come_in_order_sections_behind_their_page():
    chapters = [{"file": "b", "sections": [{"file": "c"}]}, {"file": "d"}]
    toc = {"root": "a", "parts": [{"caption": "P", "chapters": chapters}]}
    assert pdf.chapters(toc) == [(None, "a"), ("P", "b"), ("P", "c"), ("P", "d")]


def test_links_between_pages_become_links_within_the_document():
    text = """<article class="bd-article"><section id="s"><h1>T<a class="headerlink" href="#s">#</a></h1>
<a href="#s">1</a> <a href="../notebooks/c.html#d">2</a> <a href="b.html">3</a> <a href="https://x.org/">4</a>
<a href="../_sources/c.ipynb">5</a><img src="../../_images/i.webp"></section></article>"""
    title, made = pdf.article("book/a", text, ["book/a", "book/b", "notebooks/c"])
    links = [a["href"] for a in BeautifulSoup(made, "html.parser").select("a")]
    assert title == "T" and links == ["#book-a-s", "#notebooks-c-d", "#book-b", "https://x.org/"]
    assert 'id="book-a-s"' in made and 'src="../html/_images/i.webp"' in made


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """(the printed book, the one page it was printed from, that page's file)."""
    pages = ROOT / "_build/html"
    if pdf.chromium() is None:
        if os.environ.get("IMBOOK_BROWSER") == "required":
            pytest.fail("no Chromium on this machine: the book is not printed")
        pytest.skip("no Chromium on this machine: the book is not printed")
    assert (pages / "_static/icons.css").is_file(), "no finished book here: run `make book`"
    folder = tmp_path_factory.mktemp("print")
    (folder / "html").symlink_to(pages)
    pdf.write(*(Path(os.path.relpath(folder / name)) for name in ("html", "book.pdf")))  # relative, as in `make pdf`
    source = folder / "pdf/book.html"
    return PdfReader(folder / "book.pdf"), source.read_text(encoding="utf-8"), source


@long
def test_every_chapter_is_in_the_contents_with_its_page(book):
    reader, source, _ = book
    assert len(reader.pages) > 100
    rows = BeautifulSoup(source, "html.parser").select(".book-contents p:not(.part)")
    assert len(rows) == len(pdf.chapters(TOC))
    printed = [bare(page.extract_text()) for page in reader.pages]
    contents = "".join(printed[1:6])
    entries = [entry for entry in reader.outline if not isinstance(entry, list)]
    outline = {(bare(entry.title), reader.get_destination_page_number(entry) + 1) for entry in entries}
    last = 0
    for row in rows:
        title, number = row.a.get_text(), int(row.span.get_text())
        assert bare(title) + str(number) in contents, title
        assert number > last and bare(title) in printed[number - 1], title
        assert (bare(title), number) in outline, title
        last = number


@long
def test_every_page_but_the_cover_has_its_number(book):
    for number, page in enumerate(book[0].pages, 1):
        lines = page.extract_text().split()
        assert (str(number) in (lines[0], lines[-1])) == (number > 1), number


@long
def test_a_heading_is_on_one_page(book):
    reader, source, _ = book
    printed = [bare(page.extract_text()) for page in reader.pages]
    headings = BeautifulSoup(source, "html.parser").select("article :is(h1, h2, h3)")
    texts = {bare(heading.get_text()) for heading in headings if not heading.select(".math")}
    assert len(texts) > 100 and [text for text in texts if not any(text in page for page in printed)] == []


# Pieces of text whose right edge lies beyond the sheet, as laid out for print.
OUTSIDE = """() => {
  const found = [], walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (walk.nextNode()) {
    if (!walk.currentNode.data.trim() || walk.currentNode.parentElement.closest('mjx-assistive-mml')) continue;
    range.selectNodeContents(walk.currentNode);
    if ([...range.getClientRects()].some(r => r.width && r.right > innerWidth + 1)) found.push(walk.currentNode.data);
  }
  return found.concat([...document.querySelectorAll('mjx-container svg, img')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80)));
}"""


@long
def test_nothing_leaves_the_sheet(book):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=pdf.chromium(), args=pdf.ARGUMENTS)
        page = browser.new_page(viewport={"width": int(680 / pdf.SCALE), "height": 1000})  # 180 mm between margins
        page.emulate_media(media="print")
        page.goto(book[2].as_uri(), wait_until="load", timeout=300_000)
        page.evaluate("() => MathJax.startup.promise")
        assert page.evaluate(OUTSIDE) == []
        browser.close()


@long
def test_formulas_are_drawn_and_code_is_whole(book):
    """What stands in the last column of long lines of code is on paper; raw formulas are not."""
    reader, source, _ = book
    printed = bare("".join(page.extract_text() for page in reader.pages))
    assert r"\(" not in printed.replace(r"\\(", "") and r"\frac" not in printed
    soup = BeautifulSoup(source, "html.parser")
    lines = [line for pre in soup.select(".cell_input pre") for line in pre.get_text().splitlines() if len(line) > 80]
    assert lines and [line for line in lines if bare(line)[-25:] not in printed] == []
