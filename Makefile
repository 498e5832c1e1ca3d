# What each target does is said once, for all systems, in tools/make.py. Without make: python -m tools.make TARGET
PYTHON ?= python3
TARGETS := book pdf run test lint unit portable notebooks pages test-long links sphinx setup lock dist generated repository help
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: $(TARGETS)

$(TARGETS):
	@$(PYTHON) -m tools.make $@
