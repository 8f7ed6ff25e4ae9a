"""The samples of a step, problem by problem, from the files that ``rollout.dump_to_file`` writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from areal_api import names
from areal_launcher.bounded_files import number, opened, parse_json

FILE = re.compile(r"step(\d{1,15})\.jsonl")
MAX_STEPS = 1_000_000
MAX_FILE_BYTES = 256 * 2**20  # read of one step
MAX_LINE_BYTES = 8 * 2**20
MAX_TEXT = 20_000  # characters of a prompt or completion that are shown
MAX_GROUPS = 100  # problems on a page
MAX_SAMPLES = 64  # of a problem on a page


@dataclass(frozen=True)
class Filter:
    """Which samples are shown."""

    text: str = ""  # in the prompt or the completion, whatever the case
    low: float = float("-inf")  # rewards
    high: float = float("inf")
    shortest: int = 0  # length of the completion in tokens

    def admits(self, sample: Sample) -> bool:
        """Whether a sample is shown."""
        return (
            self.low <= sample.reward <= self.high
            and sample.length >= self.shortest
            and (not self.text or self.text.lower() in f"{sample.prompt}\n{sample.completion}".lower())
        )


@dataclass(frozen=True)
class Sample:
    """A sample as the page shows it."""

    task: str
    prompt: str
    completion: str
    reward: float
    length: int  # tokens of the completion, with those of tools
    versions: tuple[int, int]  # weight versions of its first and last token


def steps(run: Path) -> list[int]:
    """Steps whose samples were written, in order."""
    try:
        with os.scandir(names.rollouts_dir(run)) as files:
            found = (FILE.fullmatch(file.name) for _, file in zip(range(MAX_STEPS), files, strict=False))
            return sorted(int(match[1]) for match in found if match)
    except OSError:
        return []


def page(run: Path, step: int, chosen: Filter, *, offset: int) -> dict[str, Any]:
    """The problems of a step from the ``offset``-th on, those with samples that ``chosen`` admits.

    Raises ``FileNotFoundError`` and ``DamagedFileError`` if the step cannot be read.
    """
    groups: dict[tuple[str, str], list[Sample]] = {}
    counts = {"samples": 0, "damaged": 0}
    for sample in samples(names.rollouts_dir(run) / f"step{step}.jsonl"):
        if sample is None:
            counts["damaged"] += 1
            continue
        counts["samples"] += 1
        if chosen.admits(sample):
            groups.setdefault((sample.task, sample.prompt), []).append(sample)
    shown = list(groups.items())[offset : offset + MAX_GROUPS]
    return {
        **counts,
        "step": step,
        "admitted": sum(len(group) for group in groups.values()),
        "problems": len(groups),
        "offset": offset,
        "groups": [_group(task, prompt, group) for (task, prompt), group in shown],
    }


def samples(path: Path) -> Iterator[Sample | None]:
    """The samples in a file; None for a damaged line. Raises like ``bounded_files.opened``."""
    with opened(path) as file:
        left = MAX_FILE_BYTES
        while left > 0 and (text := file.readline(MAX_LINE_BYTES)):
            left -= len(text)
            if text.strip():
                yield _sample(text)


def _sample(text: bytes) -> Sample | None:
    try:
        content = parse_json(text)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    figures = [number(content.get(key)) for key in ("reward", "seqlen", "prompt_len", "head_version", "tail_version")]
    prompt, completion = content.get("prompt"), content.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str) or figures[0] is None:
        return None
    reward, length, prompt_length, head, tail = (0.0 if figure is None else figure for figure in figures)
    task = str(content.get("task_id", ""))[:200]
    return Sample(task, prompt, completion, reward, int(length - prompt_length), (int(head), int(tail)))


def _group(task: str, prompt: str, group: list[Sample]) -> dict[str, Any]:
    rewards = [sample.reward for sample in group]
    rest = ("completion", "reward", "length", "versions")
    shown = [{key: value for key, value in asdict(sample).items() if key in rest} for sample in group[:MAX_SAMPLES]]
    for sample in shown:
        sample["completion"] = _shortened(str(sample["completion"]))
    return {
        "task": task,
        "prompt": _shortened(prompt),
        "count": len(group),
        "reward": sum(rewards) / len(rewards),
        "samples": shown,
    }


def _shortened(text: str) -> str:
    left_out = len(text) - MAX_TEXT
    return text if left_out <= 0 else f"{text[:MAX_TEXT]}… ({left_out} more characters)"
