"""``spec.code`` in the trainer's pods."""

from __future__ import annotations

import json
import subprocess

from areal_api.code import CodeSpec
from support.operator_manifests import made, pods
from support.operator_objects import condition, decide, job, manifest, state

GIT = {"url": "https://example.org/team/code.git", "commit": "a" * 40}
ARCHIVE = {"configMap": "case-code-0123456789", "sha256": "b" * 64}


def test_without_code_nothing_is_added() -> None:
    (server, trainer) = pods()
    assert [container["name"] for container in trainer["initContainers"]] == ["prepare"]
    assert not [volume for volume in trainer["volumes"] if "code" in volume["name"]]
    assert "initContainers" not in server


def test_a_commit_is_fetched_by_an_init_container_of_the_trainer_alone() -> None:
    (server, trainer) = pods(code={"git": GIT}, trainer={"env": [{"name": "AREAL_GIT_USERNAME", "value": "me"}]})
    (_, fetch) = trainer["initContainers"]
    python, option, module, spec, *rest = fetch["command"]
    assert (python, option, module) == ("python3", "-m", "areal_api.user_code.prepare")
    assert CodeSpec.model_validate(json.loads(spec)) == CodeSpec.model_validate({"git": GIT})
    assert rest == ["/opt/areal-code", "--layers", "/opt/areal/runs/.packages"]
    assert {"name": "AREAL_GIT_USERNAME", "value": "me"} in fetch["env"]
    assert fetch["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": "areal-code", "emptyDir": {"sizeLimit": "1Gi"}} in trainer["volumes"]
    (used,) = [mount for mount in trainer["containers"][0]["volumeMounts"] if mount["name"] == "areal-code"]
    assert used == {"name": "areal-code", "mountPath": "/opt/areal-code", "readOnly": True}
    assert "areal-code" not in str(server)


def test_the_code_is_first_on_the_path_and_the_image_keeps_its_own() -> None:
    (_, trainer) = pods(code={"git": GIT, "requirements": ["a"]}, trainer={"script": "train.py"})
    command = trainer["containers"][0]["command"]
    assert command[-1] == "/opt/areal-code/source/train.py"
    shown = [*command[:4], "/bin/sh", "-c", "echo $PYTHONPATH"]
    done = subprocess.run(shown, env={"PYTHONPATH": "/opt/areal"}, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "/opt/areal-code/source:/opt/areal-code/packages:/opt/areal"


def test_a_packed_directory_is_mounted_where_it_is_unpacked_and_nowhere_else() -> None:
    (_, trainer) = pods(code={"archive": ARCHIVE})
    (_, fetch) = trainer["initContainers"]
    assert fetch["command"][-2:] == ["--archive", "/etc/areal/code/code.tar.gz"]
    assert {"name": "areal-code-archive", "configMap": {"name": ARCHIVE["configMap"]}} in trainer["volumes"]
    mounted = [mount["name"] for mount in trainer["containers"][0]["volumeMounts"]]
    assert "areal-code-archive" not in mounted


def test_a_large_archive_is_downloaded_from_the_bucket_before_it_is_unpacked() -> None:
    archive = {"sha256": ARCHIVE["sha256"]}
    (_, trainer) = pods(code={"archive": archive}, storage__bucket={"url": "s3://team"})
    (_, check, download, fetch) = trainer["initContainers"]
    assert [check["name"], download["name"], fetch["name"]] == ["bucket", "download-code", "code"]
    file = "/opt/areal-code/code.tar.gz"
    assert download["command"] == ["python3", "-m", "areal_trainer.storage.code", "get", file, archive["sha256"]]
    assert fetch["command"][-2:] == ["--archive", file]
    assert {"name": "areal-code", "mountPath": "/opt/areal-code"} in download["volumeMounts"]
    assert "areal-code-archive" not in str(trainer)
    assert "no storage.bucket that could hold it" in decide(state(code={"archive": archive})).status.message


def test_the_job_says_what_it_runs() -> None:
    job = made("Job", code={"archive": ARCHIVE})
    assert job["metadata"]["annotations"]["areal.dev/code"] == f"sha256:{ARCHIVE['sha256']}"


def test_a_directory_is_refused_in_the_status_before_anything_is_made() -> None:
    plan = decide(state(code={"directory": "./code"}))
    assert plan.objects == ()
    assert plan.status.message.startswith("code.directory is ./code, a directory that the cluster does not have")
    assert "grpo run --on kubernetes" in condition(plan.status, "Accepted").message


def test_the_status_shows_the_code_of_the_attempt_and_not_a_later_edit() -> None:
    first = decide(state(code={"git": GIT}))
    assert first.status.code == f"commit {GIT['commit']}"
    job_of_first = {**job(1), "metadata": {**job(1)["metadata"], **manifest(first, "Job")["metadata"]}}
    edited = state(first.status, code={"git": {**GIT, "commit": "c" * 40}})
    assert decide(edited, job_of_first).status.code == f"commit {GIT['commit']}"
