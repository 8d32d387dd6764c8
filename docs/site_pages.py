"""The pages of the site: those of the repository, where they are, and two that are read off the program itself."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ASSETS = "docs/assets/"
RENAMED = {"README.md": "index.md", "README.zh-CN.md": "zh/index.md", "CHANGELOG.md": "changelog.md"}
PAGES = {
    **RENAMED,
    **{
        f"docs/{path}": path
        for path in sorted(p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md"))
    },
}
"""Path in the repository -> path on the site."""


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=relinked(source)))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "options.md", content=options()))
    return files


def relinked(source: str) -> str:
    """A page of the repository, its links leading to pages of the site; a link to anything else loses its goal."""
    here = posixpath.dirname(PAGES[source])

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found[1], found[2], found[3] or ""
        if path.startswith("http") or not path:
            return found[0]
        goal = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = PAGES.get(goal, goal.removeprefix(ASSETS) if goal.startswith(ASSETS) else None)
        if page is None:
            return f"`{goal}`" if text == goal else f"{text} (`{goal}`)"
        return f"[{text}]({posixpath.relpath(page, here or '.')}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, (ROOT / source).read_text())


def commands() -> str:
    import typer

    from converter_core.cli.app import NAME, app

    root: Any = typer.main.get_command(app)
    lines = ["# Commands", "", root.help, ""]
    for name, command in walk(root):
        lines += [f"## {NAME} {name}", "", command.help, "", "| argument | |", "|---|---|"]
        for param in command.params:
            names = ", ".join(f"`{flag}`" for flag in (*param.opts, *param.secondary_opts))
            lines.append(f"| {names} | {cell(getattr(param, 'help', None))} |")
        lines.append("")
    return "\n".join(lines)


def walk(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, command in group.commands.items():
        found.append((prefix + name, command))
        found += walk(command, f"{prefix}{name} ") if hasattr(command, "commands") else []
    return found


def options() -> str:
    from converter_core.cli.describe import in_yaml, options, summary
    from converter_core.plugins.registry import load_plugins

    lines = ["# Options of plugins", "", "As `model-converter plugins` lists them.", ""]
    for catalogue in load_plugins().catalogues():
        for name, cls in sorted(catalogue.classes.items()):
            lines += [f"## {name}", "", f"{catalogue.kind}: {summary(cls)}", ""]
            if declared := options(cls):
                lines += ["| option | default | takes | what it does |", "|---|---|---|---|"]
                lines += [
                    f"| `{o['name']}` | `{in_yaml(o['default'])}` | {cell(o['type'])} | {cell(o['description'])} |"
                    for o in declared
                ]
                lines.append("")
    return "\n".join(lines)


def cell(text: Any) -> str:
    return " ".join(str(text or "").split()).replace("|", "\\|")
