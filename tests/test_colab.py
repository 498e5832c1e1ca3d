"""As on Colab: an environment with its own torch and numpy; a chapter's first cell installs the wheel; no repository.

The environment finds every package of this one by a path file, except imbook. pip sees them as installed and must not
touch them. A chapter runs in an empty folder, its cells one after the other as in a notebook.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
SITE = Path(sysconfig.get_path("purelib"))

# Runs the cells of a file as IPython does, on a stand-in for Colab; stops at the first that fails.
RUN = """\
import json, sys, types
from IPython.core.interactiveshell import InteractiveShell
sys.modules["google.colab"] = types.ModuleType("google.colab")
InteractiveShell.enable_gui = lambda shell, gui=None: None  # a notebook's kernel has an event loop
shell = InteractiveShell.instance()
for source in json.load(open("cells.json")):
    shell.run_cell(source).raise_error()
import imbook
print("imbook at", imbook.__file__)
"""
# Where these packages are found and in which version, without importing them, which takes seconds.
VERSIONS = """\
from importlib import metadata, util
for name in ("numpy", "torch", "torchvision"):
    print(name, metadata.version(name), util.find_spec(name).origin)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package's wheel, built from a copy: setuptools leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "imbook", folder / "imbook", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."]
    subprocess.run(command, cwd=folder, check=True)
    (path,) = folder.glob("dist/*.whl")
    return path


@pytest.fixture
def python(tmp_path):
    """The interpreter of a new environment that finds the packages of this one, without imbook."""
    others = tmp_path / "others"
    others.mkdir()
    for path in SITE.iterdir():
        if "imbook" not in path.name and path.suffix != ".pth" and path.name != "__pycache__":
            (others / path.name).symlink_to(path)
    venv.create(tmp_path / "colab", symlinks=True)
    (site,) = (tmp_path / "colab").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{others}\n")
    return tmp_path / "colab/bin/python"


def said(python, *arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"IMBOOK_TRAIN": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    run = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert not run.returncode, f"{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    return run.stdout


def chapter(python, path, folder, cells=None):
    """Run a chapter's code cells, or the first few, in a folder. Returns what they print."""
    nb = json.loads(path.read_text())
    sources = ["".join(cell["source"]) for cell in nb["cells"] if cell["cell_type"] == "code"]
    (folder / "cells.json").write_text(json.dumps(sources[:cells]))
    (folder / "run.py").write_text(RUN)
    return said(python, "run.py", cwd=folder)


def test_the_wheel_leaves_torch_and_numpy_as_they_are(wheel, python, tmp_path):
    """Installed by the first cell of a chapter, whose first cells then run: imports, data, a first output."""
    folder = tmp_path / "content"
    folder.mkdir()
    before = said(python, "-c", VERSIONS, cwd=folder)
    shutil.copy(wheel, folder)
    out = chapter(python, NOTEBOOKS[0], folder, cells=4)
    assert f"imbook comes from {wheel.name}" in out
    assert f"imbook at {tmp_path / 'colab'}" in out, "the chapter did not use the package that was installed"
    assert said(python, "-c", VERSIONS, cwd=folder) == before
    (site,) = (tmp_path / "colab").glob("lib/python*/site-packages")
    installed = {path.name for path in site.iterdir()} - {"others.pth"}
    assert installed == {"imbook", f"imbook-{wheel.name.split('-')[1]}.dist-info"}, "and nothing else"


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_chapter_runs_from_top_to_bottom_in_an_empty_folder(path, wheel, python, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    shutil.copy(wheel, folder)
    chapter(python, path, folder)
