"""Shards as tasks of Ray, one progress bar for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from emfast.cluster.connection import Cluster, load_ray
from emfast.cluster.messages import Begun, Counted, Messenger, Told
from emfast.cluster.shared_folder import Token, shared_folder
from emfast.cluster.workers import Slot
from emfast.progress import Advance, progress
from emfast.synthesis.shard import Shard
from engines.errors import UserError

T = TypeVar("T")
# Draws or segments a shard, on a worker.
Work = Callable[[Shard, Messenger], T]
Tell = Callable[[str], object]

# Times that Ray starts a shard again whose worker was lost. What the shard has written by then is
# not written again, so that it may well be lost often in days on machines that come and go.
RETRIES = 20
POLL_SECONDS = 0.2
# Workers that were told to stop are gone after so long.
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What the shards of a run returned.

    Attributes:
        results: one a shard, in the order in which they ended.
        lost: workers that were lost on the way.
    """

    results: tuple[T, ...]
    lost: int


def run_on_worker(slot: Slot, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function on a worker and wait for it.

    Raises:
        UserError: that the function raised, or its worker was lost again and again.
    """
    ray = load_ray()
    task = ray.remote(num_cpus=slot.cpus, num_gpus=slot.gpus, max_retries=RETRIES)(function)
    reference = task.remote(*arguments)
    try:
        result: T = _result(ray, reference, "a task beside the shards")
        return result
    except BaseException:
        _stop(ray, [reference])
        raise


def run_shards(
    cluster: Cluster,
    slot: Slot,
    work: Work[T],
    out: Path,
    shards: int,
    noun: str,
    total: int,
    found: int,
    tell: Tell,
) -> Outcome[T]:
    """Run all shards of a piece of work on a cluster.

    A shard whose worker is lost is started again by Ray on another one, and goes on in the folder.

    Args:
        cluster: that this process is connected to.
        slot: of each worker.
        work: what to do with a shard.
        out: absolute path of the folder that all shards write to.
        shards: number of them.
        noun: of what is counted, "images".
        total: of what is to be there at the end.
        found: of that, what was there before.
        tell: gets lines for the user, each once.

    Raises:
        UserError: the folder is not shared, or what a worker raised; all others are stopped then.
    """
    ray = load_ray()
    with (
        shared_folder(out, shards) as token,
        progress(noun, total, min(found, total)) as advance,
    ):
        queue = _queue(ray)
        task = ray.remote(num_cpus=slot.cpus, num_gpus=slot.gpus, max_retries=RETRIES)(_run)
        numbers = {
            task.remote(work, Shard(n, shards), token, queue, not cluster.local): n
            for n in range(1, shards + 1)
        }
        watch = _Watch(tell, advance, shards, total, found)
        results: list[T] = []
        try:
            while numbers:
                ready, _ = ray.wait(list(numbers), timeout=POLL_SECONDS)
                watch.read(queue)
                for reference in ready:
                    results.append(
                        _result(ray, reference, f"shard {numbers[reference]} of {shards}")
                    )
                    del numbers[reference]
            watch.read(queue)
            watch.end()
        except BaseException as error:
            # The workers of a cluster that was started here end with it, right after this. Ray
            # 2.60 may abort this process where a task ends while it is cancelled.
            if not cluster.local:
                _stop(ray, list(numbers))
            if not isinstance(error, Exception):
                watch.read(queue)
                tell(
                    f"stopped; {watch.there} of {total} {noun} are written, and the same command "
                    "goes on with the rest"
                )
            raise
    return Outcome(tuple(results), watch.lost)


def _run(work: Work[T], shard: Shard, token: Token, queue: Any, named: bool) -> T:
    """A shard on a worker."""
    messenger = Messenger(queue)
    messenger.begin(shard.number)
    token.check(messenger.host)
    try:
        with messenger.logging():
            return work(shard, messenger)
    except UserError as error:
        raise UserError(f"{messenger.host}: {error}" if named else str(error)) from None
    finally:
        messenger.flush()


@dataclass
class _Watch:
    """What the driver makes of messages."""

    tell: Tell
    advance: Advance
    shards: int
    total: int
    there: int
    lost: int = 0
    _begun: set[int] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)

    def read(self, queue: Any) -> None:
        for message in queue.get_nowait_batch(queue.qsize()):
            match message:
                case Counted(count):
                    # A shard that was lost may not have counted its last ones.
                    newly = min(count, self.total - self.there)
                    self.there += newly
                    self.advance(newly)
                case Told(line) if line not in self._told:
                    self._told.add(line)
                    self.tell(line)
                case Begun(number, host):
                    if number in self._begun:
                        self.lost += 1
                        self.tell(
                            f"a worker was lost; shard {number} of {self.shards} goes on at {host}"
                        )
                    self._begun.add(number)

    def end(self) -> None:
        self.advance(self.total - self.there)
        self.there = self.total


def _queue(ray: Any) -> Any:
    """A queue whose actor lives where this process does, and takes no slot of a worker's."""
    strategies = load_ray("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    options = {"num_cpus": 0, "scheduling_strategy": here}
    return load_ray("ray.util.queue").Queue(actor_options=options)


def _result(ray: Any, reference: Any, what: str) -> Any:
    """What a task returned, or raised."""
    exceptions = load_ray("ray.exceptions")
    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        # Ray raises a class of its own, which is the task's as well and tells its traceback.
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except exceptions.RayError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{what}: its worker was lost {RETRIES + 1} times ({reason}); what is written is "
            "kept, and the same command goes on with the rest"
        ) from None


def _stop(ray: Any, references: list[Any]) -> None:
    """End tasks and wait until they write no more. What is written is whole."""
    for reference in references:
        ray.cancel(reference, force=True)
    if references:
        ray.wait(references, num_returns=len(references), timeout=STOP_SECONDS)
