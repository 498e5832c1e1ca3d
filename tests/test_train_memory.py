"""The memory of a run is what it added, not what the process did before."""

import sys

import pytest
import torch

from imbook import memory
from imbook.memory import peak_memory


def fill(megabytes):
    return torch.ones(megabytes * 2**18).sum().item()


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="no /proc")
def test_what_a_run_added():
    fill(400)  # another run, before
    with peak_memory() as peak:
        fill(100)
    assert 95 < peak.mb < 200
    with peak_memory() as small:
        fill(1)
    assert small.mb < 50


def test_an_error_is_passed_on():
    with pytest.raises(ZeroDivisionError), peak_memory() as peak:
        raise ZeroDivisionError
    assert peak.mb is None


def test_where_the_mark_cannot_be_put_back(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path)  # a folder: nothing can be written there
    marks = iter([500.0, 500.0, 500.0, 620.0])
    monkeypatch.setattr(memory, "_mark", lambda: next(marks))
    for expected in (None, 120.0):
        with peak_memory() as peak:
            pass
        assert peak.mb == expected


def test_without_the_module_resource(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path)
    monkeypatch.setitem(sys.modules, "resource", None)
    with peak_memory() as peak:
        pass
    assert peak.mb is None
