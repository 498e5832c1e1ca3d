"""The committed notebooks: executed, readable in three places, and without a number or a name that nothing backs."""

import ast
import contextlib
import json
import re
import subprocess
import sys
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import forked
import heads
import method_cards
import nbformat
import pytest
import step_costs
from nbclient import NotebookClient
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "imbook/records/paper_facts.json"
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    """Pairs (source, cell) of the notebook's cells of one type: "code" or "markdown"."""
    return [("".join(c["source"]), c) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def tags(cell):
    return cell["metadata"].get("tags", [])


def prose(path):
    """Sources of the markdown cells, without those that `make repository` writes."""
    return [source for source, cell in cells(path, "markdown") if "repository-links" not in tags(cell)]


def outputs(path):
    """All text that the notebook's code cells put out."""
    text = []
    for _, cell in cells(path, "code"):
        for output in cell["outputs"]:
            text.append("".join(output.get("text", "")))
            text += ["".join(v) for k, v in output.get("data", {}).items() if k in ("text/plain", "text/html")]
    return re.sub(r"<style.*?</style>|</?[A-Za-z][^>]*>", " ", "\n".join(text), flags=re.DOTALL)


def solutions(path):
    """The code of each <details> block that holds any: its Python fences, joined."""
    blocks = re.findall(r"<details>.*?</details>", "\n\n".join(prose(path)), flags=re.DOTALL)
    fences = [re.findall(r"^```python\n(.*?)^```", block, flags=re.MULTILINE | re.DOTALL) for block in blocks]
    return ["\n".join(f) for f in fences if f]


def code(path):
    return "\n".join([source for source, _ in cells(path, "code")] + solutions(path))


# -- the file ---------------------------------------------------------------------------------------------------------


@each
def test_executed_without_error(path):
    for source, cell in cells(path, "code"):
        assert cell["execution_count"], f"not executed:\n{source}"
        errors = [o for o in cell["outputs"] if o["output_type"] == "error"]
        assert not errors, f"{errors[0]['ename']}: {errors[0]['evalue']} in\n{source}"


@each
def test_metadata(path):
    meta = json.loads(path.read_text())["metadata"]
    assert meta["language_info"]["pygments_lexer"], "without a lexer the built page's code is not highlighted"
    assert meta["kernelspec"]["name"] == "python3"
    assert meta["accelerator"] == "GPU"


@each
def test_more_prose_than_code(path):
    assert len(cells(path, "markdown")) > len(cells(path, "code"))


@each
def test_figures_have_an_alternative_text(path):
    for source, cell in cells(path, "code"):
        if any("image/png" in o.get("data", {}) for o in cell["outputs"]):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 20, f"no metadata mystnb.image.alt that says what is seen:\n{source}"


@each
def test_no_output_is_a_warning(path):
    """What a cell writes to stderr is no result; a warning also shows where the notebook was run."""
    for source, cell in cells(path, "code"):
        for output in cell["outputs"]:
            assert output.get("name") != "stderr", f"{''.join(output['text'])[:300]}\nin the cell\n{source}"


@each
def test_no_cell_ends_in_a_semicolon(path):
    for source, _ in cells(path, "code"):
        assert not source.rstrip().endswith(";"), f"a semicolon hides nothing here, end in plt.show():\n{source}"


@each
def test_shown_code_fits_its_box(path):
    """A line of code cells and solutions has 85 characters at most: the width of a code box, on screen and in print."""
    long = [line for source in [source for source, _ in cells(path, "code")] + solutions(path)
            for line in source.splitlines() if len(line) > 85]  # fmt: skip
    assert not long


@each
def test_solutions_run_by_themselves(path, tmp_path):
    for source in solutions(path):
        assert "assert " in source, f"a solution says in an assertion what it found:\n{source}"
        status, printed = forked.python(source, tmp_path, IMBOOK_TRAIN="0")
        assert status == 0, f"{printed}\nin\n{source}"


def functions(path):
    """The functions of a notebook's code cells, {name: code without docstring}, of four lines and more."""
    found = {}
    for source, _ in cells(path, "code"):
        plain = "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))
        with contextlib.suppress(SyntaxError):  # the cell that installs the package on Colab
            for node in ast.parse(plain).body:
                if isinstance(node, ast.FunctionDef):
                    if ast.get_docstring(node) is not None:
                        node.body = node.body[1:]
                    code = ast.unparse(node.body)
                    if code.count("\n") >= 2:
                        found[node.name] = code
    return found


def test_no_chapter_defines_what_another_defines():
    """What two chapters need is in the package (`imbook.results`, `verdicts`, `lessons`); toys may look alike."""
    of = {path.stem: functions(path) for path in NOTEBOOKS}
    assert sum(map(len, of.values())) > 50
    for (one, left), (other, right) in combinations(of.items(), 2):
        for name, code in left.items():
            for twin, same in right.items():
                matcher = SequenceMatcher(None, code, same, autojunk=False)
                alike = matcher.real_quick_ratio() > 0.8 and matcher.quick_ratio() > 0.8 and matcher.ratio() > 0.8
                assert not alike, f"{name} of {one} and {twin} of {other} are one function"


@each
def test_figures_come_whatever_the_backend(path):
    """MPLBACKEND=Agg in a reader's environment would otherwise take the figures away, in silence."""
    code = [source for source, _ in cells(path, "code")]
    drawing = next(k for k, source in enumerate(code) if "pyplot" in source)
    assert "%matplotlib inline" in code[drawing].splitlines()[0]


def test_a_figure_under_another_backend(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    made = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("%matplotlib inline\nimport matplotlib.pyplot as plt"),
        nbformat.v4.new_code_cell("plt.plot([0, 1])\nplt.show()"),
    ])  # fmt: skip
    NotebookClient(made, kernel_name="python3", timeout=120).execute()
    assert "image/png" in made.cells[1].outputs[0]["data"]


