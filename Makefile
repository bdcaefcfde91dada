# Everything a person does with this book. `make` alone lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The environment is made anew when the lock or the package's own metadata changes.
LOCK   := $(shell cat requirements.txt pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)
STAMP  := $(VENV)/.installed-$(LOCK)
HTML   := _build/html/index.html
export PYTHONHASHSEED := 0
# Tests run in so many processes of one thread each: make test JOBS=8
JOBS   ?= 2
WORKERS := -n $(JOBS) --dist

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}. Try: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@rm -f $(VENV)/.installed-* && touch $@

.PHONY: env
env: $(STAMP)  ## make .venv with the pinned requirements

.PHONY: book
book: $(STAMP)  ## build the HTML book from the stored outputs
	$(BIN)/python tools/build.py

.PHONY: serve
serve: book  ## serve the built book on localhost
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

.PHONY: pdf
pdf: book  ## print the built book into _build/attention.pdf
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[pdf]"
	$(BIN)/python tools/pdf.py

.PHONY: archive
archive: book  ## pack the pages, and the notebooks, for readers without a network
	$(BIN)/python tools/archive.py

.PHONY: data
data: $(STAMP)  ## fetch the book's data into the cache (done once)
	$(BIN)/python -m attention_lib.data fetch

.PHONY: lint
lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: unit
unit: data  ## the library's tests and the checks of the notebooks' text
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m "not pages" $(WORKERS) load --maxschedchunk 1

.PHONY: notebooks
notebooks: data  ## run every notebook and compare its outputs
	OMP_NUM_THREADS=1 $(BIN)/pytest --nbval chapters/ $(WORKERS) loadfile

.PHONY: pages
pages: book  ## open every built page, and what runs in a page, in headless Chromium
	$(BIN)/pytest tests/test_pages.py tests/test_explorer.py tests/test_live.py -m pages -rs $(WORKERS) load

.PHONY: test
test: lint unit notebooks pages  ## everything that CI runs

RUNS ?= 10
.PHONY: soak
soak:  ## run all tests ten times in a row, stop at the first failure; the log is _build/soak.log
	@mkdir -p _build
	@for run in $$(seq $(RUNS)); do \
		echo "run $$run of $(RUNS), $$(date -u +%FT%TZ), $$(git rev-parse --short HEAD)" | tee -a _build/soak.log; \
		$(MAKE) test >> _build/soak.log 2>&1 || { echo "run $$run failed, see _build/soak.log"; exit 1; }; \
	done

.PHONY: execute
execute: data  ## run notebooks and store their outputs: make execute NB=chapters/01_correlation.ipynb
	$(BIN)/python tools/notebooks.py execute $(NB)

.PHONY: normalise
normalise: $(STAMP)  ## bring all notebooks into normal form
	$(BIN)/python tools/notebooks.py normalise

.PHONY: faults
faults: book data  ## plant faults one by one and show that a test turns red for each
	$(BIN)/python tools/faults.py

.PHONY: standalone
standalone: $(STAMP)  ## run each notebook alone, in an empty folder with a fresh environment
	$(BIN)/python tools/standalone.py $(NB)

.PHONY: stopped
stopped: data  ## stop each notebook in the middle and run it again in the same kernel
	$(BIN)/python tools/stopped.py $(NB)

.PHONY: links
links: $(STAMP)  ## follow every link that leads out of the book (needs a network)
	PYTHONPATH=. $(BIN)/jupyter-book build . --builder linkcheck --path-output _build/links

.PHONY: audit
audit: $(STAMP)  ## compare the pinned versions with the public list of vulnerabilities (needs a network)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	mkdir -p _build && grep -v "^-e" requirements.txt > _build/pinned.txt
	$(BIN)/pip-audit --requirement _build/pinned.txt --no-deps --disable-pip

.PHONY: mutation
mutation: $(STAMP)  ## mutation score of the numeric core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/python tools/mutation.py

.PHONY: parity
parity: $(STAMP)  ## compare every component with its reference, write chapters/parity.md
	$(BIN)/python tools/parity.py

.PHONY: characters
characters: data  ## train the character models that the log lacks, print the table: make characters TEXT=file
	$(BIN)/python tools/train_characters.py $(if $(TEXT),--benchmark $(TEXT))

.PHONY: results
results: data  ## what the trained models reach beside the targets, write chapters/results.md
	$(BIN)/python tools/results.py

.PHONY: benchmarks
benchmarks: data  ## the library beside its peers in two undisturbed runs, about an hour each; writes chapters/benchmarks.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[benchmarks]"
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/run.py --page

.PHONY: triton
triton: $(STAMP)  ## test the GPU kernels on the CPU, in Triton's interpreter (Linux)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[gpu]"
	$(BIN)/pytest tests/test_triton.py -rs

.PHONY: status
status: book data  ## run each notebook by itself, write its CPU time and memory to chapters/status.md
	$(BIN)/python tools/status.py $(NB)

.PHONY: lock
lock:  ## renew requirements.txt from the ranges in pyproject.toml
	$(PYTHON) tools/lock.py $(if $(TORCH),--torch $(TORCH))

.PHONY: retarget
retarget: $(STAMP)  ## set the public address everywhere: make retarget REPO=owner/name
	$(BIN)/python tools/retarget.py $(REPO)

.PHONY: clean
clean:  ## remove what was built, not the environment
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants
