"""Commands that start a server and the trainer: arguments and environment. Pure; used locally and in a cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from areal_api import names
from areal_api.code import PACKAGES, SOURCE, CodeSpec
from areal_api.experiment import ExperimentSpec, GRPOExperiment

# Both need memory that containers lack, and SGLang disables the former: the ends of a broadcast must agree.
NCCL_ENV = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}
# The sizes of a trainer's tensors change with every microbatch, which fragments fixed segments.
ALLOCATOR_ENV = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}

TORCHRUN_MODULE = "torch.distributed.run"
TRAIN_MODULE = "areal_trainer.train"
SERVER_MODULE = "areal_server.launch"
BUCKET_CODE_MODULE = "areal_trainer.storage.code"
CHECK_BUCKET_MODULE = "areal_trainer.storage.check"


# A path that is prefixed to the PYTHONPATH of the node, which this process does not know.
_WITH_CODE = 'PYTHONPATH="$0${PYTHONPATH:+:$PYTHONPATH}" exec "$@"'


@dataclass(frozen=True)
class CodePaths:
    """Where the trainer finds the code and the packages of ``spec.code``; None: there are none."""

    source: PurePath | None
    packages: PurePath | None

    @classmethod
    def below(cls, folder: PurePath, code: CodeSpec) -> CodePaths | None:
        """The paths in a folder that ``user_code.prepare`` has filled; None if the experiment has no code."""
        if not code.is_used:
            return None
        source = folder / SOURCE if code.has_source else None
        return cls(source, folder / PACKAGES if code.needs_packages else None)


@dataclass(frozen=True)
class Command:
    """A process: its arguments, and the variables to add to the environment."""

    argv: list[str]
    env: dict[str, str]


def server_command(
    experiment: GRPOExperiment,
    index: int | str,
    *,
    host: str,
    port: int | str,
    config_file: Path,
    api_key_file: Path | None,
    threads: int = 1,
    gpus: Sequence[int | str] | None = None,
    python: str | None = None,
    leaders: str | None = None,
    group_port: int = 0,
    seed_offset: int = 0,
) -> Command:
    """Server ``index`` (or a reference to the variable that contains it), listening on ``host:port``.

    With ``servers.nodesPerServer`` above 1 this is one node of a server: ``index`` counts the nodes of all servers,
    ``leaders`` is the host name of the one whose number replaces ``{}``, and at ``group_port`` of a server's first node
    its others meet.

    ``config_file`` is the resolved configuration, ``gpus`` the visible devices (None: unchanged), ``threads`` the
    compute threads on cpu, ``python`` the interpreter (None: this one). ``seed_offset`` and the server's number are
    added to the seed of the run.
    """
    servers, config = experiment.spec.servers, experiment.spec.config
    argv = [python or sys.executable, "-m", SERVER_MODULE, "--config", str(config_file), "--device", servers.device]
    argv += ["--host", host, "--port", str(port), "--index", str(index)]
    argv += ["--model-path", config.sglang.model_path or config.actor.path]
    argv += ["--tensor-parallel", str(servers.tensor_parallel)]
    if servers.nodes_per_server > 1:
        assert leaders is not None
        argv += ["--nodes", str(servers.nodes_per_server), "--leaders", leaders, "--group-port", str(group_port)]
    if seed_offset:
        argv += ["--seed-offset", str(seed_offset)]
    if servers.args:
        argv += ["--args", json.dumps(servers.args, sort_keys=True)]
    if api_key_file is not None:
        argv += ["--api-key-file", str(api_key_file)]
    return Command(argv, {**_device_env(servers.device, threads, gpus), **literal_env(servers.env)})


def trainer_command(
    experiment: GRPOExperiment,
    *,
    run_dir: Path,
    server_addrs: Sequence[str],
    master_port: int | str,
    master_addr: str = "127.0.0.1",
    node_rank: int = 0,
    api_key_file: Path | None = None,
    threads: int = 1,
    gpus: Sequence[int | str] | None = None,
    python: str | None = None,
    code: CodePaths | None = None,
) -> Command:
    """torchrun of one node's ranks. The script receives everything by its environment, nothing by arguments.

    ``server_addrs`` are ``host:port`` of all ``maxReplicas`` servers; ``threads`` the compute threads of a rank on cpu.
    """
    trainer = experiment.spec.trainer
    argv = [python or sys.executable, "-m", TORCHRUN_MODULE, "--max-restarts", "0"]
    argv += ["--nnodes", str(trainer.nodes), "--nproc-per-node", str(trainer.processes_per_node)]
    argv += ["--node-rank", str(node_rank), "--master-addr", master_addr, "--master-port", str(master_port)]
    argv += script_arguments(trainer.script, code)
    argv = with_code(argv, code)
    env = trainer_env(
        experiment,
        run_dir=run_dir,
        config_file=names.config_file(run_dir),
        server_addrs=server_addrs,
        api_key_file=api_key_file,
        threads=threads,
        gpus=gpus,
    )
    return Command(argv, env)


def trainer_env(
    experiment: GRPOExperiment,
    *,
    run_dir: Path,
    config_file: Path,
    server_addrs: Sequence[str],
    api_key_file: Path | None,
    threads: int = 1,
    gpus: Sequence[int | str] | None = None,
) -> dict[str, str]:
    """Environment variables of a rank, without torchrun's."""
    trainer = experiment.spec.trainer
    env = {
        names.SERVER_ADDRS: ",".join(server_addrs),
        names.CONFIG: str(config_file),
        names.RUN_DIR: str(run_dir),
        names.DEVICE: trainer.device,
    }
    if api_key_file is not None:
        env[names.API_KEY_FILE] = str(api_key_file)
    env |= bucket_env(experiment.spec)
    allocator = ALLOCATOR_ENV if trainer.device == "cuda" else {}
    return {**env, **allocator, **_device_env(trainer.device, threads, gpus), **literal_env(trainer.env)}


