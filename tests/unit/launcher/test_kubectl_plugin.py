"""`kubectl grpo`."""

from __future__ import annotations

import pytest

from areal_launcher.kubectl_plugin import translated


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("status gsm8k", "status gsm8k --on kubernetes"),
        ("list", "status --on kubernetes"),
        ("logs gsm8k -n team-a --tail 5", "logs gsm8k --namespace team-a --tail 5 --on kubernetes"),
        ("suspend gsm8k", "suspend gsm8k --on kubernetes"),
        ("resume gsm8k", "resume gsm8k --on kubernetes"),
        ("check experiment.yaml", "check experiment.yaml"),
        ("", "--help"),
    ],
)
def test_commands_on_experiments_mean_the_cluster(given: str, expected: str) -> None:
    assert translated(given.split()) == expected.split()
