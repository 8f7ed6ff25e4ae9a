"""GPUs by name."""

from __future__ import annotations

import pytest

from areal_api.sizing.gpus import GPUS, PRODUCT_LABEL, gpu_named, gpu_of_labels


def test_a_misspelt_gpu_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"--gpu is 'h100-80'.*did you mean H100-80GB\?.*known names: "):
        gpu_named("h100-80")


def test_a_gpu_has_less_memory_than_its_name_says() -> None:
    for name, gpu in GPUS.items():
        assert gpu.bytes < int(name.rsplit("-", 1)[1].removesuffix("GB")) * 2**30


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100-80GB"),
        ("NVIDIA-A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA-A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA-H200", "H200-141GB"),
        ("NVIDIA-L4", "L4-24GB"),
        ("NVIDIA-L40S", "L40S-48GB"),
    ],
)
def test_a_node_selector_names_a_gpu(product: str, name: str) -> None:
    assert gpu_of_labels({PRODUCT_LABEL: product}) == GPUS[name]


@pytest.mark.parametrize("labels", [{}, {PRODUCT_LABEL: "Tesla-V100-SXM2-16GB"}, {"zone": "H100-80GB"}])
def test_other_selectors_name_none(labels: dict[str, str]) -> None:
    assert gpu_of_labels(labels) is None
