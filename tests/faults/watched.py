"""A real run of the tiny experiment, started by ``grpo run`` and watched from outside while faults are injected."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

from faults import processes
from faults.schedule import STEPS
from faults.steps import LocalFiles, Steps, Watched
from hack.cluster.control_plane import die_with_parent
from support.faulty_proxy import Exchange, FaultyProxy

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
CHECKPOINT_STEPS = 3
POLL_S = 0.1
UPDATE = "/update_weights_from_disk"
BASE = "base"  # the experiment's initial model
GONE = "gone"  # weights removed before they could be copied


class WatchedRun(Watched):
    """``grpo run`` whose trainer reaches the servers through proxies. Entering the context starts it."""

    def __init__(self, work: Path, fileroot: Path, *, servers: int, ranks: int, mark: str) -> None:
        self.work = work
        self.mark = mark
        self.servers = servers
        self.run = fileroot / "tiny" / "run"
        self.steps = Steps(LocalFiles(self.run))
        self.may_fail = False  # whether the launcher may exit with an error and is then restarted
        self.starts = 0
        self.kept = work / "kept"  # copies of all weights that servers were asked to load
        self._fileroot = fileroot
        self._ranks = ranks
        self._stack = contextlib.ExitStack()
        self.ports = free_ports(servers)
        self.proxies = [FaultyProxy(port, self._keep) for port in self.ports]
        self._launcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WatchedRun:
        self.kept.mkdir(parents=True)
        for proxy in self.proxies:
            self._stack.enter_context(proxy)
        self._write_experiment()
        self._stack.callback(processes.wait_until_gone, self.mark)
        self._stack.callback(self._end)
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def launcher(self) -> int:
        """Process id of ``grpo run``."""
        return self._started().pid

    def start(self) -> None:
        """Run the launch command; restarts use the same command."""
        argv = [sys.executable, "-m", "areal_launcher.cli", "run", str(self.work / "experiment.yaml")]
        argv += ["--port", str(self.ports[0])]
        env = {**os.environ, processes.MARK: self.mark, "OMP_NUM_THREADS": "1"}
        with (self.work / "console.log").open("ab") as console:
            self._launcher = subprocess.Popen(
                argv, cwd=ROOT, env=env, stdout=console, stderr=console, preexec_fn=die_with_parent
            )
        self.starts += 1

    def check_nothing_left(self) -> None:
        """Raises ``AssertionError`` if a process of the ended launcher survives or a port is still open."""
        left = processes.wait_until_gone(self.mark)
        assert not left, f"processes outlive the launcher: {left}"
        for index, port in enumerate(self.ports):
            assert not self.is_listening(index), f"port {port} is still open"

    def is_listening(self, server: int) -> bool:
        """Whether a server accepts connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports[server])) == 0

    def tick(self) -> None:
        """Poll everything once. Restarts a launcher that failed and was allowed to."""
        time.sleep(POLL_S)
        self.steps.poll()
        status = self._started().poll()
        if status is None or (status == 0 and self.finished):
            return
        assert status != 0, f"grpo run exited with status 0 after step {self.steps.last} of {STEPS}"
        assert self.may_fail, f"grpo run exited with status {status}:\n{self.console()}"
        self.check_nothing_left()
        self.start()

    def fault_survived(self) -> None:
        """From now on the launcher must not exit."""
        self.may_fail = False

    def wait_for_launcher(self, within_s: float) -> int | None:
        """Its exit status, or None if it is still running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._started().wait(within_s)
        return None

    def console(self) -> str:
        """The last output of launcher and trainer."""
        texts = []
        for log in (self.work / "console.log", self.run / "logs" / "trainer.log"):
            if log.exists():
                texts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-40:]))
        return "\n".join(texts)

    def _end(self) -> None:
        if self._launcher is not None:
            self._launcher.kill()
            self._launcher.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._launcher is not None, "enter the run first"
        return self._launcher

    def _write_experiment(self) -> None:
        """The tiny experiment with frequent checkpoints and rollout dumps."""
        document = yaml.safe_load((TINY / "experiment.yaml").read_text())
        spec = document["spec"]
        spec["servers"]["replicas"] = self.servers
        addresses = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)
        spec["trainer"] |= {
            "processesPerNode": self._ranks,
            "env": [{"name": "AREAL_LLM_SERVER_ADDRS", "value": addresses}],  # overrides the launcher's value
        }
        spec["runPolicy"] = {"backoffLimit": 1000}
        config = spec["config"]
        config |= {"cluster": {"fileroot": str(self._fileroot)}, "trial_name": "run", "total_train_steps": STEPS}
        config["rollout"] |= {"dump_to_file": True, "dump_max_bytes": 64 << 20}
        config |= {
            "evaluator": {"freq_steps": 1000, "dump_max_bytes": 1 << 20},
            "recover": {"freq_steps": CHECKPOINT_STEPS},
        }
        (self.work / "experiment.yaml").write_text(yaml.safe_dump(document))

    def _keep(self, exchange: Exchange) -> object:
        """Copy the weights that a server is asked to load; returns the copy's name."""
        if exchange.path != UPDATE:
            return None
        source = Path(json.loads(exchange.request)["model_path"])
        manifest = source / "manifest.json"
        if not manifest.exists():
            return BASE
        try:
            digest = str(json.loads(manifest.read_text())["files"]["model.safetensors"]["xxh3_128"])
            copy = self.kept / f"{digest}.safetensors"
            if not copy.exists():
                aside = copy.with_suffix(f".{time.monotonic_ns()}")
                shutil.copyfile(source / "model.safetensors", aside)
                aside.rename(copy)
        except FileNotFoundError:
            return GONE  # the requesting trainer has died and its successor has cleaned up
        return digest


def free_ports(count: int) -> list[int]:
    """Consecutive free ports below the kernel's ephemeral range."""
    for first in range(20000 + os.getpid() % 5000, 30000, count):
        ports = list(range(first, first + count))
        with contextlib.ExitStack() as stack:
            try:
                for port in ports:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return ports
    raise RuntimeError("no free ports between 20000 and 30000")
