// The report and the slices, decoded into flat arrays. Nothing here knows of the screen.
const report = JSON.parse(document.getElementById("report").textContent);
const picture = JSON.parse(document.getElementById("slices").textContent);
const END = Math.max(1, report.trace.end_ns - report.trace.begin_ns);

const Flag = { STATE: 7, PREEMPTED: 8, TOGETHER: 16, WOKEN: 32 };
const STATES = ["new", "ready", "running", "blocking", "waits", "has ended"];

/** All slices, those of one CPU after the other, by time. Times are nanoseconds since the trace's begin. */
const slices = (() => {
  const total = picture.lanes.reduce((sum, lane) => sum + lane.slices, 0);
  const s = {
    total, start: new Float64Array(total), end: new Float64Array(total), task: new Int32Array(total), lane: new Int32Array(total),
    flags: new Uint8Array(total), wait: new Float64Array(total), count: new Uint32Array(total).fill(1), ran: new Float64Array(total),
    waker: new Int32Array(total).fill(-1), wakerCpu: new Int32Array(total).fill(-1), latency: new Float64Array(total),
  };
  const index = new Map(picture.serials.map((serial, i) => [serial, i]));
  let at = 0;
  picture.lanes.forEach((lane, number) => {
    const text = atob(lane.data), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    let p = 0;
    const varint = () => {
      let n = 0, scale = 1, b;
      do { b = bytes[p++]; n += (b & 127) * scale; scale *= 128; } while (b > 127);
      return n;
    };
    const taskOf = (serial) => index.get(serial) ?? -1;
    lane.first = at;
    for (let time = 0, i = 0; i < lane.slices; i++, at++) {
      s.start[at] = time + varint();
      time = s.end[at] = s.start[at] + varint();
      s.task[at] = taskOf(varint());
      const flags = s.flags[at] = bytes[p++];
      s.wait[at] = varint();
      s.lane[at] = number;
      s.ran[at] = s.end[at] - s.start[at];
      if (flags & Flag.TOGETHER) { s.count[at] = varint(); s.ran[at] = varint(); }
      if (flags & Flag.WOKEN) { s.waker[at] = taskOf(varint()); s.wakerCpu[at] = varint(); s.latency[at] = varint(); }
    }
    lane.last = at;
    delete lane.data;
  });
  return s;
})();

/** Each task's slices by time: order[first[t]] to order[first[t + 1] - 1]. */
const byTask = (() => {
  const tasks = report.tasks.length, first = new Uint32Array(tasks + 1), order = new Uint32Array(slices.total);
  for (let i = 0; i < slices.total; i++) if (slices.task[i] >= 0) first[slices.task[i] + 1]++;
  for (let t = 0; t < tasks; t++) first[t + 1] += first[t];
  const next = first.slice();
  for (let i = 0; i < slices.total; i++) if (slices.task[i] >= 0) order[next[slices.task[i]]++] = i;
  for (let t = 0; t < tasks; t++) order.subarray(first[t], first[t + 1]).sort((a, b) => slices.start[a] - slices.start[b]);
  return { first, order };
})();

/** First index in [lo, hi) whose value is greater than `time`. */
function after(values, time, lo, hi, map = (i) => i) {
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (values[map(mid)] > time) hi = mid; else lo = mid + 1;
  }
  return lo;
}

/** Nanoseconds for people. */
function span(ns) {
  const a = Math.abs(ns);
  if (a < 1e3) return `${Math.round(ns)} ns`;
  if (a < 1e6) return `${(ns / 1e3).toFixed(a < 1e4 ? 2 : 1)} µs`;
  if (a < 1e9) return `${(ns / 1e6).toFixed(a < 1e7 ? 2 : 1)} ms`;
  return `${(ns / 1e9).toFixed(a < 1e10 ? 3 : 2)} s`;
}

const label = (t) => t < 0 ? "(not listed)" : report.tasks[t].name;

/** Colours far apart for tasks next to each other in the table: steps of the golden angle. Hue, saturation, lightness. */
function hsl(t, dark) {
  if (t < 0) return [216, 11, dark ? 52 : 60];
  const ring = Math.floor(t / 12) % 3;
  return [(t * 137.508 + 212) % 360, dark ? 55 : 62, (dark ? 56 : 58) + (ring - 1) * 9];
}
function colour(t, dark) {
  const [hue, saturation, light] = hsl(t, dark);
  return `hsl(${hue.toFixed(1)},${saturation}%,${light}%)`;
}
