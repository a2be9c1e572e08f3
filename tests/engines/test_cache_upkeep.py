from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engines.cache import EngineCache
from engines.entry import Entry
from engines.errors import UserError
from engines.recipe import Recipe
from tests.recipes import (
    H100,
    PLAN,
    RECIPE,
    RTX_4090,
    VERIFICATION,
    files,
    make_recipe,
    put,
)


def truncate(entry: Entry) -> None:
    entry.path.write_bytes(PLAN[:100])


def flip(entry: Entry) -> None:
    content = bytearray(PLAN)
    content[5000] ^= 1
    entry.path.write_bytes(content)


def lose(entry: Entry) -> None:
    entry.path.unlink()


def cut_sidecar(entry: Entry) -> None:
    entry.sidecar.write_bytes(entry.sidecar.read_bytes()[:200])


def alien_sidecar(entry: Entry) -> None:
    entry.sidecar.write_text('["not", "a", "sidecar"]')


def binary_sidecar(entry: Entry) -> None:
    entry.sidecar.write_bytes(b"\xff\x00\xfe")


def impossible_sidecar(entry: Entry) -> None:
    edit(entry, lambda values: values["recipe"]["profile"]["batch"].update(minimum=0))


def another_sidecar(entry: Entry) -> None:
    edit(entry, lambda values: values["recipe"].update(version="10.16.1.12"))


