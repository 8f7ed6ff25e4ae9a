"""Random faults during one run on Slurm, with stand-in servers and trainer. FAULTS and SEED choose them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from hack.testbed.slurm_cluster import wait_until
from support.slurm_runs import SlurmRun

FAULTS = int(os.environ.get("FAULTS", "10"))
SEED = int(os.environ.get("SEED") or random.randrange(10**6))


class FaultyRun:
    """A run, the process that follows it, and what can happen to them."""

    def __init__(self, run: SlurmRun, chance: random.Random) -> None:
        self.run = run
        self._chance = chance
        self._follower = self._start()
        self.faults: dict[str, Callable[[], None]] = {
            "server killed": lambda: self._kill(partial(run.processes, f"--index {chance.randrange(2)} ")),
            "srun of a server killed": lambda: self._kill(partial(self._srun, f"server-{chance.randrange(2)}")),
            "trainer killed": lambda: self._kill(partial(run.processes, "--node-rank 0 ")),
            "second trainer node killed": lambda: self._kill(partial(run.processes, "--node-rank 1 ")),
            "launcher in the job killed": self._kill_launcher,
            "follower killed": self._kill_follower,
            "stopped and continued": self._stop,
            "cancelled and continued": lambda: self._stop("--now"),
            "slurmctld restarted": run.cluster.restart_controller,
            "slurmd restarted": lambda: self._restart_daemon(f"n{chance.randrange(1, 4)}"),
        }

    def advance(self, count: int = 3) -> None:
        """Wait until the run has trained ``count`` more steps. A resumed run repeats steps, so count from its start."""
        starts, last = self.run.log("trainer").count("starting after"), self.last

        def advanced() -> bool:
            if self._follower.poll() is not None:
                raise AssertionError(f"grpo run ended: {self._follower.communicate()[0]}")
            now = self.run.log("trainer").count("starting after")
            return now >= starts and self.last >= last + count

        wait_until(advanced, f"{count} more steps")

    @property
    def last(self) -> int:
        return max(self.run.steps, default=0)

    def end(self) -> None:
        """Stop the run for good."""
        status, output = self.run.grpo("stop", "--on", "slurm", str(self.run.directory))
        assert status == 0, output
        assert self._follower.wait(240) == 130

    def _start(self) -> subprocess.Popen[str]:
        return self.run.start("runPolicy.backoffLimit=1000")

    def _kill(self, victims: Callable[[], list[int]]) -> None:
        """Kill processes, once they run: an earlier fault may not be repaired yet."""
        wait_until(victims, "the processes to be killed run")
        for pid in victims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _srun(self, name: str) -> list[int]:
        return self.run.processes_of("srun", f"--job-name={name} ")

    def _kill_launcher(self) -> None:
        self._kill(partial(self.run.python_processes, f"slurm.controller {self.run.directory}"))
        assert self._follower.wait(240) == 1
        self._follower = self._start()

    def _kill_follower(self) -> None:
        self._follower.kill()
        self._follower.wait()
        self._follower = self._start()

    def _stop(self, *options: str) -> None:
        status, output = self.run.grpo("stop", "--on", "slurm", *options, str(self.run.directory))
        assert status == 0, output
        self._follower.wait(240)
        assert not self.run.processes("")
        self._follower = self._start()

    def _restart_daemon(self, node: str) -> None:
        self.run.cluster.stop_node(node)
        self.run.cluster.start_node(node)


@pytest.mark.scenario
def test_a_run_survives_random_faults_and_writes_every_step_once(run: SlurmRun) -> None:
    chance = random.Random(SEED)
    run.change("trainer", env=[{"name": "STEPS", "value": "100000"}])
    faulty = FaultyRun(run, chance)
    faulty.advance()
    names = list(faulty.faults)
    schedule = [name for _ in range(-(-FAULTS // len(names))) for name in chance.sample(names, len(names))][:FAULTS]
    for number, name in enumerate(schedule, 1):
        print(f"SEED={SEED} fault {number}: {name}", flush=True)
        faulty.faults[name]()
        faulty.advance()
        assert run.steps == list(range(1, len(run.steps) + 1)), f"SEED={SEED} after {name}"
    faulty.end()
    assert not run.processes("")
    assert not (run.directory / "api-key").exists()
    wait_until(lambda: not [job for job in run.cluster.jobs() if job.startswith(run.job)], "the job is gone")
