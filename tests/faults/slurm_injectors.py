"""How the faults that only Slurm knows are injected into a run, and when they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from faults.cluster_injectors import EVERYWHERE, Injector, end, present
from faults.injected import Injected
from faults.processes import choose, send
from faults.schedule import Kind
from faults.watched_cluster import END_S, SERVERS
from faults.watched_slurm import WatchedSlurm


def _kill_srun(run: WatchedSlurm, injected: Injected) -> None:
    name = f"server-{int(injected.fault.choice * SERVERS)}"
    injected.detail = f"srun of {name}"
    send(present(run, lambda: run.srun(name), injected.detail), signal.SIGKILL)


def _kill_launcher(run: WatchedSlurm, injected: Injected) -> None:
    """The job ends with its launcher, and the same command continues."""
    injected.detail = "the controller"
    run.may_fail = True
    end(run, present(run, lambda: run.find("slurm.controller"), injected.detail)[0], signal.SIGKILL)
    run.launcher.wait(END_S)


def _kill_follower(run: WatchedSlurm, injected: Injected) -> None:
    """The job continues, and the same command follows it."""
    injected.detail = "grpo run, then the same command again"
    run.launcher.kill()
    run.launcher.wait()
    run.start()


def _interrupt_follower(run: WatchedSlurm, injected: Injected) -> None:
    """The job continues, and the same command follows it."""
    injected.detail = "Ctrl-C, then the same command again"
    run.launcher.send_signal(signal.SIGINT)
    assert run.launcher.wait(END_S) == 130, run.console()
    run.start()


def _cancel(run: WatchedSlurm, injected: Injected) -> None:
    present_job(run)
    injected.detail = "grpo stop --now, then the same command again"
    run.stop("--now")
    run.check_nothing_left()
    run.start()


def _restart_controller(run: WatchedSlurm, injected: Injected) -> None:
    injected.detail = "slurmctld"
    run.cluster.restart_controller()


def _restart_daemon(run: WatchedSlurm, injected: Injected) -> None:
    node = choose(run.cluster.nodes, injected.fault.choice)
    injected.detail = f"slurmd of {node}"
    run.cluster.stop_node(node)
    run.cluster.start_node(node)


def _kill_node(run: WatchedSlurm, injected: Injected) -> None:
    """A lost node makes Slurm queue the job again. It comes back once the job has left."""
    node = choose(present_job(run), injected.fault.choice)
    injected.detail = node
    run.tick_until(lambda: bool(run.cluster.steps_of(node)), f"a step on {node}")
    run.cluster.kill_node(node)
    run.tick_until(lambda: not run.nodes(), "the job to leave its nodes")
    run.cluster.restart_node(node)


def _preempt(run: WatchedSlurm, injected: Injected) -> None:
    """A job of higher priority needs all nodes for a moment."""
    present_job(run)
    injected.detail = "by a job of partition urgent"
    urgent = ("--partition=urgent", "--nodes=3", "--exclusive", f"--output={os.devnull}", "--wrap=sleep 2")
    run.cluster.command("sbatch", *urgent)
    run.tick_until(lambda: not run.nodes(), "the job to be preempted")


INJECTORS: Mapping[Kind, Injector[WatchedSlurm]] = {
    **EVERYWHERE,
    "kill srun of server": _kill_srun,
    "kill launcher in job": _kill_launcher,
    "kill grpo run": _kill_follower,
    "Ctrl-C": _interrupt_follower,
    "scancel": _cancel,
    "restart slurmctld": _restart_controller,
    "restart slurmd": _restart_daemon,
    "kill node": _kill_node,
    "preempt": _preempt,
}


def present_job(run: WatchedSlurm) -> list[str]:
    """Nodes of the job, once it runs."""
    run.tick_until(lambda: bool(run.nodes()), "the job to run")
    return run.nodes()
