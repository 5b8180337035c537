// The map of page frames. The data are the changes from step to step (see mmtwin/report/page_map.py); they are applied forwards, from the nearest kept state.
const KEEP = 12; // a copy of every so many steps is kept, so that going back is quick

async function inflated(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Numbers of seven bits a byte, lowest first. */
function decoded(bytes, count) {
  const numbers = new Int32Array(count);
  let at = 0;
  for (let i = 0; i < count; i++) {
    let value = 0, shift = 0, byte;
    do { byte = bytes[at++]; value |= (byte & 0x7f) << shift; shift += 7; } while (byte & 0x80);
    numbers[i] = value;
  }
  return numbers;
}

class Frames {
  constructor(map, columns) {
    Object.assign(this, columns);
    this.runs = map.runs;
    this.first = [0];
    for (const runs of map.runs) this.first.push(this.first.at(-1) + runs);
    let last = 0;
    for (let i = 0; i < this.event.length; i++) {
      const code = this.event[i];
      if (!code) { this.event[i] = -1; continue; }
      last += (code - 1) % 2 ? -(code >> 1) : (code - 1) >> 1;
      this.event[i] = last;
    }
    this.at = -1;
    this.holders = new Int32Array(map.cells).fill(-1);
    this.events = new Int32Array(map.cells).fill(-1);
    this.kept = [];
  }

  go(step) {
    const nearest = Math.min(Math.floor(step / KEEP), this.kept.length - 1);
    if (nearest >= 0 && (step < this.at || nearest * KEEP > this.at)) {
      this.holders.set(this.kept[nearest][0]);
      this.events.set(this.kept[nearest][1]);
      this.at = nearest * KEEP;
    }
    while (this.at < step) {
      this.at++;
      let cell = 0;
      for (let i = this.first[this.at]; i < this.first[this.at + 1]; i++) {
        cell += this.gap[i];
        const end = cell + this.length[i];
        this.holders.fill(this.holder[i], cell, end);
        this.events.fill(this.event[i], cell, end);
        cell = end;
      }
      if (this.at % KEEP === 0 && this.kept.length === this.at / KEEP) this.kept.push([this.holders.slice(), this.events.slice()]);
    }
  }
}

/** Where the tiles (pageblocks) lie: zone by zone, a line of text above each. */
function layout(map, zones, width) {
  const ratio = window.devicePixelRatio || 1, pixels = Math.max(Math.floor(width * ratio), 64);
  const perTile = map.pageblock / map.share;
  const tileHeight = 2 ** Math.floor(Math.log2(perTile) / 2), tileWidth = perTile / tileHeight;
  const tiles = [];
  let cell = 0;
  for (const [start, count] of map.ranges) for (let pfn = start; pfn < start + count; pfn += map.pageblock) { tiles.push({ pfn, cell }); cell += perTile; }
  const zoneOf = (pfn) => zones.findLast((zone) => pfn + map.pageblock > zone.start_pfn && zone.start_pfn <= pfn + map.pageblock - 1) ?? zones[0];
  const tall = Math.max(420, Math.min(640, width)) * ratio;
  let cellSize = 1;
  const head = Math.ceil(20 * ratio), gap = Math.max(1, Math.round(ratio));
  const rows = (scale) => {
    const perRow = Math.max(1, Math.floor((pixels + gap) / (tileWidth * scale + gap)));
    const counts = new Map();
    for (const tile of tiles) { const zone = zoneOf(tile.pfn); counts.set(zone, (counts.get(zone) ?? 0) + 1); }
    let height = 0;
    for (const count of counts.values()) height += head + Math.ceil(count / perRow) * (tileHeight * scale + gap);
    return { perRow, height };
  };
  while (cellSize < 16 && tileWidth * (cellSize + 1) <= pixels && rows(cellSize + 1).height <= tall) cellSize++;
  const { perRow, height } = rows(cellSize);
  let y = 0, column = 0, current = null;
  const labels = [];
  for (const tile of tiles) {
    const zone = zoneOf(tile.pfn);
    if (zone !== current) {
      if (current) y += tileHeight * cellSize + gap;
      current = zone;
      labels.push({ y: y + head, text: `${zone.name}, ${size(zone.present_pages * PAGE)}` });
      y += head;
      column = 0;
    } else if (column === perRow) { column = 0; y += tileHeight * cellSize + gap; }
    tile.x = column * (tileWidth * cellSize + gap);
    tile.y = y;
    tile.zone = zone;
    column++;
  }
  return { pixels, ratio, tiles, labels, tileWidth, tileHeight, cellSize, gap, perTile, height: Math.max(height, 1) };
}

report.sections.map = async (map) => {
  const canvas = $("#frames"), panel = $("#frame"), zones = report.data.memory.zones, classes = report.data.memory.classes;
  let frames;
  try {
    const names = ["gap", "length", "holder", "event"], total = sum(map.runs);
    const bytes = await Promise.all(names.map((name) => inflated(map.streams[name])));
    frames = new Frames(map, Object.fromEntries(names.map((name, i) => [name, decoded(bytes[i], total)])));
  } catch (error) {
    panel.textContent = `The map cannot be shown by this browser: ${error.message}`;
    return;
  }
  report.frames = frames;
  const { holders } = map;
  const context = canvas.getContext("2d", { alpha: false });
  const types = map.pageblock_types;
  const text = (index) => (index < 0 ? "" : holders.texts[index]);
  const describe = (holder) => (holders.text[holder] >= 0 ? text(holders.text[holder]) : `asked for by PID ${holders.pid[holder]}, order ${holders.order[holder]}, ${text(holders.gfp[holder])}`);
  const typeOf = (tile) => {
    let type = types[0][tile];
    for (let step = 1; step <= report.step; step++) for (const [at, now] of types[step]) if (at === tile) type = now;
    return map.type_names[type] ?? `type ${type}`;
  };
  let place = null, image = null, pinned = -1, pointed = -1;
  report.pointed = () => (pinned >= 0 ? pinned : pointed);
  const pixel = (colour) => { // "#rrggbb" as a pixel of an image, whose bytes are red, green, blue and opacity
    const value = parseInt(colour.slice(1), 16);
    return new Uint32Array(new Uint8Array([value >> 16, value >> 8 & 255, value & 255, 255]).buffer)[0];
  };

  const draw = () => {
    const width = canvas.clientWidth || 600;
    if (!place || place.width !== width || place.ratio !== (window.devicePixelRatio || 1)) {
      place = layout(map, zones, width);
      place.width = width;
      canvas.width = place.pixels;
      canvas.height = place.height;
      canvas.style.height = `${place.height / place.ratio}px`;
      image = context.createImageData(place.pixels, place.height);
    }
    frames.go(report.step);
    const background = pixel(report.colour("bg"));
    const colours = classes.map((kind) => (report.hidden.has(kind.key) ? background : pixel(report.colour(kind.key))));
    const lookup = new Uint32Array(holders.class.map((kind) => colours[kind]));
    const out = new Uint32Array(image.data.buffer);
    out.fill(background);
    const { cellSize, tileWidth, tileHeight, pixels } = place;
    for (const tile of place.tiles) {
      let cell = tile.cell;
      for (let row = 0; row < tileHeight; row++) {
        const line = (tile.y + row * cellSize) * pixels + tile.x;
        for (let column = 0; column < tileWidth; column++) {
          const at = line + column * cellSize;
          out.fill(lookup[frames.holders[cell++]], at, at + cellSize);
        }
        for (let more = 1; more < cellSize; more++) out.copyWithin(line + more * pixels, line, line + tileWidth * cellSize);
      }
    }
    context.putImageData(image, 0, 0);
    context.fillStyle = report.colour("muted");
    context.font = `${12 * place.ratio}px system-ui, sans-serif`;
    context.textBaseline = "bottom";
    for (const label of place.labels) context.fillText(label.text, 0, label.y - 2 * place.ratio);
    outline(pinned >= 0 ? pinned : pointed);
    show();
    const looked = map.looked.findLast((step) => step <= report.step);
    $("#map-of").textContent = looked === report.step ? "" : `Too much changes to keep every moment: this is the map of event ${number(report.data.steps.events[looked])}.`;
    canvas.setAttribute("aria-label", `Map of page frames at ${report.moment(report.step)}`);
  };

  const outline = (cell) => {
    if (cell < 0) return;
    const tile = place.tiles[Math.floor(cell / place.perTile)], inside = cell - tile.cell;
    const x = tile.x + inside % place.tileWidth * place.cellSize, y = tile.y + Math.floor(inside / place.tileWidth) * place.cellSize;
    context.strokeStyle = report.colour("mark");
    context.lineWidth = 2 * place.ratio;
    context.strokeRect(x - place.ratio, y - place.ratio, place.cellSize + 2 * place.ratio, place.cellSize + 2 * place.ratio);
    context.lineWidth = place.ratio;
    context.strokeRect(tile.x, tile.y, place.tileWidth * place.cellSize, place.tileHeight * place.cellSize);
  };

  const show = () => {
    const cell = pinned >= 0 ? pinned : pointed;
    if (cell < 0) { panel.textContent = "Point at a frame, or choose one with the arrow keys."; return; }
    const index = Math.floor(cell / place.perTile), tile = place.tiles[index], pfn = tile.pfn + (cell - tile.cell) * map.share;
    const holder = frames.holders[cell], event = frames.events[cell], now = report.data.steps.events[report.step];
    const counts = new Map();
    for (let i = tile.cell; i < tile.cell + place.perTile; i++) counts.set(frames.holders[i], (counts.get(frames.holders[i]) ?? 0) + 1);
    const largest = [...counts].sort((a, b) => b[1] - a[1]);
    const parts = largest.slice(0, 6).map(([one, count]) => `${number(count * map.share)} ${describe(one)}`);
    if (largest.length > 6) parts.push(`${number(sum(largest.slice(6).map(([, count]) => count)) * map.share)} others`);
    const age = event >= 0 ? `; handed out at event ${number(event)}, ${number(now - event)} events ago` : "";
    const where = map.share === 1 ? `Frame ${number(pfn)} (0x${pfn.toString(16)}), zone ${tile.zone.name}: ` : `A share of the pageblock from frame ${number(tile.pfn)} (0x${tile.pfn.toString(16)}), zone ${tile.zone.name}: `;
    panel.replaceChildren(
      make("p", {}, make("strong", {}, where), `${describe(holder)}${age}.${pinned >= 0 ? " (kept; click it again to let go)" : ""}`),
      make("p", { class: "muted" }, `Its pageblock (frames ${number(tile.pfn)} to ${number(tile.pfn + map.pageblock - 1)}, type ${typeOf(index)}): ${parts.join("; ")}.`));
  };

  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect(), x = (event.clientX - box.left) * place.ratio, y = (event.clientY - box.top) * place.ratio;
    const tile = place.tiles.find((one) => x >= one.x && x < one.x + place.tileWidth * place.cellSize && y >= one.y && y < one.y + place.tileHeight * place.cellSize);
    return tile ? tile.cell + Math.floor((y - tile.y) / place.cellSize) * place.tileWidth + Math.floor((x - tile.x) / place.cellSize) : -1;
  };
  let waiting = false;
  const later = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
  canvas.addEventListener("pointermove", (event) => { const cell = cellAt(event); if (cell !== pointed) { pointed = cell; if (pinned < 0) later(); } });
  canvas.addEventListener("pointerleave", () => { if (pinned < 0 && pointed >= 0) { pointed = -1; later(); } });
  canvas.addEventListener("click", (event) => { const cell = cellAt(event); pinned = cell === pinned ? -1 : cell; draw(); });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -place.tileWidth, ArrowDown: place.tileWidth, PageUp: -place.perTile, PageDown: place.perTile };
    if (event.key === "Escape") { pinned = -1; draw(); return; }
    if (!(event.key in moves)) return;
    event.preventDefault();
    pinned = Math.max(0, Math.min(map.cells - 1, (pinned >= 0 ? pinned : Math.max(pointed, 0)) + moves[event.key]));
    show();
    later();
  });
  report.listen(draw);
  report.downloads.frames = () => {
    frames.go(report.step);
    const rows = [];
    for (const [index, tile] of place.tiles.entries()) for (let cell = tile.cell; cell < tile.cell + place.perTile; cell++) {
      const holder = frames.holders[cell], event = frames.events[cell], last = rows.at(-1);
      if (last && last.index === index && last.holder === holder && last.event === event) { last.count += map.share; continue; }
      rows.push({ index, pfn: tile.pfn + (cell - tile.cell) * map.share, count: map.share, holder, event });
    }
    return report.csv(`frames-at-event-${report.data.steps.events[report.step]}`, [map.share === 1 ? "pfn" : "share_of_pageblock", "frames", "class", "holder", "event"],
      rows.map((row) => [row.pfn, row.count, classes[holders.class[row.holder]].key, describe(row.holder), row.event < 0 ? "" : row.event]));
  };
};
