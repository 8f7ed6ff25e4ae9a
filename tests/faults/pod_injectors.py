"""How each kind of fault is injected into a run in pods, when it ends, and what the status must report."""

from __future__ import annotations

import time
from collections.abc import Callable

from faults.injected import Injected
from faults.processes import choose
from faults.schedule import Deck, Fault, Kind
from faults.watched_pods import ONE_TRAINER, TWO_TRAINERS, Awaited, Layout, WatchedPods
from hack.cluster.node_pods import cut_network, kill_process, restore_network, running_container
from hack.testbed.kube_api import Object

DEATHS: tuple[Kind, ...] = ("kill server pod", "kill server container", "end server pod")
EVERYWHERE: Deck = {
    "kill server pod": 1,
    "kill server container": 1,
    "end server pod": 1,
    "kill trainer pod": 1,
    "kill trainer container": 1,
    "kill operator": 1,
    "restart API server": 1,
    "cut server off": 1,
    "cut trainer off": 1,
}
FILL, STOP = "fill volume", "stop worker"
DECKS: dict[Layout, Deck] = {ONE_TRAINER: {**EVERYWHERE, FILL: 1}, TWO_TRAINERS: {**EVERYWHERE, STOP: 1}}
KINDS: Deck = {**EVERYWHERE, FILL: 1, STOP: 1}
PER_RUN = sum(DECKS[ONE_TRAINER].values())
SLOWER = 5.0  # factor over a local fault: probes and watches take seconds to react
NOTICED_S = 60.0  # deadline for kubelet, operator and status to notice
BACK_S = 240.0  # deadline for evicting a pod and starting its replacement


def inject(run: WatchedPods, injected: Injected) -> None:
    """Inject a fault, end it, and check that the status reports it."""
    before = run.counts()
    INJECTORS[injected.fault.kind](run, injected)
    counted = COUNTED.get(injected.fault.kind)
    if counted is not None:
        run.tick_until(lambda: run.counts() != before, f"the status to report {injected.detail}", within_s=BACK_S)
        wanted = {**before, "attempt": before["attempt"] + 1, counted: before[counted] + 1}
        assert run.counts() == wanted, f"after {injected.detail}: {run.counts()}, expected {wanted}\n{run.console()}"
    elif injected.fault.kind not in UNCOUNTED:
        assert run.counts() == before, f"after {injected.detail}: {run.counts()}, expected {before}\n{run.console()}"


# The status counter that each fault increments. Other faults must not end an attempt, except those in UNCOUNTED.
COUNTED: dict[Kind, str] = {"kill trainer pod": "disruptions", "kill trainer container": "restarts"}
UNCOUNTED: tuple[Kind, ...] = (FILL, STOP)


def _kill_server_pod(run: WatchedPods, injected: Injected) -> None:
    run.run.delete_pod(_victim(run, injected), "--grace-period=0", "--force")
    _is_missing(run)


def _kill_server_container(run: WatchedPods, injected: Injected) -> None:
    kill_process(run.run.cluster, _victim(run, injected), "areal_server")
    _is_missing(run)


def _end_server_pod(run: WatchedPods, injected: Injected) -> None:
    """SIGTERM: the server finishes its running requests, gets no new ones and exits."""
    run.run.delete_pod(_victim(run, injected), "--wait=false")
    _is_missing(run)


def _kill_trainer_pod(run: WatchedPods, injected: Injected) -> None:
    injected.detail = run.run.kill_pod("trainer", _trainer(run, injected.fault))


def _kill_trainer_container(run: WatchedPods, injected: Injected) -> None:
    injected.detail = run.run.kill_container("trainer", _trainer(run, injected.fault))


def _kill_operator(run: WatchedPods, injected: Injected) -> None:
    """Kill the operator's pod or the process in it."""
    release = run.release
    pod = release.operator_pod()
    assert pod is not None, "no operator pod found"
    before = running_container(pod)
    if injected.fault.choice < 0.5:
        injected.detail = "the operator's pod"
        release.kill_operator()
    else:
        injected.detail = "the operator's process"
        kill_process(run.run.cluster, pod, "areal_operator")
    run.tick_until(
        lambda: running_container(release.operator_pod()) not in ("", before),
        "the operator to restart",
        within_s=BACK_S,
    )
    release.until_operator_is_ready()


