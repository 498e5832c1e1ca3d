"""What the package declares, as hashes: `python tests/renew_tables.py` writes it to tests/tables.json.

Run it only where a change of keys, labels, titles, devices or metrics is meant: the runs of a key that is gone are lost
to their table. The lines that change in tables.json then say which tables those are.
"""

import hashlib
import json
from pathlib import Path

LISTING = Path(__file__).with_name("tables.json")


def declared(tables):
    """{table: 16 hex digits} over (table, label, key, title, device, metric) of its rows and seeds, in their order."""
    listing = {}
    for name, t in tables.items():
        lines = [[name, row.label, row.key(seeds), t.title, t.device, t.metric] for row in t.rows for seeds in t.seeds]
        listing[name] = hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]
    return listing


if __name__ == "__main__":
    from imbook.tables import TABLES

    LISTING.write_text(json.dumps(declared(TABLES), indent=0) + "\n")
    print(f"{len(TABLES)} tables: {LISTING}")
