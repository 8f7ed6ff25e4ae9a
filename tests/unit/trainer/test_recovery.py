"""Rollbacks on disk: interrupted anywhere, they are completed; damaged, they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_trainer.checkpoint import LOOP_FILE, LoopState, RunState, load_loop, newest_up_to, recovery_checkpoints
from areal_trainer.recovery import ROLLBACK_FILE, Rollback, begin_rollback, collapse_message, complete_rollback

ROLLBACK = Rollback(step=4, rollbacks=1, version_offset=5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 2, 4, 6 and 8."""
    for step in (2, 4, 6, 8):
        folder = tmp_path / "recover" / f"step{step}"
        folder.mkdir(parents=True)
        (folder / LOOP_FILE).write_text(LoopState(RunState(step=step, tokens=step), {"consumed": step}, {}).to_json())
    return tmp_path


def test_a_rollback_makes_its_checkpoint_the_newest_and_is_recorded_in_it(run: Path) -> None:
    begin_rollback(run, ROLLBACK)
    complete_rollback(run)
    assert [step for step, _ in recovery_checkpoints(run)] == [2, 4]
    loop = load_loop(run / "recover" / "step4")
    assert loop == LoopState(RunState(step=4, tokens=4, rollbacks=1, version_offset=5), {"consumed": 4}, {})
    assert loop.run.version == 9
    assert not (run / "recover" / ROLLBACK_FILE).exists()


def test_a_rollback_may_be_completed_twice(run: Path) -> None:
    for _ in range(2):
        begin_rollback(run, ROLLBACK)
        complete_rollback(run)
    assert load_loop(run / "recover" / "step4").run.rollbacks == 1


def test_without_a_rollback_nothing_changes(run: Path) -> None:
    complete_rollback(run)
    assert [step for step, _ in recovery_checkpoints(run)] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"step": 4}', json.dumps({"step": "../..", "rollbacks": 1, "version_offset": 1}), "[" * 5000],
)
def test_a_damaged_rollback_is_refused_and_removes_nothing(run: Path, content: str) -> None:
    file = run / "recover" / ROLLBACK_FILE
    file.write_text(content)
    with pytest.raises(ValueError, match=r"rollback\.json cannot be read: .*; delete it to resume"):
        complete_rollback(run)
    assert [step for step, _ in recovery_checkpoints(run)] == [2, 4, 6, 8]


def test_a_rollback_to_a_checkpoint_that_is_gone_removes_nothing(run: Path) -> None:
    begin_rollback(run, Rollback(step=3, rollbacks=1, version_offset=5))
    with pytest.raises(ValueError, match=r"step3.* cannot be read"):
        complete_rollback(run)
    assert [step for step, _ in recovery_checkpoints(run)] == [2, 4, 6, 8]


def test_the_newest_checkpoint_up_to_a_step(run: Path) -> None:
    checkpoints = recovery_checkpoints(run)
    assert newest_up_to(checkpoints, 7) == (6, run / "recover" / "step6")
    assert newest_up_to(checkpoints, 1) is None


def test_the_message_of_a_collapse_names_what_to_change() -> None:
    message = collapse_message(RunState(step=9, reward_last=0.01, reward_best=0.8, rollbacks=2))
    assert message.startswith("the policy collapsed: after step 9 the reward is 0.01, below a quarter of its best, 0.8")
    assert "rolled back 2 times" in message
    assert "actor.optimizer.lr" in message
