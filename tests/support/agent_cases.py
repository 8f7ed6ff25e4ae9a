"""Experiments with agents and tools that are accepted or refused; part of ``experiment_cases.CASES``."""

from __future__ import annotations

from hack.testbed.experiment_case import Case

_ONLINE = {"spec.config.rollout.agent.mode": "online"}
_PROGRAM = {"name": "a", "command": ["python3", "-m", "solver"], "code": True}
_ARCHIVE = {"configMap": "exp-code-0123456789", "sha256": "b" * 64}
_GIT = {"git": {"url": "https://a/b", "commit": "a" * 40}}

AGENT_CASES = [
    Case("an agent in online mode", {**_ONLINE, "spec.agents": [{"name": "a", "image": "x"}]}),
    Case(
        "an agent without online mode",
        {"spec.agents": [{"name": "a"}]},
        "agents is not empty, and rollout.agent.mode is inline",
        "need rollout.agent.mode online",
    ),
    Case(
        "peers of a gateway without online mode",
        {"spec.gateway.allowFrom": [{"podSelector": {}}]},
        "gateway.allowFrom is not empty, and rollout.agent.mode is inline",
        "need rollout.agent.mode online",
    ),
    Case("peers of a gateway", {**_ONLINE, "spec.gateway.allowFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}),
    Case("a tool without online mode", {"spec.tools": [{"name": "a", "port": 8080}]}),
    Case("code of an agent", {**_ONLINE, "spec.agents": [_PROGRAM], "spec.code.archive": _ARCHIVE}),
    Case("code of a tool", {"spec.tools": [{**_PROGRAM, "image": "x"}], "spec.code.archive": _ARCHIVE}),
    Case(
        "code of an agent that reaches the network",
        {
            **_ONLINE,
            "spec.agents": [{**_PROGRAM, "externalNetwork": True}],
            "spec.code": {**_GIT, "requirements": ["a"]},
        },
    ),
    Case("code that agents do not get", {**_ONLINE, "spec.agents": [{"name": "a", "image": "x"}], "spec.code": _GIT}),
    Case(
        "code of an agent that reaches no repository",
        {**_ONLINE, "spec.agents": [_PROGRAM], "spec.code": _GIT},
        "but its pods reach no network that code.git, code.requirements and the bucket of a large directory need; set",
        "code is true in agents without the network",
    ),
    Case(
        "packages of an agent that reaches no index",
        {**_ONLINE, "spec.agents": [_PROGRAM], "spec.code.requirements": ["a"]},
        "agents[0].code is true for a, but its pods reach no network",
        "code is true in agents without the network",
    ),
    Case(
        "code of a tool from a bucket",
        {"spec.tools": [_PROGRAM], "spec.code.archive": {"sha256": "b" * 64}, "spec.storage.bucket.url": "s3://team"},
        "tools[0].code is true for a, but its pods reach no network",
        "code is true in tools without the network",
    ),
    *(
        case
        for key in ("agents", "tools")
        for case in (
            Case(
                f"no code for {key}",
                {**_ONLINE, f"spec.{key}": [_PROGRAM]},
                f"{key}[0].code is true for a, but spec.code is empty",
                "but spec.code is empty",
            ),
            Case(
                f"an image of {key} that packages of the trainer do not fit",
                {
                    **_ONLINE,
                    f"spec.{key}": [{**_PROGRAM, "image": "x"}],
                    "spec.code": {"archive": _ARCHIVE, "requirementsFile": "requirements.txt"},
                },
                f"{key}[0].code is true for a, which has an image",
                f"code is true in {key} with an image",
            ),
            Case(
                f"code of {key} without a command",
                {**_ONLINE, f"spec.{key}": [{"name": "a", "code": True}], "spec.code.archive": _ARCHIVE},
                f"{key}[0].code is true for a, whose command is empty",
                f"code is true in {key} without a command",
            ),
            Case(
                f"two {key} with one name",
                {**_ONLINE, f"spec.{key}": [{"name": "a"}, {"name": "a"}]},
                f"{key} has several entries with the name a",
                "several entries with one name",
            ),
            Case(
                f"{key} with long names",
                {**_ONLINE, f"spec.{key}": [{"name": "a" * 24}], "metadata.name": "b" * 22},
                "together more than 45 characters",
                "together more than 45 characters",
            ),
            Case(
                f"{key} with the longest names",
                {**_ONLINE, f"spec.{key}": [{"name": "a" * 24}], "metadata.name": "b" * 21},
            ),
            Case(f"{key} without image", {**_ONLINE, f"spec.{key}": [{"name": "a", "image": ""}]}, "shorter than 1"),
            Case(f"a million {key}", {**_ONLINE, f"spec.{key}": [{"name": "a", "replicas": 10**6}]}, "is above 256"),
            Case(f"17 {key}", {**_ONLINE, f"spec.{key}": [{"name": f"a{n}"} for n in range(17)]}, "too many items"),
            Case(f"{key} with a bad name", {**_ONLINE, f"spec.{key}": [{"name": "A_b"}]}, "does not match"),
        )
    ),
]
