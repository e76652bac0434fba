# make env    virtual environment .venv with everything (TORCH="torch==2.9.0" chooses the torch build)
# make demo   synthesise speech, pretrain a small model, probe it; on your own speech: make demo SPEECH=DIR
# make test   the tests; they use real speech where SJEPA_SPEECH names a folder of it
# make lint   ruff
# make clean  remove what the above made

BIN := .venv/bin
READY := .venv/.ready

.PHONY: env demo test lint clean force

env: $(READY)

$(READY): pyproject.toml tools/setup_env.sh $(if $(TORCH),force)
	TORCH="$(TORCH)" PYTHON="$(PYTHON)" tools/setup_env.sh

demo: env
	$(BIN)/python -m training.demo.run $(if $(SPEECH),--speech "$(SPEECH)")

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv demo-output dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
