# Two commands: `make demo` runs the main job on the shipped models, `make test` runs the tests.
# Each makes its own environment first; PYTHON may name another interpreter (3.11 or newer).

PYTHON ?= python3
# Published bindings whose names the TensorRT code is checked against; they are read, not installed.
TENSORRT = 10.16.1.11 11.4.0.106

.PHONY: demo test lint types wheel clean

demo: .venv/ready
	.venv/bin/emfast generate --count 4 --out demo/synthetic
	.venv/bin/emfast segment emfast/data/sample/image.png --out demo/segmented --overlay
	.venv/bin/emfast evaluate demo/segmented/masks/image.png emfast/data/sample/mask.png
	@echo
	@echo "Labelled synthetic images:  demo/synthetic/contact.png (images/ and masks/ beside it)"
	@echo "Segmented real slice:       demo/segmented/overlays/image.png (masks/ beside it)"

test: .venv-test/ready
	.venv-test/bin/pytest

lint: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .

types: .venv-test/ready
	.venv-test/bin/mypy

wheel: .venv-test/ready
	rm -rf dist
	.venv-test/bin/python -m build --wheel
	.venv-test/bin/python tests/check_wheel.py dist

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

.venv-test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	for version in $(TENSORRT); do .venv-test/bin/pip download --quiet --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 --python-version 312 --dest .venv-test/wheels tensorrt_cu13_bindings==$$version || exit 1; done
	touch $@

clean:
	rm -rf .venv .venv-test demo dist
