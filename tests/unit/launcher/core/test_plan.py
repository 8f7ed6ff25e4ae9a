"""The processes of a run, before any is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.core.place import HOST, PORT
from areal_launcher.core.plan import plan_run, refuse_cluster_references
from support.local_runs import load


def test_every_process_gets_its_gpus_and_the_address_that_its_place_chooses(
    experiment_path: Path, tmp_path: Path
) -> None:
    experiment = load(
        experiment_path,
        *("servers.device=cuda", "servers.replicas=2", "servers.tensorParallel=2"),
        *("trainer.device=cuda", "trainer.processesPerNode=4", "trainer.nodes=1"),
    )
    plan = plan_run(experiment, run=tmp_path, key_file=tmp_path / "api-key", threads=1)
    assert [(server.name, server.gpus, server.needs_port) for server in plan.servers] == [
        ("server-0", 2, True),
        ("server-1", 2, True),
    ]
    placed = plan.servers[1].at("10.0.0.7", 4321)
    assert placed.argv[placed.argv.index("--port") + 1] == "4321"
    assert not {HOST, PORT} & set(placed.argv)
    assert [node.gpus for node in plan.trainer] == [4]
    assert plan.trainer[0].with_servers(["a:1", "b:2"]).env["AREAL_LLM_SERVER_ADDRS"] == "a:1,b:2"


def test_trainer_nodes_meet_at_the_first(experiment_path: Path, tmp_path: Path) -> None:
    experiment = load(experiment_path, "trainer.nodes=2", "trainer.processesPerNode=2")
    first, second = plan_run(experiment, run=tmp_path, key_file=tmp_path / "key", threads=1).trainer
    assert (first.name, second.name) == ("trainer", "trainer-1")
    argv = second.at("n1", 99).argv
    assert argv[argv.index("--node-rank") : argv.index("--node-rank") + 6] == [
        *("--node-rank", "1"),
        *("--master-addr", "n1", "--master-port", "99"),
    ]


def test_a_number_of_servers_that_changes_by_itself_is_refused(experiment_path: Path, tmp_path: Path) -> None:
    experiment = load(experiment_path, "servers.replicas=1", "servers.autoscale={min: 1, max: 2}")
    with pytest.raises(ValueError, match=r"servers.autoscale is set; only Kubernetes.*--on kubernetes"):
        plan_run(experiment, run=tmp_path, key_file=tmp_path / "key", threads=1)


def test_pools_of_servers_are_refused(experiment_path: Path, tmp_path: Path) -> None:
    experiment = load(experiment_path, "servers.pools=[{name: big}]")
    with pytest.raises(ValueError, match=r"servers.pools has big; only Kubernetes.*--on kubernetes"):
        plan_run(experiment, run=tmp_path, key_file=tmp_path / "key", threads=1)


def test_a_suspended_experiment_is_refused(experiment_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"runPolicy.suspend is true.*set it to false"):
        plan_run(load(experiment_path, "runPolicy.suspend=true"), run=tmp_path, key_file=tmp_path / "key", threads=1)


def test_the_run_policy_is_part_of_the_plan(experiment_path: Path, tmp_path: Path) -> None:
    policy = (
        "runPolicy.backoffLimit=7",
        "runPolicy.activeDeadlineSeconds=90",
        "runPolicy.preRunningDeadlineSeconds=30",
    )
    plan = plan_run(load(experiment_path, *policy), run=tmp_path, key_file=tmp_path / "key", threads=1)
    assert (plan.backoff_limit, plan.active_deadline_s, plan.pre_running_deadline_s) == (7, 90, 30)
    without = load(experiment_path, *policy, "config.recover.mode=disabled")
    assert plan_run(without, run=tmp_path, key_file=tmp_path / "key", threads=1).backoff_limit == 0


def test_addresses_that_the_user_sets_are_kept(experiment_path: Path, tmp_path: Path) -> None:
    experiment = load(experiment_path, "trainer.env=[{name: AREAL_LLM_SERVER_ADDRS, value: 'proxy:1'}]")
    (node,) = plan_run(experiment, run=tmp_path, key_file=tmp_path / "key", threads=1).trainer
    assert node.with_servers(["a:1"]).env["AREAL_LLM_SERVER_ADDRS"] == "proxy:1"


@pytest.mark.parametrize("entry", [{"name": "A=B", "value": "x"}, {"name": "A", "value": "x\0y"}])
def test_a_variable_that_no_process_can_have_is_refused(entry: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"trainer.env: 'A.*' has a name with = or a zero byte"):
        refuse_cluster_references("trainer.env", [entry])
