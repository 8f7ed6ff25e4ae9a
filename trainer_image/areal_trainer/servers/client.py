"""HTTP to the servers: one session with kept-alive connections, and errors by what can be done about them."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

T = TypeVar("T")
CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 4.0  # SGLang closes an idle connection after 5 s; a request must not meet the closing


class ServerError(Exception):
    """A request to a server brought no answer that can be used."""


class ServerLostError(ServerError):
    """No connection, or it broke, or the deadline passed: the server may be gone."""


class ServerBusyError(ServerError):
    """The server failed or refuses for now (429, 5xx); another attempt may succeed."""


class ServerRefusedError(ServerError):
    """The server refuses this request for good (4xx)."""


class Client:
    """Requests to all servers. Lives on the event loop that it was made on."""

    def __init__(self, *, api_key: str | None = None) -> None:
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            headers=headers,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def post(self, url: URL, body: dict[str, Any], *, timeout_s: float) -> Any:
        """The decoded answer; None for an empty one."""
        text = await self._request("POST", url, msgspec.json.encode(body), timeout_s, None)
        return _decode(url, text, _ANY) if text else None

    async def ask(
        self,
        url: URL,
        body: dict[str, Any],
        decoder: msgspec.json.Decoder[T],
        *,
        timeout_s: float,
        deadlines: set[asyncio.Timeout],
    ) -> T:
        """The answer as ``decoder`` makes it. ``deadlines`` holds its deadline meanwhile: it can be given up early."""
        text = await self._request("POST", url, msgspec.json.encode(body), timeout_s, deadlines)
        return _decode(url, text, decoder)

    async def get(self, url: URL, *, timeout_s: float) -> Any:
        """The decoded answer."""
        return _decode(url, await self._request("GET", url, None, timeout_s, None), _ANY)

    async def check(self, url: URL, *, timeout_s: float) -> None:
        """Raise where the answer is another status than 200; its body is ignored."""
        await self._request("GET", url, None, timeout_s, None)

    async def _request(
        self, method: str, url: URL, data: bytes | None, timeout_s: float, deadlines: set[asyncio.Timeout] | None
    ) -> bytes:
        deadline = asyncio.timeout(timeout_s)
        if deadlines is not None:
            deadlines.add(deadline)
        try:
            async with deadline, self._session.request(method, url, data=data) as response:
                status, text = response.status, await response.read()
        except TimeoutError as error:
            raise ServerLostError(f"{url}: no answer within {timeout_s:g} s, or no sign of life") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLostError(f"{url}: {type(error).__name__}: {error}") from error
        finally:
            if deadlines is not None:
                deadlines.discard(deadline)
        if status == 200:
            return text
        raise _error_of(url, status, text)


_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def _decode(url: URL, text: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise ServerRefusedError(f"{url}: not an answer of SGLang's: {error}: {text[:200]!r}") from error
    except msgspec.DecodeError as error:
        raise ServerLostError(f"{url}: the answer is not JSON ({error}): {text[:200]!r}") from error


def _error_of(url: URL, status: int, text: bytes) -> ServerError:
    message = f"{url}: status {status}: {text[:500].decode(errors='replace')}"
    if status == 401:
        return ServerRefusedError(f"{message}; AREAL_API_KEY_FILE must hold the servers' API key")
    if status == 429 or status >= 500:
        return ServerBusyError(message)
    return ServerRefusedError(message)
