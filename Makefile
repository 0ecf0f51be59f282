PYTHON ?= python3
BIN = .venv/bin
ABOUT = settings.ini setup.py pyproject.toml constraints.txt

.PHONY: demo lab test quick export docs site-check real-model

demo: .venv/library          # the main job: train for a minute, write, compare the two phases
	$(BIN)/tinylm demo

real-model: .venv/weights    # fetch a model of 135 million parameters, and ask it three questions
	$(BIN)/python tools/real_model.py

lab: .venv/everything        # the course in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

test: quick                  # everything that can be proved
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxschedchunk 1 -m 'slow or browser'

quick: .venv/everything      # what can be proved in two minutes, about every module: a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m 'not slow and not browser'

export: .venv/everything     # notebooks -> package and README; nbdev looks for _quarto.yml beside the notebooks
	cp _quarto.yml nbs/_quarto.yml
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/readme.py

docs:                        # the site, into _docs/
	@command -v quarto >/dev/null || { echo 'make docs needs Quarto, which is a program of its own: https://quarto.org/docs/get-started/'; exit 1; }
	@$(MAKE) --no-print-directory .venv/everything
	PYTHONPATH=tools $(BIN)/nbdev_docs
	$(BIN)/python -c "from tinylm.play import write_play; write_play('_docs/play')"
	$(BIN)/python tools/finish_site.py

site-check: docs             # the rendered site as its readers see it, in a browser
	@if command -v npm >/dev/null; then npm install --silent --no-save axe-core@4; else echo 'No npm, so axe is left out.'; fi
	$(BIN)/python tools/check_site.py $$(ls node_modules/axe-core/axe.min.js 2>/dev/null | sed 's/^/--axe /')

.venv/library: $(ABOUT)
	@echo 'Setting up .venv (a minute or more; PyTorch is large).'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q -c constraints.txt -e '.[native]'
	@touch $@

.venv/weights: .venv/library
	@$(BIN)/pip install -q -c constraints.txt -e '.[weights,native]'
	@touch $@

.venv/everything: $(ABOUT)
	@echo 'Setting up .venv with everything for notebooks and tests (one to five minutes, 1.5 GB).'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch .venv/library .venv/weights $@
