"""Print the package's structure as a text for book/_generated/structure.md: its layers, and which imports which.

The order of the layers is written down here once. An import goes down, to a lower layer, or stays within its own;
`python tools/structure.py` fails where one goes up, and where a module stands in no layer.
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {  # from top to bottom; a package stands for all its modules
    "commands": ("__main__",),
    "for chapters": ("lessons", "moving", "plots"),
    "your own pictures": ("yours",),
    "the queue": ("workers", "engines"),
    "what the book runs": ("tables",),
    "running, reading": ("experiments", "results", "verdicts", "cost"),
    "declarations": ("rows",),
    "methods": ("methods",),
    "training": ("train", "fast", "precision", "instruments", "checkpoints", "protocol"),
    "ground": ("data", "attributes", "large", "nets", "nets_large", "metrics", "records", "memory", "distributed"),
}


def modules(root=ROOT):
    """The modules of the package, {name without 'imbook.': path}; a package's __init__ has the package's name."""
    package = root / "imbook"
    paths = {path.relative_to(package).with_suffix("").parts: path for path in sorted(package.rglob("*.py"))}
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in paths.items() if parts != ("__init__",)}


def imports(names, path, lazy):
    """The modules of the package that one imports, a set; lazy: those imported within functions, too."""
    found, open_nodes = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "imbook":
            base = node.module.removeprefix("imbook").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in names else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("imbook").lstrip(".") for a in node.names if a.name.split(".")[0] == "imbook"}
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            open_nodes += ast.iter_child_nodes(node)
    return found & names.keys()


def layer(name):
    """The layer of a module. ValueError for one that stands in none."""
    for title, members in LAYERS.items():
        if name.split(".")[0] in members:
            return title
    raise ValueError(f"imbook/{name.replace('.', '/')}.py stands in no layer: name it in LAYERS of tools/structure.py")


def upward(root=ROOT):
    """The imports that go up, a list of texts; those within functions count, too."""
    names, order = modules(root), list(LAYERS)
    return [
        f"{name} ({layer(name)}) imports {other} ({layer(other)})"
        for name, path in names.items()
        for other in sorted(imports(names, path, lazy=True))
        if order.index(layer(other)) < order.index(layer(name))
    ]


def in_order(root=ROOT):
    """All modules, each after those that it imports when it is imported. graphlib.CycleError where they go round."""
    names = modules(root)
    graph = {name: imports(names, path, lazy=False) - {name} for name, path in names.items()}
    return list(TopologicalSorter(graph).static_order())


def drawing(root=ROOT):
    """The text: a layer a line with its modules, an arrow to each layer that it imports, top to bottom."""
    names, lines = modules(root), []
    for title, members in LAYERS.items():
        own = [name for name in names if layer(name) == title]
        others = {layer(o) for name in own for o in imports(names, names[name], lazy=True)} - {title}
        shown = ", ".join(f"{m}/" if any(name.startswith(f"{m}.") for name in own) else m for m in members)
        lines += [f"{title}: {shown}"] + [f"  └─▶ {other}" for other in LAYERS if other in others]
    return "```text\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    if wrong := upward():
        sys.exit("\n".join(wrong))
    print("<!-- Generated from the package's imports by `make generated`. Do not edit. -->\n\n" + drawing(), end="")
