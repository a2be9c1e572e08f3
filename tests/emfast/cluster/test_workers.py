from __future__ import annotations

import pytest

from emfast.cluster.connection import Cluster, Machine
from emfast.cluster.workers import Slot, choose_slot
from engines.errors import UserError


def never(slot: Slot) -> str:
    raise AssertionError(f"{slot}: nothing to try")


def cluster(*machines: tuple[int, int]) -> Cluster:
    return Cluster("a test", tuple(Machine(*machine) for machine in machines), local=False)


@pytest.mark.parametrize(
    ("machines", "threads", "expected"),
    [
        (((16, 0), (8, 0)), None, Slot(4, 0, 4, 6)),
        # A head node without CPUs, and a machine that sets the default.
        (((0, 0), (2, 0), (16, 0)), None, Slot(2, 0, 2, 9)),
        (((16, 0), (7, 0)), 8, Slot(8, 0, 8, 2)),
    ],
)
def test_workers_on_cpus(
    machines: tuple[tuple[int, int], ...], threads: int | None, expected: Slot
) -> None:
    assert choose_slot(cluster(*machines), "auto", threads, never) == expected
    assert choose_slot(cluster(*machines), "onnxruntime-cpu", threads, never) == expected


def test_a_gpu_a_worker() -> None:
    machines = cluster((32, 8), (2, 4), (16, 0))
    assert choose_slot(machines, "tensorrt", None, never) == Slot(1, 1, None, 10)
    assert choose_slot(machines, "auto", None, lambda slot: "onnxruntime-cuda").gpus == 1
    # Where no engine of the GPUs works, their CPUs do.
    assert choose_slot(machines, "auto", 2, lambda slot: "openvino") == Slot(2, 0, 2, 25)
    assert choose_slot(machines, "openvino", 2, never) == Slot(2, 0, 2, 25)


def test_shards_are_finer_than_workers() -> None:
    assert Slot(1, 0, 1, 2).shards(1000) == 16
    assert Slot(1, 1, None, 2).shards(1000) == 8
    assert Slot(1, 0, 1, 2).shards(3) == 3


def test_no_room_is_told() -> None:
    with pytest.raises(UserError, match="needs a GPU, and the cluster has none"):
        choose_slot(cluster((4, 0)), "tensorrt", None, never)
    with pytest.raises(UserError, match="8 threads fits on no machine .* has 4 CPUs;"):
        choose_slot(cluster((4, 0), (2, 0)), "auto", 8, never)
    with pytest.raises(UserError, match="0 threads"):
        choose_slot(cluster((4, 0)), "auto", 0, never)
