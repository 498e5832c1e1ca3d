"""`python -m tools.blood_cells FOLDER`: the pictures of blood cells that chapter 09 shows, from its folder of crops.

Writes imbook/records/yours-bccd-cells.json, {path: JPEG as base64}: of each class the crop of median size, the two most
confident errors of each trial, and the first look-alikes. The pictures are those of the BCCD set, MIT licence.
"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from imbook import records

SIDE = 96  # pixels: a larger crop is made smaller


def paths(folder: Path, trials: list[dict[str, Any]]) -> list[str]:
    """What is shown, relative to the folder, each once."""
    found = []
    for cls in trials[0]["classes"]:
        area = {path: Image.open(path).size[0] * Image.open(path).size[1] for path in (folder / cls).glob("*.png")}
        middle = sorted(area, key=lambda path: (area[path], path))[len(area) // 2]
        found.append(middle.relative_to(folder).as_posix())
    for trial in trials:
        found += [mistake["path"] for mistake in trial["mistakes"][:2]]
        found += [path for *pair, _ in trial["near"]["first"] for path in pair]
    return list(dict.fromkeys(found))


def small(path: Path) -> str:
    """A crop of at most SIDE x SIDE pixels as JPEG in base64."""
    picture, made = Image.open(path).convert("RGB"), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(made, "JPEG", quality=90)
    return base64.b64encode(made.getvalue()).decode()


if __name__ == "__main__":
    trials = [json.loads((records.RECORDS / f"yours-bccd{end}.json").read_text()) for end in ("", "-30")]
    folder, target = Path(sys.argv[1]), records.RECORDS / "yours-bccd-cells.json"
    shown = {path: small(folder / path) for path in paths(folder, trials)}
    target.write_text(json.dumps(shown, indent=1) + "\n")
    print(f"{target}: {len(shown)} pictures")
