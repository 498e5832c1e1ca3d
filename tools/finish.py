"""Make the built pages light and easy to search; `make book` calls it after the build.

    python tools/finish.py _build/html

Figures become lossless WebP, the icon fonts a style sheet of the icons that are used, the formulas' script stays on
pages with a formula, a value and its spread stay on one line, and the search page looks through sections, not pages.
"""

import base64
import hashlib
import io
import json
import re
import sys
from pathlib import Path

from bs4 import BeautifulSoup
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image

TEXT = ("p", "li", "dt", "dd", "td", "th", "figcaption", "summary", "blockquote")


# -- figures ----------------------------------------------------------------------------------------------------------


def figures(folder):
    """Rewrite each PNG of a page as WebP, pixel by pixel the same, where that is smaller."""
    for path in sorted(folder.glob("_images/*.png")):
        made = io.BytesIO()
        with Image.open(path) as image:
            image.save(made, "WEBP", lossless=True, exact=True, quality=60, method=4)
        if len(made.getvalue()) < path.stat().st_size:
            path.with_suffix(".webp").write_bytes(made.getvalue())
            path.unlink()


def frames(folder, text, up):
    """The page with the pictures that it held as text as files; those of a moving figure wait until they are shown.

    up: the way from the page to the book's folder, such as '../'.
    """

    def name(found):
        drawn, made = base64.b64decode(found[1]), io.BytesIO()
        path = folder / "_images" / f"frame-{hashlib.sha256(drawn).hexdigest()[:16]}.webp"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with Image.open(io.BytesIO(drawn)) as image:
                image.convert("RGB").save(made, "WEBP", lossless=True, quality=60, method=4)
            path.write_bytes(made.getvalue())
        return f'<img loading="lazy" src="{up}_images/{path.name}"'

    return re.sub(r'<img src="data:image/png;base64,([\w+/=]+)"', name, text)


def images(folder, text):
    """The page with the names of the figures that are there now."""

    def name(found):
        webp = Path(found[1]).with_suffix(".webp").name
        return f'_images/{webp}"' if (folder / "_images" / webp).exists() else found[0]

    return re.sub(r'_images/([\w.-]+\.png)"', name, text)


# -- icons ------------------------------------------------------------------------------------------------------------


def used(sheets, texts):
    """The icons of the pages by name, and by code point those that the theme's style sheets draw themselves."""
    classes = " ".join(c for text in texts for c in re.findall(r'class="([^"]*\bfa-[^"]*)"', text))
    names = set(re.findall(r"\bfa-([a-z0-9-]+)", classes)) - {"solid", "brands", "regular", "lg", "fw", "sm", "xs"}
    drawn = {int(code, 16) for code in re.findall(r"content:\s*\"\\(f[0-9a-f]{3})\b", sheets)}
    return names, drawn | {ord(letter) for letter in re.findall(r"--pst-icon[\w-]+:\s*\"([\ue000-\uf8ff])", sheets)}


def points(sheets):
    """{icon: code point} as Font Awesome's style sheet has it; by name, without the prefix."""
    rules = re.findall(r'([^{}]*)\{(?:content|--fa):"(?:\\([0-9a-f]+)|([^"\\]))"', sheets)
    known = [(name, code, letter) for names, code, letter in rules for name in re.findall(r"\.fa-([a-z0-9-]+)", names)]
    return {name: int(code, 16) if code else ord(letter) for name, code, letter in known}


def face(path, codes):
    """(@font-face rule, CSS family) of a font cut down to these code points; the font is written into the rule."""
    font = TTFont(path)
    family = re.sub(r" (Solid|Regular)$", "", font["name"].getBestFamilyName())
    weight = font["OS/2"].usWeightClass
    options = subset.Options(flavor="woff2", notdef_outline=True, name_IDs=[1], drop_tables=["GSUB"])
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=codes)
    cutter.subset(font)
    made = io.BytesIO()
    font.flavor = "woff2"
    font.save(made)
    data = base64.b64encode(made.getvalue()).decode()
    return (f'@font-face{{font-family:"{family}";font-weight:{weight};font-display:block;'
            f'src:url(data:font/woff2;base64,{data}) format("woff2")}}'), family  # fmt: skip


def icons(folder, texts):
    """A style sheet with the icons that are used, font included; raises ValueError if the theme has no such icon."""
    sheets = {path: path.read_text(encoding="utf-8") for path in sorted(folder.glob("_static/**/*.css"))}
    known = points("".join(sheets.values()))
    names, drawn = used("".join(sheet for path, sheet in sheets.items() if "vendor" not in path.parts), texts)
    if missing := sorted(names - set(known)):
        raise ValueError(f"icons that the theme does not have: {', '.join(missing)}")
    codes = drawn | {known[name] for name in names}
    rules = []
    for kind, weight, classes in (("solid", 900, ".fas,.fa-solid"), ("brands", 400, ".fab,.fa-brands")):
        (path,) = folder.glob(f"_static/vendor/fontawesome/**/fa-{kind}-{weight}.woff2")
        rule, family = face(path, codes)
        rules += [rule, f':root{{--fa-font-{kind}:normal {weight} 1em/1 "{family}"}}',
                  f"{classes}{{font:var(--fa-font-{kind});display:inline-block;-webkit-font-smoothing:antialiased}}"]
    rules.append(".fa-lg{font-size:1.25em;line-height:.05em;vertical-align:-.075em}")
    rules += [f'.fa-{name}::before{{content:"\\{known[name]:x}"}}' for name in sorted(names)]
    return "\n".join(rules) + "\n"


