# make book · make test · make run: each sets up .venv by itself. Needs Python 3.11 or newer, git, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup book test lint unit notebooks pages test-long run repository generated

help:
	@echo "make book        build the book; prints the path of its first page"
	@echo "make test        lint, unit tests, notebooks, the book's build, the built pages"
	@echo "make run         train on long-tailed digits, under a minute: a table and a figure"
	@echo "make test-long   fuzzing, kill and resume: minutes"
	@echo "make generated   rewrite the pages and the figure made from notebooks and records"
	@echo "make repository URL=https://github.com/OWNER/NAME   set the repository's address everywhere"

setup: .venv/.ready

# The font list is drawn up here once: matplotlib announces that on stderr, which would fail a notebook's strict comparison.
.venv/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(BIN)/python -c "import matplotlib.pyplot"
	touch $@

# Jupyter Book passes over failed and unexecuted notebooks, and over warnings of a second build: test first, build from clean.
book: .venv/.ready
	$(BIN)/python -m pytest -q tests/test_notebooks.py -k executed
	rm -rf _build
	$(BIN)/jupyter-book build . --warningiserror --keep-going --nitpick --quiet
	@echo "$(CURDIR)/_build/html/index.html"

# Two processes of one thread each: torch would otherwise start a thread a core in both.
test unit notebooks: export OMP_NUM_THREADS = 1
test: lint unit notebooks pages

lint: .venv/.ready
	$(BIN)/ruff check .

unit: .venv/.ready
	$(BIN)/python -m pytest -q -n 2 -m "not long" --durations=10 --doctest-modules imbook tests \
		--ignore=tests/test_book.py --ignore=tests/test_browser.py

# Live training is off; what is read from records, counted or computed must come out as stored.
notebooks: .venv/.ready
	IMBOOK_TRAIN=0 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10 --nbval --nbval-current-env \
		--nbval-cell-timeout=120 notebooks

pages: book
	$(BIN)/python -m pytest -q tests/test_book.py tests/test_browser.py

test-long: .venv/.ready
	$(BIN)/python -m pytest -q -m long tests

run: .venv/.ready
	$(BIN)/python -m imbook run digits --out runs/digits

generated: .venv/.ready
	$(BIN)/python tools/method_cards.py > book/_generated/method-cards.md
	PYTHONPATH=benchmarks $(BIN)/python tools/step_costs.py > book/_generated/step-costs.md
	$(BIN)/python -m imbook provenance > book/_generated/provenance.md
	$(BIN)/python -m imbook table fashion --cell "cross entropy" --cell "inverse frequency" --cell "logit adjustment" \
		--figure book/_static/readme.png

repository: .venv/.ready
	$(BIN)/python tools/repository.py $(URL)
