"""A real S3 server (versitygw) as a separate process on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from hack.cluster.control_plane import BuildError, binaries, die_with_parent, free_ports

BUILD = Path(__file__).parents[1] / "storage" / "versitygw.sh"
START_S = 20.0
ACCESS, SECRET = "root", "root-secret"


class S3Server:
    """Buckets are the folders of ``folder``. It may be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        try:
            self._program = binaries(BUILD) / "versitygw"
        except (BuildError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"no S3 server to test against: {error}")
        self._folder = folder / "buckets"
        self._accounts = folder / "accounts"
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self.environ = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self._folder.mkdir(exist_ok=True)
        self._accounts.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                *(str(self._program), "--quiet", f"--port=127.0.0.1:{self._port}", f"--iam-dir={self._accounts}"),
                *("posix", "--nometa", str(self._folder)),
            ],
            env={**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
                return
            except OSError:
                assert self._process.poll() is None, "versitygw ended"
                assert time.monotonic() < deadline, "versitygw does not accept connections"
                time.sleep(0.05)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def account_without_access(self) -> dict[str, str]:
        """Variables of an account that the buckets do not belong to."""
        access, secret = "stranger", "stranger-secret"
        admin = [str(self._program), "admin", f"--access={ACCESS}", f"--secret={SECRET}", f"--endpoint-url={self.url}"]
        command = [*admin, "create-user", f"--access={access}", f"--secret={secret}", "--role=user"]
        subprocess.run(command, check=True, capture_output=True)
        return {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}

    def create_bucket(self, name: str) -> Path:
        """The folder of a new bucket."""
        bucket = self._folder / name
        bucket.mkdir(parents=True)
        return bucket
