from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from emfast.data.image import read_image
from emfast.selection import Rules, Selection, keep
from emfast.selection.judge import Judge
from emfast.selection.keep import keep_until
from emfast.selection.select import Selector, open_selector
from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.synthesis.manifest import read_manifest
from engines.errors import UserError
from tests.bundles import write_denoiser_bundle
from tests.emfast.selection.small import Small, write_small
from tests.sets import contents

SIZE = (48, 48)
JOB = Job(count=1, seed=7, steps=2, size=SIZE, batch=16, pairs=False)
# Half of what the denoiser of these tests draws: its masks are all specks.
ANYTHING = Rules(
    agreement=0, distance=1e6, similarity=1, specks=10**6, area=1, objects=10**6, cut=10**6
)


@dataclass(frozen=True)
class Bench:
    """What a test draws and judges with."""

    generator: Generator
    small: Small
    rules: Rules

    def draw(self, out: Path) -> Callable[[int], None]:
        """Draws up to a number of images."""

        def draw(count: int) -> None:
            run_job(replace(JOB, count=count), self.generator, out / "drawn")

        return draw

    def keep(self, wanted: int, out: Path, draw: Callable[[int], None] | None = None) -> Selection:
        """Draw until ``wanted`` are kept."""
        with self.selector() as selector:
            return keep_until(wanted, draw or self.draw(out), out, selector, self.rules)

    def selector(self) -> Iterator[Selector]:
        """Judges by the small segmenter."""
        return open_selector(self.small.real, 48, self.small.segmenter, "onnxruntime-cpu")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("keep")
    bundle = write_denoiser_bundle(folder / "denoiser")
    with Generator.open(bundle, "onnxruntime-cpu", threads=1) as generator:
        run_job(replace(JOB, count=64), generator, folder / "set")
        masks = [read_image(path) for path in sorted((folder / "set/masks").iterdir())]
        area = float(np.median([(mask > 0).mean() for mask in masks]))
        yield Bench(generator, write_small(folder / "small"), replace(ANYTHING, area=area))


@pytest.fixture(autouse=True)
def _small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("keep", "select", "ledger"):
        monkeypatch.setattr(f"emfast.selection.{module}.BLOCK", 8)
    monkeypatch.setattr(keep, "LOOK", 16)


def test_exactly_as_many_as_were_asked_for(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench.keep(15, tmp_path)
    kept = [entry["index"] for entry in read_manifest(tmp_path / "selected")]
    drawn = [entry["index"] for entry in read_manifest(tmp_path / "drawn")]
    assert len(kept) == result.accepted == 15
    assert drawn == list(range(len(drawn)))
    assert 15 < len(drawn) <= 64
    # They are the first that pass.
    areas = [entry["scores"]["mask_area"] for entry in read_manifest(tmp_path / "drawn")]
    limit = bench.rules.area
    assert limit is not None
    assert kept == [i for i, area in enumerate(areas) if area <= limit][:15]
    told = capsys.readouterr().out
    assert "of 16 images accepted" in told
    assert "more to draw for 15; drawing" in told


def test_a_killed_run_ends_with_the_same_bytes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.keep(15, tmp_path / "whole")
    out = tmp_path / "killed"
    score, calls = Judge.score, 0

    def dies(self: Judge, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls in (2, 4):
            raise KeyboardInterrupt
        return score(self, *arguments)  # type: ignore[arg-type]

    rounds = 0

    def draw(count: int) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:  # as a run that was killed while it drew a round
            run_job(replace(JOB, count=count), bench.generator, out / "drawn")
            (out / "drawn/manifest.jsonl").rename(out / "drawn/manifest-1-of-1.jsonl")
            (out / "drawn/images/000017.png").unlink()
            raise KeyboardInterrupt
        bench.draw(out)(count)

    monkeypatch.setattr(Judge, "score", dies)
    kills = 0
    while True:
        try:
            bench.keep(15, out, draw)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == 3
    assert contents(out) == contents(tmp_path / "whole")


def test_what_is_finished_is_found(bench: Bench, tmp_path: Path) -> None:
    first = bench.keep(5, tmp_path)

    def draw(count: int) -> None:
        raise AssertionError("nothing is to draw")

    again = bench.keep(5, tmp_path, draw)
    assert (again.accepted, again.rejected, again.reasons) == (5, first.rejected, first.reasons)
    with pytest.raises(UserError, match="holds another selection, of 5 images; remove it"):
        bench.keep(6, tmp_path, draw)
    other = replace(bench, rules=replace(bench.rules, specks=3))
    with pytest.raises(UserError, match="holds another selection"):
        other.keep(5, tmp_path, draw)
    shutil.rmtree(tmp_path / "selected")
    assert bench.keep(6, tmp_path).accepted == 6


def test_a_hopeless_set_is_given_up(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "HOPELESS", 16)
    hopeless = replace(bench, rules=replace(ANYTHING, similarity=0))
    with pytest.raises(UserError, match="0 of the first 16 images.*near copy of a real place: 16"):
        hopeless.keep(3, tmp_path)


def test_what_cannot_be_kept(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="from 1"):
        bench.keep(0, tmp_path)
    with pytest.raises(UserError, match="thresholds only"):
        replace(bench, rules=replace(bench.rules, best=0.5)).keep(3, tmp_path)
    (tmp_path / "job.json").write_text(json.dumps({"count": 3}))
    with pytest.raises(UserError, match="is a set"):
        bench.keep(3, tmp_path)
