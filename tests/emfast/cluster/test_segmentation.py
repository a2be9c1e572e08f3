from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from emfast.cluster.connection import Cluster
from emfast.cluster.segmentation import Opening, Source, segment_on_cluster
from emfast.segmentation.job import segment_volume
from emfast.segmentation.segmenter import Segmenter
from emfast.segmentation.settings import Settings
from emfast.volumes import open_volume
from engines.errors import UserError
from tests.bundles import write_segmenter_bundle
from tests.emfast.cluster.processes import busy_workers
from tests.sets import contents

SLICES = 24
SETTINGS = Settings(overlay=True, median=3, instances="components3d", probability="uint8")


@pytest.fixture(scope="module")
def greys() -> np.ndarray[Any, np.dtype[np.uint8]]:
    rough = np.random.default_rng(0).integers(0, 256, (SLICES, 12, 16), dtype=np.uint8)
    return rough.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope="module")
def opening(tmp_path_factory: pytest.TempPathFactory) -> Opening:
    bundle = write_segmenter_bundle(tmp_path_factory.mktemp("bundles") / "segmenter")
    return Opening(
        str(bundle), "onnxruntime-cpu", "auto", 1, None, 2048, (192, 256), None, 1, "volume"
    )


def plain(source: Path, out: Path, opening: Opening) -> dict[str, bytes]:
    segmenter = Segmenter.open(opening.model, opening.engine, threads=1, scope=opening.scope)
    with open_volume(source) as reader, segmenter:
        segment_volume(reader, out, segmenter, SETTINGS)
    return contents(out)


def images(folder: Path, greys: np.ndarray[Any, Any]) -> Path:
    folder.mkdir()
    for index, grey in enumerate(greys):
        Image.fromarray(grey).save(folder / f"slice{index:02d}.png")
    return folder


def test_a_folder_of_images_with_a_killed_worker(
    cluster: Cluster, greys: np.ndarray[Any, Any], opening: Opening, tmp_path: Path
) -> None:
    source, out = images(tmp_path / "images", greys), tmp_path / "ray"
    expected = plain(source, tmp_path / "plain", opening)
    told: list[str] = []

    def kill() -> None:
        while not any(out.glob("slices-*.jsonl")):
            time.sleep(0.01)
        # A worker may end its shard at the moment in which it is chosen: then another one.
        while not any("lost" in line for line in told) and not done.is_set():
            for worker in busy_workers()[:1]:
                os.kill(worker, signal.SIGKILL)
                done.wait(1)

    done = threading.Event()
    thread = threading.Thread(target=kill)
    thread.start()
    result = segment_on_cluster("auto", Source(str(source)), out, opening, SETTINGS, told.append)
    done.set()
    thread.join()
    assert any("a worker was lost" in line for line in told), told
    assert sum(line.startswith("volume: 24 slices") for line in told) == 1
    assert (result.slices, result.found, result.lacking) == (SLICES, 0, 0)
    assert result.masks == out / "masks" and result.objects
    assert contents(out) == expected
    again = segment_on_cluster("auto", Source(str(source)), out, opening, SETTINGS)
    assert again.found == SLICES
    assert contents(out) == expected


def test_a_zarr(
    cluster: Cluster, greys: np.ndarray[Any, Any], opening: Opening, tmp_path: Path
) -> None:
    zarr = pytest.importorskip("zarr", reason="needs the extra volumes")
    source = tmp_path / "cells.zarr"
    zarr.create_array(str(source), data=greys, chunks=(4, 64, 64), dimension_names=("z", "y", "x"))
    expected = plain(source, tmp_path / "plain", opening)
    result = segment_on_cluster("auto", Source(str(source)), tmp_path / "ray", opening, SETTINGS)
    assert (result.slices, result.lacking) == (SLICES, 0)
    assert contents(tmp_path / "ray") == expected
    assert json.loads(expected["segment.json"])["complete"]


def test_a_volume_in_one_piece_is_refused(
    greys: np.ndarray[Any, Any], opening: Opening, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "cells.tif", greys)
    with pytest.raises(UserError, match="tiff is written in one piece; --ray can share a Zarr"):
        segment_on_cluster(
            "local", Source(str(tmp_path / "cells.tif")), tmp_path / "out", opening, SETTINGS
        )
    assert not (tmp_path / "out").exists()


def test_a_worker_that_raises(
    cluster: Cluster, greys: np.ndarray[Any, Any], opening: Opening, tmp_path: Path
) -> None:
    source = images(tmp_path / "images", greys)
    (source / "slice20.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="slice20.png") as raised:
        segment_on_cluster(
            "auto", Source(str(source)), tmp_path / "out", replace(opening, size=None), Settings()
        )
    assert "\n" not in str(raised.value)
