"""A language model as a reward: asks an endpoint that speaks OpenAI's protocol.

It has a deadline, retries, a cache and a limit of cost.

A completion is text of the policy, which learns what the judge rewards: also how to talk it into a score. The judge's
instructions should say what counts, and a term with a verifiable reward should keep it in check.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from areal_api.data_config import JudgeConfig
from areal_trainer.reward.function import RewardError

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 2**20
MAX_SHOWN = 200  # characters of an answer in an error
RETRIED = frozenset({408, 429, *range(500, 600)})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


class JudgeError(Exception):
    """An attempt that brought no valid score. ``final``: another one would not either."""

    def __init__(self, message: str, *, final: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.final = final
        self.pause_s = pause_s  # that the endpoint asks for


@dataclass
class Usage:
    """What a judge was asked in a run."""

    requests: int = 0
    cached: int = 0  # judgements from the cache
    failed: int = 0  # judgements without a score
    cost: float = 0.0


class Judge:
    """Scores completions. Use from one event loop; ``close`` ends its connections."""

    def __init__(self, config: JudgeConfig, *, name: str, state: Path | None = None) -> None:
        """``state``: file in which the cost survives a restart of the run. Raises ``ValueError`` without an API key."""
        self._config = config
        self._name = name
        self._state = state
        self._pattern = re.compile(config.pattern)
        self._cache: OrderedDict[bytes, float] = OrderedDict()
        self._asked: dict[bytes, asyncio.Future[float]] = {}  # equal judgements that run at the same time
        self._slots = asyncio.Semaphore(config.max_concurrent)
        self._session: aiohttp.ClientSession | None = None
        self._headers = {"Authorization": f"Bearer {_api_key(config, name)}"} if config.api_key_env else {}
        self.usage = Usage(cost=_read_cost(state))

    async def score(
        self, prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], /, **columns: Any
    ) -> float:
        """The reward of a sample, 0 at ``lowest`` and 1 at ``highest``. Raises ``RewardError`` without a judgement."""
        text = rendered(self._config.prompt, {**columns, "prompt": prompt, "completion": completions})
        key = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        if key in self._cache:
            self._cache.move_to_end(key)
            self.usage.cached += 1
            return self._cache[key]
        if key in self._asked:
            self.usage.cached += 1
            return await asyncio.shield(self._asked[key])
        found = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            reward = await self._judgement(text)
        except BaseException as error:
            reason = str(error) or type(error).__name__
            failure = RewardError(f"term {self._name!r}: {reason}", task_id=str(columns.get("task_id", "")),
                                  completion=completions)  # fmt: skip
            found.set_exception(failure)
            found.exception()  # retrieved, also if nobody else waits
            self.usage.failed += 1
            if isinstance(error, JudgeError):
                raise failure from error
            raise
        finally:
            del self._asked[key]
        found.set_result(reward)
        if self._config.cache_size:
            self._cache[key] = reward
            if len(self._cache) > self._config.cache_size:
                self._cache.popitem(last=False)
        return reward

    def save(self) -> None:
        """Write what the run has spent."""
        if self._state is not None:
            aside = self._state.with_name(f".{self._state.name}.partial")
            aside.write_text(json.dumps(asdict(self.usage)) + "\n")
            aside.replace(self._state)

    async def close(self) -> None:
        """Close the connections."""
        self.save()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _judgement(self, text: str) -> float:
        """Ask until there is a score, the attempts are used up, or the deadline has passed."""
        config = self._config
        last, pause_s = "no answer", 0.0
        try:
            async with asyncio.timeout(config.deadline):
                for attempt in range(config.retries + 1):
                    await asyncio.sleep(pause_s)
                    self._require_budget()
                    try:
                        async with self._slots:
                            return self._reward_of(await self._ask(text))
                    except JudgeError as error:
                        if error.final:
                            raise
                        last = str(error)
                        backoff_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
                        pause_s = max(backoff_s, error.pause_s)
        except TimeoutError as error:
            raise JudgeError(f"no judgement within deadline = {config.deadline:g} s; last: {last}") from error
        raise JudgeError(f"{config.retries + 1} attempts failed, the last with: {last}")

    async def _ask(self, text: str) -> str:
        """One request; the text of the answer."""
        config = self._config
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers)
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }
        self.usage.requests += 1
        try:
            async with asyncio.timeout(config.request_timeout):
                url = f"{config.url.rstrip('/')}/chat/completions"
                async with self._session.post(url, json=body, allow_redirects=False) as response:
                    data = await _bounded(response)
                    status, retry_after = response.status, response.headers.get("Retry-After", "")
        except TimeoutError as error:
            raise JudgeError(f"no answer within request_timeout = {config.request_timeout:g} s") from error
        except aiohttp.ClientError as error:
            raise JudgeError(f"{type(error).__name__}: {error}") from error
        if status != 200:
            shown = data.decode(errors="replace")[:MAX_SHOWN]
            pause_s = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 5 else 0.0
            raise JudgeError(f"HTTP status {status}: {shown}", final=status not in RETRIED, pause_s=pause_s)
        return self._content(data)

    def _content(self, data: bytes) -> str:
        """The text of an answer; adds what it cost."""
        try:
            answer = json.loads(data)
            text = answer["choices"][0]["message"]["content"]
            used = answer.get("usage") or {}
            tokens = [max(0, int(used.get(key) or 0)) for key in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise JudgeError(f"an answer that is no chat completion: {data[:MAX_SHOWN]!r}") from error
        prices = self._config.input_price, self._config.output_price
        self.usage.cost += sum(count * price / 1e6 for count, price in zip(tokens, prices, strict=True))
        if not isinstance(text, str):
            raise JudgeError("an answer without text")
        return text

    def _reward_of(self, text: str) -> float:
        config = self._config
        matches = list(self._pattern.finditer(text))
        try:
            score = float(matches[-1][1])
        except (IndexError, TypeError, ValueError) as error:
            raise JudgeError(f"no score in {text[-MAX_SHOWN:]!r}") from error
        if not config.lowest <= score <= config.highest:
            raise JudgeError(f"a score of {score:g}, outside {config.lowest:g} to {config.highest:g}")
        return (score - config.lowest) / (config.highest - config.lowest)

    def _require_budget(self) -> None:
        limit = self._config.max_cost
        if limit is not None and self.usage.cost >= limit:
            raise JudgeError(
                f"the judge has cost {self.usage.cost:.4g} in this run, and max_cost is {limit:g}; raise it",
                final=True,
            )


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """``template`` with each ``{name}`` replaced, once: braces in the values stay.

    Raises ``ValueError`` for a name that is not in ``values``.
    """
    unknown = next((name for name in _FIELD.findall(template) if name not in values), None)
    if unknown is not None:
        raise ValueError(
            f"the judge's prompt has {{{unknown}}}, but the row has no such column; its columns are: "
            f"{', '.join(sorted(values))}"
        )
    return _FIELD.sub(lambda match: str(values[match[1]]), template)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        data += chunk
        if len(data) > MAX_ANSWER_BYTES:
            raise JudgeError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return bytes(data)


def _api_key(config: JudgeConfig, name: str) -> str:
    assert config.api_key_env is not None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"reward.terms: the judge {name!r} takes its API key from {config.api_key_env}, which is not set; set it "
            "in the trainer's environment, or leave api_key_env out"
        )
    return key


def _read_cost(state: Path | None) -> float:
    if state is None or not state.is_file():
        return 0.0
    try:
        return float(json.loads(state.read_text())["cost"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state} is damaged; remove it to count the judge's cost from 0") from error
