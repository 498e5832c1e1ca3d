"""Print the notes of a release, the changelog's section, after a check that everything names the same version.

    python tools/release.py v0.2.0 > notes.md

The tag, pyproject.toml, imbook/__init__.py and CITATION.cff must agree, and the section must bear a date.
"""

import re
import sys
import tomllib
from pathlib import Path


def sections(text):
    """Version -> (date or "unreleased", text) of the changelog's sections, newest first."""
    parts = re.split(r"^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, flags=re.MULTILINE)
    return {parts[i]: (parts[i + 1], parts[i + 2].strip()) for i in range(1, len(parts), 3)}


def versions(root):
    """Place -> the version that stands there."""
    one = re.search(r'^__version__ = "(.*)"$', (root / "imbook/__init__.py").read_text(), re.MULTILINE)
    two = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    return {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"],
        "imbook/__init__.py": one[1],
        "CITATION.cff": two[1],
    }


def notes(root, tag):
    """The section of the release. Raises ValueError with what disagrees with the tag."""
    for place, version in versions(root).items():
        if f"v{version}" != tag:
            raise ValueError(f"the tag is {tag}, {place} says {version}: raise the version and run `make repository`")
    date, text = sections((root / "CHANGELOG.md").read_text()).get(version, (None, None))
    if date is None or date == "unreleased":
        raise ValueError(f"CHANGELOG.md: no section [{version}] with a date, there is {date or 'none'}")
    return text


if __name__ == "__main__":
    try:
        print(notes(Path(__file__).resolve().parents[1], *sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
