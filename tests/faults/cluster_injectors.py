"""How the faults that every cluster knows are injected into a run, and when they end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import psutil

from faults.injected import Injected
from faults.processes import choose, send
from faults.schedule import Kind
from faults.watched_cluster import RANKS, SERVERS, WatchedCluster

LONGER = 3.0  # stops last longer than locally: clusters watch their nodes by heartbeats
R = TypeVar("R", bound=WatchedCluster)
Injector = Callable[[R, Injected], None]


def kill_server(run: WatchedCluster, injected: Injected) -> None:
    """Kill a server."""
    end(run, _server(run, injected), signal.SIGKILL)


def end_server(run: WatchedCluster, injected: Injected) -> None:
    """SIGTERM: the server finishes its running requests and exits."""
    end(run, _server(run, injected), signal.SIGTERM)


def stop_server(run: WatchedCluster, injected: Injected) -> None:
    """Stop a server for some seconds."""
    stop(run, _server(run, injected), injected)


def kill_torchrun(run: WatchedCluster, injected: Injected) -> None:
    """Kill torchrun on a node, which must take its rank with it."""
    node = int(injected.fault.choice * RANKS)
    injected.detail = f"torchrun of node {node}"
    end(run, present(run, lambda: run.torchrun(node), injected.detail)[0], signal.SIGKILL)


def kill_rank(run: WatchedCluster, injected: Injected) -> None:
    """Kill a rank."""
    end(run, rank(run, injected), signal.SIGKILL)


def stop_rank(run: WatchedCluster, injected: Injected) -> None:
    """Stop a rank for some seconds."""
    stop(run, rank(run, injected), injected)


def stop_launcher(run: WatchedCluster, injected: Injected) -> None:
    """Stop ``grpo run`` for some seconds."""
    injected.detail = "grpo run"
    stop(run, psutil.Process(run.launcher.pid), injected)


def stop_run(run: WatchedCluster, injected: Injected) -> None:
    """``grpo stop``: the run ends with a checkpoint, and the same command continues it."""
    injected.detail = "grpo stop, then the same command again"
    run.stop()
    run.check_stopped()
    run.start()


EVERYWHERE: Mapping[Kind, Injector[WatchedCluster]] = {
    "kill server": kill_server,
    "end server": end_server,
    "stop server": stop_server,
    "kill torchrun": kill_torchrun,
    "kill rank": kill_rank,
    "stop rank": stop_rank,
    "stop grpo run": stop_launcher,
    "grpo stop": stop_run,
}


def rank(run: WatchedCluster, injected: Injected) -> psutil.Process:
    """The rank that a fault hits, once there is one."""
    injected.detail = "a rank"
    return choose(present(run, run.ranks, injected.detail), injected.fault.choice * 10 % 1.0)


def present(run: WatchedCluster, find: Callable[[], Sequence[psutil.Process]], what: str) -> Sequence[psutil.Process]:
    """Wait for processes: an earlier fault may not be repaired yet."""
    found: list[psutil.Process] = []

    def are_running() -> bool:
        found[:] = find()
        return bool(found)

    run.tick_until(are_running, f"{what} to run")
    return found


def end(run: WatchedCluster, process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process and wait until it has exited."""
    send([process], number)
    until_gone(run, process)


def until_gone(run: WatchedCluster, process: psutil.Process) -> None:
    """Wait until a process has exited."""
    run.tick_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "a process to exit")


def stop(run: WatchedCluster, process: psutil.Process, injected: Injected) -> None:
    """SIGSTOP, and SIGCONT some seconds later."""
    lasts_s = LONGER * injected.fault.lasts_s
    injected.detail += f", {lasts_s:.1f} s"
    send([process], signal.SIGSTOP)
    try:
        run.tick_for(lasts_s)
    finally:
        send([process], signal.SIGCONT)


def _server(run: WatchedCluster, injected: Injected) -> psutil.Process:
    index = int(injected.fault.choice * SERVERS)
    injected.detail = f"server-{index}"
    return present(run, lambda: run.server(index), injected.detail)[0]
