from __future__ import annotations

import json
from typing import Any

import pytest

from engines.bundle import TensorSpec, open_bundle
from engines.errors import UserError
from engines.plan import BuildOptions, Profile, Range, check_inputs

DYNAMIC = Profile(Range(1, 4, 8), Range(128, 256, 512), Range(64, 256, 1024))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, 1, 2), (2, 1, 3), (1, 3, 2), (3, 2, 1)])
def test_sizes_out_of_order_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="expected a minimum of at least 1, the best and a maximum"):
        Range(*sizes)


def test_a_range_takes_what_lies_within() -> None:
    sizes = Range(2, 4, 8)
    assert [size for size in range(12) if size in sizes] == [2, 3, 4, 5, 6, 7, 8]
    assert not sizes.static
    assert Range.fixed(3).static
    assert [size for size in range(6) if size in Range.fixed(3)] == [3]


def test_a_profile_is_told_in_words() -> None:
    assert str(Profile.fixed(4, 256, 512)) == "batch 4, width 512, height 256"
    assert str(DYNAMIC) == (
        "batch 1 to 8 (best 4), width 64 to 1024 (best 256), height 128 to 512 (best 256)"
    )


@pytest.mark.parametrize(
    ("other", "admitted"),
    [
        (DYNAMIC, True),
        (Profile.fixed(1, 128, 64), True),
        (Profile.fixed(8, 512, 1024), True),
        (Profile(Range(2, 8, 8), Range(128, 128, 512), Range.fixed(256)), True),
        (Profile.fixed(9, 256, 256), False),
        (Profile.fixed(4, 96, 256), False),
        (Profile.fixed(4, 256, 1040), False),
        (Profile(Range(1, 8, 9), Range.fixed(256), Range.fixed(256)), False),
        (Profile(Range.fixed(1), Range(64, 256, 512), Range.fixed(256)), False),
    ],
)
def test_a_profile_admits_what_lies_within_on_every_axis(other: Profile, admitted: bool) -> None:
    assert DYNAMIC.admits(other) is admitted


def test_a_static_profile_admits_itself_alone() -> None:
    static = Profile.fixed(4, 256, 256)
    assert static.static and static.admits(static)
    assert not DYNAMIC.static
    assert not static.admits(DYNAMIC)
    assert not static.admits(Profile.fixed(4, 256, 512))


@pytest.mark.parametrize("name", ["epfl-denoiser", "epfl-segmenter"])
def test_shapes_of_the_shipped_bundles(name: str) -> None:
    manifest = open_bundle(name).manifest
    check_inputs(manifest.inputs, DYNAMIC)
    image = manifest.inputs[0]
    channels = image.shape[1]
    assert DYNAMIC.shapes(image) == (
        (1, channels, 128, 64),
        (4, channels, 256, 256),
        (8, channels, 512, 1024),
    )
    for timestep in manifest.inputs[1:]:
        assert DYNAMIC.shapes(timestep) == ((1,), (4,), (8,))


def test_a_free_axis_of_another_name_is_refused() -> None:
    spec = TensorSpec("x", "float32", ("batch", 1, "rows", "width"), "greys")
    with pytest.raises(UserError, match="input x: its axis 2 is 'rows'; .* batch, height, width"):
        check_inputs([spec], DYNAMIC)


def test_a_fixed_axis_of_an_image_must_be_the_profiles() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3, 256, 512), "greys")
    shape = (4, 3, 256, 512)
    assert Profile.fixed(4, 256, 512).shapes(spec) == (shape, shape, shape)
    with pytest.raises(UserError, match=r"height is fixed at 256, but 128 to 512 \(best 256\)"):
        DYNAMIC.shapes(spec)
    with pytest.raises(UserError, match="its width is fixed at 512, but 256 was asked for"):
        Profile.fixed(4, 256, 256).shapes(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace": 0}, "workspace of 0 bytes; expected at least 1"),
        ({"optimization_level": 6}, "optimisation level 6; expected 0 to 5"),
        ({"optimization_level": -1}, "optimisation level -1; expected 0 to 5"),
        ({"hardware_compatibility": "all"}, "'all'; accepted: none, ampere-plus, same-compute"),
        ({"targets": ("8.6",)}, "target '8.6'; expected a compute capability, as sm86"),
        ({"targets": "sm86"}, "target '6'; expected a compute capability, as sm86"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BuildOptions(**options)


def test_targets_are_a_set() -> None:
    options = BuildOptions(targets=("SM120", "sm86", "sm89", "sm86"))
    assert options.targets == ("sm86", "sm89", "sm120")
    assert options == BuildOptions(targets=("sm89", "sm86", "sm120"))


def test_plans_survive_json() -> None:
    options = BuildOptions(2**30, 5, "ampere-plus", ("sm86", "sm120"))
    for value in (DYNAMIC, options, BuildOptions()):
        assert type(value).from_dict(json.loads(json.dumps(value.to_dict()))) == value
