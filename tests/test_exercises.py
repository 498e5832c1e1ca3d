"""The exercises of every chapter: enough of them, each with a folded solution. `test_notebooks.py` executes these."""

import ast
import re

from test_notebooks import each, prose, solutions

FOLDED = re.compile(r"<details>\s*<summary>Solution[^<]*</summary>\n(.*?)</details>", re.DOTALL)


@each
def test_at_least_four_exercises_have_a_tested_solution(path):
    assert len(solutions(path)) >= 4


@each
def test_every_folded_block_is_a_solution_with_its_own_text_and_code(path):
    text = "\n\n".join(prose(path))
    folded = FOLDED.findall(text)
    assert len(folded) == text.count("<details>") == len(solutions(path))
    for block in folded:
        assert block.startswith("\n"), f"a blank line after the summary, or Markdown is not rendered:\n{block}"
        assert re.sub(r"^```python\n.*?^```", "", block, flags=re.MULTILINE | re.DOTALL).strip(), "say what was found"


@each
def test_solutions_end_in_what_they_found(path):
    for source in solutions(path):
        last = ast.parse(source).body[-1]
        assert any(isinstance(node, ast.Assert) for node in ast.walk(last)), f"no assert at the end of\n{source}"
