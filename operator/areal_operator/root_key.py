"""The root key from which experiments' API keys are derived: a Secret in the operator's own namespace."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import secrets
import time

from areal_api.errors import describe
from areal_operator.cluster import ApiError, Cluster, is_transient
from areal_operator.observed import Object

logger = logging.getLogger(__name__)
ROOT_KEY = "areal-operator-key"
ENTRY = "key"
KEY_BYTES = 32
MIN_KEY_BYTES = 16
TIMEOUT_S = 60.0


async def wait_for_root_key(cluster: Cluster, namespace: str) -> bytes:
    """The root key, created if necessary. Retries for ``TIMEOUT_S`` while the API server does not answer."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return await root_key(cluster, namespace)
        except Exception as error:
            if not is_transient(error) or time.monotonic() > deadline:
                raise
            logger.warning("waiting for the API server: %s", describe(error))
            await asyncio.sleep(1.0)


async def root_key(cluster: Cluster, namespace: str) -> bytes:
    """The root key. A missing or empty Secret (rendered by a tool that does not run Helm's hooks) is filled in.

    Raises ``ValueError`` for a Secret that holds no key and cannot be filled in.
    """
    while True:
        secret = await cluster.get("Secret", namespace, ROOT_KEY)
        try:
            if secret is None:
                await cluster.create(_with_key({"metadata": {"name": ROOT_KEY, "namespace": namespace}}))
                continue
            if (secret.get("data") or {}).get(ENTRY):
                return _decoded(secret, namespace)
            await cluster.replace(_with_key(secret))
        except ApiError as error:
            if error.status == 409:  # another operator was faster
                continue
            if secret is None or is_transient(error):
                raise
            raise ValueError(
                f"Secret {ROOT_KEY} in namespace {namespace} has no data.{ENTRY} and cannot be filled in ({error}); "
                "delete it, and the operator creates it"
            ) from error


def _with_key(secret: Object) -> Object:
    key = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    return {**secret, "apiVersion": "v1", "kind": "Secret", "immutable": True, "data": {ENTRY: key}}


def _decoded(secret: Object, namespace: str) -> bytes:
    try:
        key = base64.b64decode(secret["data"][ENTRY], validate=True)
    except binascii.Error:
        key = b""
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(
            f"data.{ENTRY} of Secret {ROOT_KEY} in namespace {namespace} has fewer than {MIN_KEY_BYTES} bytes; delete "
            "the Secret, and the operator creates it"
        )
    return key
