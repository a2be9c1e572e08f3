from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engines.errors import UserError
from engines.plan import BuildOptions
from engines.recipe import GpuIdentity, Recipe
from tests.recipes import H100, RTX_4090, ahead_of_time, changed, leaves, make_recipe

RECIPE = make_recipe()
LEAVES = list(leaves(RECIPE))


def test_a_changed_key_needs_another_cache_format() -> None:
    # Where this fails because Recipe was changed: raise FORMAT, then write the new key here.
    assert RECIPE.key == "cd2615353e4f35c97638af1b2b953c08362ce4eacf846cefc3e2fc980a0252d9"
    assert RECIPE.name == RECIPE.key[:16]


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_each_part_changes_the_key(path: tuple[str, ...]) -> None:
    other = changed(RECIPE, path)
    assert other.key != RECIPE.key
    assert other.name != RECIPE.name


def test_a_gpu_is_not_a_target() -> None:
    options = replace(RECIPE.options, targets=("sm90",))
    assert replace(RECIPE, gpu=None, options=options).key != RECIPE.key


@pytest.mark.parametrize("recipe", [RECIPE, ahead_of_time("sm86", "sm120")])
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    read = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert read == recipe
    assert read.key == recipe.key


def test_an_engine_is_for_a_gpu_or_for_targets() -> None:
    with pytest.raises(UserError, match="no GPU to build for; name compute capabilities"):
        make_recipe(gpu=None)


def test_what_it_is_in_words() -> None:
    assert str(RECIPE) == (
        f"tensorrt 10.16.1.11 engine of graph 5eed5eed, fp16, {RECIPE.profile}, "
        "for NVIDIA H100 80GB HBM3 (sm90)"
    )
    assert str(ahead_of_time("sm120", "sm86")).endswith("for sm86, sm120")


AMPERE_PLUS = BuildOptions(hardware_compatibility="ampere-plus")
SAME = BuildOptions(hardware_compatibility="same-compute-capability")
RTX_2080 = GpuIdentity("NVIDIA GeForce RTX 2080 Ti", "7.5", 68, "580.65.06")


@pytest.mark.parametrize(
    ("recipe", "gpu", "runs"),
    [
        (RECIPE, H100, True),
        (RECIPE, RTX_4090, False),
        (RECIPE, replace(H100, driver="570.1"), False),
        (RECIPE, replace(H100, multiprocessors=114), False),
        (make_recipe(options=AMPERE_PLUS), RTX_4090, True),
        (make_recipe(options=AMPERE_PLUS), RTX_2080, False),
        (make_recipe(options=SAME), RTX_4090, False),
        (make_recipe(options=SAME), replace(H100, name="NVIDIA H200", driver="570.1"), True),
        (ahead_of_time("sm86", "sm89"), RTX_4090, True),
        (ahead_of_time("sm86"), RTX_4090, False),
        (ahead_of_time("sm90"), replace(H100, driver="570.1"), True),
    ],
)
def test_where_an_engine_runs(recipe: Recipe, gpu: GpuIdentity, runs: bool) -> None:
    assert recipe.runs_on(gpu) is runs


def test_why_an_engine_can_never_be_used_again() -> None:
    here = {"tensorrt": "10.16.1.11"}
    assert RECIPE.outdated(here, [H100]) is None
    assert RECIPE.outdated({}, []) is None
    assert RECIPE.outdated({"tensorrt-rtx": "1.7.1.116"}, [RTX_4090]) is None
    assert RECIPE.outdated({"tensorrt": "11.4.0.106"}, []) == (
        "is of tensorrt 10.16.1.11; this machine has 11.4.0.106"
    )
    updated = replace(H100, driver="590.1")
    assert RECIPE.outdated(here, [RTX_4090, updated]) == (
        "was built under driver 580.65.06; this machine has 590.1"
    )
    assert RECIPE.outdated(here, [updated, H100]) is None
    assert make_recipe(options=SAME).outdated(here, [updated]) is None
    assert ahead_of_time("sm90").outdated(here, [updated]) is None
