from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from emfast.synthesis.denoiser import Generator
from emfast.synthesis.job import Job, run_job
from emfast.synthesis.manifest import entries, metadata_line, read_manifest, schema
from engines.errors import UserError

VALIDATOR = Draft202012Validator(schema())


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema())


def test_every_line_of_a_set_follows_the_schema(finished: Path) -> None:
    listed = list(read_manifest(finished))
    assert [entry["index"] for entry in listed] == list(range(11))
    for entry in listed:
        VALIDATOR.validate(entry)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_every_sampler_follows_the_schema(tmp_path: Path, sampler: str) -> None:
    job = Job(2, 2**64 - 1, 2, (64, 64), 2, False, sampler, 0.5 if sampler == "ddim" else 0.0)
    with Generator.open("epfl-denoiser", "onnxruntime-cpu", "fp16", 1) as generator:
        run_job(job, generator, tmp_path / "set")
    for entry in read_manifest(tmp_path / "set"):
        VALIDATOR.validate(entry)
        assert (entry["seed"], entry["device"]) == (2**64 - 1, "CPU")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: entry.pop("bundle"),
        lambda entry: entry.update(index=-1),
        lambda entry: entry.update(host="here"),
        lambda entry: entry["scores"].update(mask_area=1.5),
        lambda entry: entry["scores"].pop("specks"),
        lambda entry: entry["files"].update({"../000000.png": {"bytes": 1, "sha256": "0" * 64}}),
        lambda entry: (
            entry["files"].pop("images/000000.png") and entry["files"].pop("pairs/000000.png")
        ),
        lambda entry: entry.update(selection={"reason": {"deep": 1}}),
    ],
)
def test_the_schema_refuses(finished: Path, spoil: Callable[[dict[str, Any]], object]) -> None:
    entry = next(read_manifest(finished))
    VALIDATOR.validate(entry)
    spoil(entry)
    with pytest.raises(ValidationError):
        VALIDATOR.validate(entry)


def test_metadata_is_flat(finished: Path) -> None:
    entry = next(read_manifest(finished))
    told = metadata_line({**entry, "selection": {"agreement": 0.9}})
    assert list(told)[:4] == ["file_name", "mask_file_name", "pair_file_name", "index"]
    assert told["mask_file_name"] == "masks/000000.png"
    assert (told["grey_mean"], told["agreement"]) == (entry["scores"]["grey_mean"], 0.9)
    assert not any(isinstance(value, dict | list) for value in told.values())
    lines = (finished / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        metadata_line(e) for e in read_manifest(finished)
    ]


def test_torn_lines_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    path.write_bytes(b'{"index": 0}\n\0\0\0\n{"index": 1}\n{"index": 2}')
    assert [entry["index"] for _, entry in entries(path)] == [0, 1]
    assert list(entries(tmp_path / "none.jsonl")) == []


def test_only_a_whole_set_is_read(tiny: Generator, finished: Path, tmp_path: Path) -> None:
    from emfast.synthesis.shard import Shard

    with pytest.raises(UserError, match="nothing: is not a set that emfast drew"):
        read_manifest(tmp_path / "nothing")
    job = Job(count=4, seed=7, steps=6, size=(32, 48), batch=4, pairs=False)
    run_job(job, tiny, tmp_path / "half", Shard(1, 2))
    with pytest.raises(UserError, match="half: is not whole yet; give the emfast generate command"):
        read_manifest(tmp_path / "half")
    (tmp_path / "half/job.json").write_text("{")
    with pytest.raises(UserError, match=r"job.json: cannot be read"):
        read_manifest(tmp_path / "half")
