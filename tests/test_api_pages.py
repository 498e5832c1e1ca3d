"""The reference: docstrings in plain prose become markup that says the same, and its links lead somewhere."""

import api_pages
import pytest

from imbook import lessons
from imbook.methods.dos import DOS


def test_prose_is_no_markup():
    text = "n_c images, 2 * rho * B, |a - b|, lambda_: of all; and *no*"
    plain = api_pages.prose(text, ("imbook.nets", None)).replace("\\", "")
    assert plain == text
    assert api_pages.prose("1. this is no list", ("imbook.nets", None)).startswith("\\1.")


@pytest.mark.parametrize(
    "code, place, full",
    [
        ("resnet", ("imbook.nets", None), "imbook.nets.resnet"),
        ("Batches", ("imbook.train", None), "imbook.data.Batches"),
        ("imbook.experiments.Table", ("imbook.results", None), "imbook.rows.Table"),
        ("imbook.train.Method.visits", ("imbook.rows", None), "imbook.train.Method.visits"),
        ("imbook.train.fit(..., fast=True)", ("imbook.fast", None), "imbook.train.fit"),
        ("update", ("imbook.train", "Method"), "imbook.train.Method.update"),
        ("imbook.fast", ("imbook.train", None), "imbook.fast"),
        ("net.named_modules()", ("imbook.nets", None), None),
        ("METHODS", ("imbook.methods", None), "imbook.methods.METHODS"),
        ("SOURCES", ("imbook.train", None), "imbook.data.SOURCES"),
        ("QUEUE", ("imbook.tables", None), "imbook.tables.QUEUE"),
        ("BLOCK", ("imbook.methods.dos", None), None),
        ("_taps", ("imbook.nets", None), None),
        ("head", ("imbook.nets", None), None),
    ],
)
def test_names_in_backticks(code, place, full):
    assert api_pages.target(code, place) == full


def test_a_docstring_becomes_a_page():
    lines = api_pages.render(
        """Weights w of `resnet`s. Derived in chapter 06, not in chapter 99; see chapter 06b.

        w, tau: (C,); other: text.

            x = 1
              y = 2

        >>> 1 + 1
        2
        """,
        ("imbook.nets", None),
        ("w", "tau"),
    )
    assert lines[0] == (
        "Weights w of :py:obj:`resnet <imbook.nets.resnet>`\\ s. Derived in "
        ":doc:`chapter 06 </notebooks/06_oversampling>`, not in chapter 99; see "
        ":doc:`chapter 06b </notebooks/06b_abstract_labels>`."
    )
    assert lines[2] == "``w``, ``tau``: (C,); other: text."
    assert lines[4:9] == [".. code-block:: python", "", "   x = 1", "     y = 2", ""]
    assert lines[9:11] == [">>> 1 + 1", "2"]


@pytest.mark.parametrize("found", ["(out: Path = PosixPath('runs'))", "(out: Path = WindowsPath('runs'))"])
def test_a_path_is_shown_as_it_is_written(found):
    given = None, "class", "imbook.workers.Request", object, None, found, "None"
    assert api_pages.process_signature(*given) == ("(out: Path = Path('runs'))", "None")
    assert api_pages.process_signature(*given[:-2], None, None) == (None, None)


def test_shown_code_has_neither_docstring_nor_hints():
    code = lessons.source(DOS.terms)
    assert code.startswith("def terms(self, net, x, y, i):\n    seen = []\n\n    def extend(z):\n        seen.append(")
    assert '"""' not in code and "Tensor" not in code and "# (B, K)" in code
    with pytest.raises(ValueError, match="is no function"):
        lessons.source(DOS)
