"""CPU threads of the processes of a job."""

from __future__ import annotations

from areal_launcher.places.slurm.controller import threads_per_process
from areal_launcher.places.slurm.layout import Layout


def test_the_cpus_of_the_busiest_node_are_shared() -> None:
    assert threads_per_process([Layout(2, 0, 8, servers=(0, 1), trainer=(0,))]) == 4
    assert threads_per_process([Layout(1, 0, 1, servers=(0, 0), trainer=(0,))]) == 1
