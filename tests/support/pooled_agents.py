"""Agents for worker processes. They import nothing but the standard library and httpx."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import urllib.request
from typing import Any

BODY = {"model": "default", "messages": [{"role": "user", "content": "Tom has 4 jars of 3 keys ."}]}


class Concurrent:
    """row["outcome"] says how it ends."""

    def __init__(self, *, reward: float = 1.0) -> None:
        self.reward = reward
        self.running = 0

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> Any:
        outcome = data["outcome"]
        assert extra_kwargs["http_client"].is_closed is False
        print("what an agent prints does not disturb the answers")
        if outcome == "together":  # ends only if both sessions run at once
            self.running += 1
            while self.running < 2:
                await asyncio.sleep(0.01)
        if outcome == "raises":
            raise RuntimeError("the agent broke " + "x" * 10**6)
        if outcome == "grows":
            return [bytearray(1 << 20) for _ in range(1 << 20)]
        if outcome == "exits":
            os._exit(7)
        if outcome == "waits":
            await asyncio.Event().wait()
        if outcome == "blocks":
            time.sleep(3600)
        if outcome == "returns a flood":
            return {"x" * (1 << 21): 1.0}
        if outcome == "by completion":
            return {"completion": 0.25}
        return {"bad reward": "good", "process": float(os.getpid())}.get(outcome, self.reward)


class Plain:
    """A synchronous agent that knows the model only by its environment, as a command-line program does."""

    def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        if data["outcome"] == "starts a program":
            subprocess.Popen(["sh", "-c", f"echo $$ > {data['file']}; exec sleep 3600"])
            time.sleep(3600)
        assert os.environ["OPENAI_BASE_URL"] == os.environ["ANTHROPIC_BASE_URL"] + "/v1"
        assert os.environ["OPENAI_API_KEY"] == os.environ["ANTHROPIC_API_KEY"] == extra_kwargs["api_key"]
        return 0.5


class CallsModel:
    """Makes a call of the model by its environment."""

    def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        request = urllib.request.Request(
            os.environ["OPENAI_BASE_URL"] + "/chat/completions",
            data=json.dumps(BODY).encode(),
            headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            assert json.load(response)["choices"]
        return 0.5
