"""Segmentation over HTTP: an image in, its mask back; and one page to try it on."""
