"""``emfast engines``: TensorRT engine files, built ahead, listed, verified and removed."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="TensorRT engine files: build them ahead, list, verify and remove them.",
)

ALL_TARGETS = "all"
Size = Annotated[
    str | None, typer.Option(help="One size, or minimum:best:maximum; a default for the model.")
]


@app.command()
def build(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Shipped bundles by name, or bundles' folders; all shipped ones."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="tensorrt or tensorrt-rtx; auto takes the first that is installed.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32 or fp16; auto takes fp16 where the bundle has it.")
    ] = "auto",
    batch: Size = None,
    height: Size = None,
    width: Size = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorrt-rtx: a compute capability to build for, as sm86, or all; this needs no "
            "GPU. May be given more than once."
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(help="Most scratch memory of a layer in MB; all by default.")
    ] = None,
    level: Annotated[
        int, typer.Option(help="Optimisation level: 0 builds fastest, 5 searches longest.")
    ] = 3,
    compatibility: Annotated[
        str,
        typer.Option(
            help="tensorrt: none for this GPU alone, same-compute-capability, or ampere-plus."
        ),
    ] = "none",
) -> None:
    """Build engines and verify them, before a run needs them.

    Runs build what they miss themselves; this does it ahead, for other shapes than the defaults,
    or for other machines: EMFAST_CACHE names the folder that they share.

    Example: emfast engines build epfl-segmenter --batch 1 --height 768 --width 1024
    """
    from emfast.engine_cache import BuildRequest, build_ahead
    from engines.bundle import shipped_bundles
    from engines.plan import BuildOptions, Range

    sizes = {
        axis: Range.parse(text)
        for axis, text in {"batch": batch, "height": height, "width": width}.items()
        if text is not None
    }
    request = BuildRequest(
        engine,
        precision,
        sizes,
        BuildOptions(
            workspace=None if workspace is None else workspace * 10**6,
            optimization_level=level,
            hardware_compatibility=compatibility,
            targets=tuple(name for name in target or () if name != ALL_TARGETS),
        ),
        all_targets=ALL_TARGETS in (target or ()),
    )
    for model in models or shipped_bundles():
        entry, new = build_ahead(model, request)
        state = "built" if new else "was there already"
        verified = ", ".join(v.gpu for v in entry.verifications) or "no GPU yet"
        print(f"{model}: {entry.path} {state}; verified on {verified}")


@app.command("list")
def list_engines(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the engines of the cache.

    Example: emfast engines list
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from engines.cache import EngineCache

    cache = EngineCache()
    entries = cache.entries()
    if as_json:
        facts = [{"path": str(entry.path), **json.loads(entry.to_json())} for entry in entries]
        print(json.dumps(facts, indent=1))
        return
    table = Table("file", "model", "engine", "shapes", "built for", "verified on", "MB")
    for entry in entries:
        recipe = entry.recipe
        table.add_row(
            entry.path.name,
            f"{entry.facts['model']}, {recipe.precision}",
            f"{recipe.flavour} {recipe.version}",
            str(recipe.profile),
            recipe.hardware,
            "\n".join(f"{v.gpu}, {v.date[:10]}" for v in entry.verifications) or "-",
            f"{entry.size / 1e6:.1f}",
        )
    if entries:
        Console().print(table)
    noun = "engine" if len(entries) == 1 else "engines"
    print(f"{len(entries)} {noun}, {cache.size() / 1e6:.1f} MB in {cache.folder}")


@app.command()
def verify() -> None:
    """Compare all cached engines that run on this machine's GPU with onnxruntime.

    One that fails is removed.

    Example: emfast engines verify
    """
    from emfast.engine_cache import verify_all

    failed = False
    for verified in verify_all():
        failed = failed or verified.failed
        entry = verified.entry
        print(f"{entry.path.name} ({entry.facts['model']}): {verified.outcome}")
    if failed:
        raise typer.Exit(1)


@app.command()
def prune(
    everything: Annotated[bool, typer.Option("--all", help="Remove all engines.")] = False,
) -> None:
    """Remove engines that this machine can never use again: of another version of TensorRT or of
    another driver, damaged or unfinished.

    Example: emfast engines prune
    """
    from emfast.engine_cache import prune as prune_cache
    from engines.cache import EngineCache

    cache = EngineCache()
    removed = prune_cache(cache, everything)
    for item in removed:
        print(f"{item.path.name}: {item.reason}")
    freed = sum(item.size for item in removed) / 1e6
    print(f"{len(removed)} removed, {freed:.1f} MB freed; {cache.size() / 1e6:.1f} MB stay")
