"""The training loop that the denoiser and the segmenter share."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import math
import os
import platform
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np
import torch
from torch import Tensor, nn

from emfast.progress import duration, progress
from emfast.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)
from emfast.training.device import autocast, computed_in, memory_format
from emfast.training.plot import plot_log
from emfast.training.presets import Settings
from emfast.training.revision import revision
from engines.errors import UserError
from engines.files import atomic_write, remove_leftovers

CHECKPOINT = "latest.safetensors"
LOCK = ".lock"
SAMPLES = "samples"
LOGS = ("log.csv", "scores.csv")
CHECKPOINT_SECONDS = 60.0
LOG_EVERY = 20
# Looking at a loss waits for the GPU; on the CPU it costs nothing.
CHECK_EVERY = {"cpu": 1, "cuda": LOG_EVERY}


class Task(Protocol):
    """What is trained. ``report_every`` iterations lie between reports."""

    network: nn.Module
    report_every: int

    def losses(self, iteration: int) -> dict[str, Tensor]:
        """The losses of one batch, scalars; "loss" is minimised, the others are logged."""

    def after_step(self) -> None:
        """Called after every optimizer step."""

    def report(self, network: nn.Module, iteration: int, folder: Path) -> dict[str, float]:
        """Score or draw with the averaged network; returns what is logged."""

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts that an export needs; stored in every checkpoint."""


def learning_rate(settings: Settings, iteration: int) -> float:
    """The learning rate of an iteration, counted from 0."""
    peak, final, total = settings.learning_rate, settings.final_learning_rate, settings.iterations
    if iteration < settings.warmup:
        return peak * (iteration + 1) / settings.warmup
    done = iteration / total
    if settings.decay == "steps":
        return max(final, peak * 0.1 ** int(done * 3))
    if settings.decay == "cosine":
        start = settings.warmup / total
        done = (done - start) / max(1 - start, 1e-9)
        return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2
    return final + (peak - final) * min(1.0, (1 - done) / 0.2)


def ema_exponent(width: float) -> float:
    """gamma for the relative width of a power-function average (EDM2, algorithm 2)."""
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots[np.argmax(roots.real)].real)


class RunningMeans:
    """Means of the losses since the last :meth:`take`, kept on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of one batch."""
        for name, loss in losses.items():
            value = loss.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def finite(self) -> bool:
        """Whether every loss so far was a number; waits for the device."""
        return "loss" not in self._sums or bool(torch.isfinite(self._sums["loss"]))

    def take(self) -> dict[str, float]:
        """The means, and start again."""
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


