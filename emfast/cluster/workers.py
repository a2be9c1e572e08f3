"""What a worker takes of a machine, and how many of them a cluster has room for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emfast.cluster.connection import Cluster, Machine
from engines.errors import UserError

GPU_ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
# Threads of a worker on CPUs where nobody says.
THREADS = 4
# Shards are finer than workers, so that all of them end at about the same time. On GPUs Ray starts
# a process for each shard, to be sure of the memory, so that each opens an engine.
CPU_SHARDS, GPU_SHARDS = 8, 4


@dataclass(frozen=True)
class Slot:
    """What one worker takes.

    Attributes:
        cpus: that it takes.
        gpus: 1 where its engine is a GPU's, else 0.
        threads: of its engine; None for the engine's own choice.
        workers: that the cluster has room for at a time.
    """

    cpus: int
    gpus: int
    threads: int | None
    workers: int

    def shards(self, most: int) -> int:
        """How many shards to cut the work into, of ``most`` that it can be cut into."""
        return max(1, min(self.workers * (GPU_SHARDS if self.gpus else CPU_SHARDS), most))

    def __str__(self) -> str:
        noun = "worker" if self.workers == 1 else "workers"
        if self.gpus:
            return f"{self.workers} {noun} with a GPU each"
        threads = "1 thread" if self.cpus == 1 else f"{self.cpus} threads"
        return f"{self.workers} {noun} of {threads}"


def choose_slot(
    cluster: Cluster, engine: str, threads: int | None, try_engine: Callable[[Slot], str]
) -> Slot:
    """A GPU a worker where the engine is a GPU's, else CPUs.

    Args:
        cluster: that the workers run on.
        engine: as ``--engine`` names it.
        threads: CPU threads of a worker; by default :data:`THREADS`, or what the smallest machine
            has.
        try_engine: opens the engine on a worker and returns its name. Called where "auto" could
            mean either.

    Raises:
        UserError: no machine has room for a worker.
    """
    if threads is not None and threads < 1:
        raise UserError(f"{threads} threads asked for; at least 1 is needed")
    if engine in GPU_ENGINES and not cluster.gpus:
        raise UserError(f"engine {engine} needs a GPU, and the cluster has none ({cluster})")
    if engine in GPU_ENGINES or (engine == "auto" and cluster.gpus):
        slot = _slot(cluster, threads or 1, 1, threads)
        if engine in GPU_ENGINES or try_engine(slot) in GPU_ENGINES:
            return slot
    if threads is None:
        threads = min((m.cpus for m in cluster.machines if m.cpus), default=1)
        threads = min(threads, THREADS)
    return _slot(cluster, threads, 0, threads)


def _slot(cluster: Cluster, cpus: int, gpus: int, threads: int | None) -> Slot:
    def room(machine: Machine) -> int:
        return min(machine.cpus // cpus, machine.gpus) if gpus else machine.cpus // cpus

    workers = sum(room(machine) for machine in cluster.machines)
    if not workers:
        most = max((m.cpus for m in cluster.machines if m.gpus >= gpus), default=0)
        beside = " beside its GPUs" if gpus else ""
        raise UserError(
            f"a worker of {cpus} threads fits on no machine of the cluster: the largest has {most} "
            f"CPUs{beside}; give fewer --threads"
        )
    return Slot(cpus, gpus, threads, workers)
