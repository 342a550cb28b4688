# make demo   search under a budget, a short finetune, a test, on real images that come along
# make test   lint and the whole test suite
.PHONY: demo test install lint clean

VENV := .venv
PYTHON := $(VENV)/bin/python
# Two threads that spin while they wait for each other starve the rest of a small machine.
export OMP_WAIT_POLICY ?= PASSIVE

demo: install
	$(PYTHON) search.py --exp_name=demo --constraint=12.80 --type=latency --overwrite
	$(PYTHON) quant_aware.py --exp_name=demo --dataset=digits --n_epochs=3
	$(PYTHON) test.py --exp_dir=exps/demo

test: install lint
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

install: $(VENV)/installed

$(VENV)/installed: setup.py constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[digits,export,plots,train,dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
