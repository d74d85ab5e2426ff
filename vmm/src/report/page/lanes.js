// The slices of CPUs and tasks, from near (each as it was) and from afar (by levels). What a frame costs is bounded by its pixels.
const cpuLanes = picture.lanes.map((lane) => ({ lo: lane.first, hi: lane.last, at: (i) => i }));
const taskLanes = new Map();
function taskLane(t) {
  let lane = taskLanes.get(t);
  if (!lane) taskLanes.set(t, lane = { lo: byTask.first[t], hi: byTask.first[t + 1], at: (i) => byTask.order[i] });
  return lane;
}

/** Names to be written over the pixels, when all are there. */
let names = [];
/** What a lane looks like: `bar` has its slices, `waits` the height of the band for the time before them. */
const CPU_LOOK = { names: true, waits: 0 }, TASK_LOOK = { names: false, waits: 7 };
/** A run that is wider than this has room for its name. */
const NAME_ROOM = 34;

const ink = (t) => (t < 0 ? (faded(t) ? paint.otherFadedInk : paint.otherInk) : faded(t) ? paint.taskFadedInk[t] : paint.taskInk[t]);

/** Draws a lane from y to y + h, both in the page's pixels. */
function drawLane(lane, y, h, look) {
  const ratio = canvas.width / width(), left = Math.round(view.GUTTER * ratio), columns = canvas.width - left;
  const pixel = (view.to - view.from) / columns;
  const frame = { left, columns, pixel, y: Math.round(y * ratio), h: Math.round(h * ratio), ratio };
  const i = after(slices.end, view.from, lane.lo, lane.hi, lane.at);
  // The next one's wait may be in view, though it is not.
  const last = Math.min(lane.hi, after(slices.start, view.to, i, lane.hi, lane.at) + 1);
  const level = last - i > columns ? levelFor(lane, pixel) : undefined;
  if (level) drawFar(level, frame, look); else drawNear(lane, i, last, frame, look);
}

function drawFar(level, { left, columns, pixel, y, h, ratio }, look) {
  const { part, ran, wait, most, task } = level, band = Math.round(look.waits * ratio), middle = y + ((h - band) >> 1);
  for (let c = 0; c < columns; c++) {
    const from = view.from + c * pixel, first = Math.floor(from / part), end = Math.min(ran.length, Math.max(first + 1, Math.floor((from + pixel) / part)));
    let running = 0, waiting = 0, top = first;
    for (let p = first; p < end; p++) {
      running += ran[p];
      waiting += wait[p];
      if (most[p] > most[top]) top = p;
    }
    const time = (end - first) * part;
    if (band && waiting > 0) raster.column(left + c, middle, band, withAlpha(paint.waitInk, 0.25 + 0.75 * Math.min(1, waiting / time)));
    if (running > 0) {
      const tall = Math.max(2, Math.round(h * Math.sqrt(Math.min(1, running / time))));
      raster.column(left + c, y + h - tall, tall, ink(task[top]));
    }
  }
}

function drawNear(lane, i, last, { left, columns, pixel, y, h, ratio }, look) {
  const { at } = lane, x = (time) => left + Math.round(Math.min(columns, Math.max(0, (time - view.from) / pixel)));
  const band = Math.round(look.waits * ratio), middle = y + ((h - band) >> 1);
  while (i < last) {
    const k = at(i), start = slices.start[k], end = slices.end[k], x0 = x(start), x1 = x(end);
    if (band && slices.wait[k] > 0) raster.rect(x(start - slices.wait[k]), middle, Math.max(1, x0 - x(start - slices.wait[k])), band, paint.waitInk);
    if (start >= view.to) return;
    if (x1 - x0 > 1) {
      const together = slices.flags[k] & Flag.TOGETHER, gap = x1 - x0 > 4 ? 1 : 0;
      const share = together ? 0.35 + 0.65 * Math.min(1, slices.ran[k] / (end - start)) : 1;
      raster.rect(x0, y, x1 - x0 - gap, h, withAlpha(ink(slices.task[k]), share));
      if (look.names && x1 - x0 > NAME_ROOM * ratio) names.push({ k, x: x0 / ratio, w: (x1 - x0) / ratio, y: y / ratio, h: h / ratio });
      i++;
      continue;
    }
    // Those that end in this pixel: the longest of the first few gives the colour, their time together the height.
    const until = view.from + (x0 - left + 1) * pixel, next = Math.max(i + 1, after(slices.end, until, i, last, at)), few = Math.min(next, i + 32);
    let longest = k, ran = 0;
    for (let j = i; j < few; j++) {
      ran += slices.ran[at(j)];
      if (slices.ran[at(j)] > slices.ran[longest]) longest = at(j);
    }
    const share = Math.min(1, ran / (few - i) * (next - i) / pixel), tall = Math.max(2, Math.round(h * Math.sqrt(share)));
    if (x0 < left + columns) raster.column(x0, y + h - tall, tall, ink(slices.task[longest]));
    i = next;
  }
}

function drawNames(g) {
  g.font = "11px system-ui, 'DejaVu Sans', sans-serif";
  for (const { k, x, w, y, h } of names) {
    const t = slices.task[k], several = slices.flags[k] & Flag.TOGETHER ? ` ×${slices.count[k]}` : "";
    g.fillStyle = faded(t) ? paint.dim : paint.dark ? "rgba(8,12,18,.92)" : "rgba(255,255,255,.96)";
    g.save();
    g.beginPath();
    g.rect(x, y, w - 3, h);
    g.clip();
    g.fillText(label(t) + several, x + 5, y + h / 2 + 0.5);
    g.restore();
  }
  names = [];
}
