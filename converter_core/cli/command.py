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
            settings = _settings_of_plugins(flag) if flag and flag not in known else []
            if settings:
                return self.parse_args(ctx, _replaced(args, flag, settings))
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


def _settings_of_plugins(flag: str) -> list[str]:
    """What a switch of a target's stands for, as arguments of this command line; empty if there is no such switch."""
    from ..plugins.registry import load_plugins

    for target in load_plugins().targets.values():
        if flag in target.flags:
            return [word for key, value in target.flags[flag].items() for word in ("--set", f"{key}={value}")]
    return []


def _replaced(args: list[str], flag: str, words: list[str]) -> list[str]:
    """The arguments with others in the place of a switch, however it is spelt."""
    spelt = [word for word in args if word.replace("_", "-") == flag]
    return [*(word for word in args if word not in spelt), *words]


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
