"""The words of /openapi.json."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from emfast.server.encode import MEDIA_TYPES

DESCRIPTION = (
    "Segments electron-microscopy slices. Where the server was started with a token, paths under "
    "/v1/ and /metrics take the header Authorization: Bearer TOKEN."
)
OUTPUT = "\n".join(
    (
        "png: mask of one slice, 0 and 255 (with several classes 0 and the labels from 1).",
        "tiff, npy: masks, as many as slices.",
        "contours: JSON polygons of the objects.",
        "probability: .npy, float32 (slices, classes, height, width), without slices for an image.",
        "overlay: PNG, RGB, the mask outlined.",
        "layers: PNG, red is the grey, green the probability in 256 levels: level k holds k/256 to "
        "(k+1)/256.",
    )
)
THRESHOLD = "Least probability of an object's pixel; the server's by default."
INVERT = "For slices with bright membranes on dark ground."
PIXEL_SIZE = (
    "Edge of a pixel in nm, instead of what a TIFF says: slices are resampled to the model's and "
    "the answer back. Without either, pixels are taken as the model's."
)
LABEL = "The class that layers shows, from 1."

_BODIES = ("image/png", "image/jpeg", "image/bmp", "image/tiff", "application/x-npy")
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_ERROR: dict[str, Any] = {
    "schema": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("error", "got", "accepted")},
        "required": ["error", "got", "accepted"],
    }
}


def _error(status: int, meaning: str, got: str, accepted: str) -> dict[str, Any]:
    example = {"error": HTTPStatus(status).phrase, "got": got, "accepted": accepted}
    return {"description": meaning, "content": {"application/json": {**_ERROR, "example": example}}}


# Status: meaning, and an example of what was got and what is accepted.
_ERRORS = {
    401: (
        "No token or a wrong one",
        "no token",
        "the header Authorization: Bearer TOKEN",
    ),
    408: (
        "The body came too slowly",
        "1024 bytes in 60 s, and not the end",
        "a whole body within that time",
    ),
    413: (
        "Too many bytes or pixels",
        "an image of 60000 x 60000 pixels",
        "at most 67108864 pixels in a request",
    ),
    415: (
        "Not an image format that is read",
        "bytes that begin with b'%PDF-1.7'",
        "PNG, JPEG, BMP, TIFF (several pages: a stack) or a NumPy array (.npy)",
    ),
    421: (
        "A server without a token, asked by another name than this machine's",
        "host 'em.example'",
        "localhost; behind a proxy, start the server with a token",
    ),
    422: (
        "An image or option that cannot be used",
        "threshold=2",
        "Input should be less than or equal to 1",
    ),
    429: (
        "The server is full; Retry-After tells when to come again",
        "a request beside 64 others",
        "at most 64 requests at once; try again after 2 s",
    ),
    503: (
        "The server stops",
        "a request while the server stops",
        "the same request at another server, or later",
    ),
}
SEGMENT: dict[str, Any] = {
    "summary": "Segment an image or a stack",
    "description": (
        "The body is the file itself, or a form with one file. Its first bytes tell the format: "
        "PNG, JPEG, BMP, TIFF (several pages: a stack) or .npy of shape (height, width) or "
        "(slices, height, width); one channel of integers or floats. Each slice is standardised by "
        "its own mean and deviation. Of other types than 8 bits, single pixels far from all others "
        "are clipped, and the mask of NaN and infinities is 0.\n\n"
        "    curl --data-binary @slice.png -o mask.png http://localhost:8000/v1/segment\n"
        "    curl -F file=@stack.tif -o masks.tif 'http://localhost:8000/v1/segment?output=tiff'"
    ),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                **dict.fromkeys(_BODIES, _BINARY),
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": {"type": "string", "format": "binary"}},
                        "required": ["file"],
                    }
                },
            },
        }
    },
    "responses": {
        **{status: _error(status, *words) for status, words in _ERRORS.items()},
        200: {
            "description": (
                "What output asks for. Server-Timing holds the time of each stage, Emfast-Read-As "
                "how greys and pixel size were read, as JSON"
            ),
            "content": {
                **dict.fromkeys(MEDIA_TYPES.values(), _BINARY),
                "application/json": {
                    "example": {
                        "width": 1024,
                        "height": 768,
                        "threshold": 0.5,
                        "slices": [
                            {
                                "objects": [
                                    {
                                        "label": "mitochondria",
                                        "pixels": 1,
                                        "exterior": [
                                            [4, 1.5],
                                            [3.5, 2],
                                            [4, 2.5],
                                            [4.5, 2],
                                            [4, 1.5],
                                        ],
                                        "holes": [],
                                    }
                                ]
                            }
                        ],
                    }
                },
            },
        },
    },
}
