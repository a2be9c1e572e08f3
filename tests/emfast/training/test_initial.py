from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from emfast.data.stack import Stack
from emfast.models.denoiser import Denoiser, DenoiserConfig
from emfast.training.checkpoint import load_checkpoint
from emfast.training.denoiser import DenoiserTask, train_denoiser
from emfast.training.initial import load_trained
from emfast.training.presets import DENOISER_PRESETS, SEGMENTER_PRESETS
from emfast.training.segmenter import train_segmenter
from emfast.training.trainer import CHECKPOINT
from engines.errors import UserError
from engines.files import sha256

SETTINGS = DENOISER_PRESETS["default"].override(
    widths=(16, 16), blocks=1, steps=20, crops=((32, 2),), iterations=6, warmup=2, sample_every=6
)
RNG = np.random.default_rng(0)
STACK = Stack(
    RNG.integers(0, 256, (2, 48, 48), dtype=np.uint8),
    RNG.integers(0, 2, (2, 48, 48), dtype=np.uint8),
    ("a", "b"),
    "noise",
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    train_denoiser(SETTINGS, STACK, {"slices": ["a", "b"]}, folder, "cpu")
    return folder


@pytest.mark.parametrize("name", ["", CHECKPOINT])
def test_a_denoiser_starts_from_averaged_weights(first: Path, tmp_path: Path, name: str) -> None:
    # A step of next to nothing leaves the weights where they began, and another seed would begin
    # elsewhere.
    still = SETTINGS.override(learning_rate=1e-30, iterations=1, seed=5)
    train_denoiser(still, STACK, {}, tmp_path / "second", "cpu", first / name)
    trained = load_trained(first, "denoiser")
    begun, meta = load_checkpoint(tmp_path / "second" / CHECKPOINT)
    x, t = torch.randn(2, 2, 32, 32), torch.tensor([3.0, 17.0])
    networks = [Denoiser(DenoiserConfig.from_dict(trained.task["network"])) for _ in range(2)]
    trained.restore(networks[0])
    networks[1].load_state_dict(begun["network"])
    with torch.no_grad():
        expected, got = (network(x, t) for network in networks)
    assert_close(got, expected, rtol=1e-3, atol=1e-3)
    raw, _ = load_checkpoint(first / CHECKPOINT)
    assert not torch.equal(raw["network"]["stem.weight"], raw["average"]["stem.weight"])
    assert meta["data"]["initial"]["sha256"] == sha256(first / CHECKPOINT)
    assert meta["data"]["initial"]["iteration"] == 6
    assert meta["data"]["initial"]["data"] == {"slices": ["a", "b"]}


def test_a_denoiser_with_another_level_begins_as_the_one_that_lacks_it(
    first: Path, tmp_path: Path
) -> None:
    trained = load_trained(first, "denoiser")
    deep = SETTINGS.override(widths=(16, 16, 16), blocks=(1, 1, 2))
    narrow = SETTINGS.override(widths=(16, 16, 8), blocks=(1, 1, 2))
    shallow, deeper, narrower = (
        DenoiserTask(settings, STACK, torch.device("cpu"), trained).network
        for settings in (SETTINGS, deep, narrow)
    )
    assert isinstance(deeper, Denoiser)
    deeper.normalize_weights()
    x, t = torch.randn(2, 2, 32, 32), torch.tensor([3.0, 17.0])
    with torch.no_grad():
        expected = shallow(x, t)
        assert_close(deeper(x, t), expected, rtol=1e-3, atol=1e-3)
        assert_close(narrower(x, t), expected, rtol=0, atol=0.2 * float(expected.std()))
    # The new level takes part from the first step on.
    train_denoiser(deep.override(iterations=2), STACK, {}, tmp_path / "deep", "cpu", first)
    begun, _ = load_checkpoint(tmp_path / "deep" / CHECKPOINT)
    assert begun["network"]["decoder.1.0.conv1.weight"][:, :16].abs().min() > 0


def test_a_run_goes_on_from_the_same_beginning_only(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "second"
    short = SETTINGS.override(iterations=2)
    train_denoiser(short, STACK, {}, out, "cpu", first)
    assert train_denoiser(SETTINGS, STACK, {}, out, "cpu", first).iteration == 6
    with pytest.raises(UserError, match="other data: initial"):
        train_denoiser(SETTINGS, STACK, {}, out, "cpu")


def test_what_a_denoiser_cannot_start_from(first: Path, tmp_path: Path) -> None:
    wide = SETTINGS.override(widths=(16, 24))
    deep_and_wide = SETTINGS.override(widths=(16, 24, 24))
    noise = SETTINGS.override(schedule="linear", prediction="epsilon")
    both = wide.override(schedule="linear")
    small = SEGMENTER_PRESETS["default"].override(
        crops=((32, 2),), iterations=1, warmup=1, validate_every=1
    )
    train_segmenter(small, STACK, None, {}, tmp_path / "segmenter", "cpu")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    for settings, initial, message in [
        (wide, first, "was trained with another network; give its --preset"),
        (deep_and_wide, first, "was trained with another network; give its --preset"),
        (noise, first, "was trained with another schedule"),
        (both, first, "was trained with another network and schedule"),
        (SETTINGS, tmp_path / "segmenter", "holds no denoiser that emfast train wrote"),
        (SETTINGS, tmp_path / "bundle", "is a bundle"),
        (SETTINGS, tmp_path / "nothing", "no such checkpoint"),
    ]:
        with pytest.raises(UserError, match=message):
            train_denoiser(settings, STACK, {}, tmp_path / "x", "cpu", initial)
        assert not (tmp_path / "x").exists()
