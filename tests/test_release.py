"""One version in every place, and notes of a release that come from the changelog."""

import re
import shutil
from pathlib import Path

import pytest
import release

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = release.sections((ROOT / "CHANGELOG.md").read_text())
PARTS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def number(version):
    return [int(part) for part in version.split(".")]


def test_every_place_names_the_same_version():
    found = release.versions(ROOT)
    assert len(set(found.values())) == 1, found


def test_the_version_is_the_newest_released_or_the_one_in_the_making():
    version = release.versions(ROOT)["pyproject.toml"].partition(".dev")[0]
    assert version in list(SECTIONS)[:2], "the changelog has no section of this version at its top"
    if version != next(iter(SECTIONS)):
        assert next(iter(SECTIONS.values()))[0] == "unreleased", "the newest section is released and is another version"


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert len(SECTIONS) == len(re.findall(r"^## ", text, re.MULTILINE)), "## [1.2.3] - 2027-01-31, or - unreleased"
    assert list(SECTIONS) == sorted(SECTIONS, key=number, reverse=True)
    dates = [date for date, _ in SECTIONS.values()]
    assert dates == sorted(dates, reverse=True) and dates.count("unreleased") <= 1  # "u" sorts after digits
    for version, (_, body) in SECTIONS.items():
        assert body, version
        assert set(re.findall(r"^### (.*)$", body, re.MULTILINE)) <= PARTS


def test_the_citation_names_the_tag():
    cited = (ROOT / "CITATION.cff").read_text()
    version = release.versions(ROOT)["pyproject.toml"]
    tag = "main" if "dev" in version else f"v{version}"
    assert re.search(r"^    value: (.*)$", cited, re.MULTILINE)[1] == tag


@pytest.fixture
def copy(tmp_path):
    """What a release looks at, of version 9.8.7 with a date."""
    (tmp_path / "imbook").mkdir()
    for name in ("pyproject.toml", "imbook/__init__.py", "CITATION.cff"):
        version = release.versions(ROOT)[name]
        (tmp_path / name).write_text((ROOT / name).read_text().replace(version, "9.8.7"))
    text = "# C\n\n## [9.8.7] - 2030-01-31\n\n### Added\n- A.\n\n## [9.8.6] - 2029-01-31\n"
    (tmp_path / "CHANGELOG.md").write_text(text)
    return tmp_path


def test_the_notes_are_the_section(copy):
    assert release.notes(copy, "v9.8.7") == "### Added\n- A."


@pytest.mark.parametrize("name", ["pyproject.toml", "imbook/__init__.py", "CITATION.cff"])
def test_a_place_with_another_version_is_named(copy, name):
    shutil.copy(ROOT / name, copy / name)
    with pytest.raises(ValueError, match=name):
        release.notes(copy, "v9.8.7")


def test_an_unreleased_section_is_no_release(copy):
    (copy / "CHANGELOG.md").write_text("## [9.8.7] - unreleased\n\n- A.\n")
    with pytest.raises(ValueError, match="unreleased"):
        release.notes(copy, "v9.8.7")
