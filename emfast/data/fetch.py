"""Downloading the EPFL hippocampus stack and checking what arrived.

The publishers give no checksums. Every file is therefore checked against its published size, and
its SHA-256 is recorded in ``checksums.sha256`` beside it when it is first seen; from then on a file
that differs from the record is refused. ``sha256sum --check checksums.sha256`` reads the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from emfast.progress import Advance, progress
from engines.errors import UserError
from engines.files import atomic_write, sha256

PAGE = "https://www.epfl.ch/labs/cvlab/data/data-em/"
# The space before "Electron" is the publishers'.
BASE_URL = (
    "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus"
)
CITATION = (
    "Lucchi et al.: Learning structured models for segmentation of 2-D and 3-D imagery, "
    "IEEE Transactions on Medical Imaging 34, 2015"
)
Check = Literal["published", "recorded", "nothing"]

RECORD = "checksums.sha256"
CHUNK = 2**20
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, its size in bytes and its SHA-256 where that is known."""

    name: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Fetched:
    """A file that is in place.

    Attributes:
        path: where it is.
        sha256: of its bytes.
        downloaded: whether it was downloaded now; otherwise it was there already.
        check: what the SHA-256 was compared with: the "published" one, the one "recorded" when
            the file was first seen, or "nothing", in which case it is recorded now.
    """

    path: Path
    sha256: str
    downloaded: bool
    check: Check


# 165 pages of 1024 x 768 bytes and their headers, the same for all four.
TRAINING = (
    RemoteFile("training.tif", 129_919_357),
    RemoteFile("training_groundtruth.tif", 129_919_357),
)
TESTING = (
    RemoteFile("testing.tif", 129_919_357),
    RemoteFile("testing_groundtruth.tif", 129_919_357),
)


def fetch(files: Sequence[RemoteFile], out: Path, base_url: str = BASE_URL) -> list[Fetched]:
    """Bring files into a folder; those that are there already are only checked.

    Args:
        files: :data:`TRAINING`, and :data:`TESTING` only where an evaluation is meant to use it.
        out: the folder, made if missing.
        base_url: address of the folder that the files are downloaded from.

    Raises:
        UserError: pooch is not installed, no connection, an error of the server, or a file whose
            size or SHA-256 is not the expected one. What arrived before stays, checked.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror})") from None
    return [_fetch_one(file, out, base_url) for file in files]


def read_record(path: Path) -> dict[str, str]:
    """Read recorded SHA-256 sums, one line a file as sha256sum writes them; none if missing."""
    if not path.exists():
        return {}
    record = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise UserError(
                f"{path}: cannot read the line {line!r}; expected a SHA-256, two spaces and a "
                "file name; mend or delete it"
            )
        record[name] = digest
    return record


def _fetch_one(file: RemoteFile, out: Path, base_url: str) -> Fetched:
    path = out / file.name
    record = read_record(out / RECORD)
    expected = file.sha256 or record.get(file.name)
    present = path.exists()
    if present:
        digest = _check(path, file, expected, str(path))
    else:
        url = f"{base_url.rstrip('/')}/{file.name}"
        with atomic_write(path) as temporary:
            _download(url, file, temporary, out)
            digest = _check(temporary, file, expected, url)
    if record.get(file.name) != digest:
        lines = [f"{d}  {name}\n" for name, d in sorted({**record, file.name: digest}.items())]
        with atomic_write(out / RECORD) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    check: Check = "nothing" if expected is None else "published" if file.sha256 else "recorded"
    return Fetched(path, digest, not present, check)


def _check(path: Path, file: RemoteFile, expected: str | None, source: str) -> str:
    """The SHA-256 of a file of the right size and, where one is expected, the right SHA-256."""
    size = path.stat().st_size
    if size != file.size:
        raise UserError(
            f"{source}: is {size} bytes, but {file.name} was published with {file.size}; "
            "it is incomplete or another file: remove it and fetch it again, or get it by hand "
            f"from {PAGE}"
        )
    digest = sha256(path)
    if expected is not None and digest != expected:
        known = "published" if file.sha256 else f"recorded in {RECORD} when it was first fetched"
        raise UserError(
            f"{source}: its SHA-256 is {digest}, but {expected} was {known}; the file has changed "
            f"or is damaged: remove it and fetch it again, or get it by hand from {PAGE}"
        )
    return digest


class _Counted:
    """A file to write to that moves a progress bar at every chunk."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self.file = file
        self.advance = advance

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.advance()

    def flush(self) -> None:
        """Called by pooch after each chunk; the file is flushed when it is closed."""


def _download(url: str, file: RemoteFile, temporary: Path, out: Path) -> None:
    try:
        import pooch
        import requests
    except ImportError:
        raise UserError(
            "downloading needs pooch, which is not installed: pip install 'emfast[data]'"
        ) from None
    download = pooch.HTTPDownloader(chunk_size=CHUNK, timeout=TIMEOUT_SECONDS)
    chunks = -(-file.size // CHUNK)
    try:
        with (
            temporary.open("wb") as target,
            progress(f"{file.name} (MiB)", chunks) as advance,
        ):
            download(url, _Counted(target, advance), None)
    except requests.RequestException as error:
        raise UserError(
            f"{url}: {_reason(error)}; try again later, or download {file.name} by hand from "
            f"{PAGE}, put it into {out} and run this command again to check it"
        ) from None


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT_SECONDS} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)
