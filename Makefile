# Every target makes what it needs: a virtual environment in .venv, from the package registry.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime-stamp
DEV := .venv/.dev-stamp

.PHONY: predict test test-slow quality style clean

predict: $(RUNTIME)
	$(BIN)/radiodiff predict examples/city.png --tx 128,120 --truth dominant_path -o prediction.png

# Two processes of one thread each: the tests' models are small, and threads only wait for each other there.
test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow

quality: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(RUNTIME): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(DEV): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(RUNTIME) $@

clean:
	rm -rf .venv build *.egg-info prediction.png
