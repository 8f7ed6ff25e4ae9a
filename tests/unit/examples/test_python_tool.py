"""The Python tool: what code gets, and that hostile code harms neither the server nor the runs after it."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.python_tool import agent
from examples.python_tool.sandbox import instructions
from support.gateway_app import ADMIN_KEY, gateway_of

SOURCE = Path(__file__).parents[3] / "examples" / "python_tool"
USER = 64100  # without processes, as RLIMIT_NPROC counts those of a user


def interpreter() -> tuple[Path, bool]:
    """An interpreter, and whether every user can run it."""
    own = Path(sys.executable).resolve()
    others = [Path(found) for found in [shutil.which("python3", path="/usr/bin:/usr/local/bin")] if found]
    for python in (own, *others):
        if all(folder.stat().st_mode & 0o001 for folder in python.resolve().parents):
            return python, True
    return own, False


class Tool:
    """A tool server in a process, as an unprivileged user if this one is root."""

    def __init__(self, folder: Path) -> None:
        for name in ("server.py", "sandbox.py"):
            shutil.copy(SOURCE / name, folder)
        self.scratch = folder / "scratch"
        self.scratch.mkdir(mode=0o777)
        self.scratch.chmod(0o777)
        python, for_all = interpreter()
        changes_user = os.getuid() == 0 and for_all
        self.is_root = os.getuid() == 0 and not changes_user
        as_user: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if changes_user else {}
        arguments = ["--host", "127.0.0.1", "--port", "0", "--seconds", "5", "--wipe", str(self.scratch)]
        self.process = subprocess.Popen(
            [python, "-I", folder / "server.py", *arguments],
            env={"TMPDIR": str(self.scratch), "SECRET": "s3cret"},
            stdout=subprocess.PIPE,
            text=True,
            **as_user,
        )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().rsplit(" ", 1)[-1].strip()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False)

    def run(self, code: str, **body: Any) -> dict[str, Any]:
        response = self.client.post("/run", content=json.dumps({"code": code, **body}))
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def tool() -> Iterator[Tool]:
    folder = Path(tempfile.mkdtemp(prefix="python-tool-"))
    folder.chmod(0o755)
    tool = Tool(folder)
    yield tool
    tool.close()
    shutil.rmtree(folder)


def test_output_and_exit_status_are_returned(tool: Tool) -> None:
    code = "import sys\nprint(6 * 7)\nprint('no', file=sys.stderr)\nsys.exit(3)"
    assert tool.run(code) == {"stdout": "42\n", "stderr": "no\n", "exit_code": 3, "stopped": None}


def test_an_error_has_its_traceback(tool: Tool) -> None:
    result = tool.run("1 / 0")
    assert (result["exit_code"], "ZeroDivisionError" in result["stderr"]) == (1, True)


HOSTILE = {
    "a fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "sleep": "import time\ntime.sleep(1000)",
    "a busy loop": "while True: pass",
    "a daemon that outlives its parent": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
        "    os._exit(0)\nprint('started')"
    ),
    "ignored signals": "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1000)",
    "endless output": "while True: print('x' * 1000)",
    "output without newlines to a closed stream": "import os\nos.close(1)\nos.close(2)\nwhile True: pass",
    "much memory": "x = bytearray(2 << 30)",
    "memory in several processes": (
        "import os, time\nfor _ in range(5):\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
        "x = bytearray(b'x' * (60 << 20))\ntime.sleep(1000)"
    ),
    "a large file": "with open('f', 'wb') as f:\n    while True: f.write(b'x' * (1 << 20))",
    "a segmentation fault": "import ctypes\nctypes.string_at(0)",
    "no text": "import os\nos.write(1, bytes(range(256)))",
    "deep recursion": "def f(): f()\nimport sys\nsys.setrecursionlimit(10**9)\nf()",
    "surrogates and NUL": "print('\ud800 \x00')",
}
STOPPED = {
    "a fork bomb": ("time", "processes"),
    "sleep": ("time",),
    "a busy loop": ("time",),
    "a daemon that outlives its parent": (None,),
    "ignored signals": ("time",),
    "endless output": ("output",),
    "output without newlines to a closed stream": ("time",),
    "memory in several processes": ("memory", "processes"),
    "deep recursion": ("time", None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_is_stopped_and_leaves_nothing_behind(tool: Tool, name: str) -> None:
    expected = STOPPED.get(name, (None,))
    result = tool.run(HOSTILE[name], timeout_seconds=1 if "time" in expected else 5)
    assert result["stopped"] in expected
    assert result["exit_code"] != 0 or name in ("no text", "a daemon that outlives its parent")
    assert len(result["stdout"]) + len(result["stderr"]) <= 64 << 10
    assert list(tool.scratch.iterdir()) == []
    children = Path(f"/proc/{tool.process.pid}/task/{tool.process.pid}/children").read_text()
    assert children == ""
    assert tool.run("print('alive')")["stdout"] == "alive\n"


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
        "import os\nif os.fork(): os.wait()\nimport socket\nsocket.socket()",
    ],
)
def test_the_network_cannot_be_used(tool: Tool, code: str) -> None:
    result = tool.run(code)
    assert result["exit_code"] == 1
    assert "Operation not permitted" in result["stderr"]


def test_the_environment_has_no_secrets_and_the_server_cannot_be_read(tool: Tool) -> None:
    assert "SECRET" not in tool.run("import os\nprint(dict(os.environ))")["stdout"]
    for file in ("environ", "mem"):
        result = tool.run(f"open('/proc/{tool.process.pid}/{file}', 'rb').read(10)")
        assert "PermissionError" in result["stderr"] or tool.is_root


def test_files_of_a_run_are_not_seen_by_the_next(tool: Tool) -> None:
    tool.run(f"open('{tool.scratch}/left', 'w').write('x')\nopen('own', 'w')")
    assert tool.run(f"import os\nprint(os.listdir('{tool.scratch}'), os.listdir())")["stdout"].count("main.py") == 1
    assert not (tool.scratch / "left").exists()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b"[]", 400, "code"),
        (b'{"code": 1}', 400, "code"),
        (b'{"code": "", "timeout_seconds": 1e9}', 400, "timeout_seconds is 1000000000.0; use a number above 0"),
        (b'{"code": "", "timeout_seconds": NaN}', 400, "timeout_seconds is nan"),
        (b"x" * ((1 << 20) + 1), 413, "the body has more than"),
    ],
)
def test_bad_requests_are_refused(tool: Tool, content: bytes, status: int, words: str) -> None:
    response = tool.client.post("/run", content=content)
    assert response.status_code == status
    assert words in response.json()["error"]


def test_an_unknown_route_and_a_body_without_length_are_refused(tool: Tool) -> None:
    assert tool.client.post("/other", json={}).status_code == 404
    assert tool.client.get("/run").status_code == 404
    assert tool.client.post("/run", content=iter([b"{}"])).status_code == 411
    assert tool.client.get("/health").json() == {"status": "ok"}


def test_the_filter_of_this_machine_is_known() -> None:
    assert instructions(platform.machine())
    with pytest.raises(KeyError):
        instructions("riscv64")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("13 + 8 = 21. 21 - 10 = 11.\n#### 11", "print(21 - 10)"),
        ("4 * 3 = 12.\n#### 12", "print(4 * 3)"),
        ("Like this:\n```python\nprint(1)\n```\nor\n```\nprint(2)\n```", "print(2)\n"),
        ("I do not know.", None),
        ("= = =", None),
        ("(" * 10_000, None),
    ],
)
def test_the_agent_runs_a_block_of_python_or_the_last_calculation(text: str, code: str | None) -> None:
    assert agent.code_of(text) == code


async def test_the_agent_is_rewarded_for_what_its_code_prints(tool: Tool) -> None:
    row = {"messages": [{"role": "user", "content": "3 jars of 4?"}], "answer": "4 * 3 = 12.\n#### 12"}
    async with gateway_of("4 * 3 = 13.\n#### 13", "4 + 3 = 7.\n#### 7", "no", agent={"mode": "online"}) as gateway:
        asked = {"size": 3, "oldest_version": 0, "data": row}
        group = asyncio.create_task(gateway.admin("/rl/next_group", asked))
        transport = {"http://gateway": httpx.ASGITransport(gateway.app)}
        async with httpx.AsyncClient(mounts=transport, timeout=60.0, trust_env=False) as client:
            url = str(tool.client.base_url).rstrip("/")
            work = agent.work(client, gateway="http://gateway", key=ADMIN_KEY, tool=url)
            worker = asyncio.create_task(work)
            sessions = (await group).json()["sessions"]
            worker.cancel()
        assert [session["reward"] for session in sessions] == [1.0, 0.0, 0.0]
