"""Style and script of the page, written into it as they are."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfcf9; --raised: #f6f4ee; --ink: #1f1e1b; --soft: #66635b;
  --rule: #e3dfd5; --accent: #0b5c8f; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --raised: #1f2124; --ink: #e7e4dd; --soft: #a39f95;
  --rule: #34363a; --accent: #7cc0ee; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif; }
main, body > header, body > footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
h1, h2, h3 { font-family: Charter, "Bitstream Charter", "Iowan Old Style", Palatino, "Palatino Linotype", "Noto Serif",
  "Liberation Serif", Georgia, serif; font-weight: 600; line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 2.5rem; margin: 4px 0 12px; letter-spacing: -.01em; }
h2 { font-size: 1.6rem; margin: 0 0 8px; }
h3 { font-size: 1.15rem; margin: 28px 0 6px; }
p { max-width: 70ch; text-wrap: pretty; margin: 0 0 14px; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: .15em; }
.kicker { color: var(--soft); font-size: .85rem; letter-spacing: .04em; margin: 0; }
.lead { font-size: 1.12rem; max-width: 62ch; }
body > header { padding-top: 48px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 14px 28px; margin: 24px 0;
  padding: 18px 0; border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); }
.facts div { min-width: 0; }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; overflow-wrap: anywhere; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 8px; padding: 0;
  font-size: .94rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { padding: 36px 0 12px; }
section + section { border-top: 1px solid var(--rule); }
.note { color: var(--soft); font-size: .92rem; }
.warning { border-left: 3px solid #d55e00; padding-left: 12px; }
.scroll { overflow-x: auto; margin: 16px 0 22px; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible, button:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 2px; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums lining-nums; min-width: 100%; }
caption { text-align: left; color: var(--soft); font-size: .88rem; padding-bottom: 8px; }
caption span { display: block; position: sticky; left: 0; width: fit-content;
  max-width: min(100%, calc(100vw - 32px)); }
th, td { padding: 6px 10px 6px 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 500; color: var(--soft); white-space: nowrap; border-bottom-color: var(--soft); }
tbody th { font-weight: 400; max-width: 42ch; overflow-wrap: anywhere; }
tbody th:not(.short) { min-width: 22ch; }
tbody tr:hover { background: var(--raised); }
th:first-child { position: sticky; left: 0; background: var(--paper); }
tbody tr:hover th:first-child { background: var(--raised); }
.number { text-align: right; white-space: nowrap; }
.short { white-space: nowrap; }
td:not(.number):not(.short) { overflow-wrap: anywhere; min-width: 20ch; }
small { font-size: .82em; color: var(--soft); font-weight: 400; margin-left: .15em; }
strong { font-weight: 700; }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
thead button:hover { color: var(--ink); text-decoration: underline; text-underline-offset: .2em; }
[aria-sort=ascending] button::after { content: " \\2191"; }
[aria-sort=descending] button::after { content: " \\2193"; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 14px 0 6px; padding: 0;
  font-size: .9rem; }
.legend li { display: flex; align-items: baseline; gap: 8px; min-width: 0; overflow-wrap: anywhere; }
.legend i { flex: none; width: 22px; height: 0; border-top: 4px solid; transform: translateY(-.28em); }
.legend i.dash { border-top-style: dashed; } .legend i.dot { border-top-style: dotted; }
.legend i.dashdot { border-top-style: double; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 16px 36px;
  margin: 8px 0 18px; }
.panels.of-3 { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.panels > figure:only-child { grid-column: 1 / -1; max-width: 720px; }
.scale { font-size: .9rem; color: var(--soft); }
.scale i { display: inline-block; width: 140px; height: 8px; margin: 0 6px; vertical-align: .05em; border-radius: 4px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .95rem; font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere; }
.plot { min-height: 290px; width: 100%; }
details { border-top: 1px solid var(--rule); padding: 10px 0; }
details > details { margin-left: 0; }
summary { cursor: pointer; font-weight: 600; padding: 2px 0; overflow-wrap: anywhere; }
details[open] > summary { margin-bottom: 8px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 0 40px; }
.pair > * { min-width: 0; }
pre { background: var(--raised); padding: 14px 16px; overflow-x: auto; font: .84rem/1.5 ui-monospace, SFMono-Regular,
  Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace; margin: 8px 0 18px; border-radius: 4px; }
body > footer { color: var(--soft); font-size: .85rem; padding-top: 20px; padding-bottom: 48px;
  border-top: 1px solid var(--rule); }
@media (max-width: 600px) { main, body > header, body > footer { padding-left: 16px; padding-right: 16px; }
  body > header { padding-top: 28px; } h1 { font-size: 1.9rem; }
  h2 { font-size: 1.4rem; } section { padding-top: 28px; }
  .facts { grid-template-columns: 1fr 1fr; gap: 12px 18px; } tbody th:not(.short) { min-width: 17ch; } }
@media print { nav, .modebar { display: none; } section { break-inside: auto; } figure { break-inside: avoid; } }
"""

SCRIPT = """
(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function axis(own) {
    return Object.assign({ gridcolor: colour("--rule"), linecolor: colour("--rule"), tickcolor: colour("--rule") },
      own);
  }
  function draw(box) {
    var figure = figures[box.id];
    var font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") };
    var layout = Object.assign({}, figure.layout, { font: font, xaxis: axis(figure.layout.xaxis),
      yaxis: axis(figure.layout.yaxis), hoverlabel: { font: { family: font.family } } });
    figure.data.forEach(function (trace) { if (trace.error_y) { trace.error_y.color = colour("--soft"); } });
    Plotly.react(box, JSON.parse(JSON.stringify(figure.data)), JSON.parse(JSON.stringify(layout)),
      { responsive: true, displayModeBar: false });
    box.dataset.drawn = "yes";
  }
  function isShown(box) { return box.offsetParent !== null; }
  function drawShown() { document.querySelectorAll(".plot").forEach(function (box) {
    if (isShown(box) && !box.dataset.drawn) { draw(box); } }); }
  document.querySelectorAll("details").forEach(function (part) { part.addEventListener("toggle", drawShown); });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("#groups details, #inside details").forEach(function (part) { part.open = true; });
    drawShown();
  });
  dark.addEventListener("change", function () { document.querySelectorAll(".plot[data-drawn]").forEach(draw); });

  function sort(table, place, head) {
    var down = head.getAttribute("aria-sort") !== "descending" && head.classList.contains("number") ||
      head.getAttribute("aria-sort") === "ascending";
    var rows = Array.from(table.tBodies[0].rows);
    function value(row) {
      var cell = row.cells[place];
      return cell.dataset.value === undefined ? null : +cell.dataset.value;
    }
    rows.sort(function (a, b) {
      var x = value(a), y = value(b);
      if (x === null && y === null) {
        var order = a.cells[place].textContent.localeCompare(b.cells[place].textContent);
        return down ? -order : order;
      }
      if (x === null || y === null) { return x === null ? 1 : -1; }
      return down ? y - x : x - y;
    });
    table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
  }
  document.querySelectorAll("table[data-sortable]").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (head, place) {
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.title = "sort";
      head.textContent = "";
      head.appendChild(button);
      button.addEventListener("click", function () { sort(table, place, head); });
    });
  });
  drawShown();
})();
"""
