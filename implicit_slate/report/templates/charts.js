// The figures, drawn by plotly.js from the run's cells and curves. The controls above them apply to all figures.

const narrow = matchMedia("(max-width: 40rem)");
const touch = matchMedia("(pointer: coarse)"); // on touch screens, dragging scrolls the page instead of zooming a figure
const view = {
  methods: new Set(Object.keys(data.methods)),
  seeds: new Set(data.cells.map((cell) => cell.seed)),
  setting: narrow.matches || data.settings.length > 12 ? "together" : "apart",
};
data.cells.forEach((cell, i) => (cell.number = i));

let loading;
/** plotly.js; unpacked when the first figure scrolls into view. */
const library = () => (loading ??= unpack(document.getElementById("library").textContent));

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const source = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(make("script", { textContent: source }));
  return window.Plotly;
}

/** A method's colour, lighter in the dark theme; if methods share a colour, each gets its own hue instead. */
function methodColor(name) {
  const names = Object.keys(data.methods);
  const color = data.methods[name].color;
  if (names.some((other) => other !== name && data.methods[other].color === color))
    return `hsl(${(names.indexOf(name) * 137) % 360}, 55%, ${isDark() ? 65 : 42}%)`;
  const mixed = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)).map((c) => (isDark() ? c + (255 - c) * 0.3 : c));
  return `rgb(${mixed.map(Math.round).join()})`;
}

/** The panels of a figure, each with `title`, `key` (a tag or a column) and `cells`. */
function panelsOf(chart) {
  const one = data.settings.includes(view.setting);
  const cells = data.cells.filter(
    (cell) => view.methods.has(cell.method) && view.seeds.has(cell.seed) && (!one || cell.setting === view.setting),
  );
  if (chart.panels === "keys") return chart.keys.map((key) => ({ title: data.names[key], key, cells }));
  const [key] = chart.keys;
  if (one || data.settings.length === 1) return [{ title: one ? view.setting : "", key, cells }];
  if (view.setting === "together") return [{ title: "all settings", key, cells, crowded: true }];
  return data.settings.map((setting) => ({ title: setting, key, cells: cells.filter((cell) => cell.setting === setting) }));
}

const quantile = (values, q) => {
  const sorted = values.toSorted((a, b) => a - b);
  const place = (sorted.length - 1) * q;
  return (sorted[Math.floor(place)] + sorted[Math.ceil(place)]) / 2;
};

/** Quantiles of several curves ([xs, ys]) at each x that at least `fewest` of them have: `at(0)`, `at(0.5)`, `at(1)`. */
function spreadOf(lists, fewest) {
  const byX = new Map();
  for (const [xs, ys] of lists) xs.forEach((x, i) => byX.set(x, [...(byX.get(x) ?? []), ys[i]]));
  const xs = [...byX.keys()].filter((x) => byX.get(x).length >= fewest).sort((a, b) => a - b);
  return { xs, at: (q) => xs.map((x) => quantile(byX.get(x), q)) };
}

