"""A Ray cluster as a place: what it starts, where, and what is left when something is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import ray

from areal_launcher.core.place import HOST, PORT, Process, ProcessSpec
from areal_launcher.errors import RunError
from areal_launcher.places.ray.agent import PYTHON
from areal_launcher.places.ray.bundles import Bundle
from areal_launcher.places.ray.connection import connect
from areal_launcher.places.ray.place import RayPlace
from hack.testbed.ray_cluster import RayCluster
from support.process_trees import wait_until

PATIENCE_S = 400.0  # a busy machine starts an actor slowly
SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
LISTEN = """
import socket, sys, time
listening = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def open_place(cluster: RayCluster, run: Path) -> Iterator[Callable[..., RayPlace]]:
    """Opens places that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def opened(bundles: Sequence[Bundle], *, paths: Sequence[str] = (), **settings: object) -> RayPlace:
            connect(cluster.address)
            stack.callback(ray.shutdown)
            # It waits for what an earlier test has held.
            settings = {"wait_s": PATIENCE_S, "notify": lambda text: None, **settings}
            place = RayPlace(bundles, run=run, paths=paths, **settings)
            stack.callback(place.close)
            return place

        yield opened


def spec(run: Path, code: str, *arguments: str, index: int = 0, gpus: int = 0) -> ProcessSpec:
    argv = [PYTHON, "-c", code, *arguments]
    return ProcessSpec("server", index, argv, {"SHOWN": "yes"}, run / f"server-{index}.log", gpus=gpus)


def server_bundle(index: int = 0, *, node: int | None = None, **resources: float) -> Bundle:
    labels = {} if node is None else {"node": f"node-{node}"}
    return Bundle(f"server-{index}", {"CPU": 1.0, **resources}, labels)


def logged_pid(process: Process) -> int:
    wait_until(lambda: bool(process.poll() is not None or process.tail(1)), "it has started", deadline_s=PATIENCE_S)
    return int(process.tail(1)[0])


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_processes_listen_on_the_address_of_their_own_node(
    open_place: Callable[..., RayPlace], cluster: RayCluster, run: Path
) -> None:
    place = open_place([server_bundle(1, node=1), server_bundle(2, node=2)])
    for index in (1, 2):
        process = place.start(spec(run, LISTEN, HOST, PORT, index=index))
        wait_until(lambda process=process: process.tail(1) == ["up"], "it listens", deadline_s=PATIENCE_S)
        assert process.address is not None
        host, _, port = process.address.rpartition(":")
        assert host == cluster.host(index)
        socket.create_connection((host, int(port)), timeout=10).close()


def test_ports_that_are_taken_are_passed_over(
    open_place: Callable[..., RayPlace], cluster: RayCluster, run: Path
) -> None:
    with socket.create_server((cluster.host(1), 0)) as taken:
        first = taken.getsockname()[1]
        place = open_place([server_bundle(node=1)], first_port=first)
        process = place.start(spec(run, LISTEN, HOST, PORT))
        wait_until(lambda: process.tail(1) == ["up"], "it listens", deadline_s=PATIENCE_S)
        assert first < int(str(process.address).rpartition(":")[2]) < first + 1000


def test_the_gpus_that_ray_assigns_are_visible_and_exclusive(open_place: Callable[..., RayPlace], run: Path) -> None:
    show = "import os; print(os.environ['SHOWN'], os.environ['CUDA_VISIBLE_DEVICES'])"
    place = open_place([server_bundle(index, node=1, GPU=1.0) for index in (0, 1)])
    processes = [place.start(spec(run, show, index=index, gpus=1)) for index in (0, 1)]
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0]
    assert sorted(process.tail(1)[0] for process in processes) == ["yes 0", "yes 1"]


def test_a_process_ends_with_its_status_or_on_sigterm_and_starts_again(
    open_place: Callable[..., RayPlace], run: Path
) -> None:
    place = open_place([server_bundle()])
    assert place.start(spec(run, "raise SystemExit(7)")).wait(PATIENCE_S) == 7
    process = place.start(spec(run, SLEEP))
    logged_pid(process)
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert not process.lost


@pytest.mark.scenario
def test_a_process_whose_raylet_is_killed_is_lost_and_starts_on_another_node(
    open_place: Callable[..., RayPlace], cluster: RayCluster, run: Path
) -> None:
    place = open_place([server_bundle(GPU=1.0)])  # not on the first node
    process = place.start(spec(run, LISTEN, HOST, PORT, gpus=1))
    wait_until(lambda: process.tail(1) == ["up"], "it listens", deadline_s=PATIENCE_S)
    first = str(process.address).partition(":")[0]
    index = next(index for index in (1, 2) if cluster.host(index) == first)
    cluster.kill_node(index)
    try:
        assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL
        assert process.lost
        successor = place.start(spec(run, LISTEN, HOST, PORT, gpus=1))
        wait_until(lambda: successor.tail(1) == ["up"], "it listens again", deadline_s=PATIENCE_S)
        assert str(successor.address).partition(":")[0] == cluster.host(3 - index)
    finally:
        cluster.start_node(index)


DRIVER = """
import sys, time
from pathlib import Path
from areal_launcher.core.place import ProcessSpec
from areal_launcher.places.ray.agent import PYTHON
from areal_launcher.places.ray.bundles import Bundle
from areal_launcher.places.ray.connection import connect
from areal_launcher.places.ray.place import RayPlace
connect(None)
run = Path.cwd()
place = RayPlace([Bundle("server-0", {"CPU": 1.0})], run=run, paths=[], wait_s=400.0, notify=print)
process = place.start(ProcessSpec("server", 0, [PYTHON, "-c", sys.argv[1]], {}, run / "log"))
while process.poll() is None:
    time.sleep(0.1)
