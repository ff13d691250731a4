"""The page in a real browser: headless Chromium draws it without errors and without asking for anything."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_pad.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --disable-dev-shm-usage"
).split()
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"

# Runs in a copy of the page after its own script: opens every part, sorts a table, and writes down what is there.
PROBE = """
<script>
var asked = [], failed = [];
document.addEventListener("securitypolicyviolation", function (e) { failed.push("policy: " + e.blockedURI); });
window.addEventListener("error", function (e) { failed.push("error: " + e.message); });
document.querySelectorAll("details").forEach(function (part) { part.open = true; });
setTimeout(function () {
  var table = document.querySelector("#results table"), sorted = {};
  ["descending", "ascending"].forEach(function (order) {
    table.querySelectorAll("thead button")[3].click();
    sorted[order] = Array.from(table.tBodies[0].rows).map(function (row) { return row.cells[3].dataset.value; });
  });
  var plots = Array.from(document.querySelectorAll(".plot")).map(function (box) {
    var size = box.getBoundingClientRect();
    return { id: box.id, width: size.width, traces: (box._fullData || []).filter(function (trace) {
      return trace.visible === true; }).length,
      marks: box.querySelectorAll(".trace path, .trace .point, .points path").length };
  });
  performance.getEntriesByType("resource").forEach(function (entry) { asked.push(entry.name); });
  var page = document.documentElement, out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify({ plots: plots, asked: asked, failed: failed, sorted: sorted, title: document.title,
    page: page.scrollWidth, screen: page.clientWidth });
  document.body.appendChild(out);
}, 3000);
</script>
"""
# A window is at least some 500 px wide, a frame may be as narrow as a phone.
FRAME = """<!DOCTYPE html><body style="margin:0">
<iframe id="phone" src="probe.html" style="border:0;width:390px;height:800px"></iframe>
<script>setTimeout(function () {
  var out = document.createElement("pre");
  out.id = "probe";
  out.textContent = document.getElementById("phone").contentDocument.getElementById("probe").textContent;
  document.body.appendChild(out);
}, 6000);</script>"""


def run_folder(place: Path, model: str, seed: int) -> Path:
    """A run folder with every part that the page shows, small."""
    metrics = {f"{name}@{k}": 0.1 * seed + k / 1000 for name in ("hit", "ndcg", "mrr") for k in (5, 10, 20)}
    groups = {"all": {"n": 6, **metrics}, "frequency": {"0": {"n": 0}, ">100": {"n": 6, **metrics}}}
    split = {protocol: {**groups, "bins": {"1": {"n": 6, **metrics}}} for protocol in ("masked", "unmasked")}
    space = {"width": 2, "anisotropy": 0.5, "effective_rank": 1.5, "spectrum": [0.75, 0.25]}
    phase = {
        "seconds": 1.0,
        "peak_memory_mb": 10.0,
        "epochs": 2,
        "best_epoch": 1,
        "train_loss": [2.0, 1.0],
        "valid_curve": [[0, 0.1], [1, 0.2]],
        "valid": split,
        "test": split,
        "diagnostics": {
            "n_items": 3,
            "spaces": {"id": space, "text": space, "aligned": space},
            "mmd": {"before": {"gaussian": 0.5}, "after": {"gaussian": 0.25}},
            "kept": {"overlap": 0.5, "tau_target": 0.5, "tau_random": 0.5},
            "gate": {"experts": ["rec", EVIL], "bins": {"1": [1.0, 2.0]}, "shares": {"1": [0.25, 0.75]}},
        },
    }
    item = {"item": "1", "title": EVIL, "n": 5, "frequency": 3, "hit@10": 0.5, "ndcg@10": 0.25}
    content = {
        "model": model,
        "backbone": None,
        "dataset": f"a_rather_long_name_of_a_dataset_{EVIL}",
        "seed": seed,
        "protocol": {"split": {"LS": "valid_and_test"}, "ranking": {"test": "full"}, "valid_metric": "NDCG@10"},
        "phases": {"align": phase, "finetune": phase},
        "items": {"at_least": 5, "best": [item], "hardest": [item]},
    }
    folder = place / f"{model}-{seed}"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "config.yaml").write_text("a_long_key_of_the_settings: " + "x" * 300, encoding="utf-8")
    points = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(folder / "spaces.npz", count=[5, 1, 200], id=points, text=points, aligned=points)
    return folder


def opened(page: Path, *more: str) -> tuple[dict[str, Any], list[str]]:
    """What the probe saw, and what the page's console says."""
    profile = page.parent / f"profile-{page.stem}"
    flags = [*FLAGS, *more, f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(page.parent)},
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>\s*</body>', done.stdout, re.DOTALL)
    assert found, f"the page did not come to its end\n{done.stderr[-3000:]}"
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found.group(1))), console


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    runs = [run_folder(place, model, seed) for model, seed in (("PAD", 1), ("PAD", 2), ("Other", 3))]
    page = write_report(runs, place / "page.html").read_text(encoding="utf-8")
    end = page.rindex("</body>")
    (place / "probe.html").write_text(page[:end] + PROBE + page[end:], encoding="utf-8")
    (place / "phone.html").write_text(FRAME, encoding="utf-8")
    return place


@pytest.mark.parametrize("name", ["probe.html", "phone.html"])
def test_the_page_is_drawn_without_errors_requests_or_a_page_that_scrolls_sideways(folder: Path, name: str):
    more = ["--allow-file-access-from-files"] if name == "phone.html" else ["--window-size=1280,900"]
    seen, console = opened(folder / name, *more)
    assert len(seen["plots"]) == 8 + 4 + 2 * 7  # groups, curves, and inside each of two models
    for plot in seen["plots"]:
        assert plot["traces"] >= 1, plot
        assert plot["marks"] >= 1, plot
        assert 200 < plot["width"] <= seen["screen"], plot
    assert seen["failed"] == []
    assert console == []
    assert seen["asked"] == []
    assert seen["page"] <= seen["screen"]
    assert seen["title"].endswith(": report of recbole-pad")
    descending, ascending = ([float(value) for value in seen["sorted"][order]] for order in ("descending", "ascending"))
    assert ascending == sorted(ascending)
    assert descending == ascending[::-1]
    assert len(set(ascending)) == 2  # two models


@pytest.mark.parametrize("with_policy", [True, False])
def test_the_probe_sees_an_error_and_a_request(folder: Path, with_policy: bool):
    broken = folder / f"broken-{with_policy}.html"
    bad = "<script>missing();</script><img src='https://example.invalid/x.png'>"
    text = (folder / "probe.html").read_text(encoding="utf-8").replace("<main>", "<main>" + bad, 1)
    if not with_policy:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    broken.write_text(text, encoding="utf-8")
    seen, console = opened(broken)
    assert any("missing is not defined" in line for line in console)
    if with_policy:  # the browser refuses the request, and says so
        assert any("example.invalid" in line and "Content Security Policy" in line for line in console)
    else:
        assert any("example.invalid" in address for address in seen["asked"])
