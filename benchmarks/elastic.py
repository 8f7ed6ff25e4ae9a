"""Elastic servers: speed and servers' time with ``servers.autoscale`` against the best fixed number of servers.

Simulated, with the real executor, pacer and chooser: servers that share their speed among their episodes, and whose
episodes have a long tail. The chooser starts at ``START`` servers and measures, so its figures include finding the
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.measure import Comparison
from hack.testbed.elastic_rollout import ElasticOutcome, Fleet, simulate_elastic
from hack.testbed.simulated_rollout import Workload

RATIOS = (0.5, 1.0, 2.0, 4.0)  # mean generation time of an episode on 8 servers ÷ training time of a step
SIGMAS = (0.5, 1.0)  # of the log-normal factor on an episode's time
GROWING = (0.5, 0.5, 4.0)  # ratio, σ, and factor on the length of episodes from the first step to the last
FIXED = (2, 4, 6, 8, 12, 16)
START, LEAST, MOST = 4, 2, 16
BATCH, STALENESS, SHARED, TRAIN_SIGMA = 32, 2, 0.8, 0.1
NEAR = 0.99  # of the highest speed; the fewest servers with it are the best fixed number
GOAL = 0.95


def run(*, small: bool, rounds: int) -> Iterator[Comparison]:
    """All ratios and tails, then a run whose answers become longer."""
    steps, rounds = (10, 1) if small else (400, min(rounds, 2))
    steady = [(ratio, sigma, 1.0) for sigma in SIGMAS for ratio in RATIOS]
    for ratio, sigma, growth in steady[:1] if small else [*steady, GROWING]:
        yield _compare(ratio, sigma, growth, steps=steps, rounds=rounds)


def _compare(ratio: float, sigma: float, growth: float, *, steps: int, rounds: int) -> Comparison:
    load = Workload(ratio, sigma, BATCH, STALENESS, shared=SHARED, train_sigma=TRAIN_SIGMA, steps=steps)
    loads = [replace(load, seed=seed) for seed in range(rounds)]

    def outcomes(fleet: Fleet) -> list[ElasticOutcome]:
        return [simulate_elastic(one, fleet, growth=growth) for one in loads]

    fixed = {number: outcomes(Fleet.fixed(number)) for number in FIXED}
    fastest = min(_seconds(found) for found in fixed.values())
    best = min(number for number, found in fixed.items() if _seconds(found) * NEAR <= fastest)
    ours = outcomes(Fleet(START, LEAST, MOST))
    speeds = ", ".join(f"{number}: {fastest / _seconds(found):.2f}" for number, found in fixed.items())
    longer = f", growing {growth:g} times as long" if growth != 1.0 else ""
    return Comparison(
        "elastic",
        f"simulated, {steps} steps of {BATCH} episodes, generation ÷ training {ratio:g}{longer}, σ {sigma:g}, "
        f"{LEAST} to {MOST} servers, {START} at the start",
        "steps per training time",
        [steps / one.seconds for one in ours],
        f"best fixed number, {best}",
        [steps / one.seconds for one in fixed[best]],
        goal=GOAL,
        notes=[
            f"servers' time per step {_servers(ours, steps):.1f} training times; best fixed number "
            f"{_servers(fixed[best], steps):.1f} (ratio {_servers(ours, steps) / _servers(fixed[best], steps):.2f}), "
            f"{MOST} servers {_servers(fixed[MOST], steps):.1f}",
            f"relative speed of fixed numbers: {speeds}; changes {', '.join(str(len(one.changes)) for one in ours)}, "
            f"numbers at the end {', '.join(str(one.numbers[-1]) for one in ours)}",
        ],
    )


def _seconds(found: list[ElasticOutcome]) -> float:
    return sum(one.seconds for one in found)


def _servers(found: list[ElasticOutcome], steps: int) -> float:
    """Time of all servers per step."""
    return sum(one.server_seconds for one in found) / len(found) / steps
