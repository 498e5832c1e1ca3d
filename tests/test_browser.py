"""Every built page in Chromium: formulas drawn, no error, no request to another host, no sideways scrolling on a phone,
nothing cut off, light, quick, and within reach by keyboard and by ear.

Skipped where no Chromium is found, unless IMBOOK_BROWSER=required. `make book` comes first.
"""

import functools
import gzip
import os
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

HTML = Path(__file__).resolve().parents[1] / "_build/html"
PAGES = [p.relative_to(HTML).as_posix() for p in sorted(HTML.glob("*/**/*.html")) if "_static" not in p.parts]
PAGES += ["genindex.html", "search.html"] if PAGES else []
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
each = pytest.mark.parametrize("name", PAGES)
# Of the pages that show a module's source, which are all alike, one.
SOURCES = [name for name in PAGES if name.startswith("_modules/imbook/")]
one_of_each = pytest.mark.parametrize("name", [name for name in PAGES if name not in SOURCES[1:]])

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
  const pre = document.querySelector('article div.cell_input pre');
  if (!pre) return 85;
  const span = document.createElement('span');
  span.textContent = 'x'.repeat(85);
  pre.append(span);
  const own = getComputedStyle(pre);
  const room = pre.clientWidth - parseFloat(own.paddingLeft) - parseFloat(own.paddingRight);
  const width = span.getBoundingClientRect().width, lines = span.getClientRects().length;
  span.remove();
  return lines > 1 ? 0 : Math.floor(85 * room / width);
}"""
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
SHEET = 680  # width in CSS pixels of an A4 page between its margins
LIGHT = 1_500_000  # bytes


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site():
    """The address of a server of the built pages on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        message = "no Chromium on this machine: the built pages are not tested in a browser"
        if os.environ.get("IMBOOK_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        # As root Chromium needs --no-sandbox, in a container --disable-dev-shm-usage.
        args = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


def visit(browser, url, width):
    """Load a page and wait for its formulas. Returns the page and what went wrong: errors and foreign requests."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    wrong = []
    host = "/".join(url.split("/")[:3]) + "/"
    page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(f"error: {e}"))
    page.on("response", lambda r: wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    own = (host, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(f"request: {r.url}"))
    page.goto(url, wait_until="load")
    page.evaluate("() => window.MathJax && MathJax.startup && MathJax.startup.promise")
    return page, wrong


def test_the_first_page_opens(browser, site):
    assert PAGES, "no book here: run `make book`"
    page = browser.new_page()
    page.goto(f"{site}/index.html", wait_until="commit")
    page.wait_for_url("**/book/intro.html")
    page.close()


@each
def test_page(browser, site, name):
    page, wrong = visit(browser, f"{site}/{name}", width=1280)
    assert not wrong
    assert page.evaluate(EMPTY) == 0, "formulas that were not drawn"
    assert page.evaluate(FAILED) == 0, "formulas with an error"
    assert page.evaluate(RAW) == []
    assert page.evaluate(BARS) == 1, "one header"
    assert page.evaluate(SEARCHES) == 1 or name == "search.html", "one search box"
    assert page.evaluate(CUT.replace("SCROLLS", "true")) == [], "code that is cut off"
    assert page.evaluate(ROOM) >= 85, "characters of code that fit into a line"
    page.close()


@each
def test_page_on_a_phone(browser, site, name):
    page, wrong = visit(browser, f"{site}/{name}", width=390)
    assert not wrong
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), page.evaluate(WIDE)
    assert page.evaluate(UNREACHED) == []
    assert page.evaluate(LABELS) == []
    assert page.evaluate(SPLIT) == []
    page.close()


@one_of_each
def test_page_on_paper(browser, site, name):
    """In dark mode, printed on A4: dark on white, nothing cut off or beyond the edge."""
    page, _ = visit(browser, f"{site}/{name}", width=SHEET)
    page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
    page.emulate_media(media="print")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'light'")
    assert page.evaluate(CUT.replace("SCROLLS", "false")) == []
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(SPLIT) == []
    text, paper = page.evaluate("""() => [document.querySelector('article') || document.body, document.documentElement]
      .map((e, i) => getComputedStyle(e)[i ? 'backgroundColor' : 'color'].match(/[0-9.]+/g).map(Number))""")
    assert max(text[:3]) < 100, "the text is dark"
    assert min(paper[:3]) > 250 or paper[3:] == [0], "the paper is white"
    page.emulate_media(media="screen")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
    page.close()


# -- weight and speed -------------------------------------------------------------------------------------------------


def sent(response):
    """The bytes of an answer as a forge's pages are served: text is compressed."""
    body = response.body()
    kind = response.headers.get("content-type", "")
    return len(gzip.compress(body)) if re.search("text|javascript|json|svg", kind) else len(body)


@one_of_each
def test_page_is_light(browser, site, name):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    answers = []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(f"{site}/{name}", wait_until="networkidle")
    weights = {answer.url.rpartition("/")[2]: sent(answer) for answer in answers}
    assert sum(weights.values()) < LIGHT, sorted(weights.items(), key=lambda item: -item[1])[:5]
    formulas = page.evaluate("() => document.querySelectorAll('article .math').length")
    assert any("tex-svg" in url for url in weights) == bool(formulas), "the formulas' script only where there is one"
    page.close()


def test_the_first_paint_takes_less_than_a_second(browser, site):
    """The quickest of three: the machine may have other things to do."""
    times = []
    for _ in range(3):
        page = browser.new_page()
        page.goto(f"{site}/notebooks/06_oversampling.html", wait_until="load")
        times.append(page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        page.close()
    assert min(times) < 1000


@one_of_each
def test_page_opens_from_the_disk(browser, name):
    page = browser.new_page()
    wrong = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.goto((HTML / name).as_uri(), wait_until="load")
    page.wait_for_timeout(100)
    assert not wrong
    page.close()


# -- keyboard and ear -------------------------------------------------------------------------------------------------


BUTTONS = [".primary-toggle", ".dropdown-download-buttons > button", ".btn-fullscreen-button", ".theme-switch-button",
           ".search-button", ".article-header-buttons .secondary-toggle", "button.copybtn"]  # fmt: skip


def test_what_has_the_focus_has_a_ring(browser, site):
    page, _ = visit(browser, f"{site}/notebooks/01_imbalance.html", width=1280)
    ringed = {}
    for _ in range(200):
        page.keyboard.press("Tab")
        style = page.evaluate("""names => {
          const e = document.activeElement, s = getComputedStyle(e);
          return [names.filter(n => e.matches(n)), s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2,
                  s.opacity === '1'];
        }""", BUTTONS)  # fmt: skip
        if "button.copybtn" in style[0]:
            page.wait_for_timeout(500)  # it appears slowly
            style[2] = page.evaluate("() => getComputedStyle(document.activeElement).opacity === '1'")
        for name in style[0]:
            ringed[name] = style[1] and style[2]
        if "button.copybtn" in ringed:
            break
    shown = [name for name in BUTTONS if page.evaluate("n => document.querySelector(n)?.offsetHeight > 0", name)]
    assert len(shown) >= 5 and [name for name in shown if not ringed.get(name)] == []
    page.close()


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


@pytest.mark.long
@one_of_each
def test_page_is_accessible(browser, site, axe, name):
    page, _ = visit(browser, f"{site}/{name}", width=1280)
    page.evaluate(axe)
    for mode in ("light", "dark"):
        page.evaluate("mode => { document.documentElement.dataset.theme = mode; }", mode)
        page.wait_for_timeout(400)  # colours change slowly
        found = page.evaluate("""async () => (await axe.run(document, {resultTypes: ['violations']})).violations
          .filter(v => ['serious', 'critical'].includes(v.impact))
          .map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 150), v.nodes[0].failureSummary])""")
        assert found == [], mode
    page.close()


# -- search -----------------------------------------------------------------------------------------------------------


def results(browser, address, query):
    page, wrong = visit(browser, f"{address}/search.html?q={query}", width=1280)
    page.wait_for_selector("#search-results li")
    assert not wrong
    found = page.evaluate("""() => [...document.querySelectorAll('#search-results li')].map(li =>
      [li.querySelector('a').getAttribute('href'), li.querySelector('p, .context')?.textContent || ''])""")
    page.close()
    return found


def test_search_knows_a_word_with_and_without_its_hyphen(browser, site):
    one, other = (results(browser, site, query) for query in ("oversampling", "over-sampling"))
    assert one == other and len(one) > 5
    first = {href.partition("#")[2].lower() for href, _ in one[:5]}
    assert any("oversampling" in a for a in first) and any("over-sampling" in a for a in first), first


def test_search_leads_to_sections_and_shows_prose(browser, site):
    for query in ("imbalance+ratio", "logit+adjustment", "cross+entropy"):
        found = results(browser, site, query)
        assert found
        for href, text in found:
            assert re.fullmatch(r"[\w/-]+\.html#[\w.-]+", href)
            assert not re.search(r"\bimport \w|\\\(|\\[a-z]+\{|\$", text), text
    page, wrong = visit(browser, f"{site}/{found[0][0]}", width=1280)
    assert not wrong and page.evaluate("() => document.querySelector(':target') !== null")
    page.close()


def test_search_works_from_the_disk(browser):
    assert results(browser, HTML.as_uri(), "oversampling")


def test_search_says_when_there_is_nothing(browser, site):
    page, _ = visit(browser, f"{site}/search.html?q=xyzzyx", width=1280)
    assert "xyzzyx" in page.inner_text("#search-results [role=status]")
    page.close()
