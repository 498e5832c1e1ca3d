"""Make the built pages fit for publishing: what search engines and lost visitors need, and what depends on the address.

    python tools/publish.py _build/html https://owner.github.io/name

Writes .nojekyll, 404.html, sitemap.xml and robots.txt, and into each page its description and its canonical address.
"""

import html
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

LENGTH = 160  # characters of a description that search engines show


def pages(folder):
    """The pages that readers are meant to find: neither the index of terms nor the search page nor a redirection."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    return sorted(name for name in found if "/" in name and not name.startswith("_"))


def description(page):
    """The first paragraph of a page's article that says something, as plain text, cut at a word."""
    article = page.partition("<article")[2].partition("</article>")[0]
    for paragraph in re.findall(r"<p>(.*?)</p>", article, re.DOTALL):
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", paragraph)).split())
        if len(text) > 60 and "\\(" not in text[:LENGTH] and "Colab" not in text[:LENGTH]:
            return text if len(text) <= LENGTH else text[: LENGTH - 1].rsplit(" ", 1)[0].rstrip(",;:") + " …"
    return None


def head(page, address):
    """The page with its description and canonical address in the head; a page that has them is returned unchanged."""
    lines = ""
    if 'rel="canonical"' not in page:
        lines += f'<link rel="canonical" href="{html.escape(address)}">\n'
    if 'name="description"' not in page and (text := description(page)):
        lines += f'<meta name="description" content="{html.escape(text)}">\n'
    return page.replace("</head>", lines + "</head>", 1)


def lost(site):
    """The page for an address that does not exist; it may stand in any folder, so its links are whole."""
    site = html.escape(site)
    return f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>No such page</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1.1rem/1.6 sans-serif; max-width: 36rem; margin: 15vh auto; padding: 0 1rem }}
</style>
</head>
<body>
<h1>No such page</h1>
<p>The page may have moved. <a href="{site}/index.html">Start at the first page</a>,
or <a href="{site}/search.html">search the book</a>.</p>
</body>
</html>
"""


def sitemap(names, site):
    """The list of pages that search engines read."""
    rows = "".join(f"<url><loc>{escape(f'{site}/{name}')}</loc></url>\n" for name in names)
    start = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
    return f"{start}\n{rows}</urlset>\n"


def publish(folder, site):
    """Write it all. Raises ValueError if there are no pages or `site` is no web address."""
    site = site.rstrip("/")
    if not re.fullmatch(r"https?://[^\s\"'<>]+", site):
        raise ValueError(f"not the address of a site: {site!r}")
    names = pages(folder)
    if not names:
        raise ValueError(f"no pages in {folder}: run `make book`")
    for name in names:
        path = folder / name
        path.write_text(head(path.read_text(encoding="utf-8"), f"{site}/{name}"), encoding="utf-8")
    (folder / ".nojekyll").touch()
    (folder / "404.html").write_text(lost(site), encoding="utf-8")
    (folder / "sitemap.xml").write_text(sitemap(names, site), encoding="utf-8")
    (folder / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {site}/sitemap.xml\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        publish(Path(sys.argv[1]), sys.argv[2])
    except ValueError as error:
        sys.exit(str(error))
