"""Every built page in Chromium: formulas drawn, no error, no request to another host, no sideways scrolling on a phone,
nothing cut off, light, quick, and within reach by keyboard and by ear. No check is a time: a machine may be busy.

Skipped where no Chromium is found, unless IMBOOK_BROWSER=required. `make book` comes first.
"""

import functools
import gzip
import json
import os
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import sync_playwright

HTML = Path(__file__).resolve().parents[1] / "_build/html"
PAGES = [p.relative_to(HTML).as_posix() for p in sorted(HTML.glob("*/**/*.html")) if "_static" not in p.parts]
PAGES += ["genindex.html", "search.html"] if PAGES else []
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
SIZED = sorted(PAGES, key=lambda name: (HTML / name).stat().st_size)
# Pages that show a module's source are all alike: the smallest and the largest here, the others by `make test-long`.
SOURCES = [name for name in SIZED if name.startswith("_modules/imbook/")]
# What takes long is asked of the smallest page of each folder, of the others by `make test-long`; of sources, of one.
KINDS = {name.rpartition("/")[0] or name: name for name in reversed(SIZED) if name not in SOURCES[1:]}


def pages(names, later):
    """The test is asked of these pages; of those in `later` by `make test-long` alone."""
    marked = [pytest.param(name, marks=pytest.mark.long if name in later else []) for name in names]
    return pytest.mark.parametrize("name", marked)


each = pages(PAGES, SOURCES[1:-1])
one_of_each = pages([name for name in PAGES if name not in SOURCES[1:]], {*PAGES} - {*KINDS.values()})

# Text of the article that MathJax should have replaced; code is left out, it may hold such characters.
RAW = r"""() => {
  const article = (document.querySelector('article') || document.body).cloneNode(true);
  article.querySelectorAll('pre, code, script, style, mjx-container').forEach(e => e.remove());
  const raw = /\\\(|\\\[|\$\$|\\begin\{|\\(?:frac|sum|rho|tau)\b|\$[^$\n]{0,80}[\\_^][^$\n]{0,80}\$/g;
  return article.textContent.match(raw) || [];
}"""
EMPTY = """() => [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container svg')).length"""
BARS = """() => [...document.querySelectorAll('header, .bd-header-article')].filter(e => e.offsetHeight > 0).length"""
SEARCHES = """() => [...document.querySelectorAll('.search-button__button, form.bd-search')]
  .filter(e => e.offsetHeight > 0).length"""
# MathJax marks a formula it cannot read as an error, and writes an unknown command in red.
FAILED = """() => document.querySelectorAll('[data-mjx-error], mjx-container g[fill="red"]').length"""
WIDE = """() => [...document.querySelectorAll('article *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 100)).slice(0, 5)"""

# Boxes with code that is wider than its box; whether 85 characters have room in the first one.
CUT = """() => [...document.querySelectorAll('article div.highlight pre')]
  .filter(e => e.scrollWidth > e.clientWidth + 1 && !(SCROLLS && e.closest('.cell_output')))
  .map(e => e.textContent.slice(0, 80))"""
ROOM = """() => {
  const folded = [...document.querySelectorAll('article details.hide:not([open])')];
  folded.forEach(e => { e.open = true; });
  const room = [...document.querySelectorAll('article div.cell_input pre')].slice(0, 8).map(pre => {
    const span = document.createElement('span'), own = getComputedStyle(pre);
    span.textContent = 'x'.repeat(85);
    pre.append(span);
    const inner = pre.clientWidth - parseFloat(own.paddingLeft) - parseFloat(own.paddingRight);
    const width = span.getBoundingClientRect().width, lines = span.getClientRects().length;
    span.remove();
    return lines > 1 ? 0 : Math.floor(85 * inner / width);
  });
  folded.forEach(e => { e.open = false; });
  return Math.min(85, ...room);
}"""
# Tables that are wider than their box.
BROAD = """() => [...document.querySelectorAll('article table')].filter(e => e.offsetHeight)
  .filter(e => e.scrollWidth > (e.closest('.pst-scrollable-table-container') || e.parentElement).clientWidth + 1)
  .map(e => e.textContent.slice(0, 80))"""
