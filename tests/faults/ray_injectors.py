"""How the faults that only Ray knows are injected into a run, and when they end."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from faults.cluster_injectors import EVERYWHERE, Injector, present, rank, until_gone
from faults.injected import Injected
from faults.processes import choose, send
from faults.schedule import Kind
from faults.watched_cluster import END_S, SERVERS
from faults.watched_ray import WatchedRay
from hack.testbed.ray_cluster import name_of

LOST = "was lost with its node"


def _kill_actor(run: WatchedRay, injected: Injected) -> None:
    """Kill the actor above a server or a rank, which must take the process with it."""
    index = int(injected.fault.choice * 10 % 1.0 * SERVERS)
    injected.detail = f"server-{index}"
    process = (
        present(run, lambda: run.server(index), injected.detail)[0]
        if injected.fault.choice < 0.5
        else rank(run, injected)
    )
    actor = next(parent for parent in process.parents() if name_of(parent).startswith("ray::"))
    injected.detail = f"the actor of {injected.detail}"
    send([actor], signal.SIGKILL)
    until_gone(run, process)


def _kill_raylet(run: WatchedRay, injected: Injected) -> None:
    """Kill the raylet of a node with a rank, and add the node again when the run has noticed."""
    present(run, run.ranks, "a rank")
    index = choose(run.nodes(), injected.fault.choice)
    injected.detail = f"node {index}"
    before = run.said(LOST)
    run.cluster.kill_node(index)
    try:
        run.tick_until(lambda: run.said(LOST) > before, "lost processes")
    finally:
        run.cluster.start_node(index)


def _kill_driver(run: WatchedRay, injected: Injected) -> None:
    injected.detail = "grpo run, then the same command again"
    run.launcher.kill()
    run.launcher.wait()
    run.check_nothing_left()
    run.start()


def _interrupt_driver(run: WatchedRay, injected: Injected) -> None:
    injected.detail = "Ctrl-C, then the same command again"
    run.launcher.send_signal(signal.SIGINT)
    assert run.launcher.wait(END_S) == 130, run.console()
    run.check_stopped()
    run.start()


INJECTORS: Mapping[Kind, Injector[WatchedRay]] = {
    **EVERYWHERE,
    "kill actor": _kill_actor,
    "kill raylet": _kill_raylet,
    "kill grpo run": _kill_driver,
    "Ctrl-C": _interrupt_driver,
}
