from __future__ import annotations

import math

import numpy as np
import pytest

from emfast.diffusion.noise import MAX_SEED, normal_noise
from engines.errors import UserError

MASK = 2**64 - 1
Words = tuple[int, ...]

# Philox4x64-10: counter, key and result, from kat_vectors of Random123, the library of the paper.
KNOWN_ANSWERS = [
    (
        "0000000000000000 0000000000000000 0000000000000000 0000000000000000",
        "0000000000000000 0000000000000000",
        "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
    ),
    (
        "ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff",
        "ffffffffffffffff ffffffffffffffff",
        "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    ),
    (
        "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
        "452821e638d01377 be5466cf34e90c6c",
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]


def philox(counter: Words, key: Words) -> Words:
    """Philox4x64-10 as its paper writes it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = divmod(0xD2E7470EE14C6C93 * c0, 2**64)[::-1]
        low2, high2 = divmod(0xCA5A826395121157 * c2, 2**64)[::-1]
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high ^ c3 ^ k1, low
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


def words(text: str) -> Words:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_reference_and_numpy_give_the_published_numbers(
    counter: str, key: str, result: str
) -> None:
    assert philox(words(counter), words(key)) == words(result)
    # numpy counts one up before it generates.
    number = sum(word << 64 * i for i, word in enumerate(words(counter)))
    before = [(number - 1) % 2**256 >> 64 * i & MASK for i in range(4)]
    generator = np.random.Philox(
        key=np.array(words(key), np.uint64), counter=np.array(before, np.uint64)
    )
    assert tuple(int(word) for word in generator.random_raw(4)) == words(result)


@pytest.mark.parametrize(
    ("seed", "index", "step"), [(0, 0, 0), (7, 3, 699), (MAX_SEED, MAX_SEED, 700)]
)
def test_noise_is_box_muller_of_the_counter_that_is_documented(
    seed: int, index: int, step: int
) -> None:
    shape = (2, 3, 4)
    noise = normal_noise(seed, [index], step, shape).ravel()
    half = noise.size // 2
    raw = [w for block in range(1, 4) for w in philox((block, step, index, 0), (seed, 0))]
    for k, word in enumerate(raw[:half]):
        low, high = word & (2**32 - 1), word >> 32
        radius = math.sqrt(-2 * math.log((low + 0.5) / 2**32))
        angle = 2 * math.pi * high / 2**32
        assert noise[k] == pytest.approx(radius * math.cos(angle), abs=3e-6)
        assert noise[k + half] == pytest.approx(radius * math.sin(angle), abs=3e-6)


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    shape = (2, 16, 16)
    together = normal_noise(1, [4, 9, 2**40], 12, shape)
    for row, index in zip(together, [4, 9, 2**40], strict=True):
        np.testing.assert_array_equal(row, normal_noise(1, [index], 12, shape)[0])


def test_seed_image_and_step_each_change_all_the_noise() -> None:
    shape = (1, 64, 64)
    base = normal_noise(0, [0], 0, shape).ravel()
    for seed, index, step in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63, 0, 0)):
        other = normal_noise(seed, [index], step, shape).ravel()
        assert (base == other).mean() < 0.01
        # Independent samples: the correlation is 0 within 4 standard errors.
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / math.sqrt(base.size)


def test_noise_is_standard_normal() -> None:
    noise = normal_noise(3, range(16), 5, (2, 128, 128)).astype(np.float64)
    n = noise.size
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((noise**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert np.isfinite(noise).all()
    # Both halves of Box-Muller, and neighbours: no correlation.
    flat = noise.reshape(16, -1)
    half = flat.shape[1] // 2
    for a, b in ((flat[:, :half], flat[:, half:]), (flat[:, :-1], flat[:, 1:])):
        assert abs((a * b).mean()) < 4 / math.sqrt(a.size)


def test_noise_fills_the_given_array() -> None:
    out = np.full((2, 1, 4, 4), np.nan, dtype=np.float32)
    result = normal_noise(0, [5, 6], 1, (1, 4, 4), out=out)
    assert result is out
    np.testing.assert_array_equal(out, normal_noise(0, [5, 6], 1, (1, 4, 4)))


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seed_outside_its_range_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match=f"seed {seed} is outside"):
        normal_noise(seed, [0], 0, (1, 4, 4))


def test_odd_number_of_elements_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(1, 3, 3\) has an odd number"):
        normal_noise(0, [0], 0, (1, 3, 3))
