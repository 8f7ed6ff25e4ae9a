"""A run on a Slurm cluster into which faults are injected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from areal_launcher.places.slurm.job import read_job
from faults import processes
from faults.watched_cluster import WatchedCluster
from hack.testbed.slurm_cluster import SlurmCluster


class WatchedSlurm(WatchedCluster):
    """``grpo run --on slurm`` on three nodes, which follows the job."""

    def __init__(self, cluster: SlurmCluster, work: Path) -> None:
        super().__init__("slurm", work, cluster.environment)
        self.cluster = cluster

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self.cluster.command("scancel", "--name=grpo-tiny-run", check=False)

    def sections(self) -> dict[str, dict[str, Any]]:
        """Servers and ranks are spread over the nodes."""
        return {"slurm": {"nodes": 3}}

    def jobs_left(self) -> list[str]:
        """Jobs that are queued or run."""
        return self.cluster.jobs()

    def srun(self, name: str) -> list[psutil.Process]:
        """The srun of a step."""
        lines = [(process, f"{processes.command_line(process)} ") for process in psutil.process_iter()]
        words = (f" --job-name={name} ", str(self.run))
        return [process for process, line in lines if line.startswith("srun ") and all(word in line for word in words)]

    def nodes(self) -> list[str]:
        """Nodes of the job; empty if it does not run."""
        job = read_job(self.run)
        if job is None:
            return []
        shown = self.cluster.command("squeue", "--noheader", f"--jobs={job.id}", "--format=%T %N", check=False).split()
        if len(shown) != 2 or shown[0] != "RUNNING":
            return []
        return self.cluster.command("scontrol", "show", "hostnames", shown[1]).split()
