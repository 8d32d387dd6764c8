"""Tables on narrow terminals, and files in natural order."""

from __future__ import annotations

import pytest

from converter_core.cli.tables import natural_key, show_table


def test_block_2_stands_before_block_10():
    names = ["block_10", "non_block", "block_2", "block_1"]
    assert sorted(names, key=natural_key) == ["block_1", "block_2", "block_10", "non_block"]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["blocks.39.cross_attn.k_img.weight", "a" * 100])
def test_a_table_fits_and_names_stay_whole(width, name, capsys, monkeypatch):
    monkeypatch.setattr("converter_core.cli.tables.console", lambda: _console(width))
    columns = ("weight", "format", "relative error", "limit", "SQNR", "cosine", "worst element")
    row = (name, "nvfp4", "0.09000", "0.12000", "20.90 dB", "0.995000", "0.0123 at [1234, 5678]")
    show_table("The worst 1", columns, [row], numbers=5, optional=("worst element", "cosine", "format", "limit"))
    out = capsys.readouterr().out
    assert all(len(line) <= width for line in out.splitlines() if name not in line)
    assert name[:33] in out
    assert "20.90 dB" in out


def _console(width):
    from rich.console import Console

    return Console(width=width, markup=False, highlight=False)
