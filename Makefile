# make env    virtual environment .venv with everything (TORCH="torch==2.13.0" chooses the torch build)
# make demo   synthesise speech, pretrain a small model, probe it; on your own speech: make demo SPEECH=DIR
# make test   the tests, a file at a time on each core; they use real speech where SJEPA_SPEECH names a folder of it
# make lowest the fast tests with the lowest version of every dependency, in .venv-lowest
# make lint   ruff
# make clean  remove what the above made

BIN := .venv/bin
READY := .venv/.ready

.PHONY: env demo test lowest lint clean force

env: $(READY)

$(READY): pyproject.toml tools/setup_env.sh tools/install_torch.sh $(if $(TORCH),force)
	TORCH="$(TORCH)" PYTHON="$(PYTHON)" tools/setup_env.sh

demo: env
	$(BIN)/python -m examples.demo.run $(if $(SPEECH),--speech "$(SPEECH)")

test: env
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lowest: env
	tools/lowest.sh

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .venv-lowest demo-output dist benchmarks/gpu/build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
