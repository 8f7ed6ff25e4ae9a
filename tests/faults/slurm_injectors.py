"""How each kind of fault is injected into a run on Slurm, and when it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from faults.injected import Injected
from faults.processes import choose
from faults.schedule import Deck, Kind
from faults.watched_slurm import RANKS, SERVERS, WatchedSlurm, kill

DECK: Deck = {
    "kill server": 1,
    "kill srun of server": 1,
    "kill trainer": 1,
    "kill rank": 1,
    "kill launcher in job": 1,
    "kill grpo run": 1,
    "grpo stop": 1,
    "scancel": 1,
    "restart slurmctld": 1,
    "restart slurmd": 1,
    "kill node": 1,
    "preempt": 1,
}
NOTICED_S = 120.0


def inject(run: WatchedSlurm, injected: Injected) -> None:
    """Inject a fault and end it."""
    INJECTORS[injected.fault.kind](run, injected)


def _kill_server(run: WatchedSlurm, injected: Injected) -> None:
    index = int(injected.fault.choice * SERVERS)
    _kill(run, injected, lambda: run.find("areal_server.launch", f"--index {index} "), f"server-{index}")


def _kill_srun(run: WatchedSlurm, injected: Injected) -> None:
    name = f"server-{int(injected.fault.choice * SERVERS)}"
    _kill(run, injected, lambda: run.sruns(name), f"srun of {name}")


def _kill_trainer(run: WatchedSlurm, injected: Injected) -> None:
    rank = int(injected.fault.choice * RANKS)
    _kill(run, injected, lambda: run.find("torch.distributed.run", f"--node-rank {rank} "), f"torchrun {rank}")


def _kill_rank(run: WatchedSlurm, injected: Injected) -> None:
    def ranks() -> list[int]:
        torchruns = run.find("torch.distributed.run")
        return [pid for pid in run.find("areal_trainer.train") if pid not in torchruns]

    run.tick_until(ranks, "a rank to kill")
    victim = choose(ranks(), injected.fault.choice)
    injected.detail = f"process {victim}"
    kill([victim])


def _kill_launcher(run: WatchedSlurm, injected: Injected) -> None:
    run.may_fail = True
    _kill(run, injected, lambda: run.find("python", "slurm.controller"), "the controller")
    run.follower.wait(NOTICED_S)


def _kill_follower(run: WatchedSlurm, injected: Injected) -> None:
    injected.detail = "grpo run"
    run.follower.kill()
    run.follower.wait()
    run.start()


def _stop(run: WatchedSlurm, injected: Injected) -> None:
    _end(run, injected)


def _cancel(run: WatchedSlurm, injected: Injected) -> None:
    _end(run, injected, "--now")


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
    run.tick_until(run.nodes, "the job to run")
    node = choose(run.nodes(), injected.fault.choice)
    injected.detail = node
    run.cluster.kill_node(node)
    run.tick_until(lambda: not run.nodes(), "the job to leave its nodes", within_s=NOTICED_S)
    run.cluster.restart_node(node)


def _preempt(run: WatchedSlurm, injected: Injected) -> None:
    """A job of higher priority needs all nodes for a moment."""
    run.tick_until(run.nodes, "the job to run")
    injected.detail = "by a job of partition urgent"
    urgent = ("--partition=urgent", "--nodes=3", "--exclusive", f"--output={os.devnull}", "--wrap=sleep 2")
    run.cluster.command("sbatch", *urgent)
    run.tick_until(lambda: not run.nodes(), "the job to be preempted", within_s=NOTICED_S)


def _kill(run: WatchedSlurm, injected: Injected, victims: Callable[[], Sequence[int]], what: str) -> None:
    run.tick_until(lambda: bool(victims()), f"{what} to run")
    injected.detail = what
    kill(list(victims()))


def _end(run: WatchedSlurm, injected: Injected, *options: str) -> None:
    run.tick_until(run.nodes, "the job to run")
    injected.detail = " ".join(["grpo stop", *options])
    run.stop(*options)
    run.start()


INJECTORS: dict[Kind, Callable[[WatchedSlurm, Injected], None]] = {
    "kill server": _kill_server,
    "kill srun of server": _kill_srun,
    "kill trainer": _kill_trainer,
    "kill rank": _kill_rank,
    "kill launcher in job": _kill_launcher,
    "kill grpo run": _kill_follower,
    "grpo stop": _stop,
    "scancel": _cancel,
    "restart slurmctld": _restart_controller,
    "restart slurmd": _restart_daemon,
    "kill node": _kill_node,
    "preempt": _preempt,
}
