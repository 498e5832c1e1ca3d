"""Write what a chapter costs, from imbook/records/chapter-costs-cpu.json, into its head: the sentence "It costs"."""

import json
import re
from pathlib import Path

SENTENCE = re.compile(r"\*\*It costs\*\* .*?\.(?= |$)", flags=re.MULTILINE)


def sentence(root, chapter):
    """The sentence of a chapter, such as "01_imbalance"."""
    cost = json.loads((root / "imbook/records/chapter-costs-cpu.json").read_text())["chapters"][chapter]
    many = {1: "one execution", 3: "median of three executions"}
    runs = many.get(cost["runs"], f"median of {cost['runs']} executions")
    return (
        f"**It costs** {cost['seconds']:.0f} seconds of one processor core and {cost['gigabytes']:.1f} GB of memory "
        f"(measured, {runs})."
    )


def write(root):
    """Put the sentences into the notebooks; the rest of the files stays as it is."""
    for path in sorted(root.glob("notebooks/*.ipynb")):
        notebook = json.loads(path.read_text())
        heads = [c for c in notebook["cells"] if SENTENCE.search("".join(c["source"]))]
        if len(heads) != 1:
            raise ValueError(f"{path}: {len(heads)} cells have a sentence that starts with **It costs**, not one")
        made = SENTENCE.sub(sentence(root, path.stem), "".join(heads[0]["source"]), count=1)
        heads[0]["source"] = made.splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write(Path(__file__).resolve().parents[1])
