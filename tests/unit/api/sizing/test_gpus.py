"""GPUs by name."""

from __future__ import annotations

import pytest

from areal_api.sizing.gpus import GPUS, gpu_named


def test_a_misspelt_gpu_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"--gpu is 'h100-80'.*did you mean H100-80GB\?.*known names: "):
        gpu_named("h100-80")


def test_a_gpu_has_less_memory_than_its_name_says() -> None:
    for name, gpu in GPUS.items():
        assert gpu.bytes < int(name.rsplit("-", 1)[1].removesuffix("GB")) * 2**30
