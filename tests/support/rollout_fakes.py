"""Stand-ins for what surrounds a rollout: a tokenizer of one token a character, and episodes that end when told."""

from __future__ import annotations

import asyncio
from typing import Any

from areal_trainer.rollout.executor import Executor
from areal_trainer.rollout.workflow import GenerationEngine, RolloutWorkflow
from areal_trainer.trajectory import Trajectory

EOS, PAD, FIRST = 1, 0, 2


class CharTokenizer:
    """Token 2 + n stands for the character 32 + n; counts how often it was asked to encode."""

    eos_token_id = EOS
    pad_token_id = PAD

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.encoded += 1
        return [FIRST + ord(character) - 32 for character in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(32 + token - FIRST) for token in ids if token >= FIRST)

    def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool, **kwargs: Any) -> str:
        assert not tokenize
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def sample(version: int, *, reward: float = 1.0, length: int = 4) -> Trajectory:
    """A trajectory of one prompt token and ``length`` tokens made by ``version``."""
    return Trajectory.of_lists(
        input_ids=[5] * (1 + length),
        loss_mask=[False] + [True] * length,
        logprobs=[0.0] + [-1.0] * length,
        versions=[-1] + [version] * length,
        reward=reward,
        prompt_len=1,
        finish_reason="stop",
    )


class ToldWorkflow(RolloutWorkflow):
    """Episodes that end when ``finish`` says so, with tokens of the version that was in force when they started."""

    def __init__(self) -> None:
        self.executor: Executor | None = None
        self.under_way: dict[int, asyncio.Future[str]] = {}  # by the row's number, in the order of starting

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        assert self.executor is not None
        version = self.executor.gate.version
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.under_way[data["row"]] = told
        try:
            outcome = await told
        finally:
            del self.under_way[data["row"]]
        if outcome == "fail":
            raise RuntimeError(f"row {data['row']} failed")
        return [sample(version, reward=float(data["row"]))] if outcome == "accept" else None

    def finish(self, row: int, outcome: str = "accept") -> None:
        self.under_way[row].set_result(outcome)


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(8):
        await asyncio.sleep(0)
