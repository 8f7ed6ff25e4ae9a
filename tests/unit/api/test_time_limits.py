"""Time limits: one meaning per key, with defaults that a first start on GPUs survives."""

from __future__ import annotations

import pytest

from areal_api.config import RolloutConfig
from areal_api.servers import ServersSpec
from areal_api.time_limits import TimeLimits

GB = 1e9
WEIGHTS_OF_32B = 65 * GB


def test_a_key_sets_its_own_limit_and_no_other() -> None:
    default = TimeLimits.of(RolloutConfig(), "cpu")
    assert default == TimeLimits(setup_s=300.0, weight_load_s=300.0, broadcast_s=120.0)
    assert TimeLimits.of(RolloutConfig(setup_timeout=7), "cpu") == TimeLimits(7.0, 300.0, 120.0)
    assert TimeLimits.of(RolloutConfig(weight_load_timeout=7), "cpu") == TimeLimits(300.0, 7.0, 120.0)
    assert TimeLimits.of(RolloutConfig(broadcast_timeout=7), "cpu") == TimeLimits(300.0, 300.0, 7.0)


def test_on_cuda_the_trainer_waits_for_an_image_pull_and_a_whole_start() -> None:
    limits = TimeLimits.of(RolloutConfig(), "cuda")
    assert limits.setup_s >= 1800 + ServersSpec(device="cuda").startup_seconds


def test_on_cuda_a_32b_model_loads_over_a_slow_network_file_system() -> None:
    assert TimeLimits.of(RolloutConfig(), "cuda").weight_load_s * 40e6 > WEIGHTS_OF_32B  # at 40 MB/s


@pytest.mark.parametrize(("load_s", "failures"), [(1800, 60), (31, 2), (30, 1), (5, 1)])
def test_a_server_may_be_unhealthy_for_as_long_as_it_may_load_weights(load_s: float, failures: int) -> None:
    limits = TimeLimits.of(RolloutConfig(weight_load_timeout=load_s, broadcast_timeout=1), "cuda")
    assert limits.health_failures == failures
