from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engines.cache import EngineCache
from engines.cache_folder import cache_folder
from engines.plan import BuildOptions, Profile, Range
from engines.recipe import Recipe
from tests.recipes import (
    H100,
    PLAN,
    RECIPE,
    RTX_4090,
    VERIFICATION,
    ahead_of_time,
    changed,
    files,
    leaves,
    make_recipe,
    put,
)

# The parts in which a cached engine may differ from what is asked for and still serve it.
FREE = ("profile", "options")


def test_the_folder_is_the_platforms_or_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.delenv("EMFAST_CACHE", raising=False)
    if sys.platform == "linux":
        assert cache_folder() == Path("/caches/emfast/engines")
    monkeypatch.setenv("EMFAST_CACHE", "~/engines")
    assert EngineCache().folder == Path.home() / "engines"
    monkeypatch.setenv("EMFAST_CACHE", "engines")
    assert EngineCache().folder == Path.cwd() / "engines"


def test_an_engine_is_kept_with_all_that_is_known_of_it(cache: EngineCache) -> None:
    assert cache.get(RECIPE) is None and cache.find(RECIPE) is None and cache.entries() == []
    assert cache.size() == 0 and not cache.folder.exists()
    kept = cache.put(RECIPE, PLAN, {"layers": {"CONVOLUTION HALF": 12}}, 2.5, [VERIFICATION])
    assert files(cache) == [f"{RECIPE.name}.engine", f"{RECIPE.name}.json"]
    again = EngineCache(cache.folder)
    assert again.get(RECIPE) == again.find(RECIPE) == kept
    assert again.entries() == [kept]
    assert kept.read() == PLAN
    assert kept.verifications == (VERIFICATION,)
    assert cache.size() == sum(path.stat().st_size for path in cache.folder.iterdir())


@pytest.mark.parametrize("path", list(leaves(RECIPE)), ids=".".join)
def test_each_part_of_the_recipe_misses(cache: EngineCache, path: tuple[str, ...]) -> None:
    put(cache)
    other = changed(RECIPE, path)
    assert cache.get(other) is None
    if path[0] not in FREE:
        assert cache.find(other) is None


def test_an_engine_of_a_wider_profile_or_other_options_serves(cache: EngineCache) -> None:
    kept = put(cache)
    assert cache.find(replace(RECIPE, profile=Profile.fixed(3, 256, 512))) == kept
    assert cache.find(replace(RECIPE, options=BuildOptions(optimization_level=5))) == kept
    assert cache.find(replace(RECIPE, profile=Profile.fixed(9, 256, 512))) is None


def test_the_best_engine_is_found(cache: EngineCache) -> None:
    needed = make_recipe(profile=Profile(Range(2, 2, 4), Range.fixed(256), Range.fixed(256)))
    one = replace(needed, profile=Profile.fixed(4, 256, 256))

    def profile(batch: int, size: int) -> Profile:
        return Profile(Range(1, 1, batch), Range.fixed(256), Range(256, 256, size))

    widest = put(cache, replace(needed, profile=profile(16, 512)))
    assert cache.find(needed) == widest
    wide = put(cache, replace(needed, profile=profile(8, 512)))
    assert cache.find(needed) == wide
    others = put(cache, replace(needed, profile=profile(8, 256), options=BuildOptions()))
    assert cache.find(needed) == others
    small = put(cache, replace(needed, profile=profile(8, 256)))
    assert cache.find(needed) == small
    exact = put(cache, needed)
    assert cache.find(needed) == exact
    assert cache.find(one) == exact
    static = put(cache, replace(one, options=BuildOptions(optimization_level=5)))
    assert cache.find(one) == static


def test_an_engine_of_the_same_options_is_found_first(cache: EngineCache) -> None:
    recipes = [make_recipe(options=BuildOptions(optimization_level=n)) for n in range(6)]
    entries = [put(cache, recipe) for recipe in recipes]
    narrow = Profile.fixed(4, 256, 256)
    assert [cache.find(recipe) for recipe in recipes] == entries
    assert [cache.find(replace(recipe, profile=narrow)) for recipe in recipes] == entries


