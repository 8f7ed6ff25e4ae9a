"""A trainer of several nodes, here as processes of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.core.place import HOST, PORT, SERVERS, ProcessSpec
from areal_launcher.core.trainer import Trainer
from areal_launcher.places.local.place import LocalPlace
from support.process_trees import SLEEPER, alive, pids, python, wait_until


def nodes(tmp: Path, *commands: list[str]) -> list[ProcessSpec]:
    return [ProcessSpec("trainer", i, argv, {}, tmp / f"trainer-{i}.log") for i, argv in enumerate(commands)]


def status_of(trainer: Trainer) -> int:
    wait_until(lambda: trainer.poll() is not None, "the trainer has exited")
    status = trainer.poll()
    assert status is not None
    return status


def test_every_node_gets_the_address_that_the_first_has_chosen(tmp_path: Path) -> None:
    place = LocalPlace()
    show = [*python("import sys; print(*sys.argv[1:])"), HOST, PORT, SERVERS]
    trainer = Trainer(place, nodes(tmp_path, show, show, show), servers=["a:1", "b:2"])
    assert status_of(trainer) == 0
    shown = {tuple(process.tail()) for process in trainer.processes}
    address = trainer.processes[0].address
    assert address is not None
    assert shown == {(f"{address.replace(':', ' ')} a:1,b:2",)}
    place.close()


def test_a_node_that_fails_ends_the_others_and_explains_the_failure(tmp_path: Path) -> None:
    place = LocalPlace()
    first = [*python(SLEEPER, tmp_path / "pids"), PORT]
    second = python("print('out of memory'); raise SystemExit(9)")
    trainer = Trainer(place, nodes(tmp_path, first, second), servers=[])
    assert status_of(trainer) == 9
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))
    failure = trainer.failure(9)
    assert (failure.lines, failure.log) == (["out of memory"], tmp_path / "trainer-1.log")
    place.close()


@pytest.mark.parametrize("statuses", [(0, 0), (1, 0), (1, 1)])
def test_a_trainer_that_was_asked_to_end_waits_for_all_of_its_nodes(tmp_path: Path, statuses: tuple[int, int]) -> None:
    place = LocalPlace()
    code = (
        "import signal, sys, time\n"
        "def end(*_): time.sleep(float(sys.argv[2])); open(sys.argv[3], 'w'); sys.exit(int(sys.argv[1]))\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    marks = [tmp_path / "first", tmp_path / "second"]
    commands = [python(code, status, i * 0.5, marks[i]) for i, status in enumerate(statuses)]
    trainer = Trainer(place, nodes(tmp_path, [*commands[0], PORT], commands[1]), servers=[])
    wait_until(
        lambda: trainer.poll() is None and len(trainer.processes) == 2 and all(p.tail() for p in trainer.processes),
        "both nodes are up",
    )
    trainer.terminate()
    assert status_of(trainer) == max(statuses)
    assert all(mark.exists() for mark in marks)
    place.close()
