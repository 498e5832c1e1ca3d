"""The page for contributors: its worked example is a method, and its commands and paths exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book/contributing.md").read_text()


def files():
    """{path: content} of the Python fences that begin with the path of a file of the package."""
    fences = re.findall(r"^```python\n# (imbook/\S+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return dict(fences)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package in which the example stands as the page says."""
    shutil.copytree(ROOT / "imbook", tmp_path / "imbook", ignore=shutil.ignore_patterns("*.gz", "__pycache__"))
    assert list(files()) == ["imbook/methods/tau_norm.py", "imbook/tables/tau_norm.py"]
    for path, content in files().items():
        (tmp_path / path).write_text(content)
    for path, old, new in (
        ("imbook/methods/__init__.py", "\nMETHODS", "\nfrom imbook.methods.tau_norm import TauNorm\n\nMETHODS"),
        ("imbook/tables/__init__.py", 'CHAPTERS = ("foundations"', 'CHAPTERS = ("tau_norm", "foundations"'),
    ):
        text = (tmp_path / path).read_text()
        assert text.count(old) == 1, f"{path} has another line than {old!r}"
        (tmp_path / path).write_text(text.replace(old, new))
    return tmp_path


def test_the_worked_example_runs_as_documented(copy):
    """From the command line, in the copy: its table is trained and printed."""
    command = [sys.executable, "-m", "imbook", "run", "tau-norm", "--seeds", "1"]
    made = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert re.search(r"^tau 1 +1 +3 +\d\d\.\d\d", made.stdout, re.MULTILINE), made.stdout
    assert re.search(r"^cross entropy +1 +3 +\d\d\.\d\d", made.stdout, re.MULTILINE), made.stdout
    assert (copy / "runs/tau-norm.jsonl.gz").exists()


def test_the_worked_example_is_what_it_says(copy):
    """tau 0 is the classifier without its bias; tau 1 gives every class a weight vector of length 1."""
    code = """
import torch
from imbook import nets
from imbook.methods import METHODS
torch.manual_seed(0)
net, x = nets.mlp(12, 3).double(), torch.randn(5, 12, dtype=torch.float64)
w, z = net.head.weight, net[:-1](x)
assert torch.allclose(METHODS["TauNorm"](tau=0.0).predict(net, x), z @ w.T)
for c, own in enumerate(METHODS["TauNorm"](tau=1.0).predict(net, x).T):
    assert torch.allclose(own, z @ w[c] / w[c].square().sum().sqrt())
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_paths_of_the_page_exist():
    shown = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    for path in re.findall(r"`((?:imbook|tests|tools|book|benchmarks|notebooks)/[\w./]*)`", shown):
        if path not in files() and not path.startswith("imbook/records/"):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("line", re.findall(r"^python -m imbook .*$", PAGE, flags=re.MULTILINE))
def test_commands_of_the_page_are_understood(line):
    """Each command of the page with --help behind it: an option or a command that is not there is an error."""
    words = line.split("#")[0].split()[1:]
    run = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "usage" in run.stdout, run.stderr
