"""``emfast serve``: segmentation over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; other than this machine's own needs a token."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="EMFAST_TOKEN",
            help="That requests must bear. Others see it in the list of processes; the environment "
            "variable keeps it to yourself.",
        ),
    ] = None,
    model: Annotated[
        Path, typer.Option(help="Name of a shipped bundle, or the folder of another one.")
    ] = Path("epfl-segmenter"),
    engine: Annotated[
        str,
        typer.Option(help="auto takes the first engine that runs here; a name means that one."),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16 or int8; auto takes what the bundle has and the engine likes best, "
            "but never int8."
        ),
    ] = "auto",
    workers: Annotated[
        int, typer.Option(help="Engines side by side, each with its own memory.")
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of each worker; the processors are shared out by default."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least probability of an object pixel, 0 to 1; the bundle's by default."),
    ] = None,
    max_wait_ms: Annotated[
        float, typer.Option(help="That a slice may wait for others of its size to run with.")
    ] = 5.0,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Slices that run together: by default 1 on a CPU, 4 on a GPU, 1 with TensorRT."
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(help="Requests in the server at once; further ones get 429.")
    ] = 64,
    max_bytes: Annotated[int, typer.Option(help="Of one request's body.")] = 64 * 2**20,
    max_pixels: Annotated[
        int,
        typer.Option(
            help="Of one request, all pages; of 16 bits they count twice, of 32 four times."
        ),
    ] = 64 * 2**20,
    client_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds that a client may take to send its request, and to take its answer."
        ),
    ] = 60.0,
) -> None:
    """Serve segmentation over HTTP, with one page to try it on.

    POST an image to /v1/segment and get its mask. /docs tells the rest.

    Example: emfast serve --port 8000
    """
    from emfast.cli.requirements import require

    require(
        "server", "fastapi", "uvicorn", "python_multipart", "prometheus_client", "skimage",
        "imagecodecs",
    )  # fmt: skip
    from emfast.server.run import serve as run
    from emfast.server.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        model=model,
        engine=engine,
        precision=precision,
        threads=threads,
        threshold=threshold,
        workers=workers,
        max_wait=max_wait_ms / 1e3,
        max_batch=max_batch,
        queue=queue,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        client_timeout=client_timeout,
        token=token,
    )
    run(settings, lambda line: typer.echo(line, err=True))
