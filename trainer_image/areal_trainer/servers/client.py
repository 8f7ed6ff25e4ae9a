"""HTTP client for the servers: one session with kept-alive connections, and errors classified by how to recover."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

T = TypeVar("T")
CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 4.0  # SGLang closes idle connections after 5 s; close ours earlier, so that no request races with it


class ServerError(Exception):
    """A request to a server failed."""


class ServerLostError(ServerError):
    """No connection, a broken connection, or a timeout: the server may be gone."""


class ServerBusyError(ServerError):
    """The server failed or is overloaded (429, 5xx); a retry may succeed."""


class ServerRefusedError(ServerError):
    """The server rejected the request (4xx); a retry would be rejected too."""


class Client:
    """Requests to all servers. Create and use it on one event loop."""

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
        """The decoded response; None if it is empty."""
        text = await self._request("POST", url, msgspec.json.encode(body), timeout_s, None)
        return _decode(url, text, _ANY) if text else None

    async def post_decoded(
        self,
        url: URL,
        body: dict[str, Any],
        decoder: msgspec.json.Decoder[T],
        *,
        timeout_s: float,
        deadlines: set[asyncio.Timeout],
    ) -> T:
        """The response, decoded. While in flight, its timeout is in ``deadlines``, so that it can be expired early."""
        text = await self._request("POST", url, msgspec.json.encode(body), timeout_s, deadlines)
        return _decode(url, text, decoder)

    async def get(self, url: URL, *, timeout_s: float) -> Any:
        """The decoded response."""
        return _decode(url, await self._request("GET", url, None, timeout_s, None), _ANY)

    async def check(self, url: URL, *, timeout_s: float) -> None:
        """Raise unless the status is 200; the body is ignored."""
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
            raise ServerLostError(f"{url}: no response within {timeout_s:g} s, or its health probes failed") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLostError(f"{url}: {type(error).__name__}: {error}") from error
        finally:
            if deadlines is not None:
                deadlines.discard(deadline)
        if status == 200:
            return text
        raise _status_error(url, status, text)


_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def _decode(url: URL, text: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise ServerRefusedError(f"{url}: unexpected response: {error}: {text[:200]!r}") from error
    except msgspec.DecodeError as error:
        raise ServerLostError(f"{url}: the response is not JSON ({error}): {text[:200]!r}") from error


def _status_error(url: URL, status: int, text: bytes) -> ServerError:
    message = f"{url}: status {status}: {text[:500].decode(errors='replace')}"
    if status == 401:
        return ServerRefusedError(f"{message}; AREAL_API_KEY_FILE must contain the servers' API key")
    if status == 429 or status >= 500:
        return ServerBusyError(message)
    return ServerRefusedError(message)
