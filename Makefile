# make            a picture from the committed weights, then training, then a picture from the new model
# make test       style, and the tests that are not marked slow: under five minutes on two cores
# make test-all   these, then the slow ones: browser, trainings, hostile files, kills, compiling for other machines
# make docs       the pages: docs/site/index.html

PYTHON ?= python3
RUN = .venv/bin/python
PYTEST = $(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

run: .venv/requirements.txt
	$(RUN) sample.py
	@echo "The picture out/grid.png is there. Now training the same model from nothing, a few minutes:"
	$(RUN) train.py
	$(RUN) sample.py --checkpoint runs/digits/last.safetensors --out out/new
	@echo "Pictures: out/grid.png (committed weights), out/new/grid.png (yours), runs/digits/samples/ (on the way)"

test: .venv/requirements-test.txt
	$(RUN) -m ruff check .
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

docs: .venv/requirements-docs.txt
	$(RUN) -m docs.pages

.venv/%.txt: %.txt requirements.txt requirements-docs.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement $<
	cp $< $@

.PHONY: run test test-all docs
