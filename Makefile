# Every target has a line of help; CI runs what a developer runs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes that run tests side by side: one more than two cores, since a good part of the tests waits. Each file of tests
# stays in one.
JOBS ?= 3
AT_ONCE = -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Without cached bytecode, importing ChatVertexAI takes three times as long, each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

# ---- environment -------------------------------------------------------------------------------------------------

# uv comes from its own hashed pin; it then installs the locked set in seconds and removes whatever isn't in it.
$(BIN)/uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"tokenwire needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Set PYTHON=python3.11, for example.")'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

define install
	@echo "Installing the locked packages of $(1)"
	@$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode $(1)
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --offline -e .
endef

# Either stamp will do to run; the developer's set contains the other.
$(VENV)/.run: $(BIN)/uv requirements/run.txt pyproject.toml
	$(call install,requirements/run.txt)
	@touch $@

$(VENV)/.dev: $(BIN)/uv requirements/dev.txt pyproject.toml
	$(call install,requirements/dev.txt)
	@touch $@ $(VENV)/.run

.PHONY: setup
setup: $(VENV)/.dev ## Create .venv with everything a developer needs

.PHONY: lock
lock: $(BIN)/uv ## Resolve the lock files anew (requirements/*.txt)
	@for name in run dev; do \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --all-extras \
	    $$([ $$name = dev ] && echo --group dev -c requirements/run.txt) --custom-compile-command "make lock" \
	    pyproject.toml requirements/build.in -o requirements/$$name.txt; done
	@$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --custom-compile-command "make lock" \
	  requirements/uv.in -o requirements/uv.txt

# ---- the contract ------------------------------------------------------------------------------------------------

.PHONY: protos
protos: $(VENV)/.dev ## Generate the stubs again after a change to a .proto
	@$(BIN)/python -m tests.stubs

.PHONY: released
released: $(VENV)/.dev ## Promise the contract as it stands now (at a release); `make check` then guards it
	@$(BIN)/buf build --path protos/tokenwire --exclude-source-info -o protos/released.binpb

.PHONY: check
check: $(VENV)/.dev ## Format, lint, types, contract, Envoy, stub currency, import rules, known vulnerabilities
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code --path protos/tokenwire
	@mkdir -p build
	@$(BIN)/buf build --path protos/tokenwire -o build/contract.binpb
	@$(BIN)/buf breaking build/contract.binpb --against protos/released.binpb --exclude-imports
	@$(BIN)/hadolint deploy/image/Containerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose/compose.yaml
	@cd deploy/envoy && $(abspath $(BIN))/envoy -c envoy.yaml --mode validate --disable-hot-restart --log-level warning
	@$(BIN)/python -m pytest --quiet tests/test_stubs.py tests/test_layers.py
	@$(BIN)/python -m tests.audit requirements/run.txt

# ---- tests -------------------------------------------------------------------------------------------------------

# The page's tests drive a real Chromium, the README's Node example a real Node, those of retries C++ as well, those of
# replicas a real Redis, and those of alerts Prometheus' own promtool and amtool: the system's, else Debian's (a name
# that ends with - is one not to be installed along with it).
.PHONY: tools
tools:
	@missing=""; \
	[ -n "$$CHROMIUM" ] || command -v chromium >/dev/null || missing="chromium"; \
	command -v npm >/dev/null || missing="$$missing nodejs npm"; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v promtool >/dev/null || missing="$$missing prometheus prometheus-node-exporter-"; \
	command -v amtool >/dev/null || missing="$$missing prometheus-alertmanager"; \
	pkg-config --exists grpc++ 2>/dev/null || missing="$$missing g++ pkg-config libgrpc++-dev"; \
	[ -z "$$missing" ] || { echo "Installing $$missing with apt-get (the tests need it)"; \
	  SUDO=$$([ $$(id -u) = 0 ] || echo sudo); \
	  $$SUDO apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -y -qq $$missing >/dev/null || \
	  { echo "Install $$missing, or set CHROMIUM to a Chrome or Chromium binary"; exit 1; }; }

.PHONY: test
test: $(VENV)/.dev tools ## Run the tests for every change, in less than eight minutes on two cores
	@$(BIN)/python -m pytest $(AT_ONCE) -m "not soak and not thorough and not image" $(ARGS)

.PHONY: thorough
thorough: $(VENV)/.dev tools ## Run all that make test leaves out, in fourteen minutes more; screenshots of the page land in build/screenshots
	@$(BIN)/python -m pytest $(AT_ONCE) -m "thorough and not soak" $(ARGS)

.PHONY: quick
quick: $(VENV)/.dev ## Run the tests that need no process, browser or model, with fewer examples, in about a minute
	@$(BIN)/python -m pytest $(AT_ONCE) --hypothesis-profile=quick -m "not soak and not process and not browser and not smollm2 and not thorough" $(ARGS)

# As root: buildah changes its root.
.PHONY: image
image: $(VENV)/.dev ## Build the images, and prove what docs/operations.md promises of them (root; ARGS=-s tells their sizes)
	@missing=""; \
	for program in buildah mmdebstrap; do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	[ -z "$$missing" ] || { echo "Installing$$missing with apt-get"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }
	@$(BIN)/python -m pytest -m image tests/test_image.py $(ARGS)

.PHONY: soak
soak: $(VENV)/.dev ## Measure every fault against its bound, walk the page at random, for an hour; refreshes docs/faults.md and hostile.md
	@$(BIN)/python -m tests.faults.recorder
	@rm -f build/hostile.json
	@TOKENWIRE_STRICT=1 $(BIN)/python -m pytest tests/faults $(ARGS)
	@TOKENWIRE_STRICT=1 $(BIN)/python -m pytest tests/hostile $(ARGS)
	@TOKENWIRE_STRICT=1 $(BIN)/python -m pytest tests/test_recipes.py -k leaves_fastapi $(ARGS)
	@$(BIN)/python -m pytest -m soak tests/simulation tests/gateway_ui tests/bench $(ARGS)
	@$(BIN)/python -m tests.faults.report
	@$(BIN)/python -m tests.hostile.report

.PHONY: bench
bench: $(VENV)/.dev ## Measure tokenwire beside its peers, a quarter of an hour; ARGS=--quick for a look
	@$(BIN)/python -m bench $(ARGS)

# ---- run ---------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.run ## Local model, service, answer, chat page; ARGS=--once ends after the answer
	@trap : INT; $(BIN)/tokenwire demo $(ARGS) || [ $$? -eq 130 ]  # Ctrl-C is how it ends, and no error

.PHONY: edge
edge: $(VENV)/.run ## The same behind Envoy, for curl and browsers (docs/http.md)
	@trap : INT; $(BIN)/tokenwire demo --edge $(ARGS) || [ $$? -eq 130 ]

.PHONY: picture
picture: $(VENV)/.dev tools ## Take the README's picture anew (docs/page.gif)
	@$(BIN)/python -m tests.picture

.PHONY: clean
clean: ## Remove what was made: .venv, build, caches
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
