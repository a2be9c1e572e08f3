from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emfast.selection.choice import choose
from emfast.selection.reference import Limits
from emfast.selection.rules import FARTHER, Rules
from emfast.selection.scores import MaskScores, Nearest, Repairs, Scores
from emfast.selection.strata import Strata
from engines.errors import UserError

STRATA = Strata.of_real([0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4], [0, 1, 2, 1, 2, 1, 2, 3])
LIMITS = Limits(unit=2.0, distance=4.0, coincidence=0.5, area=0.4, objects=5, cut=4, strata=STRATA)
GOOD = Scores(
    index=0,
    image="a",
    mask="b",
    distance=1.0,
    nearest=Nearest(0.4, "training0000", 0, 0, 0),
    drawn=MaskScores(0.9, 0.01, 0.1, 2, 1, 0),
    repaired=None,
)


def with_mask(**values: float) -> Scores:
    return replace(GOOD, drawn=replace(GOOD.drawn, **values))  # type: ignore[arg-type]


def failed(scores: Scores, rules: Rules | None = None, repair: bool = False) -> tuple[str, ...]:
    return (rules or Rules()).settled(LIMITS).failed(scores, repair)


def test_a_good_image_passes() -> None:
    assert failed(GOOD) == ()


@pytest.mark.parametrize(
    ("scores", "reasons"),
    [
        (replace(GOOD, nearest=replace(GOOD.nearest, similarity=0.76)), ("copy",)),
        (replace(GOOD, nearest=replace(GOOD.nearest, similarity=0.75)), ()),
        (replace(GOOD, distance=FARTHER * 4.01), ("features",)),
        (replace(GOOD, distance=FARTHER * 3.99), ()),
        (with_mask(agreement=0.74, disagreement=0.02), ("agreement",)),
        # A sliver that the segmenter does not see.
        (with_mask(agreement=0.0, disagreement=0.007), ()),
        (with_mask(specks=1), ("specks",)),
        (with_mask(area=0.41), ("area",)),
        (with_mask(objects=6), ("objects",)),
        (with_mask(cut=5), ("cut",)),
        (with_mask(agreement=0.0, disagreement=0.5, specks=3), ("agreement", "specks")),
        # Both empty.
        (with_mask(agreement=1.0, disagreement=0.0, area=0.0, objects=0), ()),
    ],
)
def test_thresholds(scores: Scores, reasons: tuple[str, ...]) -> None:
    assert failed(scores) == reasons


def test_a_given_threshold_goes_before_that_of_real_tiles() -> None:
    assert failed(with_mask(area=0.35), Rules(area=0.3)) == ("area",)
    assert failed(with_mask(area=0.9), Rules(area=1)) == ()


def test_a_repaired_mask_is_judged_as_it_will_be() -> None:
    repaired = Repairs(2, 30, 0, 0, replace(GOOD.drawn, specks=0))
    scores = replace(with_mask(specks=2), repaired=repaired)
    assert failed(scores) == ("specks",)
    assert failed(scores, repair=True) == ()


def images(*agreements: float, distances: tuple[float, ...] | None = None) -> list[Scores]:
    distances = distances or (1.0,) * len(agreements)
    return [
        replace(with_mask(agreement=agreement), index=i, distance=distance)
        for i, (agreement, distance) in enumerate(zip(agreements, distances, strict=True))
    ]


def chosen(scores: list[Scores], rules: Rules) -> list[int]:
    choice = choose(scores, rules.settled(LIMITS), STRATA, repair=False)
    return np.flatnonzero(choice.kept).tolist()


def test_the_best_share_is_of_those_that_pass() -> None:
    scores = images(0.8, 0.99, 0.2, 0.9, 0.95)
    assert chosen(scores, Rules()) == [0, 1, 3, 4]
    assert chosen(scores, Rules(best=0.5)) == [1, 4]
    choice = choose(scores, Rules(best=0.5).settled(LIMITS), STRATA, repair=False)
    assert choice.reasons(0, ()) == ("rank",)
    assert choice.reasons(2, ("agreement",)) == ("agreement",)


def test_the_rank_counts_closeness_as_much_as_agreement() -> None:
    scores = images(0.99, 0.98, 0.97, 0.8, distances=(3.0, 1.0, 2.0, 4.0))
    assert chosen(scores, Rules(best=0.25)) == [1]


def test_an_empty_mask_is_not_better_than_others() -> None:
    empty = replace(with_mask(agreement=1.0, area=0.0, objects=0), index=4)
    scores = [*images(0.8, 0.85, 0.9, 0.95), empty]
    assert chosen(scores, Rules(best=0.4)) == [2, 3]


def test_of_equal_images_the_first_are_kept() -> None:
    assert chosen(images(0.9, 0.9, 0.9, 0.9), Rules(best=0.5)) == [0, 1]


def test_the_first_ones_end_the_selection() -> None:
    choice = choose(
        images(0.1, 0.9, 0.1, 0.9, 0.9), Rules(first=2).settled(LIMITS), STRATA, repair=False
    )
    assert choice.kept.tolist() == [False, True, False, True]
    assert choice.passed.sum() == 3


def test_the_mix_takes_the_first_of_each_kind() -> None:
    kinds = [(0.0, 0), (0.1, 1), (0.1, 1), (0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2), (0.3, 1)]
    kinds += [(0.3, 2), (0.4, 3)]
    scores = [
        replace(with_mask(area=area, objects=objects), index=i)
        for i, (area, objects) in enumerate(kinds)
    ]
    choice = choose(scores, Rules(match=True).settled(LIMITS), STRATA, repair=False)
    assert np.flatnonzero(~choice.kept).tolist() == [2, 3]
    assert choice.reasons(2, ()) == ("match",)
    assert choice.quotas is not None and sum(choice.quotas) == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"agreement": 1.2}, "agreement 1.2"),
        ({"best": 0.0}, "best 0.0"),
        ({"area": -0.1}, "area -0.1"),
        ({"distance": float("nan")}, "distance nan"),
        ({"first": 0}, "first 0"),
        ({"first": 3, "match": True}, "neither the best nor a mix"),
    ],
)
def test_rules_that_make_no_sense(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rules(**values)  # type: ignore[arg-type]
