"""Plots the statistics of a run into reward.png."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from areal_api import names, stat_names
from areal_launcher import run_files
from areal_launcher.run_files import Line
from areal_launcher.terminal_text import printable_line

MAX_PLOTTED = 1e30
Series = tuple[list[int], list[float]]


def series(lines: list[Line], name: str) -> Series:
    """Steps and values of a statistic, omitting steps without it or with a value that no axis can show."""
    points = [(int(line["step"]), run_files.value(line, name)) for line in lines]
    shown = [(step, value) for step, value in points if value is not None and abs(value) <= MAX_PLOTTED]
    return [step for step, _ in shown], [value for _, value in shown]


def smoothed(values: list[float], window: int) -> list[float]:
    """Running mean over the last ``window`` values."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def plot_run(run: Path) -> Path:
    """Plot reward, evaluation, completion length, entropy and staleness by step into reward.png; returns its path.

    Raises ``ValueError`` if the run has no finished step.
    """
    lines = run_files.read_stats(run).lines
    if not lines:
        raise ValueError(f"nothing to plot: {names.stats_file(run)} has no finished step")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    (reward, length), (entropy, staleness) = figure.subplots(2, 2, sharex=True)
    draw_reward(reward, lines)
    lengths = [
        (int(line["step"]), tokens) for line in lines if (tokens := run_files.completion_length(line)) is not None
    ]
    length.plot([step for step, _ in lengths], [mean for _, mean in lengths], color="tab:green")
    length.set(title="Completion length", ylabel="tokens (mean)")
    length.set_ylim(bottom=0)
    entropy.plot(*series(lines, stat_names.ENTROPY), color="tab:purple")
    entropy.set(title="Entropy of the policy", ylabel="nats per token", xlabel="step")
    draw_staleness(staleness, lines)
    for axes in (reward, length, entropy, staleness):
        axes.grid(alpha=0.3)
        axes.margins(x=0.02)
    figure.suptitle(printable_line(f"{run.parent.name} / {run.name}"), parse_math=False)
    path = names.reward_plot(run)
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    run_files.write_atomic(path, image.getvalue())
    return path


def draw_reward(axes: Any, lines: list[Line]) -> None:
    """Plot the training batches' reward, its running mean and the evaluations."""
    steps, rewards = series(lines, stat_names.TASK_REWARD)
    window = max(1, len(steps) // 10)
    axes.plot(steps, rewards, color="tab:blue", alpha=0.35 if window > 1 else 1.0, label="training batch")
    if window > 1:
        axes.plot(steps, smoothed(rewards, window), color="tab:blue", label=f"training, mean of {window} steps")
    evaluations = [(step, reward) for step, reward in run_files.evaluations(lines) if abs(reward) <= MAX_PLOTTED]
    axes.plot(
        [step for step, _ in evaluations],
        [reward for _, reward in evaluations],
        "o-",
        color="tab:red",
        markersize=4,
        label="evaluation",
    )
    axes.set(title="Task reward", ylabel="reward (mean)")
    axes.legend(loc="lower right")


def draw_staleness(axes: Any, lines: list[Line]) -> None:
    """Plot how many versions the samples of a batch were behind the weights trained on them."""
    most = series(lines, stat_names.maximum(stat_names.STALENESS))
    axes.plot(*most, color="tab:orange", alpha=0.45, drawstyle="steps-mid", label="maximum")
    axes.plot(*series(lines, stat_names.STALENESS), color="tab:orange", label="mean")
    axes.set(title="Staleness", ylabel="weight versions", xlabel="step")
    axes.set_ylim(0, 1.25 * max(1.0, axes.get_ylim()[1]))
    axes.legend(loc="upper right")
