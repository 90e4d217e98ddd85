# Each target is a line or two that a person could type. `make run` and `make test` need only Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# Files of tests and notebooks at the same time; each takes up to 4 GB.
WORKERS ?= 2

.PHONY: run test quick lab bench record site links notebooks lint colab-check floors-check drift-check alone-check bundle-check gpu-kit gpu-kit-check gpu-check fuzz solved-check formats-check export-check ways-home trl-check clean

run: .venv/ready  ## fine-tune the default model; ends with a before/after table and runs/<name>/report.html
	$(BIN)/qlora-lab finetune $(ARGS)

test: .venv/ready lint  ## everything: lint, unit tests, every notebook re-executed and compared
	$(BIN)/qlora-lab fetch
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

quick: .venv/ready lint  ## two minutes: lint, and the tests of the rooms that changed since main, without slow ones
	$(BIN)/qlora-lab fetch
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "not slow" `$(BIN)/python tests/changed.py` $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# nbgrader's buttons are for assignments that it made; its "Validate" calls a notebook without tests solved.
lab: .venv/ready  ## JupyterLab at the first notebook
	JUPYTER_CONFIG_PATH="$(CURDIR)/tools/jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" $(BIN)/jupyter lab \
		--ServerApp.root_dir=notebooks --LabApp.default_url=/lab/tree/00_start_here.ipynb $(ARGS)

bench: .venv/ready .venv/torchao  ## side-by-side races against the libraries; writes benchmarks/results/
	$(BIN)/python benchmarks/race.py $(ARGS)
	$(BIN)/python benchmarks/paging.py

record: .venv/ready  ## the default run again, its numbers and picture for README
	$(BIN)/qlora-lab finetune --name recorded-`date +%Y-%m-%d-%H%M%S` --runs runs/recorded --device cpu
	mkdir -p data/recorded
	cp "`ls -td runs/recorded/*/ | head -1`"result.json data/recorded/finetune-cpu.json
	cp "`ls -td runs/recorded/*/ | head -1`"match.png data/recorded/finetune-cpu.png

site: .venv/site/ready  ## the notebooks as pages to read on a phone and to print, in build/site
	rm -rf build/site build/site-source
	mkdir -p build/site-source/notebooks
	cp -R site/. build/site-source
	cp notebooks/*.ipynb build/site-source/notebooks
	.venv/site/bin/sphinx-build --quiet $(ARGS) build/site-source build/site

links: .venv/ready  ## first cells of the notebooks, and with an address in pyproject.toml their "Open in Colab" links
	$(BIN)/python tools/links.py notebooks/*.ipynb

notebooks: .venv/ready  ## re-execute every notebook in place
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute notebooks/*.ipynb
	$(BIN)/python tools/clean.py notebooks/*.ipynb

solved-check: .venv/ready  ## the workshop's notebooks with all solutions in place, graduation included (a quarter of an hour)
	QLORA_LAB_SOLVED=1 $(BIN)/python -m pytest tests/notebooks/test_workshop.py $(ARGS)

colab-check: .venv/ready  ## every notebook in a stand-in for Colab (minutes each)
	$(BIN)/python tests/machines/colab.py $(ARGS)

floors-check: .venv/ready  ## the unit tests with the lowest versions that pyproject.toml allows
	$(BIN)/python tests/machines/drift.py --floors $(ARGS)

drift-check: .venv/ready  ## unit tests and two notebooks with the newest libraries: which of them broke what
	$(BIN)/python tests/machines/drift.py $(ARGS)

alone-check: .venv/ready  ## every notebook compared once more: alone, in reverse order, one thread, AVX2
	$(BIN)/python tests/machines/alone.py $(ARGS)

gpu-check: .venv/ready  ## notebooks and CUDA tests on a stand-in for a GPU: no tensor of the CPU meets one of the GPU
	$(BIN)/python tests/machines/gpu.py $(ARGS)

bundle-check: .venv/ready  ## make a bundle, install it and run a notebook from it where there is no network
	$(BIN)/python tests/machines/bundle.py $(ARGS)

gpu-kit: .venv/ready  ## what a bare GPU machine without a network needs, in build/gpu-kit: a folder per call
	$(BIN)/python benchmarks/gpu_kit.py $(ARGS)

fuzz: .venv/ready  ## 2,000 random small models: every outcome equals a reference, or is refused in a sentence
	$(BIN)/python tests/machines/fuzz.py $(ARGS)

formats-check: .venv/ready .venv/torchao  ## MXFP4 and NVFP4 bit for bit against torchao
	PYTHONPATH="$(CURDIR)/.venv/torchao" $(BIN)/python -m pytest tests/quantization/test_datatypes_in_torchao.py $(ARGS)

export-check: .venv/ready .venv/home/ready  ## an exported run in llama.cpp, beside the same weights here; records the count
	$(BIN)/python benchmarks/export_check.py $(ARGS)

trl-check: .venv/ready .venv/trl/ready  ## the same run in TRL, PEFT and bitsandbytes: the losses of both, step by step
	$(BIN)/python benchmarks/with_trl.py --python .venv/trl/bin/python $(ARGS)

ways-home: .venv/ready .venv/home/ready  ## what each way home costs: loss and exact match; hours, and goes on where it was
	$(BIN)/python benchmarks/ways_home.py $(ARGS)

gpu-kit-check: .venv/ready  ## the kit's calls, every stage at tiny sizes, in a stand-in for that machine
	$(BIN)/python tests/machines/bare.py $(ARGS)

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# Only the race and formats-check need torchao; where it is importable, PEFT and transformers load it and it complains on a CPU.
.venv/torchao: benchmarks/requirements.txt | .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ --requirement benchmarks/requirements.txt
	touch $@

# TRL brings versions of its own, so it has an environment of its own.
.venv/trl/ready: benchmarks/trl-requirements.txt
	$(PYTHON) -m venv .venv/trl
	.venv/trl/bin/python -m pip install --quiet --requirement benchmarks/trl-requirements.txt
	touch $@

# llama.cpp, in an environment of its own: what runs an exported model knows nothing of this package.
.venv/home/ready: benchmarks/home-requirements.txt
	$(PYTHON) -m venv .venv/home
	.venv/home/bin/python -m pip install --quiet --requirement benchmarks/home-requirements.txt
	touch $@

# The pages' own environment: none of it is needed to run the notebooks.
.venv/site/ready: site/requirements.txt
	$(PYTHON) -m venv .venv/site
	.venv/site/bin/python -m pip install --quiet --requirement site/requirements.txt
	touch $@

clean:
	rm -rf .venv build .pytest_cache .ruff_cache .hypothesis
