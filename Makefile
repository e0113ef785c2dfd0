# Each target makes .venv from the lock if it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAGES := sft evo_cot shortest_correct agentic specialists preference kpop
# Of `make chat`: the demo's last model, and one whose answers stand beside its own.
SAVED = $(foreach demo,runs/demo_quick runs/demo,$(wildcard $(STAGES:%=$(demo)/%/checkpoints)))
MODEL ?= $(patsubst %/checkpoints,%,$(lastword $(SAVED)))
COMPARE ?=
# Large arrays on huge pages of memory, where Linux allows it: a training step takes 0.8 times as long.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: install demo chat notebooks test test-slow lint format docs screenshots lock clean

install: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed, found $$($(PYTHON) --version); name one with PYTHON=…"; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: install
	$(BIN)/python -m launch.demo

chat: install
	@test -n "$(MODEL)" || { echo "there is no model of the demo yet: make demo, or make chat MODEL=FOLDER"; exit 2; }
	$(BIN)/python -m launch.serve --model=$(MODEL) $(if $(COMPARE),--compare=$(COMPARE))

notebooks: install
	$(BIN)/python -m pip install --quiet --no-build-isolation -c requirements.lock -e '.[notebooks]'
	$(BIN)/python -m jupyter lab notebooks

test: install lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

screenshots: install
	$(BIN)/python docs/write_screenshots.py runs/demo/report.html

lock: install
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --quiet -o requirements.lock

clean:
	rm -rf .venv runs build dist
