// The time line: what part of it is shown, and everything on it but the slices (lanes.js).
const canvas = document.getElementById("timeline"), overview = document.getElementById("overview");
const view = {
  from: 0, to: END, scroll: 0, selected: -1, task: -1, found: null, hover: -1, dirty: true, frames: 0,
  GUTTER: 148, RULER: 26, CPU: 30, GAP: 4, TASK: 20,
};
const MIN_SPAN = 200;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
let paint = {};
function loadColours() {
  const dark = document.documentElement.dataset.theme === "dark";
  paint = { dark };
  for (const name of ["bg", "panel", "line", "text", "dim", "accent", "lane", "wait", "sleep", "bad"]) paint[name] = css(`--${name}`);
  paint.task = report.tasks.map((_, t) => colour(t, dark));
  paint.taskInk = Uint32Array.from(report.tasks, (_, t) => packHsl(hsl(t, dark), 1));
  paint.taskFadedInk = Uint32Array.from(report.tasks, (_, t) => packHsl(hsl(t, dark), 0.16));
  paint.otherInk = packHsl(hsl(-1, dark), 1);
  paint.otherFadedInk = packHsl(hsl(-1, dark), 0.16);
  paint.waitInk = packCss(paint.wait);
}

const width = () => canvas.clientWidth, height = () => canvas.clientHeight;
const xOf = (time) => view.GUTTER + (time - view.from) / (view.to - view.from) * (width() - view.GUTTER);
const timeAt = (x) => view.from + (x - view.GUTTER) / (width() - view.GUTTER) * (view.to - view.from);
const cpuTop = (lane) => view.RULER + 6 + lane * (view.CPU + view.GAP) - (cpuOverflow() ? view.scroll : 0);
const cpusHeight = () => picture.lanes.length * (view.CPU + view.GAP) + 12;
/** With so many CPUs that they fill the view, everything scrolls together. */
const cpuOverflow = () => cpusHeight() > height() * 0.55;
const tasksTop = () => view.RULER + cpusHeight() + 18;
const taskTop = (row) => tasksTop() + row * view.TASK - view.scroll;
const rows = () => view.rows;
view.rows = report.tasks.map((_, t) => t).filter((t) => byTask.first[t + 1] > byTask.first[t]);
const rowOf = new Map(view.rows.map((t, row) => [t, row]));

function setRange(from, to) {
  let spanned = Math.min(END, Math.max(MIN_SPAN, to - from));
  from = Math.min(Math.max(0, from), END - spanned);
  view.from = from;
  view.to = from + spanned;
  view.dirty = true;
}
function zoom(factor, x = (width() + view.GUTTER) / 2) {
  const at = timeAt(x), spanned = Math.min(END, Math.max(MIN_SPAN, (view.to - view.from) * factor));
  const share = (at - view.from) / (view.to - view.from);
  setRange(at - spanned * share, at + spanned * (1 - share));
}
function pan(share) {
  const by = (view.to - view.from) * share;
  setRange(view.from + by, view.to + by);
}
function scrollBy(dy) {
  const all = tasksTop() + rows().length * view.TASK + 12 - height();
  view.scroll = Math.min(Math.max(0, view.scroll + dy), Math.max(0, all));
  view.dirty = true;
}

const faded = (t) => (view.found && !view.found.has(t)) || (view.task >= 0 && !view.found && view.task !== t);
function fit(c) {
  const ratio = window.devicePixelRatio || 1, w = Math.round(c.clientWidth * ratio), h = Math.round(c.clientHeight * ratio);
  if (c.width !== w || c.height !== h) { c.width = w; c.height = h; }
  const g = c.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, c.clientWidth, c.clientHeight);
  return g;
}

function drawRuler(g) {
  const spanned = view.to - view.from, target = spanned / Math.max(2, (width() - view.GUTTER) / 110);
  const power = 10 ** Math.floor(Math.log10(target)), step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= target);
  g.fillStyle = paint.panel;
  g.fillRect(0, 0, width(), view.RULER);
  g.textBaseline = "middle";
  for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) {
    const x = Math.round(xOf(t)) + 0.5;
    g.strokeStyle = paint.line;
    g.globalAlpha = 0.6;
    g.beginPath();
    g.moveTo(x, view.RULER);
    g.lineTo(x, height());
    g.stroke();
    g.globalAlpha = 1;
    g.fillStyle = paint.dim;
    g.fillText(span(t), x + 4, view.RULER / 2);
  }
  g.fillStyle = paint.text;
  g.fillText(`${span(spanned)} shown`, 12, view.RULER / 2);
}

