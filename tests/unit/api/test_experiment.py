"""The experiment's own rules: the table that the API server is tested with too."""

from __future__ import annotations

import pytest

from areal_api.experiment import GRPOExperiment
from areal_api.load import parse_experiment
from support.experiment_cases import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_experiment_is_accepted_or_refused(case: Case) -> None:
    if case.problem is None:
        parse_experiment(case.experiment(), source="case")
        return
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        parse_experiment(case.experiment(), source="case")
    assert case.problem in str(caught.value)


def test_ranks_are_processes_of_all_nodes() -> None:
    data = Case("", {"spec.trainer": {"nodes": 2, "processesPerNode": 4}}).experiment()
    assert GRPOExperiment.model_validate(data).spec.trainer.ranks == 8


@pytest.mark.parametrize(("servers", "most"), [({"replicas": 2}, 2), ({"replicas": 2, "maxReplicas": 5}, 5)])
def test_addresses_are_known_for_the_most_servers(servers: dict[str, int], most: int) -> None:
    data = Case("", {"spec.servers": servers}).experiment()
    assert GRPOExperiment.model_validate(data).spec.max_replicas == most


def test_kubernetes_keys_are_camel_case_only() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'processes_per_node'.*did you mean 'processesPerNode'"):
        GRPOExperiment.model_validate(Case("", {"spec.trainer": {"processes_per_node": 1}}).experiment())
