from __future__ import annotations

import pytest

from emfast.quality.draws import Row, Value
from emfast.quality.scores import SCORES, SUMMARY, Score, number

LOWER = Score("a", "A", "lower", "Note.")
SHARE = Score("b", "B", "real", "Note.", percent=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1830.4, "1830"),
        (12345.0, "12300"),
        (27.13, "27.1"),
        (0.01824, "0.0182"),
        (0.00001234, "0.000012"),
        (-0.641, "-0.641"),
        (100.0, "100"),
        (1e-9, "0"),
        (0.0, "0"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_values_are_written_with_their_spread() -> None:
    assert LOWER.text(Value(1.2, 0.345)) == "1.2 ± 0.34"
    assert SHARE.text(Value(0.0834)) == "8.34 %"
    assert SHARE.text(Value(0.0834, 0.0041)) == "8.34 ± 0.41 %"
    assert LOWER.text(None) == "n/a"
    assert Score("c", "C", "lower", "", factor=1000.0).text(Value(0.0012)) == "1.2"


def test_against_real() -> None:
    assert LOWER.against_real(Row(Value(6.2), Value(2.0, 0.1), ())) == "3.1"
    assert SHARE.against_real(Row(Value(0.045), Value(0.083), ())) == "-46 %"
    assert SHARE.against_real(Row(Value(0.166), Value(0.083), ())) == "+100 %"
    assert SHARE.against_real(Row(Value(0.0829), Value(0.083), ())) == "0 %"
    for row in (
        Row(None, Value(1.0), ()),
        Row(Value(1.0), None, ()),
        Row(Value(1.0), Value(0.0), ()),
        Row(Value(1.0), Value(-0.1), ()),
        Row(Value(-1.0), Value(0.1), ()),
    ):
        assert LOWER.against_real(row) == ""


def test_every_summary_score_is_a_score() -> None:
    assert set(SUMMARY) <= set(SCORES)
