# make        a picture from the committed weights, then training, then a picture from the new model
# make test   style and tests

PYTHON ?= python3
RUN = .venv/bin/python

run: .venv/ready
	$(RUN) sample.py
	@echo "The picture out/grid.png is there. Now training the same model from nothing, about 3 minutes:"
	$(RUN) train.py
	$(RUN) sample.py --checkpoint runs/digits/last.pt --out out/new
	@echo "Pictures: out/grid.png (committed weights), out/new/grid.png (yours), runs/digits/samples/ (on the way)"

test: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m pytest

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

.PHONY: run test
