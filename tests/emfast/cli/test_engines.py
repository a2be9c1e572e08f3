"""``emfast engines``, on the stand-in GPU and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from emfast.cli.main import app
from engines.cache import EngineCache
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle, write_segmenter_bundle

if TYPE_CHECKING:
    from tests.fake_gpu import FakeGpu

pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["engines", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest shape is verified too."""
    monkeypatch.setattr("emfast.runtime.TILE", 256)


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    return write_segmenter_bundle(tmp_path / "segmenter")


def test_built_ahead_for_other_cards(segmenter: Path) -> None:
    """Without a GPU; the real TensorRT-RTX."""
    result = run("build", segmenter, "--target", "sm86", "--target", "sm120")
    assert "built; verified on no GPU yet" in result.output
    (entry,) = EngineCache().entries()
    assert entry.recipe.options.targets == ("sm86", "sm120")
    assert entry.recipe.gpu is None
    again = run("build", segmenter, "--target", "sm86", "--target", "sm120")
    assert "was there already" in again.output


def test_all_targets(segmenter: Path) -> None:
    run("build", segmenter, "--target", "all")
    (entry,) = EngineCache().entries()
    assert set(entry.recipe.options.targets) >= {"sm75", "sm86", "sm120"}


def test_sizes(fake_gpu: FakeGpu, segmenter: Path) -> None:
    result = run("build", segmenter, "--batch", "1:2:8", "--height", 64, "--width", "96")
    assert "built; verified on NVIDIA Stand-in" in result.output
    (entry,) = EngineCache().entries()
    assert str(entry.recipe.profile) == "batch 1 to 8 (best 2), width 96, height 64"


def test_list(fake_gpu: FakeGpu, segmenter: Path, tmp_path: Path) -> None:
    assert run("list").output.startswith("0 engines, 0.0 MB in ")
    run("build", segmenter, write_denoiser_bundle(tmp_path / "denoiser"))
    table = run("list").output
    assert "2 engines" in table
    listed = json.loads(run("list", "--json").output)
    assert {entry["facts"]["model"] for entry in listed} == {"test segmenter", "test denoiser"}
    assert all(len(entry["verifications"]) == 1 for entry in listed)


def test_verify(fake_gpu: FakeGpu, segmenter: Path, tmp_path: Path) -> None:
    other = write_denoiser_bundle(tmp_path / "denoiser")
    run("build", segmenter, "--target", "sm86")
    run("build", other, "--target", "sm120")
    result = run("verify")
    assert "(test segmenter): passed on NVIDIA Stand-in" in result.output
    assert "(test denoiser): does not run here (for sm120)" in result.output
    assert result.exit_code == 0
    assert sorted(len(entry.verifications) for entry in EngineCache().entries()) == [0, 1]


def test_verify_removes_what_fails(fake_gpu: FakeGpu, segmenter: Path) -> None:
    run("build", segmenter)
    fake_gpu.noise = 0.5
    result = run("verify")
    assert result.exit_code == 1
    assert "removed: verification against onnxruntime-cpu" in result.output
    assert EngineCache().entries() == []


def test_verify_needs_the_bundle(fake_gpu: FakeGpu, segmenter: Path) -> None:
    run("build", segmenter)
    segmenter.rename(segmenter.with_name("moved"))
    result = run("verify")
    assert "cannot be verified" in result.output and result.exit_code == 0
    write_segmenter_bundle(segmenter, gain=2.0)
    assert "holds another model now" in run("verify").output
    assert len(EngineCache().entries()) == 1


def test_prune(fake_gpu: FakeGpu, segmenter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("build", segmenter)
    assert "0 removed" in run("prune").output
    monkeypatch.setattr("tests.fake_gpu.DRIVER", "590.10")
    pruned = run("prune").output
    assert "was built under driver 580.65.06; this machine has 590.10" in pruned
    assert "1 removed" in pruned
    run("build", segmenter)
    assert "1 removed" in run("prune", "--all").output
    assert EngineCache().entries() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "with --target, TensorRT-RTX builds for cards that are elsewhere"),
        (["build", "--target", "sm90"], "TensorRT-RTX builds for sm75"),
        (["build", "--batch", "8:4:1"], "sizes 8, 4, 1"),
        (["build", "--target", "sm86", "--height", "100"], "height 100: this network takes multi"),
        (["build", "--batch", "many"], "'many': expected one size"),
        (["build", "--target", "sm86", "--level", "9"], "optimisation level 9"),
        (["build", "--target", "sm86", "--precision", "int8"], "unknown precision 'int8'"),
        (["build", "--target", "sm86", "--engine", "trt"], "unknown engine 'trt'"),
        (["build", "nowhere", "--target", "sm86"], "nowhere: is not a bundle"),
        (["verify"], "no engine can be verified here"),
    ],
)
def test_mistakes(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert EngineCache().entries() == []
