# Linux and macOS, with nothing but make and Python 3.11 or newer. Elsewhere: pip install -e ".[lab,test]".
# Each target sets up .venv first, if pyproject.toml changed since. Options pass through: make demo ARGS="--seeds 5"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo lab check test bench assignments grade site site-assets site-links release-check lint clean

ARGS   ?=
# Where to take PyTorch from, as pytorch.org shows it for your system: one for the CPU only saves 5 GB.
TORCH_INDEX ?=
UV     ?= $(shell command -v uv 2>/dev/null)
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
# The first of these that runs and is recent enough; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
            "$$p" -c '$(RECENT)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
BIN    := .venv/bin
INSTALL = $(if $(UV),"$(UV)" pip install --python $(BIN)/python,$(BIN)/python -m pip install)
# Three set-ups in one .venv, each larger than the one before: the package, the lessons, and all that tests need.
CORE   := .venv/.core
LAB    := .venv/.lab
ALL    := .venv/.all
$(CORE): EXTRAS :=
$(LAB): EXTRAS := [lab]
$(ALL): EXTRAS := [lab,test]

help: ## list the targets (the default)
	@echo 'make TARGET [ARGS="..."] [PYTHON=python3.12] [TORCH_INDEX=URL]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

demo: $(CORE) ## train and compare on this machine
	$(BIN)/mebqat-lite demo $(ARGS)

lab: $(LAB) ## open the lessons in JupyterLab
	$(BIN)/python -m jupyterlab notebooks/00_start_here.ipynb $(ARGS)

check: $(ALL) ## lint, types and the quick tests: under three minutes
	$(BIN)/mebqat-lite test lint format types quick $(ARGS)

test: $(ALL) ## run everything CI runs; ARGS=lint or ARGS="tests -x" for a part
	$(BIN)/mebqat-lite test $(ARGS)

bench: $(ALL) ## measure the speed
	$(BIN)/python -m benchmarks $(ARGS)

assignments: $(ALL) ## write the student versions of the assignments, zipped
	$(BIN)/mebqat-lite assignments $(ARGS)

grade: $(ALL) ## grade a folder or a zip of submissions: make grade SUBMISSIONS=folder
	@test -n "$(SUBMISSIONS)" || { echo "make grade SUBMISSIONS=folder, with STUDENT/NAME.ipynb in it" >&2; exit 2; }
	$(BIN)/mebqat-lite grade "$(SUBMISSIONS)" $(ARGS)

site: $(ALL) ## build the course as a site, into build/site; first once: make site-assets
	$(BIN)/python site $(ARGS)

site-assets: $(ALL) ## fetch the site's scripts, which draw formulas and run networks
	$(BIN)/python site/assets.py

site-links: site ## ask whether the site's links to elsewhere still lead somewhere
	$(BIN)/python -m sphinx -q -b linkcheck -D suppress_warnings=mystnb.mime_priority -c site -d build/site-doctrees build/site-pages build/site-links

release-check: $(ALL) ## build what is released, install it elsewhere, and run it there
	$(BIN)/python tests/release.py

lint: $(ALL) ## ruff and mypy only
	$(BIN)/mebqat-lite test lint format types

clean: ## remove caches and build folders; .venv, data and results stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# A stamp is written last, so an installation that fails half-way is repeated by the next call. A larger set-up has
# all that a smaller one has, and writes its stamp too.
$(CORE) $(LAB) $(ALL): pyproject.toml
	@rm -f $@
	@test -n "$(if $(PYTHON),,$(UV))" || "$(PYTHON)" -c '$(RECENT)' 2>/dev/null || { \
	  echo "mebqat_lite needs Python 3.11 or newer$(if $(PYTHON),; $(PYTHON) is not). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Setting up .venv with $(if $(UV),uv,$(PYTHON)): the first time takes minutes, and several GB for PyTorch with CUDA."
	@test -x $(BIN)/python || rm -rf .venv
	test -x $(BIN)/python || $(if $(UV),"$(UV)" venv --seed --python "$(or $(PYTHON),>=3.11)" .venv,"$(PYTHON)" -m venv .venv)
	$(if $(TORCH_INDEX),$(INSTALL) torch torchvision --index-url "$(TORCH_INDEX)")
	$(INSTALL) -e ".$(EXTRAS)"
	@touch $@ $(if $(EXTRAS),$(CORE)) $(if $(findstring test,$(EXTRAS)),$(LAB))
