from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.gpu import Gpu, NoGpuError, doubtful_order, gpus

FAKE = Path(__file__).parent / "fakes/nvml"
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-aa11",
    "capability": [9, 0],
    "memory": 85_520_809_984,
    "mig": {"MIG-77": {"name": "NVIDIA H100 MIG 1g.10gb", "memory": 10_000_000_000}},
}
RTX = {
    "name": "NVIDIA GeForce RTX 3090",
    "uuid": "GPU-bb22",
    "capability": [8, 6],
    "memory": 25_000_000_000,
}
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this machine one with the GPUs that are given."""
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def set_up(*found: dict[str, Any], **environment: str) -> None:
        monkeypatch.setenv("FAKE_GPUS", json.dumps(found))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return set_up


def seen() -> list[str]:
    return [gpu.uuid for gpu in gpus()]


def test_what_the_driver_tells(machine: Machine) -> None:
    machine(H100, RTX, FAKE_DRIVER="575.57.08", FAKE_CUDA="12090")
    first, second = gpus()
    assert first == Gpu(
        index=0,
        name="NVIDIA H100 80GB HBM3",
        uuid="GPU-aa11",
        compute_capability=(9, 0),
        memory=85_520_809_984,
        free=84_520_809_984,
        driver="575.57.08",
        cuda="12.9",
    )
    assert second.index == 1 and second.compute_capability == (8, 6)
    assert first.to_dict()["compute_capability"] == "9.0"


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        ("1", ["GPU-bb22"]),
        ("1,0", ["GPU-bb22", "GPU-aa11"]),
        (" 0 , 1 ", ["GPU-aa11", "GPU-bb22"]),
        ("GPU-bb", ["GPU-bb22"]),
        ("GPU-aa11,1", ["GPU-aa11", "GPU-bb22"]),
        # What names no GPU ends the list.
        ("0,9,1", ["GPU-aa11"]),
        ("0,-1,1", ["GPU-aa11"]),
        ("MIG-77", ["MIG-77"]),
    ],
)
def test_cuda_visible_devices(machine: Machine, value: str, uuids: list[str]) -> None:
    machine(H100, RTX, CUDA_VISIBLE_DEVICES=value)
    assert seen() == uuids
    assert [gpu.index for gpu in gpus()] == list(range(len(uuids)))


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "7", "GPU-", "GPU-cc"])
def test_hidden_gpus_are_told(machine: Machine, value: str) -> None:
    machine(H100, RTX, CUDA_VISIBLE_DEVICES=value)
    with pytest.raises(NoGpuError, match=f"CUDA_VISIBLE_DEVICES='{value}' hides the 2 GPUs"):
        gpus()


def test_a_gpu_named_twice_hides_all(machine: Machine) -> None:
    machine(H100, RTX, CUDA_VISIBLE_DEVICES="0,GPU-aa")
    with pytest.raises(NoGpuError, match="CUDA_VISIBLE_DEVICES=0,GPU-aa names a GPU twice"):
        gpus()


def test_a_mig_slice_has_its_own_memory_and_the_compute_capability_of_its_gpu(
    machine: Machine,
) -> None:
    machine(H100, CUDA_VISIBLE_DEVICES="MIG-77")
    (part,) = gpus()
    assert part.name == "NVIDIA H100 MIG 1g.10gb"
    assert part.memory == 10_000_000_000
    assert part.compute_capability == (9, 0)


def test_a_mig_slice_that_the_driver_does_not_know(machine: Machine) -> None:
    machine(H100, CUDA_VISIBLE_DEVICES="MIG-GPU-aa11/1/0")
    with pytest.raises(
        NoGpuError, match=r"the MIG slice MIG-GPU-aa11/1/0, .* not resolve \(Not Found\)"
    ):
        gpus()


def test_memory_that_is_shared_with_the_cpu(machine: Machine) -> None:
    machine({**RTX, "memory": None})
    (gpu,) = gpus()
    assert (gpu.memory, gpu.free) == (0, 0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (12, r"no NVIDIA driver on this machine \(libnvidia-ml.so.1 is not found\)"),
        (9, "its kernel module is not loaded"),
        (18, "was updated while its old kernel module is still loaded; restart"),
        (999, r"the NVIDIA driver does not answer \(error 999\)"),
    ],
)
def test_drivers_that_do_not_start(machine: Machine, code: int, message: str) -> None:
    machine(H100, FAKE_NVML_ERROR=str(code))
    with pytest.raises(NoGpuError, match=message):
        gpus()


def test_a_driver_without_a_gpu(machine: Machine) -> None:
    machine()
    with pytest.raises(NoGpuError, match="the NVIDIA driver finds no GPU"):
        gpus()


def test_a_gpu_that_fell_off_the_bus(machine: Machine) -> None:
    machine({**H100, "lost": True})
    with pytest.raises(NoGpuError, match=r"does not answer \(GPU is lost\)"):
        gpus()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoGpuError, match="pip install nvidia-ml-py"):
        gpus()


def test_the_order_of_different_models_is_doubtful(machine: Machine) -> None:
    machine(H100, RTX)
    doubt = doubtful_order()
    assert doubt is not None and "set CUDA_DEVICE_ORDER=PCI_BUS_ID" in doubt
    assert "NVIDIA H100 80GB HBM3, NVIDIA GeForce RTX 3090" in doubt


def test_the_order_is_certain(machine: Machine) -> None:
    machine(H100, {**H100, "uuid": "GPU-cc33"})
    assert doubtful_order() is None
    machine(H100, RTX, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert doubtful_order() is None


def test_a_machine_without_a_gpu_answers_at_once() -> None:
    start, reason = time.perf_counter(), None
    try:
        gpus()
    except NoGpuError as error:
        reason = str(error)
    seconds = time.perf_counter() - start
    if reason is None:
        pytest.skip("this machine has a GPU")
    assert seconds < 1 and len(reason.splitlines()) == 1


@pytest.mark.gpu
def test_the_real_gpu() -> None:
    for gpu in gpus():
        assert gpu.name and gpu.uuid.startswith(("GPU-", "MIG-"))
        assert gpu.compute_capability >= (5, 0)
        assert 0 <= gpu.free <= gpu.memory
        assert int(gpu.driver.split(".")[0]) > 400
        assert int(gpu.cuda.split(".")[0]) >= 11
