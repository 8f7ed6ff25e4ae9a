"""Metrics of the operator and of the experiments."""

from __future__ import annotations

from typing import Any

from prometheus_client import generate_latest

from areal_operator.metrics import Metrics


def text_of(experiments: dict[tuple[str, str], Any]) -> str:
    metrics = Metrics()
    metrics.add_gauges(queue_depth=lambda: 7, leads=lambda: True, experiments=lambda: experiments)
    return generate_latest(metrics.registry).decode()


def test_gauges_are_read_from_the_statuses() -> None:
    status = {"phase": "Running", "step": 3, "reward": 0.5, "servers": {"ready": 1, "desired": 2}}
    status |= {"cacheHitRate": 0.75, "agentSessions": 6, "agentSessionsLost": 1, "agentErrors": 0}
    text = text_of({("ns", "exp"): status})
    for line in (
        "areal_operator_queue_depth 7.0",
        "areal_operator_leader 1.0",
        'areal_experiment_phase{name="exp",namespace="ns",phase="Running"} 1.0',
        'areal_experiment_step{name="exp",namespace="ns"} 3.0',
        'areal_experiment_servers_ready{name="exp",namespace="ns"} 1.0',
        'areal_experiment_cache_hit_rate{name="exp",namespace="ns"} 0.75',
        'areal_experiment_agent_sessions_lost{name="exp",namespace="ns"} 1.0',
    ):
        assert line in text
    assert "areal_experiment_eval_reward{" not in text


def test_an_experiment_without_a_status_is_pending() -> None:
    assert 'phase="Pending"} 1.0' in text_of({("ns", "exp"): {}})


def test_a_value_of_another_type_hides_no_other_metric() -> None:
    text = text_of({("ns", "a"): {"step": "three", "reward": 1.0}, ("ns", "b"): {"step": 4}})
    assert 'areal_experiment_step{name="b",namespace="ns"} 4.0' in text
    assert 'areal_experiment_step{name="a"' not in text
