"""Statistics of agents: what happened since the last step, also across restarts of the gateway."""

from __future__ import annotations

from areal_trainer.rollout.agent_statistics import AgentStatistics


def test_counts_are_those_since_the_last_call() -> None:
    statistics = AgentStatistics()
    statistics.update(
        {"started": 3, "ended": 2, "rewarded": 1, "abandoned": 1, "calls": 8, "ended_calls": 6, "refused": 5}
    )
    first = statistics.take()
    assert (first["agents/started"], first["agents/abandoned"], first["agents/refused"]) == (3, 1, 5)
    assert first["agents/calls_per_session"] == 3  # of the sessions that ended
    statistics.update({"started": 4, "ended": 2, "rewarded": 1, "abandoned": 1, "calls": 9, "refused": 5})
    second = statistics.take()
    assert (second["agents/started"], second["agents/calls"], second["agents/refused"]) == (1, 1, 0)
    assert "agents/calls_per_session" not in second


def test_counts_of_a_process_that_ended_are_kept() -> None:
    statistics = AgentStatistics()
    statistics.update({"started": 3, "calls": 3})
    statistics.take()
    statistics.update({"started": 5, "calls": 4})
    statistics.restart()
    statistics.update({"started": 1, "calls": 1})
    taken = statistics.take()
    assert (taken["agents/started"], taken["agents/calls"]) == (3, 2)