def edit(entry: Entry, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(entry.sidecar.read_text())
    change(values)
    entry.sidecar.write_text(json.dumps(values))


DAMAGES = [
    (truncate, r"was cut or damaged: 100 bytes instead of 16384"),
    (flip, r"was altered or damaged \(SHA-256 differs\)"),
    (lose, r"is missing, though its sidecar is there"),
    (cut_sidecar, r"has a damaged or alien sidecar \("),
    (alien_sidecar, r"has a damaged or alien sidecar \("),
    (binary_sidecar, r"has a damaged or alien sidecar \("),
    (impossible_sidecar, r"has a damaged or alien sidecar \("),
    (another_sidecar, r"has the sidecar of another recipe, or an altered one"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
@pytest.mark.parametrize("look", [EngineCache.get, EngineCache.find])
def test_what_is_damaged_is_told_and_removed(
    cache: EngineCache,
    caplog: pytest.LogCaptureFixture,
    look: Callable[[EngineCache, Recipe], Entry | None],
    damage: Callable[[Entry], None],
    told: str,
) -> None:
    whole = put(cache, make_recipe(graph="0" * 64))
    entry = put(cache)
    cache.kernels_path(entry, H100).write_bytes(b"kernels")
    damage(entry)
    assert look(cache, RECIPE) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith(f"{entry.path}: ")
    assert re.search(told, record.message)
    assert record.message.endswith("; it was removed")
    assert files(cache) == sorted([whole.path.name, whole.sidecar.name])
    assert put(cache) == cache.find(RECIPE)


def test_another_format_is_left_to_the_emfast_that_reads_it(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    entry = put(cache)
    edit(entry, lambda values: values.update(format=2))
    assert cache.get(RECIPE) is None and cache.find(RECIPE) is None
    assert not caplog.records
    (removed,) = cache.prune()
    assert removed.path == entry.path
    assert removed.reason == "is of cache format 2; this emfast reads format 1"
    assert files(cache) == []


def test_an_engine_that_changes_before_it_is_read_is_refused(cache: EngineCache) -> None:
    entry = put(cache)
    flip(entry)
    with pytest.raises(UserError, match=r"\.engine: was altered or damaged; run again to build"):
        entry.read()
    lose(entry)
    with pytest.raises(UserError, match=r"\.engine: cannot be read \(No such file or directory\)"):
        entry.read()


def test_verifications_add_up_one_a_gpu(cache: EngineCache) -> None:
    entry = put(cache)
    first = cache.record(entry, VERIFICATION)
    assert first.verifications == (VERIFICATION,)
    # ``entry`` does not know the first; nothing is lost.
    other = replace(VERIFICATION, gpu=str(RTX_4090))
    assert cache.record(entry, other).verifications == (VERIFICATION, other)
    again = replace(VERIFICATION, seconds=0.5)
    kept = cache.record(entry, again)
    assert kept.verifications == (other, again)
    assert cache.get(RECIPE) == kept


def test_a_verification_of_a_removed_engine_is_not_kept(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    entry = put(cache)
    cache.discard(entry)
    assert cache.record(entry, VERIFICATION).verifications == (VERIFICATION,)
    assert "verification is not kept: it was removed or replaced meanwhile" in caplog.text
    assert files(cache) == []
    put(cache, plan=PLAN[::-1])
    cache.record(entry, VERIFICATION)
    (kept,) = cache.entries()
    assert kept.verifications == ()


def test_a_discarded_engine_goes_with_its_kernels(cache: EngineCache) -> None:
    entry, other = put(cache), put(cache, make_recipe(graph="0" * 64))
    cache.kernels_path(entry, H100).write_bytes(b"kernels")
    cache.kernels_path(entry, RTX_4090).write_bytes(b"kernels")
    cache.discard(entry)
    cache.discard(entry)
    assert files(cache) == sorted([other.path.name, other.sidecar.name])


def test_an_engine_that_took_its_place_is_not_discarded(cache: EngineCache) -> None:
    old = put(cache)
    cache.kernels_path(old, H100).write_bytes(b"kernels of the old one")
    new = put(cache, plan=PLAN[::-1])
    cache.discard(old)
    assert cache.entries() == [new]
    assert not cache.kernels_path(new, H100).exists()


def test_prune_keeps_what_can_be_used(cache: EngineCache) -> None:
    entry = put(cache)
    cache.kernels_path(entry, H100).write_bytes(b"kernels")
    cache.timing_path(RECIPE).write_bytes(b"timings")
    before = files(cache)
    assert cache.prune() == []
    assert cache.prune(lambda entry: None) == []
    assert files(cache) == before


def test_prune_removes_what_cannot_be_used(cache: EngineCache) -> None:
    entry, flipped, orphan = (put(cache, make_recipe(graph=str(n) * 64)) for n in range(3))
    flip(flipped)
    orphan.sidecar.unlink()
    for recipe in (entry.recipe, make_recipe(version="9.0.0")):
        cache.timing_path(recipe).write_bytes(b"timings")
    half = cache.folder / f".{entry.path.stem}.123.tmp.engine"
    half.write_bytes(b"half an engine")
    fresh, stale = (cache.folder / f".{entry.path.stem}.h100.{n}.tmp.kernels" for n in (1, 2))
    for path in (fresh, stale):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    before = cache.size()
    removed = cache.prune()
    assert {r.path.name: r.reason for r in removed} == {
        flipped.path.name: "was altered or damaged (SHA-256 differs)",
        orphan.path.name: "has no sidecar: it was not finished",
        half.name: "was left half-written by a process that was killed",
        stale.name: "was left half-written by a process that was killed",
        cache.timing_path(make_recipe(version="9.0.0")).name: "no engine is left that it served",
    }
    assert before - cache.size() == sum(r.size for r in removed)
    assert files(cache) == sorted(
        path.name for path in (fresh, entry.path, entry.sidecar, cache.timing_path(entry.recipe))
    )


def test_prune_removes_what_is_unwanted(cache: EngineCache) -> None:
    old = put(cache, make_recipe(version="9.0.0"))
    new = put(cache)
    cache.kernels_path(old, H100).write_bytes(b"kernels")
    (removed,) = cache.prune(
        lambda entry: entry.recipe.outdated({"tensorrt": new.recipe.version}, [H100])
    )
    assert removed.path == old.path
    assert removed.reason == "is of tensorrt 9.0.0; this machine has 10.16.1.11"
    assert cache.entries() == [new]
    assert [r.path for r in cache.prune(lambda entry: "all are removed")] == [new.path]
    assert list(cache.folder.iterdir()) == []


def test_foreign_files_are_never_touched(cache: EngineCache) -> None:
    cache.folder.mkdir()
    names = [
        "notes.json",
        "model.engine",
        ".notes.1.tmp.json",
        "0123456789ABCDEF.json",
        "0123456789abcdef.txt",
        "0123456789abcdef0.json",
        "timing.cache",
    ]
    for name in names:
        (cache.folder / name).write_text("{}")
    (cache.folder / "0123456789abcdef").mkdir()
    assert cache.entries() == [] and cache.size() == 0
    assert cache.prune(lambda entry: "all are removed") == []
    put(cache)
    cache.prune(lambda entry: "all are removed")
    assert files(cache) == sorted([*names, "0123456789abcdef"])
