"""A tool server that runs Python code which a model wrote: ``python3 server.py --port 8000``.

    POST /run {"code": "print(6 * 7)", "timeout_seconds": 5}
    → {"stdout": "42\\n", "stderr": "", "exit_code": 0, "stopped": null}

``stopped`` says which limit ended the code: time, memory, output or processes. Code runs one at a time, so that
everything it leaves behind can be ended and deleted: run several replicas for more. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import queue
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SANDBOX = Path(__file__).with_name("sandbox.py")
MAX_BODY_BYTES = 1 << 20
MAX_WAITING = 256  # requests whose code has not started
MAX_CONNECTIONS = 512
SOCKET_TIMEOUT_S = 30.0
LOOK_S = 0.05  # between two looks at memory and processes
END_S = 30.0  # for ending all processes of a run
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36  # prctl(2)


@dataclass(frozen=True)
class Limits:
    """Limits of one run."""

    seconds: float
    memory_bytes: int  # of all its processes
    output_bytes: int  # of stdout and stderr together
    processes: int
    wipe: tuple[Path, ...] = ()  # directories to empty after every run


@dataclass
class Result:
    """What the code did. ``exit_code`` is negative for a signal."""

    stdout: str
    stderr: str
    exit_code: int
    stopped: str | None  # time, memory, output or processes


class Run:
    """One run of some code. ``Run(…).result()`` must be called in the process's main thread, one at a time."""

    def __init__(self, code: str, limits: Limits, *, seconds: float) -> None:
        self._code = code
        self._limits = limits
        self._seconds = min(seconds, limits.seconds)
        self._output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    def result(self) -> Result:
        """Run the code, end all its processes, and delete its files."""
        folder = Path(tempfile.mkdtemp(prefix="run-"))
        try:
            file = folder / "main.py"
            file.write_text(self._code, encoding="utf-8", errors="replace")
            return self._run(file)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            for directory in self._limits.wipe:
                empty(directory)

    def _run(self, file: Path) -> Result:
        limits = self._limits
        numbers = (int(self._seconds) + 1, limits.memory_bytes, limits.processes + threads_of_user())
        process = subprocess.Popen(
            [sys.executable, "-I", str(SANDBOX), str(file), *map(str, numbers)],
            cwd=file.parent,
            env={"PATH": os.defpath, "HOME": str(file.parent), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            stopped = self._watch(process)
        finally:
            end_descendants(process)
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()
        stdout, stderr = (bytes(self._output[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        return Result(stdout, stderr, process.returncode, stopped)

    def _watch(self, process: subprocess.Popen[bytes]) -> str | None:
        """Collect the output until the code has ended or exceeds a limit; returns which."""
        deadline, next_look = time.monotonic() + self._seconds, 0.0
        with selectors.DefaultSelector() as selector:
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, name)
            while True:
                ended = process.poll() is not None
                for key, _ in selector.select(0 if ended else LOOK_S):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    if not self._keep(key.data, data):
                        return "output"
                if ended:
                    return None
                if time.monotonic() > deadline:
                    return "time"
                if time.monotonic() > next_look:
                    next_look = time.monotonic() + LOOK_S
                    if (exceeded := self._exceeded()) is not None:
                        return exceeded

    def _keep(self, name: str, data: bytes) -> bool:
        room = self._limits.output_bytes - sum(map(len, self._output.values()))
        self._output[name] += data[:room]
        return len(data) <= room

    def _exceeded(self) -> str | None:
        found = descendants(os.getpid())
        if len(found) > self._limits.processes:
            return "processes"
        return "memory" if sum(map(resident_bytes, found)) > self._limits.memory_bytes else None


def stat_of(pid: int | str) -> list[str] | None:
    """Fields of /proc/PID/stat after the name: state, parent, …; None if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def processes() -> list[int]:
    """All processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def descendants(root: int) -> list[int]:
    """Processes below ``root`` that have not ended."""
    children: dict[int, list[int]] = {}
    for pid in processes():
        stat = stat_of(pid)
        if stat is not None and stat[0] not in "ZX":
            children.setdefault(int(stat[1]), []).append(pid)
    found: list[int] = []
    pending = [root]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    stat = stat_of(pid)
    return 0 if stat is None else int(stat[21]) * os.sysconf("SC_PAGE_SIZE")


def threads_of_user() -> int:
    """Threads that this user has already: RLIMIT_NPROC counts all of them."""
    total = 0
    for pid in processes():
        try:
            if pid == os.getpid() or os.stat(f"/proc/{pid}").st_uid == os.getuid():  # ours, not dumpable, is root's
                total += int((stat_of(pid) or ["0"] * 18)[17])
        except OSError:
            continue
    return total


def end_descendants(process: subprocess.Popen[bytes]) -> None:
    """Kill every process of a run, also those that left its session. They are stopped first, so that none forks on."""
    deadline = time.monotonic() + END_S
    for sign in (signal.SIGSTOP, signal.SIGKILL):
        seen: set[int] = set()
        while new := [pid for pid in descendants(os.getpid()) if pid not in seen or sign == signal.SIGKILL]:
            for pid in new:
                try:
                    os.kill(pid, sign)
                except ProcessLookupError:
                    continue
            seen.update(new)
            if time.monotonic() > deadline:
                os._exit(70)  # the container is restarted, with none of these processes
    process.wait()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def empty(directory: Path) -> None:
    """Delete everything in a directory that this user may delete."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


class BadRequest(Exception):
    """A request that gets ``status``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Accepts requests in threads, and leaves running the code to ``run_forever`` in the main thread."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], limits: Limits) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)
        self.limits = limits
        self._waiting: queue.Queue[tuple[Run, Future[Result]]] = queue.Queue(MAX_WAITING)
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def submit(self, run: Run) -> Future[Result]:
        """Run some code when its turn comes."""
        future: Future[Result] = Future()
        try:
            self._waiting.put_nowait((run, future))
        except queue.Full:
            raise BadRequest(429, f"{MAX_WAITING} requests wait already; raise the tool's replicas") from None
        return future

    def run_forever(self) -> None:
        """Run code as it comes."""
        threading.Thread(target=self.serve_forever, name="http", daemon=True).start()
        while True:
            run, future = self._waiting.get()
            try:
                future.set_result(run.result())
            except OSError as error:
                future.set_exception(error)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    server: Server
    timeout = SOCKET_TIMEOUT_S
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """GET /health."""
        found = self.path == "/health"
        self._answer(200 if found else 404, {"status": "ok"} if found else {"error": f"no route {self.path[:200]}"})

    def do_POST(self) -> None:
        """POST /run."""
        try:
            if self.path != "/run":
                raise BadRequest(404, f"no route {self.path[:200]}; use POST /run")
            self._answer(200, asdict(self.server.submit(self._run()).result()))
        except BadRequest as error:
            self.close_connection = True  # the body may not have been read
            self._answer(error.status, {"error": str(error)})
        except OSError as error:
            self._answer(503, {"error": f"the code could not be run: {error}"})

    def _run(self) -> Run:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise BadRequest(411, "Content-Length is missing")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise BadRequest(413, f"the body has more than {MAX_BODY_BYTES} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise BadRequest(400, f"the body is not valid JSON: {error}") from None
        code = body.get("code") if isinstance(body, dict) else None
        if not isinstance(code, str):
            raise BadRequest(400, 'the body is no object with "code", a text')
        limit = self.server.limits.seconds
        seconds = body.get("timeout_seconds", limit)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= limit:
            raise BadRequest(400, f"timeout_seconds is {str(seconds)[:40]}; use a number above 0 and at most {limit:g}")
        return Run(code, self.server.limits, seconds=seconds)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log no requests."""


def main(arguments: list[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    parser.add_argument("--host", default=everywhere, help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 is any free one")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time of a run")
    parser.add_argument("--memory-mib", type=int, default=256, help="memory of a run")
    parser.add_argument("--output-kib", type=int, default=64, help="output of a run")
    parser.add_argument("--processes", type=int, default=16, help="processes of a run")
    parser.add_argument(
        "--wipe", type=Path, nargs="*", default=[], help="directories to empty after every run: all that code can write"
    )
    args = parser.parse_args(arguments)
    limits = Limits(args.seconds, args.memory_mib << 20, args.output_kib << 10, args.processes, tuple(args.wipe))
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of a run become this process's children
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # code cannot read this process's memory or environment
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # process 1 of a container has no default action
    server = Server((args.host, args.port), limits)
    print(f"listening on port {server.server_address[1]}", flush=True)
    server.run_forever()


if __name__ == "__main__":
    main()
