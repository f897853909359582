# make bench   set up, then run the benchmark (ARGS="..." replaces the arguments)
# make test    set up, then run the tests      (ARGS="..." goes to pytest)
# make setup   the set-up alone: .venv from requirements.lock
# make peers   compare our speed with other libraries, in a separate environment (peers/README.md)
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.done
ARGS ?=
DEFAULT_ARGS := --methods all --labels 1,10,100

.PHONY: bench test setup lint tune peers lock clean clean-cache

bench: $(STAMP)
	$(RUN) bench.run $(if $(ARGS),$(ARGS),$(DEFAULT_ARGS))

test: $(STAMP)
	$(RUN) pytest -n auto --dist worksteal $(ARGS)

setup: $(STAMP)

# TORCH=cpu installs torch without CUDA from PyTorch's own index, if that can be reached
ifeq ($(TORCH),cpu)
CUDA := ^(nvidia-|cuda-|triton|xformers)
INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
DISK := 2 GB
else
CUDA := ^$$
DISK := 7 GB
endif

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11, which is needed: use e.g. make PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV): about $(DISK) of disk, and 2 to 10 minutes."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@grep -vE '$(CUDA)' requirements.lock > $(VENV)/requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check $(INDEX) -r $(VENV)/requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# try a few learning rates for every method, on validation data; writes bench/presets/<preset>.tuning.json
tune: $(STAMP)
	$(RUN) bench.tune $(ARGS)

# the peers' environment sees the packages of .venv and does not change them
PEERS := peers/.venv
peers: $(PEERS)/.done
	$(PEERS)/bin/python -m peers.run_all $(ARGS)

$(PEERS)/.done: peers/requirements.txt $(STAMP)
	@test -x $(PEERS)/bin/python || $(VENV)/bin/python -m venv $(PEERS)
	$(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])' > \
		"$$($(PEERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# write the exact versions of all dependencies in pyproject.toml, resolved in an empty environment
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check '.[dev]'
	{ echo "# Made by 'make lock' from pyproject.toml; do not edit."; \
	  build/lock/bin/pip freeze --exclude sparse-attention-bench; } > requirements.lock
	rm -rf build/lock

clean:
	rm -rf $(VENV) $(PEERS) build *.egg-info

clean-cache:
	@rm -rf "$${BENCH_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/sparse-attention-bench}" && echo "The cache was removed."
