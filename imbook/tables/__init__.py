"""Every table of the book: what is run, one file per chapter, and the queue of a GPU.

A chapter's file holds its rows, tables and claims; `common` holds what several chapters share. A new file adds its name
to `CHAPTERS`. `python -m imbook list` prints the tables, `python -m imbook queue` the queue.
"""

import difflib
from collections.abc import Collection
from importlib import import_module

#: The modules of `imbook.tables` that declare tables, in the book's order.
CHAPTERS = ("foundations", "rivals", "crl", "cdb", "dos", "mfw", "side_by_side", "large")
#: Every table of the book, {name: `imbook.rows.Table`}.
TABLES = {}
for _chapter in CHAPTERS:
    _new = import_module(f"imbook.tables.{_chapter}").TABLES
    if _twice := TABLES.keys() & _new.keys():
        raise ValueError(f"imbook.tables.{_chapter} names a table that another file has: {', '.join(sorted(_twice))}")
    TABLES |= _new

#: Milliseconds per training step of ResNet-32 on one H100, five processes together, by batch size: 128 as measured by
#: hand, 32 scaled from it by the ratio of the two alone (2.0 to 3.1). See the book's page on the cost of a step.
MILLISECONDS = {128: 1.65, 32: 1.06}

_CDB = ("cross entropy", "CDB, tau 1", "CDB, dynamic tau", "CDB, released tau", "focal")
_LED = ("cross entropy", "logit adjustment", "MFW", "CRL, class, relative", "CDB, dynamic tau")
_MORE = ("deferred re-weighting", "over-sampling", "DOS, k = 5")
_STEP = ("cross entropy", "mixup", "MFW", "CDT", "deferred re-weighting")
_CRL = ("cross entropy", "CRL, class, relative")
#: Parts of at most eight minutes on such a card, most valuable first: pieces of tables, each (table, which of its sets
#: of seeds, labels of rows, or none for all). What stands in no part is declared, not promised.
QUEUE = {
    "part-1": (("cdb-cifar100-100", (0,), _CDB),),
    "part-2": (("methods-cifar10-lt-100", (0, 1, 2), _LED),),
    "part-3": (("methods-cifar10-lt-100", (0, 1, 2), _MORE),),
    "part-4": (("crl-cifar100-select", (0,), ()),),
    "part-5": (("crl-cifar100-balanced", (0,), _CRL),),
    "part-6": (("mfw-cifar10-step-100", (0,), _STEP),),
    "part-7": (("methods-cifar100-lt-100", (0, 1, 2), _LED),),
    "part-8": (("cdb-cifar100-100", (1,), _CDB),),
    "part-9": (("cdb-cifar100-100", (2,), _CDB),),
    "part-10": (("crl-cifar100-balanced", (1,), _CRL),),
    "part-11": (("crl-cifar100-balanced", (2,), _CRL),),
    "part-12": (("mfw-cifar10-step-100", (1,), _STEP),),
    "part-13": (("mfw-cifar10-step-100", (2,), _STEP),),
}


def check_name(name: str, known: Collection[str]) -> str:
    """The name itself; ValueError with the nearest names where it is none of the known ones."""
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no table is named {name!r}: {hint}`python -m imbook list` names all")
    return name
