# All targets work in a fresh clone:
#
#   make demo       run posd with a PostgreSQL of its own; ARGS=--once for one order and its times
#   make test       run all tests; TESTS=tests.web.test_websocket for some, JOBS=1 for one process
#   make bench      compare posd with other software, 5 minutes; BENCH="fanout publish" for some rows
#   make bench-full all rows, more rounds, and growth of tenants and of the log: an hour, 15 GB of disk
#   make failover   test a Patroni cluster under load and end its leader every minute; MINUTES=10
#   make system     run the tests of the installed service, which boot systemd: needs root
#   make check      check format, lint, types, imports between packages, and MANIFEST.in
#   make coverage   run all tests and show the lines and branches that they do not reach; TESTS=… for some
#   make mutants    check that tests notice changes of the code: an hour; SAMPLE=20 PACKAGES=store for less
#   make matrix     run all tests with Python 3.11 to 3.13 and PostgreSQL 14 to 18, if installed; TESTS=…
#   make vulnerabilities   ask PyPI for known vulnerabilities of the dependencies
#   make dist       build a source distribution and a wheel in dist/
#   make deb        build a package for Debian 12 in dist/; needs Debian 12 and `apt-get build-dep ./`
#   make lock       pin the newest releases of the bundled dependencies of the Debian package
#   make clean      remove all that the targets have made
#
# PYTHON=… selects the interpreter (3.11 or newer), VENV=… the folder of the virtual environment.

VENV ?= .venv
TESTS ?= tests
SYSTEM ?= $(patsubst tests/system/%.py,tests.system.%,$(wildcard tests/system/*_system.py))
# More than the processors of a small machine, because tests wait for half of their time.
JOBS ?= 4
ARGS ?=
BENCH ?=
MINUTES ?= 10
SEED ?= 1
SAMPLE ?= 400
PACKAGES ?= publishing delivery events protocol store security

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
METADATA := setup.py setup.cfg pyproject.toml
SOURCES := posd tests twisted setup.py
WHEELHOUSE := build/wheelhouse
LOCK := $(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras

# The first interpreter that is recent enough. It is run, because it may be only a shim of a version manager.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

.PHONY: demo test bench bench-full failover system check coverage mutants matrix vulnerabilities dist deb \
	lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/.embedded
	@$(BIN)/posctl demo $(ARGS)

# Prints the recovery times that the tests measure. With several processes, they are in the logs of trial.
test: $(VENV)/.test
	@$(BIN)/python -m tests $(if $(filter-out 1,$(JOBS)),-j$(JOBS)) $(TESTS); status=$$?; \
	grep -hs '^recovery: ' _trial_temp/*/out.log | sort; exit $$status

# Rows print `not run:` if there is no C compiler, no headers of OpenSSL, no node or no npm.
bench: $(VENV)/.test
	@mkdir -p build/bench
	@$(BIN)/python -m bench $(BENCH) --json build/bench/bench.json

bench-full: $(VENV)/.test
	@mkdir -p build/bench
	@$(BIN)/python -m bench --full --json build/bench/bench-full.json
	@$(BIN)/python bench/growth_daemon.py --json build/bench/growth-daemon.json
	@$(BIN)/python bench/growth.py --json build/bench/growth.json

# Prints `not run:` if etcd or Patroni cannot be installed.
failover: $(VENV)/.test
	@$(BIN)/python -m tests.failover $(MINUTES)

system: $(VENV)/.test
	@$(BIN)/python -m twisted.trial $(SYSTEM)

check: $(VENV)/.dev
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m bandit --quiet --configfile pyproject.toml --recursive posd twisted setup.py
	@$(BIN)/python -m twisted.trial tests.test_layering
	@if test -e .git; then $(BIN)/check-manifest --no-build-isolation; fi

# Includes the processes that tests start, except killed ones.
coverage: $(VENV)/.dev
	@mkdir -p build && rm -f .coverage .coverage.*
	@$(BIN)/python -m coverage run -m twisted.trial $(if $(filter-out 1,$(JOBS)),-j$(JOBS)) $(TESTS); status=$$?; \
	$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage report; \
	for package in posd/*/; do \
		$(BIN)/python -m coverage report --format=total --precision=1 --include="$$package*" >build/total 2>/dev/null \
		&& echo "$$(cat build/total) % of $$package"; \
	done; exit $$status

# The exit status is 1 if the tests notice less than 95 % of the mutants that are not equivalent.
mutants: $(VENV)/.dev
	@$(BIN)/python -m tests.mutants --seed $(SEED) --sample $(SAMPLE) --packages "$(PACKAGES)"

matrix: $(VENV)/.test
	@$(BIN)/python -m tests.matrix $(TESTS)

vulnerabilities: $(VENV)/.dev
	@$(BIN)/python .ci/vulnerabilities

dist: $(VENV)/.dev
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	@sha256sum dist/*

# Built from the source distribution only, in a folder of its own.
deb: dist $(WHEELHOUSE)/.made
	@rm -rf build/deb && mkdir -p build/deb
	@tar -xf dist/*.tar.gz -C build/deb
	@cd build/deb/*/ && WHEELHOUSE=$(abspath $(WHEELHOUSE)) dpkg-buildpackage --unsigned-source \
		--unsigned-changes --build=binary
	@mv build/deb/*.deb dist/
	@sha256sum dist/*.deb

# Downloads the bundled dependencies and the build dependencies of the wheels, with their hashes. txpostgres
# has no wheel, and its metadata needs setuptools, which the environment has.
$(WHEELHOUSE)/.made: requirements.lock debian/build.lock | $(VENV)/.dev
	@rm -rf $(WHEELHOUSE) && mkdir -p $(WHEELHOUSE)
	@for lock in $^; do $(PIP) download --require-hashes --no-deps --no-build-isolation --no-cache-dir \
		--python-version 3.11 --dest $(WHEELHOUSE) --requirement $$lock || exit; done
	@touch $@

# The pins are for the version of Python in Debian 12.
lock: export CUSTOM_COMPILE_COMMAND := make lock
lock: $(VENV)/.dev
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	|| { echo "the pins are for Python 3.11: make lock VENV=… PYTHON=python3.11" >&2; exit 1; }
	@$(LOCK) --output-file requirements.lock setup.py
	@$(LOCK) --output-file debian/build.lock debian/build.in

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .mypy_cache .ruff_cache .hypothesis .coverage*
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
	find $(SOURCES) -name dropin.cache -delete

$(VENV)/.embedded: EXTRAS := embedded
$(VENV)/.test: EXTRAS := embedded,test
$(VENV)/.dev: EXTRAS := embedded,test,dev

$(VENV)/.embedded $(VENV)/.test $(VENV)/.dev: $(VENV)/.made $(METADATA)
	@echo "Installing posd[$(EXTRAS)] in $(VENV)"
	@$(PIP) install --editable '.[$(EXTRAS)]'
	@touch $@

# Debian's python3 has no ensurepip without python3-venv. Then the pip of the interpreter installs pip into the
# environment.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "posd needs Python 3.11 or newer: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) 2>/dev/null \
	|| { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	     && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
	|| { echo "$(PYTHON) has neither ensurepip nor pip: install python3-venv" >&2; exit 1; }
	@touch $@
