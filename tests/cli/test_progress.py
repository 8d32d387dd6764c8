"""Progress on stderr: a line now and then, with the rate of this run alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from converter_core.cli import progress as module
from converter_core.cli.log import Log
from converter_core.cli.progress import Pace, fit, progress

GIB = 2**30


@dataclass(frozen=True)
class Event:
    done: int
    total: int
    resumed: int = 0
    weight: str = "blocks.0.ffn.0.weight"


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_rate_and_time_left_leave_out_what_an_earlier_run_did():
    clock = Clock()
    pace = Pace(clock)
    clock.time += 10
    assert pace.describe(Event(6 * GIB, 8 * GIB, resumed=4 * GIB)) == "204.8 MiB/s, 0:00:10 left"
    assert pace.describe(Event(4 * GIB, 8 * GIB, resumed=4 * GIB)) == ""


def test_a_line_now_and_then(capsys):
    clock = Clock()
    show = module._lines(Log(), clock)
    for second in range(31):
        clock.time = 100.0 + second
        show(Event(second * GIB // 4, 8 * GIB, resumed=GIB // 4))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" ", 2)[2] for line in err.splitlines()] == [
        " 31%  2.5 GiB of 8 GiB, 230.4 MiB/s, 0:00:24 left, 256 MiB resumed",
        " 62%  5 GiB of 8 GiB, 243.2 MiB/s, 0:00:13 left, 256 MiB resumed",
        " 94%  7.5 GiB of 8 GiB, 247.47 MiB/s, 0:00:02 left, 256 MiB resumed",
    ]


def test_quiet_shows_nothing(capsys):
    with progress(quiet=True, log=Log()) as show:
        assert show is None
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with progress(quiet=False, log=Log()) as show:
        assert show is not None
        show(Event(0, 8 * GIB))
        show(Event(4 * GIB, 8 * GIB))
    out, err = capsys.readouterr()
    assert out == ""
    assert "50%" in err
    assert "4 GiB/8 GiB" in err
    assert "blocks.0.ffn.0.weight" in err


def test_beside_a_narrow_bar_the_most_useful_is_said():
    clock = Clock()
    pace = Pace(clock)
    clock.time += 10
    event = Event(4 * GIB, 8 * GIB)
    assert fit(event, pace, 80) == " 50% 4 GiB/8 GiB 409.6 MiB/s 0:00:10 left blocks.0.ffn.0.weight"
    assert fit(event, pace, 49) == " 50% 4 GiB/8 GiB 409.6 MiB/s 0:00:10 left"
    assert fit(event, pace, 20) == " 50% 0:00:10 left"
