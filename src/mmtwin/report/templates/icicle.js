// Who asked: a tree as rows of boxes, a node's width its share. Boxes are buttons, so keys work as a pointer does.
function icicle(name, data, csv) {
  const host = $(`[data-icicle=${name}]`), measure = $(`[data-measure=${name}]`), readout = $(`[data-readout=${name}]`), back = $(`[data-unzoom=${name}]`);
  const names = { bytes: "handed out", live_bytes: "live at the end", waste_bytes: "wasted", hits: "requests" };
  const root = { name: "everything", children: data.tree, depth: 0 };
  for (const key of Object.keys(names)) root[key] = sum(data.tree.map((node) => node[key]));
  let zoomed = [root];
  const value = (node) => node[measure.value];
  const text = (node) => (measure.value === "hits" ? number(node.hits) : size(value(node)));
  const tell = (path) => {
    const node = path.at(-1), whole = Math.max(value(root), 1);
    readout.textContent = `${path.slice(1).map((one) => one.name).join(" \u203a ") || "everything"}: ${text(node)} ${names[measure.value]} (${(100 * value(node) / whole).toFixed(1)} %), ${number(node.hits)} requests, ${size(node.bytes)} handed out, ${size(node.live_bytes)} live at the end`;
  };
  const draw = () => {
    const width = host.clientWidth || 600, row = 28, boxes = [];
    let deepest = 0;
    const put = (node, path, left, wide, depth, colour) => {
      deepest = Math.max(deepest, depth);
      const box = make("button", { type: "button", title: `${node.name}: ${text(node)}`, "aria-label": `${node.name}: ${text(node)} ${names[measure.value]}` }, wide > 30 ? node.name : "");
      box.style.left = `${left}px`;
      box.style.top = `${depth * row}px`;
      box.style.width = `${Math.max(wide, 1)}px`;
      if (wide < 16) box.style.padding = "0";
      if (depth === 0 && zoomed.length === 1) { box.classList.add("other"); box.style.background = "var(--panel)"; box.textContent = `everything: ${text(node)}`; }
      else if (node.name.startsWith("(") && node.name.endsWith("others)")) { box.classList.add("other"); box.style.background = "var(--line)"; }
      else box.style.background = `color-mix(in srgb, var(--s${colour}) ${100 - 18 * (path.length - 2)}%, white)`;
      box.addEventListener("pointerenter", () => tell(path));
      box.addEventListener("focus", () => tell(path));
      box.addEventListener("click", () => { zoomed = path.length === zoomed.length && zoomed.length > 1 ? zoomed.slice(0, -1) : path; report.changed(); });
      boxes.push(box);
      const total = value(node);
      let x = left;
      (node.children ?? []).map((child, index) => [child, index]).sort((a, b) => value(b[0]) - value(a[0])).forEach(([child, index]) => {
        const share = total ? wide * value(child) / total : 0;
        if (share >= 1.5) put(child, [...path, child], x, share, depth + 1, node === root ? index % 6 : colour);
        x += share;
      });
    };
    const top = zoomed.at(-1);
    put(top, zoomed, 0, width, 0, zoomed.length > 1 ? root.children.indexOf(zoomed[1]) % 6 : 0);
    host.style.height = `${(deepest + 1) * row}px`;
    host.replaceChildren(...boxes);
    back.hidden = zoomed.length === 1;
    tell(zoomed);
    return () => {};
  };
  redrawn(host, () => `${measure.value} ${zoomed.map((node) => node.name).join("/")}`, draw);
  measure.addEventListener("change", report.changed);
  back.addEventListener("click", () => { zoomed = [root]; report.changed(); });
  report.downloads[name] = () => report.csv(csv, Object.keys(data.rows[0] ?? {}), data.rows.map((row) => Object.values(row)));
}

report.sections.objects = (data) => icicle("objects", data, "call-sites");
report.sections.pages = (data) => icicle("pages", data, "page-requests");
