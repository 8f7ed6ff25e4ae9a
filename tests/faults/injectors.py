"""What each kind of fault does to a run, and when it is over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from faults import processes
from faults.injected import Struck
from faults.schedule import Fault, Kind
from faults.small_disk import SmallDisk
from faults.watched import WatchedRun
from support.faulty_proxy import Bad, Badness, Exchange

STRUCK_S = 120.0  # for answers to go wrong as often as they should
NOTICED_S = 25.0  # for a run on a full disk to end
DEATHS: tuple[Kind, ...] = ("kill server", "end server")
DRAINED_S = 60.0  # for a server to end in order: SGLang looks every 5 s whether it is done


def strike(run: WatchedRun, disk: SmallDisk | None, struck: Struck) -> None:
    """Bring a fault about, and lift it."""
    if struck.fault.kind == "full disk":
        assert disk is not None
        _fill(run, disk, struck)
    else:
        STRIKES[struck.fault.kind](run, struck)


def seconds_until_back(struck: Struck, run: WatchedRun) -> float | None:
    """What a fault cost: until a killed server gave its next answer that the trainer got, else until the next step."""
    if struck.fault.kind not in DEATHS:
        back = run.steps.next_after(struck.step, struck.over)
    else:
        assert struck.server is not None
        times = [
            exchange.delivered
            for exchange in run.proxies[struck.server].exchanges
            if exchange.path == "/generate"
            and exchange.status == 200
            and exchange.delivered is not None
            and exchange.began > struck.over
        ]
        back = min(times, default=None)
    return None if back is None else back - struck.at


def _kill_server(run: WatchedRun, struck: Struck) -> None:
    struck.server = index = _server(run, struck.fault)
    tree = _present(run, lambda: processes.server(run.launcher, index), at_least=2)
    # Mostly the server itself; else one of the processes that it consists of, or what looks after it.
    whole = struck.fault.choice * run.servers % 1.0 < 0.5
    victim = tree[1] if whole else processes.chosen(tree, struck.fault.choice * 7 % 1.0)
    struck.detail = f"server-{index}, {_name(victim)}"
    processes.send([victim], signal.SIGKILL)
    run.tick_until(lambda: victim not in processes.server(run.launcher, index), "a killed process to be gone")


def _end_server(run: WatchedRun, struck: Struck) -> None:
    """SIGTERM: it finishes what it has begun, gets nothing more, and ends."""
    struck.server = index = _server(run, struck.fault)
    proxy = run.proxies[index]
    server = _present(run, lambda: processes.server(run.launcher, index), at_least=2)[1]
    before = len(proxy.exchanges)

    def under_way() -> list[Exchange]:
        since = proxy.exchanges[before:]
        return [one for one in since if one.path == "/generate" and one.delivered is None]

    run.tick_until(lambda: bool(under_way()) or run.finished, f"server-{index} to be at work")
    processes.send([server], signal.SIGTERM)
    begun = under_way()
    run.tick_until(lambda: server not in processes.server(run.launcher, index), "a server to end", within_s=DRAINED_S)
    lost = [one for one in begun if one.delivered is None]
    assert not lost, f"server-{index} ended before it had answered {len(lost)} of {len(begun)} requests"
    struck.detail = f"server-{index} by SIGTERM, {len(begun)} requests under way"


def _stop_server(run: WatchedRun, struck: Struck) -> None:
    struck.server = index = _server(run, struck.fault)
    tree = _present(run, lambda: processes.server(run.launcher, index))
    struck.detail = f"server-{index}, {struck.fault.lasts_s} s"
    _stop(run, tree[1:], struck.fault.lasts_s)


def _kill_trainer(run: WatchedRun, struck: Struck) -> None:
    # Mostly a rank; else torchrun, or what looks after it.
    choice = struck.fault.choice
    ranks = _present(run, lambda: processes.ranks(run.launcher))
    above = processes.trainer(run.launcher)[:2]
    victim = processes.chosen(ranks, choice * 10 % 1.0) if choice < 0.6 else processes.chosen(above, choice * 10 % 1.0)
    struck.detail = _name(victim)
    processes.send([victim], signal.SIGKILL)
    run.tick_until(lambda: not any(rank in processes.ranks(run.launcher) for rank in ranks), "the ranks to be gone")


def _stop_trainer(run: WatchedRun, struck: Struck) -> None:
    rank = processes.chosen(_present(run, lambda: processes.ranks(run.launcher)), struck.fault.choice)
    struck.detail = f"{_name(rank)}, {struck.fault.lasts_s} s"
    _stop(run, [rank], struck.fault.lasts_s)


def _kill_launcher(run: WatchedRun, struck: Struck) -> None:
    struck.detail = "grpo run, then the same command again"
    os.kill(run.launcher, signal.SIGKILL)
    run.wait_for_launcher(processes.DEATH_S)
    run.nothing_is_left()
    run.start()


def _stop_launcher(run: WatchedRun, struck: Struck) -> None:
    struck.detail = f"grpo run, {struck.fault.lasts_s} s"
    _stop(run, [psutil.Process(run.launcher)], struck.fault.lasts_s)


def _slow(run: WatchedRun, struck: Struck) -> None:
    _answer_badly(run, struck, "slow", _listening(run, struck.fault))


def _cut(run: WatchedRun, struck: Struck) -> None:
    index = _listening(run, struck.fault)
    cut = run.proxies[index].cut_now()
    _answer_badly(run, struck, "cut", index)
    struck.detail += f", and {cut} connections at once"


def _half(run: WatchedRun, struck: Struck) -> None:
    _answer_badly(run, struck, "half", _listening(run, struck.fault))


def _answer_badly(run: WatchedRun, struck: Struck, kind: Badness, index: int) -> None:
    fault = struck.fault
    bad = Bad(kind, fault.path, fault.times, fault.lasts_s)
    struck.detail = f"server-{index}, {fault.times} × {fault.path or 'any answer'}"
    if kind == "slow":
        struck.detail += f" {fault.lasts_s} s late"
    run.proxies[index].bad.append(bad)
    run.tick_until(lambda: bad.left == 0 or run.finished, f"{struck.detail} to go wrong", within_s=STRUCK_S)
    run.proxies[index].bad.remove(bad)


def _fill(run: WatchedRun, disk: SmallDisk, struck: Struck) -> None:
    """Until the run has ended of it, or has gone on long enough without."""
    starts, until = run.starts, time.monotonic() + NOTICED_S
    launcher = psutil.Process(run.launcher)
    while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        disk.fill()
        time.sleep(0.05)
    status = run.wait_for_launcher(0.0)
    struck.detail = f"grpo run {'goes on' if status is None else f'ended with status {status}'}"
    if status is not None:
        run.nothing_is_left()
        said = run.console()
        assert "No space left on device" in said, f"the run does not say that the disk is full:\n{said}"
    disk.free()
    run.may_fail = True
    run.tick_until(lambda: run.starts > starts or status is None, "grpo run to be started again")


STRIKES: dict[Kind, Callable[[WatchedRun, Struck], None]] = {
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
    return processes.chosen(range(run.servers), fault.choice)


def _listening(run: WatchedRun, fault: Fault) -> int:
    """The same, or the next that can answer: an earlier fault may have killed it, and then it starts for long."""
    found: list[int] = []

    def there() -> bool:
        first = _server(run, fault)
        order = [(first + i) % run.servers for i in range(run.servers)]
        found[:] = [index for index in order if run.is_listening(index)]
        return bool(found)

    run.tick_until(there, "a server that can answer")
    return found[0]


def _present(run: WatchedRun, find: Callable[[], list[psutil.Process]], *, at_least: int = 1) -> list[psutil.Process]:
    """What is looked for, which an earlier fault may have left waiting for its restart."""
    found: list[psutil.Process] = []

    def there() -> bool:
        found[:] = find()
        return len(found) >= at_least

    run.tick_until(there, "the process that is to be hit")
    return found


def _stop(run: WatchedRun, stopped: list[psutil.Process], seconds: float) -> None:
    processes.send(stopped, signal.SIGSTOP)
    try:
        run.tick_for(seconds)
    finally:
        processes.send(stopped, signal.SIGCONT)


def _name(process: psutil.Process) -> str:
    """What a process is, in a word or two."""
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
