"""Small runs of the trainer against a scripted server, for recovery tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from support.scripted_server import ScriptedServer
from support.tiny_policy import save_tiny_model

STEPS = 12
CLOCKS = (  # statistics that depend on timing
    "rollout/episode_s/",
    *(
        "time",
        "seconds_per_step",
        "tokens_per_second",
        "timeperf/",
        "rollout/wait_",
        "rollout/servers_idle",
        "rollout/tokens_per_second",
    ),
    "rollout/servers_",
)


def configuration(where: Path, *, asynchronous: bool) -> dict[str, Any]:
    model = save_tiny_model(where / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    rows = [{"messages": [{"role": "user", "content": f"w{n} w{n + 1}"}], "answer": str(n)} for n in range(24)]
    data = where / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "experiment_name": "kills",
        "total_train_epochs": 4,
        "total_train_steps": STEPS,
        "async_training": asynchronous,
        "gconfig": {"n_samples": 2, "max_new_tokens": 6},
        "rollout": {"max_head_offpolicyness": 2, "setup_timeout": 30},
        "actor": {
            "path": str(model),
            "dtype": "float32",
            "ppo_n_minibatches": 2,
            "use_decoupled_loss": True,
            "behav_imp_weight_cap": None,
            "max_logprob_diff": 1e6,
            "optimizer": {"lr": 0.01, "lr_scheduler_type": "cosine"},
        },
        "sglang": {"dtype": "float32"},
        "train_dataset": {"path": str(data), "batch_size": 4, "instruction": ""},
        "reward": {"path": "support.rewards:token_parity", "processes": 0},
        "recover": {"freq_steps": 2},
    }


def environment(config: dict[str, Any], where: Path, server: ScriptedServer) -> dict[str, str]:
    where.mkdir()
    file = where / "config.yaml"
    file.write_text(yaml.safe_dump(config | {"cluster": {"fileroot": str(where)}}))
    return {
        "AREAL_CONFIG": str(file),
        "AREAL_RUN_DIR": str(where / "run"),
        "AREAL_LLM_SERVER_ADDRS": server.address,
        "AREAL_DEVICE": "cpu",
    }


def learned(where: Path) -> list[dict[str, object]]:
    """Statistics of every step, without those that depend on timing."""
    lines = [json.loads(line) for line in (where / "run" / "stats.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(CLOCKS)} for line in lines]


def torchrun(env: dict[str, str], *, ranks: int, log: Path) -> int:
    """Run a trainer with that many ranks; return its exit status."""
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with log.open("a") as output:
        return subprocess.run(
            [*command, "-m", "areal_trainer.train"],
            env={**os.environ, **env, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            timeout=240,
            check=False,
        ).returncode