function drawCpus(g) {
  picture.lanes.forEach((lane, n) => {
    const y = cpuTop(n);
    if (y + view.CPU < view.RULER || y > height()) return;
    g.fillStyle = paint.lane;
    g.fillRect(view.GUTTER, y, width() - view.GUTTER, view.CPU);
    drawLane(cpuLanes[n], y, view.CPU, CPU_LOOK);
    const figures = report.cpus.find((c) => c.cpu === lane.cpu), known = figures ? figures.busy_ns + figures.idle_ns : 0;
    g.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    g.fillStyle = paint.text;
    g.fillText(`CPU ${lane.cpu}`, 12, y + view.CPU / 2);
    if (known > 0) {
      const share = figures.busy_ns / known;
      g.fillStyle = paint.line;
      g.fillRect(66, y + view.CPU / 2 - 3, 34, 6);
      g.fillStyle = paint.accent;
      g.fillRect(66, y + view.CPU / 2 - 3, 34 * share, 6);
      g.fillStyle = paint.dim;
      g.fillText(`${Math.round(share * 100)}%`, 106, y + view.CPU / 2);
    }
  });
}

/** A task's lane: thin while it sleeps, a band while it waits for a CPU, full while it runs. */
function drawTask(g, t, y) {
  const h = view.TASK - 6, task = report.tasks[t];
  const begin = Math.max(view.from, task.first_ns - report.trace.begin_ns);
  const end = Math.min(view.to, (task.ended_ns ?? report.trace.end_ns) - report.trace.begin_ns);
  if (end > begin) {
    g.globalAlpha = faded(t) ? 0.4 : 1;
    g.fillStyle = paint.sleep;
    g.fillRect(xOf(begin), y + h / 2 - 1, Math.max(1, xOf(end) - xOf(begin)), 2);
    g.globalAlpha = 1;
  }
  drawLane(taskLane(t), y, h, TASK_LOOK);
}

function drawTasks(g) {
  const top = tasksTop() - (cpuOverflow() ? view.scroll : 0), clip = cpuOverflow() ? view.RULER : tasksTop() - 4;
  g.save();
  g.beginPath();
  g.rect(0, clip, width(), height() - clip);
  g.clip();
  raster.clipTop(clip * canvas.height / height());
  const firstRow = Math.max(0, Math.floor((clip - taskTop(0)) / view.TASK));
  for (let row = firstRow; row < rows().length && taskTop(row) < height(); row++) {
    const t = rows()[row], y = taskTop(row) + 3;
    if (t === view.task) {
      g.fillStyle = paint.lane;
      g.fillRect(0, y - 3, width(), view.TASK);
    }
    drawTask(g, t, y);
    g.globalAlpha = faded(t) ? 0.4 : 1;
    g.fillStyle = paint.task[t];
    g.fillRect(12, y + 3, 8, 8);
    g.fillStyle = paint.text;
    g.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    g.save();
    g.beginPath();
    g.rect(0, y - 3, view.GUTTER - 44, view.TASK);
    g.clip();
    g.fillText(label(t), 26, y + view.TASK / 2 - 3);
    g.restore();
    g.fillStyle = paint.dim;
    g.textAlign = "right";
    g.fillText(String(report.tasks[t].id), view.GUTTER - 8, y + view.TASK / 2 - 3);
    g.textAlign = "left";
    g.globalAlpha = 1;
  }
  g.restore();
  if (!cpuOverflow()) {
    g.fillStyle = paint.dim;
    g.font = "10px system-ui, 'DejaVu Sans', sans-serif";
    g.fillText(`TASKS  ${rows().length}`, 12, top - 12);
    const key = [["runs", paint.accent, 9], ["ready", paint.wait, 6], ["sleeps", paint.sleep, 2]];
    let x = view.GUTTER;
    for (const [text, fillStyle, h] of key) {
      g.fillStyle = fillStyle;
      g.fillRect(x, top - 12 - h / 2, 16, h);
      g.fillStyle = paint.dim;
      g.fillText(text, x + 21, top - 12);
      x += 66;
    }
  }
}

/** The wake-ups that began the visible runs of the selection. */
function drawArrows(g) {
  const laneOf = (cpu) => picture.lanes.findIndex((lane) => lane.cpu === cpu);
  const arrow = (k, strong) => {
    if (!(slices.flags[k] & Flag.WOKEN) || slices.flags[k] & Flag.TOGETHER) return;
    const from = laneOf(slices.wakerCpu[k]), to = slices.lane[k], x0 = xOf(slices.start[k] - slices.latency[k]), x1 = xOf(slices.start[k]);
    if (from < 0 || x1 < view.GUTTER || x0 > width()) return;
    const y0 = cpuTop(from) + (from < to ? view.CPU : from === to ? 2 : 0), y1 = cpuTop(to) + (from > to ? view.CPU : 0);
    g.strokeStyle = g.fillStyle = paint.text;
    g.globalAlpha = strong ? 1 : 0.45;
    g.lineWidth = strong ? 1.8 : 1;
    const bend = from === to ? -16 : 0, my = (y0 + y1) / 2 + bend;
    g.beginPath();
    g.moveTo(x0, y0);
    g.bezierCurveTo(x0 + 2, my, x1 - 2, my, x1, y1);
    g.stroke();
    const up = y1 > my ? -1 : 1;
    g.beginPath();
    g.arc(x0, y0, strong ? 3 : 2, 0, 7);
    g.fill();
    g.beginPath();
    g.moveTo(x1, y1);
    g.lineTo(x1 - 4, y1 + 7 * up);
    g.lineTo(x1 + 4, y1 + 7 * up);
    g.fill();
    g.globalAlpha = g.lineWidth = 1;
  };
  g.save();
  g.beginPath();
  g.rect(view.GUTTER, view.RULER, width() - view.GUTTER, height());
  g.clip();
  if (view.task >= 0) {
    const { first, order } = byTask, lo = first[view.task], hi = first[view.task + 1], at = (i) => order[i];
    const i = after(slices.end, view.from, lo, hi, at), last = after(slices.start, view.to, i, hi, at);
    if (last - i <= 120) for (let j = i; j < last; j++) arrow(order[j], order[j] === view.selected);
  }
  if (view.selected >= 0) {
    arrow(view.selected, true);
    const k = view.selected, y = cpuTop(slices.lane[k]), x = xOf(slices.start[k]), w = Math.max(2, xOf(slices.end[k]) - x);
    g.strokeStyle = paint.text;
    g.lineWidth = 2;
    g.strokeRect(x - 0.5, y - 0.5, w, view.CPU + 1);
    g.lineWidth = 1;
  }
  g.restore();
}

