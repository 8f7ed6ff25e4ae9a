"""How each kind of fault is injected into a run on a Ray cluster, and when it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import psutil

from faults.injected import Injected
from faults.processes import choose, send
from faults.schedule import Deck, Kind
from faults.watched_ray import END_S, WatchedRay
from hack.testbed.ray_cluster import name_of

DECK: Deck = {
    "kill server": 1,
    "end server": 1,
    "stop server": 1,
    "kill trainer": 1,
    "stop trainer": 1,
    "kill actor": 1,
    "kill raylet": 1,
    "kill driver": 1,
    "stop driver": 1,
    "interrupt driver": 1,
}
PER_RUN = sum(DECK.values())
LONGER = 3.0  # stops last longer than locally: Ray itself is watched by heartbeats


def inject(run: WatchedRay, injected: Injected) -> None:
    """Inject a fault and end it."""
    INJECTORS[injected.fault.kind](run, injected)


def _kill_server(run: WatchedRay, injected: Injected) -> None:
    _end(run, _server(run, injected), signal.SIGKILL)


def _end_server(run: WatchedRay, injected: Injected) -> None:
    _end(run, _server(run, injected), signal.SIGTERM)


def _stop_server(run: WatchedRay, injected: Injected) -> None:
    _stop(run, _server(run, injected), injected)


def _kill_trainer(run: WatchedRay, injected: Injected) -> None:
    _end(run, _rank(run, injected), signal.SIGKILL)


def _stop_trainer(run: WatchedRay, injected: Injected) -> None:
    _stop(run, _rank(run, injected), injected)


def _kill_actor(run: WatchedRay, injected: Injected) -> None:
    """Kill the actor above a server or a rank, which must take the process with it."""
    process = _server(run, injected) if injected.fault.choice < 0.5 else _rank(run, injected)
    actor = next(parent for parent in process.parents() if name_of(parent).startswith("ray::"))
    injected.detail = f"the actor of {injected.detail}"
    send([actor], signal.SIGKILL)
    _until_gone(run, process)


def _kill_raylet(run: WatchedRay, injected: Injected) -> None:
    """Kill the raylet of a node with a rank, and add the node again when the run has noticed."""
    _rank(run, injected)
    hosts = {run.run.node_of("trainer"), run.run.node_of("trainer-1")}
    index = choose([index for index in (1, 2) if run.cluster.host(index) in hosts], injected.fault.choice)
    injected.detail = f"node {index}"
    before = run.run.console.read_text().count("was lost with its node")
    run.cluster.kill_node(index)
    try:
        run.tick_until(lambda: run.run.console.read_text().count("was lost with its node") > before, "lost processes")
    finally:
        run.cluster.start_node(index)


def _kill_driver(run: WatchedRay, injected: Injected) -> None:
    injected.detail = "grpo run, then the same command again"
    run.launcher.kill()
    run.launcher.wait()
    run.check_nothing_left()
    run.start()


def _stop_driver(run: WatchedRay, injected: Injected) -> None:
    _stop(run, psutil.Process(run.launcher.pid), injected)


def _interrupt_driver(run: WatchedRay, injected: Injected) -> None:
    injected.detail = "Ctrl-C, then the same command again"
    run.launcher.send_signal(signal.SIGINT)
    assert run.launcher.wait(END_S) == 130, run.console()
    run.steps.poll()
    assert run.steps.checkpoint == run.steps.last, f"no checkpoint of step {run.steps.last}"
    run.check_nothing_left()
    run.start()


INJECTORS: dict[Kind, Callable[[WatchedRay, Injected], None]] = {
    "kill server": _kill_server,
    "end server": _end_server,
    "stop server": _stop_server,
    "kill trainer": _kill_trainer,
    "stop trainer": _stop_trainer,
    "kill actor": _kill_actor,
    "kill raylet": _kill_raylet,
    "kill driver": _kill_driver,
    "stop driver": _stop_driver,
    "interrupt driver": _interrupt_driver,
}


def _server(run: WatchedRay, injected: Injected) -> psutil.Process:
    index = choose((0, 1), injected.fault.choice * 10 % 1.0)
    injected.detail = f"server-{index}"
    return _present(run, "areal_server.launch", f"--index {index}")[0]


def _rank(run: WatchedRay, injected: Injected) -> psutil.Process:
    injected.detail = "a rank"
    return choose(_present(run, "-u -m areal_trainer.train"), injected.fault.choice * 10 % 1.0)


def _present(run: WatchedRay, *words: str) -> Sequence[psutil.Process]:
    """Processes with these words, once they run: an earlier fault may not be repaired yet."""
    run.tick_until(lambda: bool(run.run.processes(*words)), f"a process {words} that is running")
    return run.run.processes(*words)


def _end(run: WatchedRay, process: psutil.Process, number: signal.Signals) -> None:
    send([process], number)
    _until_gone(run, process)


def _until_gone(run: WatchedRay, process: psutil.Process) -> None:
    run.tick_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "a process to exit")


def _stop(run: WatchedRay, process: psutil.Process, injected: Injected) -> None:
    """SIGSTOP, and SIGCONT some seconds later."""
    lasts_s = LONGER * injected.fault.lasts_s
    injected.detail += f"{process.name()}, {lasts_s:.1f} s" if not injected.detail else f", {lasts_s:.1f} s"
    send([process], signal.SIGSTOP)
    try:
        run.tick_for(lasts_s)
    finally:
        send([process], signal.SIGCONT)