"""


def test_nothing_outlives_a_driver_that_is_killed(cluster: RayCluster, run: Path) -> None:
    tree = textwrap.dedent("""
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(os.getpid(), child.pid, flush=True)
        time.sleep(600)
    """)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, tree], cwd=run, env=cluster.environment())
    try:
        log = run / "log"
        wait_until(
            lambda: log.exists() and re.search(r"^\d+ \d+\n", log.read_text(), re.M), "it runs", deadline_s=PATIENCE_S
        )
        pids = [int(word) for word in log.read_text().splitlines()[-1].split()]
    finally:
        driver.kill()
        driver.wait()
    wait_until(lambda: all(gone(pid) for pid in pids), "its processes have ended", deadline_s=PATIENCE_S)


def test_resources_are_free_again_after_a_run(
    open_place: Callable[..., RayPlace], cluster: RayCluster, run: Path
) -> None:
    bundles = [server_bundle(index, node=1, GPU=1.0) for index in (0, 1)]
    place = open_place(bundles)
    pids = [logged_pid(place.start(spec(run, SLEEP, index=index))) for index in (0, 1)]
    place.close()
    wait_until(lambda: all(gone(pid) for pid in pids), "its processes have ended", deadline_s=PATIENCE_S)
    open_place(bundles)


@pytest.mark.scenario
def test_two_runs_share_the_cluster_and_a_third_is_told_what_is_missing(
    cluster: RayCluster, open_place: Callable[..., RayPlace], run: Path
) -> None:
    other = run / "other"
    other.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.replace('"CPU": 1.0', '"CPU": 1.0, "GPU": 2.0'), SLEEP],
        cwd=other,
        env=cluster.environment(),
    )
    try:
        wait_until((other / "log").exists, "the first run has started", deadline_s=PATIENCE_S)
        place = open_place([server_bundle(GPU=2.0)])
        logged_pid(place.start(spec(run, SLEEP, gpus=2)))
        place.close()
        with pytest.raises(RunError, match=r"missing .*server-1 needs 2 GPUs.*other work holds them"):
            open_place([server_bundle(index, GPU=2.0) for index in (0, 1)], wait_s=None)
    finally:
        driver.kill()
        driver.wait()


def test_a_run_that_can_never_fit_is_refused_and_holds_nothing(
    open_place: Callable[..., RayPlace], cluster: RayCluster
) -> None:
    with pytest.raises(RunError, match=r"missing 16 GPUs, 2 CPUs.*too small even when nothing else runs"):
        open_place([server_bundle(index, GPU=8.0) for index in (0, 1)], wait_s=None)
    with pytest.raises(RunError, match=r"no room for the run within runPolicy.preRunningDeadlineSeconds = 1"):
        open_place([server_bundle(GPU=8.0)], wait_s=1.0)
    open_place([server_bundle(GPU=2.0)])


def test_a_server_that_is_added_says_what_it_waits_for(open_place: Callable[..., RayPlace], run: Path) -> None:
    messages: list[str] = []
    later = [server_bundle(1), server_bundle(2, GPU=8.0)]
    place = open_place([server_bundle()], later=later, notify=messages.append)
    logged_pid(place.start(spec(run, SLEEP, index=1)))
    assert messages == []
    waiting = place.start(spec(run, SLEEP, index=2, gpus=8))
    assert re.match(r"server-2 waits for room: missing 8 GPUs, 1 CPUs: server-2 needs 8 GPUs", messages[0]), messages
    assert waiting.poll() is None


def test_a_file_that_a_node_lacks_is_named_before_anything_starts(
    open_place: Callable[..., RayPlace], run: Path
) -> None:
    with pytest.raises(ValueError, match=r"node 127.0.1.\d: /nowhere/model does not exist there"):
        open_place([server_bundle()], paths=["/nowhere/model"])
    assert not list(run.glob(".probe*"))


@pytest.mark.scenario
def test_a_directory_that_a_node_does_not_share_is_named_before_anything_starts(
    open_place: Callable[..., RayPlace], cluster: RayCluster, run: Path
) -> None:
    cluster.kill_node(2)
    try:
        cluster.start_node(2, hidden=[run])
        with pytest.raises(ValueError, match=f"node {cluster.host(2)}: {run} is not the directory that grpo sees"):
            open_place([server_bundle(node=2)])
    finally:
        cluster.kill_node(2)
        cluster.start_node(2)


def test_a_successor_waits_until_nothing_of_its_predecessor_runs(
    open_place: Callable[..., RayPlace], run: Path
) -> None:
    place = open_place([server_bundle()])
    (run / "locks").mkdir()
    with (run / "locks" / "server-0").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = place.start(spec(run, SLEEP))
        assert process.wait(2.0) is None
        assert process.address is None
        assert process.tail() == []
        assert os.path.exists(run / "locks" / "server-0")
    logged_pid(process)
