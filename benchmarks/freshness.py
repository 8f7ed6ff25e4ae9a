"""Freshness: staleness and speed of paced asynchronous training against the greedy staleness gate.

First simulated, with the real executor and a simulated clock, on servers that decode any number of episodes at full
speed and on servers that share their speed among them; then with the engine on scripted servers in real time.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.executor import BATCH, NEW_TOKENS, SERVERS, train_on_scripted_servers
from benchmarks.measure import Comparison, by_turns
from benchmarks.scripted import scripted_server
from hack.testbed.simulated_rollout import Workload, simulate

RATIOS = (0.25, 0.5, 1.0, 2.0)  # mean generation time of an episode ÷ training time of a step
SIGMAS = (0.0, 0.5, 1.0)  # of the log-normal factor on an episode's time
LIMITED = (0.5, 1.2, 2.0)  # time for a batch alone ÷ training time, on servers that share their speed
SHARED = (0.85, 1.0)  # part of an episode's time that is proportional to the number of running episodes
TRAIN_SIGMA = 0.1  # of the log-normal factor on the training time there
STALENESS = 2
GOAL = 0.98  # of the greedy gate's steps per second


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """All ratios and tails in simulated time; without a tail and with σ = 0.5 on scripted servers."""
    ratios, sigmas = (RATIOS[:1], SIGMAS[:1]) if small else (RATIOS, SIGMAS)
    steps = 20 if small else 200
    simulated = [_simulated(ratio, sigma, steps=steps, rounds=rounds) for sigma in sigmas for ratio in ratios]
    limited = [(ratio, shared) for shared in SHARED for ratio in LIMITED]
    simulated += [
        _simulated(ratio, 0.0, steps=steps, rounds=rounds, shared=shared, train_sigma=TRAIN_SIGMA)
        for ratio, shared in (limited[:1] if small else limited)
    ]
    on_servers = [_on_servers(ratio, sigma, small=small, rounds=rounds) for sigma in sigmas[:2] for ratio in ratios]
    return simulated + on_servers


def _simulated(
    ratio: float, sigma: float, *, steps: int, rounds: int, shared: float = 0.0, train_sigma: float = 0.0
) -> Comparison:
    load = Workload(ratio, sigma, BATCH, STALENESS, shared=shared, train_sigma=train_sigma, steps=steps)
    loads = [replace(load, seed=seed) for seed in range(rounds)]
    paced, greedy = ([simulate(load, paced=side) for load in loads] for side in (True, False))
    work = (
        f"simulated, {steps} steps of {BATCH} episodes, mean generation ÷ training {ratio:g}, σ {sigma:g}, "
        f"η = {STALENESS}"
    )
    if shared:
        work += f", {shared:g} of an episode's time proportional to the episodes that run"
    return Comparison(
        "freshness",
        work,
        "steps per training time",
        [outcome.steps_per_s for outcome in paced],
        "greedy gate",
        [outcome.steps_per_s for outcome in greedy],
        goal=GOAL,
        notes=[_staleness([o.staleness for o in paced], [o.staleness for o in greedy])],
    )


def _on_servers(ratio: float, sigma: float, *, small: bool, rounds: int) -> Comparison:
    steps, trainer_s = (3, 0.02) if small else (30, 0.25)
    token_s = ratio * trainer_s / NEW_TOKENS
    script = {"answer": "benchmarks.scripted:fixed_answer", "token_s": token_s, "tail_sigma": sigma, "load_s": 0.005}
    ages: dict[bool, list[float]] = {True: [], False: []}
    with ExitStack() as stack:
        addresses = [stack.enter_context(scripted_server(**script)) for _ in range(SERVERS)]
        weights = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def side(paced: bool) -> float:
            speed, staleness = train_on_scripted_servers(
                addresses, weights, steps=steps, trainer_s=trainer_s, staleness=STALENESS, samples=1, paced=paced
            )
            ages[paced].append(staleness)
            return speed

        paced, greedy = by_turns(lambda: side(True), lambda: side(False), rounds=min(rounds, 3), warm_up=False)
    work = (
        f"scripted servers, {steps} steps of {BATCH} episodes, training {trainer_s} s, median generation ÷ training "
        f"{ratio:g}, σ {sigma:g}, η = {STALENESS}"
    )
    notes = [_staleness(ages[True], ages[False])]
    return Comparison("freshness", work, "steps/s", paced, "greedy gate", greedy, goal=GOAL, notes=notes)


def _staleness(paced: list[float], greedy: list[float]) -> str:
    ours, baseline = (sum(values) / len(values) for values in (paced, greedy))
    return f"mean staleness {ours:.2f} versions; greedy gate {baseline:.2f}"