# -- the prose --------------------------------------------------------------------------------------------------------

MYST = re.compile(r"```+\{|~~~+\{|^\s*:::|\{[\w:.-]+\}`|^\([\w-]+\)=\s*$|^\+\+\+|^%", re.MULTILINE)


@each
def test_prose_is_plain_markdown(path):
    for source in prose(path):
        found = MYST.search(re.sub(r"^```[a-z]*\n.*?^```", "", source, flags=re.MULTILINE | re.DOTALL))
        assert not found, f"{found[0]!r} is raw text on Colab, in\n{source}"


@each
def test_one_title(path):
    heads = [line for source in prose(path) for line in strip(source).splitlines() if line.startswith("# ")]
    assert len(heads) == 1 and prose(path)[0].startswith(heads[0]), heads


LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
PAPERS = ("https://arxiv.org/", "https://doi.org/", "https://openreview.net/", "https://openaccess.thecvf.com/")


def test_every_reference_can_be_cited():
    entries = parse_file(ROOT / "book/references.bib").entries.values()
    assert all("url" in entry.fields for entry in entries)
    assert len({entry.fields["url"] for entry in entries}) == len(entries)


@each
def test_citations_are_in_the_references(path):
    known = {e.fields["url"]: e for e in parse_file(ROOT / "book/references.bib").entries.values()}
    for source in prose(path):
        for text, url in LINK.findall(source):
            if url in known:
                entry = known[url]
                author = " ".join(entry.persons["author"][0].last_names)
                assert author in text and entry.fields["year"] in text, f"[{text}]: name {author} and the year"
            else:
                assert not url.startswith(PAPERS), f"{url} is no url of book/references.bib"


@each
def test_relative_links_lead_to_files(path):
    for source in prose(path):
        for _, url in LINK.findall(source):
            if not re.match(r"https?://|mailto:|#", url):
                assert (path.parent / url.split("#")[0]).is_file(), url


# -- the drift guard: what prose says is backed by an output, by code or by a committed fact --------------------------

NUMBER = re.compile(r"(?<![\w.,/])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(\s?%)?(?![\w/])|(?<![\w.])(\.\d+)(\s?%)?")


def strip(source):
    """The source without code blocks, code spans, formulas, link targets, tags, and names such as CIFAR-10 or T4."""
    for pattern in (
        r"^```.*?^```",
        r"`[^`]*`",
        r"\$\$.*?\$\$",
        r"\$[^$]*\$",
        r"\]\([^)]*\)",
        r"https?://\S+",
        r"<[^>]+>",
        r"\b[A-Za-z][\w]*-\d+\b(?!\.\d)",
    ):
        source = re.sub(pattern, " ", source, flags=re.MULTILINE | re.DOTALL)
    return source


