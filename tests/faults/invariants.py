"""Invariants that hold after a run with any injected faults. Violations raise ``AssertionError``."""

# T tokens of one sequence, V vocabulary.

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from faults.answers import Answer, Span, recorded_answers
from faults.schedule import STEPS
from faults.watched import BASE, GONE, TINY, WatchedRun
from support.rollout_files import Sample, read_samples

BATCH, SAMPLES, STALENESS = 32, 8, 2  # of the tiny experiment
USER, ASSISTANT = "<|user|> ", " <|assistant|>"  # around a question
LEARNED = 0.9
# Server and trainer differ only by rounding (8e-6 measured). Weights one version older differ by 1e-2 or more.
LOGPROB_TOLERANCE = 1e-3
CHECKED_ANSWERS = 4  # per version and server

Versions = tuple[int, int]  # of the first and the last token


def check_run(run: WatchedRun) -> None:
    """Check all invariants."""
    check_files(run.steps.lines, run.run)
    answers = list(recorded_answers(run))
    check_versions(dumped(run.run), answers)
    check_logprobs(answers, run.kept)


def check_files(lines: Sequence[dict[str, Any]], run: Path, *, steps: int = STEPS) -> None:
    """Check what a run directory alone shows. ``lines`` are its statistics."""
    check_statistics(lines, steps)
    check_outcome(run, steps)
    check_samples(dumped(run), (TINY / "data" / "train.jsonl").read_text().splitlines(), steps)


def check_statistics(lines: Sequence[dict[str, Any]], steps: int) -> None:
    """Every step once, no sample over the staleness bound, every update applied."""
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for line in lines:
        assert line["staleness/max"] <= STALENESS, (
            f"step {line['step']} trained a sample of staleness {line['staleness/max']}"
        )
        assert line["grpo_actor/update_successful"] == 1.0, f"step {line['step']} applied no update"
        difference = line.get("grpo_actor/rollout_logprob_diff_current/max", 0.0)
        assert difference < LOGPROB_TOLERANCE, f"step {line['step']}: servers and trainer differ by {difference}"
    reward = lines[-1]["eval-rollout/reward"]
    assert reward >= LEARNED, f"the held-out reward is {reward} after {steps} steps"


def check_outcome(run: Path, steps: int) -> None:
    """The summary reports a complete run."""
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["outcome"], summary["steps"]) == ("succeeded", steps), f"summary.json: {summary}"


def dumped(run: Path) -> dict[int, list[Sample]]:
    """Samples trained in each step, keyed by the weight version before the step."""
    files = read_samples(run, ["version", "outcome", "prompt", "completion", "head_version", "tail_version"])
    return {rows[0]["version"]: rows for rows in files.values()}


def check_samples(samples: dict[int, list[Sample]], rows: Iterable[str], steps: int = STEPS) -> None:
    """Complete batches, no sample too old, no row of the epoch in two batches."""
    assert sorted(samples) == list(range(steps)), f"dumps exist for the steps {sorted(samples)}"
    trained: Counter[str] = Counter()
    for step, batch in samples.items():
        assert len(batch) == BATCH * SAMPLES, f"step {step} trained {len(batch)} samples"
        for sample in batch:
            lag = step - sample["head_version"]
            assert 0 <= lag <= STALENESS, f"step {step} trained a sample of v{sample['head_version']}"
            last = sample["tail_version"]
            assert sample["head_version"] <= last <= step, f"step {step} trained a sample that ends with v{last}"
            trained[sample["prompt"]] += 1
    questions = Counter(json.loads(row)["question"] for row in rows)
    for prompt, count in trained.items():
        there = questions[prompt.removeprefix(USER).removesuffix(ASSISTANT)]
        assert count <= SAMPLES * there, f"{count} samples of {there} rows were trained: {prompt!r}"


def check_versions(samples: dict[int, list[Sample]], answers: Iterable[Answer]) -> None:
    """Every trained sample was answered by a server under the recorded versions."""
    tokenizer = AutoTokenizer.from_pretrained(TINY / "model")
    reported = _reported_versions(answers, tokenizer.backend_tokenizer)
    for step, batch in samples.items():
        for sample in batch:
            prompt_ids = tuple(tokenizer.encode(sample["prompt"], add_special_tokens=False))
            found = reported.get((prompt_ids, sample["completion"]), set())
            versions = (sample["head_version"], sample["tail_version"])
            assert versions in found, (
                f"step {step} trained {sample['completion']!r} as made by v{versions[0]} … v{versions[1]}; "
                f"servers answered it under {sorted(found)}"
            )


def _reported_versions(answers: Iterable[Answer], decoder: Any) -> dict[tuple[tuple[int, ...], str], set[Versions]]:
    """Map (prompt, completion) to the versions of its first and last token as reported by servers."""
    reported: dict[tuple[tuple[int, ...], str], set[Versions]] = {}
    begun: dict[tuple[int, ...], tuple[int, int]] = {}  # tokens so far → length of the prompt, first version
    for answer in answers:
        if not answer.output_ids:
            continue
        versions = [_number(span.version) for span in answer.spans]
        prompt_len, first = begun.get(answer.prompt_ids, (len(answer.prompt_ids), versions[0]))
        whole = answer.prompt_ids + answer.output_ids
        if answer.finished:
            text = decoder.decode(list(whole[prompt_len:]), skip_special_tokens=True)
            reported.setdefault((whole[:prompt_len], text), set()).add((first, versions[-1]))
        else:
            begun[whole] = (prompt_len, first)
    return reported


def _number(version: str) -> int:
    return int(version[1:]) if version[1:].isdigit() else -1  # "default": the server has just restarted


def check_logprobs(answers: Iterable[Answer], kept: Path) -> None:
    """Servers held the weights that they reported: their log-probs match the copy they were asked to load."""
    choose = random.Random(0)
    by_weights: dict[tuple[int, str, tuple[str, ...]], list[tuple[Answer, Span]]] = {}
    for answer in answers:
        for span in answer.spans:
            copies = tuple(answer.weights.get(span.version, ()))
            if copies and GONE not in copies and span.end > span.start:
                by_weights.setdefault((answer.server, span.version, copies), []).append((answer, span))
    model = AutoModelForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for (server, version, copies), made in by_weights.items():
        for answer, span in choose.sample(made, min(CHECKED_ANSWERS, len(made))):
            difference = min(_logprob_difference(model, base, kept, copy, answer, span) for copy in copies)
            assert difference < LOGPROB_TOLERANCE, (
                f"server-{server} answered as {version} with other weights: log-probs differ by {difference}"
            )
    assert len({version for _, version, _ in by_weights}) >= STEPS // 2, "too few versions were sampled to check"


@torch.no_grad()
def _logprob_difference(
    model: Any, base: dict[str, torch.Tensor], kept: Path, copy: str, answer: Answer, span: Span
) -> float:
    """Largest difference between a server's log-probs of a span and those computed from the weights."""
    weights = base if copy == BASE else load_file(kept / f"{copy}.safetensors")
    absent = model.load_state_dict(weights, strict=False)
    assert not absent.unexpected_keys
    assert set(absent.missing_keys) <= {"lm_head.weight"}  # tied to the embedding
    tokens_T = torch.tensor(answer.prompt_ids + answer.output_ids)
    logprobs_TV = model(tokens_T[None, :-1]).logits[0].log_softmax(-1)
    logprobs_T = logprobs_TV.gather(-1, tokens_T[1:, None])[-len(answer.output_ids) :, 0]
    reported_T = torch.tensor(answer.logprobs)
    return float((logprobs_T - reported_T)[span.start : span.end].abs().max())
