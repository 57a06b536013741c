# `make` lists the targets. Those that need TensorFlow run in .venv, which `make setup` makes and they check.
#
# Variables of the targets are given on the command line: make train CONFIG=my.config TRAIN_DIR=out/train

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Setup. If PYTHON is given, .venv is made with it; otherwise an existing .venv is kept.
PYTHON ?=
OD_API ?=
TENSORFLOW ?=
export PYTHON OD_API TENSORFLOW

# The demo.
DATA ?= builtin
WORK ?= demo_out
SEED ?= 0
DETECTOR ?= tf1

# Single steps.
CONFIG ?= configs/ssd_mobilenet_v2_qat.config
TRAIN_DIR ?= out/train
CHECKPOINT ?= $(TRAIN_DIR)
EVAL_DIR ?= out/eval
OUT ?= out/export
MODEL ?= $(OUT)/detect.tflite
DATA_DIR ?= out/data
RECORD ?= $(DATA_DIR)/val.record
LABEL_MAP ?= $(DATA_DIR)/label_map.pbtxt
GRAPH ?= $(OUT)/frozen_inference_graph.pb

# The tests to run: make test TESTS=tests/test_rewrite.py
TESTS ?= tests

# The time limit of a test, in seconds.
TIMEOUT ?= 600

# The parts of `make test-all` to run, PARTS='main/*' for example; by default all.
PARTS ?=

# The folder for trees of the OD API of other years, on which the patches are tested.
GENERATIONS ?= out/generations

# Further flags for the command: make train ARGS='--override train_config.num_steps=500'
ARGS ?=

RUN := .venv/bin/python -m od_qat
TF1 := .venv-tf1/bin/python
TF215 := .venv-tf215/bin/python
# For commands without TensorFlow, any Python will do. (make setup may fail with a tree that is to be patched.)
SOME_PYTHON = $(or $(wildcard .venv/bin/python),python3)

# What follows `voc:` or `coco:`, which may hold spaces.
KIND = $(firstword $(subst :, ,$(DATA)))
FOLDER = $(patsubst voc:%,%,$(patsubst coco:%,%,$(DATA)))

.PHONY: help setup setup-tf1 setup-tf215 demo demo-classifier test test-main test-tf1 test-tf215 oracle-check lint data train eval export \
        export-tflite score nodes doctor patch unpatch bench test-zoo test-all generations lock dist clean

help: ## list the targets
	@echo "usage: make TARGET [VARIABLE=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Start with: make setup, then make demo"

setup: ## make .venv and install everything into it (PYTHON, OD_API=/path/to/models/research)
	@bash requirements/setup.sh main

setup-tf1: ## make .venv-tf1: TensorFlow 1.15.5 on Python 3.7, to compare with
	@bash requirements/setup.sh tf1

setup-tf215: ## make .venv-tf215: TensorFlow 2.15.1 on Python 3.9 to 3.11
	@bash requirements/setup.sh tf215

demo: setup ## run all steps on a small data set (DATA=builtin|voc:/path|coco:/path DETECTOR=tf1|tf2 WORK SEED)
	@$(RUN) demo --data="$(DATA)" --detector="$(DETECTOR)" --work_dir="$(WORK)" --seed="$(SEED)" $(ARGS)

demo-classifier: setup ## train, quantize and score two classifiers on MNIST (SEED)
	@$(RUN) demo-classifier --work_dir=classifier_out --seed="$(SEED)" $(ARGS)

data: setup ## make records and a label map (DATA=builtin|voc:/path|coco:/path DATA_DIR)
	@case "$(KIND)" in \
	  builtin) $(RUN) data builtin --output_dir="$(DATA_DIR)" --seed="$(SEED)" $(ARGS) ;; \
	  voc) $(RUN) data voc "$(FOLDER)" --output_dir="$(DATA_DIR)" $(ARGS) ;; \
	  coco) $(RUN) data coco --output_dir="$(DATA_DIR)" \
	    --train_images="$(FOLDER)/train2017" \
	    --train_annotations="$(FOLDER)/annotations/instances_train2017.json" \
	    --val_images="$(FOLDER)/val2017" \
	    --val_annotations="$(FOLDER)/annotations/instances_val2017.json" $(ARGS) ;; \
	  *) echo "make: error: unknown data: found '$(DATA)', allowed: builtin, voc:/path or coco:/path" >&2; exit 2 ;; \
	esac

train: setup ## train the model of CONFIG (CONFIG TRAIN_DIR SEED)
	@$(RUN) train --pipeline_config_path="$(CONFIG)" --train_dir="$(TRAIN_DIR)" --seed="$(SEED)" $(ARGS)

eval: setup ## print metrics of the newest checkpoint (CONFIG TRAIN_DIR EVAL_DIR)
	@$(RUN) eval --pipeline_config_path="$(CONFIG)" --checkpoint_dir="$(TRAIN_DIR)" --eval_dir="$(EVAL_DIR)" \
	  --run_once $(ARGS)

