"""The page of verify: written whole, and looked at in a browser without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from converter_core.api import ConverterError
from converter_core.report.page import write_html
from converter_core.verification.verify import Copied, Problem, Structure, Verification, WeightReport, Worst

pytest.importorskip("plotly", reason="the extra 'report' is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = 'blocks.1.ffn.0</script><b onclick="x">&amp;.weight'
MODULES = ("self_attn.q", "self_attn.k", "ffn.0", "ffn.2")


def weight(block, module, sqnr, **changes):
    error = 10 ** (-sqnr / 20)
    return replace(
        WeightReport(
            name=f"blocks.{block}.{module}.weight",
            block=str(block),
            module=module.split(".")[0],
            format="fp8" if block in (0, 4) else "nvfp4",
            shape=(512, 256),
            bytes_before=512 * 256 * 2,
            bytes_after=512 * 256 // (1 if block in (0, 4) else 2),
            relative_error=error,
            sqnr_db=sqnr,
            cosine=1 - error**2 / 2,
            worst=Worst(error / 10, (3 + block, 17)),
            limit=0.4,
        ),
        **changes,
    )


def report(**changes):
    weights = [
        weight(block, module, (32 if block in (0, 4) else 21) + block / 10 - number / 7)
        for block in range(5)
        for number, module in enumerate(MODULES)
    ]
    made = Verification(
        output="/models/wan_mixed",
        manifest="/models/wan_mixed/wan.manifest.json",
        against="/models/wan",
        model="wan_dit T2V-14B",
        target="plain",
        structure=Structure({"a.safetensors": 10, "b.safetensors": 20}, 1234, 1240),
        weights=tuple(weights),
        copied=Copied(83, True, (), 2 << 20, 2 << 20),
        notes=("one note",),
    )
    return replace(made, **changes)


def bad_report():
    weights = list(report().weights)
    weights[6] = weight(1, "ffn.0", -6.0, name=HOSTILE, ok=False, relative_error=1.99)
    weights[7] = replace(weights[7], sqnr_db=float("inf"), relative_error=0.0)
    return report(weights=tuple(weights), problems=(Problem("a.safetensors", HOSTILE, "its relative error is 1.99"),))


def data(page, name):
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


@pytest.fixture
def page(tmp_path):
    def make(report):
        write_html(report, tmp_path / "page.html")
        return (tmp_path / "page.html").read_text()

    return make


def test_what_the_figures_show(page):
    text = page(report())
    heat = data(text, "map-figure")["data"][0]
    assert heat["x"] == ["0", "1", "2", "3", "4"]
    assert heat["y"] == list(MODULES)
    assert heat["z"][1][2] == pytest.approx(21 + 0.2 - 1 / 7)
    assert heat["customdata"][1][2][0] == "blocks.2.self_attn.k.weight"
    assert "relative error 0.0885, limit 0.4000<br>SQNR 21.06 dB" in heat["customdata"][1][2][1]
    series = {trace["name"]: trace["x"] for trace in data(text, "histogram-figure")["data"]}
    assert {name: len(values) for name, values in series.items()} == {"fp8": 8, "nvfp4": 12}
    bars = {trace["name"]: trace["x"] for trace in data(text, "sizes-figure")["data"]}
    assert bars == {"fp8": [1.0, 2.0], "nvfp4": [0.75, 3.0], "copied": [2.0, 2.0]}
    assert "Every weight is where it should be" in text
    assert "from 7 MiB, 53.6 %" in text


def test_what_fails_is_in_the_headline_and_names_cannot_break_out(page):
    text = page(bad_report())
    assert "One problem was found" in text
    assert HOSTILE not in text
    assert "&lt;/script&gt;&lt;b onclick=&#34;x&#34;&gt;&amp;amp;.weight" in text
    rows = data(text, "weights-rows")["rows"]
    assert [row["texts"][0] for row in rows if not row["ok"]] == [HOSTILE]
    assert rows[7]["texts"][5] == "exact"
    assert data(text, "map-figure")["data"][0]["z"][3][1] == pytest.approx(data(text, "map-figure")["data"][0]["zmax"])


def test_without_a_source_there_are_sizes_and_no_errors(page):
    bare = {"relative_error": None, "sqnr_db": None, "cosine": None, "worst": None, "limit": None}
    text = page(report(against=None, weights=tuple(replace(weight, **bare) for weight in report().weights)))
    assert "The files are as they should be" in text
    assert 'id="map"' not in text
    assert [len(row["texts"]) for row in data(text, "weights-rows")["rows"]] == [5] * 20
    assert page(report(weights=(), copied=Copied())).count("<table>") == 0


def kept(block):
    bare = {"relative_error": None, "sqnr_db": None, "cosine": None, "worst": None, "limit": None}
    return weight(block, "ffn.0", 0, name=f"blocks.{block}.ffn.0.weight", format="none", **bare)


def test_what_is_not_quantized_stays_on_the_map_in_grey(page):
    whole = report()
    text = page(report(weights=tuple(w for w in whole.weights if w.block != "3"), kept=(kept(3),)))
    measured, grey = data(text, "map-figure")["data"]
    assert measured["x"] == ["0", "1", "2", "3", "4"]
    column = measured["x"].index("3")
    row = measured["y"].index("ffn.0")
    assert measured["z"][row][column] is None
    assert grey["z"][row][column] == 0
    assert grey["z"][row][0] is None
    assert "not quantized" in measured["customdata"][row][column][1]
    rows = data(text, "weights-rows")["rows"]
    assert [row["texts"][0] for row in rows if row["kept"]] == ["blocks.3.ffn.0.weight"]


def test_one_outlier_does_not_darken_the_rest(page):
    weights = list(report().weights)
    weights[5] = weight(1, "self_attn.k", -200.0)
    scale = data(page(report(weights=tuple(weights))), "map-figure")["data"][0]
    assert -30 < scale["zmin"] < 21 < 32 < scale["zmax"] < 40


def test_stacks_that_are_both_numbered_from_zero_have_rows_of_their_own(page):
    other = [weight(b, "ffn.0", 15.0, name=f"vace_blocks.{b}.ffn.0.weight") for b in (0, 1)]
    heat = data(page(report(weights=(*report().weights, *other))), "map-figure")["data"][0]
    assert heat["y"] == [*(f"blocks.*.{module}" for module in MODULES), "vace_blocks.*.ffn.0"]
    assert heat["z"][4][:2] == [15.0, 15.0]
    assert heat["z"][2][0] == pytest.approx(32 - 2 / 7)


def test_the_page_says_what_was_made_by_what_and_when(page):
    made = report(recipe={"quantization": {"method": "<int8>"}}, written_by="acme 1.2", finished="2026-01-02 03:04")
    text = page(made)
    assert "&lt;int8&gt;" in text
    assert "<dd><code>acme 1.2</code></dd>" in text
    assert "2026-01-02 03:04" in text


def test_two_conversions_side_by_side(tmp_path):
    better = [replace(w, sqnr_db=w.sqnr_db + 6, relative_error=w.relative_error / 2) for w in report().weights]
    path = tmp_path / "both.html"
    write_html(report(), path, compare=report(output="/models/wan_better", weights=tuple(better[:-1])))
    text = path.read_text()
    assert "wan_mixed and wan_better: compared" in text
    heat = data(text, "map-figure")["data"][0]
    assert heat["z"][0][0] == pytest.approx(6)
    assert heat["z"][3][4] is None  # the second does not have it
    assert heat["zmin"] == -heat["zmax"]
    rows = data(text, "weights-rows")["rows"]
    assert rows[0]["texts"][5] == "0.500"
    assert rows[-1]["texts"][4:6] == ["", ""]


def test_a_page_replaces_a_page_and_nothing_else(page, tmp_path):
    page(report())
    page(report())
    weights = tmp_path / "wan.safetensors"
    weights.write_bytes(b"weights")
    with pytest.raises(ConverterError, match=r"wan\.safetensors: is there already and is no page"):
        write_html(report(), weights)
    assert weights.read_bytes() == b"weights"


def test_two_runs_write_the_same_page(page):
    assert page(report()) == page(report(seconds=7.0))


def test_without_plotly_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ConverterError, match=r'pip install "model-converter\[report\]"'):
        write_html(report(), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ConverterError, match="cannot be written"):
        write_html(report(), tmp_path / "nowhere" / "page.html")


PROBE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const names = () => [...document.querySelectorAll("#weights tbody tr")]
    .filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  const found = { errors: window.errors, fetched: performance.getEntriesByType("resource").map((entry) => entry.name) };
  found.cells = document.querySelectorAll("#map .heatmaplayer image").length;
  found.marks = [...document.querySelectorAll("#map text")].filter((text) => text.textContent === "✕").length;
  found.bars = document.querySelectorAll("#histogram .bars .point").length;
  found.segments = document.querySelectorAll("#sizes .bars .point").length;
  const [sqnr, apart] = document.querySelectorAll(".views button");
  apart.click();
  const shown = document.getElementById("map").data[0].z;
  found.apart = [shown[0][0], shown[0][2]];
  found.pressed = [sqnr, apart].map((button) => button.getAttribute("aria-pressed"));
  found.first = names();
  const head = [...document.querySelectorAll("th button")].find((button) => button.textContent === "SQNR, dB");
  head.click();
  found.descending = names();
  head.click();
  found.ascending = names();
  found.sorted = head.parentNode.getAttribute("aria-sort");
  const search = document.querySelector("#weights input");
  search.value = "FFN.2 nvfp4";
  search.dispatchEvent(new Event("input"));
  found.filtered = names();
  found.text = getComputedStyle(document.body).color;
  found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  found.injected = document.querySelectorAll("b[onclick]").length;
  const said = document.createElement("pre");
  said.id = "found";
  said.textContent = JSON.stringify(found);
  document.body.append(said);
}, 300));
</script></body>"""
CATCH = "<head><script>window.errors = []; window.onerror = (text) => { window.errors.push(text); };</script>"