# Values such as 81.1 ± 1.4 that stand on two lines.
SPLIT = r"""() => {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    for (const hit of walk.currentNode.data.matchAll(/[\d.]+\s±\s[\d.]+/g)) {
      const range = document.createRange();
      range.setStart(walk.currentNode, hit.index);
      range.setEnd(walk.currentNode, hit.index + hit[0].length);
      if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) found.push(hit[0]);
    }
  }
  return found;
}"""
# Boxes that scroll sideways and cannot be reached by keyboard, or have no name.
UNREACHED = """() => [...document.querySelectorAll('article, article *')].filter(e => e.scrollWidth > e.clientWidth + 1
  && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.clientWidth > 0
  && !(e.tabIndex === 0 && e.getAttribute('role') === 'region' && e.getAttribute('aria-label')))
  .map(e => e.outerHTML.slice(0, 100))"""
# Rows whose label leaves its box when the box is scrolled to its end.
LABELS = """() => [...document.querySelectorAll('article table')].flatMap(table => {
  let box = table.parentElement;
  while (box && !(box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX === 'auto'))
    box = box.parentElement;
  if (!box) return [];
  box.scrollLeft = box.scrollWidth;
  const left = box.getBoundingClientRect().left;
  const labels = table.querySelector('tbody [rowspan]') ? 'tbody th:last-of-type' : 'tr > :first-child';
  return [...table.querySelectorAll(labels)]
    .filter(e => e.getBoundingClientRect().left < left - 2 || e.getBoundingClientRect().left > left + box.clientWidth)
    .map(e => e.textContent);
})"""
# Text that leaves the sheet.
OUTSIDE = """() => [...document.querySelectorAll('article :is(pre, p, td, th, li, img, h1, h2, h3, mjx-container)')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.offsetHeight)
  .map(e => e.outerHTML.slice(0, 100)).slice(0, 5)"""
# What a page may not have, by where it is looked at: questions whose answer is empty, 0 or false.
SCREEN = {
    "formulas that were not drawn": EMPTY,
    "formulas with an error": FAILED,
    "formulas left as text": RAW,
    "headers besides the one": f"() => ({BARS})() - 1",
    "code that is cut off": CUT.replace("SCROLLS", "true"),
    "tables that scroll sideways": BROAD,
    "values on two lines": SPLIT,
    "characters of code for which a line has no room": f"() => Math.max(0, 85 - ({ROOM})())",
}
PHONE = {
    "wider than the screen": f"() => document.documentElement.scrollWidth > innerWidth && ['page', ...({WIDE})()]",
    "boxes out of the keyboard's reach": UNREACHED,
    "labels that scroll away": LABELS,
    "values on two lines": SPLIT,
}
PAPER = {
    "code that is cut off": CUT.replace("SCROLLS", "false"),
    "beyond the sheet": OUTSIDE,
    "values on two lines": SPLIT,
    "text that is not dark": "() => Math.max(...(COLOUR)(document.querySelector('article'), 'color').slice(0, 3)) > 99",
    "paper that is not white": """() => {
      const paper = (COLOUR)(document.documentElement, 'backgroundColor');
      return Math.min(...paper.slice(0, 3)) < 251 && paper[3] !== 0;
    }""",
}
COLOUR = "((e, name) => getComputedStyle(e || document.body)[name].match(/[0-9.]+/g).map(Number))"
# What the browser waits for before it draws anything.
BLOCKING = """() => performance.getEntriesByType('resource').filter(r => r.renderBlockingStatus === 'blocking')
  .map(r => r.name)"""
