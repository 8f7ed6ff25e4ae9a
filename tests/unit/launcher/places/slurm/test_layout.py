"""Which node runs what."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.places.slurm.layout import layouts
from support.local_runs import load

CUDA = ("servers.device=cuda", "trainer.device=cuda")


def test_servers_fill_the_gpus_that_the_trainer_leaves(experiment_path: Path) -> None:
    many = ("servers.replicas=6", "servers.tensorParallel=2", "trainer.processesPerNode=4")
    (layout,) = layouts(load(experiment_path, *CUDA, *many).spec, gpus=8)
    assert (layout.nodes, layout.gpus_per_node, layout.cpus_per_node) == (2, 8, 32)
    assert layout.trainer == (0,)
    assert sorted(layout.servers) == [0, 0, 1, 1, 1, 1]


def test_trainer_nodes_are_different_and_processes_on_cpu_are_spread(experiment_path: Path) -> None:
    two = ("servers.replicas=2", "trainer.nodes=2", "slurm.nodes=3")
    (layout,) = layouts(load(experiment_path, *two).spec, gpus=0)
    assert (layout.trainer, layout.gpus_per_node) == ((0, 1), 0)
    assert len(set(layout.servers)) == 2
    assert 2 in layout.servers


def test_areals_number_of_nodes_and_gpus_decides(experiment_path: Path) -> None:
    cluster = ("config.cluster.n_nodes=2", "config.cluster.n_gpus_per_node=8")
    (layout,) = layouts(load(experiment_path, *CUDA, *cluster).spec, gpus=4)
    assert (layout.nodes, layout.gpus_per_node) == (2, 8)


def test_servers_in_a_component_of_their_own(experiment_path: Path) -> None:
    apart = ("servers.replicas=4", "trainer.nodes=2", "trainer.processesPerNode=2", "slurm.servers={nodes: 2}")
    trainer, servers = layouts(load(experiment_path, *CUDA, *apart).spec, gpus=8, server_gpus=2)
    assert (trainer.nodes, trainer.trainer, list(trainer.servers)) == (2, (0, 1), [])
    assert (servers.nodes, sorted(servers.servers), servers.gpus_per_node) == (2, [0, 0, 1, 1], 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("servers.tensorParallel=8",), "servers.tensorParallel is 8, but a node has 4 GPUs"),
        (("servers.replicas=9", "slurm.nodes=2"), "do not fit on 2 nodes of 4 GPUs; raise slurm.nodes"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(
    experiment_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layouts(load(experiment_path, *CUDA, *overrides).spec, gpus=4)
