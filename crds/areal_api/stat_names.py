"""Names of the statistics in ``stats.jsonl`` that more than one process uses: the trainer writes them, others read."""

from __future__ import annotations

ACTOR_PREFIX = "grpo_actor/"  # AReaL's prefix of the policy's statistics
TIMING_PREFIX = "timeperf/"  # seconds of each stage of a step

STEP = "step"
TOTAL_STEPS = "total_steps"
VERSION = "version"
TASK_REWARD = "task_reward"
REWARD_TERMS = "reward/"  # prefix of the terms of the reward, without their weights
EVALUATION = "eval-rollout/"  # AReaL's prefix of the statistics of an evaluation
INITIAL = "_initial"  # suffix of those before the first step, which are written with that step
EVAL_REWARD = f"{EVALUATION}reward"
EVAL_REWARD_INITIAL = f"{EVAL_REWARD}{INITIAL}"
STALENESS = "staleness"
ENTROPY = "entropy"
GROUPS_WITHOUT_SIGNAL = "groups_without_signal"  # share of groups whose rewards are all equal
REWARD_ERROR = "task_reward_error"  # standard error of the mean reward, from the mean rewards of the groups
PROMPT_LENGTH = "prompt_len"
SEQUENCE_LENGTH = "seq_len"
TOKENS_PER_SECOND = "tokens_per_second"
SERVERS_CURRENT = "rollout/servers_current"
SERVERS_BEHIND = "rollout/servers_behind"
SERVER = "servers/"  # prefix of what the trainer knows of each server when a batch is complete
MAX_SERVERS = 64  # of which there are statistics
CACHE_HIT_RATE = "rollout/cache_hit_rate"
ROLLOUT_WAIT = "rollout/wait_share"  # of the time since the last batch: the trainer waited for this one
SERVERS_IDLE = "rollout/servers_idle"  # share of the servers' time without any request
AGENTS = "agents/"  # prefix of the counts of a step
AGENT_COUNTS = ("started", "rewarded", "abandoned", "expired", "stale", "ended", "calls", "refused", "failed")
CALLS_PER_SESSION = f"{AGENTS}calls_per_session"


def server_version(index: int) -> str:
    """The weight version that a server holds; −1 if unknown."""
    return f"{SERVER}{index}/version"


def server_losses(index: int) -> str:
    """How often a server has stopped holding the current weights, for example because it was restarted."""
    return f"{SERVER}{index}/losses"


def mean(name: str) -> str:
    """The mean of a statistic that is taken over samples or tokens."""
    return f"{name}/avg"


def maximum(name: str) -> str:
    """The maximum of a statistic that is taken over samples or tokens."""
    return f"{name}/max"
