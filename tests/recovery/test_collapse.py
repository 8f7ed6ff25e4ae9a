"""A run whose policy collapses stops, is rolled back, or at least does not succeed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from areal_trainer.health import WINDOW
from support.forked_trainer import WAIT_FOR_CHECKPOINTS, ForkedTrainer, Kill
from support.recovery_runs import configuration, environment, learned, torchrun
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY

PROMPTS = 32  # of a step; the detection of a collapse then takes three steps
SAMPLES = 2 * PROMPTS
FOREVER = 10**9


@pytest.fixture(scope="module")
def trainer() -> Iterator[ForkedTrainer]:
    with ForkedTrainer() as forked:
        yield forked


def collapsing(where: Path, on_collapse: str, *, asynchronous: bool = False, **actor: Any) -> dict[str, Any]:
    """Eight steps whose rewards the environment determines."""
    config = configuration(where, asynchronous=asynchronous)
    data = where / "prompts.jsonl"
    data.write_text(Path(config["train_dataset"]["path"]).read_text() * 4)
    config |= {
        "total_train_epochs": 20,
        "total_train_steps": 8,
        "train_dataset": {"path": str(data), "batch_size": PROMPTS, "instruction": ""},
        "recover": {"freq_steps": 1, "keep": 6},
        "reward": {"path": "support.rewards:one_then_zero_then_one", "processes": 0},
    }
    config["actor"] |= {"on_collapse": on_collapse, "optimizer": {"lr": 0.01}, **actor}
    return config


def zeros(first_step: int, last_step: int) -> dict[str, str]:
    """Environment in which the samples of these steps have reward 0, and all others reward 1."""
    return {"REWARD_ZEROS": f"{(first_step - 1) * SAMPLES + 1},{last_step * SAMPLES}", WAIT_FOR_CHECKPOINTS: "1"}


def assert_same_weights(published: Path, checkpoint: Path) -> None:
    """Asserts that the published weights are those of a recovery checkpoint."""
    expected = {
        name: tensor
        for file in (checkpoint / "state").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    tensors = load_file(published / "model.safetensors")
    assert tensors
    assert all(tensor.equal(expected[f"model.{name}"]) for name, tensor in tensors.items())


def summary(where: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((where / "run" / "summary.json").read_text())
    return content


@pytest.mark.parametrize(("on_collapse", "steps"), [("stop", 6), ("warn", 8)])
def test_a_collapsed_run_fails_and_is_not_retried(
    trainer: ForkedTrainer, tmp_path: Path, on_collapse: str, steps: int
) -> None:
    log, runs = tmp_path / "log", tmp_path / "runs"
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        env = environment(collapsing(tmp_path, on_collapse), runs, server) | zeros(WINDOW + 1, FOREVER)
        assert trainer.run(env, log=log) == 2, log.read_text()[-4000:]
    assert (summary(runs)["outcome"], summary(runs)["steps"]) == ("collapsed", steps)
    assert "the policy collapsed" in log.read_text()
    assert [line["health/collapsed"] for line in learned(runs)] == [0.0] * 5 + [1.0] * (steps - 5)


# The reward falls in step 4. The mean of steps 3 to 5 is the first warning, and step 6 the collapse, so the newest
# checkpoint on which nothing of it depends is that of step 2, version 2. Its weights become version 7.
def test_a_rollback_repeats_the_steps_since_the_precursor_with_half_the_learning_rate(
    trainer: ForkedTrainer, tmp_path: Path
) -> None:
    log, runs, calm = tmp_path / "log", tmp_path / "runs", tmp_path / "calm"
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        env = environment(collapsing(tmp_path, "rollback"), runs, server)
        assert trainer.run(env | zeros(4, 6), log=log) == 0, log.read_text()[-4000:]
        undisturbed = environment(collapsing(tmp_path, "rollback"), calm, server)
        assert trainer.run(undisturbed | zeros(99, 99), log=log) == 0, log.read_text()[-4000:]
    lines, expected = learned(runs), learned(calm)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["version"] for line in lines] == [1, 2, *range(8, 14)]
    assert [line["grpo_actor/lr"] for line in lines] == pytest.approx([0.01] * 2 + [0.005] * 6)
    assert [line["health/rollbacks"] for line in lines] == [0, 0, 1, 1, 1, 1, 1, 1]
    for name in ("n_tokens", "grpo_actor/prompt_len/avg"):  # the same prompts in the same order
        assert [line[name] for line in lines] == [line[name] for line in expected], name
    assert (summary(runs)["outcome"], summary(runs)["rollbacks"]) == ("succeeded", 1)
    assert "the policy collapsed after step 6: rolled back to step 2 as version 7" in log.read_text()


@pytest.mark.parametrize(
    "moment",
    [
        Kill("areal_trainer.recovery.complete_rollback", 2),
        Kill("areal_trainer.recovery.replace_file", 2),
        Kill("areal_trainer.recovery.load_state", 1),
        Kill("areal_trainer.recovery._restore_rollout", 1),
    ],
    ids=["begun", "removed checkpoints", "restoring", "published"],
)
def test_a_rollback_that_is_killed_is_completed_by_the_resume(
    trainer: ForkedTrainer, tmp_path: Path, moment: Kill
) -> None:
    log, runs = tmp_path / "log", tmp_path / "runs"
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        env = environment(collapsing(tmp_path, "rollback"), runs, server)
        assert trainer.run(env | zeros(4, 6), moment, log=log) == -9, log.read_text()[-4000:]
        if moment.function.endswith("_restore_rollout"):
            assert_same_weights(runs / "run" / "weights" / "v7", runs / "run" / "recover" / "step2")
        assert trainer.run(env | zeros(99, 99), log=log) == 0, log.read_text()[-4000:]
    lines = learned(runs)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["version"] for line in lines] == [1, 2, *range(8, 14)]
    assert [line["health/rollbacks"] for line in lines] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert summary(runs)["outcome"] == "succeeded"


def test_an_asynchronous_run_is_rolled_back_within_its_staleness_bound(trainer: ForkedTrainer, tmp_path: Path) -> None:
    log, runs = tmp_path / "log", tmp_path / "runs"
    with ScriptedServer(Script(vocab_size=VOCABULARY, token_s=0.002)) as server:
        env = environment(collapsing(tmp_path, "rollback", asynchronous=True), runs, server)
        assert trainer.run(env | zeros(4, 8), log=log) == 0, log.read_text()[-4000:]
    lines = learned(runs)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert max(float(str(line["staleness/max"])) for line in lines) <= 2
    assert summary(runs)["rollbacks"] == 1


def test_two_ranks_roll_back_together_and_stop_after_the_last_rollback(tmp_path: Path) -> None:
    log, runs = tmp_path / "log", tmp_path / "runs"
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        config = collapsing(tmp_path, "rollback", max_rollbacks=1)
        env = environment(config | {"total_train_steps": 30}, runs, server) | zeros(WINDOW + 1, FOREVER)
        # The rewards stay 0, below the best of the checkpoint, so the policy has collapsed again after three steps.
        env["REWARD_ZEROS"] = f"{WINDOW * SAMPLES * 2 + 1},{FOREVER}"
        assert torchrun(env, ranks=2, log=log) != 0
    ended = summary(runs)
    assert (ended["outcome"], ended["rollbacks"]) == ("collapsed", 1), log.read_text()[-4000:]
    assert "The run was rolled back 1 times before" in ended["error"]
    assert "rolled back to step" in log.read_text()
