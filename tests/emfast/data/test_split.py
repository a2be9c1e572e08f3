from __future__ import annotations

import json

import pytest

from emfast.data.split import holdout_split, parse_slices, slice_ranges, split_json
from engines.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("0-2,20", [0, 1, 2, 20]),
        (" 7 , 1-2 ", [1, 2, 7]),
        ("1-4,3-5", [1, 2, 3, 4, 5]),
        ("29-29", [29]),
    ],
)
def test_slices_are_read(text: str, expected: list[int]) -> None:
    assert parse_slices(text, 30) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read ''"),
        ("1,,2", "cannot read ''"),
        ("ten", "cannot read 'ten'"),
        ("-3", "cannot read '-3'"),
        ("1-2-3", "cannot read '1-2-3'"),
        ("1.5", "cannot read '1.5'"),
        ("٣", "cannot read"),
        ("9-3", "write 3-9"),
        ("30", "no slice 30; the stack has 30, numbered 0 to 29"),
        ("5-99999999999", "no slice 99999999999"),
    ],
)
def test_nonsense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_slices(text, 30)


def test_gap_belongs_to_neither_part() -> None:
    training, held = holdout_split(165, range(140, 165), gap=5)
    assert held == list(range(140, 165))
    assert training == list(range(135))


def test_several_blocks_have_gaps_on_both_sides() -> None:
    training, held = holdout_split(20, [4, 5, 12, 13], gap=2)
    assert held == [4, 5, 12, 13]
    assert training == [0, 1, 8, 9, 16, 17, 18, 19]
    assert min(abs(t - h) for t in training for h in held) == 3


def test_order_and_repeats_of_the_holdout_do_not_matter() -> None:
    assert holdout_split(10, [9, 8, 8], 1) == ([0, 1, 2, 3, 4, 5, 6], [8, 9])


@pytest.mark.parametrize(
    ("holdout", "gap", "message"),
    [
        ([], 0, "no slices are held out"),
        ([10], 0, "held-out slice 10 does not exist"),
        ([-1, 3], 0, "held-out slice -1 does not exist"),
        ([3], -1, "gap of -1"),
        ([4, 5], 4, "no slices are left for training"),
        (list(range(10)), 0, "no slices are left"),
    ],
)
def test_impossible_splits_are_refused(holdout: list[int], gap: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        holdout_split(10, holdout, gap)


def test_ranges_are_written_as_they_are_read() -> None:
    assert slice_ranges([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10"
    assert parse_slices(slice_ranges([0, 1, 2, 7, 9, 10]), 11) == [0, 1, 2, 7, 9, 10]


def test_json_names_every_slice() -> None:
    names = [f"s{i}" for i in range(10)]
    described = json.loads(split_json("stack", names, "7-9", 2))
    assert described["training"] == {"slices": "0-4", "count": 5, "names": names[:5]}
    assert described["holdout"] == {"slices": "7-9", "count": 3, "names": names[7:]}
    assert (described["source"], described["slices"], described["gap"]) == ("stack", 10, 2)
