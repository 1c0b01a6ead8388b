# make demo     the whole path on MovingShapes, some minutes on two cores
# make test     the test suite (at most 10 minutes on two cores), in two processes of one thread each;
#               then tests/test_cuda.py, where there is a GPU
# make trials   the long figures
# make lint     style and types
# make docs     the pages that are made from the code
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test trials lint docs clean

demo: .venv/installed
	$(BIN)/python tools/demo.py

test: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not trial and not gpu" -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "gpu and not trial" tests/test_cuda.py $(PYTEST_ARGS)

trials: .venv/tested
	$(BIN)/python -m pip install --quiet --editable ".[trials]"
	$(BIN)/python -m pytest -m "trial and not gpu" --timeout 0 $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "gpu and trial" --timeout 0 tests/test_cuda.py

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m hiera_video.config.reference > docs/configuration.md

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/tested: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ .venv/installed
