# `make` lists the targets. Each one sees to its environment itself: .venv is made once, brought up to date when
# pyproject.toml or constraints.txt change, and made anew when it is not whole, or was made in another folder.

PRESET ?= laptop
NB ?=
ONLY ?=
PYTHON ?= python3

python := .venv/bin/python
stamp := .venv/.installed

# Does .venv work, and is the rfpp in it the one in this folder?
check := import importlib.util as u, os, sys; \
	found = [u.find_spec(name) for name in ("pip", "torch", "rfpp")]; \
	sys.exit(not all(found) or not os.path.samefile(os.path.dirname(os.path.dirname(found[-1].origin)), os.getcwd()))
is_whole := test -f $(stamp) && $(python) -I -c '$(check)' 2>/dev/null

# NB as an expression of pytest's: "a b" are those named a or b, "not a b" all the others.
space := $(subst ,, )
any = $(subst $(space), or ,$(strip $(1)))
chosen = $(if $(filter not,$(firstword $(NB))),not ($(call any,$(wordlist 2,$(words $(NB)),$(NB)))),$(call any,$(NB)))

.DEFAULT_GOAL := help
.PHONY: help book pdf test scales bench mutants lab notebooks clean clean-all distclean anew

help: ## list the targets
	@echo 'usage: make TARGET [PRESET=$(PRESET)] [NB="slug ..."] [PYTHON=$(PYTHON)]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F '|' '{ printf "  %-12s%s\n", $$1, $$2 }'
	@echo
	@echo '  PRESET      the scale: a preset of the library, or a .yaml file'
	@echo '  NB          notebooks to run or to compare, as parts of their names; all when empty; "not arena" all but that.'
	@echo '              The book shows the others as they last ran, or as stored in notebooks/'
	@echo '  ONLY        the presets that `make scales` runs, such as ONLY="cifar10 or afhq"; all when empty'
	@echo '  PYTHON      what .venv is made with, 3.11 or newer'

book: $(stamp) ## run the notebooks at PRESET and build the book
	@$(python) -m rfpp run --preset "$(PRESET)" $(NB)
	@$(python) -m rfpp book --preset "$(PRESET)" $(NB)

pdf: $(stamp) ## run the notebooks at PRESET and print the book as one PDF; needs Chromium
	@$(python) -m rfpp run --preset "$(PRESET)" $(NB)
	@$(python) -m rfpp book --preset "$(PRESET)" --pdf $(NB)

test: $(stamp) ## check style, spelling and types, run the tests, compare the notebooks with their stored outputs
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m codespell_lib
	@$(python) -m mypy
	@OMP_NUM_THREADS=1 $(python) -m pytest -n auto --dist worksteal -m "not every_scale" tests  # a process for each core: more threads than cores wait for each other
	@CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(python) -m pytest -n auto --dist loadfile --nbval --nbval-current-env -k "$(chosen)" notebooks  # stored outputs are a CPU's

scales: $(stamp) ## run every notebook at every preset, shrunk (minutes)
	@OMP_NUM_THREADS=1 $(python) -m pytest -n auto --dist loadgroup -m every_scale -k "$(ONLY)" tests

bench: $(stamp) ## compare speed with the usual ways and write benchmarks/results.json (about eight minutes)
	@$(python) -m pytest benchmarks --benchmark-json=benchmarks/results.json

mutants: $(stamp) ## put known faults into a copy of the library and see that the tests notice each (minutes)
	@$(python) tests/mutants.py

lab: $(stamp) ## open the notebooks in JupyterLab
	@$(python) -m jupyterlab notebooks

notebooks: $(stamp) ## run the notebooks and keep their outputs in notebooks/
	@$(python) -m rfpp run --preset "$(PRESET)" --write-back $(NB)

clean: ## remove results, the book and caches
	rm -rf runs/* _build .pytest_cache .mypy_cache .ruff_cache

clean-all: clean ## remove .venv as well
	rm -rf .venv rfpp.egg-info

distclean: clean-all

$(stamp): pyproject.toml constraints.txt $(shell { $(is_whole); } || echo anew)
	@if $(is_whole); then echo 'bringing .venv up to date'; else \
		complain() { echo "error: PYTHON=$(PYTHON) $$1, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
		"$(PYTHON)" -c '' || complain 'does not run; name a Python of 3.11 or newer'; \
		"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			complain "is $$("$(PYTHON)" --version 2>&1); name one of 3.11 or newer"; \
		"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
			complain 'has no venv module; install it (Debian and Ubuntu: python3-venv) or name another Python'; \
		if [ -e .venv ]; then echo '.venv is not whole, or was made in another folder: making it anew'; fi; \
		echo 'setting up .venv (once, some minutes)'; \
		rm -rf .venv && "$(PYTHON)" -m venv .venv; \
	fi
	@$(python) -m pip install -q --disable-pip-version-check --no-input -c constraints.txt -e ".[book,cluster,diffusers,tensorboard,test]"
	@touch $@