export: setup ## convert a checkpoint to frozen_inference_graph.pb (CONFIG CHECKPOINT OUT)
	@$(RUN) export --pipeline_config_path="$(CONFIG)" --trained_checkpoint_prefix="$(CHECKPOINT)" \
	  --output_directory="$(OUT)" $(ARGS)

export-tflite: setup ## convert a checkpoint to detect.tflite (CONFIG CHECKPOINT OUT)
	@$(RUN) export-tflite --pipeline_config_path="$(CONFIG)" --trained_checkpoint_prefix="$(CHECKPOINT)" \
	  --output_directory="$(OUT)" $(ARGS)

score: setup ## print metrics, size and latency of a model (MODEL RECORD LABEL_MAP)
	@$(RUN) score --model="$(MODEL)" --record="$(RECORD)" --label_map="$(LABEL_MAP)" $(ARGS)

nodes: setup ## show the inputs and outputs of a graph (GRAPH)
	@$(RUN) nodes "$(GRAPH)" $(ARGS)

doctor: ## list what is installed and what is missing; describe your tree of the OD API (OD_API)
	@$(SOME_PYTHON) -m od_qat doctor $(ARGS)

patch: ## put od_qat into your OD API tree, so that your own commands quantize (OD_API=/path/to/models/research)
	@$(SOME_PYTHON) -m od_qat patch --od_api="$(OD_API)" $(ARGS)

unpatch: ## take od_qat out of your OD API tree, to the byte (OD_API=/path/to/models/research)
	@$(SOME_PYTHON) -m od_qat unpatch --od_api="$(OD_API)" $(ARGS)

# It runs on the current TensorFlow and on 1.15.5.
test-zoo: setup ## test the models of the zoo that `make test` leaves out (half an hour)
	@OD_QAT_TESTS=zoo TESTS="tests/test_parity.py tests/test_coverage.py tests/test_samples.py" bash tests/run.sh

test-all: setup setup-tf1 setup-tf215 generations ## run all tests, in parts, without those that have passed (PARTS; hours)
	@test -d out/upstream || .venv/bin/python -m pip install -q --no-deps --target out/upstream \
	  -r requirements/estimator.in -r requirements/tensorboard.in
	@test -d out/official || .venv/bin/python -m pip install -q --no-deps --target out/official -r requirements/official.in
	@test -d out/notebook || .venv/bin/python -m pip install -q --target out/notebook -r requirements/notebook.in
	@test -d out/mediapipe || (.venv/bin/python -m venv out/mediapipe \
	  && out/mediapipe/bin/python -m pip install -q -r requirements/mediapipe.in)
	@.venv/bin/python -m tests.everything --generations="$(GENERATIONS)" $(PARTS)

generations: ## fetch the OD API of other years, to test the patches on (GENERATIONS)
	@$(SOME_PYTHON) -m tests.generations.fetch "$(GENERATIONS)"

test: setup ## run the tests on the current TensorFlow and, if a Python 3.7 is found, on 1.15.5 (TESTS)
	@TESTS='$(TESTS)' ARGS='$(ARGS)' bash tests/run.sh

test-main: setup ## run the tests on the current TensorFlow only (TESTS)
	@.venv/bin/python -m pytest $(TESTS) --timeout=$(TIMEOUT) $(ARGS)

# (Exit status 5: none of TESTS is marked tf1.)
test-tf1: setup-tf1 ## run the tests marked tf1 on TensorFlow 1.15.5 only (TESTS)
	@PATH="$$PWD/.venv-tf1/bin:$$PATH" PYTHONPATH="$$PWD" $(TF1) -m pytest $(TESTS) -m tf1 --timeout=$(TIMEOUT) $(ARGS) || \
	  [ $$? -eq 5 ]

test-tf215: setup-tf215 ## run the tests on TensorFlow 2.15.1 only (TESTS)
	@PATH="$$PWD/.venv-tf215/bin:$$PATH" PYTHONPATH="$$PWD" $(TF215) -m pytest $(TESTS) --timeout=$(TIMEOUT) $(ARGS)

oracle-check: setup setup-tf1 ## check that contrib does what was recorded, and that od_qat computes the same
	@graphs="$$(mktemp -d)"; trap 'rm -rf "$$graphs"' EXIT; status=0; \
	PATH="$$PWD/.venv-tf1/bin:$$PATH" PYTHONPATH="$$PWD" \
	  $(TF1) -m tests.zoo.record_oracle --check --graphs "$$graphs" || status=1; \
	.venv/bin/python -m tests.zoo.across_versions "$$graphs" || status=1; exit "$$status"

bench: setup ## measure a QAT step against a float step, and the rewriting, of five networks (three minutes)
	@.venv/bin/python benchmarks/steps.py $(ARGS)

lint: setup ## check errors, style and layout with ruff
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .

lock: ## resolve the requirements anew (PYTHON, once for each of 3.9 to 3.13)
	@$(or $(PYTHON),python3) requirements/lock.py

dist: setup ## build od_qat's sdist and wheel in dist/
	@bash requirements/dist.sh .venv/bin/python

clean: ## remove the environments and caches; what you trained stays
	@rm -rf .venv .venv-tf1 .venv-tf215 .pytest_cache .ruff_cache .hypothesis build dist od_qat.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
