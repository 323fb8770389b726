# Every target sets itself up: a virtual environment in .venv with the packages pinned in constraints.txt.
# The stamps make that happen once; it happens again only when pyproject.toml or constraints.txt change.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CMAKE := $(BIN)/cmake
NINJA = -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

SOURCES := CMakeLists.txt $(wildcard src/nmlearn/native/csrc/*)
KERNELS := src/nmlearn/native/_kernels.so

.PHONY: demo test test-all check format kernels sanitize clean

demo: .venv/.ready-demo $(KERNELS)
	$(BIN)/nmlearn compare --config recipes/demo.yaml

test: .venv/.ready-dev $(KERNELS)
	$(PYTEST) -m "not slow and not gpu"

test-all: .venv/.ready-dev $(KERNELS)
	$(PYTEST) -m "not gpu"

check: .venv/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house.py

kernels: $(KERNELS)

# The tests of the kernels, with the kernels under AddressSanitizer and UndefinedBehaviorSanitizer; then the kernels under
# ThreadSanitizer, called by tests/native/races.cpp with each instruction set that the processor has.
# (pytest keeps its hands off the file descriptors, for what a sanitizer says before it ends the process.)
sanitize: .venv/.ready-dev
	$(CMAKE) -S . -B build/sanitized -G Ninja $(NINJA) -DNMLEARN_SANITIZE=address,undefined
	$(CMAKE) --build build/sanitized
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 NMLEARN_KERNELS=$(CURDIR)/build/sanitized/_kernels.so \
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q --capture=sys -m "not gpu and not compiles and not slow" tests/native tests/packed
	$(CMAKE) -S . -B build/threads -G Ninja $(NINJA) -DNMLEARN_SANITIZE=thread
	$(CMAKE) --build build/threads
	for isa in avx512 avx2 portable; do NMLEARN_ISA=$$isa TSAN_OPTIONS=halt_on_error=1 \
	build/threads/races build/threads/_kernels.so || exit 1; done

format: .venv/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist $(KERNELS) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

.venv/.ready-demo: pyproject.toml constraints.txt
	@python='$(PYTHON)'; \
	test -n "$$python" || { echo "nmlearn needs Python 3.11 or newer; none was found. On Debian: apt install python3 python3-venv"; exit 1; }; \
	$$python -c 'import ensurepip, venv' 2>/dev/null || { echo "$$python cannot make a virtual environment. On Debian: apt install python3-venv"; exit 1; }; \
	echo "Setting up .venv with $$($$python --version) (once; a few minutes on a slow line)"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear .venv
	@$(INSTALL) scikit-build-core cmake ninja  # the build backend and what builds the kernels, pinned like the rest
	@$(INSTALL) --no-build-isolation -e '.[cli]'
	@touch $@

# Without the extra `vision`: the registry's torchvision is linked to CUDA and does not import beside a CPU build of torch.
.venv/.ready-dev: .venv/.ready-demo
	@$(INSTALL) --no-build-isolation -e '.[cli,detection,text,trainers,tensorboard,onnx,dev]'
	@touch $@

# Without a compiler nmlearn works all the same: the reference kernel carries on.
$(KERNELS): $(SOURCES) .venv/.ready-demo
	@if ! command -v $${CXX:-c++} >/dev/null; then \
	echo "No C++ compiler, so no CPU kernels (on Debian: apt install g++); packed layers run by the reference kernel"; else \
	$(CMAKE) -S . -B build/kernels -G Ninja $(NINJA) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/nmlearn/native \
	--log-level=ERROR >/dev/null && $(CMAKE) --build build/kernels -- --quiet && touch $@; fi
