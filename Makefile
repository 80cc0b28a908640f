# make env | demo | test | test-all | lint | bench | clean. Targets that need .venv run env first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
DEMO   ?=

# Test workers, one thread each. A file's tests stay on one worker, which keeps their shared runs.
WORKERS ?= 2
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: env demo test test-all lint bench clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): 2 to 3 minutes, about 6 GB"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --constraint constraints.txt --editable '.[emoji,heif,openai,quantizers,clip,pretrained,lora,adam8bit,lpips,filters,demo,sweep,dev]'
	@touch $@

# Trains both stages on shapes, evaluates them and generates images. DEMO="key=value ..." overrides
# settings. The prior trains on more scenes than the dVAE because it would memorize fewer. Captions
# of shapes have at most 16 text tokens.
demo: $(STAMP)
	$(BIN)/python src/train.py stage=dvae $(DEMO)
	$(BIN)/python src/train.py stage=prior data.source.train=160000 tokenizer.length=16 compile=auto $(DEMO)
	$(BIN)/python src/eval.py metric=reconstruction metric.frechet=false
	$(BIN)/python src/eval.py metric=alignment
	$(BIN)/python src/eval.py metric=fid,kid images=250
	$(BIN)/python src/generate.py n=8 out=logs/demo \
		prompt="a large red circle in the middle" \
		prompt="a small blue star in the top left" \
		prompt="a large green triangle on the right" \
		prompt="a small black ring in the bottom right" \
		prompt="a large purple diamond to the left of a small yellow circle" \
		prompt="a small cyan square above a large orange star"
	@echo
	@echo "Images:      logs/demo/grid.png"
	@echo "Results:     logs/dvae/$$(cat logs/dvae/latest)/eval/ and logs/prior/$$(cat logs/prior/latest)/eval/"
	@echo "TensorBoard: $(BIN)/tensorboard --logdir logs"
	@echo "Playground:  $(BIN)/python src/demo.py"

# The tests that take at most ten seconds each.
test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

# Compares speed and quality with other implementations, see benchmarks/README.md.
# BENCH="sampling prior_step" selects some. prior_quality needs the dVAE of `make demo`.
BENCH ?= attention sampling sampling_cost best_of dvae_step prior_step reading encoding fid_profile dvae_quality prior_quality
bench: $(STAMP)
	@for name in $(BENCH); do \
		test -f benchmarks/$$name.py || { echo "error: no benchmark $$name; benchmarks/README.md lists them"; exit 1; }; \
		$(BIN)/python benchmarks/$$name.py || exit 1; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
