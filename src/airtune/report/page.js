"use strict";
(() => {
  const { figures, runs } = JSON.parse(document.getElementById("records").textContent);
  const byName = Object.fromEntries(runs.map((run) => [run.name, run]));
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };
  const touch = window.matchMedia("(hover: none)").matches;
  const one = (id) => document.getElementById(id);
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

  // A figure names its colours as CSS variables; "var(--c1) 16%" is one with opacity.
  function resolve(value, styles) {
    if (Array.isArray(value)) return value.map((item) => resolve(item, styles));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, styles)]));
    }
    const found = typeof value === "string" && /^var\((--[\w-]+)\)(?: (\d+)%)?$/.exec(value);
    if (!found) return value;
    const colour = styles.getPropertyValue(found[1]).trim();
    if (!found[2]) return colour;
    const [r, g, b] = colour.match(/\w\w/g).map((pair) => parseInt(pair, 16));
    return `rgba(${r},${g},${b},${found[2] / 100})`;
  }

  function draw(place, figure) {
    const { data, layout } = resolve(figure, getComputedStyle(document.documentElement));
    layout.dragmode = touch ? false : "zoom";
    if (place.clientWidth < 480) {
      layout.font.size = 11;
      for (const trace of data) if (trace.colorbar) trace.colorbar.thickness = 7;
    }
    Plotly.react(place, data, layout, config);
  }

  const visible = (place) => place.offsetParent !== null;
  function drawAll() {
    for (const place of document.querySelectorAll("[data-figure]")) {
      if (visible(place)) draw(place, figures[place.dataset.figure]);
    }
    if (runs.length) drawRound();
  }

  const seconds = (value) =>
    value === null ? "–" : value >= 100 ? `${value.toFixed(0)} s` : value >= 1 ? `${value.toPrecision(3)} s` : `${(1e3 * value).toPrecision(3)} ms`;
  const percent = (value) => (value === null ? "–" : `${+(100 * value).toPrecision(3)} %`);

  let run = runs[0];
  const slider = one("round");
  const chosen = () => run.rounds[+slider.value];

  function timeline(round) {
    const longest = Math.max(1e-9, ...run.rounds.flatMap((each) => each.finish.filter((v) => v !== null)));
    const [scale, unit] = longest >= 600 ? [60, "min"] : longest >= 1 ? [1, "s"] : [1e-3, "ms"];
    const names = new Map(run.devices.map(([index, name]) => [index, escaped(name)]));
    const y = round.device.map((index) => names.get(index));
    const opacity = round.status.map((status) => (status === "ok" ? 1 : 0.4));
    const base = round.device.map(() => 0);
    const data = ["download", "compute", "upload"].map((phase) => {
      const start = [...base];
      const took = round[phase].map((value) => (value || 0) / scale);
      took.forEach((value, place) => { base[place] += value; });
      return {
        type: "bar", orientation: "h", name: phase, y, x: took, base: start,
        marker: { color: `var(--${phase})`, opacity },
        hovertemplate: `%{y}: ${phase} %{x:.3g} ${unit}<extra></extra>`,
      };
    });
    const notes = round.device.map((index, place) => {
      const state = round.status[place];
      const text = index === round.straggler ? "straggler" : state === "ok" ? "" : state;
      return text && { text, x: base[place], y: y[place], xanchor: "left", showarrow: false, xshift: 4,
        font: { color: index === round.straggler ? "var(--ink)" : "var(--warn)", size: 11 } };
    }).filter(Boolean);
    return { data, layout: {
      height: 100 + Math.max(16, Math.min(26, 900 / run.devices.length)) * run.devices.length,
      barmode: "overlay", bargap: 0.28, annotations: notes,
      margin: { l: 8, r: 14, t: 20, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "var(--sans)", size: 13, color: "var(--ink-soft)" },
      hoverlabel: { bgcolor: "var(--paper)", bordercolor: "var(--line)", font: { color: "var(--ink)" } },
      legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", traceorder: "normal" },
      xaxis: { title: { text: `time since the round began (${unit})`, standoff: 12, font: { size: 12, color: "var(--muted)" } }, range: [0, 1.14 * longest / scale],
        gridcolor: "var(--grid)", zeroline: false, automargin: true },
      yaxis: { type: "category", categoryorder: "array", categoryarray: [...names.values()], range: [run.devices.length - 0.5, -0.5],
        automargin: true, showgrid: false, tickfont: { size: 11 } },
    } };
  }

  function cell(row, text, name) {
    const item = row.insertCell();
    item.textContent = text;
    if (name) item.className = name;
  }

  function reasons() {
    const query = one("search").value.trim().toLowerCase();
    const names = new Map(run.devices);
    const rows = [];
    for (const round of query ? run.rounds : [chosen()]) {
      round.device.forEach((index, place) => {
        const text = `${names.get(index)} ${round.status[place]} ${round.reason[place]}`.toLowerCase();
        if (!query || text.includes(query)) rows.push([round, index, place]);
      });
    }
    const body = one("reason-rows");
    body.replaceChildren();
    for (const [round, index, place] of rows.slice(0, 300)) {
      const row = body.insertRow();
      const status = round.status[place] === "ok" ? "" : ` (${round.status[place]})`;
      cell(row, round.round);
      cell(row, names.get(index) + status, index === round.straggler ? "straggler" : "");
      const cut = round.cut[place];
      cell(row, !run.cuts ? percent(round.pruned[place]) : cut || "–");
      cell(row, !run.cuts ? round.rank[place] : cut ? round.codec[place] : "–");
      cell(row, percent(round.share[place]));
      cell(row, round.reason[place] + (index === round.straggler ? " · straggler" : ""));
    }
    const more = rows.length > 300 ? `, the first 300 shown` : "";
    one("reasons-count").textContent = query ? `· ${rows.length} found in all rounds shown${more}` : `· round ${chosen().round}${more}`;
  }

  function drawRound() {
    const round = chosen();
    draw(one("timeline"), timeline(round));
    const parts = [`Round ${round.round}`, `took ${seconds(round.took)}`];
    if (round.planned !== null) parts.push(`planned ${seconds(round.planned)}`);
    if (round.straggler_name) parts.push(`straggler ${round.straggler_name}`);
    one("round-label").textContent = parts.join(" · ");
    slider.setAttribute("aria-valuetext", `round ${round.round}`);
    reasons();
  }

  function chooseRun(name) {
    run = byName[name];
    slider.max = run.rounds.length - 1;
    slider.value = Math.min(+slider.value, run.rounds.length - 1);
    for (const part of document.querySelectorAll("[data-run]")) part.hidden = part.dataset.run !== name;
    for (const head of document.querySelectorAll("[data-choice]")) {
      head.textContent = (run.cuts ? ["Cut", "Codec"] : ["Pruned", "Rank"])[head.dataset.choice];
    }
    drawAll();
  }

  for (const tab of document.querySelectorAll("[data-tab]")) {
    tab.addEventListener("click", () => {
      const panel = tab.closest(".panel");
      for (const other of panel.querySelectorAll("[data-tab]")) other.setAttribute("aria-selected", other === tab);
      for (const place of panel.querySelectorAll("[data-panel]")) place.hidden = place.dataset.panel !== tab.dataset.tab;
      drawAll();
    });
  }

  if (runs.length) {
    slider.addEventListener("input", drawRound);
    one("search").addEventListener("input", reasons);
    const select = one("run");
    if (select) select.addEventListener("change", () => chooseRun(select.value));
    slider.max = run.rounds.length - 1;
    slider.value = Math.min(1, run.rounds.length - 1);
    chooseRun(run.name);
    for (const place of document.querySelectorAll("#decisions [data-panel]")) {
      const listen = () => place.on("plotly_click", (event) => {
        const wanted = event.points[0].x;
        const distances = run.rounds.map((round) => Math.abs(round.round - wanted));
        slider.value = distances.indexOf(Math.min(...distances));
        drawRound();
      });
      place.addEventListener("pointerenter", () => { if (place.on && !place.dataset.listens) { place.dataset.listens = "yes"; listen(); } });
    }
  } else {
    drawAll();
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  window.matchMedia("print").addEventListener("change", drawAll);
  document.documentElement.dataset.ready = "yes";
})();
