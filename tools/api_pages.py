"""A Sphinx extension: the package's docstrings as pages of the book.

The docstrings are plain prose: single backticks around names and code, 'name: what it is' for parameters, an indented
block for code, doctests. Here this becomes reStructuredText: what is no markup is escaped, a name that the pages
explain becomes a link to it, 'chapter 06' a link to the chapter, and a parameter that is explained is set as code.
A constant is shown where a comment '#:' explains it.
"""

import functools
import importlib
import inspect
import re
import textwrap
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = {path.stem.split("_")[0]: f"/notebooks/{path.stem}" for path in ROOT.glob("notebooks/[0-9]*.ipynb")}
SPANS = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|(?P<chapter>\b[Cc]hapter (?P<number>\d\d[a-z]?)\b)"
    r"|(?:^|(?<=[.;)] ))(?P<names>\*{0,2}[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*)(?=: )"
)


@functools.cache
def constants(module):
    """The comments '#:' of a module's constants, {(class, name): lines}; with those that `imbook.data` exports."""
    found = dict(ModuleAnalyzer.for_module(module).find_attr_docs())
    if module == "imbook.data":
        files = sorted(Path(importlib.import_module(module).__file__).parent.glob("[a-z]*.py"))
        for own in (f"imbook.data.{path.stem}" for path in files):
            shown = importlib.import_module(module).__all__
            found |= {key: lines for key, lines in constants(own).items() if key[1] in shown}
    return found


def documented(module, path):
    """The full name under which the pages explain `path`, a dotted name within a module; None where they do not."""
    try:
        thing = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (AttributeError, ImportError):
        return None
    if isinstance(thing, property):
        thing = thing.fget
    if inspect.ismodule(thing):
        return thing.__name__ if thing.__name__ in modules() else None
    if not hasattr(thing, "__qualname__"):  # a constant
        return f"{module}.{path}" if ("", path) in constants(module) else None
    name, own = thing.__qualname__, (getattr(thing, "__module__", None) or "").split(".")
    if own[0] != "imbook" or not thing.__doc__ or any(part.startswith(("_", "<")) for part in name.split(".")):
        return None
    data = importlib.import_module("imbook.data")
    exported = own[:2] == ["imbook", "data"] and name.split(".")[0] in data.__all__
    return f"imbook.data.{name}" if exported else f"{'.'.join(own)}.{name}"


def target(code, place):
    """The full name of what the code in backticks names, seen from the place (module, class or None) of the text."""
    module, owner = place
    if not (found := re.match(r"[A-Za-z_][\w.]*", code)):
        return None
    path = found[0].rstrip(".")
    if path.split(".")[0] == "imbook":
        parts = path.split(".")
        ways = [(".".join(parts[:k]), ".".join(parts[k:])) for k in range(len(parts) - 1, 0, -1)]
        if path in modules():
            return path
    else:
        ways = [(module, f"{owner}.{path}")] if owner else []
        ways += [(module, path), ("imbook.data", path), ("imbook.train", path), ("imbook", path)]
    return next((full for way in ways if way[0] in modules() and (full := documented(*way))), None)


@functools.cache
def modules():
    """The names of the modules that the pages show."""
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("book/api/*.md"))
    return set(re.findall(r"automodule:: ([\w.]+)", pages))


def escape(text):
    """Text in which nothing is markup."""
    return re.sub(r"([\\*|_`])", r"\\\1", text)


def prose(text, place, parameters=()):
    """A paragraph as reStructuredText, on one line."""
    parts, end = [], 0
    for span in SPANS.finditer(text):
        if span["names"] and not set(span["names"].split(", ")) <= set(parameters):
            continue
        if span["chapter"] and span["number"] not in CHAPTERS:
            continue
        parts.append(escape(text[end : span.start()]))
        if span["code"]:
            full = target(span["code"], place)
            parts.append(f":py:obj:`{span['code']} <{full}>`" if full else f"``{span['code']}``")
        elif span["chapter"]:
            parts.append(f":doc:`{span['chapter']} <{CHAPTERS[span['number']]}>`")
        else:
            parts.append(", ".join(f"``{name}``" for name in span["names"].split(", ")))
        if re.match(r"\w", text[span.end() :]):
            parts.append("\\ ")
        end = span.end()
    line = "".join([*parts, escape(text[end:])])
    return re.sub(r"^(?=\(?\w{1,3}[.)] |[-+•] )", r"\\", line)  # no list


