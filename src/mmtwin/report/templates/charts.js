// Charts over time: stacked areas, lanes of counts, the legend. All share the horizontal axis, which is the recording's events, and the cursor.
const LEFT = 80, RIGHT = 8;

/** Where steps lie in a chart of this width. */
function scale(width) {
  const inner = Math.max(width - LEFT - RIGHT, 40);
  return { inner, x: (step) => LEFT + inner * step / Math.max(report.last, 1), step: (x) => (x - LEFT) / inner * report.last };
}

/** Lets a chart choose the moment: click or drag. */
function choosable(element) {
  const choose = (event) => {
    const box = element.getBoundingClientRect();
    report.setStep(scale(box.width).step(event.clientX - box.left));
  };
  element.addEventListener("pointerdown", (event) => { choose(event); });
  element.addEventListener("pointermove", (event) => { if (event.buttons & 1) choose(event); });
}

/** A small line in a table, from the smallest value to the largest. */
function sparkline(values) {
  const most = Math.max(...values, 1), least = Math.min(...values) === most ? 0 : Math.min(...values), last = Math.max(values.length - 1, 1);
  const points = values.map((value, step) => `${(110 * step / last).toFixed(1)},${(18 - 15 * (value - least) / Math.max(most - least, 1)).toFixed(1)}`).join(" ");
  const line = svg("polyline", { points, fill: "none", "stroke-width": 1.5 });
  line.style.stroke = "var(--accent)";
  return svg("svg", { class: "spark", viewBox: "0 0 110 20", "aria-hidden": "true" }, line);
}

function ticks(highest) {
  if (highest <= 0) return [0];
  const rough = highest / 4, power = 2 ** Math.floor(Math.log2(rough));
  const every = rough / power > 1.5 ? power * 2 : power;
  return Array.from({ length: Math.floor(highest / every) + 1 }, (_, i) => i * every);
}

function eventAxis(chart, place, height) {
  const events = report.data.steps.events;
  const many = place.inner > 500 ? 4 : 2;
  for (let i = 0; i <= many; i++) {
    const step = Math.round(report.last * i / many);
    const anchor = i === many ? "end" : i === 0 ? "start" : "middle";
    chart.append(svg("text", { x: place.x(step), y: height - 4, "text-anchor": anchor }, `${i === 0 ? "event " : ""}${number(events[step])}`));
  }
}

/**
 * Stacked areas. series: [{name, colour (a style variable), values}], from the bottom up, in bytes.
 */
function stacked(host, series, label, height = 240) {
  const width = host.clientWidth || 600, place = scale(width), bottom = height - 22, top = 8;
  const totals = report.data.steps.events.map((_, step) => sum(series.map((one) => one.values[step])));
  const highest = Math.max(...totals, 1);
  const y = (value) => bottom - (bottom - top) * value / highest;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  const below = totals.map(() => 0);
  for (const one of series) {
    const lower = below.map((value, step) => `${place.x(step).toFixed(1)},${y(value).toFixed(2)}`).reverse();
    one.values.forEach((value, step) => { below[step] += value; });
    const upper = below.map((value, step) => `${place.x(step).toFixed(1)},${y(value).toFixed(2)}`);
    const area = svg("polygon", { points: [...upper, ...lower].join(" ") });
    area.style.fill = `var(--${one.colour})`;
    area.append(svg("title", {}, one.name));
    chart.append(area);
  }
  for (const value of ticks(highest)) {
    chart.append(svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), "stroke-opacity": value ? 0.6 : 1 }));
    chart.append(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, size(value)));
  }
  eventAxis(chart, place, height);
  const cursor = svg("line", { class: "cursor", y1: top, y2: bottom });
  chart.append(cursor);
  choosable(chart);
  host.replaceChildren(chart);
  return () => { const x = place.x(report.step); cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
}

