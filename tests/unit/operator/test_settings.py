"""The operator's settings."""

from __future__ import annotations

import pytest

from areal_operator.settings import Settings


def test_settings_come_from_the_environment_or_are_refused() -> None:
    settings = Settings.from_env({"AREAL_WATCH_NAMESPACES": "a, b", "AREAL_OPERATOR_URL": "http://x/"})
    assert (settings.watched, settings.progress_url) == (("a", "b"), "http://x")
    with pytest.raises(ValueError, match="AREAL_OPERATOR_PORT is 'x'"):
        Settings.from_env({"AREAL_OPERATOR_PORT": "x"})


def test_a_cluster_allows_known_parts_of_the_fabric() -> None:
    assert Settings.from_env({"AREAL_FABRIC": "ipcLock,hostNetwork"}).fabric == {"ipcLock", "hostNetwork"}
    assert Settings.from_env({"AREAL_FABRIC": ""}).fabric == frozenset()
    with pytest.raises(ValueError, match="AREAL_FABRIC has 'root'; set a list of hostNetwork, ipcLock"):
        Settings.from_env({"AREAL_FABRIC": "root"})


def test_kueue_is_used_only_if_the_cluster_has_it() -> None:
    assert [Settings.from_env({"AREAL_KUEUE": text}).kueue for text in ("", "false", "true")] == [False, False, True]
    with pytest.raises(ValueError, match="AREAL_KUEUE is 'yes'; set true or false"):
        Settings.from_env({"AREAL_KUEUE": "yes"})


def test_schedulers_of_groups_are_kubernetes_own_unless_others_are_named() -> None:
    assert Settings.from_env({}).gang_schedulers == (("default-scheduler", "kubernetes"),)
    named = Settings.from_env({"AREAL_GANG_SCHEDULERS": "volcano=volcano, my-kai=kai"})
    assert named.gang_schedulers == (("volcano", "volcano"), ("my-kai", "kai"))
    assert Settings.from_env({"AREAL_GANG_SCHEDULERS": ""}).gang_schedulers == ()
    with pytest.raises(ValueError, match="AREAL_GANG_SCHEDULERS has 'volcano'; set a list of scheduler=API"):
        Settings.from_env({"AREAL_GANG_SCHEDULERS": "volcano"})
    with pytest.raises(ValueError, match="AREAL_GANG_SCHEDULERS has 'a=slurm'"):
        Settings.from_env({"AREAL_GANG_SCHEDULERS": "a=slurm"})