SHEET = 680  # width in CSS pixels of an A4 page between its margins
LIGHT = 1_500_000  # bytes of a page with all that it loads
FIRST = 200_000  # bytes of the page and of what it waits for before it is drawn: a second at 1.6 megabits


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def end_headers(self):
        self.send_header("Cache-Control", "max-age=3600")  # what pages share is read once
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site():
    """The address of a server of the built pages on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML)) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """One browser, and in it one context: its pages share a cache."""
    if CHROMIUM is None:
        message = "no Chromium on this machine: the built pages are not tested in a browser"
        if os.environ.get("IMBOOK_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        # As root Chromium needs --no-sandbox, in a container --disable-dev-shm-usage.
        args = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        context = browser.new_context()
        context.set_default_timeout(300_000)  # the machine may be busy
        yield context
        browser.close()


@pytest.fixture
def visit(browser):
    """visit(url, width) loads a page and waits for its formulas: (page, what went wrong, the addresses asked for)."""
    opened = []

    def visit(url, width):
        page = browser.new_page()
        opened.append(page)
        page.set_viewport_size({"width": width, "height": 800})
        wrong, asked = [], []
        own = ("/".join(url.split("/")[:3]) + "/", "data:", "blob:")
        page.on("console", lambda m: wrong.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: wrong.append(f"error: {e}"))
        page.on("response", lambda r: wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.on("request", lambda r: (asked if r.url.startswith(own) else wrong).append(r.url))
        page.goto(url, wait_until="load")
        page.evaluate("() => window.MathJax && MathJax.startup && MathJax.startup.promise")
        return page, wrong, asked

    yield visit
    for page in opened:
        page.close()


def ask(page, questions):
    """{question: answer} of those whose answer is not empty; one call of the browser for all."""
    asked = ", ".join(f"{json.dumps(name)}: ({code.replace('(COLOUR)', COLOUR)})()" for name, code in questions.items())
    return {name: answer for name, answer in page.evaluate(f"() => ({{{asked}}})").items() if answer}


@functools.cache
def sent(path):
    """The bytes of a file as a forge's pages are served: text is compressed."""
    body = path.read_bytes()
    return len(gzip.compress(body)) if path.suffix in (".html", ".css", ".js", ".json", ".svg") else len(body)


def weights(site, urls):
    """{path: bytes} of the site's files that these addresses name."""
    paths = {unquote(urlsplit(url).path).lstrip("/") for url in urls if url.startswith(site)}
    return {path: sent(HTML / path) for path in sorted(paths)}


def heaviest(files):
    return sorted(files.items(), key=lambda item: -item[1])[:5]


def test_the_first_page_opens(browser, site):
    assert PAGES, "no book here: run `make book`"
    page = browser.new_page()
    page.goto(f"{site}/index.html", wait_until="commit")
    page.wait_for_url("**/book/intro.html")
    page.close()


@each
def test_page(visit, site, name):
    """On a screen, then, in dark mode, printed on A4; light, and quick to be drawn."""
    page, wrong, asked = visit(f"{site}/{name}", width=1280)
    assert not wrong
    assert ask(page, SCREEN) == {}
    assert page.evaluate(SEARCHES) == 1 or name == "search.html", "one search box"
    before = weights(site, [f"{site}/{name}", *page.evaluate(BLOCKING)])
    assert len(before) > 3 and sum(before.values()) < FIRST, heaviest(before)

    page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
    page.set_viewport_size({"width": SHEET, "height": 800})
    page.emulate_media(media="print")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'light'")
    assert ask(page, PAPER) == {}
    page.emulate_media(media="screen")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")

    files = weights(site, asked)
    assert sum(files.values()) < LIGHT, heaviest(files)
    formulas = page.evaluate("() => document.querySelectorAll('article .math').length")
    assert any("tex-svg" in path for path in files) == bool(formulas), "the formulas' script only where there is one"
    assert not wrong


@each
def test_page_on_a_phone(visit, name):
    """Read from the disk, as one who has built the book reads it."""
    page, wrong, _ = visit((HTML / name).as_uri(), width=390)
    assert ask(page, PHONE) == {}
    assert not wrong


# -- keyboard and ear -------------------------------------------------------------------------------------------------


BUTTONS = [".primary-toggle", ".dropdown-download-buttons > button", ".btn-fullscreen-button", ".theme-switch-button",
           ".search-button", ".article-header-buttons .secondary-toggle", "button.copybtn"]  # fmt: skip


