"""`python -m tools.choose`: the settings of chapter 03's grids that do best on validation images, from the records.

Writes imbook/tables/rivals.json, {set: {family: label}}, of the families whose grid is complete. A test compares them.
"""

import json

from imbook import records, results
from imbook.tables import rivals


def chosen(have: dict) -> dict[str, dict[str, str]]:
    """{set: {family: label of its best setting}}, of the families whose grid is complete in the records."""
    found = {}
    for name in rivals.SETS:
        grid = rivals.TABLES[f"rivals-select-{name}"]
        best = {f: results.best(grid, rivals.labels(f), records=have) for f in rivals.settings(rivals.SMALL_ONCE)}
        if complete := {family: label for family, label in best.items() if label is not None}:
            found[name] = complete
    return found


if __name__ == "__main__":
    found = chosen(records.load())
    rivals.CHOSEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{rivals.CHOSEN}: {', '.join(found) or 'no grid is complete'}")
