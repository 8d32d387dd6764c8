"""The typer app: its commands, and what works without naming one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import convert, demo, init, inspect, plan, plugins, verify
from .legacy import LegacyCommand

NAME = "model-converter"


class Root(TyperGroup):
    """Options without a command belong to ``convert``: ``model-converter --config wan.yaml``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for param in self.get_params(ctx) for name in param.opts}
        if args and args[0].startswith("-") and args[0].partition("=")[0] not in own:
            args = ["convert", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Root,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{NAME} {version(NAME)}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn checkpoints of diffusion transformers into quantized ones that an inference runtime loads unchanged.

    Without a command, options are those of convert: model-converter --config wan.yaml
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


# LightX2V's converter is typed with underscores, everything here with hyphens: both work everywhere
_both_spellings = {"token_normalize_func": lambda name: name.replace("_", "-")}

app.command("convert", cls=LegacyCommand, context_settings=_both_spellings)(convert.convert)
app.command("plan", cls=LegacyCommand, context_settings=_both_spellings)(plan.plan)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("init")(init.init)
app.command("demo")(demo.demo)
app.add_typer(plugins.app, name="plugins")
