from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.cache import EngineCache
from engines.errors import UserError
from tests.recipes import (
    PLAN,
    RECIPE,
    VERIFICATION,
    files,
    make_recipe,
    put,
)


def mount(*arguments: str | Path) -> None:
    try:
        subprocess.run(["mount", *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[EngineCache]:
    """A cache on a disk of 1 MiB."""
    caplog.set_level(logging.INFO, "engines.cache")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
    yield EngineCache(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount_read_only(cache: EngineCache) -> None:
    mount("-o", "remount,ro", cache.folder)


FULL = (
    r"^engine cache .*disk: cannot be written \(No space left on device for 2\.1 MB\); "
    r"make room \(emfast engines prune\), or set EMFAST_CACHE to another disk$"
)


def test_an_engine_that_fills_the_disk_leaves_nothing(small_disk: EngineCache) -> None:
    with pytest.raises(UserError, match=FULL):
        put(small_disk, plan=PLAN * 128)
    assert files(small_disk) == []
    assert put(small_disk) == small_disk.find(RECIPE)


def test_a_sidecar_that_does_not_fit_takes_its_engine_along(small_disk: EngineCache) -> None:
    disk = os.statvfs(small_disk.folder)
    with pytest.raises(UserError, match=r"No space left on device for 1\.0 MB"):
        put(small_disk, plan=bytes(disk.f_bavail * disk.f_frsize))
    assert files(small_disk) == []


def test_an_engine_that_does_not_fit_leaves_the_earlier_one(small_disk: EngineCache) -> None:
    entry = put(small_disk)
    with pytest.raises(UserError, match=FULL):
        put(small_disk, plan=PLAN * 128)
    assert small_disk.find(RECIPE) == entry


def test_a_verification_that_does_not_fit_is_told(
    small_disk: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    entry = put(small_disk)
    (small_disk.folder / "filling").write_bytes(bytes(2**20 - 2**15))
    measures = [{"name": "dice" * 2**16, "value": 0.999}]
    verified = small_disk.record(entry, replace(VERIFICATION, measures=measures))
    assert verified.verifications[0].measures == measures
    assert "its verification is not kept: engine cache" in caplog.text
    assert small_disk.find(RECIPE) == entry


@pytest.mark.parametrize("method", ["write_bytes", "write_text"])
def test_a_full_disk_is_told_where_none_can_be_mounted(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fill(path: Path, content: bytes | str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, method, fill)
        with pytest.raises(UserError, match=r"No space left on device for 0\.0 MB\); make room"):
            put(cache)
    assert files(cache) == []


READ_ONLY = (
    r"^engine cache .*disk: cannot be written \(Read-only file system\); "
    r"set EMFAST_CACHE to a folder that can be written$"
)


def test_a_read_only_cache_is_read(
    small_disk: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    entry, damaged = put(small_disk), put(small_disk, make_recipe(graph="0" * 64))
    damaged.path.write_bytes(PLAN[::-1])
    remount_read_only(small_disk)
    assert small_disk.find(RECIPE) == entry
    assert entry.read() == PLAN
    assert not caplog.records
    assert small_disk.find(damaged.recipe) is None
    assert f"{damaged.path}: was altered or damaged (SHA-256 differs); it is not" in caplog.text
    assert small_disk.record(entry, VERIFICATION).verifications == (VERIFICATION,)
    assert "its verification is not kept: engine cache" in caplog.text
    small_disk.discard(entry)
    assert f"{entry.path}: is not removed: engine cache" in caplog.text
    assert len(small_disk.entries()) == 2


def test_a_read_only_cache_takes_nothing(small_disk: EngineCache) -> None:
    remount_read_only(small_disk)
    with pytest.raises(UserError, match=READ_ONLY), small_disk.lock(RECIPE):
        pytest.fail("locked in a read-only folder")
    with pytest.raises(UserError, match=READ_ONLY):
        put(small_disk)


def test_prune_of_a_read_only_cache_is_refused(small_disk: EngineCache) -> None:
    put(small_disk)
    remount_read_only(small_disk)
    with pytest.raises(UserError, match=READ_ONLY):
        small_disk.prune(lambda entry: "all are removed")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = EngineCache(tmp_path / "file" / "cache")
    assert cache.get(RECIPE) is None and cache.find(RECIPE) is None and cache.size() == 0
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); set EMFAST_CACHE"):
        put(cache)


def test_what_the_block_raises_is_not_the_caches(cache: EngineCache) -> None:
    with pytest.raises(FileNotFoundError), cache.lock(RECIPE):
        raise FileNotFoundError
    with pytest.raises(UserError, match="^not built$"), cache.lock(RECIPE):
        raise UserError("not built")
