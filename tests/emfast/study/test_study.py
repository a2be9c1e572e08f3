from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emfast.data.split import holdout_split, parse_slices
from emfast.data.stack import Stack
from emfast.study import arms, sources
from emfast.study.parts import Parts, read_parts, write_slices
from emfast.study.run import Study
from emfast.study.settings import ALL, ARMS, GAP, PAPER_SLICES, SMOKE, TEST_SLICES, Extent
from emfast.study.sources import Machine, Sets
from emfast.study.statistics import paired
from engines.errors import UserError

MACHINE = Machine("cpu", "onnxruntime-cpu", 1)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve slices of noise with dark discs under the masks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    masks = np.stack([((y - 30 - 3 * i) ** 2 + (x - 50) ** 2 < 300) for i in range(12)])
    images = 150 - 80 * masks + rng.normal(0, 10, masks.shape)
    names = tuple(f"slice{i:02d}" for i in range(12))
    folder = tmp_path_factory.mktemp("study") / "stack"
    slices = Stack(images.astype(np.uint8), masks.astype(np.uint8), names, "discs")
    write_slices(slices, range(12), folder)
    return folder


@pytest.fixture
def parts(stack: Path) -> Parts:
    return read_parts(stack, "0-5", "10-11", 2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class KilledError(Exception):
    pass


def test_a_smoke_run_goes_on_after_kills_and_tells_everything(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every arm of a row of two slices, killed after every step that leaves files."""
    seen: list[set[str]] = []
    train = sources.train_denoiser

    def watched(settings, real, *rest):  # type: ignore[no-untyped-def]
        seen.append(set(real.names))
        return train(settings, real, *rest)

    monkeypatch.setattr(sources, "train_denoiser", watched)
    out, extent = tmp_path / "out", Extent(("2",), 2)

    def go() -> Path:
        return Study(SMOKE, parts, out, MACHINE, "emfast study --smoke").run(extent)

    for place, name in ((sources, "export_bundle"), (sources, "open_selector"), (arms, "stage")):
        with monkeypatch.context() as patch:

            def dies(*_: object, **__: object) -> None:
                raise KilledError

            patch.setattr(place, name, dies)
            with pytest.raises(KilledError):
                go()
    table = go().read_text()

    # Denoiser and selection saw the row's slices alone.
    assert all(names == {"slice01", "slice04"} for names in seen)
    files = sorted(p.name for p in (out / "rows/2/sets/slices/images").iterdir())
    assert files == ["slice01.png", "slice04.png"]
    selection = json.loads((out / "rows/2/sets/selected/selection.json").read_text())
    assert selection["segmenter"]["name"] == "study, row 2, seed 0"

    study = json.loads((out / "study.json").read_text())
    assert {(c["arm"], c["seed"]) for c in study["cells"]} == {(a, s) for a in ARMS for s in (0, 1)}
    assert {c["iterations"] for c in study["cells"]} == {SMOKE.segmenter.iterations}
    assert {c["arm"]: c["synthetic_images"] for c in study["cells"]} == {
        "real": 0,
        "unselected": 8,
        "selected": 4,
        "synthetic": 8,
        "pretrained": 8,
    }
    assert table.count("SMOKE RUN") == 4
    assert "every arm: not run" in table
    assert (out / "study.png").stat().st_size > 1000

    before = (out / "study.json").read_bytes()
    monkeypatch.setattr(arms, "train_segmenter", None)
    go()
    assert (out / "study.json").read_bytes() == before

    other = replace(SMOKE, images=9)
    with pytest.raises(UserError, match=r"settings.images was 8, is 9"):
        Study(other, parts, out, MACHINE, "")


def test_an_arm_without_enough_selected_images_is_told(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sets, "selected", lambda self: None)
    monkeypatch.setattr(Sets, "select", lambda self: {"kept": 1, "drawn": 8})
    study = Study(SMOKE, parts, tmp_path / "out", MACHINE, "")
    result = study.cell("1", 0, "selected").run()
    assert result["not_possible"] == "the selection kept 1 of 8 images"
    assert "the selection kept 1 of 8 images" in study.report().read_text()


def test_the_papers_slices_are_not_near_the_tested_ones() -> None:
    pool, test = parse_slices(PAPER_SLICES, 165), parse_slices(TEST_SLICES, 165)
    assert len(pool) == 42
    free, _ = holdout_split(165, test, GAP)
    assert set(pool) <= set(free)


def test_rows_are_spread_over_the_pool_and_drawn_anew_by_seed(parts: Parts) -> None:
    assert parts.row(ALL, 3) == parts.pool == (0, 1, 2, 3, 4, 5)
    assert parts.row("1", None) == (3,)
    assert parts.row("3", None) == (1, 3, 5)
    assert len({parts.row("1", seed) for seed in range(20)}) > 3
    assert all(len(set(parts.row("5", seed))) == 5 for seed in range(20))
    with pytest.raises(UserError, match="only 6"):
        parts.row("7", None)


def test_slices_near_the_test_are_refused(stack: Path) -> None:
    with pytest.raises(UserError, match=r"slices 8-9 .* within 2 slices"):
        read_parts(stack, "0-9", "10-11", 2)
    assert read_parts(stack, ALL, "10-11", 2).pool == tuple(range(8))


@pytest.mark.parametrize(
    ("rows", "seeds", "arms_", "message"),
    [
        (("0",), 1, ("real",), "row '0'"),
        (("some",), 1, ("real",), "row 'some'"),
        (("1",), 1, ("fake",), "unknown arm 'fake'"),
        (("1",), 0, ("real",), "nothing to run"),
    ],
)
def test_extents_that_cannot_be(
    rows: tuple[str, ...], seeds: int, arms_: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Extent(rows, seeds, arms_)


def test_the_paired_test() -> None:
    real = {0: 0.80, 1: 0.82, 2: 0.81, 5: 0.5}
    result = paired({0: 0.81, 1: 0.84, 2: 0.84}, real)
    assert result is not None and result.n == 3
    assert result.mean == pytest.approx(0.02)
    # t = 0.02 / (0.01 / sqrt 3) = 3.464, 2 degrees of freedom.
    assert result.p == pytest.approx(0.0742, abs=1e-4)
    assert result.exact == pytest.approx(result.floor) == 0.25
    alone = paired({0: 0.9}, real)
    assert alone is not None and alone.p is None and alone.interval is None
    equal = paired({0: 0.80, 1: 0.82}, real)
    assert equal is not None and equal.p is None
    assert paired({9: 0.1}, real) is None