/** The traces of a panel of curves: per method a band over its cells, a line for each cell, and often their median. */
function curveTraces(panel, chart) {
  const traces = [];
  const crowded = panel.crowded || chart.panels === "keys" || Object.keys(data.methods).length > 2;
  for (const method of Object.keys(data.methods).reverse()) {
    const cells = panel.cells.filter((cell) => cell.method === method && data.curves[panel.key][cell.number][0].length);
    const lists = cells.map((cell) => data.curves[panel.key][cell.number]);
    const color = methodColor(method);
    const dash = data.methods[method].dash;
    const median = crowded && cells.length > 1;
    const { xs, at } = spreadOf(lists, 2);
    if (xs.length > 1) {
      const edge = { x: xs, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
      const fill = { fill: "tonexty", fillcolor: color.replace("rgb(", "rgba(").replace("hsl(", "hsla(").replace(")", ", 0.15)") };
      traces.push({ ...edge, y: at(0) }, { ...edge, y: at(1), ...fill });
    }
    cells.forEach((cell, i) => {
      const [x, y] = lists[i];
      traces.push({
        x, y, mode: x.length > 1 ? "lines" : "markers", line: { color, dash, width: median ? 1 : 1.6 }, marker: { color },
        opacity: median ? 0.4 : 0.9, name: cell.place, cell, hovertemplate: hover(cell.place, "step %{x:,}", panel.key, "y"),
      });
      if (cell.status === "diverged")
        traces.push({
          x: x.slice(-1), y: y.slice(-1), mode: "markers", marker: { color, symbol: "x", size: 10 }, name: cell.place,
          hovertemplate: `<b>${cell.place}</b><br>diverged after step %{x:,}<extra></extra>`,
        });
    });
    if (median)
      traces.push({
        x: xs, y: at(0.5), mode: "lines", line: { color, dash, width: 3 }, name: `${method}, median`,
        hovertemplate: hover(`${method}, median of ${cells.length} cells`, "step %{x:,}", panel.key, "y"),
      });
  }
  return traces;
}

/** The traces of a panel of final values: a dot per complete cell, against an axis of the grid or in its method's row. */
function dotTraces(panel, chart) {
  const traces = [];
  for (const method of Object.keys(data.methods).reverse()) {
    const shown = (cell) => cell.method === method && cell.status === "complete" && cell.values[panel.key] != null;
    const cells = panel.cells.filter(shown);
    const values = cells.map((cell) => cell.values[panel.key]);
    const color = methodColor(method);
    const flat = chart.by === "method";
    const places = cells.map((cell) => (flat ? method : cell.values[chart.by]));
    const { xs, at } = flat ? { xs: [method], at: () => [quantile(values, 0.5)] } : spreadOf(cells.map((_, i) => [[places[i]], [values[i]]]), 1);
    const turn = (x, y) => (flat ? { x: y, y: x } : { x, y });
    const look = flat ? { mode: "markers", marker: { symbol: "line-ns", size: 16, line: { color, width: 3 } } } : { mode: "lines" };
    if (cells.length)
      traces.push({
        ...turn(xs, at(0.5)), ...look, line: { color, dash: data.methods[method].dash, width: 2.5 }, name: `${method}, median`,
        hovertemplate: hover(`${method}, median`, "", panel.key, flat ? "x" : "y"),
      });
    traces.push({
      ...turn(places, values), mode: "markers", marker: { color, size: 7, opacity: 0.75 }, name: method, cell: cells,
      text: cells.map((cell) => cell.place), hovertemplate: hover("%{text}", "", panel.key, flat ? "x" : "y"),
    });
  }
  return traces;
}

const hover = (title, where, key, axis) =>
  `<b>${title}</b><br>${where && where + "<br>"}${data.names[key]} %{${axis}:.4~g}<extra></extra>`;

/** A log axis with ticks at 1, 2 and 5 in each decade; over many decades, at powers of ten only. */
function logTicks(panel, chart) {
  const found = (cell) => (chart.by === "step" ? data.curves[panel.key][cell.number][1] : [cell.values[panel.key]]);
  const values = data.cells.flatMap(found).filter((value) => value > 0);
  const [low, high] = [Math.min(...values), Math.max(...values)].map(Math.log10);
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  const text = (value, power) => (Math.abs(power) < 4 ? value.toLocaleString("en", { maximumFractionDigits: 4 }) : `10<sup>${power}</sup>`);
  const every = Math.ceil(powers.length / 7);
  const ticks = powers.filter((_, i) => i % every === 0).flatMap((power) => (high - low < 1.7 ? [1, 2, 5] : [1]).map((digit) => [digit * 10 ** power, power]));
  if (high - low < 0.7) return { type: "log" }; // too narrow for these ticks
  return { type: "log", tickvals: ticks.map(([value]) => value), ticktext: ticks.map(([value, power]) => text(value, power)) };
}

/** The traces and the layout of a figure that is `width` pixels wide. */
function build(name, width) {
  const chart = data.charts[name];
  const panels = panelsOf(chart);
  const shared = chart.panels === "settings";
  const most = width < 480 ? 1 : shared && panels.length <= 4 ? 2 : Math.max(2, Math.min(panels.length <= 9 ? 3 : 4, Math.floor(width / 250)));
  const columns = Math.min(panels.length, most);
  const rows = Math.ceil(panels.length / columns);
  const height = chart.by === "method" ? 60 + 24 * Object.keys(data.methods).length : columns === panels.length ? 270 : 190;
  const layout = {
    height: rows * height + 40,
    grid: { rows, columns, pattern: "independent", xgap: shared ? 0.06 : 0.16, ygap: Math.min(0.5, 42 / height) },
    margin: { l: 12, r: 12, t: 34, b: 34 },
    font: { family: "system-ui, sans-serif", size: 12, color: getComputedStyle(document.body).color },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: "rgba(128,128,128,0.8)", activecolor: "rgb(0,120,190)" },
    dragmode: touch.matches ? false : "zoom",
    uirevision: `${panels.length} ${scale(name)}`,
    annotations: [],
  };
  const order = Object.keys(data.methods).toReversed();
  const traces = panels.flatMap((panel, i) => {
    const n = i ? i + 1 : "";
    const log = scale(name) === "mixed" ? data.charts[name].log.includes(panel.key) : scale(name) === "log";
    const line = { gridcolor: "rgba(128,128,128,0.22)", zeroline: false, nticks: 6, exponentformat: "power", automargin: true };
    const value = { ...line, ...(log ? logTicks(panel, chart) : { type: "linear" }) };
    const leftmost = i % columns === 0;
    const below = i + columns >= panels.length;
    const match = (axis) => (shared && i ? { matches: axis } : {});
    if (chart.by === "method") {
      layout[`xaxis${n}`] = value;
      layout[`yaxis${n}`] = { ...line, nticks: 0, categoryorder: "array", categoryarray: order, showticklabels: leftmost };
    } else {
      const title = chart.by === "step" ? "training step" : (data.axes[chart.by] ?? chart.by);
      const places = [...new Set(data.cells.map((cell) => cell.values[chart.by]))];
      const ticks = chart.by === "step" ? {} : { tickvals: places, ticktext: places.map(String) };
      layout[`xaxis${n}`] = { ...line, ...ticks, ...match("x"), showticklabels: below, title: below ? { text: title, standoff: 4 } : {} };
      layout[`yaxis${n}`] = { ...value, ...match("y"), showticklabels: leftmost || !shared };
    }
    const title = panel.title + (log && !shared ? " (log)" : "");
    const place = { xref: `x${n} domain`, yref: `y${n} domain`, x: 0, y: 1, yanchor: "bottom", xanchor: "left" };
    layout.annotations.push({ ...place, text: `<b>${title}</b>`, showarrow: false });
    for (const cell of chart.by === "step" ? [] : panel.cells.filter((found) => found.status === "diverged")) {
      const cross = { text: "✖", font: { color: methodColor(cell.method), size: 14 }, hovertext: `${cell.place}: diverged`, showarrow: false };
      const [row, column] = [{ ...place, x: 1, y: cell.method, yref: `y${n}` }, { ...place, x: cell.values[chart.by], xref: `x${n}` }];
      layout.annotations.push({ ...(chart.by === "method" ? row : column), xanchor: "center", yanchor: "middle", ...cross });
    }
    const made = chart.by === "step" ? curveTraces(panel, chart) : dotTraces(panel, chart);
    return made.map((trace) => ({ type: "scatter", ...trace, xaxis: `x${n}`, yaxis: `y${n}`, panel }));
  });
  return { traces, layout };
}

