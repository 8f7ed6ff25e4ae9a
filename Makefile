# Every command of this project. `make setup` needs Python 3.11 or newer and installs packages from PyPI.
PYTHON ?= python3
CYCLONEDX_VERSION := 7.5.0
UV_VERSION := 0.13.9
# cpu omits packages that sglang needs only for CUDA; cuda installs them too.
DEVICE ?= cpu
# An index of CPU builds of torch; without it torch comes from PyPI, which also runs on a CPU.
TORCH_INDEX ?=

# Number of faults that `make faults` (200), `faults-kind` (40), `faults-slurm` (20) and `faults-ray` (20) inject, and the
# seed of their schedule, which a failing schedule prints.
FAULTS ?=
SEED ?= $(shell shuf --input-range=1-999999 --head-count=1)

SERIAL_TESTS := tests/local tests/slurm tests/faults tests/ray tests/kueue tests/e2e
PARALLEL_TESTS := tests $(SERIAL_TESTS:%=--ignore=%)
# Most tests watch real processes, which a busy machine can stall for any time. A failed test runs once more, for at most
# five tests, and the summary lists it as RERUN with its traceback.
SECOND_ATTEMPT := --reruns=1 --max-suite-reruns=5 --rerun-show-tracebacks

VENV := .venv
UV := .bin/uv/bin/uv
READY := $(VENV)/.ready-$(DEVICE)
comma := ,
RAY := $(VENV)/.ready-ray
TRIAL := demo-$(shell date +%Y%m%d-%H%M%S)
# One thread per process: trainer and server share a small machine.
export OMP_NUM_THREADS ?= 1

.PHONY: setup aworld frameworks verifiers loggers agents ray ray-tests demo check test e2e kueue slurm faults faults-kind faults-slurm faults-ray hostile fuzz bench gpu-smoke gpu-images tools cluster cluster-down images format generate constraints sbom requirements clean
.DEFAULT_GOAL := help

help: ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 14

setup: $(READY) ## Create .venv/ with everything that this project needs.

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; set PYTHON=python3.11 or newer" >&2; exit 2; }
	@$(PYTHON) -m venv .bin/uv || \
	  { rm -rf .bin/uv; echo "Python's venv module is missing: on Debian, apt-get install python3-venv" >&2; exit 2; }
	@.bin/uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(READY): $(UV) pyproject.toml constraints.txt sglang_image/cpu-excludes.txt
	@echo "Installing into $(VENV)/ (once; about 7 GB on disk)"
	@test -x $(VENV)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@$(UV) pip install --quiet --python $(VENV)/bin/python --prerelease=allow --compile-bytecode \
	  --constraints constraints.txt $(if $(filter cpu,$(DEVICE)),--excludes sglang_image/cpu-excludes.txt) \
	  $(if $(TORCH_INDEX),--index $(TORCH_INDEX) --index-strategy unsafe-best-match) \
	  --editable ".[trainer,server,operator,dev$(if $(filter cuda,$(DEVICE)),$(comma)cuda)]"
	@$(if $(filter cuda,$(DEVICE)),images/cuda_toolkit.sh $(VENV)/bin/python >/dev/null)
	@touch $@

aworld: .bin/aworld/.ready ## Create .bin/aworld/, with the agent framework AWorld.

frameworks: .bin/frameworks/.ready ## Create .bin/frameworks/, with the OpenAI Agents SDK and pydantic-ai.

verifiers: .bin/verifiers/.ready ## Create .bin/verifiers/, with the PyPI package verifiers.

loggers: .bin/loggers/.ready ## Create .bin/loggers/, with MLflow and Trackio.

.bin/%/.ready: examples/requirements/%.txt examples/environment.sh $(UV)
	@examples/environment.sh $*
	@touch $@

agents: setup aworld frameworks verifiers ## Run every agent of the examples on this machine's CPU; its reward must rise.
	$(VENV)/bin/pytest -s tests/local/test_agent_examples.py

ray: $(RAY) ## Add Ray to .venv/, for grpo run --on ray.

$(RAY): $(READY)
	@$(UV) pip install --quiet --python $(VENV)/bin/python --constraints constraints.txt \
	  $(if $(filter cpu,$(DEVICE)),--excludes sglang_image/cpu-excludes.txt) --prerelease=allow --editable ".[ray]"
	@touch $@

ray-tests: ray ## Run every test on a real Ray cluster of three nodes on this machine.
	$(VENV)/bin/pytest tests/ray

demo: setup ## Train the tiny model from examples/tiny/experiment.yaml on this machine's CPU.
	@$(VENV)/bin/grpo run examples/tiny/experiment.yaml config.trial_name=$(TRIAL)

check: setup ## Check lint, formatting, types, import contracts and generated files.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m areal_api.generate.docs --check
	$(VENV)/bin/python -m areal_api.generate.crd --check
	$(VENV)/bin/python helm/generate.py --check
	$(VENV)/bin/python hack/constraints.py --check

