"""A run that moves to another cluster through a bucket of a real S3 server, with the real trainer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from areal_api import names
from areal_api.bucket import BucketSpec
from hack.testbed.s3_server import S3Server
from support.forked_trainer import ForkedTrainer
from support.recovery_runs import configuration, environment, learned
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY

FIRST, ALL = 4, 7  # steps; a recovery checkpoint every second one and at the end


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3Server]:
    store = S3Server(tmp_path / "s3")
    store.create_bucket("team")
    store.start()
    yield store
    store.stop()


def test_a_run_continues_from_the_bucket_in_an_empty_directory(store: S3Server, tmp_path: Path) -> None:
    config = configuration(tmp_path, asynchronous=False)
    spec = BucketSpec.model_validate({"url": "s3://team/runs", "endpointUrl": store.url, "region": "us-east-1"})
    bucket = {names.BUCKET: spec.model_dump_json(by_alias=True), **store.environ}
    with ForkedTrainer() as trainer:
        for where, steps in ((tmp_path / "here", FIRST), (tmp_path / "there", ALL)):
            with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
                env = environment(config | {"total_train_steps": steps}, where, server) | bucket
                assert trainer.run(env, log=where / "log") == 0, (where / "log").read_text()[-3000:]
    here, there = learned(tmp_path / "here"), learned(tmp_path / "there")
    assert [line["step"] for line in there] == list(range(1, ALL + 1))
    assert [line["task_reward/avg"] for line in there[:FIRST]] == [line["task_reward/avg"] for line in here]
    assert f"restored recover/step{FIRST} from s3://team/runs/kills/trial0" in (tmp_path / "there" / "log").read_text()
    copy = tmp_path / "s3" / "buckets" / "team" / "runs" / "kills" / "trial0"
    assert [path.name for path in (copy / "recover").glob("step*.json")] == [f"step{ALL}.complete.json"]
    assert json.loads((copy / "summary.json").read_text())["outcome"] == "succeeded"
    assert len((copy / "stats.jsonl").read_text().splitlines()) == ALL
    assert list((copy / "checkpoints").glob("*.complete.json"))
