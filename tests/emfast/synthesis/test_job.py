from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emfast.data.image import read_image
from emfast.data.pairs import read_pair
from emfast.quality.image_scores import image_scores
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle
from tests.sets import contents


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    bundle = write_denoiser_bundle(tmp_path_factory.mktemp("bundles") / "denoiser")
    return Generator.open(bundle, "onnxruntime-cpu", threads=1)


def job(count: int = 5, seed: int = 7, pairs: bool = False) -> Job:
    return Job(count=count, seed=seed, steps=20, size=(32, 48), batch=2, pairs=pairs)


def test_a_set_is_whole(generator: Generator, tmp_path: Path) -> None:
    result = run_job(job(pairs=True), generator, tmp_path / "set")
    assert (result.drawn, result.found) == (5, 0)
    lines = (tmp_path / "set/manifest.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["index"] for entry in entries] == [0, 1, 2, 3, 4]
    assert {entry["engine"] for entry in entries} == {"onnxruntime-cpu"}
    assert {entry["bundle"] for entry in entries} == {generator.bundle.sha256}
    image = read_image(tmp_path / "set/images/000003.png")
    mask = read_image(tmp_path / "set/masks/000003.png")
    assert image.shape == mask.shape == (32, 48)
    assert set(np.unique(mask)) <= {0, 255}
    pair_image, pair_mask = read_pair(tmp_path / "set/pairs/000003.png")
    assert (pair_image == image).all()
    assert (pair_mask == mask // 255).all()
    assert entries[3]["scores"] == image_scores(image, mask)
    assert (tmp_path / "set/contact.png").is_file()


def test_a_killed_run_ends_with_the_same_bytes(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(job(), generator, tmp_path / "whole")

    calls = 0
    sample = generator.sample

    def dies(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(generator, "sample", dies)
        with pytest.raises(KeyboardInterrupt):
            run_job(job(), generator, tmp_path / "killed")
    # What a kill in the middle of writing leaves: a torn line, an image without its line, and a
    # file that the line does not match.
    killed = tmp_path / "killed"
    assert not (killed / "manifest.jsonl").exists()
    with (killed / "manifest-1-of-1.jsonl").open("a") as file:
        file.write('{"index": 2, "files": {"imag')
    (killed / "images/000002.png").write_bytes(b"half")
    (killed / "masks/000001.png").write_bytes(b"damaged")
    (killed / "masks/.000002.123.tmp.png").write_bytes(b"half")
    result = run_job(job(), generator, killed)
    assert (result.drawn, result.found) == (4, 1)
    assert contents(killed) == contents(tmp_path / "whole")


def test_a_kill_at_any_rename_ends_with_the_same_bytes(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(job(), generator, tmp_path / "whole")
    replace_file = os.replace
    for moment in itertools.count():
        left = moment

        def dies(*paths: Path) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            replace_file(*paths)

        folder = tmp_path / f"killed {moment}"
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", dies)
            try:
                run_job(job(), generator, folder)
            except KeyboardInterrupt:
                pass
            else:
                break
        run_job(job(), generator, folder)
        assert contents(folder) == contents(tmp_path / "whole"), moment
    assert moment == 14  # images and masks, contact sheet, card, metadata and manifest


def test_an_image_does_not_depend_on_its_batch(generator: Generator) -> None:
    together, masks = generator.draw([0, 1, 2, 3], seed=1)
    alone, mask = generator.draw([2], seed=1)
    np.testing.assert_array_equal(together[2], alone[0])
    np.testing.assert_array_equal(masks[2], mask[0])
    other, _ = generator.draw([2], seed=2)
    assert (other[0] != alone[0]).mean() > 0.5


def test_a_kill_after_merging_leaves_nothing_behind(generator: Generator, tmp_path: Path) -> None:
    run_job(job(), generator, tmp_path / "set")
    whole = contents(tmp_path / "set")
    lines = whole["manifest.jsonl"]
    (tmp_path / "set/manifest-1-of-1.jsonl").write_bytes(lines[: lines.index(b"\n") + 1])
    result = run_job(job(), generator, tmp_path / "set")
    assert (result.drawn, result.found, result.lacking) == (0, 5, 0)
    assert contents(tmp_path / "set") == whole


def test_damage_is_found_by_size_or_by_hash(generator: Generator, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    run_job(job(), generator, folder)
    whole = contents(folder)
    (folder / "images/000001.png").write_bytes(whole["images/000001.png"][:-1])
    (folder / "masks/000002.png").unlink()
    assert run_job(job(), generator, folder).drawn == 2
    assert contents(folder) == whole
    data = bytearray(whole["images/000003.png"])
    data[50] ^= 255
    (folder / "images/000003.png").write_bytes(data)
    assert run_job(job(), generator, folder).drawn == 0
    assert run_job(job(), generator, folder, verify=True).drawn == 1
    assert contents(folder) == whole


def test_a_set_grows_and_does_not_shrink(generator: Generator, tmp_path: Path) -> None:
    run_job(job(count=14), generator, tmp_path / "whole")
    run_job(job(count=3), generator, tmp_path / "grown")
    result = run_job(job(count=14), generator, tmp_path / "grown")
    assert (result.found, result.drawn) == (3, 11)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="of 14 images and does not shrink to 3; give --count 14"):
        run_job(job(count=3), generator, tmp_path / "grown")


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.5), ("ddim", 0.0), ("dpm++", 0.0)])
def test_the_sampler_is_recorded_and_settled(
    generator: Generator, tmp_path: Path, sampler: str, eta: float
) -> None:
    fast = replace(job(count=2), steps=4, sampler=sampler, eta=eta)
    run_job(fast, generator, tmp_path / "set")
    record = json.loads((tmp_path / "set/job.json").read_text())
    entry = json.loads((tmp_path / "set/manifest.jsonl").read_text().splitlines()[1])
    for place in (record, entry):
        assert (place["sampler"], place["steps"]) == (sampler, 4)
        assert place["eta"] == (eta if sampler == "ddim" else None)
    with pytest.raises(UserError, match=f"sampler was {re.escape(sampler)}, is ddpm"):
        run_job(replace(fast, sampler="ddpm", eta=0.0), generator, tmp_path / "set")


def test_another_job_is_refused(generator: Generator, tmp_path: Path) -> None:
    run_job(job(), generator, tmp_path / "set")
    with pytest.raises(UserError, match="holds another job .seed was 7, is 8"):
        run_job(job(seed=8), generator, tmp_path / "set")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").write_text("important")
    with pytest.raises(UserError, match="not a set that emfast drew"):
        run_job(job(), generator, tmp_path / "foreign")


def test_a_mistake_leaves_no_job_behind(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes 1 to 20"):
        run_job(replace(job(), steps=900), generator, tmp_path / "set")
    with pytest.raises(UserError, match="unknown sampler 'euler'"):
        run_job(replace(job(), sampler="euler"), generator, tmp_path / "set")
    with pytest.raises(UserError, match="seed -1"):
        job(seed=-1)
    assert not (tmp_path / "set").exists()


def test_a_job_killed_before_it_began_is_taken_up(generator: Generator, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/.job.123.tmp.json").write_text("{")
    assert run_job(job(count=1), generator, tmp_path / "set").drawn == 1
    assert not (tmp_path / "set/.job.123.tmp.json").exists()


@pytest.mark.parametrize(
    ("size", "message"), [((30, 48), "multiple of 16"), ((0, 16), "multiple of 16")]
)
def test_sizes_that_do_not_suit(generator: Generator, size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generator.draw([0], size=size)


def test_too_many_steps(generator: Generator) -> None:
    with pytest.raises(UserError, match="takes 1 to 20"):
        generator.draw([0], steps=21)


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    bundle = write_denoiser_bundle(tmp_path / "nan", gain=float("nan"))
    with (
        Generator.open(bundle, "onnxruntime-cpu", threads=1) as generator,
        pytest.raises(UserError, match="not numbers"),
    ):
        run_job(job(), generator, tmp_path / "set")
    assert not list((tmp_path / "set/images").iterdir())