# Tests that need a whole machine run one at a time; the others run in two workers. One summary covers both sessions.
test: setup aworld frameworks verifiers loggers ray ## Run all tests except the scenarios of make agents, e2e, kueue, slurm and ray-tests; tests that cannot run here are listed at the end.
	@hack/cluster/up.sh || [ $$? -eq 3 ] # 3: no cluster can be created here; the line above gives the reason
	@hack/slurm/install.sh || [ $$? -eq 3 ]
	@hack/browser/install.sh || [ $$? -eq 3 ]
	@reports=$$(mktemp); trap 'rm -f $$reports' EXIT; status=0; \
	$(VENV)/bin/pytest $(SECOND_ATTEMPT) --numprocesses=2 $(PARALLEL_TESTS) -r N --save-reports=$$reports || status=$$?; \
	$(VENV)/bin/pytest $(SECOND_ATTEMPT) -m "not scenario" $(SERIAL_TESTS) --durations=10 --add-reports=$$reports && exit $$status

e2e: setup cluster ## Run every end-to-end test on the kind cluster.
	$(VENV)/bin/pytest tests/e2e

kueue: setup ## Run every test with the real Kueue on a control plane; the first run builds it in about 5 minutes.
	@hack/cluster/kueue.sh
	$(VENV)/bin/pytest tests/kueue

slurm: setup ## Run every test on a Slurm cluster of three nodes on this machine.
	@hack/slurm/install.sh
	$(VENV)/bin/pytest tests/slurm

faults: setup ## Inject FAULTS=200 faults into real runs; SEED=n repeats a schedule.
	FAULTS=$(or $(FAULTS),200) SEED=$(SEED) $(VENV)/bin/pytest tests/faults

faults-kind: setup cluster ## Inject FAULTS=40 faults into runs in pods of the kind cluster; SEED=n repeats a schedule.
	FAULTS=$(or $(FAULTS),40) SEED=$(SEED) $(VENV)/bin/pytest tests/e2e/test_pod_faults.py

faults-slurm: setup ## Inject FAULTS=20 faults into real runs on a Slurm cluster of three nodes; SEED=n repeats a schedule.
	@hack/slurm/install.sh
	FAULTS=$(or $(FAULTS),20) SEED=$(SEED) $(VENV)/bin/pytest tests/slurm/test_slurm_faults.py

faults-ray: setup ray ## Inject FAULTS=20 faults into real runs on a Ray cluster of three nodes; SEED=n repeats a schedule.
	FAULTS=$(or $(FAULTS),20) SEED=$(SEED) $(VENV)/bin/pytest tests/ray/test_ray_faults.py

hostile: setup ## Attack the operator on a real API server with HOSTILE generated experiments (default 500).
	HOSTILE=$(or $(HOSTILE),500) $(VENV)/bin/pytest tests/hostile

fuzz: setup ## Run the property tests FUZZ=5 times, each time with other generated inputs.
	for round in $$(seq $(or $(FUZZ),5)); do FUZZ=1 $(VENV)/bin/pytest -q --numprocesses=2 -m "hypothesis and not scenario" tests/unit tests/gateway || exit 1; done

bench: setup ## Run the benchmarks: each prints a ratio to a named baseline.
	$(VENV)/bin/python -m benchmarks

gpu-smoke: ## Check a machine with GPUs: compiler, attention, NCCL, weight updates, short runs; write a report.
	@$(MAKE) --no-print-directory setup DEVICE=cuda
	$(VENV)/bin/python -m hack.gpu_smoke

gpu-images: ## Build the images for GPUs, push them to the cluster's registry and test them in its pods; needs 40 GB.
	@hack/cluster/gpu_room.sh
	@$(MAKE) --no-print-directory setup
	@DEVICE=cuda hack/cluster/up.sh
	$(VENV)/bin/pytest tests/e2e/test_gpu_images.py

tools: ## Put kind, kubectl and helm into .bin/.
	@hack/cluster/tools.sh

cluster: ## Bring up a kind cluster, a registry and this project's images in it; does nothing if they are up.
	@hack/cluster/up.sh

cluster-down: ## Remove the kind cluster and the registry.
	@hack/cluster/down.sh

images: ## Build the images for DEVICE=cpu or cuda, push them to REGISTRY (localhost:5000) and print their tag.
	@DEVICE=$(DEVICE) hack/cluster/images.sh

format: setup ## Format the code.
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

generate: setup ## Update the generated files.
	$(VENV)/bin/python -m areal_api.generate.docs --write
	$(VENV)/bin/python -m areal_api.generate.crd --write
	$(VENV)/bin/python helm/generate.py --write

constraints: setup ## Write constraints.txt: one version of every package, for both devices.
	$(VENV)/bin/python hack/constraints.py --write

sbom: setup ## Write build/sbom.json, a CycloneDX inventory of the installed packages.
	@$(UV) venv --quiet --allow-existing build/sbom-tool
	@$(UV) pip install --quiet --python build/sbom-tool/bin/python cyclonedx-bom==$(CYCLONEDX_VERSION)
	@build/sbom-tool/bin/cyclonedx-py environment --output-file build/sbom.json $(VENV)/bin/python
	@echo build/sbom.json

requirements: $(UV) ## Write build/requirements.txt: all packages with versions and hashes.
	@mkdir -p build
	@$(UV) pip compile --quiet --generate-hashes --no-header --no-emit-index-url --prerelease=allow \
	  --constraints constraints.txt $(if $(filter cpu,$(DEVICE)),--excludes sglang_image/cpu-excludes.txt) \
	  --extra trainer --extra server --extra operator --output-file build/requirements.txt pyproject.toml
	@echo build/requirements.txt

clean: ## Remove the environments, built tools and runs.
	rm -rf $(VENV) .bin runs
