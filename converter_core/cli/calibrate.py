"""``model-converter calibrate`` and ``merge-calibrations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Quiet, message, show_line


def calibrate(
    model: Annotated[
        str, typer.Argument(help="The folder of a diffusers pipeline, or of a bare transformer.", metavar="MODEL")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The calibration file to write.", metavar="FILE")],
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="A text file with a prompt to a line.", metavar="FILE")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--inputs",
            help="Of a bare transformer: keyword arguments, as a file of tensors; repeatable.",
            metavar="FILE",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps of each prompt.")] = None,
    height: Annotated[int | None, typer.Option("--height", min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Of a video.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the first prompt; each next one has the next.")] = 0,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", min=0, help="Sampled of each input, for rounding: gptq. 0: none.", show_default="1024"
        ),
    ] = None,
    rank: Annotated[
        int,
        typer.Option("--rank", min=0, help="For rounding: gptq from a smaller file: vectors an input, e.g. 64."),
    ] = 0,
    config: Annotated[
        str | None,
        typer.Option("--config", help="A recipe: gather for the layers that it quantizes only.", metavar="FILE"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="As torch calls it.")] = "cpu",
    quiet: Quiet = False,
) -> None:
    """Run a model and write what its linear layers multiply, for source.calibration; the same command resumes.

    Needs diffusers and transformers: pip install 'model-converter[calibrate]'
    """
    from ..calibration.calibrate import CalibrationProgress
    from ..calibration.calibrate import calibrate as gather
    from ..calibration.models import CalibrationSettings
    from ..errors import CheckpointError, shown
    from ..sizes import format_bytes

    def show(event: CalibrationProgress) -> None:
        if not event.done:
            message(f"the statistics take up to {format_bytes(event.memory)} of memory beside the model")
        message(f"{event.done + 1} of {event.total}: {event.label[:80]}")

    lines: list[str] = []
    if prompts is not None:
        try:
            lines = [line.strip() for line in Path(prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{shown(prompts)}: cannot be read: {error}") from None
    settings = CalibrationSettings(seed, steps, height, width, frames, tokens, rank)
    paths = gather(
        model,
        output,
        prompts=lines,
        inputs=inputs or (),
        settings=settings,
        recipe=config,
        device=device,
        progress=None if quiet else show,
    )
    if not quiet:
        for path in paths:
            show_line(str(path))


def merge(
    files: Annotated[list[str], typer.Argument(help="Calibration files of one model.", metavar="FILE...")],
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write.", metavar="FILE")],
) -> None:
    """Add up calibration files, as if they had been gathered in one go."""
    from ..calibration.calibrate import merge_calibrations

    merge_calibrations(files, output)
    show_line(output)
