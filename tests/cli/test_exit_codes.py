"""Exit codes are documented once, and these are they."""

from __future__ import annotations

import re
from pathlib import Path

from converter_core.cli import exit_codes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def test_the_documented_codes_are_the_codes() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    documented = [int(code) for code in re.findall(r"^\* (\d+): ", section, re.MULTILINE)]
    codes = [value for name, value in vars(exit_codes).items() if name.isupper()]
    assert documented == sorted(codes)
