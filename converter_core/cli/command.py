"""Commands with help that fits a narrow terminal, and with advice on flags that they do not have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

from .completion import recipe_keys
from .flags import SEVERAL

_MOST_FLAG = 26
"""Columns for the flags; a longer one has its text on the next line."""

_TYPE = re.compile(r" *<[^>]*>$")

_EXAMPLES: Mapping[str, str] = {
    "num_workers": "4",
    "max_memory": "1GiB",
    "parallel": "false",
    "overwrite": "true",
    "copy_metadata": "true",
    "target_modules": "[NAME,NAME]",
}


class Command(TyperCommand):
    """Options in sections, without the type of a switch."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if param.param_type_name == "argument" else "Options"
                section = getattr(param, "rich_help_panel", None) or default
                sections.setdefault(section, []).append((_TYPE.sub("", record[0]), record[1]))
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records, col_max=_MOST_FLAG)


class RecipeCommand(Command):
    """Knows flags that plugins add, and says what to write in place of one that does not exist: a recipe key, or what a
    plugin knows of the flag.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = list(repeated(args))
        try:
            return super().parse_args(ctx, list(args))  # the parser takes its list apart
        except Exception as error:  # "no such option", by a class of click's or of typer's own copy of it
            flag = getattr(error, "option_name", "")
            known = {name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
            replaced = _by_plugins(args, flag) if flag and flag not in known else None
            if replaced is not None:
                return self.parse_args(ctx, replaced)
            advice = advice_on(flag) if flag and flag not in known else ""  # a known one may lack its value
            if advice:
                ctx.fail(f"there is no {flag} here: {advice}")
            raise


def repeated(args: Sequence[str]) -> Iterator[str]:
    """``--lora-path a b`` as ``--lora-path a --lora-path b``; a recipe is no value."""
    flag, values = "", 0
    for word in args:
        name = word.replace("_", "-")
        if flag and not _is_flag(word) and not word.lower().endswith((".yaml", ".yml")):
            values += 1
            yield from (word,) if values == 1 else (flag, word)
            continue
        flag, values = name if name in SEVERAL else "", 0
        yield word


def _is_flag(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word.startswith("-")
    return False


def advice_on(flag: str) -> str:
    """What to write in place of an unknown flag; empty if nobody knows. Plugins are loaded only if no key matches."""
    keys = list(_keys_like(flag.lstrip("-").replace("-", "_")))
    if not keys:
        return _advice_of_plugins(flag)
    settings = [f"--set {key}={_EXAMPLES.get(key.rpartition('.')[2], 'VALUE')}" for key in keys]
    return f"write {' or '.join(settings)}"


def _keys_like(name: str) -> Iterator[str]:
    """``workers`` and ``num_workers``: performance.num_workers."""
    if len(name) < 3:  # a short flag is no key
        return
    keys = list(recipe_keys())
    whole = [key for key in keys if key.rpartition(".")[2] == name]
    yield from whole or (key for key in keys if key.rpartition(".")[2].endswith(f"_{name}"))


def _by_plugins(args: Sequence[str], flag: str) -> list[str] | None:
    """The arguments with recipe keys in the place of a target's flag, however it is spelt; None: no target has it."""
    from ..plugins.registry import load_plugins

    for target in load_plugins().targets.values():
        for name, settings in target.flags.items():
            left = _without(args, flag, name.partition("=")[2]) if name.partition("=")[0] == flag else None
            if left is not None:
                return [*left, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
    return None


def _without(args: Sequence[str], flag: str, value: str) -> list[str] | None:
    """The arguments without a flag and its value (empty: a switch); None if they do not say so."""
    left = list(args)
    for at, word in enumerate(left):
        name, equals, told = word.partition("=")
        count = 1
        if len(flag) == 2 and word.startswith(flag):
            name, told = flag, word[2:]
        if name.replace("_", "-") != flag:
            continue
        if value and not equals and not told and left[at + 1 :]:
            told, count = left[at + 1], 2
        if told == value:
            del left[at : at + count]
            return _without(left, flag, value) or left
    return None


def _advice_of_plugins(flag: str) -> str:
    from ..plugins.registry import load_plugins
    from ..plugins.validation import options_of

    registry = load_plugins()
    for target in registry.targets.values():
        instead: str | None = target.replaced_flags.get(flag)
        if instead:
            return instead
    name = flag.lstrip("-").replace("-", "_")
    takers = [
        scheme for scheme, cls in registry.quantizers.items() if name in {option.name for option in options_of(cls)}
    ]
    if takers:
        return f"write --set quantization.options.{name}=VALUE (an option of {', '.join(sorted(takers))})"
    return ""