@dataclass
class Trainer:
    """Trains a task in a run folder, from where an earlier run of the same command stopped.

    The folder holds ``run.json`` (settings), ``log.csv``, ``loss.png``, ``samples/`` and
    ``latest.safetensors``, written about once a minute and with every report.

    Attributes:
        task: what is trained.
        settings: of the training.
        folder: of the run.
        device: where the network is.
        data: JSON-ready description of the training data.
    """

    task: Task
    settings: Settings
    folder: Path
    device: torch.device
    data: dict[str, Any]
    iteration: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def run(self) -> None:
        """Train to the last iteration.

        Raises:
            UserError: the folder holds a run with other settings, another process trains in it, or
                the loss is not finite.
        """
        with self._hold_folder():
            self._train()

    def _train(self) -> None:
        settings = self.settings
        self._network = self.task.network.to(self.device)
        layout = memory_format(self.device.type, settings.precision)
        self._network.to(memory_format=layout)  # type: ignore[call-overload]
        self._average = copy.deepcopy(self._network).eval().requires_grad_(False)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._gamma = ema_exponent(settings.ema) if settings.ema else 0.0
        self._revisions = {_since(0): revision()}
        self._open_folder()
        start, saved = time.monotonic() - self.seconds, time.monotonic()
        means = RunningMeans()
        check_every = CHECK_EVERY[self.device.type]
        note = ""
        with progress("training", settings.iterations, self.iteration) as advance:
            while self.iteration < settings.iterations:
                try:
                    means.add(self._step())
                except KeyboardInterrupt:
                    raise UserError(
                        f"stopped at iteration {self.iteration} of {settings.iterations}; the same "
                        "command goes on from the last checkpoint, if there is one"
                    ) from None
                done = self.iteration + 1
                last = done == settings.iterations
                report = done % self.task.report_every == 0 or last
                log = done % LOG_EVERY == 0 or report
                if (log or done % check_every == 0) and not means.finite():
                    raise self._diverged("loss", done)
                self.iteration, self.seconds = done, time.monotonic() - start
                if log:
                    note = self._log(means.take())
                if report:
                    self._report()
                # Only where a row of the log ends, so that a resumed run logs the same rows.
                if report or (log and time.monotonic() - saved > CHECKPOINT_SECONDS):
                    self._save()
                    saved = time.monotonic()
                advance(1, note)

    def hardware(self) -> dict[str, Any]:
        """What the run is trained on and in, for its card."""
        device = self.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        dtype = computed_in(device.type, self.settings.precision)
        return {
            "device": f"{device.type}, {name}",
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "computed_in": str(dtype).removeprefix("torch."),
        }

    def _step(self) -> dict[str, Tensor]:
        rate = learning_rate(self.settings, self.iteration)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(self.settings.seed * 1_000_003 + self.iteration)  # dropout
        self._network.train()
        with autocast(self.device.type, self.settings.precision):
            losses = self.task.losses(self.iteration)
        self._optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.task.after_step()
        self._update_average()
        return losses

    @torch.no_grad()
    def _update_average(self) -> None:
        """Power-function average: the past weighs (1 - 1/i)^(gamma + 1) (EDM2, eq. 127)."""
        keep = (1 - 1 / (self.iteration + 1)) ** (self._gamma + 1) if self.settings.ema else 0.0
        averages: list[Tensor] = list(self._average.parameters())
        weights: list[Tensor] = list(self._network.parameters())
        torch._foreach_lerp_(averages, weights, 1 - keep)
        for target, source in zip(self._average.buffers(), self._network.buffers(), strict=True):
            if target.is_floating_point() and self.settings.ema:
                target.lerp_(source, 1 - keep)
            else:
                target.copy_(source)

    def _report(self) -> None:
        self._check_network()
        values = self.task.report(self._average, self.iteration, self.folder / SAMPLES)
        if values:
            path = self.folder / "scores.csv"
            append_row(path, {"iteration": self.iteration, **values})
        plot_log(self.folder / "log.csv", self.folder / "loss.png")

    def _log(self, losses: dict[str, float]) -> str:
        """Write a row of the log; returns it in short, for the progress bar."""
        rate = learning_rate(self.settings, self.iteration - 1)
        row = {"iteration": self.iteration, "seconds": round(self.seconds, 1), "rate": rate}
        append_row(self.folder / "log.csv", {**row, **losses})
        return " ".join(f"{name} {value:.4f}" for name, value in losses.items())

    def _diverged(self, what: str, iteration: int) -> UserError:
        path = self.folder / CHECKPOINT
        good = f"{path} is the last good checkpoint" if path.exists() else "nothing was saved yet"
        return UserError(
            f"the {what} is not a number at iteration {iteration}; {good}. A lower learning rate "
            "may help"
        )

    def _check_network(self) -> None:
        """A gradient can overflow where the loss does not."""
        if not all(bool(torch.isfinite(p).all()) for p in self._network.parameters()):
            raise self._diverged("network", self.iteration)

    def _save(self) -> None:
        self._check_network()
        save_checkpoint(
            self.folder / CHECKPOINT,
            {
                "network": self._network.state_dict(),
                "average": self._average.state_dict(),
                "optimizer": optimizer_tensors(self._optimizer),
            },
            {
                "iteration": self.iteration,
                "seconds": self.seconds,
                "settings": self.settings.to_dict(),
                "data": self.data,
                "hardware": self.hardware(),
                "emfast": self._revisions,
                "task": self.task.describe(),
            },
        )

    def _hold_folder(self) -> AbstractContextManager[object]:
        """Create the run folder and lock it until the context ends."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.folder.iterdir()} - {LOCK, SAMPLES}
            if names and not names & {CHECKPOINT, "run.json"}:
                raise UserError(f"{self.folder}: holds files but no run; give another --out")
            # flock frees the lock of a killed process; the file stays.
            held = filelock.FileLock(self.folder / LOCK).acquire(blocking=False)
            (self.folder / SAMPLES).mkdir(exist_ok=True)
        except filelock.Timeout:
            raise UserError(
                f"{self.folder}: another process trains in it; wait for its end, or give another "
                "--out"
            ) from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from None
        return held

    def _open_folder(self) -> None:
        """Take up the run that the folder holds, or begin one."""
        path = self.folder / CHECKPOINT
        for folder in (self.folder, self.folder / SAMPLES):
            remove_leftovers(folder)
        if path.exists():
            groups, meta = load_checkpoint(path)
            self._refuse_changes(meta)
            restore_module(self._network, groups["network"], path)
            restore_module(self._average, groups["average"], path)
            restore_optimizer(self._optimizer, groups["optimizer"])
            self.iteration, self.seconds = meta["iteration"], meta["seconds"]
            self._add_revision(meta.get("emfast"))
            for log in LOGS:
                truncate_rows(self.folder / log, self.iteration)
            print(
                f"{self.folder}: goes on from iteration {self.iteration} of "
                f"{self.settings.iterations} ({duration(self.seconds)} so far)"
            )
        else:
            for log in LOGS:
                (self.folder / log).unlink(missing_ok=True)
        with atomic_write(self.folder / "run.json") as temporary:
            record = {"settings": self.settings.to_dict(), "data": self.data}
            temporary.write_text(json.dumps(record, indent=2) + "\n")

    def _add_revision(self, earlier: str | dict[str, str] | None) -> None:
        """Keep which code trained from which iteration, and say where it is not the same."""
        now = revision()
        # Checkpoints held one revision once.
        known = {_since(0): earlier} if isinstance(earlier, str) else dict(earlier or {})
        last = next(reversed(known.values()), None)
        if last != now:
            print(f"{self.folder}: was trained by emfast {last or 'of an unknown commit'} so far")
            print(f"{self.folder}: is trained by emfast {now} from here on")
            known[_since(self.iteration)] = now
        self._revisions = known

    def _refuse_changes(self, meta: dict[str, Any]) -> None:
        """A run goes on only as it began; its length alone may change, to no less than done."""
        kind, other = self.task.describe()["kind"], meta.get("task", {}).get("kind")
        if other != kind:
            raise UserError(
                f"{self.folder} holds the run of a {other}, and this one trains a {kind}; give "
                "another --out"
            )
        if meta["iteration"] > self.settings.iterations:
            raise UserError(
                f"{self.folder}: {meta['iteration']} iterations are done, more than "
                f"{self.settings.iterations}; give as many or more, or another --out"
            )
        now = json.loads(json.dumps({**self.settings.to_dict(), "data": self.data}))
        then = {**meta["settings"], "data": meta["data"]}
        changed = [k for k in now if k != "iterations" and now[k] != then.get(k)]
        if changed:
            told = "; ".join(_change(k, then.get(k), now[k]) for k in changed)
            raise UserError(
                f"{self.folder} holds a run with other settings ({told}); "
                "give the same ones or another --out"
            )


def _since(iteration: int) -> str:
    return f"from iteration {iteration}"


def _change(name: str, then: Any, now: Any) -> str:
    """What changed, in a few words: of the data, which facts of it."""
    if isinstance(then, dict) and isinstance(now, dict):
        parts = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
        return f"other {name}: {', '.join(parts)}"
    return f"{name} was {then}, is {now}"


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file, whole or not at all, with a header where it is new."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if not size:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); with room there, the same command goes "
            "on from the last checkpoint"
        ) from None


def truncate_rows(path: Path, iteration: int) -> None:
    """Drop the rows of a CSV file that a killed run wrote after its last checkpoint, or half of."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        reader = csv.DictReader(file, restval="")
        rows = [row for row in reader if "" not in row.values()]
    kept = [row for row in rows if int(row["iteration"]) <= iteration]
    if not kept:
        path.unlink()
        return
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
