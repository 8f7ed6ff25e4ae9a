"""The charts of a run: which statistics each one shows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from areal_api import stat_names
from areal_api.stat_names import TIMING_PREFIX, maximum


@dataclass(frozen=True)
class Chart:
    """A chart of the page. ``statistics``: names as ``run_files.value`` takes them; those a run lacks are omitted."""

    title: str
    unit: str
    statistics: tuple[str, ...]


MAX_LINES: Final = 16  # in a chart with a line for each server
CHARTS: Final = (
    Chart(
        "Reward",
        "reward (mean)",
        (stat_names.TASK_REWARD, stat_names.EVAL_REWARD),
    ),
    Chart("Completion length", "tokens (mean)", ("completion_len",)),
    Chart("Truncated answers", "share", ("no_eos_ratios",)),
    Chart("Entropy", "nats per token", (stat_names.ENTROPY,)),
    Chart("KL from the policy of the samples", "nats per token", ("behave_kl", "behave_approx_kl")),
    Chart("Clipped tokens", "share", ("clip_ratio", "dual_clip_ratio")),
    Chart("Staleness", "weight versions", (stat_names.STALENESS, maximum(stat_names.STALENESS))),
    Chart("Log-probs: trainer − servers", "nats, absolute", ("rollout_logprob_diff", maximum("rollout_logprob_diff"))),
    Chart("Gradient norm", "", ("grad_norm",)),
    Chart("Groups without signal", "share", (stat_names.GROUPS_WITHOUT_SIGNAL, "rollout/rejected_share")),
    Chart("Throughput", "tokens per second", (stat_names.TOKENS_PER_SECOND, "rollout/tokens_per_second")),
    Chart("Waiting", "share of the step", (stat_names.ROLLOUT_WAIT, stat_names.SERVERS_IDLE)),
    Chart("Servers", "servers", (stat_names.SERVERS_CURRENT, stat_names.SERVERS_BEHIND)),
    Chart(
        "Sessions of agents",
        "sessions per step",
        tuple(f"{stat_names.AGENTS}{name}" for name in ("rewarded", "abandoned", "expired", "stale")),
    ),
    Chart("Requests of agents without an answer", "requests per step", ("agents/refused", "agents/failed")),
    Chart("Calls per session", "calls (mean)", (stat_names.CALLS_PER_SESSION,)),
    Chart("Prefix cache", "share of prompt tokens", (stat_names.CACHE_HIT_RATE,)),
)
HELD_BY_SERVER: Final = re.compile(rf"{re.escape(stat_names.SERVER)}(\d+)/version")
WEIGHTS_ON_SERVERS: Final = "Weights on each server"
HELD_OUT: Final = re.compile(rf"{re.escape(stat_names.EVALUATION)}([\w.-]+/)?(reward|pass@\d+|maj@\d+)")
EVALUATION: Final = "Evaluation"
REWARD_TERMS: Final = "Terms of the reward"
TIME_PER_STAGE: Final = "Time per stage"


def charts_of(known: Iterable[str]) -> list[Chart]:
    """The charts with a statistic in ``known``: the fixed ones, terms of the reward, evaluation, time per stage."""
    available = set(known)
    charts = [
        Chart(chart.title, chart.unit, tuple(name for name in chart.statistics if name in available))
        for chart in CHARTS
    ]
    terms = tuple(sorted(name for name in available if name.startswith(stat_names.REWARD_TERMS)))
    if terms:
        charts.insert(1, Chart(REWARD_TERMS, "mean, without weights", terms))
    held = sorted((int(found[1]), name) for name in available if (found := HELD_BY_SERVER.fullmatch(name)))
    if held:
        charts.append(Chart(WEIGHTS_ON_SERVERS, "version", tuple(name for _, name in held[:MAX_LINES])))
    stages = tuple(sorted(name for name in available if name.startswith(TIMING_PREFIX)))
    held_out = tuple(sorted(name for name in available if HELD_OUT.fullmatch(name)))
    if len(held_out) > 1:  # the reward of valid_dataset alone is in the first chart
        charts.insert(1, Chart(EVALUATION, "mean over problems", held_out))
    return [chart for chart in [*charts, Chart(TIME_PER_STAGE, "seconds", stages)] if chart.statistics]
