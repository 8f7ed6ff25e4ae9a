"""A real run of the tiny experiment, started by ``grpo run`` and watched from outside while faults strike it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

from areal_launcher.local.supervisor import PR_SET_PDEATHSIG, prctl
from faults import processes
from faults.schedule import STEPS
from faults.steps import LocalFiles, Steps, Watched
from support.faulty_proxy import Exchange, FaultyProxy

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
CHECKPOINT_STEPS = 3
POLL_S = 0.1
UPDATE = "/update_weights_from_disk"
BASE = "base"  # weights that are the experiment's own model
GONE = "gone"  # weights that were removed before they could be copied


class WatchedRun(Watched):
    """``grpo run`` with its trainer talking to the servers through proxies. Enter it to start it."""

    def __init__(self, work: Path, fileroot: Path, *, servers: int, ranks: int, mark: str) -> None:
        self.work = work
        self.mark = mark
        self.servers = servers
        self.run = fileroot / "tiny" / "run"
        self.steps = Steps(LocalFiles(self.run))
        self.may_fail = False  # whether the launcher may end with an error, to be started again
        self.starts = 0
        self.kept = work / "kept"  # copies of all weights that servers were told to load
        self._fileroot = fileroot
        self._ranks = ranks
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> WatchedRun:
        self.kept.mkdir(parents=True)
        self.ports = free_ports(self.servers)
        self.proxies = [self._stack.enter_context(FaultyProxy(port, self._keep)) for port in self.ports]
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
        return self._launcher.pid

    def start(self) -> None:
        """The same command, the first time and every other time."""
        argv = [sys.executable, "-m", "areal_launcher.cli", "run", str(self.work / "experiment.yaml")]
        argv += ["--port", str(self.ports[0])]
        env = {**os.environ, processes.MARK: self.mark, "OMP_NUM_THREADS": "1"}
        with (self.work / "console.log").open("ab") as console:
            self._launcher = subprocess.Popen(
                argv, cwd=ROOT, env=env, stdout=console, stderr=console, preexec_fn=_die_with_the_tests
            )
        self.starts += 1

    def nothing_is_left(self) -> None:
        """The launcher has ended: ``AssertionError`` where a process of it lives on, or a port is still listened on."""
        left = processes.wait_until_gone(self.mark)
        assert not left, f"processes outlive the launcher: {left}"
        for index, port in enumerate(self.ports):
            assert not self.is_listening(index), f"port {port} is still listened on"

    def is_listening(self, server: int) -> bool:
        """Whether a server takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports[server])) == 0

    def tick(self) -> None:
        """Look once at everything. A launcher that may fail, and did, is started again."""
        time.sleep(POLL_S)
        self.steps.poll()
        status = self._launcher.poll()
        if status is None or (status == 0 and self.finished):
            return
        assert status != 0, f"grpo run ended well after step {self.steps.last} of {STEPS}"
        assert self.may_fail, f"grpo run ended with status {status}:\n{self.console()}"
        self.nothing_is_left()
        self.start()

    def settle(self) -> None:
        """A launcher that ends from now on has no excuse."""
        self.may_fail = False

    def wait_for_launcher(self, within_s: float) -> int | None:
        """Its exit status, None where it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._launcher.wait(within_s)
        return None

    def console(self) -> str:
        """The end of what the launcher and the trainer said."""
        texts = []
        for log in (self.work / "console.log", self.run / "logs" / "trainer.log"):
            if log.exists():
                texts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-40:]))
        return "\n".join(texts)

    def _end(self) -> None:
        self._launcher.kill()
        self._launcher.wait()

    def _write_experiment(self) -> None:
        """The tiny experiment, in small steps from checkpoint to checkpoint, everything dumped."""
        document = yaml.safe_load((TINY / "experiment.yaml").read_text())
        spec = document["spec"]
        spec["servers"]["replicas"] = self.servers
        addresses = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)
        spec["trainer"] |= {
            "processesPerNode": self._ranks,
            "env": [{"name": "AREAL_LLM_SERVER_ADDRS", "value": addresses}],  # in the place of the launcher's own
        }
        spec["runPolicy"] = {"backoffLimit": 1000}
        config = spec["config"]
        config |= {"cluster": {"fileroot": str(self._fileroot)}, "trial_name": "run", "total_train_steps": STEPS}
        config["rollout"] |= {"dump_to_file": True}
        config |= {"evaluator": {"freq_steps": 1000}, "recover": {"freq_steps": CHECKPOINT_STEPS}}
        (self.work / "experiment.yaml").write_text(yaml.safe_dump(document))

    def _keep(self, exchange: Exchange) -> object:
        """Copy the weights that a server is told to load; the name of the copy."""
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
            return GONE  # the trainer that asked has died, and the next one tidies up
        return digest


def _die_with_the_tests() -> None:
    """Tests that are killed leave no run behind."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Neighbouring ports that nobody listens on now, below those that the kernel hands out by itself."""
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