def test_an_engine_built_on_this_gpu_is_found_first(cache: EngineCache) -> None:
    gpus = [replace(H100, driver=f"580.{n}") for n in range(6)]
    options = BuildOptions(hardware_compatibility="same-compute-capability")
    recipes = [make_recipe(gpu=gpu, options=options) for gpu in gpus]
    entries = [put(cache, recipe) for recipe in recipes]
    assert [cache.find(recipe) for recipe in recipes] == entries
    usual = [replace(recipe, options=BuildOptions()) for recipe in recipes]
    assert [cache.find(recipe) for recipe in usual] == entries
    assert cache.find(make_recipe(gpu=replace(H100, driver="590.1"))) in entries


def test_a_damaged_best_engine_gives_way_to_the_next(cache: EngineCache) -> None:
    wide = put(cache)
    best = put(cache, replace(RECIPE, profile=Profile.fixed(4, 256, 256)))
    best.path.write_bytes(PLAN[::-1])
    assert cache.find(best.recipe) == wide
    assert cache.entries() == [wide]


def test_machines_that_share_a_folder_find_their_own(cache: EngineCache) -> None:
    entries = {gpu: put(cache, make_recipe(gpu=gpu)) for gpu in (H100, RTX_4090)}
    for gpu, entry in entries.items():
        assert cache.find(make_recipe(gpu=gpu)) == entry


def test_an_engine_built_ahead_of_time_serves_its_targets(cache: EngineCache) -> None:
    ahead = put(cache, ahead_of_time("sm86", "sm89"))
    here = ahead_of_time("sm86", gpu=RTX_4090, options=BuildOptions())
    assert cache.find(here) == ahead
    assert cache.find(replace(here, gpu=H100)) is None
    assert cache.find(ahead_of_time("sm86")) == ahead
    assert cache.find(ahead_of_time("sm86", "sm120")) is None
    own = put(cache, here)
    assert cache.find(here) == own
    assert cache.find(ahead_of_time("sm89")) == ahead


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (make_recipe(version="11.4.0.106"), "is of tensorrt 10.16.1.11, not 11.4.0.106"),
        (
            make_recipe(gpu=RTX_4090),
            "was built for NVIDIA H100 80GB HBM3 (sm90), not for NVIDIA GeForce RTX 4090 (sm89)",
        ),
        (
            make_recipe(gpu=replace(H100, driver="590.1")),
            "was built under driver 580.65.06, not 590.1",
        ),
        (
            make_recipe(gpu=replace(H100, multiprocessors=114)),
            "was built for 132 multiprocessors of NVIDIA H100 80GB HBM3, not 114",
        ),
        (
            make_recipe(profile=Profile.fixed(16, 256, 256)),
            f"takes {RECIPE.profile}, not {Profile.fixed(16, 256, 256)}",
        ),
        (
            make_recipe(version="11.4.0.106", gpu=replace(H100, driver="590.1")),
            "is of tensorrt 10.16.1.11, not 11.4.0.106 and was built under driver 580.65.06, "
            "not 590.1",
        ),
        (make_recipe(profile=Profile.fixed(4, 256, 256)), None),
        (make_recipe(graph="0" * 64), None),
        (make_recipe(precision="fp32"), None),
        (make_recipe(flavour="tensorrt-rtx"), None),
    ],
)
def test_why_nothing_fits_is_told(cache: EngineCache, wanted: Recipe, told: str | None) -> None:
    assert cache.difference(wanted) is None
    # Farther from what is wanted in every case.
    put(cache, make_recipe(version="10.0.0", gpu=RTX_4090, profile=Profile.fixed(1, 8, 8)))
    put(cache)
    assert cache.difference(wanted) == (told and f"the nearest cached engine {told}")


def test_targets_that_are_missing_are_told(cache: EngineCache) -> None:
    put(cache, ahead_of_time("sm86"))
    assert cache.difference(ahead_of_time("sm86", "sm89", "sm120")) == (
        "the nearest cached engine was built for sm86, not for sm89, sm120"
    )
