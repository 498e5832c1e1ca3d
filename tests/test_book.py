"""The built pages, read as files: complete, linked, self-contained. `make book` comes first."""

import ast
import copy
import functools
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


@functools.cache
def soup(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@functools.cache
def anchors(page):
    """What a link can lead to on a page."""
    tags = " ".join(re.findall(r"<[^>]+>", page.read_text(encoding="utf-8")))
    return set(re.findall(r'\s(?:id|name)="([^"]+)"', tags))


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
    for a in soup(page).select("a[href]"):
        if (found := target(page, a["href"])) is None:
            continue
        path, anchor = found
        assert path.is_file(), f"{a['href']} leads nowhere"
        if anchor and path in PAGES:
            assert anchor in anchors(path), f"{a['href']}: no such anchor"


@each
def test_one_header_and_one_search_box(page):
    found = soup(page)
    assert len(found.select(".bd-header-article")) == 1
    assert not found.select_one("header.bd-header").get_text(strip=True), "a second bar above the book's own"
    assert len(found.select("form.bd-search")) == (2 if page.stem == "search" else 1)


@each
def test_nothing_comes_from_another_host(page):
    found = soup(page)
    loaded = [e["src"] for e in found.select("[src]")] + [
        e["href"] for e in found.select("link[href]") if "canonical" not in e.get("rel", [])
    ]
    assert not [url for url in loaded if re.match(r"(https?:)?//", url)]
    inline = "".join(e.get_text() for e in found.select("script, style"))
    assert not re.findall(r"https?://[^\s\"']+\.(?:js|css)", inline)


def test_no_style_sheet_loads_from_another_host():
    for sheet in HTML.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


@each
def test_images_exist_and_say_what_is_seen(page):
    for image in soup(page).select("img"):
        assert (page.parent / unquote(image["src"])).is_file(), image
        alt = image.get("alt", "")
        assert alt and not alt.endswith((".png", ".svg")), f"no alternative text: {image}"


@each
def test_no_error_and_no_raw_markup(page):
    article = copy.copy(soup(page).select_one("article") or soup(page))
    assert not article.select(".output.traceback, .system-message, .problematic")
    for e in article.select("pre, code, script"):
        e.extract()
    text = article.get_text()
    assert not re.search(r"\{[\w:]+\}`|:::|\]\(", text), "markup that was not understood"


def test_no_page_names_the_folder_it_was_built_in():
    """The reference would by a value, a chapter by a warning."""
    assert PAGES and not [page for page in PAGES if ROOT.as_posix() in page.read_text(encoding="utf-8")]


def test_the_reference_has_every_public_name():
    """Each function and class with its signature and a link to its source, each explained constant; nothing twice."""
    found = Counter(dt["id"] for page in PAGES if page.parent.name == "api" for dt in soup(page).select("dt.sig[id]"))
    assert not [name for name, times in found.items() if times > 1]
    missing = []
    shown = set(re.findall(r"automodule:: ([\w.]+)", "".join(p.read_text() for p in ROOT.glob("book/api/*.md"))))
    for path in sorted(ROOT.glob("imbook/**/*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module in shown:  # constants with a comment '#:'
            names = re.findall(r"^#: .*\n([A-Z][A-Z_0-9]*)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
            missing += [f"{module}.{name}" for name in names if f"{module}.{name}" not in found]
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                names = {f"{module}.{node.name}", f"imbook.data.{node.name}"}
                missing += [f"{module}.{node.name}"] * (not names & found.keys())
    assert {"imbook.data.SOURCES", "imbook.methods.METHODS", "imbook.tables.TABLES"} <= found.keys()
    assert not missing, "no docstring, or no automodule in book/api"
    sources = [a["href"] for page in PAGES if page.parent.name == "api" for a in soup(page).select("dt.sig a[href]")]
    assert sum("_modules/" in href for href in sources) > 300
