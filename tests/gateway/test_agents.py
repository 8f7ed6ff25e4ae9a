"""Agents as workflows, through the gateway's process and a scripted server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from transformers import AutoTokenizer

from areal_api import names
from areal_api.config import GRPOConfig
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.reward.weighted import Reward
from areal_trainer.rollout.agent_workflow import AgentError, AgentRunner
from areal_trainer.rollout.make_workflow import Workflows
from areal_trainer.routing import Routing
from areal_trainer.trajectory import Trajectory
from support.engines import engine_on
from support.scripted_answers import routed_experts
from support.scripted_server import Script, ScriptedServer

MODEL = Path(__file__).parents[2] / "examples/tiny/model"
ROW = {"messages": [{"role": "user", "content": "Tom has 4 jars of 3 keys ."}], "answer": "12", "task_id": "row-7"}


async def call(arguments: dict[str, Any], messages: list[Any] | None = None) -> Any:
    client: httpx.AsyncClient = arguments["http_client"]
    response = await client.post(
        f"{arguments['base_url']}/chat/completions",
        headers={"Authorization": f"Bearer {arguments['api_key']}"},
        json={"model": "default", "messages": messages or ROW["messages"]},
    )
    response.raise_for_status()
    return response.json()


class TwoTurns:
    """Makes two calls; row["outcome"] says how it ends."""

    def __init__(self, *, reward: float = 1.0) -> None:
        self.reward = reward
        self.sessions = 0

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> Any:
        self.sessions += 1
        number = self.sessions
        outcome = data.pop("outcome", "number")
        if outcome == "silent":
            return 1.0
        first = await call(extra_kwargs)
        if outcome == "dies":
            raise RuntimeError("the agent died")
        if outcome == "dies sometimes" and number % 2:
            raise RuntimeError("the agent died")
        if outcome == "never ends":
            await asyncio.Event().wait()
        history = [*ROW["messages"], first["choices"][0]["message"], {"role": "user", "content": "Tom sells 2 ."}]
        second = await call(extra_kwargs, history)
        if outcome == "dictionary":
            return {first["id"]: 0.25, second["id"]: 0.5}
        if outcome == "over HTTP":
            headers = {"Authorization": f"Bearer {extra_kwargs['api_key']}"}
            url = f"{extra_kwargs['base_url']}/rl/set_reward"
            await extra_kwargs["http_client"].post(url, json={"reward": 0.75}, headers=headers)
            return None
        return {"never rewards": None, "bad reward": "good"}.get(outcome, self.reward)


def configuration(**agent: Any) -> GRPOConfig:
    return GRPOConfig.model_validate(
        {
            "experiment_name": "agents",
            "gconfig": {"n_samples": 2, "max_new_tokens": 5, "max_tokens": 100},
            "rollout": {"agent": {"session_timeout_seconds": 60, **agent}},
            "workflow": {"path": f"{__name__}:TwoTurns", "kwargs": {"reward": 2.0}},
            "actor": {"path": str(MODEL), "ppo_n_minibatches": 1},
            "train_dataset": {"path": "none.jsonl", "batch_size": 2},
        }
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[RemoteSGLangEngine]:
    with ScriptedServer(Script(vocab_size=256, context_length=128)) as server, engine_on(server) as engine:
        yield engine


class Trainer:
    """The workflows of a configuration."""

    def __init__(self, engine: RemoteSGLangEngine, config: GRPOConfig) -> None:
        self.engine = engine
        self.workflows = Workflows(config, engine, AutoTokenizer.from_pretrained(MODEL), Reward.of(config.reward))

    def episode(self, outcome: str, *, evaluation: bool = False) -> list[Trajectory]:
        workflow = self.workflows.evaluation if evaluation else self.workflows.training
        return asyncio.run(workflow.arun_episode(self.engine, {**ROW, "outcome": outcome})) or []


@pytest.fixture(scope="module")
def trainer(engine: RemoteSGLangEngine) -> Iterator[Trainer]:
    trainer = Trainer(engine, configuration())
    yield trainer
    trainer.workflows.close()


def test_each_completion_of_each_session_is_a_sample_with_its_reward(trainer: Trainer) -> None:
    samples = trainer.episode("number")
    assert [sample.reward for sample in samples] == [2.0] * 4
    assert {sample.task_id for sample in samples} == {"row-7"}
    first, second = samples[:2]
    assert second.input_ids[: len(first)].tolist() == first.input_ids.tolist()
    assert set(second.versions[second.loss_mask].tolist()) == {0}
    assert first.prompt_len < second.prompt_len


@pytest.mark.parametrize("style", ["individual", "concat"])
def test_samples_of_agents_have_the_experts_of_their_tokens(style: str) -> None:
    routing, shape = Routing(layers=2, with_experts=(1,), top_k=2, experts=300), (2, 2, 300)
    script = Script(vocab_size=256, context_length=128, experts=shape)
    with ScriptedServer(script) as server, engine_on(server, routing=routing) as engine:
        trainer = Trainer(engine, configuration(export_style=style))
        try:
            samples = trainer.episode("number")
        finally:
            trainer.workflows.close()
    assert len(samples) == (4 if style == "individual" else 2)
    for sample in samples:
        tokens = sample.input_ids.tolist()[:-1]
        expected = routing.decode(routed_experts(shape, tokens, 0), len(tokens))
        assert sample.experts is not None
        assert sample.experts.dtype == np.uint16
        assert np.array_equal(sample.experts, expected)


@pytest.mark.parametrize(("outcome", "rewards"), [("dictionary", [0.75, 0.5]), ("over HTTP", [0.75, 0.75])])
def test_rewards_come_by_completion_or_over_http(trainer: Trainer, outcome: str, rewards: list[float]) -> None:
    assert [sample.reward for sample in trainer.episode(outcome)] == rewards * 2


def test_evaluation_counts_each_session_once(trainer: Trainer) -> None:
    assert [sample.reward for sample in trainer.episode("dictionary", evaluation=True)] == [0.75]


@pytest.mark.parametrize(
    ("outcome", "error", "words"),
    [
        ("dies", RuntimeError, "the agent died"),
        ("silent", AgentError, "made no model call"),
        ("never rewards", AgentError, "set no reward"),
        ("bad reward", AgentError, "returned 'good'"),
    ],
)
def test_an_agent_that_fails_fails_its_episode(
    trainer: Trainer, outcome: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        trainer.episode(outcome)


def test_a_session_that_fails_is_left_out_of_its_group(trainer: Trainer) -> None:
    assert len(trainer.episode("dies sometimes")) == 2


def test_sessions_are_counted_by_how_they_ended(engine: RemoteSGLangEngine) -> None:
    trainer = Trainer(engine, configuration())
    try:
        trainer.episode("number")
        with pytest.raises(RuntimeError, match="the agent died"):
            trainer.episode("dies")
        counted: Counter[str] = Counter()
        deadline = time.monotonic() + 60.0
        while counted["agents/abandoned"] < 2 and time.monotonic() < deadline:  # counts arrive half a second late
            counted.update({name: int(count) for name, count in trainer.workflows.statistics().items()})
            time.sleep(0.1)
        assert (counted["agents/started"], counted["agents/rewarded"], counted["agents/abandoned"]) == (4, 2, 2)
        assert counted["agents/calls"] == 6
    finally:
        trainer.workflows.close()


def test_a_dead_gateway_is_replaced(trainer: Trainer) -> None:
    assert trainer.workflows.gateway is not None
    os.kill(trainer.workflows.gateway.pid, signal.SIGKILL)
    os.waitid(os.P_PID, trainer.workflows.gateway.pid, os.WEXITED | os.WNOWAIT)
    assert len(trainer.episode("number")) == 4


def test_an_agent_that_never_ends_is_cancelled_and_its_session_forgotten(trainer: Trainer) -> None:
    gateway = trainer.workflows.gateway
    assert gateway is not None
    runner = AgentRunner(gateway, timeout_s=0.5)
    try:
        with pytest.raises(AgentError, match="did not end within"):
            asyncio.run(runner.run(TwoTurns(), {**ROW, "outcome": "never ends"}, evaluation=False))
    finally:
        runner.close()
    headers = {"Authorization": f"Bearer {gateway.admin_key}"}
    assert httpx.get(f"{asyncio.run(gateway.url())}/rl/statistics", headers=headers).json()["open"] == 0


def test_an_agent_that_does_not_take_the_arguments_is_refused(engine: RemoteSGLangEngine) -> None:
    config = configuration()
    config = config.model_copy(update={"workflow": config.workflow.model_copy(update={"kwargs": {"tries": 1}})})
    with pytest.raises(ValueError, match="does not take"):
        Trainer(engine, config)


def test_an_agent_in_processes_of_its_own_trains(engine: RemoteSGLangEngine) -> None:
    config = configuration(mode="subproc", subproc_max_workers=2)
    changes = {"path": "support.pooled_agents:CallsModel", "kwargs": {}}
    trainer = Trainer(engine, config.model_copy(update={"workflow": config.workflow.model_copy(update=changes)}))
    try:
        assert [sample.reward for sample in trainer.episode("number")] == [0.5] * 2
    finally:
        trainer.workflows.close()


def test_online_training_takes_groups_of_sessions_from_outside(engine: RemoteSGLangEngine, tmp_path: Path) -> None:
    config = configuration(mode="online")
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"fileroot": str(tmp_path)})})
    names.run_dir(config).mkdir(parents=True)
    trainer = Trainer(engine, config)
    try:
        trainer.workflows.start()
        outside = TwoTurns()

        async def train_and_talk() -> list[Trajectory]:
            episode = asyncio.create_task(trainer.workflows.training.arun_episode(engine, {}))
            assert trainer.workflows.gateway is not None
            await trainer.workflows.gateway.url()
            file = names.gateway_file(names.run_dir(config))
            assert file.stat().st_mode & 0o777 == 0o600
            access = json.loads(file.read_text())
            async with httpx.AsyncClient(base_url=access["url"], timeout=60.0) as client:
                for task in ("a", "b", "unrewarded", "b"):
                    headers = {"Authorization": f"Bearer {access['admin_key']}"}
                    opened = await client.post("/rl/start_session", json={"task_id": task}, headers=headers)
                    key = opened.json()["api_key"]
                    arguments = {"base_url": access["url"], "api_key": key, "http_client": client}
                    await outside.run({"outcome": "number" if task == "unrewarded" else "over HTTP"}, **arguments)
                    ended = await client.post("/rl/end_session", headers={"Authorization": f"Bearer {key}"})
                    assert ended.status_code == 200
            return await episode or []

        samples = asyncio.run(train_and_talk())
        assert [(sample.task_id, sample.reward) for sample in samples] == [("b", 0.75)] * 4

        async def hand_out_a_row() -> list[Trajectory]:
            row = {"id": 7, "outcome": "over HTTP"}
            episode = asyncio.create_task(trainer.workflows.training.arun_episode(engine, row))
            access = json.loads(names.gateway_file(names.run_dir(config)).read_text())
            async with httpx.AsyncClient(base_url=access["url"], timeout=60.0) as client:
                for _ in range(2):
                    headers = {"Authorization": f"Bearer {access['admin_key']}"}
                    task = (await client.post("/rl/next_task", json={}, headers=headers)).json()
                    assert task["data"] == row
                    key = task["api_key"]
                    await outside.run(task["data"], base_url=access["url"], api_key=key, http_client=client)
                    await client.post("/rl/end_session", headers={"Authorization": f"Bearer {key}"})
            return await episode or []

        samples = asyncio.run(hand_out_a_row())
        assert [(sample.task_id.split("#")[0], sample.reward) for sample in samples] == [("7", 0.75)] * 4
    finally:
        trainer.workflows.close()


def test_online_training_refuses_an_evaluation(engine: RemoteSGLangEngine) -> None:
    config = configuration(mode="online")
    config = config.model_copy(update={"valid_dataset": config.train_dataset})
    with pytest.raises(ValueError, match="leave valid_dataset out"):
        Trainer(engine, config)