def _restart_api_server(run: WatchedPods, injected: Injected) -> None:
    injected.detail = "the API server"
    run.run.cluster.kill_api_server()


def _cut_server_off(run: WatchedPods, injected: Injected) -> None:
    _cut_off(run, _some_server(run, injected), injected)


def _cut_trainer_off(run: WatchedPods, injected: Injected) -> None:
    _cut_off(run, run.run.pod("trainer", _trainer(run, injected.fault)), injected)


def _cut_off(run: WatchedPods, pod: Object, injected: Injected) -> None:
    seconds = injected.fault.lasts_s * SLOWER
    injected.detail = f"{pod['metadata']['name']}, {seconds:.1f} s"
    cut_network(run.run.cluster, pod)
    try:
        run.tick_for(seconds)
    finally:
        restore_network(run.run.cluster, pod)


def _stop_worker(run: WatchedPods, injected: Injected) -> None:
    """Power loss of the worker, with everything that runs on it, including the operator."""
    seconds = injected.fault.lasts_s * SLOWER
    injected.detail = f"the node of all pods, {seconds:.1f} s"
    cluster = run.run.cluster
    cluster.stop_node(cluster.worker)
    try:
        time.sleep(seconds)
    finally:
        cluster.start_node(cluster.worker)
    run.release.until_operator_is_ready()


def _fill_volume(run: WatchedPods, injected: Injected) -> None:
    """Fill the volume until the trainer fails and the status names the reason."""

    def is_reported() -> bool:
        run.volume.fill()
        return "volume full" in str(run.run.status.get("message"))

    try:
        run.tick_until(lambda: is_reported() or run.finished, "the status to report a full volume", within_s=BACK_S)
    finally:
        run.volume.free()
    injected.detail = "the run's volume"


INJECTORS: dict[Kind, Callable[[WatchedPods, Injected], None]] = {
    "kill server pod": _kill_server_pod,
    "kill server container": _kill_server_container,
    "end server pod": _end_server_pod,
    "kill trainer pod": _kill_trainer_pod,
    "kill trainer container": _kill_trainer_container,
    "kill operator": _kill_operator,
    "restart API server": _restart_api_server,
    "cut server off": _cut_server_off,
    "cut trainer off": _cut_trainer_off,
    FILL: _fill_volume,
    STOP: _stop_worker,
}


def seconds_until_back(injected: Injected, run: WatchedPods) -> float | None:
    """Recovery time: until a killed server held current weights again, otherwise until the next step."""
    if injected.fault.kind in DEATHS:
        back = next(one.back for one in run.awaited if one.injected is injected)
    else:
        back = run.steps.next_after(injected.step, injected.over)
    return None if back is None else back - injected.at


def _some_server(run: WatchedPods, injected: Injected) -> Object:
    """Choose a server once all are ready; the fault's time starts then."""
    run.tick_until(lambda: run.ready_servers() == run.layout.servers, "all servers", within_s=BACK_S)
    injected.at, injected.step = time.monotonic(), run.steps.last
    return run.run.pod("server", choose(range(run.layout.servers), injected.fault.choice))


def _victim(run: WatchedPods, injected: Injected) -> Object:
    """Choose a server to kill and await its replacement from now on."""
    pod = _some_server(run, injected)
    injected.detail = pod["metadata"]["name"]
    run.awaited.append(Awaited(injected, injected.detail, running_container(pod)))
    return pod


def _trainer(run: WatchedPods, fault: Fault) -> int:
    def run_all() -> bool:
        return sum(running_container(pod) != "" for pod in run.run.pods("trainer")) == run.layout.trainers

    run.tick_until(run_all, "the trainer's pods", within_s=BACK_S)
    return choose(range(run.layout.trainers), fault.choice)


def _is_missing(run: WatchedPods) -> None:
    run.tick_until(
        lambda: run.ready_servers() < run.layout.servers, "the status to report a missing server", within_s=NOTICED_S
    )
