"""`grpo compare`: two evaluations, problem by problem."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table
from rich.text import Text

from areal_api import names
from areal_api.estimates import Estimate, estimate
from areal_api.evaluation_columns import EVALUATION_COLUMNS
from areal_api.rollout_columns import file_name, step_of
from areal_launcher.bounded_files import DamagedFileError, number
from areal_launcher.console import console_for
from areal_launcher.parquet_files import rows_of
from areal_launcher.terminal_text import printable_line

READ = ("set", "problem", "task_id", "reward", "prompt")
MAX_FILES = 1_000_000
MAX_LISTED = 10  # problems in each direction
MAX_PROMPT = 100  # characters of a prompt in the table


@dataclass(frozen=True)
class Problem:
    """A problem and its mean rewards in both evaluations."""

    key: str  # as in the column ``problem``
    name: str  # task_id and the start of the prompt
    first: float
    second: float

    @property
    def change(self) -> float:
        """By how much the second reward is above the first."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the problems of one set that both have. ``change`` is a paired estimate."""

    set: str
    first: Estimate
    second: Estimate
    change: Estimate
    better: list[Problem]  # the largest change first
    worse: list[Problem]
    equal: int
    only_first: int  # problems that the other evaluation lacks
    only_second: int


def compare(first: Path, second: Path, *, as_json: bool) -> int:
    """Print how the second evaluation differs from the first. Raises ``ValueError`` for what is not an evaluation."""
    files = evaluation_file(first), evaluation_file(second)
    found = comparisons(*(read(file) for file in files))
    if not found:
        raise ValueError(f"{files[0]} and {files[1]} have no problem in common; compare evaluations on the same data")
    if as_json:
        print(json.dumps({"first": str(files[0]), "second": str(files[1]), "sets": [asdict(one) for one in found]}))
        return 0
    console = console_for()
    for label, file in zip(("first", "second"), files, strict=True):
        console.print(Text(f"{label}: {printable_line(str(file))}"))
    console.print(summary(found))
    for one in found:
        for title, problems in (("better", one.better), ("worse", one.worse)):
            if problems:
                console.print(listing(f"{one.set}, {title}: {len(problems)}", problems))
    return 0


def evaluation_file(path: Path) -> Path:
    """The file itself, or the newest evaluation in a run directory or in the result of ``grpo eval``."""
    if not path.is_dir():
        return path
    directory = names.evaluations_dir(path)
    try:
        with os.scandir(directory) as entries:
            steps = [step_of(entry.name) for entry in itertools.islice(entries, MAX_FILES)]
    except OSError:
        steps = []
    known = [step for step in steps if step is not None]
    if not known:
        raise ValueError(
            f"{path} has no evaluation: {directory} has no step<N>.parquet; name a file, or a run with "
            "valid_dataset and evaluator.dump_to_file"
        )
    return directory / file_name(max(known))


Rewards = dict[tuple[str, str], tuple[str, list[float]]]  # by set and problem: its name and the rewards of its samples


def read(file: Path) -> Rewards:
    """The rewards of an evaluation that a user named. Raises ``ValueError`` if the file cannot be read."""
    try:
        return rewards_of(file)
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; name a run directory or a file of its evaluations/") from error
    except OSError as error:
        raise ValueError(str(error)) from error


def rewards_of(file: Path) -> Rewards:
    """The rewards of an evaluation. Raises ``FileNotFoundError``, ``DamagedFileError`` or another ``OSError``."""
    found: Rewards = {}
    for row in rows_of(file, EVALUATION_COLUMNS, read=READ):
        reward = number(row["reward"])
        if reward is None:
            raise DamagedFileError(f"{file} is damaged: a reward is {row['reward']}; delete it")
        name = ": ".join(filter(None, [row["task_id"], " ".join(row["prompt"][: 4 * MAX_PROMPT].split())]))
        found.setdefault((row["set"], row["problem"]), (name[:MAX_PROMPT], []))[1].append(reward)
    return found


def comparisons(first: Rewards, second: Rewards) -> list[Comparison]:
    """A comparison for each set with problems in common, in the order of the first evaluation."""
    sets = dict.fromkeys(name for name, _ in first)
    found = (_comparison(name, _of_set(first, name), _of_set(second, name)) for name in sets)
    return [one for one in found if one is not None]


def _of_set(rewards: Rewards, name: str) -> dict[str, tuple[str, float]]:
    """Name and mean reward of each problem of a set."""
    return {problem: (title, fmean(values)) for (of, problem), (title, values) in rewards.items() if of == name}


def _comparison(
    name: str, first: Mapping[str, tuple[str, float]], second: Mapping[str, tuple[str, float]]
) -> Comparison | None:
    both = [Problem(key, title, mean, second[key][1]) for key, (title, mean) in first.items() if key in second]
    if not both:
        return None
    ordered = sorted(both, key=lambda problem: problem.change)
    return Comparison(
        set=name,
        first=estimate([problem.first for problem in both]),
        second=estimate([problem.second for problem in both]),
        change=estimate([problem.change for problem in both]),
        better=[problem for problem in reversed(ordered) if problem.change > 0],
        worse=[problem for problem in ordered if problem.change < 0],
        equal=sum(problem.change == 0 for problem in both),
        only_first=len(first) - len(both),
        only_second=len(second) - len(both),
    )


def summary(found: Sequence[Comparison]) -> Table:
    """A row for each set."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("SET", "PROBLEMS", "FIRST", "SECOND", "CHANGE", "BETTER", "WORSE", "ONLY IN ONE"):
        table.add_column(column, no_wrap=True)
    for one in found:
        counts = len(one.better) + len(one.worse) + one.equal, len(one.better), len(one.worse)
        table.add_row(
            Text(printable_line(one.set)),
            str(counts[0]),
            f"{one.first.mean:.3f}",
            f"{one.second.mean:.3f}",
            _with_interval(one.change),
            str(counts[1]),
            str(counts[2]),
            f"{one.only_first} / {one.only_second}",
        )
    return table


def listing(title: str, problems: Sequence[Problem]) -> Table:
    """The problems that changed most."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title=title, title_justify="left")
    for column in ("FIRST", "SECOND", "PROBLEM"):
        table.add_column(column, no_wrap=column != "PROBLEM")
    for problem in problems[:MAX_LISTED]:
        table.add_row(f"{problem.first:.3f}", f"{problem.second:.3f}", Text(printable_line(problem.name)))
    if len(problems) > MAX_LISTED:
        table.add_row("…", "…", f"{len(problems) - MAX_LISTED} more; --json lists all")
    return table


def _with_interval(change: Estimate) -> str:
    return f"{change.mean:+.3f}" + ("" if change.half_width is None else f" ± {change.half_width:.3f}")
