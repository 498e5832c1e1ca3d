"""Write the repository's address from _config.yml into every place that shows it.

    python tools/repository.py [https://github.com/OWNER/NAME]   set the address, or only rewrite what depends on it
    python tools/repository.py --check                           change nothing; name the files that disagree, exit 1

The places: _config.yml (the address and the header's buttons), README.md, CITATION.cff, and in every notebook the
markdown cell tagged `repository-links` and the code cell tagged `colab-setup`.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

PLACEHOLDER = "https://example.org/imbook"  # nobody's account: stands for "not set yet"
ADDRESS = re.compile(r"https://github\.com/[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
NOT_SET = "the address of this book's repository is not set yet"


def parse(url):
    """The address without a trailing `/` or `.git`. Raises ValueError if it is not a GitHub repository's address."""
    url = url.strip().removesuffix("/").removesuffix(".git")
    if url != PLACEHOLDER and not ADDRESS.fullmatch(url):
        raise ValueError(f"not an address of the form https://github.com/OWNER/NAME: {url!r} (Colab opens only GitHub)")
    return url


def links(url, tag, path):
    """Source of the notebook's markdown cell tagged `repository-links`."""
    if url == PLACEHOLDER:
        return f"*Run on Colab · Download: {NOT_SET}.*"
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    return (
        f"[Run on Colab]({colab}/blob/{tag}/{path}) · "
        f"[Download the notebook]({url}/raw/{tag}/{path}) · [Repository]({url})"
    )


def setup(url, tag):
    """Source of the notebook's code cell tagged `colab-setup`. Off Colab it does nothing and prints nothing."""
    if url == PLACEHOLDER:
        action = f'raise RuntimeError("{NOT_SET}")'
    else:
        action = f'%pip install --quiet --no-deps "imbook @ {url}/archive/refs/tags/{tag}.tar.gz"'
    return (
        "# On Colab only: install the book's package, and leave Colab's own torch and numpy as they are.\n"
        "import sys\n\n"
        f'if "google.colab" in sys.modules:\n    {action}'
    )


def readme(url, tag):
    """The part of README.md between the two `repository` comments."""
    if url == PLACEHOLDER:
        return f"Colab and clone links will stand here: {NOT_SET}."
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    return (
        f"[Run the first chapter on Colab]({colab}/blob/{tag}/notebooks/01_imbalance.ipynb) · "
        f"[Repository]({url}) · `git clone {url}`"
    )


def replace(pattern, new, text, path):
    """`text` with its one match of `pattern` replaced. Raises ValueError if there is not exactly one."""
    text, n = re.subn(pattern, lambda _: new, text, flags=re.MULTILINE | re.DOTALL)
    if n != 1:
        raise ValueError(f"{path}: {n} places match {pattern!r}, there must be one")
    return text


def notebook(text, url, tag, path):
    """The notebook's text with its two tagged cells rewritten."""
    nb = json.loads(text)
    for name, kind, source in [
        ("repository-links", "markdown", links(url, tag, path)),
        ("colab-setup", "code", setup(url, tag)),
    ]:
        cells = [c for c in nb["cells"] if name in c["metadata"].get("tags", []) and c["cell_type"] == kind]
        if len(cells) != 1:
            raise ValueError(f"{path}: {len(cells)} {kind} cells are tagged {name!r}, there must be one")
        cells[0]["source"] = source.splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def rewritten(root, url=None):
    """Path -> text, as it should be, of every file that shows the address (`url`, default: the one set now)."""
    config = (root / "_config.yml").read_text()
    url = parse(url or re.search(r"^  url: (.*)$", config, re.MULTILINE)[1])
    tag = "v" + tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    config = replace(r"^  url: [^\n]*$", f"  url: {url}", config, "_config.yml")
    shown = str(url != PLACEHOLDER).lower()
    for button in ("use_repository_button", "use_issues_button"):
        config = replace(rf"^  {button}: [^\n]*$", f"  {button}: {shown}", config, "_config.yml")
    texts = {root / "_config.yml": config}
    for name, pattern, new in [
        (
            "README.md",
            r"<!-- repository -->.*<!-- /repository -->",
            f"<!-- repository -->\n{readme(url, tag)}\n<!-- /repository -->",
        ),
        ("CITATION.cff", r"^repository-code: [^\n]*$", f'repository-code: "{url}"'),
    ]:
        texts[root / name] = replace(pattern, new, (root / name).read_text(), name)
    for path in sorted(root.glob("notebooks/*.ipynb")):
        texts[path] = notebook(path.read_text(), url, tag, path.relative_to(root).as_posix())
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


def main(args, root):
    check = args == ["--check"]
    if len(args) > 1:
        sys.exit("give one address: make repository URL=https://github.com/OWNER/NAME")
    try:
        files = stale(root, None if check or not args else args[0])
    except ValueError as error:
        sys.exit(str(error))
    for path, text in files.items():
        print(path.relative_to(root))
        if not check:
            path.write_text(text)
    if check and files:
        sys.exit("these files disagree with the address in _config.yml: run `make repository`")


if __name__ == "__main__":
    main(sys.argv[1:], Path(__file__).resolve().parents[1])
