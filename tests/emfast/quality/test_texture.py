from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emfast.quality.texture import (
    PATTERN_SCALES,
    decibels,
    pattern_histogram,
    radial_spectrum,
    spectrum_distance,
    total_variation,
)

RNG = np.random.default_rng(0)
NOISE = RNG.normal(128, 12, (128, 128)).clip(0, 255).round().astype(np.uint8)


def test_white_noise_has_its_variance_at_every_frequency() -> None:
    spectra = [
        radial_spectrum(RNG.normal(128, 12, (64, 64)).round().astype(np.uint8)) for _ in range(200)
    ]
    # Rounding to whole greys adds 1/12.
    assert np.mean(spectra, axis=0) == pytest.approx(np.full(32, 144 + 1 / 12), rel=0.1)
    assert np.mean(spectra) == pytest.approx(144 + 1 / 12, rel=0.02)


def test_a_wave_has_its_power_at_its_frequency() -> None:
    y, x = np.mgrid[:128, :128]
    for angle in (0.0, 0.5, np.pi / 2):
        phase = 2 * np.pi * 20 / 128 * (np.cos(angle) * x + np.sin(angle) * y)
        spectrum = radial_spectrum((128 + 100 * np.sin(phase)).round().astype(np.uint8))
        assert spectrum.argmax() + 1 == 20
        assert spectrum[17:22].sum() > 0.99 * spectrum.sum()


def test_contrast_and_blur_in_decibels() -> None:
    spectrum = radial_spectrum(NOISE)
    assert spectrum_distance(spectrum, spectrum) == 0
    # Twice the contrast is four times the power: 6.02 dB at every frequency.
    wide = radial_spectrum((64 + 2 * (NOISE.astype(int) - 80).clip(0, 95)).astype(np.uint8))
    assert decibels(wide, spectrum) == pytest.approx(np.full(64, 6.02), abs=0.05)
    assert spectrum_distance(wide, spectrum) == pytest.approx(6.02, abs=0.02)
    blurred = radial_spectrum(gaussian_filter(NOISE, 1.0))
    lost = decibels(blurred, spectrum)
    assert abs(lost[:3]).max() < 1 and lost[40:].max() < -10
    assert np.isfinite(
        decibels(radial_spectrum(np.full((32, 32), 9, np.uint8)), spectrum[:16])
    ).all()


def test_patterns_of_known_images() -> None:
    for radius, neighbours in PATTERN_SCALES:
        flat = pattern_histogram(np.full((32, 32), 90, np.uint8), radius, neighbours)
        # All neighbours are as bright as the middle; the bin of rare patterns is empty.
        assert flat.shape == (neighbours + 2,) and flat[-1] == 0
        shares = pattern_histogram(NOISE, radius, neighbours)
        assert shares.sum() == pytest.approx(1) and shares[-1] > 0.1
        # Brightness has no part in it, but for rounding where neighbours are equal.
        brighter = pattern_histogram(NOISE // 2 + np.uint8(100), radius, neighbours)
        assert brighter == pytest.approx(
            pattern_histogram(NOISE // 2, radius, neighbours), abs=5e-3
        )
        smooth = pattern_histogram(gaussian_filter(NOISE, 2.0), radius, neighbours)
        assert total_variation(smooth, shares) > 0.1
    inside = pattern_histogram(np.full((200, 200), 90, np.uint8), 1, 8)
    assert inside[8] == pytest.approx(1, abs=0.03)


def test_total_variation_by_hand() -> None:
    a, b = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert total_variation(a, a) == 0
    assert total_variation(a, b) == 0.5
    assert total_variation(a, np.array([0.0, 0.0, 1.0])) == 1
