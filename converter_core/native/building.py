"""How compiled loops are built: plain shared libraries that know no Python, so that one wheel serves all its versions.

setuptools takes the commands from ``[tool.setuptools.cmdclass]``.
"""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import PurePosixPath
from typing import Any

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildLibraries(build_ext):
    """``_loops.so`` rather than ``_loops.cpython-311-x86_64-linux-gnu.so``, and no ``PyInit`` to export."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(PurePosixPath(*fullname.split("."))) + EXTENSION_SUFFIXES[-1]

    def get_export_symbols(self, ext: Any) -> Any:
        return ext.export_symbols


class PlatformWheel(bdist_wheel):
    """For one platform and every Python 3 on it."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]
