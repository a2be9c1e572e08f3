from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from emfast.cli.generate import generate
from emfast.diffusion.samplers import FAST_SAMPLER, FAST_STEPS
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle

app = typer.Typer()
app.command()(generate)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_denoiser_bundle(tmp_path / "bundle")


def invoke(bundle: Path, out: Path, *arguments: object) -> Result:
    command = ["--model", bundle, "--out", out, "--engine", "onnxruntime-cpu", "--threads", 1]
    return CliRunner().invoke(app, [str(a) for a in (*command, *arguments)])


def test_the_sampler_and_its_steps(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    arguments = ("--count", 3, "--sampler", "ddim", "--eta", 0.5, "--steps", 5)
    result = invoke(bundle, out, *arguments)
    assert result.exit_code == 0, result.output
    assert "3 images at 5 steps of ddim in " in result.stdout
    record = json.loads((out / "job.json").read_text())
    assert (record["sampler"], record["eta"], record["steps"]) == ("ddim", 0.5, 5)
    result = invoke(bundle, out, *arguments, "--verify")
    assert result.stdout.startswith("3 images were there already\n")


def test_fast_is_the_preset(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    result = invoke(bundle, out, "--count", 1, "--fast")
    assert result.exit_code == 0, result.output
    record = json.loads((out / "job.json").read_text())
    assert (record["sampler"], record["steps"]) == (FAST_SAMPLER, min(FAST_STEPS, 20))


def test_shards_tell_what_the_set_lacks(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    first = invoke(bundle, out, "--count", 5, "--shard", "1/2")
    assert first.stdout.startswith("3 images at 20 steps of ddpm")
    assert first.stdout.endswith(f"{out}: lacks 2 images, which other shards draw\n")
    second = invoke(bundle, out, "--count", 5, "--shard", "2/2")
    assert second.stdout.startswith("2 images at 20 steps of ddpm")
    assert f"{out}: images/, masks/, manifest.jsonl" in second.stdout
    assert len((out / "manifest.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sampler", "euler"), "unknown sampler 'euler'; accepted: ddpm, ddim, dpm"),
        (("--eta", 0.5), "sampler ddpm takes no eta"),
        (("--sampler", "ddim", "--eta", 2), "eta 2 is outside"),
        (("--sampler", "dpm++", "--steps", 21), "takes 1 to 20"),
        (("--fast", "--steps", 7), "--fast chooses sampler and steps; leave out"),
        (("--shard", "5/4"), "numbered from 1 to 4"),
        (("--shard", "third"), "as in 3/16"),
        (("--count", 0), "--count 0 and --batch 4: both must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(
    bundle: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    result = invoke(bundle, tmp_path / "set", *arguments)
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert "engine:" not in result.output  # told before an engine is opened
    assert not (tmp_path / "set").exists()
