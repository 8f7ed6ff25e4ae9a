"""Where the servers are: a fixed list, or a file that the launcher replaces when a server starts elsewhere."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from areal_api import names

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class ServerAddresses:
    """host:port of every server; an empty text for one that runs nowhere yet."""

    first: tuple[str, ...]
    file: Path | None = None  # holds later addresses, a JSON list with one text per server; None: they never change

    @classmethod
    def from_environment(cls) -> ServerAddresses:
        """From AREAL_SERVER_ADDRS_FILE if it is set, otherwise from AREAL_LLM_SERVER_ADDRS. Raises ``ValueError``."""
        path = os.environ.get(names.SERVER_ADDRS_FILE)
        if path:
            try:
                return cls(read_addresses(Path(path)), Path(path))
            except (OSError, ValueError) as error:
                raise ValueError(f"{names.SERVER_ADDRS_FILE} is {path}: {error}; the launcher writes it") from error
        text = os.environ.get(names.SERVER_ADDRS, "")
        addresses = tuple(address.strip() for address in text.split(",") if address.strip())
        if not addresses:
            raise ValueError(f"{names.SERVER_ADDRS} is {text!r}; set it to the servers' host:port,host:port")
        return cls(addresses)

    def read(self) -> tuple[str, ...]:
        """The current addresses, as many as ``first`` has. Raises ``OSError`` or ``ValueError``."""
        if self.file is None:
            return self.first
        found = read_addresses(self.file)
        if len(found) != len(self.first):
            raise ValueError(f"{self.file} lists {len(found)} servers, the run has {len(self.first)}")
        return found


def read_addresses(path: Path) -> tuple[str, ...]:
    """The list in a file of addresses. Raises ``OSError`` or ``ValueError``."""
    with path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES + 1)
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    found = json.loads(text)
    if not isinstance(found, list) or not found or not all(isinstance(address, str) for address in found):
        raise ValueError(f"{path} is not a list of addresses")
    return tuple(found)
