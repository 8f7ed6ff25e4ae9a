"""What starts a server and the trainer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from areal_api.commands import server_command, trainer_command
from areal_api.experiment import GRPOExperiment
from hack.testbed.experiment_case import Case


def experiment(**spec: object) -> GRPOExperiment:
    data = Case("", {f"spec.{key}": value for key, value in spec.items()}).experiment()
    return GRPOExperiment.model_validate(data)


def options(argv: list[str]) -> dict[str, str]:
    return {name: value for name, value in pairwise(argv) if name.startswith("--")}


def test_a_server_is_told_where_to_listen_and_what_to_load() -> None:
    servers = {"tensorParallel": 2, "args": {"page_size": 4}, "device": "cpu", "env": [{"name": "A", "value": "1"}]}
    command = server_command(
        experiment(servers=servers, trainer={"device": "cpu"}),
        3,
        host="127.0.0.1",
        port=4000,
        config_file=Path("run/config.yaml"),
        api_key_file=Path("key"),
        threads=2,
        python="python",
    )
    assert command.argv[:3] == ["python", "-m", "areal_server.launch"]
    given = options(command.argv)
    assert json.loads(given.pop("--args")) == {"page_size": 4}
    assert given == {
        "--config": "run/config.yaml",
        "--device": "cpu",
        "--host": "127.0.0.1",
        "--port": "4000",
        "--index": "3",
        "--model-path": "model",
        "--tensor-parallel": "2",
        "--api-key-file": "key",
    }
    assert command.env == {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2", "A": "1"}


def test_a_server_may_load_another_model_than_the_trainer() -> None:
    command = server_command(
        experiment(**{"config.sglang": {"model_path": "quantised"}}),
        0,
        host="h",
        port=1,
        config_file=Path("c"),
        api_key_file=None,
        gpus=[2, 3],
    )
    assert options(command.argv)["--model-path"] == "quantised"
    assert "--api-key-file" not in command.argv
    assert command.env["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_the_trainer_is_told_everything_by_its_environment() -> None:
    command = trainer_command(
        experiment(trainer={"device": "cpu", "processesPerNode": 2}, servers={"device": "cpu"}),
        run_dir=Path("runs/e/t"),
        server_addrs=["a:1", "b:2"],
        master_port=7,
        api_key_file=Path("key"),
        python="python",
    )
    assert command.argv == [
        "python",
        "-m",
        "torch.distributed.run",
        "--max-restarts",
        "0",
        "--nnodes",
        "1",
        "--nproc-per-node",
        "2",
        "--node-rank",
        "0",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        "7",
        "-m",
        "areal_trainer.train",
    ]
    assert command.env == {
        "AREAL_LLM_SERVER_ADDRS": "a:1,b:2",
        "AREAL_CONFIG": "runs/e/t/config.yaml",
        "AREAL_RUN_DIR": "runs/e/t",
        "AREAL_DEVICE": "cpu",
        "AREAL_API_KEY_FILE": "key",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize(
    ("script", "end"), [("examples/gsm8k/train.py", ["examples/gsm8k/train.py"]), ("my.train", ["-m", "my.train"])]
)
def test_a_script_is_a_path_or_a_module(script: str, end: list[str]) -> None:
    command = trainer_command(experiment(trainer={"script": script}), run_dir=Path("r"), server_addrs=[], master_port=1)
    assert command.argv[-len(end) :] == end


def test_threads_are_left_alone_beside_a_gpu() -> None:
    command = trainer_command(experiment(), run_dir=Path("r"), server_addrs=[], master_port=1)
    assert "OMP_NUM_THREADS" not in command.env


def test_the_environment_of_the_experiment_wins_and_references_are_left_to_the_pod() -> None:
    env = [
        {"name": "OMP_NUM_THREADS", "value": "4"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    trainer = {"device": "cpu", "env": env}
    command = trainer_command(
        experiment(trainer=trainer, servers={"device": "cpu"}), run_dir=Path("r"), server_addrs=[], master_port=1
    )
    assert command.env["OMP_NUM_THREADS"] == "4"
    assert "SECRET" not in command.env


def test_on_cuda_both_ends_have_the_same_nccl_settings_and_the_trainer_expandable_segments() -> None:
    def commands(**spec: object) -> tuple[dict[str, str], dict[str, str]]:
        place = {"config_file": Path("c"), "api_key_file": None}
        server = server_command(experiment(**spec), 0, host="h", port=1, **place)
        trainer = trainer_command(experiment(**spec), run_dir=Path("r"), server_addrs=["a:1"], master_port=7)
        return server.env, trainer.env

    server, trainer = commands()
    for name in ("NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE"):
        assert server[name] == trainer[name] == "0"
    assert trainer["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_ALLOC_CONF" not in server
    own = [{"name": "PYTORCH_ALLOC_CONF", "value": "max_split_size_mb:128"}]
    assert commands(trainer={"env": own})[1]["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:128"
    for env in commands(servers={"device": "cpu"}, trainer={"device": "cpu"}):
        assert not any(name.startswith(("NCCL_", "PYTORCH_")) for name in env)
