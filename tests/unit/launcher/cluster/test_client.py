"""The parts of ``grpo --on kubernetes`` that need no cluster."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from areal_api.experiment import GRPOExperiment
from areal_api.status import ExperimentStatus
from areal_launcher import cli, run_files
from areal_launcher.cluster.checks import check_files, check_target, in_pods, is_fresh
from areal_launcher.cluster.client import Cluster, Place, Unreachable, chosen_context, kubeconfig
from areal_launcher.cluster.fetch_results import unpacked
from areal_launcher.cluster.follow import phase_text
from areal_launcher.cluster.in_pod import print_files
from areal_launcher.cluster.logs import as_on_a_terminal
from areal_launcher.cluster.run import manifest
from areal_launcher.display import closing_rows, seconds_a_step
from areal_launcher.run_files import Stats
from support.experiment_cases import Case


def experiment(**changes: Any) -> GRPOExperiment:
    return GRPOExperiment.model_validate(
        Case("", {f"spec.{key}": value for key, value in changes.items()}).experiment()
    )


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "stats.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "summary.json").write_text("{}")
    return tmp_path


def read(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", "-c", inspect.getsource(print_files), str(folder), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_reader_prints_the_files_that_there_are(volume: Path) -> None:
    printed = read(volume, "config.yaml", "stats.jsonl", "summary.json").stdout
    log = f"a warning of the image\n{printed}more\n"
    assert unpacked(print_files.decoded(log)) == {"stats.jsonl": b'{"step": 1}\n', "summary.json": b"{}"}


def test_a_log_that_is_cut_or_changed_is_not_taken_for_the_files(volume: Path) -> None:
    log = read(volume, "stats.jsonl").stdout
    for broken, problem in (
        (log[:-80], "not whole"),
        (log.replace("A", "B", 1), "damaged"),
        ("", "holds no files"),
    ):
        with pytest.raises(ValueError, match=problem):
            print_files.decoded(broken)


def test_files_that_do_not_fit_into_a_log_are_refused_with_both_sizes(
    volume: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(print_files, "MAX_ENCODED_BYTES", 100)
    assert print_files.main([str(volume), "stats.jsonl"]) == print_files.TOO_LARGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "bytes, more than 100" in printed.err
    monkeypatch.setattr(print_files, "MAX_PLAIN_BYTES", 5)
    assert print_files.main([str(volume), "stats.jsonl"]) == print_files.TOO_LARGE


def test_only_files_that_were_asked_for_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "config.yaml").write_text("y")
    assert unpacked(print_files.archive(str(tmp_path), ["secret", "config.yaml"])) == {"config.yaml": b"y"}


def state(phase: str, reason: str = "", message: str = "", **more: Any) -> ExperimentStatus:
    servers = {"type": "ServersReady", "status": "False" if reason else "True", "reason": reason, "message": message}
    trainer = {"type": "TrainerRunning", "status": "False", "reason": "Starting", "message": "0 of 1 pods run"}
    conditions = [servers, *([trainer] if phase == "Starting" else [])]
    return ExperimentStatus.model_validate({"phase": phase, "conditions": conditions, **more})


def test_the_phase_says_what_is_wrong_and_else_what_is_waited_for() -> None:
    assert phase_text(state("Starting")) == "starting: 0 of 1 pods run"
    text = phase_text(state("Starting", "Unschedulable", "0/2 nodes are available"))
    assert text == "waiting: ServersReady: Unschedulable: 0/2 nodes are available"
    assert phase_text(state("Running")) == "starting the trainer, first step"
    assert phase_text(state("Running", step=3)) == "training"
    text = phase_text(state("Running", "CrashLoop", "server-0 ended", step=3))
    assert text == "training; ServersReady: CrashLoop: server-0 ended"
    assert phase_text(ExperimentStatus(phase="Suspended", message="nothing runs")) == "suspended: nothing runs"


def test_the_pace_is_right_where_steps_were_not_seen(tmp_path: Path) -> None:
    stats = Stats(tmp_path / "none")
    for step, time_s in ((2, 10.0), (5, 16.0), (8, 22.0)):
        stats.add({"step": step, "time": time_s})
    assert seconds_a_step(stats) == pytest.approx(2.0)


def test_what_was_written_is_applied_without_defaults_or_the_name_twice() -> None:
    body = manifest(experiment(**{"servers.replicas": 2}), None)
    assert body["spec"]["servers"] == {"replicas": 2}
    assert "experiment_name" not in body["spec"]["config"]
    assert set(body["spec"]) == {"config", "servers"}


def test_files_of_this_machine_are_told_from_those_in_images_and_on_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("")
    mounted = experiment(**{"trainer.volumeMounts": [{"name": "data", "mountPath": "/data"}]}).spec
    assert in_pods(mounted, "/data/mine.py")
    assert in_pods(mounted, "examples/tiny/model")
    assert in_pods(mounted, "runs/tiny/trial0/checkpoints")
    assert not in_pods(mounted, "examples/tiny/../mine.py")
    assert not in_pods(mounted, "/database/mine.py")
    assert in_pods(experiment(**{"trainer.image": "mine:1"}).spec, "mine.py")
    check_files(experiment().spec)
    with pytest.raises(ValueError, match=r"train_dataset\.path: mine\.jsonl is a file of this machine"):
        check_files(experiment(**{"config.train_dataset.path": "mine.jsonl"}).spec)


def test_results_are_not_mixed_with_those_of_another_run(tmp_path: Path) -> None:
    check_target(tmp_path / "new", namespace="a", name="exp")
    run_files.write_whole(run_files.cluster_file(tmp_path), json.dumps({"namespace": "a", "name": "exp"}))
    check_target(tmp_path, namespace="a", name="exp")
    with pytest.raises(ValueError, match="holds the results of exp of namespace a"):
        check_target(tmp_path, namespace="b", name="exp")


def test_a_lease_counts_while_it_is_held() -> None:
    held = {"holderIdentity": "x", "leaseDurationSeconds": 15, "renewTime": "1970-01-01T00:01:00.000000Z"}
    assert is_fresh({"spec": held}, 70.0)
    assert not is_fresh({"spec": held}, 80.0)
    assert not is_fresh({"spec": {**held, "holderIdentity": ""}}, 70.0)
    assert not is_fresh({}, 70.0)


def test_the_context_gives_the_namespace(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": "https://localhost:1"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [
                    {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team"}},
                    {"name": "two", "context": {"cluster": "c", "user": "u"}},
                ],
                "current-context": "one",
            }
        )
    )
    assert chosen_context(Place(str(path))) == ("one", "team")
    assert chosen_context(Place(str(path), context="two")) == ("two", "default")
    with pytest.raises(ValueError, match="there is no context three in the kubeconfig; give --context one of one, two"):
        chosen_context(Place(str(path), context="three"))


def kubeconfig_of(port: int, folder: Path) -> str:
    path = folder / "config"
    cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {"token": "t"}}]
    config = {"clusters": [{"name": "c", "cluster": cluster}], "users": users, "contexts": [context]}
    path.write_text(json.dumps({**config, "current-context": "c"}))
    return str(path)


def test_a_server_that_hangs_up_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)  # all of it: closing then is an end, no reset
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        cluster = Cluster.connect(Place(kubeconfig_of(listener.getsockname()[1], tmp_path)))
        with pytest.raises(Unreachable, match=r"the API server https://127\.0\.0\.1:[0-9]+ does not answer: .*EOF"):
            cluster.get("Pod", "default", "x")


def test_the_kubeconfig_is_looked_for_as_kubectl_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/a:/b")
    assert kubeconfig(Place()) == "/a:/b"
    assert kubeconfig(Place("/c")) == "/c"
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", "/home/me")
    assert kubeconfig(Place()) == "/home/me/.kube/config"


def test_the_closing_table_says_where_the_checkpoints_are(tmp_path: Path) -> None:
    where = {"namespace": "team", "name": "exp", "claim": "exp-run", "directory": "/opt/areal/runs/exp/trial0"}
    run_files.write_whole(run_files.cluster_file(tmp_path), json.dumps(where))
    text = "on the volume claim exp-run of namespace team, below /opt/areal/runs/exp/trial0"
    assert dict(closing_rows(tmp_path))["model"] == text


def test_options_of_a_cluster_are_refused_for_a_run_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option in (["--detach"], ["--results", "x"], ["--context", "x"]):
        assert cli.main(["run", "experiment.yaml", *option]) == 2
        assert f"{option[0]} is for runs in a cluster; add --on kubernetes" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "seen"), [("step 1", "step 1"), ("10%\r50%\r100%", "100%"), ("100%\r", "100%"), ("", "")]
)
def test_a_progress_bar_in_a_log_is_one_line_as_it_was_seen_last(line: str, seen: str) -> None:
    assert as_on_a_terminal(line) == seen