def bucket_env(spec: ExperimentSpec) -> dict[str, str]:
    """The variable that names the bucket of the run; empty without one."""
    bucket = spec.storage.bucket
    return {} if bucket is None else {names.BUCKET: bucket.model_dump_json(by_alias=True, exclude_defaults=True)}


def check_bucket_command(spec: ExperimentSpec, *, python: str) -> list[str] | None:
    """The program that checks the bucket before anything starts, in the trainer's environment; None without one."""
    config = spec.config
    command = [python, "-m", CHECK_BUCKET_MODULE, config.experiment_name, config.trial_name]
    return command if spec.storage.bucket is not None else None


def script_arguments(script: str | None, code: CodePaths | None = None) -> list[str]:
    """Torchrun's arguments for a script: a path ending in .py, relative to the code if any, or a module name."""
    if script is None:
        return ["-m", TRAIN_MODULE]
    if not script.endswith(".py"):
        return ["-m", script]
    return [script if code is None or code.source is None else str(code.source / script)]


def with_code(argv: list[str], code: CodePaths | None) -> list[str]:
    """The command with the code and its packages first on PYTHONPATH."""
    paths = [] if code is None else [str(path) for path in (code.source, code.packages) if path is not None]
    return ["/bin/sh", "-c", _WITH_CODE, ":".join(paths), *argv] if paths else argv


def literal_env(env: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Variables with a value; null is empty, as in a pod. Those with ``valueFrom`` are left to the pod."""
    values: dict[str, str] = {}
    for entry in env:
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"env: {dict(entry)} has no name; write {{name: …, value: …}}")
        if "value" in entry:
            values[name] = str(entry["value"] or "")
    return values


def _device_env(device: str, threads: int, gpus: Sequence[int | str] | None) -> dict[str, str]:
    env = {"PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        env["OMP_NUM_THREADS"] = str(threads)
    else:
        env |= NCCL_ENV
        if gpus is not None:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in gpus)
    return env
