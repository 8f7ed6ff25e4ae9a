"""How each kind of fault is injected into a run and when it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from faults import processes
from faults.injected import Injected
from faults.schedule import Fault, Kind
from faults.small_disk import SmallDisk
from faults.watched import WatchedRun
from support.faulty_proxy import AnswerFault, BadAnswers, Exchange

APPLIED_S = 120.0  # deadline for all planned faulty answers to happen
NOTICED_S = 25.0  # deadline for a run on a full disk to end
DEATHS: tuple[Kind, ...] = ("kill server", "end server")
DRAINED_S = 60.0  # deadline for a graceful shutdown: SGLang checks every 5 s whether it has finished


def inject(run: WatchedRun, disk: SmallDisk | None, injected: Injected) -> None:
    """Inject a fault and end it."""
    if injected.fault.kind == "full disk":
        assert disk is not None
        _fill(run, disk, injected)
    else:
        INJECTORS[injected.fault.kind](run, injected)


def seconds_until_back(injected: Injected, run: WatchedRun) -> float | None:
    """Recovery time: until a killed server's next answer reached the trainer, otherwise until the next step."""
    if injected.fault.kind not in DEATHS:
        back = run.steps.next_after(injected.step, injected.over)
    else:
        assert injected.server is not None
        times = [
            exchange.delivered
            for exchange in run.proxies[injected.server].exchanges
            if exchange.path == "/generate"
            and exchange.status == 200
            and exchange.delivered is not None
            and exchange.began > injected.over
        ]
        back = min(times, default=None)
    return None if back is None else back - injected.at


def _kill_server(run: WatchedRun, injected: Injected) -> None:
    injected.server = index = _server(run, injected.fault)
    tree = _present(run, lambda: processes.server(run.launcher, index), at_least=2)
    # Usually the server itself, otherwise one of its child processes or its supervisor.
    whole = injected.fault.choice * run.servers % 1.0 < 0.5
    victim = tree[1] if whole else processes.choose(tree, injected.fault.choice * 7 % 1.0)
    injected.detail = f"server-{index}, {_name(victim)}"
    processes.send([victim], signal.SIGKILL)
    run.tick_until(lambda: victim not in processes.server(run.launcher, index), "the killed process to exit")


def _end_server(run: WatchedRun, injected: Injected) -> None:
    """SIGTERM: the server finishes its running requests, gets no new ones and exits."""
    injected.server = index = _server(run, injected.fault)
    proxy = run.proxies[index]
    server = _present(run, lambda: processes.server(run.launcher, index), at_least=2)[1]
    before = len(proxy.exchanges)

    def in_flight() -> list[Exchange]:
        since = proxy.exchanges[before:]
        return [one for one in since if one.path == "/generate" and one.delivered is None]

    run.tick_until(lambda: bool(in_flight()) or run.finished, f"server-{index} to have a request in flight")
    processes.send([server], signal.SIGTERM)
    begun = in_flight()
    run.tick_until(lambda: server not in processes.server(run.launcher, index), "a server to exit", within_s=DRAINED_S)
    lost = [one for one in begun if one.delivered is None]
    assert not lost, f"server-{index} exited without answering {len(lost)} of {len(begun)} requests"
    injected.detail = f"server-{index} by SIGTERM, {len(begun)} requests in flight"


def _stop_server(run: WatchedRun, injected: Injected) -> None:
    injected.server = index = _server(run, injected.fault)
    tree = _present(run, lambda: processes.server(run.launcher, index))
    injected.detail = f"server-{index}, {injected.fault.lasts_s} s"
    _stop(run, tree[1:], injected.fault.lasts_s)


def _kill_trainer(run: WatchedRun, injected: Injected) -> None:
    # Usually a rank, otherwise torchrun or its supervisor.
    choice = injected.fault.choice
    ranks = _present(run, lambda: processes.ranks(run.launcher))
    above = processes.trainer(run.launcher)[:2]
    victim = processes.choose(ranks, choice * 10 % 1.0) if choice < 0.6 else processes.choose(above, choice * 10 % 1.0)
    injected.detail = _name(victim)
    processes.send([victim], signal.SIGKILL)
    run.tick_until(lambda: not any(rank in processes.ranks(run.launcher) for rank in ranks), "the ranks to exit")


def _stop_trainer(run: WatchedRun, injected: Injected) -> None:
    rank = processes.choose(_present(run, lambda: processes.ranks(run.launcher)), injected.fault.choice)
    injected.detail = f"{_name(rank)}, {injected.fault.lasts_s} s"
    _stop(run, [rank], injected.fault.lasts_s)


