# Two commands on a fresh machine: `make demo` and `make test`. Each makes the environment first if there is none.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
WEIGHTS_DIR ?= $(MEDCLS_WEIGHTS_DIR)

.PHONY: env demo demo3d curve3d test gpu-check test-slow test-kills fuzz lint bench settings sbom container-test slurm-test clean-demo

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || \
		{ echo "no virtual environment: Python 3.11 with venv is needed (Debian: python3.11-venv), or PYTHON=path"; exit 1; }
	@echo "installing the pinned environment into $(VENV); the first time takes some minutes (torch is large)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@PY=$(PY) WEIGHTS_DIR="$(WEIGHTS_DIR)" sh data_prep/demo/demo.sh

# Three dimensions: synthetic heads, pretraining without labels on one domain, fine-tuning on the other. What a study of
# such heads looks like, and how ADNI and CADDementia come in: docs/alzheimer.md
demo3d: $(STAMP)
	@PY=$(PY) sh data_prep/demo/demo3d.sh

# Does that pretraining help where few patients are labelled? Some 60 trainings: docs/results/pretraining3d.md
curve3d: $(STAMP)
	@PY=$(PY) sh data_prep/demo/curve3d.sh

test: $(STAMP)
	$(PY) -m pytest -n 2 -m "not slow" $(PYTEST_ARGS)

# For a machine with a CUDA GPU, some minutes: its tests, then a trial of each number format, written to docs/results/gpu.md
gpu-check: $(STAMP)
	$(PY) -m pytest -m gpu $(PYTEST_ARGS)
	$(PY) -m medcls.doctor device=cuda out=docs/results/gpu.md

test-slow: $(STAMP)
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Commands killed at random moments, and their models compared: make test-kills KILLS=200 SEED=1
test-kills: $(STAMP)
	$(PY) -m tests.stages.kills --kills $(or $(KILLS),30) --seed $(or $(SEED),0)

# Broken files by the thousand through the reader: make fuzz CASES=200000 SEED=1
fuzz: $(STAMP)
	$(PY) -m tests.imaging.fuzz --cases $(or $(CASES),10000) --seed $(or $(SEED),0)

# docs/settings.md, from the schema
settings: $(STAMP)
	$(PY) -c "from medcls.cli.help import write_reference; write_reference()"

bench: $(STAMP)
	$(PY) -m benchmarks

# What is installed, as CycloneDX: of the development environment, or of another (make sbom SBOM_ENV=/opt/venv)
SBOM_ENV ?= $(VENV)
sbom: $(STAMP)
	@mkdir -p build
	@test -x build/sbom-tool/bin/cyclonedx-py || { $(PY) -m venv build/sbom-tool && \
		build/sbom-tool/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0; }
	build/sbom-tool/bin/cyclonedx-py environment $(SBOM_ENV)/bin/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/medcls.cdx.json
	@echo "build/medcls.cdx.json"

# Builds the Dockerfile and runs the image as a strict cluster does; as root, with Debian's buildah, runc and
# mmdebstrap. CONTAINER_ARGS="--keep -- --build-arg PIP_INDEX_URL=…": what stands after -- goes to buildah bud.
container-test:
	$(PYTHON) -m tests.deploy.container $(CONTAINER_ARGS)

# A training on a real Slurm of one node: preempted, requeued, the same model. As root, with Debian's slurmctld, slurmd,
# slurm-client and munge.
slurm-test: $(STAMP)
	$(PY) -m tests.deploy.slurm $(SLURM_ARGS)

clean-demo:
	rm -rf demo demo3d curve3d
