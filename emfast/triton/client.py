"""Segment one slice on a Triton server: python client.py slice.png mask.png

Needs numpy, pillow and tritonclient[grpc]; nothing of emfast.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from PIL import Image
from tritonclient import grpc

WIRE_TYPES = {"TYPE_FP32": ("FP32", np.float32), "TYPE_FP16": ("FP16", np.float16)}


def segment(image: Any, url: str, model: str) -> Any:
    """The class of each pixel.

    Args:
        image: uint8 (height, width), greys in [0, 255].
        url: host and gRPC port of the server.
        model: its name there.

    Returns:
        uint8 of the same shape: 0 and 255 for a model of one class, else 0 and the classes'
        labels, from 1.
    """
    with grpc.InferenceServerClient(url) as client:
        config = client.get_model_config(model, as_json=True)["config"]
        known = {key: value["string_value"] for key, value in config["parameters"].items()}
        wire_type, dtype = WIRE_TYPES[config["input"][0]["data_type"]]
        x = preprocess(image, known["normalization"], int(known["multiple"])).astype(dtype)
        tensor = grpc.InferInput(config["input"][0]["name"], list(x.shape), wire_type)
        tensor.set_data_from_numpy(x)
        result = client.infer(model, [tensor])
    probability = result.as_numpy(config["output"][0]["name"])[0].astype(np.float32)
    probability = probability[:, : image.shape[0], : image.shape[1]]
    labels = (probability.argmax(axis=0) + 1).astype(np.uint8)
    labels[probability.max(axis=0) < float(known["threshold"])] = 0
    return labels * np.uint8(255) if len(probability) == 1 else labels


def preprocess(image: Any, normalization: str, multiple: int) -> Any:
    """Normalise a slice and mirror it up to multiples; gives float32 (1, 1, height, width)."""
    x = image.astype(np.float32)
    if normalization == "unit":
        x /= 255
    else:
        x = (x - np.float32(image.mean())) / np.float32(max(image.std(), 1.0))
    below, right = (-side % multiple for side in image.shape)
    return np.pad(x, ((0, below), (0, right)), mode="reflect")[None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Segment one slice on a Triton server.")
    parser.add_argument("image", help="8-bit grey, any format that Pillow reads")
    parser.add_argument("mask", help="to write, as a lossless format: PNG or TIFF")
    parser.add_argument("--url", default="localhost:8001", help="host and gRPC port")
    parser.add_argument("--model", required=True, help="its name on the server")
    options = parser.parse_args()
    image = np.asarray(Image.open(options.image).convert("L"))
    Image.fromarray(segment(image, options.url, options.model)).save(options.mask)


if __name__ == "__main__":
    main()
