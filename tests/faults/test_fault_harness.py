"""The fault schedule and the invariant checks detect what they should."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from faults import schedule
from faults.answers import Answer, Span
from faults.injected import Injected, inject_all
from faults.invariants import BATCH, SAMPLES, check_logprobs, check_samples, check_versions
from faults.report import Report
from faults.schedule import Fault
from faults.steps import Files, LocalFiles, Steps, Watched
from faults.watched import BASE, TINY


def test_a_schedule_depends_only_on_its_seed() -> None:
    assert schedule.schedule(7, 20) == schedule.schedule(7, 20)
    assert schedule.schedule(7, 20) != schedule.schedule(8, 20)


def test_a_full_schedule_contains_each_kind_as_often_as_the_deck() -> None:
    assert Counter(fault.kind for fault in schedule.schedule(3, schedule.PER_RUN)) == schedule.DECK


def test_other_kinds_replace_one_that_cannot_be_injected() -> None:
    faults = schedule.schedule(3, schedule.PER_RUN, without=["full disk"])
    assert len(faults) == schedule.PER_RUN
    assert all(fault.kind != "full disk" for fault in faults)


class QuickRun(Watched):
    """A run of ten steps, one per tick."""

    total = 10

    def __init__(self) -> None:
        self.steps = Steps(lambda: Files(b"", []))

    def tick(self) -> None:
        self.steps.last = min(self.total, self.steps.last + 1)
        self.steps.advanced += 1

    def console(self) -> str:
        return ""

    def fault_survived(self) -> None: ...


def test_faults_without_enough_steps_left_are_returned_for_another_run() -> None:
    planned = [Fault("kill server", 1, 0.0, 0.5, 1.0, 1, "") for _ in range(8)]
    injected: list[Injected] = []
    report = Report("faults", schedule.DECK, ())
    left = inject_all(QuickRun(), planned, lambda one: None, injected=injected, report=report, reserve=4)
    # Each fault takes two steps: one before it and one that shows that it was survived.
    assert [one.step for one in injected] == [1, 3, 5]
    assert len(left) == 5


def write_steps(run: Path, steps: list[int], checkpoint: int) -> None:
    (run / "stats.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    (run / f"recover/step{checkpoint}").mkdir(parents=True, exist_ok=True)


def test_a_run_may_go_back_to_its_checkpoint_but_not_past_it(tmp_path: Path) -> None:
    steps = Steps(LocalFiles(tmp_path))
    write_steps(tmp_path, [1, 2, 3, 4, 5], checkpoint=3)
    steps.poll()
    write_steps(tmp_path, [1, 2, 3], checkpoint=3)
    steps.poll()
    write_steps(tmp_path, [1, 2, 3, 4], checkpoint=3)
    steps.poll()
    assert (steps.last, steps.advanced) == (4, 6)
    write_steps(tmp_path, [1, 2], checkpoint=3)
    with pytest.raises(AssertionError, match="past checkpoint 3"):
        steps.poll()


def test_a_duplicated_step_is_detected(tmp_path: Path) -> None:
    write_steps(tmp_path, [1, 2, 2], checkpoint=0)
    with pytest.raises(AssertionError, match=r"\[1, 2, 2\]"):
        Steps(LocalFiles(tmp_path)).poll()


def batches() -> dict[int, list[dict[str, object]]]:
    return {
        step: [
            {"prompt": f"<|user|> {step} {row} <|assistant|>", "head_version": max(step - 2, 0), "tail_version": step}
            for row in range(BATCH)
            for _ in range(SAMPLES)
        ]
        for step in range(schedule.STEPS)
    }


ROWS = [json.dumps({"question": f"{step} {row}"}) for step in range(schedule.STEPS) for row in range(BATCH)]


def test_a_sample_over_the_staleness_bound_is_detected() -> None:
    samples = batches()
    check_samples(samples, ROWS)
    samples[9][0]["head_version"] = 6
    with pytest.raises(AssertionError, match="step 9 trained a sample of v6"):
        check_samples(samples, ROWS)


def test_a_sample_ending_with_weights_newer_than_its_training_step_is_detected() -> None:
    samples = batches()
    samples[9][0]["tail_version"] = 10
    with pytest.raises(AssertionError, match="step 9 trained a sample that ends with v10"):
        check_samples(samples, ROWS)


def test_a_row_trained_twice_is_detected() -> None:
    samples = batches()
    samples[9] = [{**sample, "head_version": 9, "tail_version": 9} for sample in samples[3]]
    with pytest.raises(AssertionError, match="16 samples of 1 rows"):
        check_samples(samples, ROWS)


def answer(version: str) -> Answer:
    ids = tuple(range(20, 30))
    return Answer(0, ids, (31, 32, 33), (-1.0, -1.0, -1.0), (Span(version, 0, 3),), True, {version: [BASE]})


def test_a_sample_recorded_under_another_version_than_the_server_reported_is_detected() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY / "model")
    prompt = "<|user|> How many coins? <|assistant|>"
    ids = tuple(tokenizer.encode(prompt, add_special_tokens=False))
    recorded = Answer(0, ids, (31, 32), (-1.0, -1.0), (Span("v4", 0, 1), Span("v5", 1, 2)), True, {})
    sample = {"prompt": prompt, "completion": tokenizer.decode([31, 32], skip_special_tokens=True)}
    check_versions({5: [sample | {"head_version": 4, "tail_version": 5}]}, [recorded])
    with pytest.raises(AssertionError, match="as made by v5"):
        check_versions({5: [sample | {"head_version": 5, "tail_version": 5}]}, [recorded])


def test_an_answer_from_other_weights_than_the_server_reported_is_detected(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="server-0 answered as v0 with other weights"):
        check_logprobs([answer("v0")], tmp_path)
