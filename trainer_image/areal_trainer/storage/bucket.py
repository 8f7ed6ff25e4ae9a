"""A bucket of S3-compatible storage: whole files under keys, and errors that name ``storage.bucket`` and the fix."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import botocore.exceptions
import s3fs

from areal_api import names
from areal_api.bucket import BucketSpec

KEY = "storage.bucket"
CONNECT_S, READ_S = 10, 60
TRIES = 5
MAX_TEXT_BYTES = 16 * 2**20


class BucketError(ValueError):
    """The bucket cannot be used as the experiment says; another attempt would fail the same way."""


class Bucket:
    """The files of one run below its prefix. ``names`` are relative to it, with ``/`` between parts."""

    def __init__(self, spec: BucketSpec, prefix: str) -> None:
        """``prefix``: of the run, below that of ``spec.url``."""
        self.spec = spec
        self._root = f"{spec.url.removeprefix('s3://')}/{prefix}"
        client: dict[str, Any] = {} if spec.region is None else {"region_name": spec.region}
        self._files = s3fs.S3FileSystem(
            endpoint_url=spec.endpoint_url,
            client_kwargs=client,
            config_kwargs={
                "connect_timeout": CONNECT_S,
                "read_timeout": READ_S,
                "retries": {"max_attempts": TRIES, "mode": "standard"},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    @property
    def url(self) -> str:
        """``s3://…`` of the run."""
        return f"s3://{self._root}"

    def put(self, file: Path, name: str) -> None:
        """Copy a file into the bucket, in parts if it is large. Replaces what is there."""
        with self._explained(f"write {name}"):
            self._files.put_file(str(file), f"{self._root}/{name}")

    def get(self, name: str, file: Path) -> None:
        """Copy a file out of the bucket."""
        with self._explained(f"read {name}"):
            self._files.get_file(f"{self._root}/{name}", str(file))

    def put_text(self, text: str, name: str) -> None:
        """Write a small file."""
        with self._explained(f"write {name}"):
            self._files.pipe_file(f"{self._root}/{name}", text.encode())

    def get_text(self, name: str) -> str:
        """Read a small file. Raises ``BucketError`` above ``MAX_TEXT_BYTES``."""
        with self._explained(f"read {name}"):
            if self._files.size(f"{self._root}/{name}") > MAX_TEXT_BYTES:
                raise BucketError(f"{KEY}: {self.url}/{name} has more than {MAX_TEXT_BYTES} bytes; delete it")
            return bytes(self._files.cat_file(f"{self._root}/{name}")).decode()

    def names_below(self, folder: str) -> list[str]:
        """Names of all files below ``folder``, sorted."""
        with self._explained(f"list {folder}"):
            found = self._files.find(f"{self._root}/{folder}")
        return sorted(str(path).removeprefix(f"{self._root}/") for path in found)

    def delete(self, removed: Sequence[str]) -> None:
        """Delete files that exist."""
        if removed:
            with self._explained("delete"):
                self._files.rm([f"{self._root}/{name}" for name in removed])

    def check(self) -> None:
        """Raise ``BucketError`` or ``OSError`` unless files can be written, listed, read and deleted."""
        name = f".access-{uuid4().hex}"
        self.put_text("areal", name)
        if name not in self.names_below(""):
            raise BucketError(f"{KEY}: {self.url} does not list a file that was just written; is it an S3 server?")
        if self.get_text(name) != "areal":
            raise BucketError(f"{KEY}: {self.url} returned other content than was written; is it an S3 server?")
        self.delete([name])

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turn errors of the client into one sentence: ``BucketError`` for settings, ``OSError`` for what may pass."""
        where = self.spec.endpoint_url or "AWS"
        try:
            yield
        except BucketError:
            raise
        except botocore.exceptions.NoCredentialsError as error:
            raise BucketError(
                f"{KEY}: there are no credentials for {self.spec.url}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "in trainer.env, or trainer.serviceAccountName to an account with access"
            ) from error
        except PermissionError as error:
            raise BucketError(
                f"{KEY}: no permission to {action} in {self.spec.url} at {where} ({_reason(error)}); correct the "
                "credentials, or let them list, get, put and delete objects there"
            ) from error
        except FileNotFoundError as error:
            if action.startswith("write"):
                raise BucketError(f"{KEY}: there is no bucket {self.spec.url} at {where}; create it") from error
            raise
        except botocore.exceptions.BotoCoreError as error:
            raise ConnectionError(f"{KEY}: cannot {action} in {self.spec.url} at {where}: {_reason(error)}") from error
        except OSError as error:
            raise OSError(f"{KEY}: cannot {action} in {self.spec.url} at {where}: {_reason(error)}") from error


def bucket_of(environ: Mapping[str, str], *, experiment: str, trial: str) -> Bucket | None:
    """The bucket that the launcher or operator named in the environment; None if the experiment has none."""
    text = environ.get(names.BUCKET)
    return None if not text else Bucket(BucketSpec.model_validate_json(text), f"{experiment}/{trial}")


def bucket_of_run(experiment: str, trial: str) -> Bucket | None:
    """The bucket of this process's run."""
    return bucket_of(os.environ, experiment=experiment, trial=trial)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
