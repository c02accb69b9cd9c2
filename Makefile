# Every target does all its own set-up. Nothing but python3.12 and make is assumed.
SHELL := /bin/bash
PYTHON ?= python3.12
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup vulkan browser demo test check bench assets soak results clean

# One virtual environment, made by uv; the stamp is newer than what it was made from.
setup: .venv/.stamp
.venv/.stamp: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "mmrl needs Python 3.12 (lerobot does): install it, or set PYTHON="; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e ".[dev]"
	@touch $@

# For simulated pictures: Mesa's software Vulkan driver, unpacked into .venv. Where it cannot be had one sentence says so, and
# what needs it is skipped.
vulkan: setup
	@$(BIN)/python -m vla.sim.lavapipe || true

# For rendering web pages: Debian's Chromium without a window. Where it cannot be had, as above.
browser: setup
	@$(BIN)/python -m rewards.render.browser || true

demo: setup vulkan
	$(BIN)/python -m benchmarks.demo

test: setup vulkan browser
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Side by side with TRL; needs the extra `bench`.
bench: setup
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e ".[dev,bench]"
	$(BIN)/python -m benchmarks.vision_vs_trl
	$(BIN)/python -m benchmarks.diffusion_vs_trl
	$(BIN)/python -m benchmarks.diffusion_vs_trl --shape wide

# Makes the shipped weights again: half an hour of CPU.
assets: setup vulkan
	$(BIN)/mmrl warmup vision/warmup_digits
	$(BIN)/mmrl warmup vision/warmup_charts
	$(BIN)/mmrl warmup vision/warmup_mixture
	$(BIN)/mmrl warmup vision/warmup_judge
	$(BIN)/mmrl warmup diffusion/warmup_clip_a
	$(BIN)/mmrl warmup diffusion/warmup_clip_b
	$(BIN)/mmrl warmup diffusion/warmup_unet
	$(BIN)/mmrl warmup diffusion/warmup_flow
	$(BIN)/mmrl warmup vla/warmup_pushcube
	$(BIN)/mmrl warmup vla/warmup_words
	$(BIN)/mmrl warmup vla/warmup_pictures
	$(BIN)/mmrl warmup vla/warmup_pickcube

# Ten thousand renders, a tenth of them hostile: about an hour on two cores.
soak: setup browser
	$(BIN)/python -m benchmarks.render soak --renders 10000

# The figures of the README: hours of CPU, written to benchmarks/results/.
results: setup vulkan
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.transfer
	$(BIN)/python -m benchmarks.diffusion
	$(BIN)/python -m benchmarks.vla
	$(BIN)/python -m benchmarks.vla_words
	$(BIN)/python -m benchmarks.vla_pictures
	$(BIN)/python -m benchmarks.vla_pickcube
	$(BIN)/python -m benchmarks.thesis
	$(BIN)/python -m benchmarks.render
	$(BIN)/python -m benchmarks.rrvf
	$(BIN)/python -m benchmarks.syn_grpo
	$(BIN)/python -m benchmarks.mixture
	$(BIN)/python -m benchmarks.parts
	$(BIN)/python -m benchmarks.parts cost
	$(BIN)/python -m benchmarks.rewards
	$(BIN)/python -m benchmarks.judge_rl
	$(BIN)/python -m benchmarks.principles
	$(BIN)/python -m benchmarks.pairwise_rl
	$(BIN)/python -m benchmarks.scale equal
	$(BIN)/python -m benchmarks.sizing
	for what in bandit equal digits overlap; do $(BIN)/python -m benchmarks.ahead $$what || exit 1; done
	$(BIN)/python -m benchmarks.simulation_ring
	for domain in vision diffusion vla; do $(BIN)/python -m benchmarks.reliability kills --domain $$domain || exit 1; done
	for domain in vision diffusion vla; do $(BIN)/python -m benchmarks.reliability soak --domain $$domain || exit 1; done
	$(BIN)/python -m benchmarks.readme

clean:
	rm -rf .venv runs build dist *.egg-info
