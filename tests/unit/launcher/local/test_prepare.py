"""Commands, devices and environment of a local run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from areal_api.commands import Command
from areal_launcher.local.prepare import check_ports, compute_threads, environment, plan_run, refuse_cluster_references
from support.local_runs import load


def test_gpus_go_to_the_servers_first(experiment_path: Path, tmp_path: Path) -> None:
    experiment = load(
        experiment_path,
        *("servers.device=cuda", "servers.replicas=2", "servers.tensorParallel=2"),
        *("trainer.device=cuda", "trainer.processesPerNode=2"),
    )
    gpus = ["0", "1", "4", "5", "6", "7"]
    plan = plan_run(
        experiment, run=tmp_path, ports=[1, 2], master_port=3, gpus=gpus, cores=2, key_file=tmp_path / "api-key"
    )
    assert [server.env["CUDA_VISIBLE_DEVICES"] for server in plan.servers] == ["0,1", "4,5"]
    assert plan.trainer.env["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert plan.trainer.env["AREAL_LLM_SERVER_ADDRS"] == "127.0.0.1:1,127.0.0.1:2"


def test_cores_are_shared_by_concurrent_processes(experiment_path: Path) -> None:
    two = ("servers.replicas=2", "trainer.processesPerNode=2")
    synchronous = load(experiment_path, *two, "config.rollout.max_head_offpolicyness=0").spec
    asynchronous = load(experiment_path, *two, "config.rollout.max_head_offpolicyness=2").spec
    assert compute_threads(asynchronous, 8) == 2
    assert compute_threads(synchronous, 8) == 4
    assert compute_threads(asynchronous, 2) == 1


def test_a_command_inherits_the_launchers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONUTF8", "0")
    assert environment(Command([], {"A": "b"})) == {**os.environ, "A": "b"}


def test_ports_past_the_last_one_are_refused() -> None:
    check_ports(None, 100)
    check_ports(65535, 1)
    with pytest.raises(ValueError, match=r"needs ports up to 65536, more than 65535; choose at most 65534"):
        check_ports(65535, 2)


@pytest.mark.parametrize("entry", [{"name": "A=B", "value": "x"}, {"name": "A", "value": "x\0y"}])
def test_a_variable_that_no_process_can_have_is_refused(entry: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"trainer.env: 'A.*' has a name with = or a zero byte"):
        refuse_cluster_references("trainer.env", [entry])
