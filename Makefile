# Every target sets itself up: a virtual environment in .venv with the packages pinned in constraints.txt.
# The stamps make that happen once; it happens again only when pyproject.toml or constraints.txt change.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test test-all check format clean

demo: .venv/.ready-demo
	$(BIN)/nmlearn compare --config recipes/demo.yaml

test: .venv/.ready-dev
	$(PYTEST) -m "not slow and not gpu"

test-all: .venv/.ready-dev
	$(PYTEST) -m "not gpu"

check: .venv/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house.py

format: .venv/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

.venv/.ready-demo: pyproject.toml constraints.txt
	@python='$(PYTHON)'; \
	test -n "$$python" || { echo "nmlearn needs Python 3.11 or newer; none was found. On Debian: apt install python3 python3-venv"; exit 1; }; \
	$$python -c 'import ensurepip, venv' 2>/dev/null || { echo "$$python cannot make a virtual environment. On Debian: apt install python3-venv"; exit 1; }; \
	echo "Setting up .venv with $$($$python --version) (once; a few minutes on a slow line)"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear .venv
	@$(INSTALL) hatchling editables  # the build backend, pinned like the rest
	@$(INSTALL) --no-build-isolation -e '.[cli]'
	@touch $@

# Without the extra `vision`: the registry's torchvision is linked to CUDA and does not import beside a CPU build of torch.
.venv/.ready-dev: .venv/.ready-demo
	@$(INSTALL) --no-build-isolation -e '.[cli,text,tensorboard,onnx,dev]'
	@touch $@