/** Lanes: for each series how many of its events lie in each span, as bars scaled to the lane's largest. */
function lanes(host, series) {
  const row = 34, width = host.clientWidth || 600, place = scale(width), height = series.length * row + 4;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `What happened when: ${series.map((one) => `${one.name} ${number(sum(one.counts))}`).join(", ")}` });
  const span = place.inner / Math.max(report.last, 1);
  series.forEach((one, index) => {
    const bottom = (index + 1) * row, room = 14, most = Math.max(...one.counts, 1);
    chart.append(svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: bottom, y2: bottom }));
    const path = one.counts.map((count, i) => (count ? `M${(place.x(i)).toFixed(1)},${bottom}h${Math.max(span - 0.5, 1).toFixed(1)}v${-Math.max(room * count / most, 1.5).toFixed(1)}h${-Math.max(span - 0.5, 1).toFixed(1)}z` : "")).join("");
    const bars = svg("path", { d: path });
    bars.style.fill = `var(--${one.pressure ? "s5" : "accent"})`;
    bars.style.opacity = one.pressure ? "1" : "0.55";
    const text = svg("text", { class: "label", x: LEFT, y: bottom - 19 }, `${one.name}: ${number(sum(one.counts))}`);
    chart.append(bars, text);
  });
  const cursor = svg("line", { class: "cursor", y1: 0, y2: height });
  chart.append(cursor);
  choosable(chart);
  host.replaceChildren(chart);
  return () => { const x = place.x(report.step); cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
}

/** Draws again when the width, what is hidden or something named by `key` changes; else only moves the cursor. */
function redrawn(host, key, draw) {
  let before = null, move = () => {};
  report.listen(() => {
    const now = `${host.clientWidth} ${[...report.hidden]} ${key()}`;
    if (now !== before) { before = now; move = draw(); }
    move();
  });
}

function legends(classes) {
  for (const host of $$("[data-legend]")) {
    for (const kind of classes.slice(1)) {
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = `var(--${kind.key})`;
      const button = make("button", { type: "button", title: kind.meaning, "aria-pressed": "true", onclick: () => {
        if (!report.hidden.delete(kind.key)) report.hidden.add(kind.key);
        report.changed();
      } }, swatch, kind.name);
      report.listen(() => button.setAttribute("aria-pressed", String(!report.hidden.has(kind.key))));
      host.append(button);
    }
  }
}

report.sections.memory = (memory) => {
  legends(memory.classes);
  const host = $("[data-chart=memory]");
  const order = ["earlier", "unmovable", "reclaimable", "slab", "movable", "pcp", "free_small", "free_large"];
  const at = Object.fromEntries(memory.classes.map((kind, index) => [kind.key, index]));
  redrawn(host, () => "", () => stacked(host, order.filter((key) => !report.hidden.has(key)).map((key) => (
    { name: memory.classes[at[key]].name, colour: key, values: memory.pages.map((pages) => pages[at[key]] * PAGE) })), "Memory by use over time"));
  report.listen(() => {
    const pages = memory.pages[report.step];
    const parts = [...order].reverse().filter((key) => pages[at[key]]).map((key) => `${memory.classes[at[key]].name} ${size(pages[at[key]] * PAGE)}`);
    const zones = memory.zones.map((zone) => `${zone.name} ${size(zone.free_pages[report.step] * PAGE)} free (watermarks ${[zone.wmark_min, zone.wmark_low, zone.wmark_high].map((mark) => size(mark * PAGE)).join(", ")})`);
    $("[data-readout=memory]").textContent = `At ${report.moment(report.step)}: ${parts.join(", ")}. ${zones.join("; ")}.`;
  });
  report.downloads.memory = () => report.csv("memory", ["event", ...memory.classes.map((kind) => `${kind.key}_pages`), ...memory.zones.map((zone) => `${zone.name}_free_pages`)],
    memory.pages.map((pages, step) => [report.data.steps.events[step], ...pages, ...memory.zones.map((zone) => zone.free_pages[step])]));
};

report.sections.activity = (activity) => {
  const host = $("[data-chart=lanes]");
  if (host && activity.series.length) redrawn(host, () => "", () => lanes(host, activity.series));
};
