"""Print the method cards of all chapters as one Markdown text, for book/_generated/method-cards.md.

A card is a notebook's markdown cell tagged `method-card`; its first line, a heading, gives way to the chapter's title.
Links in a card start at the notebooks' folder: ../book/NAME holds in the page as it is, a chapter's bare name gets the
folder before it.
"""

import json
import re
from pathlib import Path


def cards(root):
    """The Markdown text: a comment, then a section for each card in the order of the chapters' file names."""
    parts = ["<!-- Generated from the notebooks by `make generated`. Do not edit. -->"]
    for path in sorted(root.glob("notebooks/*.ipynb")):
        cells = [
            ("".join(cell["source"]), cell["metadata"].get("tags", []))
            for cell in json.loads(path.read_text())["cells"]
            if cell["cell_type"] == "markdown"
        ]
        title = cells[0][0].splitlines()[0].removeprefix("# ")
        for source, tags in cells:
            if "method-card" in tags:
                heading, _, body = source.partition("\n")
                if not heading.startswith("## "):
                    raise ValueError(f"{path}: the method card starts with {heading!r}, not with a ## heading")
                body = re.sub(r"\]\((\w+\.ipynb)", r"](../notebooks/\1", body.strip())
                parts.append(f"## {title}\n\n{body}\n\n[Read the chapter](../notebooks/{path.name})")
    if len(parts) == 1:
        parts.append("No chapter has a method card yet.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(cards(Path(__file__).resolve().parents[1]), end="")
