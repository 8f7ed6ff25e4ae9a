"""What each kind of fault does to a run in pods, when it is over, and what the status has to say of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from faults.injected import Struck
from faults.processes import chosen
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
SLOWER = 5.0  # than a fault on one machine: probes and watches take seconds to see anything
NOTICED_S = 60.0  # by kubelet, the operator, the status
BACK_S = 240.0  # a pod that is given up, and its successor


def strike(run: WatchedPods, struck: Struck) -> None:
    """Bring a fault about, lift it, and check that the status tells of it."""
    before = run.counts()
    STRIKES[struck.fault.kind](run, struck)
    counted = COUNTED.get(struck.fault.kind)
    if counted is not None:
        run.tick_until(lambda: run.counts() != before, f"the status to tell of {struck.detail}", within_s=BACK_S)
        wanted = {**before, "attempt": before["attempt"] + 1, counted: before[counted] + 1}
        assert run.counts() == wanted, f"after {struck.detail}: {run.counts()}, not {wanted}\n{run.console()}"
    elif struck.fault.kind not in UNCOUNTED:
        assert run.counts() == before, f"after {struck.detail}: {run.counts()}, not {before}\n{run.console()}"


# What the status counts an end of the trainer as; of the others no attempt may end, but for UNCOUNTED.
COUNTED: dict[Kind, str] = {"kill trainer pod": "disruptions", "kill trainer container": "restarts"}
UNCOUNTED: tuple[Kind, ...] = (FILL, STOP)


def _kill_server_pod(run: WatchedPods, struck: Struck) -> None:
    run.run.delete_pod(_victim(run, struck), "--grace-period=0", "--force")
    _is_missing(run)


def _kill_server_container(run: WatchedPods, struck: Struck) -> None:
    kill_process(run.run.cluster, _victim(run, struck), "areal_server")
    _is_missing(run)


def _end_server_pod(run: WatchedPods, struck: Struck) -> None:
    """SIGTERM: it finishes what it has begun, gets nothing more, and ends."""
    run.run.delete_pod(_victim(run, struck), "--wait=false")
    _is_missing(run)


def _kill_trainer_pod(run: WatchedPods, struck: Struck) -> None:
    struck.detail = run.run.kill_pod("trainer", _trainer(run, struck.fault))


def _kill_trainer_container(run: WatchedPods, struck: Struck) -> None:
    struck.detail = run.run.kill_container("trainer", _trainer(run, struck.fault))


def _kill_operator(run: WatchedPods, struck: Struck) -> None:
    """Its pod, or the process in it."""
    release = run.release
    pod = release.operator_pod()
    assert pod is not None, "there is no operator"
    before = running_container(pod)
    if struck.fault.choice < 0.5:
        struck.detail = "the operator's pod"
        release.kill_operator()
    else:
        struck.detail = "the operator's process"
        kill_process(run.run.cluster, pod, "areal_operator")
    run.tick_until(
        lambda: running_container(release.operator_pod()) not in ("", before), "the operator again", within_s=BACK_S
    )
    release.until_operator_is_ready()


def _restart_api_server(run: WatchedPods, struck: Struck) -> None:
    struck.detail = "the API server"
    run.run.cluster.kill_api_server()


def _cut_server_off(run: WatchedPods, struck: Struck) -> None:
    _cut_off(run, _some_server(run, struck), struck)


def _cut_trainer_off(run: WatchedPods, struck: Struck) -> None:
    _cut_off(run, run.run.pod("trainer", _trainer(run, struck.fault)), struck)


def _cut_off(run: WatchedPods, pod: Object, struck: Struck) -> None:
    seconds = struck.fault.lasts_s * SLOWER
    struck.detail = f"{pod['metadata']['name']}, {seconds:.1f} s"
    cut_network(run.run.cluster, pod)
    try:
        run.tick_for(seconds)
    finally:
        restore_network(run.run.cluster, pod)


def _stop_worker(run: WatchedPods, struck: Struck) -> None:
    """As a machine loses power, with all that runs on it: the operator too."""
    seconds = struck.fault.lasts_s * SLOWER
    struck.detail = f"the node of all pods, {seconds:.1f} s"
    cluster = run.run.cluster
    cluster.stop_node(cluster.worker)
    try:
        time.sleep(seconds)
    finally:
        cluster.start_node(cluster.worker)
    run.release.until_operator_is_ready()


def _fill_volume(run: WatchedPods, struck: Struck) -> None:
    """Until the trainer has failed of it and the status says why."""

    def is_told() -> bool:
        run.volume.fill()
        return "volume full" in str(run.run.status.get("message"))

    try:
        run.tick_until(lambda: is_told() or run.finished, "the status to tell of a full volume", within_s=BACK_S)
    finally:
        run.volume.free()
    struck.detail = "the run's volume"


STRIKES: dict[Kind, Callable[[WatchedPods, Struck], None]] = {
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


def seconds_until_back(struck: Struck, run: WatchedPods) -> float | None:
    """What a fault cost: until a killed server held current weights again, else until the next step."""
    if struck.fault.kind in DEATHS:
        back = next(one.back for one in run.awaited if one.struck is struck)
    else:
        back = run.steps.next_after(struck.step, struck.over)
    return None if back is None else back - struck.at


def _some_server(run: WatchedPods, struck: Struck) -> Object:
    """One of the servers, once all are there; the fault's time counts from then on."""
    run.tick_until(lambda: run.ready_servers() == run.layout.servers, "all servers", within_s=BACK_S)
    struck.at, struck.step = time.monotonic(), run.steps.last
    return run.run.pod("server", chosen(range(run.layout.servers), struck.fault.choice))


def _victim(run: WatchedPods, struck: Struck) -> Object:
    """The server that is to die, which is awaited from then on."""
    pod = _some_server(run, struck)
    struck.detail = pod["metadata"]["name"]
    run.awaited.append(Awaited(struck, struck.detail, running_container(pod)))
    return pod


def _trainer(run: WatchedPods, fault: Fault) -> int:
    def run_all() -> bool:
        return sum(running_container(pod) != "" for pod in run.run.pods("trainer")) == run.layout.trainers

    run.tick_until(run_all, "the trainer's pods", within_s=BACK_S)
    return chosen(range(run.layout.trainers), fault.choice)


def _is_missing(run: WatchedPods) -> None:
    run.tick_until(lambda: run.ready_servers() < run.layout.servers, "the status to miss a server", within_s=NOTICED_S)
