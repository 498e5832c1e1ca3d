"""Print the built pages as one PDF: title, contents with page numbers, every chapter; `make pdf` calls it.

    python tools/pdf.py _build/html _build/book.pdf

Chromium prints twice: the first print says on which page each chapter begins.
"""

import html
import os
import re
import shutil
import sys
from pathlib import Path

import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]  # the first for root, the second for containers
SCALE = 0.85  # of the size on the screen: 10 pt text. A font size in the style would double titles in the outline.
STYLE = """
@page { size: A4; margin: 18mm 15mm; @bottom-center { content: counter(page); font: 9pt sans-serif } }
@page :first { @bottom-center { content: none } }
body { padding: 0; background: none }
.bd-main, .bd-main .bd-content, .bd-main .bd-content .bd-article-container { display: block; margin: 0; padding: 0 }
.bd-main .bd-content .bd-article-container { max-width: none; width: auto }
article.bd-article { padding: 0 !important; break-before: page }
article.bd-article h1:first-of-type { display: block !important; margin-top: 0 }
.cover { padding-top: 35vh; text-align: center }
.cover p { font-size: 14pt }
.book-contents { break-before: page }
.book-contents p { display: flex; gap: 0.5em; margin: 0.25em 0 }
.book-contents .part { font-weight: 600; margin-top: 1em }
.book-contents i { flex: 1; border-bottom: 1px dotted #888; height: 1em }
.bd-article div.cell_input div.highlight pre { font-size: 0.8rem }
.headerlink, .tocsection, details > summary::marker { display: none }
"""


def chromium():
    """The path of Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def chapters(toc):
    """[(part or None, file)] in the order of the book."""
    found = [(None, toc["root"])]

    def walk(part, entries):
        for entry in entries:
            found.append((part, entry["file"]))
            walk(part, entry.get("sections", ()))

    for part in toc["parts"]:
        walk(part["caption"], part["chapters"])
    return found


def key(name, anchor=""):
    """The anchor, in the one document, of a page or of a place on it."""
    return "-".join(filter(None, [name.replace("/", "-"), anchor]))


def placed(text):
    """The HTML with its pictures, styles and scripts found from the folder of the one document."""
    return re.sub(r'"(?:\.\./)+_', '"../html/_', text)


def article(name, text, names):
    """(title, article) of a page with its anchors and links fit for one document."""
    found = BeautifulSoup(text, "html.parser").select_one("article.bd-article")
    for element in found.select("script, .headerlink, .toctree-wrapper, button"):
        element.extract()
    for element in found.select("[id]"):
        element["id"] = key(name, element["id"])
    for element in found.select("details"):
        element["open"] = ""
    for link in found.select("a[href]"):
        path, _, anchor = link["href"].partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else f"{name}.html"
        if ":" not in link["href"] and path.removesuffix(".html") in names:
            link["href"] = "#" + key(path.removesuffix(".html"), anchor)
        elif ":" not in link["href"]:
            link.unwrap()  # a file beside the book: a sheet of paper leads to none
    found["id"] = key(name)
    return " ".join(found.h1.get_text().split()), placed(str(found))


def contents(toc, titles, numbers):
    """The table of contents; numbers is {title: page}, empty the first time."""
    rows, last = [], None
    for part, name in chapters(toc):
        if part != last:
            rows.append(f'<p class="part">{html.escape(part)}</p>')
        last, title = part, titles[name]
        number = numbers.get(title, "000")
        rows.append(f'<p><a href="#{key(name)}">{html.escape(title)}</a><i></i><span>{number}</span></p>')
    return f'<nav class="book-contents"><h1>Contents</h1>{"".join(rows)}</nav>'


def document(folder, config, toc, numbers):
    """(the whole book as one page, {file: title})."""
    names = [name for _, name in chapters(toc)]
    texts = {name: (folder / f"{name}.html").read_text(encoding="utf-8") for name in names}
    made = {name: article(name, text, names) for name, text in texts.items()}
    formulas = next(text for text in texts.values() if "tex-svg" in text)
    head = placed(formulas.partition("</head>")[0]).replace('data-theme="auto"', 'data-theme="light"')
    head = re.sub(r"<script(?![^>]*mathjax)(?!>window.MathJax).*?</script>", "", head, flags=re.DOTALL)
    title, author, year = (html.escape(config[name]) for name in ("title", "author", "copyright"))
    head = re.sub("<title>.*?</title>", f"<title>{title}</title>", head, flags=re.DOTALL)
    cover = f'<div class="cover"><h1>{title}</h1><p>{author}, {year}</p></div>'
    titles = {name: title for name, (title, _) in made.items()}
    body = cover + contents(toc, titles, numbers) + "".join(text for _, text in made.values())
    return f'{head}<style>{STYLE}</style></head><body><main class="bd-main"><div class="bd-content">' \
           f'<div class="bd-article-container">{body}</div></div></main></body></html>', titles  # fmt: skip


def starts(reader, titles):
    """{title: page, from 1} of the chapters {file: title}; a file's anchor is a destination in the PDF."""
    places = reader.named_destinations
    return {title: reader.get_destination_page_number(places[f"/{key(name)}"]) + 1 for name, title in titles.items()}


def write(folder, out):
    """Print the book to the file `out`. Raises ValueError if there are no pages or no Chromium."""
    if chromium() is None:
        raise ValueError("no Chromium found, which prints the book: install chromium")
    if not (folder / "search.html").is_file():
        raise ValueError(f"no pages in {folder}: run `make book`")
    config, toc = (yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in ("_config.yml", "_toc.yml"))
    source = out.resolve().parent / "pdf" / "book.html"  # beside the pages' folder, where pictures and styles are found
    source.parent.mkdir(exist_ok=True)
    numbers = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        for _ in range(2):
            text, titles = document(folder, config, toc, numbers)
            source.write_text(text, encoding="utf-8")
            page = browser.new_page()
            page.set_default_timeout(600_000)
            page.goto(source.as_uri(), wait_until="load")
            page.evaluate("() => MathJax.startup.promise")
            page.pdf(path=out, prefer_css_page_size=True, print_background=True, scale=SCALE, outline=True, tagged=True)
            page.close()
            before, numbers = numbers, starts(PdfReader(out), titles)
        browser.close()
    if before != numbers:
        raise ValueError("the contents moved the chapters: their page numbers are wrong")


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]), Path(sys.argv[2]))
    except ValueError as error:
        sys.exit(str(error))
