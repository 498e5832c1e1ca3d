"""Every command of the project, for all systems: `python -m tools.make TARGET [NAME=VALUE ...]`.

The Makefile only passes its targets on to this file. It needs Python's standard library alone; what a target needs
beyond that, `setup` installs into .venv the first time. Settings, as NAME=VALUE or as environment variables:

URL          the repository's address, for `repository`
TORCH_INDEX  a package index that torch and torchvision are taken from, both together; for machines without a GPU
             https://download.pytorch.org/whl/cpu saves about 5 GB
INSTALLER    uv or pip; default: uv where it is found
NEWEST       1: the newest versions of everything in place of the tested ones
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(".venv", "Scripts" if os.name == "nt" else "bin")
PYTHON = str(BIN / "python")
# Sphinx 9.0, the newest for Python 3.11, shows every constant's value in the reference, whatever no-value says.
SPHINX = ["sphinx!=9.0.*", "sphinx-book-theme", "sphinx-external-toc", "sphinx-multitoc-numbering", "myst-nb",
          "sphinx-design", "sphinx-copybutton", "sphinx-togglebutton", "sphinx-comments",
          "sphinxcontrib-bibtex"]  # fmt: skip
METHODS = ("baselines", "mixup", "crl", "cdb", "dos", "mfw", "features")
PORTABLE = [f"tests/test_{name}*.py" for name in ("data", "nets", "metrics", *METHODS)]


def call(*command, out=None, **environment):
    """Show one command and run it; with `out` its output goes to that file."""
    print(shlex.join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE if out else None, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(done.returncode)
    if out:
        Path(out).write_bytes(done.stdout)


def pytest(*arguments, **environment):
    call(PYTHON, "-m", "pytest", "-q", *arguments, **environment)


# Two processes of one thread each: torch would otherwise start a thread a core in both.
def parallel(*arguments, **environment):
    pytest("-n", "2", "--durations=10", *arguments, OMP_NUM_THREADS="1", **environment)


# -- the environment --------------------------------------------------------------------------------------------------


def pins(text):
    """Lines NAME==VERSION of a requirements file, without comments."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def installer(environment):
    """The command that installs what follows it into .venv."""
    name = environment.get("INSTALLER") or ("uv" if shutil.which("uv") else "pip")
    if name not in ("uv", "pip"):
        sys.exit(f"INSTALLER={name}: uv or pip")
    if name == "uv":
        return ["uv", "pip", "install", "--quiet", "--python", PYTHON]
    return [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def installs(requirements, environment):
    """The commands that fill .venv: torch from its own index if one is given, the rest, and the package itself.

    requirements.lock constrains what requirements.txt does not name. It is no list of what to install: with a torch for
    processors only, the CUDA libraries in it must stay away.
    """
    install = installer(environment)
    wanted, rest = pins(requirements), ["--requirement", "requirements.txt", "--constraint", "requirements.lock"]
    if environment.get("NEWEST") == "1":
        wanted = rest = [re.sub("==.*", "<2" if pin.startswith("jupyter-book") else "", pin) for pin in wanted]
    commands = []
    if index := environment.get("TORCH_INDEX"):
        torch = [pin for pin in wanted if re.match(r"torch(vision)?\b", pin)]
        commands.append([*install, "--no-deps", "--index-url", index, *torch])
    return [*commands, [*install, *rest], [*install, "--no-deps", "--editable", "."]]


def setup():
    """make .venv, or bring it up to date"""
    ready = Path(".venv/.ready")
    sources = [Path(name) for name in ("requirements.txt", "requirements.lock", "pyproject.toml")]
    if ready.exists() and all(ready.stat().st_mtime >= path.stat().st_mtime for path in sources):
        return
    if not Path(".venv/pyvenv.cfg").exists():
        venv.create(".venv", with_pip=True, symlinks=os.name != "nt")
    for command in installs(Path("requirements.txt").read_text(), os.environ):
        call(*command)
    # The font list is drawn up here once: matplotlib announces that on stderr, which would fail a notebook's comparing.
    call(PYTHON, "-c", "import matplotlib.pyplot")
    ready.touch()


def lock():
    """write requirements.lock anew: all versions that requirements.txt brings, for all systems (needs uv)"""
    call("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--no-annotate",
         "--custom-compile-command", "make lock", "--output-file", "requirements.lock", "requirements.txt")  # fmt: skip


# -- the tests --------------------------------------------------------------------------------------------------------


def test():
    """lint, unit tests, notebooks, the book's build, the built pages"""
    for target in (lint, unit, notebooks, pages):
        target()


def lint():
    """ruff, on notebooks too, and the types of the package"""
    setup()
    call(PYTHON, "-m", "ruff", "check", ".")
    call(PYTHON, "-m", "mypy")


def unit():
    """unit tests and the package's doctests"""
    setup()
    parallel("-m", "not long", "--doctest-modules", "imbook", "tests",
             "--ignore=tests/test_book.py", "--ignore=tests/test_browser.py")  # fmt: skip


def portable():
    """import, unit tests of data and methods: what is tested on Windows and macOS too"""
    setup()
    call(PYTHON, "-c", "import imbook.methods, imbook.train, imbook.experiments, imbook.plots")
    files = sorted(path.as_posix() for name in PORTABLE for path in Path().glob(name))
    parallel("-m", "not long", *files)


def notebooks():
    """execute every notebook and compare its outputs; what is trained live is not compared"""
    setup()
    parallel("--dist", "loadfile", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=120", "notebooks",
             IMBOOK_TRAIN="0")  # fmt: skip


def pages():
    """build the book, then test links, anchors and every page in a browser"""
    book()
    parallel("tests/test_book.py", "tests/test_browser.py", "-m", "not long")


def test_long():
    """fuzzing, kill and resume, each chapter alone in an empty folder, the PDF, accessibility: minutes"""
    book()
    call(*installer(os.environ), "ray", "submitit")  # the engines of sweeps, which nothing else needs
    pytest("-m", "long", "tests")


def links():
    """every link to another site, weekly: needs the network"""
    setup()
    call(str(BIN / "jupyter-book"), "build", ".", "--builder", "linkcheck", "--path-output", "_build/links", "--quiet")


def sphinx():
    """build the book by plain Sphinx, today's, and test its pages: the way out of Jupyter Book 1, tried weekly"""
    setup()
    python = str(BIN.parent / "sphinx" / BIN.name / "python")  # an environment within .venv: out of the book's sight
    venv.create(".venv/sphinx", with_pip=True, symlinks=os.name != "nt")
    # The reference imports the package: what .venv has comes after what is installed here, so that Sphinx is today's.
    behind = next(Path(".venv/sphinx").rglob("site-packages")) / "behind.pth"
    behind.unlink(missing_ok=True)
    call(python, "-m", "pip", "install", "--quiet", "--upgrade", *SPHINX)
    installed = next(Path(".venv").glob("[Ll]ib/**/site-packages")).resolve()
    behind.write_text("\n".join(map(str, (ROOT, ROOT / "tools", installed))))  # tools: our own extensions
    shutil.rmtree("_build", ignore_errors=True)
    try:
        call(str(BIN / "jupyter-book"), "config", "sphinx", ".")
        conf = Path("conf.py")
        conf.write_text(re.sub("'(jupyter_book|sphinx_jupyterbook_latex)', ", "", conf.read_text()))
        call(python, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", ".", "_build/html")
    finally:
        Path("conf.py").unlink(missing_ok=True)
    call(PYTHON, "tools/finish.py", "_build/html")
    parallel("tests/test_book.py", "tests/test_browser.py", "-m", "not long")


# -- what is made -----------------------------------------------------------------------------------------------------


# Jupyter Book passes over failed and unexecuted notebooks, and over warnings of a second build: test, then build clean.
def book():
    """build the book; prints the path of its first page"""
    setup()
    pytest("tests/test_notebooks.py", "-k", "executed")
    shutil.rmtree("_build", ignore_errors=True)
    call(str(BIN / "jupyter-book"), "build", ".", "--warningiserror", "--keep-going", "--nitpick", "--quiet")
    call(PYTHON, "tools/finish.py", "_build/html")
    print(ROOT / "_build/html/index.html")


def pdf():
    """print the whole book to _build/book.pdf, contents and page numbers included (needs Chromium)"""
    book()
    call(PYTHON, "tools/pdf.py", "_build/html", "_build/book.pdf")


def run():
    """train on long-tailed digits, under a minute: a table and a figure"""
    setup()
    call(PYTHON, "-m", "imbook", "run", "digits", "--out", "runs/digits")


def dist():
    """build the package's wheel and source archive into dist/"""
    setup()
    for folder in ("build", "dist"):  # modules that are gone would otherwise still be in the wheel
        shutil.rmtree(folder, ignore_errors=True)
    call(PYTHON, "-m", "build")


def generated():
    """rewrite the pages and the figure that are made from notebooks and records"""
    setup()
    call(PYTHON, "tools/heads.py")
    call(PYTHON, "tools/method_cards.py", out="book/_generated/method-cards.md")
    call(PYTHON, "tools/structure.py", out="book/_generated/structure.md", PYTHONUTF8="1")
    call(PYTHON, "tools/step_costs.py", out="book/_generated/step-costs.md", PYTHONPATH="benchmarks")
    call(PYTHON, "-m", "imbook", "provenance", out="book/_generated/provenance.md")
    call(PYTHON, "tools/found.py", "book/_static/found.png", out="book/_generated/found.md")
    call(PYTHON, "-m", "imbook", "table", "fashion", "--row", "cross entropy", "--row", "inverse frequency",
         "--row", "logit adjustment", "--figure", "book/_static/readme.png")  # fmt: skip


def repository():
    """write the repository's address everywhere: URL=https://github.com/OWNER/NAME, default: that of the git remote"""
    url = os.environ.get("URL")
    call(sys.executable, "tools/repository.py", *([url] if url else []))


def help():
    """say what there is"""
    width = max(map(len, TARGETS))
    for name, target in TARGETS.items():
        print(f"make {name:{width}}   {target.__doc__}")
    print("\nwithout make: python -m tools.make TARGET")


COMMANDS = (book, pdf, run, test, lint, unit, portable, notebooks, pages, test_long, links, sphinx, setup, lock, dist,
            generated, repository, help)  # fmt: skip
TARGETS = {target.__name__.replace("_", "-"): target for target in COMMANDS}


def main(arguments):
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12, or python3.12 -m tools.make")
    settings = [a.partition("=") for a in arguments if "=" in a]
    names = [a for a in arguments if "=" not in a] or ["help"]
    if unknown := [name for name in names if name not in TARGETS]:
        sys.exit(f"no target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    os.environ.update({name: value for name, _, value in settings})
    os.environ.setdefault("PYTHONUTF8", "1")  # files are UTF-8, on Windows too
    os.chdir(ROOT)
    for name in names:
        TARGETS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
