# make demo   the whole path on MovingShapes, some minutes on two cores
# make test   the test suite (at most 12 minutes on two cores), files in two processes of one thread each
# make trials the long figures
# make lint   style
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test trials lint clean

demo: .venv/installed
	$(BIN)/python tools/demo.py

test: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not trial" -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

trials: .venv/tested
	$(BIN)/python -m pytest -m trial --timeout 0 $(PYTEST_ARGS)

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python setup.py
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/tested: .venv/bin/python setup.py
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ .venv/installed
