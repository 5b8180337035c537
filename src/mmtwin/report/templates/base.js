"use strict";
// The page's data, its state (the chosen moment, the classes that are hidden), numbers as text, and downloads.
const report = {
  data: JSON.parse(document.getElementById("data").textContent),
  step: 0,
  hidden: new Set(),
  listeners: [],   // called with nothing when the moment, the theme, the width or what is hidden has changed
  sections: {},    // drawing functions by section; each is called once, with the section's data
};
report.last = report.data.steps.events.length - 1;
report.step = report.last;

const PAGE = 4096;
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const number = (value) => Math.round(value).toLocaleString("en-US");

function size(bytes) {
  for (const [unit, power] of [["TiB", 40], ["GiB", 30], ["MiB", 20], ["KiB", 10]]) {
    const value = bytes / 2 ** power;
    if (Math.abs(value) >= 1) return `${Number.isInteger(value) || Math.abs(value) >= 100 ? number(value) : value.toFixed(1)} ${unit}`;
  }
  return `${number(bytes)} B`;
}

const change = (bytes) => (bytes > 0 ? "+" : bytes < 0 ? "\u2212" : "") + size(Math.abs(bytes));
const sum = (values) => values.reduce((a, b) => a + b, 0);

/** An element with attributes and children; text is always text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

report.changed = () => { for (const listener of report.listeners) listener(); };
report.listen = (listener) => { report.listeners.push(listener); listener(); };

report.setStep = (step) => {
  report.step = Math.max(0, Math.min(report.last, Math.round(step)));
  report.changed();
};

/** The last step that is not after an event. */
report.stepOf = (event) => {
  const events = report.data.steps.events;
  let step = 0;
  while (step < report.last && events[step + 1] <= event) step++;
  return step;
};

report.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A moment in words. */
report.moment = (step) => {
  const { events, times } = report.data.steps;
  const share = (100 * step / Math.max(report.last, 1)).toFixed(0);
  const when = step === 0 ? "start" : step === report.last ? "end" : `${share} %`;
  const time = report.data.clock === "ns" ? `, ${((times[step] - times[0]) / 1e9).toFixed(3)} s` : "";
  return `event ${number(events[step])} of ${number(report.data.events)}${time} (${when})`;
};

// Downloads: the page makes the files itself.
report.downloads = { json: () => ["report.json", "application/json", JSON.stringify(report.data, null, 1)] };
const cell = (value) => { const text = String(value ?? ""); return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
report.csv = (name, heads, rows) => [`${name}.csv`, "text/csv", [heads, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("")];

function download(name) {
  const [file, type, text] = report.downloads[name]();
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: `${report.data.file.replace(/\.[^.]*$/, "")}-${file}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
