from __future__ import annotations

import numpy as np

from emfast.pictures import GAP, OUTLINE, contact_sheet, outline, overlay


def test_the_outline_is_the_edge_inside_the_object() -> None:
    mask = np.zeros((7, 7), dtype=np.uint8)
    mask[2:5, 2:5] = 1
    edge = outline(mask)
    assert edge.sum() == 8
    assert not edge[3, 3]
    assert not edge[mask == 0].any()


def test_neighbouring_labels_are_both_outlined() -> None:
    mask = np.array([[1, 1, 2, 2]], dtype=np.uint8)
    assert outline(mask).tolist() == [[False, True, True, False]]


def test_overlay_keeps_the_greys_elsewhere() -> None:
    image = np.full((4, 4), 90, dtype=np.uint8)
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[1, 1] = 1
    rgb = overlay(image, mask)
    assert tuple(rgb[1, 1]) == OUTLINE
    rgb[1, 1] = 90
    assert (rgb == 90).all()


def test_a_sheet_holds_every_pair() -> None:
    images = np.zeros((5, 8, 6), dtype=np.uint8)
    sheet = contact_sheet(images, images, columns=2)
    assert sheet.size == (2 * 6 + GAP, 3 * (2 * 8 + 3 * GAP) - 2 * GAP)
