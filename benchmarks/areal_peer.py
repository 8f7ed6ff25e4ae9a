"""AReaL's asynchronous trainer in a separate environment, with this project's SGLang server on the CPU."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import yaml

from benchmarks.learning_results import Record
from benchmarks.peer import PeerTask, free_port, install, run_script
from benchmarks.servers import sglang_server

AREAL = "areal==1.0.4"
SCRIPT = Path(__file__).with_name("areal_grpo.py")


def train(task: PeerTask, work: Path) -> Record:
    """Train with AReaL, η = 2; raises ``PeerError`` if it cannot be installed or fails."""
    # The same torch on both sides. AReaL asks for an older one.
    torch = f"torch=={version('torch').partition('+')[0]}"
    python = install("areal-env", [AREAL], overrides=[torch])
    config, result = work / "server.yaml", work / "areal.json"
    config.write_text(yaml.safe_dump(_server_config(task)))
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(task).items()}
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with sglang_server(config, task.model, work / "server.log") as address:
        arguments = (json.dumps(settings), str(result), address)
        environment = {**ranks, "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        run_script(python, SCRIPT, *arguments, work=work, environment=environment)
    record = json.loads(result.read_text())
    ages = record["staleness"]
    return Record(record["seconds"], record["rewards"], staleness=statistics.fmean(ages[2:] or ages))


def _server_config(task: PeerTask) -> dict[str, object]:
    return {
        "experiment_name": "peer",
        "trial_name": "areal",
        "actor": {"path": str(task.model), "ppo_n_minibatches": 1},
        "train_dataset": {"path": str(task.data), "batch_size": 32},
        "sglang": {"dtype": "float32", "max_total_tokens": 16384},
    }
