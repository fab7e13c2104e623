# Each target builds what it needs in .venv first (minutes the first time, nothing afterwards) and says what it does.
# uv is used where it is installed, pip otherwise. Another Python: `make lab PYTHON=python3.13`.
PYTHON ?= $(firstword $(foreach p,python3 python,$(shell command -v $(p))))
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
PIP := $(if $(UV),$(UV) pip install --quiet --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check)
USE := $(VENV)/.ready-to-use
TEST := $(VENV)/.ready-to-test
PRESS := $(VENV)/.ready-to-print
GRADE := $(VENV)/.ready-to-grade
SOAK := $(VENV)/.ready-to-soak
PORT ?= 8888
# What `make tables` runs, with what, and how many at a time:
# make tables NOTEBOOKS="06 07" PRESET=lesson SET="seed=3 clips=films/*.mp4 boxes=boxes.csv" JOBS=2
NOTEBOOKS ?=
PRESET ?=
SET ?=
JOBS ?= 1
# The paper's experiment on its own data: make tables DATASET=ucf101-24 ROOT=ucf101 NETWORKS="runs/a runs/b" PRESET=full
DATASET ?=
ROOT ?=
# What `make train` trains, and what lessons 04 to 07 look into: make train NETWORKS=stage-action-r2plus1d
NETWORKS ?=
# What students handed in: a folder for each, with the notebooks in it
SUBMISSIONS ?=
# Arguments for pytest: make test ARGS="-k clips"
ARGS ?=

# The GNU allocator hands large blocks back to the system at every step and pages them in again at the next; with these
# it keeps them (narrow network, one clip forward and backward: 10,000 page faults become none). No effect elsewhere.
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296
# Where byte code is not kept, each of the many processes compiles steplab anew (a second each).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help lab tables train bench test soak coverage mutants book release grade
.DELETE_ON_ERROR:

help:
	@echo "make lab      open the lessons in JupyterLab (port $(PORT), or PORT=...)"
	@echo "make tables   run every notebook anew into runs/ and write runs/index.html (NOTEBOOKS=, PRESET=, SET=, JOBS=, DATASET= ROOT= NETWORKS=)"
	@echo "make book     write the lessons as they are stored, and a reference, as static pages into runs/book/"
	@echo "make release  make the students' copies of the assignments anew"
	@echo "make grade    grade a folder of submissions into runs/grades/ (SUBMISSIONS=folder); runs the students' code"
	@echo "make train    train the small networks anew (NETWORKS=name ...)"
	@echo "make bench    measure the engine's speed on this machine"
	@echo "make test     lint, types, tests, notebooks (ARGS=... for pytest)"
	@echo "make soak     long campaigns against bad videos, files and networks, coverage, mutants; writes docs/reliability.md"
	@echo "make coverage count the lines and branches that the tests run"
	@echo "make mutants  count the small faults that the tests of the method's own modules notice; writes docs/mutants.md"
	@echo "All of them build .venv when it is missing or out of date. Main job: $(BIN)/steplab explain VIDEO"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python found; set PYTHON=/path/to/python3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "steplab needs Python 3.11 or newer, $(PYTHON) is "+sys.version.split()[0]+"; set PYTHON=...")'
	@$(if $(UV),$(UV) venv --quiet --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV)) || { rm -rf $(VENV); exit 1; }

$(USE): pyproject.toml | $(BIN)/python
	@echo "Installing steplab and what it needs into $(VENV) with $(if $(UV),uv,pip) (minutes, gigabytes; once) ..."
	@$(PIP) --editable '.[real]'
	@touch $@

$(TEST): pyproject.toml | $(USE)
	@echo "Installing what the tests need into $(VENV) ..."
	@$(PIP) --editable '.[real,test,book,grading]'
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print("\n".join(p["project"]["optional-dependencies"]["oracle"]))' > $(VENV)/oracles.txt
	@$(PIP) --no-deps --requirement $(VENV)/oracles.txt || echo "Some test oracles are missing; the tests that need them will be skipped."
	@touch $@

