"""One thread for every test: repeatable sums, and no contention between test processes."""

import json

import pytest
import torch

from imbook import records, tables

torch.set_num_threads(1)


@pytest.fixture
def declared():
    """declared(tables, queue) declares these alone for one test; the dicts are shared, so their content changes."""
    before = dict(tables.TABLES), dict(tables.QUEUE)

    def declare(some, queue=()):
        for kept, new in ((tables.TABLES, some), (tables.QUEUE, queue)):
            kept.clear()
            kept.update(new)

    yield declare
    declare(*before)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of records and facts that stands for the package's, with one fact: returns its path."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "paper_facts.json").write_text(json.dumps({"one": {"value": 50.0, "mark": "P", "source": "x"}}))
    monkeypatch.setattr(records, "RECORDS", folder)
    return folder
