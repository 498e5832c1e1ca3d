"""Write the repository's address and the version's tag into every place that shows them.

    python tools/repository.py            rewrite; if no address is set yet, take that of the git remote `origin`
    python tools/repository.py ADDRESS    set the address, https or ssh: https://github.com/OWNER/NAME
    python tools/repository.py --check    change nothing; name the files that disagree, exit 1

The places: _config.yml (the address and the header's buttons), README.md, book/how-to-use.md, CITATION.cff, and in
every notebook the markdown cell tagged `repository-links` and the code cell tagged `colab-setup`.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

PLACEHOLDER = "https://example.org/imbook"  # nobody's account: stands for "not set yet"
ADDRESS = re.compile(
    r"(?:https://(?:[^@/\s]+@)?|ssh://git@|git@)github\.com[/:]([A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+?)(?:\.git)?/?"
)
NOT_SET = "the address of this book's repository is not set yet"


def parse(url):
    """The address as https://github.com/OWNER/NAME. Raises ValueError if it is not a GitHub repository's address."""
    if url.strip() == PLACEHOLDER:
        return PLACEHOLDER
    if found := ADDRESS.fullmatch(url.strip()):
        return f"https://github.com/{found[1]}"
    raise ValueError(f"not an address of the form https://github.com/OWNER/NAME: {url!r} (Colab opens only GitHub)")


def git(root, *arguments):
    """What a git command says; empty where it fails, where git is missing, or where `root` is no repository."""
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def links(url, ref, path):
    """Source of the notebook's markdown cell tagged `repository-links`."""
    if url == PLACEHOLDER:
        return f"*Run on Colab · Download: {NOT_SET}, but [a file will do](../book/how-to-use.md).*"
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    return (
        f"[Run on Colab]({colab}/blob/{ref}/{path}) · "
        f"[Download the notebook]({url}/raw/{ref}/{path}) · [Repository]({url})"
    )


def setup(url, refs):
    """Source of the notebook's code cell tagged `colab-setup`.

    Off Colab it prints nothing, and only says what to do where the package is missing: a notebook may be opened alone.

    On Colab it installs the first of these that is there: the wheel that IMBOOK_WHEEL names, by default one uploaded
    beside the notebook; the archives of `refs`, such as ["tags/v0.1.0", "heads/main"], once the address is set.
    """
    archives = ""
    if url != PLACEHOLDER:
        files = ", ".join(f'archive + "/{ref}.tar.gz"' for ref in refs)
        archives = f'    archive = "{url}/archive/refs"\n    sources += [{files}]\n'
    return f'''\
import sys  # on Colab this cell installs the book's package; torch and numpy stay
from glob import glob
from importlib.util import find_spec
from os import environ
from subprocess import call

used = find_spec("imbook")
if "google.colab" in sys.modules:
    sources = glob(environ.get("IMBOOK_WHEEL", "imbook-*.whl"))
{archives}    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    used = next((s for s in sources if call([*pip, s]) == 0), None)
    print("imbook comes from", used)
assert used, "imbook is missing: install or upload its wheel (`make dist`)"'''


def readme(url, ref):
    """The part of README.md between the two `repository` comments."""
    if url == PLACEHOLDER:
        return f"Colab and clone links will stand here: {NOT_SET}."
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    return (
        f"[Run the first chapter on Colab]({colab}/blob/{ref}/notebooks/01_imbalance.ipynb) · "
        f"[Repository]({url}) · `git clone {url}`"
    )


def how_to_use(url, refs):
    """The part of book/how-to-use.md between the two `repository` comments."""
    if url == PLACEHOLDER:
        return (
            f"A link to Colab will stand here: {NOT_SET}. A chapter runs there all the same. Build the package with "
            "`make dist`, open the chapter on Colab by *File*, *Upload notebook*, and put `dist/imbook-*.whl` into "
            "Colab's folder by its file panel. The chapter's first cell then installs that file."
        )
    tag = refs[0].removeprefix("tags/") if len(refs) > 1 else None
    archive = f"the release `{tag}`, or the branch if that release is not there" if tag else "the branch"
    return (
        f"Each chapter starts with a link that opens it on Colab. Its first code cell installs the book's package from "
        f"{archive}, and prints which. To use a package of your own instead, build it with `make dist` and put "
        "`dist/imbook-*.whl` into Colab's folder by its file panel."
    )


def replace(pattern, new, text, path):
    """`text` with its one match of `pattern` replaced. Raises ValueError if there is not exactly one."""
    text, n = re.subn(pattern, lambda _: new, text, flags=re.MULTILINE | re.DOTALL)
    if n != 1:
        raise ValueError(f"{path}: {n} places match {pattern!r}, there must be one")
    return text


