from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emfast.channels import Uint8
from emfast.synthesis import job as job_module
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.synthesis.shard import Shard
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle
from tests.sets import contents

JOB = Job(count=11, seed=7, steps=6, size=(32, 48), batch=4, pairs=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_denoiser_bundle(tmp_path_factory.mktemp("bundles") / "denoiser")


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Generator:
    return Generator.open(bundle, "onnxruntime-cpu", threads=1)


@pytest.fixture(scope="module")
def whole(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sets") / "whole"
    run_job(JOB, generator, folder)
    return contents(folder)


@pytest.mark.parametrize("count", [2, 3, 16])
def test_shards_end_with_the_bytes_of_one_run(
    generator: Generator, whole: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    results = [
        run_job(JOB, generator, tmp_path / "set", Shard(number, count))
        for number in reversed(range(1, count + 1))
    ]
    assert sum(result.drawn for result in results) == JOB.count
    # The last of them, who draws image 0, finds the set whole.
    assert [result.lacking == 0 for result in results] == [False] * (count - 1) + [True]
    assert contents(tmp_path / "set") == whole


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_batch_does_not_matter(
    generator: Generator, whole: dict[str, bytes], tmp_path: Path, batch: int
) -> None:
    run_job(replace(JOB, batch=batch), generator, tmp_path / "set")
    assert contents(tmp_path / "set") == whole


def test_shards_run_at_the_same_time(bundle: Path, generator: Generator, tmp_path: Path) -> None:
    run_job(replace(JOB, count=12, pairs=False), generator, tmp_path / "whole")
    script = "import sys; from emfast.cli.main import main; sys.argv[0] = 'emfast'; main()"
    command = [sys.executable, "-c", script, "generate", "--model", str(bundle), "--seed", "7"]
    command += ["--count", "12", "--steps", "6", "--engine", "onnxruntime-cpu", "--threads", "1"]
    command += ["--out", str(tmp_path / "set")]
    processes = [
        subprocess.Popen([*command, "--shard", f"{i}/3", "--batch", str(i)], stderr=subprocess.PIPE)
        for i in (1, 2, 3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_a_killed_shard_goes_on_and_leaves_the_others_alone(
    generator: Generator,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "set"
    sample, calls = generator.sample, 0

    def dies(*args: Any) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return sample(*args)

    with monkeypatch.context() as patch:
        patch.setattr(generator, "sample", dies)
        with pytest.raises(KeyboardInterrupt):
            run_job(replace(JOB, batch=2), generator, folder, Shard(1, 2))
    with (folder / "manifest-1-of-2.jsonl").open("a") as file:
        file.write('{"index": 4, "fil')
    # What shard 2 is writing at this moment, and what the killed shard 1 and older runs left.
    writing = folder / "images/.000001.2-of-2.17.tmp.png"
    left = [folder / "images/.000004.1-of-2.17.tmp.png", folder / "masks/.000009.3-of-4.17.tmp.png"]
    for path in (writing, *left):
        path.write_bytes(b"half")
    result = run_job(JOB, generator, folder, Shard(1, 2))
    assert (result.found, result.drawn, result.lacking) == (2, 4, 5)
    assert writing.exists() and not any(path.exists() for path in left)
    assert not (folder / "manifest.jsonl").exists()
    assert run_job(JOB, generator, folder, Shard(2, 2)).lacking == 0
    assert contents(folder) == whole


def test_a_set_goes_on_in_other_shards(
    generator: Generator, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    run_job(replace(JOB, count=5), generator, folder)
    assert run_job(JOB, generator, folder, Shard(3, 3)).found == 1
    drawn = sum(run_job(JOB, generator, folder, Shard(i, 4)).drawn for i in (1, 2, 3, 4))
    assert drawn == 4
    assert contents(folder) == whole


def test_a_shard_of_a_smaller_set_does_not_merge_a_larger_one(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    small = replace(JOB, count=4)
    sample = generator.sample

    def meanwhile(*args: Any) -> object:
        monkeypatch.undo()
        run_job(JOB, generator, folder, Shard(1, 2))
        return sample(*args)

    monkeypatch.setattr(generator, "sample", meanwhile)
    assert run_job(small, generator, folder, Shard(2, 2)).lacking == 3
    assert (folder / "manifest-1-of-2.jsonl").exists()
    assert run_job(JOB, generator, folder, Shard(2, 2)).lacking == 0
    assert len((folder / "manifest.jsonl").read_text().splitlines()) == 11


def test_another_job_is_refused_by_every_shard(generator: Generator, tmp_path: Path) -> None:
    run_job(JOB, generator, tmp_path / "set", Shard(1, 2))
    with pytest.raises(UserError, match="seed was 7, is 8"):
        run_job(replace(JOB, seed=8), generator, tmp_path / "set", Shard(2, 2))


def test_a_shard_that_is_second_by_a_moment_compares_too(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emfast.synthesis.folder import SetFolder

    create = SetFolder._create

    def late(self: SetFolder, path: Path, text: str) -> bool:
        monkeypatch.undo()
        run_job(replace(JOB, seed=8), generator, tmp_path / "set", Shard(1, 2))
        return create(self, path, text)

    monkeypatch.setattr(SetFolder, "_create", late)
    with pytest.raises(UserError, match="seed was 8, is 7"):
        run_job(JOB, generator, tmp_path / "set", Shard(2, 2))


def test_a_file_system_without_hard_links(
    generator: Generator,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def link(*_: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    run_job(JOB, generator, tmp_path / "set")
    assert contents(tmp_path / "set") == whole


class Rounds:
    """A generator whose images tell which batch they were drawn in, as a GPU's rounding does."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def sample(self, indices: list[int], *args: Any) -> Callable[[], tuple[Uint8, Uint8]]:
        decoded = self._generator.sample(indices, *args)

        def rounded() -> tuple[Uint8, Uint8]:
            images, masks = decoded()
            images[:] = images + np.uint8(indices[0]) + np.uint8(10 * len(indices))
            return images, masks

        return rounded


def test_where_the_batch_matters_it_is_kept_whole(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "BATCH_INVARIANT", ())
    rounds: Any = Rounds(generator)
    run_job(JOB, rounds, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert json.loads(whole["job.json"])["batch"] == 4
    for number in (2, 1):
        run_job(JOB, rounds, tmp_path / "shards", Shard(number, 2))
    assert contents(tmp_path / "shards") == whole
    run_job(replace(JOB, count=6), rounds, tmp_path / "grown")
    (tmp_path / "grown/masks/000001.png").unlink()
    assert run_job(JOB, rounds, tmp_path / "grown").drawn == 6
    assert contents(tmp_path / "grown") == whole
    with pytest.raises(UserError, match="batch was 4, is 8"):
        run_job(replace(JOB, batch=8), rounds, tmp_path / "whole")


def test_shards_go_round() -> None:
    owned = np.stack([Shard(i, 3).owned(10, 2) for i in (1, 2, 3)])
    assert (owned.sum(axis=0) == 1).all()
    assert np.flatnonzero(owned[1]).tolist() == [2, 3, 8, 9]
    assert Shard().owned(4, 1).all()


def test_shards_are_read_from_text() -> None:
    assert Shard.parse("3/16") == Shard(3, 16)
    with pytest.raises(UserError, match="shard '3': give its number and their count, as in 3/16"):
        Shard.parse("3")
    for text in ("0/4", "5/4"):
        with pytest.raises(UserError, match="numbered from 1 to 4"):
            Shard.parse(text)
