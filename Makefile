# Every target does its own set-up: git, make and a CPython 3.10 or 3.11 with
# venv and pip are enough.

# An interpreter for a new environment, and extra requirements beside it, as
# in `make emnist EXTRAS=gpu`.
PYTHON ?=
EXTRAS ?=

RUN ?= runs/emnist-mnist-shards

DATASET ?= mnist
ifneq ($(filter mnist fashion_mnist cifar10,$(DATASET)),)
  PARTITION ?= shards
else
  PARTITION ?= natural
endif
ROUNDS ?= 20
SEEDS ?= 0,1,2
ARGS ?=

# Clients are MNIST's 539 writers where QMNIST's label files are, and else 1,000
# by Dirichlet's distribution.
PRIVATE := experiments/private$(if $(TFF_RESEARCH_QMNIST_DIR),/by_writer)

# What test-data fetches; a name may carry a partition, as in mnist:writer.
DATA ?= digits mnist amazon_reviews
ENCODERS ?= minilm_l6

# TensorFlow's start-up lines drown what a command has to say.
export TF_CPP_MIN_LOG_LEVEL ?= 3

python := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help emnist linear_regression emnist_dp dp_utility bert fine_tuning newsgroups emnist_qat qat_bits bert_qat serve test test-slow test-data lint format \
  doctor lock lock-check env serving xla-cpu xla-tpu xla-gpu benchmark clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

emnist: env ## Train a handwriting model (DATASET= PARTITION= ROUNDS= ARGS=).
	@$(MAKE) --no-print-directory serving || \
	  echo 'Without .venv-serving the export is not checked in OpenVINO.'
	$(python) -m experiments.emnist --flagfile=experiments/emnist.flags \
	  --dataset=$(DATASET) --partition=$(PARTITION) \
	  --total_rounds=$(ROUNDS) \
	  --experiment_name=emnist-$(DATASET)-$(PARTITION) $(ARGS)

linear_regression: env ## Fit ten clients' diabetes data, no network (ARGS=).
	$(python) -m experiments.linear_regression \
	  --flagfile=experiments/linear_regression.flags $(ARGS)

emnist_dp: env serving ## Private beside plain training, epsilon 8 (SEEDS= ARGS=).
	$(python) -m experiments.compare --binary=emnist --seeds=$(SEEDS) \
	  --flag_files=$(PRIVATE)/dp_fed_avg.flags,$(PRIVATE)/fed_avg_without_privacy.flags \
	  --table_rounds=10,20,50 --extra_flag=--export \
	  --experiment_name=emnist_dp $(ARGS)

dp_utility: env ## Accuracy against epsilon, five private algorithms (SEEDS= ARGS=).
	$(python) -m experiments.compare --binary=emnist --seeds=$(SEEDS) \
	  --flag_files=experiments/private --vary=target_epsilon=1,2,4,8 \
	  --experiment_name=dp_utility $(ARGS)

bert: env serving ## LoRA on a real encoder, sentiment by review; a model that serves (ARGS=).
	$(python) -m experiments.bert --flagfile=experiments/bert.flags $(ARGS)

fine_tuning: env ## Full, frozen and LoRA: accuracy, bytes, seconds (SEEDS= ARGS=).
	$(python) -m experiments.compare --binary=bert --seeds=$(SEEDS) \
	  --flag_files=experiments/fine_tuning --experiment_name=fine_tuning $(ARGS)

newsgroups: env ## FedAvg, FedProx, FedOpt and one client with all data (SEEDS= ARGS=).
	$(python) -m experiments.compare --binary=bert --seeds=$(SEEDS) \
	  --flag_files=experiments/newsgroups_reduced --experiment_name=newsgroups $(ARGS)

serve: env ## Serve a run over HTTP, with a page to try it on (RUN= ARGS=).
	$(python) -m experiments.serve --run_dir=$(RUN) $(ARGS)

emnist_qat: env serving ## Float, QAT and int8 files side by side (SEEDS= ARGS=).
	$(python) -m experiments.compare --binary=emnist --seeds=$(SEEDS) \
	  --flag_files=experiments/quantization --forms=tflite,tflite_int8 \
	  --experiment_name=emnist_qat $(ARGS)

qat_bits: env serving ## Bits of weights against accuracy, a plot (SEEDS= ARGS=).
	$(python) -m experiments.compare --binary=emnist --seeds=$(SEEDS) \
	  --flag_files=experiments/quantization/float.flags,experiments/quantization/qat.flags \
	  --vary=weight_bits=8,6,4 --forms=tflite_int8 --experiment_name=qat_bits $(ARGS)

emnist_compression: env serving ## Pruned and clustered, with and without QAT (SEEDS= ARGS=).
	$(python) -m experiments.compare --binary=emnist --seeds=$(SEEDS) \
	  --flag_files=experiments/quantization/float.flags,experiments/quantization/qat.flags,experiments/compression \
	  --forms=tflite,tflite_int8 --experiment_name=emnist_compression $(ARGS)

bert_qat: env serving ## LoRA with and without quantization (SEEDS= ARGS=).
	$(python) -m experiments.compare --binary=bert --seeds=$(SEEDS) \
	  --flag_files=experiments/quantization_bert --forms=tflite,tflite_int8 \
	  --experiment_name=bert_qat $(ARGS)

test: env serving test-data ## Run the default tests (ARGS= for pytest).
	@$(MAKE) --no-print-directory xla-cpu || \
	  echo 'Without .venv-xla-cpu exported programs are not run in jax.'
	$(python) -m pytest -n 2 --dist=loadfile $(ARGS)

test-slow: env serving test-data ## Run the slow tests (ARGS= for pytest).
	$(python) -m pytest -m slow $(ARGS)

test-data: env ## Fetch what the tests read, once (DATA= ENCODERS=).
	$(python) -m datasets.fetch $(DATA)
	$(python) -m models.pretrained $(ENCODERS)

lint: env ## Check style and formatting.
	$(python) -m ruff check .
	$(python) -m ruff format --check .

format: env ## Mend style and formatting.
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

doctor: env ## Say what works on this machine.
	$(python) -m research.doctor

lock: env ## Compile requirements/*.in (ARGS=--upgrade for new releases).
	requirements/lock.sh $(ARGS)

lock-check: env ## Prove that requirements/*.in and *.txt are in step.
	requirements/lock.sh --check

env: ## Make .venv (PYTHON= EXTRAS=ray, gpu, onnx).
	@PYTHON=$(PYTHON) requirements/set_up.sh .venv dev bert $(EXTRAS)

serving: ## Make .venv-serving, which runs exported models without TensorFlow.
	@PYTHON=$(PYTHON) requirements/set_up.sh .venv-serving serving

xla-cpu: ## Make .venv-xla-cpu, which runs exported programs in a current jax.
	@PYTHON= requirements/set_up.sh .venv-xla-cpu xla_cpu

xla-tpu: ## Make .venv-xla-tpu, the compiler for TPUs (1 GB).
	@PYTHON= requirements/set_up.sh .venv-xla-tpu xla_tpu

xla-gpu: ## Make .venv-xla-gpu, the compiler for NVIDIA GPUs (1.1 GB).
	@PYTHON= requirements/set_up.sh .venv-xla-gpu xla_gpu

benchmark: env ## Time a round beside stock TFF (ARGS='--peers --all_plans').
	$(python) -m experiments.benchmark.rounds $(ARGS)

clean: ## Remove the environments and caches; runs/ stays.
	rm -rf .venv .venv-serving .venv-xla-* .venv-peer-* build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