# -- pages ------------------------------------------------------------------------------------------------------------


def lighter(text):
    """The page without the theme's icon scripts, without Sphinx's search, which knows pages but no sections and which
    newer themes load on every page, and, where no formula stands, without the formulas' script.
    """
    unused = r'fontawesome[^"]*|all\.min|searchtools|searchindex|language_data'
    text = re.sub(rf'<script [^>]*(?:{unused})\.js[^>]*></script>\n?', "", text)
    text = re.sub(r"<link [^>]*fontawesome[^>]*>\n?", "", text)
    if not re.search(r'class="[^"]*\b(math|text_latex)\b', text):
        text = re.sub(r"<script[^>]*>window\.MathJax = .*?</script>\n?", "", text)
        text = re.sub(r"<script [^>]*mathjax[^>]*></script>\n?", "", text)
    return text


def with_icons(text):
    """The page with the icons' style sheet before its own."""
    if "icons.css" in text:
        return text
    return re.sub(r'(<link [^>]*href="([^"]*_static/)custom\.css)', r'<link rel="stylesheet" href="\2icons.css" />\n\1',
                  text, count=1)  # fmt: skip


def together(text):
    """The page with a no-break space on both sides of each ± between numbers."""
    return re.sub(r"(\d[\d.,]*%?) ± (?=\d)", "\\1\u00a0±\u00a0", text)


def named(text):
    """The page as a screen reader can say it: the arrows of the contents have names, a signature's lines are no
    definitions, the references no list of something else, and a list stands within an item of its list.
    """
    text = text.replace('<summary><span class="toctree-toggle"',
                        '<summary aria-label="Pages of this part"><span class="toctree-toggle"')  # fmt: skip

    def lines(found):
        return '<div class="sig-lines">' + re.sub(r"(</?)dd\b", r"\1div", found[1]) + "</div>"

    text = re.sub(r' role="(?:list|doc-biblioentry)"', "", text)
    if re.search(r"</li>\s*<ul>", text):
        soup = BeautifulSoup(text, "html.parser")
        for inner in soup.select("ul > ul"):
            inner.find_previous_sibling("li").append(inner)
        text = str(soup)
    return re.sub(r'<dl>\s*((?:<dd><em class="sig-param">.*?</dd>\s*)+)</dl>', lines, text)


# -- search -----------------------------------------------------------------------------------------------------------


def words(element):
    return " ".join(element.get_text(" ").replace(" ,", ",").replace(" .", ".").split())


def sections(text):
    """[(anchor, title, prose, code)] of a page: prose without formulas, code as its names, without import lines."""
    article = BeautifulSoup(text, "html.parser").select_one("article")
    for element in article.select(".headerlink, script, style, .cell_output, .math, [hidden]"):
        element.replace_with(" … ") if "math" in element.get("class", ()) else element.extract()
    found = []
    for section in article.select("section[id]"):
        title = section.find(re.compile("^h[1-6]$"))
        if title is None:
            continue
        own = [e for e in section.find_all([*TEXT, "pre"]) if e.find_parent("section") is section]
        prose = [words(e) for e in own if e.name != "pre" and not e.find_parent(TEXT)]
        lines = [line for e in own if e.name == "pre" for line in e.get_text().splitlines()]
        code = re.findall(r"[A-Za-z]\w{2,}", " ".join(s for s in lines if not re.match(r"\s*(import|from)\s", s)))
        found.append((section["id"], words(title), " ".join(filter(None, prose)), " ".join(dict.fromkeys(code))))
    return found


def searchable(texts):
    """The script that holds every section: [page, anchor, the page's title, its own title, prose, code]."""
    rows = []
    for name, text in sorted(texts.items()):
        if "/" in name:
            found = sections(text)
            rows += [[name, anchor, found[0][1], *rest] for anchor, *rest in found]
    return "const SECTIONS = " + json.dumps(rows, ensure_ascii=False, separators=(",", ":")) + ";\n"


def search(text):
    """The search page with the book's own search."""
    own = "".join(f'<script defer src="_static/{name}.js"></script>\n' for name in ("sections", "search"))
    return text if "_static/sections.js" in text else text.replace("</head>", own + "</head>", 1)


def finish(folder):
    """Do it all, once or again. Raises ValueError if there are no pages."""
    paths = [path for path in folder.rglob("*.html") if "_static" not in path.parts]
    texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}
    if "search.html" not in texts:
        raise ValueError(f"no book in {folder}: run `make book`")
    figures(folder)
    (folder / "_static/icons.css").write_text(icons(folder, texts.values()), encoding="utf-8")
    (folder / "_static/sections.js").write_text(searchable(texts), encoding="utf-8")
    for name, text in texts.items():
        new = named(together(with_icons(lighter(images(folder, frames(folder, text, "../" * name.count("/")))))))
        (folder / name).write_text(search(new) if name == "search.html" else new, encoding="utf-8")


if __name__ == "__main__":
    try:
        finish(Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))
