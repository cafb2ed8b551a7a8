# make demo, make test: nothing before them on a fresh clone but Python 3.10 or newer.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
LOWEST := $(VENV)-lowest

.PHONY: demo test coverage test-lowest soundness bench lint types docs extras release-check clean

demo: $(VENV)/installed  ## train and compare on real data; a table, and a page under results/demo
	$(VENV)/bin/lightning-crmt compare examples/comparisons/demo.yaml

test: $(VENV)/installed  ## tests, doctests, examples; two processes take them from each other
	$(RUN) -m pytest --numprocesses 2 --dist worksteal

coverage: $(VENV)/installed  ## the tests, and how much of the package they run, which setup.cfg says how much must be
	$(RUN) -m pytest --numprocesses 2 --dist worksteal --cov

# What others warn of in old packages is no error here.
test-lowest: $(LOWEST)/installed  ## tests of Trainer, command line and metrics with the lowest versions of setup.cfg
	$(LOWEST)/bin/python -m pytest --numprocesses 2 --dist worksteal -m "not slow" \
		-W default::DeprecationWarning -W default::FutureWarning \
		$(patsubst %,tests/test_%.py,module cli cli_mistakes examples compare methods_yaml metric_conventions observers resume \
			other_modules integration_reweighting log_report)

soundness: $(VENV)/installed  ## every kind of certificate against the true distance; half an hour, SEEDS="0 1 2"
	$(RUN) benchmarks/soundness.py --seeds $(or $(SEEDS),0)

bench: $(VENV)/installed  ## what things cost: the table of benchmarks/README.md; a quarter of an hour
	$(RUN) benchmarks/quick.py

lint: $(VENV)/linters
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/linters
	$(RUN) -m mypy

docs: $(VENV)/sphinx  ## the site, under build/docs; notebooks run, and warnings are errors
	OMP_NUM_THREADS=1 $(RUN) -m sphinx --jobs 2 --fail-on-warning --keep-going --builder html docs build/docs

extras:  ## each extra alone in a fresh environment does what it is for; half an hour, EXTRAS="onnx plot"
	$(PYTHON) .ci/extras.py $(EXTRAS)

release-check:  ## build what is committed under dist/, check it, and try wheel and sdist in fresh environments
	PYTHON=$(PYTHON) .ci/release

clean:
	rm -rf $(VENV) $(LOWEST) build dist results lightning_logs *.egg-info

# torch first and alone: the pinned version decides which build the rest has to live with.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once; a minute or two."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

$(LOWEST)/installed: setup.cfg pyproject.toml constraints-lowest.txt
	@echo "Installing into $(LOWEST), once; a minute or two."
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
		--editable ".[test]"
	touch $@

$(VENV)/linters: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[lint]"
	touch $@

$(VENV)/sphinx: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@
