"""Every built page in Chromium: formulas drawn, no error, no request to another host, no sideways scrolling on a phone.

Skipped where no Chromium is found, unless IMBOOK_BROWSER=required. `make book` comes first.
"""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

HTML = Path(__file__).resolve().parents[1] / "_build/html"
PAGES = [p.relative_to(HTML).as_posix() for p in sorted(HTML.glob("*/*.html")) if p.parent.name != "_static"]
PAGES += ["genindex.html", "search.html"] if PAGES else []
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
each = pytest.mark.parametrize("name", PAGES)

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
    page.close()


@each
def test_page_on_a_phone(browser, site, name):
    page, wrong = visit(browser, f"{site}/{name}", width=390)
    assert not wrong
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), page.evaluate(WIDE)
    page.close()
