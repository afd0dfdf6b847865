# One word for each thing people, hooks and CI do. The work is in scripts/.
.PHONY: help setup demo check fix test test-long bench figures clean

help:
	@printf '%s\n' \
	  'make demo       all of it, for real, on this machine: no Docker, no GPU, no SSH needed' \
	  'make check      format, lint, types, layers' \
	  'make fix        format, and mend what the linter can' \
	  'make test       check, unit tests, rig tests (the rig needs root on Debian or Ubuntu)' \
	  'make test-long  the same, with every kill point and every fault case' \
	  'make bench      measure, into .bench/' \
	  'make figures    the measured figures as a table' \
	  'make clean      remove what the above left in this folder'

setup:
	@sh scripts/setup.sh

demo:
	@sh scripts/setup.sh --without-rig
	@sh scripts/engine.sh || [ $$? -eq 3 ]  # 3: not for this machine; the demo says what it lacks
	.venv/bin/vllmdeploy demo $(DEMO)

check: setup
	@sh scripts/check.sh

fix: setup
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

test: setup
	@sh scripts/test.sh

test-long: setup
	@sh scripts/test.sh --long

bench: setup
	@sh scripts/bench.sh

figures: setup
	.venv/bin/python scripts/figures.py

clean:
	rm -rf .venv .venv-3.10 .venv-engine .cache .bench .rig dist build .mypy_cache .ruff_cache .pytest_cache \
	  .import_linter_cache .hypothesis
