// Free blocks by order: a heat map over time (a row for each order, the darker the more memory is free in such blocks), and the counts at the chosen moment.
report.sections.free = (free) => {
  const host = $("[data-chart=free]"), zone = $("[data-free=zone]"), type = $("[data-free=type]"), orders = free.blocks[0]?.[0]?.[0]?.length ?? 0;
  const fill = (select, all, names) => select.append(make("option", { value: "" }, all), ...names.map((name, index) => make("option", { value: index }, name)));
  fill(zone, "all zones", free.zones);
  fill(type, "all types", free.types);
  const chosen = (select, count) => (select.value === "" ? [...Array(count).keys()] : [Number(select.value)]);
  const blocks = (step, order) => {
    let total = 0;
    for (const z of chosen(zone, free.zones.length)) for (const t of chosen(type, free.types.length)) total += free.blocks[step][z][t][order];
    return total;
  };
  const draw = () => {
    const width = host.clientWidth || 600, place = scale(width), row = 18, height = orders * row + 24;
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "Free blocks by order over time" });
    const values = free.blocks.map((_, step) => Array.from({ length: orders }, (_, order) => blocks(step, order)));
    const most = Math.max(1, ...values.flat().map((count, index) => count * 2 ** (index % orders)));
    const span = place.inner / (report.last + 1), left = (step) => LEFT + span * step;
    for (let order = 0; order < orders; order++) {
      const y = (orders - 1 - order) * row;
      chart.append(svg("text", { x: LEFT - 6, y: y + 13, "text-anchor": "end" }, `${order}: ${size(PAGE * 2 ** order)}`));
      for (let step = 0; step < values.length;) {
        const count = values[step][order];
        let end = step + 1;
        while (end < values.length && values[end][order] === count) end++;
        if (count) {
          const shade = 0.12 + 0.88 * Math.log1p(count * 2 ** order) / Math.log1p(most);
          const box = svg("rect", { x: left(step).toFixed(2), y: y + 1, width: (span * (end - step) + 0.4).toFixed(2), height: row - 2, "fill-opacity": shade.toFixed(3) });
          box.style.fill = "var(--accent)";
          chart.append(box);
        }
        step = end;
      }
    }
    eventAxis(chart, place, height);
    const cursor = svg("line", { class: "cursor", y1: 0, y2: orders * row });
    chart.append(cursor);
    choosable(chart);
    host.replaceChildren(chart);
    return () => { const x = left(report.step + 0.5); cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
  };
  redrawn(host, () => `${zone.value} ${type.value}`, draw);
  for (const select of [zone, type]) select.addEventListener("change", report.changed);
  report.listen(() => {
    const heads = make("tr", {}, make("th", { scope: "col" }, "Order"), ...Array.from({ length: orders }, (_, order) => make("th", { scope: "col", class: "number" }, String(order))), make("th", { scope: "col", class: "number" }, "Free"));
    const rows = [];
    for (const t of chosen(type, free.types.length)) {
      const counts = Array.from({ length: orders }, (_, order) => sum(chosen(zone, free.zones.length).map((z) => free.blocks[report.step][z][t][order])));
      const pages = sum(counts.map((count, order) => count * 2 ** order));
      if (pages || type.value !== "") rows.push(make("tr", {}, make("th", { scope: "row" }, free.types[t]), ...counts.map((count) => make("td", { class: "number" }, count ? number(count) : "\u00b7")), make("td", { class: "number" }, size(pages * PAGE))));
    }
    $("[data-readout=free]").replaceChildren(make("p", { class: "muted" }, `Free blocks at ${report.moment(report.step)}:`), make("table", {}, make("thead", {}, heads), make("tbody", {}, ...rows)));
  });
  report.downloads.free = () => report.csv("free-blocks", ["event", "zone", "type", ...Array.from({ length: orders }, (_, order) => `order_${order}`)],
    free.blocks.flatMap((zones, step) => zones.flatMap((perType, z) => perType.map((counts, t) => [report.data.steps.events[step], free.zones[z], free.types[t], ...counts]))));
};
