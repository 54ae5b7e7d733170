"use strict";
// Draws the page from the data in it. Names of tensors are data of unknown origin: they reach the page as text
// nodes, or escaped in labels of charts.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const WRITE = "#d55e00", READ = "#332288", AWAY = "#e8eaee", STALL = "#111827", BUDGET = "#b91c1c", INK = "#16202e";
  const FONT = getComputedStyle(document.body).fontFamily;
  const CONFIG = { displayModeBar: false, responsive: true };
  const ROW_HEIGHT = 24, FIRST_ROWS = 30, MOST_ROWS = 400;

  // ---------------------------------------------------------------- texts

  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function size(bytes) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (Math.abs(bytes) >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
    return `${unit ? bytes.toFixed(bytes < 10 ? 2 : 1) : bytes} ${units[unit]}`;
  }

  function duration(seconds) {
    for (const [factor, unit] of [[1, "s"], [1e3, "ms"], [1e6, "us"]]) {
      if (seconds * factor >= 1 || unit === "us") return `${(seconds * factor).toPrecision(3)} ${unit}`;
    }
  }

  // Axes count in one unit each, fitting the largest value.
  const timeUnit = data.iteration_s >= 2 ? ["s", 1] : data.iteration_s >= 2e-3 ? ["ms", 1e3] : ["us", 1e6];
  const inUnit = (seconds) => seconds * timeUnit[1];
  function sizeUnit(most) {
    for (const [unit, shift] of [["GiB", 30], ["MiB", 20], ["KiB", 10]]) {
      if (most >= 2 * 2 ** shift) return [unit, 2 ** shift];
    }
    return ["B", 1];
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function legend(id, entries) {
    for (const [title, colour, mark] of entries) {
      const entry = element("span");
      const sample = element("i", mark);
      if (mark === "line") sample.style.borderColor = colour; else sample.style.background = colour;
      entry.append(sample, title);
      byId(id).append(entry);
    }
  }

  // ---------------------------------------------------------------- charts

  const axis = (more) => ({
    gridcolor: "#eceff3", zerolinecolor: "#d5dae1", linecolor: "#c6ccd5", ticks: "outside", tickcolor: "#c6ccd5",
    ticklen: 4, automargin: true, ...more,
  });
  const layout = (more) => ({
    font: { family: FONT, size: 13, color: INK }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "#ffffff",
    margin: { l: 80, r: 24, t: 28, b: 48 },
    hoverlabel: { font: { family: FONT, size: 13, color: INK }, bgcolor: "#ffffff", bordercolor: "#c6ccd5", align: "left" },
    showlegend: false, dragmode: "zoom", ...more,
  });
  const timeAxis = (more) => axis({
    title: { text: `time in the iteration (${timeUnit[0]})`, standoff: 8 },
    range: [0, inUnit(Math.max(data.iteration_s, data.ideal_s))],
    hoverformat: ".4~g", unifiedhovertitle: { text: `at %{x:.4~g} ${timeUnit[0]}` }, ...more,
  });

  // Charts over the same time zoom together.
  const linked = [];
  let following = false;
  function link(chart) {
    linked.push(chart);
    chart.on("plotly_relayout", async (change) => {
      if (following) return;
      const keys = Object.keys(change).filter((key) => /^xaxis\d*\.(range|autorange)/.test(key));
      if (!keys.length) return;
      following = true;
      const range = change["xaxis.autorange"] ? [0, inUnit(Math.max(data.iteration_s, data.ideal_s))]
        : chart.layout.xaxis.range.slice();
      await Promise.all(linked.map((other) => Plotly.relayout(other, { "xaxis.range": range.slice() })));
      following = false;
    });
  }

  function memoryTraces(curves, unit, row) {
    const time = curves.time.map(inUnit);
    const totals = curves.time.map((_, i) => curves.memory.reduce((sum, values) => sum + values[i], 0));
    const order = [7, 0, 2, 1, 3, 4, 5, 6];  // what stays the longest at the bottom
    const traces = order.filter((i) => curves.memory[i].some((value) => value > 0)).map((i) => ({
      x: time, y: curves.memory[i].map((value) => value / unit[1]), type: "scatter", mode: "lines",
      stackgroup: `memory${row}`, line: { width: 0, shape: "hv" }, fillcolor: data.rows[i].colour, name: data.rows[i].title,
      yaxis: row ? "y2" : "y", hovertemplate: `${data.rows[i].title}: %{customdata}<extra></extra>`,
      customdata: curves.memory[i].map(size),
    }));
    traces.push({
      x: time, y: totals.map((value) => value / unit[1]), type: "scatter", mode: "lines", name: "all",
      line: { width: 1, color: INK, shape: "hv" }, yaxis: row ? "y2" : "y",
      customdata: totals.map((value, i) => [size(value), escaped(curves.ops[i])]),
      hovertemplate: "<b>%{customdata[0]}</b>  %{customdata[1]}<extra></extra>",
    });
    return [traces, Math.max(...totals)];
  }

  function phaseBands(phases, yref) {
    const bands = phases.map(([, start, end, colour]) => ({
      type: "rect", xref: "x", yref: `${yref} domain`, x0: inUnit(start), x1: inUnit(end), y0: 0, y1: 1,
      fillcolor: colour, line: { width: 0 }, layer: "below",
    }));
    const longest = {};
    for (const phase of phases) {
      if (!longest[phase[0]] || phase[2] - phase[1] > longest[phase[0]][2] - longest[phase[0]][1]) longest[phase[0]] = phase;
    }
    const whole = Math.max(data.iteration_s, data.ideal_s);
    const labels = Object.values(longest).filter(([, start, end]) => end - start > 0.05 * whole).map(([name, start, end]) => ({
      xref: "x", yref: `${yref} domain`, x: inUnit((start + end) / 2), y: 1, yanchor: "bottom", showarrow: false,
      text: name, font: { size: 12, color: "#5a6675" },
    }));
    return [bands, labels];
  }

  function drawMemory() {
    const both = data.after !== null;
    const most = Math.max(...data.before.time.map((_, i) => data.before.memory.reduce((sum, row) => sum + row[i], 0)));
    const unit = sizeUnit(most);
    const [before, peakBefore] = memoryTraces(data.before, unit, 0);
    const [shapes, labels] = phaseBands(data.before.phases, "y");
    const traces = before;
    const top = 1.06 * Math.max(peakBefore, data.budget || 0) / unit[1];
    const yAxis = (title, more) => axis({ title: { text: `${title} (${unit[0]})`, standoff: 10 }, range: [0, top], ...more });
    const more = { yaxis: yAxis(both ? "without a limit" : "memory", { domain: both ? [0.54, 1] : [0, 1] }) };
    if (both) {
      const [after] = memoryTraces(data.after, unit, 1);
      traces.push(...after);
      const [bands, names] = phaseBands(data.after.phases, "y2");
      shapes.push(...bands);
      labels.push(...names);
      more.yaxis2 = yAxis("with the plan", { domain: [0, 0.46] });
    }
    if (data.budget !== null) {
      for (const yref of both ? ["y", "y2"] : ["y"]) {
        shapes.push({
          type: "line", xref: "paper", yref, x0: 0, x1: 1, y0: data.budget / unit[1], y1: data.budget / unit[1],
          line: { color: BUDGET, width: 2, dash: "dash" },
        });
      }
    }
    byId("memory-lead").textContent = both
      ? "What each op holds in memory, without a limit and with the plan. Drag to zoom; all charts over time follow. Double-click to see everything."
      : "What each op holds in memory. Drag to zoom; all charts over time follow. Double-click to see everything.";
    const shown = data.rows.filter((_, i) => data.before.memory[i].some((value) => value > 0));
    legend("memory-legend", [
      ...shown.map((row) => [row.title, row.colour]), ...(data.budget === null ? [] : [["budget", BUDGET, "line"]]),
    ]);
    return Plotly.newPlot("memory", traces, layout({
      height: both ? 620 : 380, hovermode: "x unified", shapes, annotations: labels,
      xaxis: timeAxis({ anchor: both ? "y2" : "y" }), ...more,
    }), CONFIG).then(link);
  }

  function drawChannels() {
    if (!data.channels.length) { byId("channels-card").hidden = true; return undefined; }
    const n = data.channels[0].rates.length;
    const edges = Array.from({ length: n + 1 }, (_, i) => inUnit(data.iteration_s * i / n));
    const traces = [], shapes = [], annotations = [], axes = {};
    const gap = 0.09, height = (1 - gap * (data.channels.length - 1)) / data.channels.length;
    data.channels.forEach((channel, i) => {
      const suffix = i ? String(i + 1) : "";
      const top = 1 - i * (height + gap);
      const values = channel.rates.map((rate) => rate / 1e9);
      traces.push({
        x: edges, y: [...values, values[n - 1]], type: "scatter", mode: "lines", line: { width: 0, shape: "hv" },
        fill: "tozeroy", fillcolor: channel.write ? WRITE : READ, yaxis: `y${suffix}`,
        hovertemplate: `${escaped(channel.title)}: %{y:.2f} GB/s<extra></extra>`,
      });
      const limit = channel.limit / 1e9;
      axes[`yaxis${suffix}`] = axis({
        title: { text: `${escaped(channel.title)}<br>(GB/s)`, standoff: 10 }, domain: [Math.max(0, top - height), top], rangemode: "tozero",
        range: [0, 1.12 * Math.max(limit, ...values)], nticks: 4,
      });
      shapes.push({
        type: "line", xref: "paper", yref: `y${suffix}`, x0: 0, x1: 1, y0: limit, y1: limit, line: { color: "#8a8f98", width: 1, dash: "dot" },
      });
      annotations.push({
        xref: "paper", yref: `y${suffix}`, x: 1, y: limit, xanchor: "right", yanchor: "bottom", showarrow: false,
        text: `alone at most ${limit.toFixed(1)} GB/s`, font: { size: 11, color: "#5a6675" }, bgcolor: "rgba(255, 255, 255, 0.8)",
      });
    });
    for (const [start, end] of data.stalls.spans) {
      shapes.push({
        type: "rect", xref: "x", yref: "paper", x0: inUnit(start), x1: inUnit(end), y0: 0, y1: 1,
        fillcolor: STALL, opacity: 0.16, line: { width: 0 }, layer: "below",
      });
    }
    const stalled = data.stalls.total_s;
    byId("channels-lead").textContent = `${data.binds || ""} ` + (stalled > 0
      ? `The device waits ${duration(stalled)} of the iteration, ${(100 * stalled / data.iteration_s).toFixed(1)} %: the grey stretches.`
      : "The device never waits.");
    drawStalls();
    return Plotly.newPlot("channels", traces, layout({
      height: 130 + 110 * data.channels.length, hovermode: "x", shapes, annotations,
      xaxis: timeAxis({ anchor: `y${data.channels.length > 1 ? data.channels.length : ""}` }), ...axes,
    }), CONFIG).then(link);
  }

  function drawStalls() {
    const table = byId("stalls");
    if (!data.stalls.longest.length) { table.hidden = true; return; }
    table.append(element("caption", "", "Longest stalls"));
    const head = element("tr");
    for (const [title, figure] of [["before op", 1], ["", 0], ["in module", 0], ["waits for", 0], ["of", 0], ["time", 1]]) {
      head.append(element("th", figure ? "figure" : "", title));
    }
    table.append(head);
    for (const stall of data.stalls.longest) {
      const row = element("tr");
      row.append(
        element("td", "figure", stall.op), element("td", "", stall.name), element("td", "", stall.module),
        element("td", "", stall.waits_for), element("td", "", stall.storage), element("td", "figure", duration(stall.seconds)),
      );
      table.append(row);
    }
  }

  // ---------------------------------------------------------------- lifetimes

  const [NAME, KIND, BYTES, LIFE, USES, WRITING, AWAY_SPANS, READING] = [0, 1, 2, 3, 4, 5, 6, 7];
  const hiddenKinds = new Set();
  let rowsWanted = FIRST_ROWS;

  function matches() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    return data.storages.listed.filter((storage) => !hiddenKinds.has(storage[KIND])
      && words.every((word) => storage[NAME].toLowerCase().includes(word)));
  }

  // What is left of a span when others are cut out of it.
  function without(span, holes) {
    let parts = [span];
    for (const [from, to] of holes) {
      parts = parts.flatMap(([start, end]) => [[start, Math.min(end, from)], [Math.max(start, to), end]])
        .filter(([start, end]) => end > start);
    }
    return parts;
  }

  function bars(rows, spansOf, colourOf, width, what) {
    const trace = {
      type: "bar", orientation: "h", base: [], x: [], y: [], width, marker: { color: [], line: { width: 0 } }, customdata: [],
      hovertemplate: `%{customdata}<extra></extra>`,
    };
    rows.forEach((storage, row) => {
      for (const [start, end] of spansOf(storage)) {
        trace.base.push(inUnit(start));
        trace.x.push(inUnit(end - start));
        trace.y.push(row);
        trace.marker.color.push(colourOf(storage));
        trace.customdata.push(`<b>${escaped(storage[NAME])}</b><br>${escaped(data.rows[storage[KIND]].title)}, ${size(storage[BYTES])}`
          + `<br>${what} from ${duration(start)} to ${duration(end)}`);
      }
    });
    return trace;
  }

  function useMarks(rows) {
    const trace = {
      type: "scatter", mode: "markers", x: [], y: [], hoverinfo: "skip",
      marker: { symbol: "line-ns", size: 13, line: { width: 1, color: INK } },
    };
    rows.forEach((storage, row) => {
      for (const time of storage[USES]) { trace.x.push(inUnit(time)); trace.y.push(row); }
    });
    return trace;
  }

  function label(name) {
    const most = window.innerWidth > 1500 ? 58 : 42;
    return escaped(name.length > most ? `...${name.slice(3 - most)}` : name);
  }

  function drawLifetimes() {
    const found = matches();
    const rows = found.slice(0, rowsWanted);
    const listed = data.storages.listed.length;
    byId("found").textContent = `${found.length.toLocaleString("en")} of ${listed.toLocaleString("en")} storages`
      + (rows.length < found.length ? `, the ${rows.length} largest shown` : "")
      + (listed < data.storages.all ? ` (${(data.storages.all - listed).toLocaleString("en")} smaller ones are not in this page)` : "");
    byId("more").hidden = rows.length >= found.length || rows.length >= MOST_ROWS;
    const colour = (storage) => data.rows[storage[KIND]].colour;
    const inMemory = (storage) => without(storage[LIFE], storage[AWAY_SPANS]);
    const traces = [
      bars(rows, (storage) => storage[AWAY_SPANS], () => AWAY, 0.34, "away"),
      bars(rows, inMemory, colour, 0.62, "in memory"),
      bars(rows, (storage) => storage[WRITING], () => WRITE, 0.62, "leaving"),
      bars(rows, (storage) => storage[READING], () => READ, 0.62, "coming back"),
      useMarks(rows),
    ];
    const current = linked.length ? linked[0].layout.xaxis.range.slice() : undefined;
    const chart = byId("lifetimes");
    const first = !chart.layout;
    const drawn = Plotly.react(chart, traces, layout({
      height: 54 + ROW_HEIGHT * Math.max(1, rows.length), barmode: "overlay", hovermode: "closest", bargap: 0,
      margin: { l: 80, r: 24, t: 44, b: 10 },
      xaxis: timeAxis({ ...(current ? { range: current } : {}), side: "top", title: { text: `time in the iteration (${timeUnit[0]})`, standoff: 4 } }),
      yaxis: axis({
        tickvals: rows.map((_, i) => i), ticktext: rows.map((storage) => label(storage[NAME])), range: [rows.length - 0.5, -0.5],
        fixedrange: true, gridcolor: "rgba(0,0,0,0)", zeroline: false, ticks: "", tickfont: { size: 12 },
      }),
    }), CONFIG);
    return first ? drawn.then(link) : drawn;
  }

  function prepareLifetimes() {
    const moves = data.after !== null;
    byId("lifetimes-lead").textContent = "The largest storages, one line each: when they are in memory"
      + (moves ? ", leave, are away, and come back." : " and when ops use them.");
    legend("lifetimes-legend", [
      ...(moves ? [["leaving", WRITE], ["away", AWAY], ["coming back", READ]] : []), ["used by an op", INK, "tick"],
    ]);
    for (let kind = 0; kind < data.kinds; kind += 1) {
      if (!data.storages.listed.some((storage) => storage[KIND] === kind)) continue;
      const chip = element("button");
      const sample = element("i");
      sample.style.background = data.rows[kind].colour;
      chip.append(sample, data.rows[kind].title);
      chip.type = "button";
      chip.setAttribute("aria-pressed", "true");
      chip.addEventListener("click", () => {
        if (!hiddenKinds.delete(kind)) hiddenKinds.add(kind);
        chip.setAttribute("aria-pressed", String(!hiddenKinds.has(kind)));
        drawLifetimes();
      });
      byId("kinds").append(chip);
    }
    let waiting = 0;
    byId("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { rowsWanted = FIRST_ROWS; drawLifetimes(); }, 120);
    });
    byId("more").addEventListener("click", () => { rowsWanted = Math.min(MOST_ROWS, rowsWanted * 2); drawLifetimes(); });
  }

  // ---------------------------------------------------------------- measured, sizes

  function drawMeasured() {
    const measured = data.measured;
    if (!measured) { byId("measured-card").hidden = true; return undefined; }
    const ops = measured.duration_s.map((seconds, i) => Math.max(0, seconds - measured.stall_s[i]));
    const colours = measured.profile.map((profile) => (profile ? "#c4c8ce" : "#56b4e9"));
    const about = measured.iteration.map((_, i) => `${duration(measured.duration_s[i])}${measured.profile[i] ? ", profiling" : ""}`
      + `<br>stall ${duration(measured.stall_s[i])}${measured.longest[i] ? `, the longest ${escaped(measured.longest[i])}` : ""}<br>peak ${size(measured.peak[i])}`
      + `<br>written ${size(measured.written[i])}, read ${size(measured.read[i])}<br>drift ${measured.drift[i]} ops`);
    const traces = [
      { type: "bar", x: measured.iteration, y: ops, marker: { color: colours }, name: "ops", customdata: about,
        hovertemplate: "iteration %{x}: %{customdata}<extra></extra>" },
      { type: "bar", x: measured.iteration, y: measured.stall_s, marker: { color: STALL }, name: "stall", hoverinfo: "skip" },
    ];
    const shapes = [], annotations = [];
    const lines = [["predicted", measured.predicted_s, WRITE], ["ideal", measured.plan_ideal_s, "#009e73"]].filter(([, value]) => value !== null);
    const most = Math.max(...measured.duration_s, ...lines.map(([, value]) => value));
    let lowest = Infinity;
    for (const [name, value, colour] of lines.sort((a, b) => b[1] - a[1])) {
      shapes.push({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: value, y1: value, line: { color: colour, width: 2, dash: "dash" } });
      const at = Math.min(value, lowest - 0.07 * most);  // labels of near lines don't overlap
      lowest = at;
      annotations.push({ xref: "paper", yref: "y", x: 1, y: at, xanchor: "left", xshift: 8, showarrow: false, align: "left",
        text: `${name} ${duration(value)}`, font: { size: 12, color: colour } });
    }
    byId("measured-lead").textContent = "Each iteration as it was measured; the dark part is waiting for data to move."
      + (measured.profile.some(Boolean) ? " Grey iterations were profiled, with everything moved on demand." : "");
    return Plotly.newPlot("measured", traces, layout({
      height: 340, barmode: "stack", bargap: 0.25, shapes, annotations, hovermode: "closest", margin: { l: 80, r: 150, t: 20, b: 48 },
      xaxis: axis({ title: { text: "iteration", standoff: 8 }, tickformat: "d", gridcolor: "rgba(0,0,0,0)" }),
      yaxis: axis({ title: { text: "time (s)", standoff: 10 }, rangemode: "tozero" }),
    }), CONFIG);
  }

  function drawSizes() {
    const names = data.sizes.map(([from, below]) => (below === null ? `from ${size(from)}` : from ? `${size(from)} to ${size(below)}` : `below ${size(below)}`));
    const whole = data.sizes.reduce((sum, entry) => sum + entry[3], 0);
    return Plotly.newPlot("sizes", [{
      type: "bar", orientation: "h", y: names, x: data.sizes.map((entry) => 100 * entry[3] / whole), marker: { color: "#56b4e9" },
      text: data.sizes.map((entry) => `${size(entry[3])} in ${entry[2].toLocaleString("en")} storages`), textposition: data.sizes.map((entry) => (entry[3] > 0.6 * whole ? "inside" : "outside")),
      hovertemplate: "%{y}: %{text}<extra></extra>", cliponaxis: false,
    }], layout({
      height: 80 + 36 * names.length, margin: { l: 80, r: 24, t: 8, b: 48 }, bargap: 0.3,
      xaxis: axis({ title: { text: "share of all bytes (%)", standoff: 8 }, range: [0, 105] }),
      yaxis: axis({ autorange: "reversed", ticks: "", gridcolor: "rgba(0,0,0,0)" }),
    }), CONFIG);
  }

  // ---------------------------------------------------------------- telemetry

  function showTelemetry() {
    const told = data.telemetry;
    if (!told) { byId("telemetry-card").hidden = true; return; }
    const words = 2;  // the first columns; the others are figures
    const row = (tag, cells) => {
      const made = element("tr");
      made.append(...cells.map((cell, i) => element(tag, i < words ? "" : "figure", cell)));
      return made;
    };
    byId("telemetry-lead").textContent = `${told.lead}; what drives and a GPU do for other programs is counted too.`;
    byId("telemetry").append(row("th", told.heads), ...told.rows.map((cells) => row("td", cells)));
    byId("telemetry").hidden = !told.rows.length;
    byId("telemetry-missing").textContent = told.missing.join("; ");
  }

  // ---------------------------------------------------------------- the page

  byId("title").textContent = data.title;
  byId("subtitle").textContent = data.subtitle;
  byId("mark").textContent = `teraio ${data.version}`;
  for (const tile of data.tiles) {
    const made = element("div", "tile");
    made.append(element("div", "label", tile.label), element("div", "value", tile.value), element("div", "note", tile.note));
    byId("tiles").append(made);
  }
  prepareLifetimes();
  showTelemetry();
  Promise.resolve()
    .then(drawMemory).then(drawChannels).then(drawLifetimes).then(drawMeasured).then(drawSizes)
    .then(() => { document.body.dataset.ready = "true"; });
})();
