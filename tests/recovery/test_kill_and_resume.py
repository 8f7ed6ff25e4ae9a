"""A synchronous run that is killed repeatedly ends bit-equal to an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.forked_trainer import ForkedTrainer, Kill
from support.recovery_runs import STEPS, configuration, environment, learned
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY

# Functions that write, rename or remove files, train a step, or update a server, and about how often two steps call
# them, so that the kill happens before the run ends.
POINTS = {
    "os.fsync": 12,
    "os.fdatasync": 2,
    "pathlib.Path.rename": 4,
    "shutil.rmtree": 4,
    "areal_trainer.recovery_writer.save_file": 2,
    "torch.distributed.checkpoint.save": 1,
    "areal_trainer.weights.disk.save_file": 2,
    "areal_trainer.train.train_step": 2,
    "areal_trainer.model.policy.Policy.update": 2,
    "areal_trainer.servers.control.ServerControl.load_from_disk": 2,
}


@pytest.fixture(scope="module")
def trainer() -> Iterator[ForkedTrainer]:
    with ForkedTrainer() as forked:
        yield forked


def run_with_kills(trainer: ForkedTrainer, env: dict[str, str], log: Path, kills: list[Kill]) -> int:
    """Run until the trainer is not killed; return the number of kills."""
    killed_count = 0
    for kill in kills:
        status = trainer.run(env, kill, log=log)
        assert status in (0, -9), log.read_text()[-4000:]
        if status == 0:
            return killed_count
        killed_count += 1
    assert trainer.run(env, log=log) == 0, log.read_text()[-4000:]
    return killed_count


def test_a_synchronous_run_killed_at_many_points_is_bit_equal_to_an_undisturbed_one(
    trainer: ForkedTrainer, tmp_path: Path
) -> None:
    config = configuration(tmp_path, asynchronous=False)
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"SEED={seed}")
    choose = random.Random(seed)
    kills = [Kill(function, choose.randint(1, calls)) for function, calls in POINTS.items()]
    choose.shuffle(kills)
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        undisturbed = environment(config, tmp_path / "undisturbed", server)
        assert trainer.run(undisturbed, log=tmp_path / "undisturbed.log") == 0, (
            tmp_path / "undisturbed.log"
        ).read_text()[-4000:]
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        killed = environment(config, tmp_path / "killed", server)
        killed_count = run_with_kills(trainer, killed, tmp_path / "killed.log", kills)
    assert killed_count >= len(POINTS) // 2
    assert learned(tmp_path / "killed") == learned(tmp_path / "undisturbed")
    assert [line["step"] for line in learned(tmp_path / "killed")] == list(range(1, STEPS + 1))
    files = [tmp_path / run / "run/weights" / f"v{STEPS}" / "model.safetensors" for run in ("undisturbed", "killed")]
    undisturbed_weights, killed_weights = map(load_file, files)
    assert all(undisturbed_weights[name].equal(killed_weights[name]) for name in undisturbed_weights)


def test_an_asynchronous_run_killed_at_many_points_neither_repeats_nor_loses_a_step(
    trainer: ForkedTrainer, tmp_path: Path
) -> None:
    config = configuration(tmp_path, asynchronous=True)
    choose = random.Random(7)
    kills = [Kill(function, choose.randint(1, calls)) for function, calls in list(POINTS.items())[:5]]
    with ScriptedServer(Script(vocab_size=VOCABULARY, token_s=0.002)) as server:
        env = environment(config, tmp_path / "killed", server)
        assert run_with_kills(trainer, env, tmp_path / "killed.log", kills) >= 2
    lines = learned(tmp_path / "killed")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert max(float(str(line["staleness/max"])) for line in lines) <= 2


@pytest.mark.parametrize(
    "moment",
    [
        Kill(
            "areal_trainer.rollout.workflow.RLVRWorkflow.arun_episode", 14, signal.SIGTERM
        ),  # rank 0 waits for rollouts
        Kill("areal_trainer.model.policy.Policy.update", 4, signal.SIGTERM),
        Kill("areal_trainer.recovery_writer.replace_directory", 1, signal.SIGTERM),
    ],
    ids=["waiting", "training", "writing a checkpoint"],
)
def test_a_terminated_run_writes_a_checkpoint_and_resumes_bit_equal(
    trainer: ForkedTrainer, tmp_path: Path, moment: Kill
) -> None:
    config = configuration(tmp_path, asynchronous=False) | {"total_train_steps": 6, "recover": {"freq_steps": 3}}
    with ScriptedServer(Script(vocab_size=VOCABULARY, latency_s=0.05)) as server:
        undisturbed, ended = (environment(config, tmp_path / name, server) for name in ("undisturbed", "ended"))
        log = tmp_path / "log"
        assert trainer.run(undisturbed, log=log) == 0, log.read_text()[-4000:]
        assert trainer.run(ended, moment, log=log) == 143, log.read_text()[-4000:]
        done = len(learned(tmp_path / "ended"))
        assert 3 <= done <= 5
        assert (tmp_path / f"ended/run/recover/step{done}").is_dir()
        assert json.loads((tmp_path / "ended/run/summary.json").read_text())["outcome"] == "stopped"
        assert trainer.run(ended, log=log) == 0, log.read_text()[-4000:]
    assert learned(tmp_path / "ended") == learned(tmp_path / "undisturbed")


@pytest.mark.parametrize(("evaluation", "committed"), [(1, None), (2, 2), (3, 5)], ids=["first", "in between", "last"])
def test_a_run_that_is_terminated_during_an_evaluation_repeats_it_and_resumes_bit_equal(
    trainer: ForkedTrainer, tmp_path: Path, evaluation: int, committed: int | None
) -> None:
    config = configuration(tmp_path, asynchronous=False)
    config |= {"total_train_steps": 6, "recover": {"freq_steps": 100}, "evaluator": {"freq_steps": 3}}
    config |= {"valid_dataset": {**config["train_dataset"], "limit": 4}}
    moment = Kill("areal_trainer.evaluation.evaluator.Evaluator.evaluate", evaluation, signal.SIGTERM)
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        undisturbed, ended = (environment(config, tmp_path / name, server) for name in ("undisturbed", "ended"))
        log = tmp_path / "log"
        assert trainer.run(undisturbed, log=log) == 0, log.read_text()[-4000:]
        assert trainer.run(ended, moment, log=log) == 143, log.read_text()[-4000:]
        assert json.loads((tmp_path / "ended/run/summary.json").read_text())["outcome"] == "stopped"
        if committed is not None:
            assert len(learned(tmp_path / "ended")) == committed
            assert (tmp_path / f"ended/run/recover/step{committed + 1}").is_dir()
        if committed == 2:  # it has repeated the evaluation, and is killed before the next checkpoint
            assert trainer.run(ended, Kill("areal_trainer.train.train_step", 1), log=log) == -9, log.read_text()[-4000:]
            assert len(learned(tmp_path / "ended")) == 3
        assert trainer.run(ended, log=log) == 0, log.read_text()[-4000:]
    assert learned(tmp_path / "ended") == learned(tmp_path / "undisturbed")
