"""Folders that cannot be written to: one line each, before anything is made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emfast.segmentation.places import check_masks, check_out
from emfast.volumes import VolumeReader, open_volume
from engines.errors import UserError


@pytest.fixture
def reader(tmp_path: Path) -> VolumeReader:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 5), dtype=np.uint8)).save(folder / "a.png")
    return open_volume(folder)


def test_folders_to_write_to(tmp_path: Path, reader: VolumeReader) -> None:
    for out in (tmp_path, tmp_path / "new" / "deep", tmp_path / "in" / "inside", Path("new")):
        check_out(out, reader)
        check_masks(out)


def test_out_that_is_the_input(tmp_path: Path, reader: VolumeReader) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (tmp_path / "in", tmp_path / "link", tmp_path / "in" / ".." / "in"):
        with pytest.raises(UserError, match="is the input itself"):
            check_out(out, reader)


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_out_that_is_a_file_or_below_one(tmp_path: Path, reader: VolumeReader, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: is a file; give a folder"):
        check_out(tmp_path / "file" / below, reader)


def test_out_that_cannot_be(tmp_path: Path, reader: VolumeReader) -> None:
    with pytest.raises(UserError, match="File name too long"):
        check_out(tmp_path / ("x" * 300), reader)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="is found when the folder is made")
def test_out_that_links_to_itself(tmp_path: Path, reader: VolumeReader) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"loop: cannot be written \(links in a circle\)"):
        check_out(tmp_path / "loop", reader)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_in_a_folder_that_may_not_be_entered(tmp_path: Path, reader: VolumeReader) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            check_out(tmp_path / "closed" / "out", reader)
    finally:
        (tmp_path / "closed").chmod(0o700)
