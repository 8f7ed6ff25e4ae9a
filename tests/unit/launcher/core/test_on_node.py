"""A process started on its node."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from areal_launcher.core import on_node
from areal_launcher.core.place import PORT
from support.process_trees import DEADLINE_S, python

SHOW = python(
    "import json, os, sys; env = os.environ; print(json.dumps([sys.argv[1:], env['CUDA_VISIBLE_DEVICES'], env['A']]))"
)


def test_the_port_is_published_and_the_gpus_are_chosen(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        spec = {"argv": [*SHOW, PORT], "env": {"A": "b"}, "host": "127.0.0.1", "port": 0, "gpus": [0, 2]}
        (tmp_path / "spec.json").write_text(json.dumps({**spec, "address_file": str(tmp_path / "address")}))
        done = subprocess.run(
            [sys.executable, "-I", "-S", on_node.__file__, str(tmp_path / "spec.json")],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "4,5,6"},
            stdin=read,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    finally:
        os.close(read)
        os.close(write)
    arguments, gpus, added = json.loads(done.stdout)
    assert (tmp_path / "address").read_text() == f"127.0.0.1:{arguments[0]}"
    assert (gpus, added) == ("4,6", "b")


def test_a_preferred_port_that_is_taken_is_replaced() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with on_node.reserve("127.0.0.1", number) as other:
            assert other.getsockname()[1] != number
    with on_node.reserve("127.0.0.1", number) as same:
        assert same.getsockname()[1] == number
