"""The page in a real browser: a headless Chromium that measures it and says what it met."""

import base64
import json
import re
import shutil
import subprocess

import pytest

from airtune.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path (apt install chromium)"),
]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--allow-file-access-from-files",
    "--enable-logging=stderr", "--virtual-time-budget=6000",
)  # fmt: skip

PROBE = """
const slider = document.getElementById("round");
slider.value = 2;
slider.dispatchEvent(new Event("input"));
const search = document.getElementById("search");
search.value = "refused";
search.dispatchEvent(new Event("input"));
const tabs = document.querySelectorAll("[data-tab]");
tabs[tabs.length - 1].click();
const style = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
const beyond = [...document.querySelectorAll("main *")].filter((item) =>
  !item.closest(".scroll") && !item.closest("svg") && item.getBoundingClientRect().right > innerWidth + 1);
const cells = (row) => [...row.cells].slice(2, 4).map((cell) => cell.textContent);
const result = {
  heads: cells(document.querySelector("table.reasons tr")), chosen: cells(document.querySelector("#reason-rows tr") || { cells: [] }),
  width: innerWidth, scroll: document.documentElement.scrollWidth, beyond: beyond.map((i) => i.outerHTML.slice(0, 80)),
  shown: [...document.querySelectorAll(".plot")].filter((place) => place.offsetParent).length,
  drawn: [...document.querySelectorAll(".plot")].filter((place) => place.offsetParent && place.querySelector(".main-svg")).length,
  bars: document.querySelectorAll("#timeline .bars .point").length,
  label: document.getElementById("round-label").textContent,
  found: document.querySelectorAll("#reason-rows tr").length,
  images: document.querySelectorAll("img").length,
  back: style("body", "backgroundColor"), ink: style("body", "color"),
  tick: style("#timeline .xtick text", "fill"), line: getComputedStyle([...document.querySelectorAll(".js-line")].find((i) => parseFloat(i.style.strokeWidth) > 1)).stroke,
  size: parseFloat(style(".assumed", "fontSize")),
};
document.body.innerHTML = `<pre id="probe">${btoa(JSON.stringify(result).replace(/[^\\x20-\\x7e]/g, "?"))}</pre>`;
"""


def look(page, folder, *, width, flags=()):
    """Open a page, return what the probe measured and the lines of its console."""
    (folder / "probed.html").write_text(
        page.read_text().replace("</body>", f"<script>{PROBE}</script></body>")
    )
    # a window is never narrower than 500 pixels, but a frame may be
    (folder / "frame.html").write_text(
        f'<iframe id="frame" width="{width}" height="900" style="border:0" src="probed.html">'
        "</iframe><script>frame.onload = () => {"
        "document.body.innerHTML = frame.contentDocument.body.innerHTML }</script>"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            *flags,
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            f"--window-size={width + 100},900",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="probe">([^<]+)</pre>', done.stdout)
    assert found, (console, done.stdout[-300:])
    return json.loads(base64.b64decode(found.group(1))), console


def test_a_comparison_reads_well_on_a_phone(comparison, tmp_path):
    page = write_report([comparison], tmp_path)
    seen, console = look(page, tmp_path, width=380)
    assert console == []
    assert seen["width"] == 380
    assert seen["scroll"] <= 380, seen["beyond"]
    assert seen["beyond"] == []
    assert seen["drawn"] == seen["shown"] == 8
    assert seen["size"] >= 12


def test_a_run_draws_its_charts_and_answers_in_either_scheme(build_run, tmp_path):
    page = write_report([build_run(prefix="<img src=x onerror=alert(1)>")], tmp_path / "out")
    light, console = look(page, tmp_path, width=1280)
    dark, more = look(
        page, tmp_path, width=1280, flags=("--blink-settings=preferredColorScheme=0",)
    )
    assert console + more == []
    for seen in (light, dark):
        assert seen["drawn"] == seen["shown"] == 8
        assert seen["bars"] == 36
        assert seen["label"].startswith("Round 2 ")
        assert seen["found"] == 1
        assert seen["images"] == 0
        assert seen["heads"] == ["Pruned", "Rank"]
        assert seen["scroll"] <= 1280
        assert contrast(seen["ink"], seen["back"]) >= 7.0
        assert contrast(seen["tick"], seen["back"]) >= 4.5
    for name in ("back", "ink", "tick", "line"):
        assert light[name] != dark[name], name


def test_a_bandit_reads_well_on_a_phone_in_the_dark(bandits, tmp_path):
    page = write_report([bandits], tmp_path)
    dark = ("--blink-settings=preferredColorScheme=0",)
    seen, console = look(page, tmp_path, width=380, flags=dark)
    assert console == []
    assert seen["scroll"] <= 380, seen["beyond"]
    assert seen["beyond"] == []
    # two curves, timeline, decisions, the square of one group, three lines below it, the gain
    assert seen["drawn"] == seen["shown"] == 9
    assert contrast(seen["tick"], seen["back"]) >= 4.5


def test_a_split_reads_well_on_a_phone(build_split, tmp_path):
    page = write_report([build_split(devices=6, rounds=6)], tmp_path / "out")
    seen, console = look(page, tmp_path, width=380)
    assert console == []
    assert seen["scroll"] <= 380, seen["beyond"]
    assert seen["beyond"] == []
    assert seen["drawn"] == seen["shown"]
    assert (seen["heads"], seen["chosen"]) == (["Cut", "Codec"], ["1", "deadzone 0.75"])
    assert contrast(seen["tick"], seen["back"]) >= 4.5


def contrast(ink, paper):
    """The contrast ratio of two colours, by WCAG 2."""

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)
