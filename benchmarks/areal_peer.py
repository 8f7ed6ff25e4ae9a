"""AReaL's asynchronous trainer in a separate environment, with this project's SGLang server on the CPU."""

from __future__ import annotations

import json
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.learning_results import Record
from benchmarks.peer import PeerTask, free_port, install, run_script
from benchmarks.servers import sglang_server

AREAL = "areal==1.0.4"
BATCH, SAMPLES, NEW_TOKENS = 32, 8, 20
MAX_TOKENS = 512  # of a microbatch: attention on a CPU masks all pairs of its tokens, so larger ones are slower
SCRIPT = Path(__file__).with_name("areal_grpo.py")


def train(task: PeerTask, work: Path) -> Record:
    """Train with AReaL, η = 2; raises ``PeerError`` if it cannot be installed or fails."""
    # The same torch on both sides. AReaL asks for an older one.
    torch = f"torch=={version('torch').partition('+')[0]}"
    python = install("areal-env", [AREAL], overrides=[torch])
    config, result = work / "server.yaml", work / "areal.json"
    config.write_text(yaml.safe_dump(_server_config(task)))
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with sglang_server(config, task.model, work / "server.log") as address:
        arguments = (json.dumps(configuration(task, work)), str(result), address)
        environment = {**ranks, "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        run_script(python, SCRIPT, *arguments, work=work, environment=environment)
    record = json.loads(result.read_text())
    ages = record["staleness"]
    return Record(record["seconds"], record["rewards"], staleness=statistics.fmean(ages[2:] or ages))


def configuration(task: PeerTask, folder: Path) -> dict[str, Any]:
    """AReaL's recipe for asynchronous training, with the settings of the benchmark ``learning``."""
    model, data = str(task.model), str(task.data)
    named = {"experiment_name": "peer", "trial_name": "areal"}
    placed = {**named, "fileroot": str(folder)}
    optimizer = {"type": "adam", "lr": task.learning_rate, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.99}
    optimizer |= {"lr_scheduler_type": "constant", "warmup_steps_proportion": 0.0, "gradient_clipping": 1.0}
    actor = {
        **named,
        "backend": "fsdp:d1",
        "path": model,
        "dtype": "float32",
        "attn_impl": "sdpa",
        "gradient_checkpointing": False,
        "mb_spec": {"max_tokens_per_mb": MAX_TOKENS},
        "weight_update_mode": "disk",
        "optimizer": optimizer,
        "ppo_n_minibatches": 1,
        "eps_clip": task.epsilon,
        "kl_ctl": 0.0,
        "reward_norm": {"mean_level": "group", "std_level": "group", "group_size": SAMPLES},
        "adv_norm": None,
        "recompute_logprob": True,
        "use_decoupled_loss": True,
        "rejection_sampling": {"metric": "ratio", "upper": 5.0},
    }
    rollout = {
        **placed,
        "backend": "sglang:d1",
        "max_concurrent_rollouts": 64,
        "consumer_batch_size": BATCH,
        "max_head_offpolicyness": 2,
    }
    return {
        **named,
        "seed": task.seed,
        "total_train_epochs": 10,
        "total_train_steps": task.steps,
        "tokenizer_path": model,
        "cluster": {
            "fileroot": str(folder),
            "n_gpus_per_node": 0,
            "name_resolve": {"type": "nfs", "nfs_record_root": str(folder / "names")},
        },
        "gconfig": {"n_samples": SAMPLES, "max_new_tokens": NEW_TOKENS, "temperature": 1.0},
        "rollout": rollout,
        "actor": actor,
        "train_dataset": {"path": data, "type": "rl", "batch_size": BATCH, "shuffle": True},
        "saver": placed,
        "recover": {**placed, "mode": "disabled"},
        "evaluator": placed,
        "stats_logger": {**placed, "wandb": {"mode": "disabled"}},
    }


def _server_config(task: PeerTask) -> dict[str, object]:
    return {
        "experiment_name": "peer",
        "trial_name": "areal",
        "actor": {"path": str(task.model), "ppo_n_minibatches": 1},
        "train_dataset": {"path": str(task.data), "batch_size": BATCH},
        "sglang": {"dtype": "float32", "max_total_tokens": 16384},
    }
