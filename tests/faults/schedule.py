"""The faults of a run and their order, as a function of the seed."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Kind = str
Deck = Mapping[Kind, int]  # how often each kind is injected into a run
# Faults of a run of 40; those that take longest are the rarest.
DECK: Deck = {
    "kill server": 4,
    "end server": 2,
    "stop server": 4,
    "kill trainer": 4,
    "stop trainer": 4,
    "kill launcher": 2,
    "stop launcher": 4,
    "slow answers": 4,
    "cut connections": 6,
    "half answers": 4,
    "full disk": 2,
}
PER_RUN = sum(DECK.values())
GAPS = (0, 0, 1)  # short, so most faults hit while a killed server is still restarting
# (servers, ranks) of a run, alternating by seed; with a single server, each of its deaths stops the run.
LAYOUTS = ((2, 2), (2, 1), (1, 1))
STEPS = 150  # of the tiny experiment; it learns in 60, and 40 faults need more
# Requests whose answers are faulted: the most frequent, those that change weights, probes, and any.
PATHS = ("/generate", "/update_weights_from_disk", "/pause_generation", "/continue_generation", "/model_info", "")
OFTEN = ("/generate", "")  # requested many times per step


@dataclass(frozen=True)
class Fault:
    """One fault, injected ``delay_s`` after ``after_steps`` further steps from the end of the previous fault."""

    kind: Kind
    after_steps: int
    delay_s: float
    choice: float  # selects a process or server; 0 ≤ choice < 1
    lasts_s: float  # duration of a stop, delay or full disk
    times: int  # number of faulty answers
    path: str  # request path whose answers are faulted; empty for any


def schedule(
    seed: int, faults: int, *, deck: Deck = DECK, gaps: Sequence[int] = GAPS, without: Collection[Kind] = ()
) -> list[Fault]:
    """The faults of a run. ``gaps``: steps before a fault. ``without``: kinds that cannot be injected here; others
    take their place."""
    most = sum(deck.values())
    if not 1 <= faults <= most:
        raise ValueError(f"a run of {STEPS} steps takes 1 … {most} faults, not {faults}")
    choose = random.Random(seed)
    cards = [kind for kind, count in deck.items() if kind not in without for _ in range(count)]
    missing = choose.choices(cards, k=most - len(cards))
    kinds = choose.sample([*cards, *missing], most)[:faults]
    return [_fault(choose, kind, gaps) for kind in kinds]


def runs(first_seed: int, faults: int, *, per_run: int) -> list[tuple[int, int]]:
    """Seed and number of faults of each run."""
    return [(first_seed + number, min(per_run, faults - done)) for number, done in enumerate(range(0, faults, per_run))]


def _fault(choose: random.Random, kind: Kind, gaps: Sequence[int]) -> Fault:
    path = choose.choice(PATHS)
    return Fault(
        kind,
        after_steps=choose.choice(gaps),
        delay_s=round(choose.uniform(0.0, 1.0), 2),
        choice=choose.random(),
        lasts_s=round(choose.uniform(0.5, 3.0), 2),
        times=choose.randint(1, 6 if path in OFTEN else 2),
        path=path,
    )
