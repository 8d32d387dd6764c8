"""The typer app: its commands, and what works without naming one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import batch, calibrate, clean, convert, demo, init, inspect, plan, plugins, verify
from .command import Command, RecipeCommand

NAME = "model-converter"


class Root(TyperGroup):
    """Options and recipes without a command belong to ``convert``: ``model-converter wan.yaml``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for param in self.get_params(ctx) for name in param.opts}
        if args and (_is_recipe(args[0]) or (args[0].startswith("-") and args[0].partition("=")[0] not in own)):
            args = ["convert", *args]
        return super().parse_args(ctx, args)


def _is_recipe(word: str) -> bool:
    return word.lower().endswith((".yaml", ".yml"))


app = typer.Typer(
    cls=Root,
    invoke_without_command=True,
    rich_markup_mode=None,  # boxes leave no room for the text at 80 columns, and importing rich takes its time
    epilog=(
        "Exit codes: 0 done; 1 failed or refused; 2 usage error; 3 verify checked the structure only (no manifest); "
        "130 interrupted; 143 terminated. The same command resumes what was interrupted."
    ),
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

    Without a command, recipes and options are those of convert: model-converter wan.yaml
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


# existing conversion scripts are typed with underscores, everything here with hyphens: both work everywhere
_both_spellings = {"token_normalize_func": lambda name: name.replace("_", "-")}

app.command("convert", cls=RecipeCommand, context_settings=_both_spellings)(convert.convert)
app.command("plan", cls=RecipeCommand, context_settings=_both_spellings)(plan.plan)
app.command("batch", cls=Command, context_settings=_both_spellings)(batch.batch)
app.command("inspect", cls=Command)(inspect.inspect)
app.command("verify", cls=Command)(verify.verify)
app.command("calibrate", cls=Command)(calibrate.calibrate)
app.command("merge-calibrations", cls=Command)(calibrate.merge)
app.command("clean", cls=Command)(clean.clean)
app.command("init", cls=Command)(init.init)
app.command("demo", cls=Command)(demo.demo)
app.add_typer(plugins.app, name="plugins")
