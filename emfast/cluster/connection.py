"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any

from engines.errors import UserError
from engines.onnxruntime import cpu_count

AUTO, LOCAL = "auto", "local"
# Messages alone pass through it: images go from the worker into the folder. Ray takes no less than
# 75 MiB.
OBJECT_STORE_BYTES = 80 * 2**20
# How long a machine may take to answer before its address counts as wrong.
ANSWER_SECONDS = 10.0
QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


@dataclass(frozen=True)
class Machine:
    """A node of a cluster: its CPUs and GPUs, as Ray counts them."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to.

    Attributes:
        where: in words, "a new one on this machine".
        machines: that are up.
        local: whether it was started here and ends with this run.
    """

    where: str
    machines: tuple[Machine, ...]
    local: bool

    @property
    def gpus(self) -> int:
        return sum(machine.gpus for machine in self.machines)

    def __str__(self) -> str:
        cpus = sum(machine.cpus for machine in self.machines)
        counts = [_counted(cpus, "CPU")] + ([_counted(self.gpus, "GPU")] if self.gpus else [])
        if not self.local:
            counts.insert(0, _counted(len(self.machines), "machine"))
        return f"{self.where}, {', '.join(counts)}"


def load_ray(module: str = "ray") -> Any:
    """Import Ray, or a part of it; :class:`UserError` where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise UserError(
            "--ray needs Ray, which is not installed: pip install 'emfast[ray]'"
        ) from None


def check_alone(shard: str) -> None:
    """:class:`UserError` where a shard was asked for: a cluster gets all of them."""
    if shard != "1/1":
        raise UserError(
            f"--shard {shard} is for runs that share a set without Ray; --ray cuts and shares it "
            "itself: leave one of the two out"
        )


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect to a cluster for the length of the block.

    A connection that the process has already is used and left as it is. Nothing is printed on
    standard output meanwhile.

    Args:
        address: "local" starts a cluster on this machine, which ends with the block. "auto" takes
            the one that the environment variable ``RAY_ADDRESS`` names, else the one that runs on
            this machine, else starts one. All else is an address, as in "10.0.0.1:6379".

    Raises:
        UserError: Ray is not installed, or no cluster answers there.
    """
    ray = load_ray()
    with ExitStack() as stack:
        # Where our results go, Ray prints what it knows of lost workers; we tell of them ourselves.
        nothing = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(nothing))
        if ray.is_initialized():
            yield _cluster(ray, "the one that this process is connected to", local=False)
            return
        where, local = _connect(ray, address, stack)
        yield _cluster(ray, where, local)


def _connect(ray: Any, address: str, stack: ExitStack) -> tuple[str, bool]:
    """Connect; returns where to, in words, and whether it was started here."""
    # Where it is set, Ray prefers it to the address that it is given.
    named = os.environ.pop("RAY_ADDRESS", "")
    if named:
        stack.callback(os.environ.__setitem__, "RAY_ADDRESS", named)
    source, why = f"--ray {address}", ""
    if address == AUTO and named:
        address, source = named, f"RAY_ADDRESS {named}"
    if address == AUTO:
        here = _running_here()
        if here is None:
            address, why = LOCAL, "RAY_ADDRESS is not set and none runs here: "
        else:
            address = here
            source = f"the one that runs here, {here}"
    if address == LOCAL:
        _start(ray, stack)
        return f"{why}a new one on this machine", True
    _check_address(address, source)
    try:
        ray.init(address, **QUIET)
    except (ConnectionError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as e:
        raise _unreachable(source, e) from None
    stack.callback(ray.shutdown)
    return source, False


def _running_here() -> str | None:
    """The cluster that ``ray start`` began on this machine, by the note that it leaves.

    Ray would also join whatever it finds among the processes, another run's cluster too.
    """
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        address = note.read_text().strip()
        _check_address(address, str(note))
    except (OSError, UserError):  # no note, or one of a cluster that was killed
        return None
    return address


def _check_address(address: str, source: str) -> None:
    """Refuse what is no address, or where nothing answers: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"{source}: give {AUTO}, {LOCAL} or the address of a cluster, as in 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise _unreachable(source, error) from None


def _unreachable(source: str, error: Exception) -> UserError:
    return UserError(
        f"{source}: no connection to a Ray cluster ({_reason(error)}); see what `ray status` says "
        "there"
    )


def _reason(error: Exception) -> str:
    """The first words of what Ray has to say, which may be pages."""
    return shorten(str(error), 200, placeholder=" ...") or type(error).__name__


def _start(ray: Any, stack: ExitStack) -> None:
    """Start a cluster of this machine alone, that nobody else is let in."""
    # The user's own choice counts, where there is one.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray asks for a token; it would make one up and leave it in the home folder.
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # What keeps Ray to the loopback interface on Windows and macOS does so here: the variable for
    # the processes that it starts, the constant for this one, which has read the variable already.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    constants = load_ray("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = False
    # Apart from /tmp/ray, where other runs would take it for a cluster to join.
    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="emfast-ray-", ignore_cleanup_errors=True)
    )
    stack.callback(ray.shutdown)
    try:
        ray.init(
            LOCAL,
            num_cpus=cpu_count(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
            **QUIET,
        )
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise UserError(f"Ray cannot start on this machine ({_reason(error)})") from None


def _cluster(ray: Any, where: str, local: bool) -> Cluster:
    up = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = (Machine(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in up)
    return Cluster(where, tuple(machines), local)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