def render(text, place, parameters=()):
    """A docstring as lines of reStructuredText."""
    lines = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if block.startswith(">>>"):
            lines += block.splitlines()
        elif block.startswith("  "):
            code = textwrap.dedent(block).splitlines()
            lines += [".. code-block:: python", "", *(f"   {line}" for line in code)]
        else:
            lines.append(prose(" ".join(block.split()), place, parameters))
        lines.append("")
    return lines


def parameters(thing):
    """The names of what a function or class is given."""
    try:
        return inspect.signature(thing.__init__ if inspect.isclass(thing) else thing).parameters
    except (TypeError, ValueError):
        return ()


def process_docstring(app, what, name, thing, options, lines):
    if what == "module":
        place = name, None
    elif what == "data":  # a constant has no module of its own, or that of its class
        place, thing = (name.rsplit(".", 1)[0], None), None
    elif what in ("class", "exception"):
        place = thing.__module__, thing.__qualname__
    elif what in ("method", "property", "attribute"):
        thing = thing.fget if isinstance(thing, property) else thing
        owner = name.rsplit(".", 1)[0]
        place = getattr(thing, "__module__", "imbook"), owner.rsplit(".", 1)[1]
    else:
        place = getattr(thing, "__module__", None) or name.rsplit(".", 1)[0], None
    if place[0] not in modules():
        place = next(m for k in range(3) if (m := name.rsplit(".", k)[0]) in modules()), place[1]
    lines[:] = render("\n".join(lines), place, parameters(thing))
    if what == "class" and (own := [base for base in thing.__bases__ if base.__module__.split(".")[0] == "imbook"]):
        lines += [prose("Built on " + ", ".join(f"`{base.__name__}`" for base in own) + ".", place), ""]


def exported(app):
    """Tell autodoc of the constants that `imbook.data` exports: it looks for a comment where they are shown."""
    analyzer = ModuleAnalyzer.for_module("imbook.data")
    analyzer.find_attr_docs()
    analyzer.attr_docs.update(constants("imbook.data"))


def skip(app, what, name, thing, skip, options):
    """What `imbook.data` exports is shown there, and not once more in the module that it comes from."""
    own, data = str(getattr(thing, "__module__", "")), importlib.import_module("imbook.data")
    return True if own.startswith("imbook.data.") and name in data.__all__ and not options.imported_members else None


def process_signature(app, what, name, thing, options, signature, result):
    """That of __init__ where autodoc found only what `imbook.train.Method.__new__` says: (*given, **named); paths as
    they are written, not as the system that builds the pages calls them.
    """
    if what == "class" and signature and "*given" in signature:
        own = inspect.signature(thing.__init__)
        own = own.replace(parameters=list(own.parameters.values())[1:], return_annotation=inspect.Signature.empty)
        return stringify_signature(own, unqualified_typehints=True), None
    return re.sub(r"\b(?:Posix|Windows)Path\(", "Path(", signature or "") or signature, result


def backlinks(app, pagename, template, context, doctree):
    """From a source page back to the reference: viewcode takes all names of a module to be explained under one name."""
    if pagename.startswith("_modules/imbook/data/"):
        module = pagename.removeprefix("_modules/").replace("/", ".")
        old = rf"#(?:{re.escape(module)}|imbook\.data)\.(?P<path>[\w.]+)"
        context["body"] = re.sub(old, lambda m: f"#{documented(module, m['path']) or m[0][1:]}", context["body"])


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.viewcode")
    app.connect("builder-inited", exported)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-skip-member", skip)
    app.connect("html-page-context", backlinks)
    app.connect("autodoc-process-signature", process_signature)
    return {"parallel_read_safe": True}
