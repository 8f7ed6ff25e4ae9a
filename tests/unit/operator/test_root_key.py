"""The root key: created, filled in or refused with an explanation."""

from __future__ import annotations

import base64

import pytest

from areal_operator.cluster import ApiError
from areal_operator.observed import Object
from areal_operator.root_key import KEY_BYTES, ROOT_KEY, root_key
from support.memory_cluster import MemoryCluster


def secret(**data: str) -> Object:
    return {"kind": "Secret", "metadata": {"name": ROOT_KEY, "namespace": "ns"}, **({"data": data} if data else {})}


async def test_the_key_is_created_once() -> None:
    cluster = MemoryCluster()
    key = await root_key(cluster, "ns")
    assert len(key) == KEY_BYTES
    assert await root_key(cluster, "ns") == key
    assert len(cluster.writes) == 1


@pytest.mark.parametrize("existing", [secret(), secret(other="eA==")])
async def test_a_secret_without_a_key_is_filled_in(existing: Object) -> None:
    """As ``helm template | kubectl apply`` leaves it."""
    cluster = MemoryCluster()
    cluster.add(existing)
    key = await root_key(cluster, "ns")
    assert len(key) == KEY_BYTES
    assert await root_key(cluster, "ns") == key


async def test_a_secret_that_cannot_be_filled_in_is_named() -> None:
    cluster = MemoryCluster()
    cluster.add(secret())
    cluster.check = lambda method, obj: ApiError(403, "Forbidden", "secrets is forbidden") if method == "PUT" else None
    with pytest.raises(ValueError, match=r"Secret areal-operator-key in namespace ns has no data\.key .* delete it"):
        await root_key(cluster, "ns")


@pytest.mark.parametrize("text", ["short", "%%%", base64.b64encode(b"x" * 8).decode()])
async def test_a_damaged_key_is_named(text: str) -> None:
    cluster = MemoryCluster()
    cluster.add(secret(key=text))
    with pytest.raises(ValueError, match="has fewer than 16 bytes; delete the Secret"):
        await root_key(cluster, "ns")
