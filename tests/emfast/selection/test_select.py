from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from emfast.data.image import read_image
from emfast.quality.image_scores import image_scores
from emfast.selection import Repair, Rules, Selection, judge, select_set
from emfast.selection.ledger import Ledger
from emfast.synthesis.folder import SetFolder
from emfast.synthesis.manifest import read_manifest, schema
from emfast.synthesis.shard import Shard
from engines.errors import UserError
from engines.files import sha256
from tests.emfast.selection.small import COUNT, Small, write_small
from tests.sets import contents

# The segmenter of these tests sees whatever is dark, so that only gross errors disagree.
RULES = Rules(agreement=0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A set whose scores are made."""
    small = write_small(tmp_path_factory.mktemp("small"))
    select(small, small.drawn.parent / "once")
    return small


@pytest.fixture
def small(made: Small, tmp_path: Path) -> Small:
    """A copy of it that a test may change."""
    drawn = tmp_path / "drawn"
    shutil.copytree(made.drawn, drawn)
    return replace(made, drawn=drawn)


def select(
    small: Small, out: Path, rules: Rules = RULES, repair: Repair | None = None
) -> Selection:
    return select_set(
        small.drawn,
        out,
        small.real,
        rules,
        repair,
        segmenter=small.segmenter,
        engine="onnxruntime-cpu",
        threads=1,
    )


def rejected(folder: Path) -> dict[int, list[str]]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {entry["index"]: entry["reasons"] for entry in map(json.loads, lines)}


def test_a_selection_is_a_set(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = select(small, out)
    entries = list(read_manifest(out))
    validator = Draft202012Validator(schema())
    for entry in entries:
        validator.validate(entry)
        for name, file in entry["files"].items():
            assert sha256(out / name) == file["sha256"]
            assert os.path.samefile(out / name, small.drawn / name)
    assert len(entries) == result.accepted == len(list((out / "images").iterdir()))
    assert result.accepted + result.rejected == COUNT
    assert result.scored == 0
    # Each image under the number that it was drawn as.
    assert sorted([e["index"] for e in entries] + list(rejected(out))) == list(range(COUNT))
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert rows[0]["file_name"] == f"images/{entries[0]['index']:06d}.png"
    assert rows[0]["agreement"] == entries[0]["selection"]["agreement"]
    told = json.loads((out / "selection.json").read_text())
    assert told["accepted"] == result.accepted
    assert told["reasons"] == result.reasons
    assert told["command"].startswith(
        "emfast select SET --real REAL --out SELECTED --agreement 0.1 --segmenter SEGMENTER"
    )
    assert "## Selection" in (out / "README.md").read_text()
    for name in ("accepted.png", "rejected.png", "contact.png"):
        with Image.open(out / name) as sheet:
            assert min(sheet.size) > 100


def test_what_was_planted_is_rejected(small: Small, tmp_path: Path) -> None:
    select(small, tmp_path / "out")
    found = rejected(tmp_path / "out")
    assert "specks" in found[3]
    assert "specks" in found[7]
    assert found[9] == ["copy"]


def test_datasets_reads_a_selection(small: Small, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    result = select(small, tmp_path / "out")
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path)
    )
    assert len(rows) == result.accepted
    assert rows[0]["image"].size == rows[0]["mask"].size == (48, 48)
    # The folder of scores inside the set it was made of does not disturb.
    drawn = datasets.load_dataset(
        "imagefolder", data_dir=str(small.drawn), split="train", cache_dir=str(tmp_path)
    )
    assert len(drawn) == COUNT


def test_the_same_again_has_the_same_bytes(small: Small, tmp_path: Path) -> None:
    for name in ("one", "two"):
        select(small, tmp_path / name, repair=Repair())
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_run_goes_on(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(small, tmp_path / "whole")
    before = contents(small.drawn / "scores")
    monkeypatch.setattr("emfast.selection.select.BLOCK", 4)
    monkeypatch.setattr("emfast.selection.ledger.BLOCK", 4)
    shutil.rmtree(small.drawn / "scores")
    calls = 0
    score = judge.Judge.score

    def dies(self: judge.Judge, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return score(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(judge.Judge, "score", dies)
        with pytest.raises(KeyboardInterrupt):
            select(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out*"))) == 0
    (lines,) = (small.drawn / "scores").glob("*.jsonl")
    assert len(lines.read_text().splitlines()) == 12
    with lines.open("a") as file:
        file.write('{"index": 12, "image": "torn')
    assert select(small, tmp_path / "out").scored == COUNT - 12
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert contents(small.drawn / "scores") == before


def test_scores_of_a_changed_image_are_made_again(small: Small, tmp_path: Path) -> None:
    (lines,) = (small.drawn / "scores").glob("*.jsonl")
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    entries[5]["mask"] = "0" * 64
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    # The block that it is in, which is the whole set.
    assert select(small, tmp_path / "out").scored == COUNT


def test_a_repaired_mask_never_changes_the_set(small: Small, tmp_path: Path) -> None:
    before = contents(small.drawn)
    out = tmp_path / "out"
    # A mask of mitochondria has no holes; this one has one, and otherwise too many pixels.
    result = select(small, out, replace(RULES, area=1), Repair())
    assert contents(small.drawn) == before
    entries = {entry["index"]: entry for entry in read_manifest(out)}
    changed = [e for e in entries.values() if e["selection"]["drawn_mask"] is not None]
    assert len(changed) == result.repaired > 0
    originals = {entry["index"]: entry for entry in read_manifest(small.drawn)}
    for entry in changed:
        name = f"masks/{entry['index']:06d}.png"
        told = entry["selection"]
        assert told["drawn_mask"] == originals[entry["index"]]["files"][name]["sha256"]
        assert sha256(out / name) == entry["files"][name]["sha256"] != told["drawn_mask"]
        drawn, kept = read_image(small.drawn / name), read_image(out / name)
        assert set(np.unique(kept)) <= {0, 255}
        assert ((drawn > 0) & (kept == 0)).sum() == told["pixels_dropped"]
        assert ((drawn == 0) & (kept > 0)).sum() == told["pixels_filled"]
        image = read_image(out / f"images/{entry['index']:06d}.png")
        assert entry["scores"] == image_scores(image, kept)
    assert entries[5]["selection"]["holes_filled"] >= 1
    untouched = next(e for e in entries.values() if e["selection"]["drawn_mask"] is None)
    assert untouched["selection"]["pixels_dropped"] == 0


def test_pairs_are_repaired_with_their_masks(small: Small, tmp_path: Path) -> None:
    record = json.loads((small.drawn / "job.json").read_text())
    (small.drawn / "job.json").write_text(json.dumps({**record, "pairs": True}))
    (small.drawn / "pairs").mkdir()
    entries = list(read_manifest(small.drawn))
    for entry in entries:
        index = entry["index"]
        image = read_image(small.drawn / f"images/{index:06d}.png")
        mask = read_image(small.drawn / f"masks/{index:06d}.png")
        path = small.drawn / f"pairs/{index:06d}.png"
        Image.fromarray(np.stack([image, image, mask], axis=-1)).save(path)
        file = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        entry["files"][f"pairs/{index:06d}.png"] = file
    (small.drawn / "manifest.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    out = tmp_path / "out"
    select(small, out, repair=Repair())
    for path in (out / "pairs").iterdir():
        pair = np.asarray(Image.open(path))
        assert np.array_equal(pair[..., 2], read_image(out / "masks" / path.name))
        assert np.array_equal(pair[..., 0], read_image(out / "images" / path.name))


def test_files_are_copied_where_links_fail(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(small, tmp_path / "linked")

    def refuses(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuses)
    select(small, tmp_path / "copied")
    assert contents(tmp_path / "linked") == contents(tmp_path / "copied")
    image = next((tmp_path / "copied/images").iterdir())
    assert not image.samefile(small.drawn / "images" / image.name)


def test_best_match_and_first(small: Small, tmp_path: Path) -> None:
    everything = select(small, tmp_path / "all")
    best = select(small, tmp_path / "best", replace(RULES, best=0.5))
    assert best.accepted == round(0.5 * everything.accepted)
    assert best.reasons["rank"] == everything.accepted - best.accepted
    mixed = select(small, tmp_path / "mixed", replace(RULES, match=True))
    assert mixed.accepted <= everything.accepted
    assert mixed.note.startswith("scarcest in the mix: ")
    strata = json.loads((tmp_path / "mixed/selection.json").read_text())["strata"]
    assert sum(row["kept"] for row in strata) == mixed.accepted
    first = select(small, tmp_path / "first", replace(RULES, first=3))
    assert first.accepted == 3
    whole = [entry["index"] for entry in read_manifest(tmp_path / "all")]
    assert [entry["index"] for entry in read_manifest(tmp_path / "first")] == whole[:3]
    assert first.accepted + first.rejected == whole[2] + 1


def test_all_may_be_kept(small: Small, tmp_path: Path) -> None:
    anything = Rules(
        agreement=0, distance=100, similarity=1, specks=100, area=1, objects=99, cut=99
    )
    result = select(small, tmp_path / "out", anything)
    assert (result.accepted, result.reasons) == (COUNT, {})
    assert not (tmp_path / "out/rejected.png").exists()
    assert (tmp_path / "out/rejected.jsonl").read_bytes() == b""


def test_a_single_real_slice_is_enough(small: Small, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "real" / kind).mkdir(parents=True)
        shutil.copy(small.real / kind / "000004.png", tmp_path / "real" / kind)
    result = select(replace(small, real=tmp_path / "real"), tmp_path / "out")
    assert rejected(tmp_path / "out")[9] == ["copy"]
    assert result.accepted > 0


def test_other_conditions_make_scores_of_their_own(small: Small, tmp_path: Path) -> None:
    fewer = tmp_path / "real"
    shutil.copytree(small.real, fewer)
    for kind in ("images", "masks"):
        (fewer / kind / "000005.png").unlink()
    assert select(replace(small, real=fewer), tmp_path / "fewer").scored == COUNT
    assert select(small, tmp_path / "as-before").scored == 0


def test_nothing_that_passes_is_an_error(small: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 of its 20 images pass.*a near copy of a real place: 20"):
        select(small, tmp_path / "out", replace(RULES, similarity=0))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="and 21 are wanted"):
        select(small, tmp_path / "out", replace(RULES, first=21))


def test_mistakes_are_told_before_anything_is_scored(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "known", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match="is not empty"):
        select(small, tmp_path / "full")
    with pytest.raises(UserError, match="no such folder"):
        select(replace(small, real=tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(UserError, match="is not a set"):
        select(replace(small, drawn=small.real), tmp_path / "out")
    (small.drawn / "manifest-1-of-2.jsonl").touch()
    with pytest.raises(UserError, match="is not whole yet"):
        select(small, tmp_path / "out")


def test_a_selection_is_not_selected_from(small: Small, tmp_path: Path) -> None:
    select(small, tmp_path / "out")
    with pytest.raises(UserError, match="is a selection"):
        select(replace(small, drawn=tmp_path / "out"), tmp_path / "again")


def test_a_damaged_image_is_told(small: Small, tmp_path: Path) -> None:
    shutil.rmtree(small.drawn / "scores")
    path = small.drawn / "images/000011.png"
    path.unlink()
    path.write_bytes(b"half")
    with pytest.raises(UserError, match=r"000011\.png: is missing or not the file"):
        select(small, tmp_path / "out")


def test_nothing_is_drawn_into_a_selection(small: Small, tmp_path: Path) -> None:
    select(small, tmp_path / "out")
    record = json.loads((small.drawn / "job.json").read_text())
    with pytest.raises(UserError, match="holds another job.*selection was emfast select SET"):
        SetFolder(tmp_path / "out", record, Shard())
