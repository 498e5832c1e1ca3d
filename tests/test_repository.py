"""The repository's address stands in one setting, and every place that shows it agrees."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import repository

import imbook

ROOT = Path(__file__).resolve().parents[1]
URL = "https://github.com/someone/some-book"
PLACES = ["_config.yml", "README.md", "book/how-to-use.md", "CITATION.cff", "notebooks/01_one.ipynb"]
TAG = f"v{imbook.__version__}"
REFS = [f"tags/{TAG}", "heads/main"]


@pytest.fixture
def copy(tmp_path):
    """A small checkout with one notebook, its address not set."""
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", "README.md", "book/how-to-use.md", "CITATION.cff", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    cell = {"metadata": {"tags": ["repository-links"]}, "cell_type": "markdown", "source": []}
    setup = {
        "metadata": {"tags": ["colab-setup"]},
        "cell_type": "code",
        "source": [],
        "outputs": [],
        "execution_count": 1,
    }
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_one.ipynb").write_text(json.dumps({"cells": [cell, setup], "metadata": {}}))
    repository.main([repository.PLACEHOLDER], tmp_path)
    return tmp_path


def texts(root):
    return {path: path.read_text() for path in root.rglob("*") if path.is_file()}


def test_every_place_agrees_with_the_setting():
    assert not repository.stale(ROOT), "run `make repository`"


def test_an_address_is_written_everywhere_and_twice_is_once(copy):
    repository.main([URL + ".git"], copy)
    once = texts(copy)
    for name in PLACES:
        assert repository.NOT_SET not in once[copy / name] and "is set" not in once[copy / name]
        assert URL in once[copy / name] or name == "book/how-to-use.md"
    assert "https://colab.research.google.com/github/someone/some-book/blob/v" in once[copy / "notebooks/01_one.ipynb"]
    repository.main([], copy)
    assert texts(copy) == once
    assert not repository.stale(copy)


def test_the_placeholder_leaves_no_live_link(copy):
    before = texts(copy)
    assert not any("colab.research" in text for path, text in before.items())
    repository.main([URL], copy)
    repository.main([repository.PLACEHOLDER], copy)
    assert texts(copy) == before


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_disagrees_is_named(copy, name, capsys):
    repository.main([URL], copy)
    path = copy / name
    old = {"_config.yml": "button: true", "book/how-to-use.md": "opens it on Colab"}.get(name, URL)
    path.write_text(path.read_text().replace(old, "button: false"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        repository.main(["--check"], copy)
    assert capsys.readouterr().out.splitlines() == [name]


@pytest.mark.parametrize(
    "url", ["github.com/a/b", "https://github.com/a", "https://gitlab.com/a/b", "https://github.com/a/b/c"]
)
def test_a_malformed_address_changes_nothing(copy, url):
    before = texts(copy)
    with pytest.raises(SystemExit, match="https://github.com/OWNER/NAME"):
        repository.main([url], copy)
    assert texts(copy) == before


def test_links_of_the_readme_lead_to_files():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).is_file(), path


# -- the git remote and the tag ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "remote",
    [URL, URL + ".git", URL + "/", "git@github.com:someone/some-book.git", "ssh://git@github.com/someone/some-book.git",
     "https://user:secret@github.com/someone/some-book.git"],
)  # fmt: skip
def test_the_address_is_read_from_the_remote(copy, remote, capsys):
    git(copy, "init", "--quiet")
    git(copy, "remote", "add", "origin", remote)
    repository.main([], copy)
    assert f"url: {URL}\n" in (copy / "_config.yml").read_text()
    assert not any("secret" in text for path, text in texts(copy).items() if ".git" not in path.parts)
    assert f"git push origin {TAG}" in capsys.readouterr().err, "the tag is missing, and that is not said"


def test_an_address_that_is_set_is_not_replaced_by_that_of_a_fork(copy, capsys):
    git(copy, "init", "--quiet")
    git(copy, "remote", "add", "origin", "https://github.com/fork/some-book")
    repository.main([URL], copy)
    before = texts(copy)
    repository.main([], copy)
    assert texts(copy) == before


@pytest.mark.parametrize("remote", [None, "/some/folder", "https://gitlab.com/a/b"])
def test_without_a_remote_on_github_the_address_is_asked_for(copy, remote, capsys):
    git(copy, "init", "--quiet")
    if remote:
        git(copy, "remote", "add", "origin", remote)
    before = texts(copy)
    repository.main([], copy)
    assert texts(copy) == before and "URL=https://github.com/OWNER/NAME" in capsys.readouterr().err


def test_nothing_is_said_of_a_tag_that_is_there(copy, capsys):
    git(copy, "init", "--quiet")
    git(copy, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "one")
    git(copy, "tag", TAG)
    repository.main([URL], copy)
    assert "tag" not in capsys.readouterr().err


def test_a_version_in_development_is_taken_from_the_branch():
    assert repository.archives("\n  branch: main\n", "0.2.0.dev0") == ["heads/main"]
    assert repository.archives("\n  branch: main\n", "0.2.0") == ["tags/v0.2.0", "heads/main"]


def test_the_standard_library_is_enough():
    """`make repository` must not install gigabytes first."""
    command = [sys.executable, "-I", "-S", "tools/repository.py", "--check"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "Error" not in said.stderr, said.stderr
    command = ["make", "--no-print-directory", "--dry-run", "repository"]
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert dry.stdout.split()[1:] == ["-m", "tools.make", "repository"]


def git(root, *arguments):
    subprocess.run(["git", *arguments], cwd=root, check=True)


# -- the set-up cell --------------------------------------------------------------------------------------------------

URLS = [repository.PLACEHOLDER, URL]
COLAB = """\
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
sys.executable = "./python"
"""
PIP = """\
import sys
print(*sys.argv[1:], file=open("log", "a"))
sys.exit({fails!r} in sys.argv[-1])
"""


def on_colab(folder, url, fails="no such", **environment):
    """Run the cell as on Colab, where pip fails for sources with `fails` in them. Returns the process, pip's calls."""
    python = folder / "python"
    python.write_text(f"#!{sys.executable}\n" + PIP.format(fails=fails))
    python.chmod(0o755)
    command = [sys.executable, "-c", COLAB + repository.setup(url, REFS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    log = folder / "log"
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("url", URLS)
def test_the_setup_cell_is_silent_off_colab(url, capsys):
    exec(repository.setup(url, REFS))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("url", URLS)
def test_a_notebook_opened_alone_says_what_is_missing(url, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssertionError, match="imbook is missing: install or upload its wheel"):
        exec(repository.setup(url, REFS))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("url", URLS)
def test_the_setup_cell_is_short(url):
    lines = repository.setup(url, REFS).splitlines()
    assert len(lines) <= 15 and max(map(len, lines)) <= 85


@pytest.mark.parametrize("url", URLS)
def test_a_wheel_beside_the_notebook_is_installed(url, tmp_path):
    (tmp_path / "imbook-0.1.0-py3-none-any.whl").touch()
    done, calls = on_colab(tmp_path, url)
    assert calls == ["-m pip install --quiet --no-deps imbook-0.1.0-py3-none-any.whl"]
    assert done.stdout == "imbook comes from imbook-0.1.0-py3-none-any.whl\n"


def test_a_path_in_imbook_wheel_is_installed(tmp_path):
    (tmp_path / "imbook-0.1.0-py3-none-any.whl").touch()
    (tmp_path / "drive").mkdir()
    done, calls = on_colab(tmp_path, repository.PLACEHOLDER, IMBOOK_WHEEL=str(tmp_path / "drive"))
    assert not done.returncode and calls == [f"-m pip install --quiet --no-deps {tmp_path}/drive"]


def test_without_address_and_wheel_the_cell_says_what_to_do(tmp_path):
    done, calls = on_colab(tmp_path, repository.PLACEHOLDER)
    assert done.returncode and "install or upload its wheel (`make dist`)" in done.stderr and not calls


def test_the_tag_comes_first_then_the_branch_and_the_cell_says_which(tmp_path):
    done, calls = on_colab(tmp_path, URL)
    assert [c.split()[-1] for c in calls] == [f"{URL}/archive/refs/tags/{TAG}.tar.gz"]
    done, calls = on_colab(tmp_path, URL, fails="tags/")
    assert [c.split()[-1] for c in calls[1:]] == [f"{URL}/archive/refs/{ref}.tar.gz" for ref in REFS]
    assert done.stdout == f"imbook comes from {URL}/archive/refs/heads/main.tar.gz\n"
    assert all("--no-deps" in c for c in calls), "torch and numpy must stay"
