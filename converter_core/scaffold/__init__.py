"""Begin a plugin: a package with one plugin that works, tested by its kit, ready for ``pip install -e``.

The ``*.txt`` files beside this one are the templates, of ``string.Template``.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from string import Template
from types import MappingProxyType

from ..api.hookspecs import PROJECT
from ..errors import PluginError, unknown

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "quantizer": "QuantizerConformance",
        "target": "TargetConformance",
        "layout": "LayoutWriterConformance",
        "model": "ModelConformance",
        "device": "DeviceConformance",
        "container": "ContainerConformance",
        "storage": "StorageConformance",
    }
)
"""Kind of plugin -> the kit that tests it."""


def new_plugin(kind: str, name: str, folder: Path | None = None) -> list[Path]:
    """Write the package and return its files. PluginError if the name cannot be used or something is there already.

    name: what recipes will call it, e.g. ``my_scheme``. folder: None: ``./converter-my-scheme``.
    """
    if kind not in KINDS:
        raise PluginError(unknown("kind of plugin", kind, KINDS))
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise PluginError(f"{name!r} cannot be the name of a plugin; use a-z, 0-9 and single underscores: my_scheme")
    for point in entry_points(group=PROJECT):
        if point.name == name:
            owner = f" (of {point.dist.name})" if point.dist else ""
            raise PluginError(f"a plugin called {name!r} is installed already{owner}; choose another name")
    words = {
        "name": name,
        "title": name.replace("_", " ").title().replace(" ", ""),
        "distribution": f"converter-{name.replace('_', '-')}",
        "package": f"converter_{name}",
        "kind": kind,
        "scheme": name.replace("_", "-"),
        "kit": KINDS[kind],
    }
    root = folder or Path(words["distribution"])
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise PluginError(f"{root}: is there already and not empty; choose another with --dir")
    contents = {
        "pyproject.toml": "pyproject.toml.txt",
        "README.md": "README.md.txt",
        f"{words['package']}/__init__.py": f"{kind}.py.txt",
        f"tests/test_{name}.py": f"test_{kind}.py.txt",
    }
    written = []
    for path, template in contents.items():
        text = files(__name__).joinpath(template).read_text(encoding="utf-8")
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(text).substitute(words), encoding="utf-8")
        written.append(file)
    return written