let strip = null;
/** The strip above: how busy each CPU was over the whole trace, drawn once, and the part that is shown. */
function drawOverview() {
  const g = fit(overview), w = overview.clientWidth, h = overview.clientHeight, lanes = Math.max(1, picture.lanes.length);
  if (!strip || strip.w !== w || strip.dark !== paint.dark) {
    const columns = Math.max(1, Math.floor(w)), busy = new Float64Array(columns);
    for (let k = 0; k < slices.total; k++) {
      const a = slices.start[k] / END * columns, b = slices.end[k] / END * columns, dense = slices.ran[k] / Math.max(1, slices.end[k] - slices.start[k]);
      for (let c = Math.floor(a); c < Math.min(columns, Math.ceil(b)); c++) busy[c] += (Math.min(b, c + 1) - Math.max(a, c)) * dense;
    }
    strip = { w, dark: paint.dark, busy };
  }
  g.fillStyle = paint.accent;
  strip.busy.forEach((b, c) => {
    const tall = Math.min(1, b / lanes) * (h - 10);
    g.globalAlpha = 0.55;
    g.fillRect(c, h - 3 - tall, 1, tall);
  });
  g.globalAlpha = 1;
  const x0 = view.from / END * w, x1 = Math.max(x0 + 3, view.to / END * w);
  g.fillStyle = paint.bg;
  g.globalAlpha = 0.72;
  g.fillRect(0, 0, x0, h);
  g.fillRect(x1, 0, w - x1, h);
  g.globalAlpha = 1;
  g.strokeStyle = paint.accent;
  g.lineWidth = 2;
  g.strokeRect(x0 + 1, 1, x1 - x0 - 2, h - 2);
  g.fillStyle = paint.accent;
  for (const v of report.violations) {
    g.fillStyle = paint.bad;
    g.fillRect((v.time_ns - report.trace.begin_ns) / END * w - 1, 0, 2, 8);
  }
}

function draw() {
  view.dirty = false;
  const g = fit(canvas);
  g.font = "11px system-ui, 'DejaVu Sans', sans-serif";
  drawRuler(g);
  g.save();
  g.beginPath();
  g.rect(0, view.RULER, width(), height());
  g.clip();
  raster.begin(canvas.width, canvas.height);
  raster.clipTop(view.RULER * canvas.height / height());
  drawCpus(g);
  drawTasks(g);
  raster.end(g);
  drawNames(g);
  drawArrows(g);
  g.restore();
  drawOverview();
  view.frames++;
}

/** The slice under a point, or -1. */
function hit(x, y) {
  if (x < view.GUTTER || y < view.RULER) return -1;
  const time = timeAt(x), slack = (view.to - view.from) / (width() - view.GUTTER) * 2;
  const search = (lo, hi, at) => {
    let i = after(slices.end, time - slack, lo, hi, at);
    // Of those within reach, the one that the point is in, else the first.
    for (let j = i; j < hi && slices.start[at(j)] <= time; j++) if (slices.end[at(j)] >= time) return at(j);
    return i < hi && slices.start[at(i)] <= time + slack ? at(i) : -1;
  };
  for (let n = 0; n < picture.lanes.length; n++) {
    const top = cpuTop(n);
    if (y >= top && y < top + view.CPU) return search(picture.lanes[n].first, picture.lanes[n].last, (i) => i);
  }
  const row = rowAt(y);
  return row < 0 ? -1 : search(byTask.first[rows()[row]], byTask.first[rows()[row] + 1], (i) => byTask.order[i]);
}
function rowAt(y) {
  if (!cpuOverflow() && y < tasksTop() - 4) return -1;
  const row = Math.floor((y - taskTop(0)) / view.TASK);
  return row >= 0 && row < rows().length ? row : -1;
}
