# make demo: set everything up, then the main job at a small size.
# make test: set everything up, then style, types and tests.   make lint: style and types alone.
# make setup alone prepares .venv for `python train.py` and `pytest benchmarks/`.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
# Debian packages: what ffcv is built against, and the real Fashion-MNIST
SYSTEM := g++ pkg-config libopencv-dev libturbojpeg0-dev dataset-fashion-mnist
# what ffcv 1.0.2 imports, but opencv-python, which needs libGL: the headless build serves
FFCV_NEEDS := numba opencv-python-headless psutil terminaltables pytorch_pfn_extras fastargs assertpy

.PHONY: demo test bench lint setup clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^# make/make/p' Makefile

demo: setup
	$(VENV)/bin/apart-fast demo

test: lint
	$(VENV)/bin/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

bench: setup
	$(VENV)/bin/python -m pytest benchmarks

lint: setup
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/python tests/check_types.py

setup: $(VENV)/system $(VENV)/packages $(VENV)/ffcv

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && \
		apt-get install -qy --no-install-recommends python3-venv; } || \
		{ echo "error: Python has no venv: ask for the Debian packages python3-venv and python3-dev"; exit 2; }
	@$(PYTHON) -c 'import os, sysconfig; assert os.path.exists(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy --no-install-recommends python3-dev; } || \
		echo "note: Python.h is missing, ffcv and Triton need it: ask for the Debian package python3-dev"
	$(PYTHON) -m venv $(VENV)

# as root the system packages are installed; otherwise it is said which to ask for, and the set-up goes on without
$(VENV)/system: | $(VENV)/bin/python
	@missing=""; for p in $(SYSTEM); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q; \
		for p in $$missing; do DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$p || \
			echo "note: the Debian package $$p could not be installed; going on without it"; done; \
	else echo "note: not root, so these Debian packages are missing; ask for them:$$missing"; fi
	@touch $@

$(VENV)/packages: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -q -e '.[dev]'
	@touch $@

# ffcv is built from source; where that cannot be, the resident loader serves
$(VENV)/ffcv: $(VENV)/packages $(VENV)/system
	@if $(VENV)/bin/python -c 'import ffcv' 2>/dev/null; then :; \
	elif pkg-config --exists opencv4 libturbojpeg 2>/dev/null && command -v g++ >/dev/null; then \
		$(PIP) install -q $(FFCV_NEEDS) && $(PIP) install -q --no-deps ffcv && $(VENV)/bin/python -c 'import ffcv' || \
			echo "note: ffcv could not be built; going on without it (the resident loader serves)"; \
	else echo "note: ffcv needs the Debian packages g++ pkg-config libopencv-dev libturbojpeg0-dev (then make setup);" \
		"going on without it (the resident loader serves)"; fi
	@if $(VENV)/bin/python -c 'import ffcv' 2>/dev/null; then touch $@; fi

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache
