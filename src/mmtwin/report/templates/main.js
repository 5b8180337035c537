// Starts everything: the slider, the theme, the downloads, and each section that has data.
report.sections.failures = (failures) => {
  for (const button of $$("[data-event]")) button.addEventListener("click", () => {
    report.setStep(report.stepOf(Number(button.dataset.event)));
    ($("#map") ?? $("#memory"))?.scrollIntoView({ behavior: "smooth" });
  });
  report.downloads.failures = () => report.csv("refused", ["event", "time", "cpu", "pid", "order", "gfp", "why"],
    failures.requests.map((row) => [row.event, row.time, row.cpu, row.pid, row.order, row.gfp, row.explained?.headline]));
};

report.sections.blame = (blame) => {
  for (const cell of $$("[data-spark]")) cell.append(sparkline(cell.dataset.spark.split(",").map(Number)));
  const tables = [["fragments", blame.fragments?.rows], ["fallbacks", blame.fragments?.fallbacks], ["slabs", blame.wastes?.slabs], ["size classes", blame.wastes?.size_classes]];
  for (const name of ["grows", "leaks"]) for (const [what, table] of Object.entries(blame[name])) tables.push([`${name} ${what}`, table.rows]);
  // tables differ in their columns: a row of the file is one number
  report.downloads.blame = () => report.csv("blame", ["table", "who", "what", "value"], tables.flatMap(([name, rows]) => (rows ?? []).flatMap((row) =>
    Object.entries(row).filter(([key]) => key !== "label" && key !== "cache").map(([key, value]) => [name, row.label ?? row.cache, key, Array.isArray(value) ? value.join(" ") : value]))));
};

report.sections.advice = (advice) => {
  const found = [...advice.sites.flatMap((site) => site.advice.map((one) => [site.site, one])), ...advice.others.map((one) => [one.present, one])];
  report.downloads.advice = () => report.csv("advice", ["where", "rule", "kind", "now", "better", "why", "limit", "saved_bytes"],
    found.map(([where, one]) => [where, one.rule, one.kind, one.present, one.suggested, one.why, one.threshold, one.saved_bytes]));
};

function timebar() {
  const bar = $("#timebar"), slider = $("#step"), play = $("#play");
  if (!bar) return;
  bar.hidden = false;
  slider.addEventListener("input", () => report.setStep(Number(slider.value)));
  report.listen(() => {
    slider.value = report.step;
    slider.setAttribute("aria-valuetext", report.moment(report.step));
    $("#moment").textContent = report.moment(report.step);
  });
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "\u25b6"; play.setAttribute("aria-label", "Play through the recording"); };
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (report.step === report.last) report.setStep(0);
    play.textContent = "\u23f8";
    play.setAttribute("aria-label", "Stop");
    timer = setInterval(() => { if (report.step === report.last) stop(); else report.setStep(report.step + 1); }, 120);
  });
}

function themes() {
  const button = $("#theme"), root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("mmtwin-theme"); } catch { return null; } };
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
  if (stored()) root.dataset.theme = stored();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("mmtwin-theme", root.dataset.theme); } catch { /* a browser that keeps nothing for files */ }
    name();
    report.changed();
  });
  let kept; // paper is white, whatever the screen is
  addEventListener("beforeprint", () => { kept = root.dataset.theme; root.dataset.theme = "light"; report.changed(); });
  addEventListener("afterprint", () => { if (kept) root.dataset.theme = kept; else delete root.dataset.theme; report.changed(); });
  system.addEventListener("change", () => { name(); report.changed(); });
  name();
}

async function start() {
  themes();
  timebar();
  for (const button of $$("[data-download]")) {
    button.hidden = false;
    button.addEventListener("click", () => download(button.dataset.download));
  }
  for (const [name, draw] of Object.entries(report.sections)) {
    const data = report.data[name];
    if (data !== null && data !== undefined) await draw(data);
  }
  let frame = 0;
  new ResizeObserver(() => { cancelAnimationFrame(frame); frame = requestAnimationFrame(report.changed); }).observe(document.body);
  document.documentElement.dataset.ready = "true";
  requestAnimationFrame(() => setTimeout(() => performance.mark("drawn"), 0));
}

start();
