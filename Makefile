PYTHON ?= python3
BIN := .venv/bin
DEMO := $(BIN)/python -m minilm_inf.generate -n 1200 --ignore-eos

.DEFAULT_GOAL := help
.PHONY: help demo test lint parity measure corpus tiny-llama card clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: .venv/ready  ## install, then write past the trained length: vanilla, then LM-Infinite
	@printf '\n--- the vanilla model, trained on 256 tokens, writes 1200 ---\n\n'
	@$(DEMO) --attention full
	@printf '\n--- the same model with LM-Infinite ---\n\n'
	@$(DEMO)

test: .venv/ready  ## install, then run the test suite
	@$(BIN)/python -m pytest -q tests

lint: .venv/checks  ## ruff, check and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

parity: .venv/checks  ## logits against the installed transformers, live
	@$(BIN)/python tests/parity.py

measure: .venv/checks  ## decoding: against transformers, and 20,000 tokens in constant memory
	@$(BIN)/python tests/measure_decoding.py

corpus: .venv/ready  ## fetch the public-domain text that the weights were trained on
	@$(BIN)/python -m minilm_inf.corpus corpus

tiny-llama: corpus  ## train weights/tiny-llama again (about an hour on one core)
	@$(BIN)/python -m minilm_inf.train --corpus corpus --out weights/tiny-llama --tokens 30200000 \
		--threads 1 --every 250
	@$(BIN)/python -m minilm_inf.card weights/tiny-llama --corpus corpus

card: corpus  ## measure weights/tiny-llama and write its card
	@$(BIN)/python -m minilm_inf.card weights/tiny-llama --corpus corpus

clean:  ## remove what the targets above installed and fetched
	rm -rf .venv corpus

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing requirements.txt into .venv (a few minutes, once)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/checks: tests/requirements.txt .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@