const scales = {}; // the figures' scales that the reader has chosen

/** "log" or "linear", or "mixed" if each panel has the scale of its measure. */
function scale(name) {
  const { keys, log } = data.charts[name];
  return scales[name] ?? (log.length === keys.length ? "log" : log.length ? "mixed" : "linear");
}

const drawn = new Set(); // figures that have been in view

async function draw(figure) {
  const Plotly = await library();
  drawn.add(figure);
  const place = figure.querySelector("[role=img]");
  const { traces, layout } = build(figure.dataset.chart, place.clientWidth);
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]] };
  await Plotly.react(place, traces, layout, config);
  figure.dataset.drawn = place.querySelectorAll(".scatterlayer .trace").length;
}

const redraw = () => Promise.all([...drawn].map(draw));
themed.push(redraw);

/** Offer a file as a download. */
function download(name, content, type) {
  const address = content.startsWith("data:") ? content : URL.createObjectURL(new Blob([content], { type }));
  make("a", { href: address, download: name }).click();
}

/** Save a figure as shown, on white and with a legend; as CSV, save its values. */
async function save(figure, format) {
  const name = figure.dataset.chart;
  const place = figure.querySelector("[role=img]");
  if (format === "csv") {
    const { traces } = build(name, place.clientWidth);
    const lines = traces.filter((trace) => trace.cell).flatMap((trace) =>
      trace.x.map((x, i) => {
        const cell = trace.cell[i] ?? trace.cell;
        return [cell.method, cell.setting, cell.seed, cell.status, trace.panel.key, x, trace.y[i]].map((v) => `"${v}"`).join();
      }),
    );
    const axes = data.charts[name].by === "step" ? "step,value" : "x,y";
    return download(`${name}.csv`, [`method,setting,seed,status,measure,${axes}`, ...lines, ""].join("\n"), "text/csv");
  }
  const Plotly = await library();
  if (!drawn.has(figure)) await draw(figure);
  const legend = [...view.methods].map((method) => ({
    x: [null], y: [null], mode: "lines", name: method, showlegend: true, line: { color: methodColor(method), dash: data.methods[method].dash, width: 3 },
  }));
  const layout = {
    ...place.layout, showlegend: true, paper_bgcolor: "white", legend: { orientation: "h", yanchor: "bottom", y: 1.08 },
    font: { ...place.layout.font, color: "#1d2733" }, margin: { l: 20, r: 20, t: 80, b: 40 }, height: place.layout.height + 50,
  };
  const size = { width: Math.max(600, place.clientWidth), height: layout.height, scale: format === "png" ? 3 : 1 };
  const hidden = place.data.map((trace) => ({ ...trace, showlegend: false }));
  download(`${name}.${format}`, await Plotly.toImage({ data: [...hidden, ...legend], layout }, { format, ...size }));
}