def notebook(text, url, refs, path):
    """The notebook's text with its two tagged cells rewritten."""
    nb = json.loads(text)
    for name, kind, source in [
        ("repository-links", "markdown", links(url, refs[0].partition("/")[2], path)),
        ("colab-setup", "code", setup(url, refs)),
    ]:
        cells = [c for c in nb["cells"] if name in c["metadata"].get("tags", []) and c["cell_type"] == kind]
        if len(cells) != 1:
            raise ValueError(f"{path}: {len(cells)} {kind} cells are tagged {name!r}, there must be one")
        cells[0]["source"] = source.splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def archives(config, version):
    """Where the package of this version is: the release's tag and the branch; a version in development has no tag."""
    branch = "heads/" + re.search(r"^  branch: (.*)$", config, re.MULTILINE)[1]
    return [branch] if "dev" in version else [f"tags/v{version}", branch]


def rewritten(root, url=None):
    """Path -> text, as it should be, of every file that shows the address (`url`, default: the one set now)."""
    config = (root / "_config.yml").read_text()
    url = parse(url or address(config))
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    refs = archives(config, version)
    ref = refs[0].partition("/")[2]
    config = replace(r"^  url: [^\n]*$", f"  url: {url}", config, "_config.yml")
    shown = str(url != PLACEHOLDER).lower()
    for button in ("use_repository_button", "use_issues_button"):
        config = replace(rf"^  {button}: [^\n]*$", f"  {button}: {shown}", config, "_config.yml")
    texts = {root / "_config.yml": config}
    block = r"<!-- repository -->.*<!-- /repository -->"
    for name, pattern, new in [
        ("README.md", block, f"<!-- repository -->\n{readme(url, ref)}\n<!-- /repository -->"),
        ("book/how-to-use.md", block, f"<!-- repository -->\n{how_to_use(url, refs)}\n<!-- /repository -->"),
        ("CITATION.cff", r"^repository-code: [^\n]*$", f'repository-code: "{url}"'),
        ("CITATION.cff", r"^version: [^\n]*$", f"version: {version}"),
        ("CITATION.cff", r"^    value: [^\n]*$", f"    value: {ref}"),
    ]:
        path = root / name
        texts[path] = replace(pattern, new, texts.get(path) or path.read_text(), name)
    for path in sorted(root.glob("notebooks/*.ipynb")):
        texts[path] = notebook(path.read_text(), url, refs, path.relative_to(root).as_posix())
    return texts


def stale(root, url=None):
    """Path -> new text of those files whose text is not what it should be."""
    return {path: text for path, text in rewritten(root, url).items() if not same(path.read_text(), text, path)}


def same(old, new, path):
    """Equal texts; notebooks are compared by content, since editors differ in how they lay out JSON."""
    if path.suffix != ".ipynb":
        return old == new
    a, b = (json.loads(text) for text in (old, new))
    for cell in a["cells"] + b["cells"]:
        cell["source"] = "".join(cell["source"])
    return a == b


def address(config):
    """The address that _config.yml holds."""
    return re.search(r"^  url: (.*)$", config, re.MULTILINE)[1]


def chosen(root, args):
    """The address to write: the one given; else the one set; else that of the git remote, if it is on GitHub."""
    now = address((root / "_config.yml").read_text())
    if args or now != PLACEHOLDER:
        return parse(args[0] if args else now)
    remote = git(root, "remote", "get-url", "origin")
    if ADDRESS.fullmatch(remote):
        return parse(remote)
    print(f"{NOT_SET}: give it, make repository URL=https://github.com/OWNER/NAME", file=sys.stderr)
    return PLACEHOLDER


def main(args, root):
    check = args == ["--check"]
    if len(args) > 1:
        sys.exit("give one address: make repository URL=https://github.com/OWNER/NAME")
    try:
        url = None if check else chosen(root, args)
        files = stale(root, url)
    except ValueError as error:
        sys.exit(str(error))
    for path, text in files.items():
        print(path.relative_to(root))
        if not check:
            path.write_text(text)
    if check and files:
        sys.exit("these files disagree with the address in _config.yml: run `make repository`")
    tag = re.search(r"^    value: (v.*)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    if not check and url != PLACEHOLDER and tag and not git(root, "tag", "--list", tag[1]):
        print(
            f"the links to Colab open the tag {tag[1]}, which is not here yet: "
            f"git tag {tag[1]} && git push origin {tag[1]}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(sys.argv[1:], Path(__file__).resolve().parents[1])
