"""A small model, and a real server for it that the launcher starts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from areal_api.commands import server_command
from areal_api.experiment import API_VERSION, KIND, GRPOExperiment
from areal_api.render import config_yaml
from areal_launcher.core.place import HOST, PORT, ProcessSpec
from areal_launcher.core.servers import ServerFleet, ServerLimits
from areal_launcher.errors import RunError
from areal_launcher.places.local.place import LocalPlace

TOKENIZER = Path(__file__).parents[2] / "examples/tiny/model"
STARTUP_S = 1800.0  # a first start compiles kernels
# Heads and widths that every kernel takes; multiples of 64, which SGLang does not pad on a CPU.
SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}


def save_model(folder: Path, dtype: torch.dtype) -> Path:
    """A random model with the tokenizer of examples/tiny."""
    torch.manual_seed(1)
    Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)).to(dtype).save_pretrained(folder)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def experiment_for(device: str, model: Path, folder: Path) -> GRPOExperiment:
    """An experiment whose only server serves ``model``."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    config = {
        "experiment_name": "gpu-smoke",
        "actor": {"path": str(model), "dtype": dtype, "ppo_n_minibatches": 1},
        "gconfig": {"max_new_tokens": 64},
        "sglang": {"dtype": dtype, "max_total_tokens": 16384},
        "train_dataset": {"path": "none.jsonl", "batch_size": 1},
        "cluster": {"fileroot": str(folder)},
    }
    spec = {"config": config, "servers": {"device": device}, "trainer": {"device": device}}
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "gpu-smoke"}, "spec": spec}
    return GRPOExperiment.model_validate(body)


@contextmanager
def running_server(device: str, model: Path, folder: Path, *, gpus: Sequence[str]) -> Iterator[str]:
    """The address of a server that is ready. Raises ``RunError`` with the end of its log if it does not start."""
    experiment = experiment_for(device, model, folder)
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.yaml"
    config_file.write_text(config_yaml(experiment.spec.config))
    command = server_command(experiment, 0, host=HOST, port=PORT, config_file=config_file, api_key_file=None, threads=1)
    spec = ProcessSpec("server", 0, command.argv, command.env, folder / "server.log", gpus=int(device == "cuda"))
    place = LocalPlace(gpus=gpus)
    try:
        fleet = ServerFleet(place, [spec], limits=ServerLimits(STARTUP_S, STARTUP_S), notify=lambda text: None)
        while fleet.ready == 0:  # ends with RunError after the time for the start
            fleet.tick()
            time.sleep(0.2)
        (address,) = fleet.addresses
        yield address
    except RunError as error:
        raise RunError("\n".join([str(error), *error.lines])) from error
    finally:
        place.close()
