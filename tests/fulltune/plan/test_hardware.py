"""Names of GPU types: the table's, people's, and those by which Ray finds nodes."""

from __future__ import annotations

import pytest
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from fulltune.plan import hardware

NVML = {
    "A10G": "NVIDIA A10G",
    "L4": "NVIDIA L4",
    "L40S": "NVIDIA L40S",
    "RTX-4090": "NVIDIA GeForce RTX 4090",
    "A100-40": "NVIDIA A100-SXM4-40GB",
    "A100-80": "NVIDIA A100-SXM4-80GB",
    "H100": "NVIDIA H100 80GB HBM3",
    "H200": "NVIDIA H200",
}


@pytest.mark.parametrize("name", [row.name for row in hardware.GPUS])
def test_a_row_has_the_label_that_ray_makes_of_its_device(name):
    label = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(NVML[name])
    assert hardware.ray_label(name) == label
    assert hardware.ray_label(name.lower()) == label
    assert hardware.ray_label(label) == label, "a recipe may use Ray's own name"
    assert hardware.gpu(label).name in (name, "A100-40"), "which is planned as well; a bare A100 as the smaller one"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a10g", "A10G"),
        ("A10", "A10"),  # planned as an A10G, and another card
        ("A100", "A100"),
        ("A100-80G", "A100-80G"),  # labels that Ray never adds by itself: who names one has put it on the nodes
        ("H100-80", "H100"),
        ("4090", "GeForce-RTX-4090"),
        ("V100", "V100"),
        ("AMD-Instinct-MI300X-OAM", "AMD-Instinct-MI300X-OAM"),
    ],
)
def test_other_names_are_rays_or_become_rays(name, label):
    assert hardware.ray_label(name) == label


def test_float32_has_a_lower_peak_than_the_tensor_cores():
    assert all(0 < row.fp32_flops < row.bf16_flops for row in hardware.GPUS)
    assert (hardware.gpu("A100-80").peak(2), hardware.gpu("A100-80").peak(4)) == (312e12, 19.5e12)
