"""The repository's address stands in one setting, and every place that shows it agrees."""

import json
import re
import shutil
from pathlib import Path

import pytest
import repository

ROOT = Path(__file__).resolve().parents[1]
URL = "https://github.com/someone/some-book"


@pytest.fixture
def copy(tmp_path):
    """A small checkout with one notebook, its address not set."""
    for name in ("_config.yml", "README.md", "CITATION.cff", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
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
    for name in ("_config.yml", "README.md", "CITATION.cff", "notebooks/01_one.ipynb"):
        assert URL in once[copy / name] and repository.NOT_SET not in once[copy / name]
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


@pytest.mark.parametrize("name", ["_config.yml", "README.md", "CITATION.cff", "notebooks/01_one.ipynb"])
def test_a_place_that_disagrees_is_named(copy, name, capsys):
    repository.main([URL], copy)
    path = copy / name
    path.write_text(path.read_text().replace("button: true" if name == "_config.yml" else URL, "button: false"))
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


def test_the_setup_cell_is_silent_off_colab(capsys):
    exec(repository.setup(repository.PLACEHOLDER, "v0.1.0"))
    assert capsys.readouterr() == ("", "")


def test_the_setup_cell_leaves_torch_and_numpy_alone():
    assert "--no-deps" in repository.setup(URL, "v0.1.0")
