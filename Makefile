# `make demo` serves the default project, `make test` runs all tests, and `make pictures`
# makes the pictures of README.md, and `make release` archives a version, so that updates from it
# can be tested.
# The first run creates the tools (.venv) from a bare python3.

PYTHON ?= python3
PORT ?= 5000
export PORT
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# The demo has its own database, whatever the caller's shell is set up for.
unexport APP_ENV DATABASE_URL DATABASE_URL_MIGRATIONS SCHEMA SECRET_KEY VIRTUAL_ENV

.PHONY: demo test bench pictures release
.DEFAULT_GOAL := test

demo: .venv/ready
	@python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT))).close()' 2>/dev/null || \
	    { echo "Port $(PORT) is in use; choose another: make demo PORT=5001" >&2; exit 1; }
	@rm -rf .demo/$(PORT)
	@cookiecutter . --default-config --no-input --output-dir .demo/$(PORT)
	@exec .demo/$(PORT)/book-service/init.sh

test: .venv/ready
	@python -m pytest

bench: .venv/ready
	@python tests/bench/generate.py
	@python tests/bench/start.py
	@python tests/bench/requests.py
	@python tests/bench/stalls.py
	@python tests/bench/scale.py
	@python tests/bench/history.py
	@python tests/bench/seeds.py

pictures: .venv/ready
	@python tests/pictures.py

release: .venv/ready
	@git diff --quiet HEAD || { echo "Commit first: only what is committed goes into the archive." >&2; exit 1; }
	@git archive --output "tests/releases/$$(python -c 'import json; print(json.load(open("cookiecutter.json"))["_version"])').tar.gz" \
	    HEAD cookiecutter.json hooks '{{cookiecutter.project_slug}}'

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python" if sys.version_info < (3, 11) else 0)'
	@echo "creating .venv with the template's tools; this happens only once"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["tools"], sep="\n")' > .venv/tools.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement .venv/tools.txt
	@touch .venv/ready
