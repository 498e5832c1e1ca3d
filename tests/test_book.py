"""The built pages, read as files: complete, linked, self-contained. `make book` comes first."""

import ast
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build/html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [TOC["root"]] + [
    entry["file"] for part in TOC["parts"] for c in part["chapters"] for entry in (c, *c.get("sections", ()))
]
PAGES = [p for p in sorted(HTML.rglob("*.html")) if "_static" not in p.parts and p.name != "index.html"]
each = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
SOUP = {page: BeautifulSoup(page.read_text(), "html.parser") for page in PAGES}


def test_every_page_of_the_contents_is_built():
    assert PAGES, "no book here: run `make book`"
    missing = [name for name in CHAPTERS if not (HTML / f"{name}.html").is_file()]
    assert not missing
    assert (HTML / "index.html").is_file()


def test_every_chapter_and_page_is_in_the_contents():
    files = list(ROOT.glob("notebooks/*.ipynb")) + list(ROOT.glob("book/*.md")) + list(ROOT.glob("book/api/*.md"))
    assert sorted(p.relative_to(ROOT).with_suffix("").as_posix() for p in files) == sorted(CHAPTERS)


def target(page, href):
    """The file and the anchor that a link of a page leads to; None for a link to another site."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc:
        return None
    return (page.parent / unquote(parts.path)).resolve() if parts.path else page, unquote(parts.fragment)


@each
def test_internal_links_and_anchors(page):
    for a in SOUP[page].select("a[href]"):
        if (found := target(page, a["href"])) is None:
            continue
        path, anchor = found
        assert path.is_file(), f"{a['href']} leads nowhere"
        if anchor and path in SOUP:
            assert SOUP[path].find(id=anchor) or SOUP[path].find(attrs={"name": anchor}), f"{a['href']}: no such anchor"


@each
def test_one_header_and_one_search_box(page):
    soup = SOUP[page]
    assert len(soup.select(".bd-header-article")) == 1
    assert not soup.select_one("header.bd-header").get_text(strip=True), "a second bar above the book's own"
    assert len(soup.select("form.bd-search")) == (2 if page.stem == "search" else 1)


@each
def test_nothing_comes_from_another_host(page):
    soup = SOUP[page]
    loaded = [e["src"] for e in soup.select("[src]")] + [
        e["href"] for e in soup.select("link[href]") if "canonical" not in e.get("rel", [])
    ]
    assert not [url for url in loaded if re.match(r"(https?:)?//", url)]
    inline = "".join(e.get_text() for e in soup.select("script, style"))
    assert not re.findall(r"https?://[^\s\"']+\.(?:js|css)", inline)


def test_no_style_sheet_loads_from_another_host():
    for sheet in HTML.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


@each
def test_images_exist_and_say_what_is_seen(page):
    for image in SOUP[page].select("img"):
        assert (page.parent / unquote(image["src"])).is_file(), image
        alt = image.get("alt", "")
        assert alt and not alt.endswith((".png", ".svg")), f"no alternative text: {image}"


@each
def test_no_error_and_no_raw_markup(page):
    article = SOUP[page].select_one("article") or SOUP[page]
    assert not article.select(".output.traceback, .system-message, .problematic")
    for e in article.select("pre, code, script"):
        e.extract()
    text = article.get_text()
    assert not re.search(r"\{[\w:]+\}`|:::|\]\(", text), "markup that was not understood"


def test_the_reference_has_every_public_name():
    """Each function and class with its signature and a link to its source; nothing twice."""
    anchors = Counter(dt["id"] for page in PAGES if page.parent.name == "api" for dt in SOUP[page].select("dt.sig[id]"))
    assert not [name for name, times in anchors.items() if times > 1]
    missing = []
    for path in sorted(ROOT.glob("imbook/**/*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                names = {f"{module}.{node.name}", f"imbook.data.{node.name}"}
                missing += [f"{module}.{node.name}"] * (not names & anchors.keys())
    assert not missing, "no docstring, or no automodule in book/api"
    sources = [a["href"] for page in PAGES if page.parent.name == "api" for a in SOUP[page].select("dt.sig a[href]")]
    assert sum("_modules/" in href for href in sources) > 300