def _kill_launcher(run: WatchedRun, injected: Injected) -> None:
    injected.detail = "grpo run, then the same command again"
    os.kill(run.launcher, signal.SIGKILL)
    run.wait_for_launcher(processes.DEATH_S)
    run.check_nothing_left()
    run.start()


def _stop_launcher(run: WatchedRun, injected: Injected) -> None:
    injected.detail = f"grpo run, {injected.fault.lasts_s} s"
    _stop(run, [psutil.Process(run.launcher)], injected.fault.lasts_s)


def _slow(run: WatchedRun, injected: Injected) -> None:
    _fault_answers(run, injected, "slow", _listening(run, injected.fault))


def _cut(run: WatchedRun, injected: Injected) -> None:
    index = _listening(run, injected.fault)
    cut = run.proxies[index].cut_now()
    _fault_answers(run, injected, "cut", index)
    injected.detail += f", and {cut} open connections"


def _half(run: WatchedRun, injected: Injected) -> None:
    _fault_answers(run, injected, "half", _listening(run, injected.fault))


def _fault_answers(run: WatchedRun, injected: Injected, kind: AnswerFault, index: int) -> None:
    fault = injected.fault
    bad = BadAnswers(kind, fault.path, fault.times, fault.lasts_s)
    injected.detail = f"server-{index}, {fault.times} × {fault.path or 'any answer'}"
    if kind == "slow":
        injected.detail += f" {fault.lasts_s} s late"
    run.proxies[index].bad.append(bad)
    run.tick_until(lambda: bad.left == 0 or run.finished, f"{injected.detail} to be injected", within_s=APPLIED_S)
    run.proxies[index].bad.remove(bad)


def _fill(run: WatchedRun, disk: SmallDisk, injected: Injected) -> None:
    """Keep the disk full until the run ends or has survived for ``NOTICED_S``."""
    starts, until = run.starts, time.monotonic() + NOTICED_S
    launcher = psutil.Process(run.launcher)
    while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        disk.fill()
        time.sleep(0.05)
    status = run.wait_for_launcher(0.0)
    injected.detail = f"grpo run {'kept running' if status is None else f'exited with status {status}'}"
    if status is not None:
        run.check_nothing_left()
        output = run.console()
        assert "No space left on device" in output, f"the run does not report that the disk is full:\n{output}"
    disk.free()
    run.may_fail = True
    run.tick_until(lambda: run.starts > starts or status is None, "grpo run to be restarted")


INJECTORS: dict[Kind, Callable[[WatchedRun, Injected], None]] = {
    "kill server": _kill_server,
    "end server": _end_server,
    "stop server": _stop_server,
    "kill trainer": _kill_trainer,
    "stop trainer": _stop_trainer,
    "kill launcher": _kill_launcher,
    "stop launcher": _stop_launcher,
    "slow answers": _slow,
    "cut connections": _cut,
    "half answers": _half,
}


def _server(run: WatchedRun, fault: Fault) -> int:
    return processes.choose(range(run.servers), fault.choice)


def _listening(run: WatchedRun, fault: Fault) -> int:
    """The chosen server, or the next one that accepts connections while the chosen one restarts after a fault."""
    found: list[int] = []

    def any_listening() -> bool:
        first = _server(run, fault)
        order = [(first + i) % run.servers for i in range(run.servers)]
        found[:] = [index for index in order if run.is_listening(index)]
        return bool(found)

    run.tick_until(any_listening, "a server that accepts connections")
    return found[0]


def _present(run: WatchedRun, find: Callable[[], list[psutil.Process]], *, at_least: int = 1) -> list[psutil.Process]:
    """Wait for processes that may be restarting after an earlier fault."""
    found: list[psutil.Process] = []

    def are_running() -> bool:
        found[:] = find()
        return len(found) >= at_least

    run.tick_until(are_running, "the target process to run")
    return found


def _stop(run: WatchedRun, stopped: list[psutil.Process], seconds: float) -> None:
    processes.send(stopped, signal.SIGSTOP)
    try:
        run.tick_for(seconds)
    finally:
        processes.send(stopped, signal.SIGCONT)


def _name(process: psutil.Process) -> str:
    """Short description of a process."""
    line = processes.command_line(process)
    for word, name in (
        ("supervisor.py", "its supervisor"),
        ("torch.distributed.run", "torchrun"),
        ("areal_trainer.train", "a rank"),
        ("areal_server.launch", "the server"),
        ("sglang::", line.split()[0] if line else ""),
    ):
        if word in line:
            return name
    return Path(line.split()[0]).name if line else "?"