/** Add buttons under a figure, and arrow keys: left and right move along a line, up and down to another line. */
function prepare(figure) {
  const name = figure.dataset.chart;
  const place = figure.querySelector("[role=img]");
  const bar = make("p", { className: "bar" });
  const switcher = make("button", { type: "button" });
  const say = () => (switcher.textContent = scale(name) === "linear" ? "Log scale" : "Linear scale");
  switcher.onclick = () => {
    scales[name] = scale(name) === "linear" ? "log" : "linear";
    say();
    draw(figure);
  };
  say();
  bar.append(switcher, " Save this view: ");
  for (const format of ["png", "svg", "csv"]) {
    const button = make("button", { type: "button", "data-format": format }, format.toUpperCase());
    button.onclick = () => save(figure, format);
    bar.append(button, " ");
  }
  const status = make("output", {}); // the point selected by the keys, for screen readers
  bar.append(status);
  place.after(bar);
  let at = [0, 0];
  place.addEventListener("keydown", async (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move || !place.data) return;
    event.preventDefault();
    const lines = place.data.flatMap((trace, i) => (trace.cell && trace.x.length ? [i] : []));
    if (!lines.length) return;
    at[0] = (at[0] + move[0] + lines.length) % lines.length;
    const trace = place.data[lines[at[0]]];
    at[1] = Math.max(0, Math.min(at[1] + move[1], trace.x.length - 1));
    const Plotly = await library();
    Plotly.Fx.hover(place, [{ curveNumber: lines[at[0]], pointNumber: at[1] }], `${trace.xaxis}${trace.yaxis}`);
    status.textContent = `${trace.text?.[at[1]] ?? trace.name}: ${trace.x[at[1]]}, ${trace.y[at[1]]}`;
  });
}

/** Check boxes that show or hide things in the figures. */
function choices(title, names, chosen, color) {
  const set = make("fieldset", {}, make("legend", {}, title));
  for (const name of names) {
    const box = make("input", { type: "checkbox", checked: true, name: title, value: name });
    box.onchange = () => {
      chosen[box.checked ? "add" : "delete"](name);
      redraw();
    };
    const label = make("label", {}, box, color ? make("i", { style: `--color: ${data.methods[name].color}` }) : "", name);
    set.append(label);
  }
  return set;
}

const controls = document.getElementById("controls");
if (Object.keys(data.charts).length) {
  controls.append(choices("Mode", Object.keys(data.methods), view.methods, true));
  if (view.seeds.size > 1) controls.append(choices("Seed", [...view.seeds], view.seeds));
  if (data.settings.length > 1) {
    const select = make("select", { id: "setting" });
    select.append(make("option", { value: "apart" }, "each in a panel"), make("option", { value: "together" }, "all in one panel"));
    select.append(...data.settings.map((setting) => make("option", { value: setting }, `only ${setting}`)));
    select.value = view.setting;
    select.onchange = () => {
      view.setting = select.value;
      redraw();
    };
    controls.append(make("label", {}, "Settings ", select));
  }
}

const watch = new IntersectionObserver(
  (entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    watch.unobserve(entry.target);
    draw(entry.target);
  }),
  { rootMargin: "400px" },
);
document.querySelectorAll("figure.chart").forEach((figure) => {
  prepare(figure);
  watch.observe(figure);
});
let pause;
addEventListener("resize", () => {
  clearTimeout(pause);
  pause = setTimeout(redraw, 200);
});
