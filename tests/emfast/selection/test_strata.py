from __future__ import annotations

import numpy as np
import pytest

from emfast.selection.strata import LACKING, Strata


@pytest.fixture
def strata() -> Strata:
    # 20 empty tiles, 80 of areas 0.02 to 0.81 with 1, 2, 3, 4, 1, ... objects.
    areas = [0.0] * 20 + [i / 100 for i in range(2, 82)]
    objects = [0] * 20 + [1 + i % 4 for i in range(80)]
    return Strata.of_real(areas, objects)


def test_each_tile_is_in_one_stratum(strata: Strata) -> None:
    assert strata.counts == (20, 5, 5, 10, 5, 5, 10, 5, 5, 10, 5, 5, 10)
    assert strata.name(strata.number(0.0, 0)) == "no objects"
    assert strata.name(strata.number(0.1, 1)) == f"1 object, area 0 to {strata.edges[0]:.3g}"
    assert strata.name(strata.number(0.1, 2)) == f"2 objects, area 0 to {strata.edges[0]:.3g}"
    assert (
        strata.name(strata.number(0.9, 7)) == f"3 objects or more, area {strata.edges[2]:.3g} to 1"
    )
    assert Strata.from_dict(strata.to_dict()) == strata


def test_enough_of_everything_gives_the_mix(strata: Strata) -> None:
    available = 100 * np.array(strata.counts)
    assert np.array_equal(strata.quotas(available), available)
    # Too many of a kind change no more than the mix may differ.
    more = available.copy()
    more[3] *= 50
    shares = np.array(strata.counts) / 100
    quotas = strata.quotas(more)
    assert 0.5 * np.abs(quotas / quotas.sum() - shares).sum() <= LACKING


def test_a_rare_kind_does_not_decide_alone(strata: Strata) -> None:
    available = 100 * np.array(strata.counts)
    available[1] = 10  # of which real tiles have 5 %
    quotas = strata.quotas(available)
    assert quotas[1] == 10
    assert quotas.sum() > 8000
    shares = np.array(strata.counts) / 100
    assert 0.5 * np.abs(quotas / quotas.sum() - shares).sum() <= LACKING
    assert strata.scarcest(available.tolist()) == 1


def test_a_kind_that_is_not_there_is_left_out(strata: Strata) -> None:
    available = 100 * np.array(strata.counts)
    available[0] = 0  # of which real tiles have 20 %
    assert np.array_equal(strata.quotas(available), available)
    assert strata.scarcest(available.tolist()) == 0
    assert strata.quotas(np.zeros(13, dtype=np.int64)).sum() == 0


def test_a_small_set_has_a_mix_too(strata: Strata) -> None:
    available = np.array([4, 0, 2, 1, 3, 0, 2, 1, 1, 2, 0, 1, 3])
    assert strata.quotas(available).sum() >= 12


def test_what_real_tiles_do_not_have_is_not_kept() -> None:
    strata = Strata.of_real([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1])
    available = np.full(13, 10)
    quotas = strata.quotas(available)
    assert all(quotas[i] == 0 for i in range(13) if strata.counts[i] == 0)
    assert quotas.sum() == 40


def test_real_tiles_without_objects_are_one_stratum() -> None:
    strata = Strata.of_real([0.0, 0.0], [0, 0])
    assert strata.counts[0] == 2
    assert strata.quotas(np.full(13, 5))[0] == 5
