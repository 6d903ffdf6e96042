# Each target makes .venv by itself. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# One thread a process: the demo and the tests run many processes on few cores.
export OMP_NUM_THREADS = 1
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export ORT_DISABLE_TELEMETRY = 1
# Else each of the many processes would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow mutants chaos check docs api format install clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "python3 has no venv module; installing python3-venv"; rm -rf .venv; \
	    apt-get install -y python3-venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,zoo,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/fedlatent demo

# Files go to that many workers; some wait for real services most of the time.
JOBS ?= 3
test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Breaks the code in every way of tests/mutants/catalogue.py and expects the named test to fail.
mutants: $(READY)
	$(BIN)/python -m pytest -m slow tests/mutants

# Strikes a real deployment of three nodes with seeded faults; best as root, who may mount.
SEED ?= 0
FAULTS ?= 200
chaos: $(READY)
	$(BIN)/fedlatent simulate check chaos --set seed=$(SEED) --set faults=$(FAULTS) --set out=chaos.json

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The page of all commands, from what they say of themselves, the catalogue of data sets, and the
# schemas of our files.
docs: $(READY)
	$(BIN)/python -m fedlatent.cli.reference > docs/cli.md
	$(BIN)/python -m fedlatent.simulations.catalog.page docs/data.md
	for name in run node server; do \
	  $(BIN)/python -m fedlatent.cli.main schema $$name --out docs/schemas/$$name.schema.json; done

# The pages of the Python side, from its docstrings, in build/api.
api: $(READY)
	$(BIN)/python -m pdoc fedlatent '!fedlatent.cli' -o build/api

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
