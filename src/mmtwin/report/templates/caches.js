// Slab caches: their memory over time, all together or one with what its objects use, and a table at the chosen moment.
report.sections.caches = (caches) => {
  const host = $("[data-chart=caches]"), select = $("[data-cache=chosen]"), filter = $("[data-cache=filter]"), table = $("[data-table=caches]"), more = $("[data-more=caches]");
  const LARGEST = 7, FEW = 15;
  let sort = "bytes", down = true, all = false;
  for (const [index, cache] of caches.entries()) select.append(make("option", { value: index }, cache.name));
  const series = () => {
    if (select.value !== "") {
      const cache = caches[Number(select.value)];
      const used = cache.live.map((live) => live * cache.size);
      return [{ name: "objects in use", colour: "s0", values: used }, { name: "free or unusable in its slabs", colour: "s1", values: cache.pages.map((pages, step) => Math.max(pages * PAGE - used[step], 0)) }];
    }
    const found = caches.slice(0, LARGEST).map((cache, index) => ({ name: cache.name, colour: `s${index}`, values: cache.pages.map((pages) => pages * PAGE) }));
    const rest = caches.slice(LARGEST);
    if (rest.length) found.push({ name: `${rest.length} others`, colour: "s7", values: report.data.steps.events.map((_, step) => sum(rest.map((cache) => cache.pages[step])) * PAGE) });
    return found.reverse();
  };
  const legend = make("div", { class: "legend" });
  host.before(legend);
  redrawn(host, () => select.value, () => {
    const shown = series();
    legend.replaceChildren(...[...shown].reverse().map((one) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = `var(--${one.colour})`;
      const index = caches.findIndex((cache) => cache.name === one.name);
      return make("button", { type: "button", onclick: () => { if (select.value !== "") select.value = ""; else if (index >= 0) select.value = String(index); report.changed(); } }, swatch, one.name);
    }));
    return stacked(host, shown, "Memory of slab caches over time", 200);
  });
  select.addEventListener("change", report.changed);
  const keys = {
    name: (cache) => cache.name, bytes: (cache) => cache.pages[report.step], change: (cache) => cache.pages[report.step] - cache.pages[0], slabs: (cache) => cache.slabs[report.step],
    live: (cache) => cache.live[report.step], size: (cache) => cache.size, use: (cache) => cache.live[report.step] * cache.size / Math.max(cache.pages[report.step] * PAGE, 1),
  };
  const sparks = new Map();
  const spark = (cache) => {
    if (!sparks.has(cache)) sparks.set(cache, sparkline(cache.pages));
    return sparks.get(cache);
  };
  const rows = () => {
    const wanted = filter.value.trim().toLowerCase();
    const found = caches.filter((cache) => cache.name.toLowerCase().includes(wanted)), key = keys[sort];
    found.sort((a, b) => { const x = key(a), y = key(b); return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1); });
    more.hidden = all || found.length <= FEW;
    more.textContent = `Show all ${found.length}`;
    for (const head of $$("thead th", table)) {
      const button = $("button", head);
      if (button?.dataset.sort === sort) head.setAttribute("aria-sort", down ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
    }
    $("tbody", table).replaceChildren(...(all ? found : found.slice(0, FEW)).map((cache) => {
      const step = report.step, index = String(caches.indexOf(cache)), pages = cache.pages[step];
      return make("tr", { class: select.value === index ? "chosen" : false, onclick: () => { select.value = select.value === index ? "" : index; report.changed(); } },
        make("th", { scope: "row" }, cache.name), make("td", { class: "number" }, size(pages * PAGE)), make("td", { class: "number" }, change((pages - cache.pages[0]) * PAGE)),
        make("td", { class: "number" }, number(cache.slabs[step])), make("td", { class: "number" }, `${number(cache.live[step])} of ${number(cache.objects[step])}`), make("td", { class: "number" }, `${number(cache.size)} B`),
        make("td", { class: "number" }, pages ? `${(100 * keys.use(cache)).toFixed(0)} %` : ""), make("td", {}, spark(cache)));
    }));
  };
  for (const button of $$("[data-sort]", table)) button.addEventListener("click", () => { down = sort === button.dataset.sort ? !down : button.dataset.sort !== "name"; sort = button.dataset.sort; rows(); });
  filter.addEventListener("input", rows);
  more.addEventListener("click", () => { all = true; rows(); });
  report.listen(rows);
  report.downloads.caches = () => report.csv("caches", ["event", "cache", "size", "slabs", "pages", "objects", "live"],
    caches.flatMap((cache) => report.data.steps.events.map((event, step) => [event, cache.name, cache.size, cache.slabs[step], cache.pages[step], cache.objects[step], cache.live[step]])));
};
