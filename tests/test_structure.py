"""The package's layout: imports go down and never round, files stay short, the drawing is that of the code."""

import subprocess
import sys
from graphlib import CycleError

import pytest
import structure

ROOT = structure.ROOT


def test_imports_go_down():
    assert structure.upward() == []


def test_no_import_goes_round():
    order = structure.in_order()
    assert set(order) == set(structure.modules()) and order.index("records") < order.index("results")


@pytest.fixture
def package(tmp_path):
    """write(name, text) of a small package in a folder; returns the folder."""
    def write(**texts):
        (tmp_path / "imbook/data").mkdir(parents=True, exist_ok=True)
        for name, text in {"__init__": "", "data/__init__": "", **texts}.items():
            (tmp_path / f"imbook/{name}.py").write_text(text)
        return tmp_path

    return write


def test_an_import_that_goes_up_is_found(package):
    root = package(metrics="def f():\n    from imbook.train import fit\n", train="from imbook import metrics, data\n")
    assert structure.upward(root) == ["metrics (ground) imports train (training)"]
    assert structure.in_order(root).index("metrics") < structure.in_order(root).index("train"), "within a function"
    assert "training: train, " in structure.drawing(root) and "  └─▶ ground" in structure.drawing(root)


def test_a_circle_and_a_module_without_a_layer_are_found(package):
    root = package(nets="import imbook.metrics\n", metrics="if True:\n    from imbook.nets import x\n", odd="")
    with pytest.raises(CycleError):
        structure.in_order(root)
    with pytest.raises(ValueError, match="imbook/odd.py stands in no layer"):
        structure.drawing(root)


def test_no_file_is_long():
    lengths = {name: len(path.read_text().splitlines()) for name, path in structure.modules().items()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    short = {name: n for name, n in lengths.items() if name == "experiments" or name.startswith("tables")}
    assert len(short) > 6 and {name: n for name, n in short.items() if n > 260} == {}


def test_the_drawing_is_that_of_the_code():
    run = subprocess.run([sys.executable, ROOT / "tools/structure.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (ROOT / "book/_generated/structure.md").read_text(encoding="utf-8") == run.stdout, "run `make generated`"


def test_importing_the_package_alone_is_quick():
    """It loads Python's own modules, and few of them: neither torch nor any other package."""
    code = "import sys; before = set(sys.modules); import imbook; print(*sys.modules.keys() - before)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = run.stdout.split()
    assert "imbook" in loaded and len(loaded) < 100
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names == {"imbook"}
