"""A run that moves to another cluster through a bucket of a real S3 server, with the real trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from areal_api import names
from areal_api.bucket import BucketSpec
from hack.testbed.s3_server import S3Server
from support.recovery_runs import STEPS, configuration, environment, learned, torchrun
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY


def test_a_stopped_run_continues_from_the_bucket_in_an_empty_directory(tmp_path: Path) -> None:
    store = S3Server(tmp_path / "s3")
    store.create_bucket("team")
    store.start()
    try:
        config = configuration(tmp_path, asynchronous=False)
        spec = BucketSpec.model_validate({"url": "s3://team/runs", "endpointUrl": store.url, "region": "us-east-1"})
        bucket = {names.BUCKET: spec.model_dump_json(by_alias=True), **store.environ}
        first, second = tmp_path / "first", tmp_path / "second"
        with ScriptedServer(Script(vocab_size=VOCABULARY, token_s=0.002)) as server:
            stop_after_step(environment(config, first, server) | bucket, first, step=5)
        with ScriptedServer(Script(vocab_size=VOCABULARY, token_s=0.002)) as server:
            env = environment(config, second, server) | bucket
            assert torchrun(env, ranks=1, log=second / "log") == 0, (second / "log").read_text()[-3000:]
    finally:
        store.stop()
    steps = [line["step"] for line in learned(second)]
    assert steps == list(range(1, STEPS + 1))
    done = len(learned(first))
    assert 5 <= done < STEPS
    assert learned(second)[:done] == learned(first)
    assert "restored recover/step" in (second / "log").read_text()
    kept = [path.name for path in (tmp_path / "s3" / "buckets" / "team" / "runs" / "kills").glob("*/recover/step*")]
    assert f"step{STEPS}" in kept
    summary = next((tmp_path / "s3" / "buckets" / "team" / "runs" / "kills").glob("*/summary.json"))
    assert json.loads(summary.read_text())["outcome"] == "succeeded"


def stop_after_step(env: dict[str, str], where: Path, *, step: int) -> None:
    """Run the trainer, and ask it to stop once ``step`` steps are in its statistics."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    with (where / "log").open("w") as output:
        process = subprocess.Popen(
            [*command, "-m", "areal_trainer.train"],
            env={**os.environ, **env, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    stats, deadline = where / "run" / "stats.jsonl", time.monotonic() + 240
    while not stats.exists() or len(stats.read_text().splitlines()) < step:
        assert process.poll() is None, (where / "log").read_text()[-3000:]
        assert time.monotonic() < deadline, "the trainer is too slow"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