def numbers(text):
    """Triples (as written, value, whether in per cent) of the numbers in a text."""
    found = []
    for m in NUMBER.finditer(text):
        value = m[4] or m[1].replace(",", "") + (m[2] or "")
        found.append((m[0].strip(), value, "%" in m[0]))
    return found


def unbacked(text, backing):
    """The numbers of a prose text that do not occur in the backing text.

    Exempt: integers of one digit, and the years 1950 to 2049. 0.5 is backed by 0.50, and 95 % by 95 or 0.95.
    """
    backing = re.sub(r"(?<=\d)[,_](?=\d{3})", "", backing)
    values = {float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+", backing)}
    missing = []
    for written, value, percent in numbers(strip(text)):
        x = float(value)
        exempt = "." not in value and not percent and (len(value) == 1 or (len(value) == 4 and 1950 <= x < 2050))
        if not (exempt or x in values or (percent and round(x / 100, 9) in values)):
            missing.append(written)
    return missing


@each
def test_numbers_in_prose_are_backed(path):
    backing = "\n".join([outputs(path), code(path), FACTS.read_text(), heads.sentence(ROOT, path.stem)])
    missing = {source: found for source in prose(path) if (found := unbacked(source, backing))}
    assert not missing, "\n\n".join(f"{found} in\n{source}" for source, found in missing.items())


def words(text):
    return set(re.findall(r"[A-Za-z_]\w*", text))


@each
def test_names_in_prose_exist(path):
    package = "\n".join(p.read_text() for p in ROOT.glob("imbook/**/*.py"))
    known = words("\n".join([code(path), outputs(path), package, (ROOT / "Makefile").read_text(), FACTS.read_text()]))
    for source in prose(path):
        text = re.sub(r"^```.*?^```", " ", source, flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`([^`\n]+)`", text):
            missing = words(span) - known
            assert not missing or (ROOT / span).exists(), f"`{span}`: {missing} is nowhere else, in\n{source}"


@pytest.mark.parametrize(
    "text, found",
    [
        ("gains 4.36 points", ["4.36"]),
        ("gains 42.57 points", []),
        ("a share of 38 % and 95 %", ["38 %"]),
        ("12,406 images, 12,407 images", ["12,407"]),
        ("in 2019, on CIFAR-100 with ResNet-32 and 3 seeds", []),
        ("a formula $x_{17}$, code `range(18)`, a [link 19](https://x.org/20) and 0.5", ["19"]),
        ("from 42.57 to -4.36, 1e3", ["4.36"]),
        ("ends a sentence with 77.", ["77"]),
        ("27-fold", ["27"]),
    ],
)
def test_drift_guard_itself(text, found):
    assert unbacked(text, "accuracy 42.57, share 0.95, total 12406, half 0.50") == found


# -- headings state findings, and each names the cell that asserts its own ---------------------------------------------

#: What a heading may say without a finding: it says where something stands.
TOPICS = re.compile(
    r"(By hand|The idea|The equations?|From scratch|Three places to act|A batch is|A step is two lines"
    r"|Your own loop|In your script"
    r"|Two instruments|Six claims from an abstract|Which first|When to use it|Which metric when|The answer|The numbers"
    r"|Equal chances|What it costs|What this (page|is)|The claims, one by one|What was not run|What to do|Cost$"
    r"|What remains of|The order of work|Short answers|Many runs need|Minutes and money|The folder to practise on"
    r"|The paper's own|The field's benchmark|Smaller questions|Sources and fidelity|Exercises|(Method )?[Cc]ard)"
)


def headings(path):
    """Pairs (heading, {heading: id of a code cell} of its cell) up to the exercises, titles and code left out."""
    found = []
    for source, cell in cells(path, "markdown"):
        text = re.sub(r"^```.*?^```", "", source, flags=re.MULTILINE | re.DOTALL)
        for heading in re.findall(r"^##+ (.+)$", text, flags=re.MULTILINE):
            if heading == "Exercises":
                return found
            found.append((heading, cell["metadata"].get("claims", {})))
    return found


@each
def test_each_heading_names_the_claim_that_backs_it(path):
    """The metadata `claims` of a heading's cell, {heading: id}, names a cell with an assert that CI executes."""
    by_id = {cell["id"]: source for source, cell in cells(path, "code")}
    for heading, claims in headings(path):
        if TOPICS.match(heading):
            assert heading not in claims, f"{heading!r} is a topic"
        else:
            assert heading in claims, f"{heading!r} names no cell that asserts it"
            asserted = [node for node in ast.walk(ast.parse(re.sub("^[%!].*$", "", by_id[claims[heading]], flags=re.M)))
                        if isinstance(node, ast.Assert)]  # fmt: skip
            assert asserted, f"{heading!r}: cell {claims[heading]} asserts nothing"
    named = {h for _, cell in cells(path, "markdown") for h in cell["metadata"].get("claims", {})}
    assert named <= {h for h, _ in headings(path)}, "claims of headings that are gone"


@each
def test_a_chapter_keeps_its_size(path):
    """Up to the exercises: words, numbers in prose, tables, figures, lines of a cell."""
    taught = json.loads(path.read_text())["cells"]
    ends = [k for k, c in enumerate(taught) if "".join(c["source"]).startswith("## Exercises")]
    taught = taught[: ends[0]] if ends else taught
    text = "\n".join("".join(c["source"]) for c in taught if c["cell_type"] == "markdown")
    spans = r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|<[^>]*>"  # code, formulas, links, tags
    text = re.sub(spans, "", text, flags=re.DOTALL)
    text = re.sub(r"^\s*\|.*$|^\s*\d+\.\s", "", text, flags=re.MULTILINE)  # rows of tables, ordinals of lists
    code = [c for c in taught if c["cell_type"] == "code"]
    shown = [output.get("data", {}) for c in code for output in c["outputs"]]
    tables = ["<table" in "".join(data.get("text/html", "")) for data in shown]
    figures = ["image/png" in data or ("text/html" in data and not table)  # the last are moving ones
               for data, table in zip(shown, tables, strict=True)]  # fmt: skip
    size = {"words": len(text.split()), "numbers": len(re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", text)),
            "tables": sum(tables), "figures": sum(figures),
            "lines of a cell": max(len("".join(c["source"]).splitlines()) for c in code)}  # fmt: skip
    limits = {"words": 3999, "numbers": 120, "tables": 8, "figures": 10, "lines of a cell": 15}
    assert all(size[what] <= most for what, most in limits.items()), f"{size}, at most {limits}"


# -- what is collected or written from elsewhere ----------------------------------------------------------------------


@each
def test_the_head_has_the_cost_that_was_measured(path):
    found = [heads.SENTENCE.findall(source) for source in prose(path) if heads.SENTENCE.search(source)]
    assert found == [[heads.sentence(ROOT, path.stem)]], "run `make generated`"


def test_method_cards_page_is_up_to_date():
    assert (ROOT / "book/_generated/method-cards.md").read_text() == method_cards.cards(ROOT), "run `make generated`"


def test_links_of_a_card_hold_on_the_page_of_cards():
    page = ROOT / "book/method-cards.md"
    linked = [url for _, url in LINK.findall(method_cards.cards(ROOT)) if not re.match(r"https?://|#", url)]
    assert linked and all((page.parent / url.split("#")[0]).is_file() for url in linked), linked


def test_step_costs_page_is_up_to_date():
    assert (ROOT / "book/_generated/step-costs.md").read_text() == step_costs.page(ROOT), "run `make generated`"


def test_the_landing_page_says_what_the_records_say():
    command = [sys.executable, "-c", "import sys, runpy; sys.path.insert(0, 'tools'); import found; "
               "print(found.page(found.complete(), found.complete(10)))"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (ROOT / "book/_generated/found.md").read_text() == run.stdout, "run `make generated`"


def test_provenance_page_is_up_to_date():
    command = [sys.executable, "-m", "imbook", "provenance"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (ROOT / "book/_generated/provenance.md").read_text() == run.stdout, "run `make generated`"
