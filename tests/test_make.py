"""The commands: one source for make and for systems without it, the versions, and torch from an index of its own."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import make
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PINS = {canonicalize_name(r.name): r for r in map(Requirement, make.pins((ROOT / "requirements.txt").read_text()))}
LOCK = [Requirement(line) for line in make.pins((ROOT / "requirements.lock").read_text())]
SYSTEMS = [{"sys_platform": s, "python_full_version": f"{v}.9"} for s in ("linux", "darwin", "win32")
           for v in ("3.11", "3.12", "3.13")]  # fmt: skip


def targets(text):
    """The targets that a text names as `make TARGET` or `python -m tools.make TARGET`."""
    return re.findall(r"(?:`|^|&& )(?:python3? -m tools\.)?make ([a-z][a-z-]*)", text, re.MULTILINE)


def test_the_makefile_passes_on_every_target_and_no_other():
    listed = re.search(r"^TARGETS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert listed == list(make.TARGETS)


TEXTS = ["README.md", "book/how-to-use.md", "book/contributing.md", ".devcontainer/devcontainer.json"]


@pytest.mark.parametrize("name", TEXTS)
def test_every_target_that_a_text_names_exists(name):
    text = (ROOT / name).read_text()
    if name.endswith(".json"):
        text = "\n".join(value for key, value in json.loads(text).items() if key.endswith("Command"))
    assert targets(text) and set(targets(text)) <= set(make.TARGETS)


@pytest.mark.parametrize("command", [["make"], [sys.executable, "-m", "tools.make"]], ids=["make", "module"])
def test_help_names_every_target(command):
    said = subprocess.run([*command, "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"^make {name} +\w", said, re.MULTILINE) for name in make.TARGETS)


def test_an_unknown_target_is_named_with_those_there_are():
    command = [sys.executable, "-m", "tools.make", "tset"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode and "'tset'" in said.stderr and "test-long" in said.stderr


def test_what_runs_on_all_systems_is_there():
    for name in make.PORTABLE:
        assert list(ROOT.glob(name)), name


# -- versions ---------------------------------------------------------------------------------------------------------


def test_the_lock_holds_each_pin_once_for_every_system():
    for system in SYSTEMS:
        names = [canonicalize_name(r.name) for r in LOCK if r.marker is None or r.marker.evaluate(system)]
        assert len(names) == len(set(names)), system
        assert set(PINS) <= set(names), "run `make lock`"
    for r in LOCK:
        assert r.specifier == PINS.get(canonicalize_name(r.name), r).specifier, "run `make lock`"


def test_pip_and_uv_are_given_the_same():
    text = (ROOT / "requirements.txt").read_text()
    pip, uv = (make.installs(text, {"INSTALLER": name}) for name in ("pip", "uv"))
    assert [c[c.index("--requirement") :] for c in (pip[0], uv[0])] == [
        ["--requirement", "requirements.txt", "--constraint", "requirements.lock"]
    ] * 2
    assert [len(pip), len(uv)] == [2, 2] and pip[1][-3:] == uv[1][-3:] == ["--no-deps", "--editable", "."]


def test_an_unknown_installer_is_refused():
    with pytest.raises(SystemExit, match="INSTALLER=conda"):
        make.installs("", {"INSTALLER": "conda"})


def test_newest_leaves_out_the_versions_and_the_lock():
    (command, _) = make.installs("torch==2.15.0\njupyter-book==1.0.4\n", {"INSTALLER": "pip", "NEWEST": "1"})
    assert command[-2:] == ["torch", "jupyter-book<2"] and "--constraint" not in command


def wheel(folder, name, version):
    """A wheel with one empty module, in a folder that pip reads as an index's page of that package."""
    page = folder / name
    page.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    file = f"{name}-{version}-py3-none-any.whl"
    with ZipFile(page / file, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    files = sorted(path.name for path in page.glob("*.whl"))
    (page / "index.html").write_text("".join(f'<a href="{f.replace("+", "%2B")}">{f}</a>' for f in files))


def test_torch_and_torchvision_come_from_their_own_index_and_stay(tmp_path):
    """Two indices on disk: the rest's has torch as well, which must not replace the one for processors."""
    for name, version in (("torch", "2.15.0"), ("torchvision", "0.29.2")):
        wheel(tmp_path / "cpu", name, version + "+cpu")
        wheel(tmp_path / "all", name, version)
    wheel(tmp_path / "all", "tqdm", "4.70.1")
    pins = "torch==2.15.0\ntorchvision==0.29.2\ntqdm==4.70.1\n"
    (tmp_path / "requirements.txt").write_text(pins)
    (tmp_path / "requirements.lock").write_text(pins)
    venv.create(tmp_path / ".venv", symlinks=True)  # pip of this environment fills it: no second pip is set up
    python = tmp_path / make.PYTHON
    environment = {"INSTALLER": "pip", "TORCH_INDEX": (tmp_path / "cpu").as_uri()}
    for command in make.installs(pins, environment)[:2]:
        arguments = [sys.executable, "-m", "pip", "--isolated", "--python", str(python), *command[3:]]
        if "--index-url" not in arguments:
            arguments += ["--index-url", (tmp_path / "all").as_uri()]
        subprocess.run(arguments, cwd=tmp_path, check=True)
    show = "import importlib.metadata as m; print(*(m.version(n) for n in ('torch', 'torchvision', 'tqdm')))"
    found = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.split()
    assert found == ["2.15.0+cpu", "0.29.2+cpu", "4.70.1"]


def test_plain_sphinx_finds_the_book_s_own_extensions(tmp_path, monkeypatch):
    """They lie in folders that Jupyter Book puts on the path, and plain Sphinx does not."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    own = {ROOT / folder for folder in config["sphinx"]["local_extensions"].values()}
    packages = [tmp_path / ".venv" / name / "lib/python3/site-packages" for name in ("sphinx", "")]
    for folder in packages:
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make, "setup", lambda: None)
    monkeypatch.setattr(make.venv, "create", lambda *given, **named: None)

    def called(*command, **named):
        if "config" in command:
            raise KeyboardInterrupt

    monkeypatch.setattr(make, "call", called)
    with pytest.raises(KeyboardInterrupt):
        make.sphinx()
    (behind,) = tmp_path.rglob("behind.pth")
    assert own and own <= set(map(Path, behind.read_text().splitlines()))