def looked_at(folder, report, dark):
    path = Path(folder) / "page.html"
    write_html(report, path)
    path.write_text(path.read_text().replace("<head>", CATCH, 1).replace("</body>", PROBE))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1320,1400"]
    command += ["--virtual-time-budget=6000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_without_a_network(tmp_path, dark):
    shown = bad_report()
    found = looked_at(tmp_path, shown, dark)
    assert found["errors"] == []
    assert found["fetched"] == []
    assert found["injected"] == 0
    assert not found["wide"]
    assert found["cells"] == 1
    assert found["marks"] == 1
    assert found["bars"] > 3
    assert found["segments"] == 6
    usual = median(weight.sqnr_db for weight in shown.weights if weight.format == "fp8")
    assert found["apart"][0] == pytest.approx(shown.weights[0].sqnr_db - usual)
    finite = [w.sqnr_db for w in shown.weights if w.format == "nvfp4" and w.sqnr_db < float("inf")]
    assert found["apart"][1] == pytest.approx(shown.weights[8].sqnr_db - median(finite))
    assert found["pressed"] == ["false", "true"]
    by_error = sorted(shown.weights, key=lambda weight: -weight.relative_error)
    assert found["first"] == [weight.name for weight in by_error]
    by_sqnr = [weight.name for weight in sorted(shown.weights, key=lambda weight: -weight.sqnr_db)]
    assert found["descending"] == by_sqnr
    assert found["ascending"] == by_sqnr[::-1]
    assert found["sorted"] == "ascending"
    assert sorted(found["filtered"]) == [f"blocks.{block}.ffn.2.weight" for block in (1, 2, 3)]
    brightness = sum(map(int, re.findall(r"\d+", found["text"])[:3])) / 3
    assert (brightness > 128) == dark