$(PRESS): pyproject.toml | $(USE)
	@echo "Installing what the book needs into $(VENV) ..."
	@$(PIP) --editable '.[real,book]'
	@touch $@

$(GRADE): pyproject.toml | $(USE)
	@echo "Installing what grading needs into $(VENV) ..."
	@$(PIP) --editable '.[real,grading]'
	@touch $@

$(SOAK): pyproject.toml | $(TEST)
	@echo "Installing what the long campaigns need into $(VENV) ..."
	@$(PIP) --editable '.[soak]'
	@touch $@

lab: $(USE)
	@echo "Opening the lessons in JupyterLab on port $(PORT); Ctrl-C twice ends it."
	@$(BIN)/python -m steplab lab --port $(PORT) $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

tables: $(USE)
	@echo "Running notebooks into runs/ ..."
	@$(BIN)/python -m steplab tables $(NOTEBOOKS) --jobs $(JOBS) $(if $(DATASET),--dataset '$(DATASET)' --root '$(ROOT)') \
		$(if $(NETWORKS),--set 'networks=$(NETWORKS)') $(if $(PRESET),--set 'preset=$(PRESET)') $(foreach s,$(SET),--set '$(s)')

train: $(USE)
	@echo "Training $(or $(NETWORKS),all networks) into data/networks/ ..."
	@$(BIN)/python data/course.py $(NETWORKS)

book: $(PRESS)
	@rm -rf runs/book
	@$(BIN)/python book/build.py runs/book
	@echo "Open runs/book/index.html"

release: $(GRADE)
	@$(BIN)/python notebooks/assignments/grade.py release

grade: $(GRADE)
	@test -n "$(SUBMISSIONS)" || { echo "say what to grade: make grade SUBMISSIONS=folder"; exit 2; }
	@$(BIN)/python notebooks/assignments/grade.py grade '$(SUBMISSIONS)'

bench: $(TEST)
	@echo "Measuring speed ..."
	@$(BIN)/python benchmarks/report.py

test: $(TEST)
	@echo "Checking style and types, then running the tests ..."
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/pyright
	@$(BIN)/python -m pytest -n 2 --dist worksteal --junitxml=runs/tests.xml $(ARGS)

# An hour or two on two cores. What each promise rests on goes to runs/figures/, from where the report takes it.
FIGURES := runs/figures
soak: $(SOAK)
	@echo "Trying thousands of bad videos, files and networks ..."
	@rm -rf $(FIGURES) && mkdir -p $(FIGURES)
	@STEPLAB_SOAK=1 STEPLAB_FIGURES="$$PWD/$(FIGURES)/soak.jsonl" $(BIN)/python -m pytest -n 2 --dist worksteal \
		tests/test_bad_videos.py tests/test_files.py tests/test_faults.py tests/test_load.py tests/test_numerics.py \
		tests/test_study_survives.py
	@$(MAKE) --no-print-directory coverage mutants

# The browser and the lessons, which run in processes of their own, are left out.
coverage: $(SOAK)
	@echo "Counting the lines and branches that the tests run ..."
	@mkdir -p $(FIGURES)
	@COVERAGE_FILE="$$PWD/$(FIGURES)/.coverage" $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term-missing:skip-covered \
		--cov-report=json:$(FIGURES)/coverage.json $(foreach name,browser browser_widgets notebooks book,--ignore tests/test_$(name).py)
	@$(BIN)/python tests/reliability.py $(FIGURES)

mutants: $(SOAK)
	@echo "Putting small faults into the modules that all else rests on ..."
	@mkdir -p $(FIGURES)
	@STEPLAB_FIGURES="$$PWD/$(FIGURES)/mutants.jsonl" $(BIN)/python tests/mutants.py --jobs 2
	@$(BIN)/python tests/reliability.py $(FIGURES)