def test_what_has_the_focus_has_a_ring(visit, site):
    page, _, _ = visit(f"{site}/notebooks/01_imbalance.html", width=1280)
    ringed = {}
    for _ in range(200):
        page.keyboard.press("Tab")
        style = page.evaluate("""names => {
          const e = document.activeElement, s = getComputedStyle(e);
          return [names.filter(n => e.matches(n)), s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2,
                  s.opacity === '1'];
        }""", BUTTONS)  # fmt: skip
        if "button.copybtn" in style[0]:
            page.wait_for_function("() => getComputedStyle(document.activeElement).opacity === '1'")  # slowly
            style[2] = True
        for name in style[0]:
            ringed[name] = style[1] and style[2]
        if "button.copybtn" in ringed:
            break
    shown = [name for name in BUTTONS if page.evaluate("n => document.querySelector(n)?.offsetHeight > 0", name)]
    assert len(shown) >= 5 and [name for name in shown if not ringed.get(name)] == []


AXE = "axe-core@4.11.0"


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """axe-core's script from npm; skipped where it is not to be had."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: accessibility is not tested")
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", AXE]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"axe-core could not be installed by npm: {done.stderr[-300:]}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@one_of_each
def test_page_is_accessible(visit, site, axe, name):
    page, _, _ = visit(f"{site}/{name}", width=1280)
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")  # colours change at once
    page.evaluate(axe)
    for mode in ("light", "dark"):
        page.evaluate("mode => { document.documentElement.dataset.theme = mode; }", mode)
        violations = page.evaluate("""async () => (await axe.run(document, {resultTypes: ['violations']})).violations
          .filter(v => ['serious', 'critical'].includes(v.impact))
          .map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 150), v.nodes[0].failureSummary])""")
        assert violations == [], mode


# -- search -----------------------------------------------------------------------------------------------------------


def results(visit, address, query):
    page, wrong, _ = visit(f"{address}/search.html?q={query}", width=1280)
    page.wait_for_selector("#search-results li")
    assert not wrong
    found = page.evaluate("""() => [...document.querySelectorAll('#search-results li')].map(li =>
      [li.querySelector('a').getAttribute('href'), li.querySelector('p, .context')?.textContent || ''])""")
    return found


def test_search_knows_a_word_with_and_without_its_hyphen(visit, site):
    one, other = (results(visit, site, query) for query in ("oversampling", "over-sampling"))
    assert one == other and len(one) > 5
    found = {href.partition("#")[2].lower() for href, _ in one[:15]}
    assert any("oversampling" in a for a in found) and any("over-sampling" in a for a in found), found


def test_search_leads_to_sections_and_shows_prose(visit, site):
    for query in ("imbalance+ratio", "logit+adjustment", "cross+entropy"):
        found = results(visit, site, query)
        assert found
        for href, text in found:
            assert re.fullmatch(r"[\w/-]+\.html#[\w.-]+", href)
            assert not re.search(r"\bimport \w|\\\(|\\[a-z]+\{|\$", text), text
    page, wrong, _ = visit(f"{site}/{found[0][0]}", width=1280)
    assert not wrong and page.evaluate("() => document.querySelector(':target') !== null")


def test_search_works_from_the_disk(visit):
    assert results(visit, HTML.as_uri(), "oversampling")


def test_nothing_covers_what_is_searched_for(visit, site):
    page, _, _ = visit(f"{site}/search.html?q=oversampling", width=390)
    covered = page.evaluate("""() => {
      const forms = [...document.querySelectorAll('form.bd-search')];
      const input = forms.find(e => e.offsetHeight).querySelector('input'), style = getComputedStyle(input);
      const box = input.getBoundingClientRect();
      const left = box.left + parseFloat(style.paddingLeft), right = box.right - parseFloat(style.paddingRight);
      return [...input.form.querySelectorAll('i, svg, span')].map(e => e.getBoundingClientRect())
        .filter(e => e.width && e.left < right && e.right > left).length;
    }""")
    assert covered == 0


def test_search_says_when_there_is_nothing(visit, site):
    page, _, _ = visit(f"{site}/search.html?q=xyzzyx", width=1280)
    assert "xyzzyx" in page.inner_text("#search-results [role=status]")
