// Mouse, keyboard, selection, and the loop that draws when something has changed.
const tip = document.getElementById("tip"), search = document.getElementById("search");

function selectTask(t, slice = -1) {
  view.task = t === view.task && slice < 0 ? -1 : t;
  view.selected = slice;
  if (view.task >= 0) reveal(view.task);
  view.dirty = true;
  if (shown === "Tasks") show("Tasks");
}
function reveal(t) {
  const row = rowOf.get(t);
  if (row === undefined) return;
  const y = taskTop(row), top = cpuOverflow() ? view.RULER : tasksTop();
  if (y < top) scrollBy(y - top); else if (y + view.TASK > height()) scrollBy(y + view.TASK - height());
}
/** Shows a stretch of time with some room around it, and the task's run at its end. */
function goTo(t, time, long) {
  setRange(time - long, time + 2 * long);
  if (t < 0) return;
  const { first, order } = byTask, at = (i) => order[i];
  const i = after(slices.start, time, first[t], first[t + 1], at);
  view.task = -1;
  selectTask(t, i < first[t + 1] ? order[i] : -1);
}
function step(by) {
  if (view.task < 0) return;
  const { first, order } = byTask, lo = first[view.task], hi = first[view.task + 1];
  const here = view.selected >= 0 ? slices.start[view.selected] : (view.from + view.to) / 2;
  const i = after(slices.start, here, lo, hi, (j) => order[j]) - (by < 0 ? (view.selected >= 0 ? 2 : 1) : 0);
  if (i < lo || i >= hi) return;
  const k = order[i], spanned = view.to - view.from;
  selectTask(view.task, k);
  if (slices.start[k] < view.from || slices.end[k] > view.to) setRange(slices.start[k] - spanned / 2, slices.start[k] + spanned / 2);
}

function describe(k) {
  const s = slices, t = s.task[k], task = t >= 0 ? report.tasks[t] : null, flags = s.flags[k], rows = [];
  const row = (name, value) => rows.push(el("tr", {}, el("td", {}, name), el("td", {}, value)));
  row("from", span(s.start[k]));
  if (flags & Flag.TOGETHER) {
    row("shown together", `${number(s.count[k])} slices over ${span(s.end[k] - s.start[k])}`);
    row("ran in all", span(s.ran[k]));
  } else {
    row("ran", span(s.ran[k]));
    if (s.wait[k] > 0) row("was ready for", span(s.wait[k]));
    if (flags & Flag.WOKEN) row("woken by", `${label(s.waker[k])} on CPU ${s.wakerCpu[k]}, ${span(s.latency[k])} before`);
    const state = STATES[flags & Flag.STATE] ?? "?";
    row("then", flags & Flag.PREEMPTED ? "was preempted" : state === "ready" ? "gave way" : state === "running" ? "trace ends" : state);
  }
  row("on", `CPU ${picture.lanes[s.lane[k]].cpu}`);
  if (task) row("policy", `${task.policy}, priority ${task.prio}`);
  return [el("b", {}, swatch(t), label(t)), task ? el("span", { class: "dim" }, `  ${task.id}`) : null, el("table", {}, ...rows)].filter(Boolean);
}
function showTip(x, y) {
  const k = hit(x, y);
  view.hover = k;
  if (k < 0) { tip.hidden = true; return; }
  tip.replaceChildren(...describe(k));
  tip.hidden = false;
  const top = y + overview.clientHeight;
  tip.style.left = `${Math.min(x + 16, width() - tip.offsetWidth - 8)}px`;
  tip.style.top = `${top + 18 + tip.offsetHeight > canvas.parentElement.clientHeight ? top - tip.offsetHeight - 12 : top + 18}px`;
}

let drag = null;
canvas.addEventListener("wheel", (e) => {
  e.preventDefault();
  if (e.offsetX < view.GUTTER || e.altKey) return scrollBy(e.deltaY);
  if (e.shiftKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) return pan((e.deltaX || e.deltaY) / 1200);
  zoom(Math.exp(e.deltaY * 0.0018), e.offsetX);
}, { passive: false });
canvas.addEventListener("pointerdown", (e) => {
  canvas.setPointerCapture(e.pointerId);
  canvas.focus({ preventScroll: true });
  drag = { x: e.offsetX, y: e.offsetY, from: view.from, to: view.to, scroll: view.scroll, moved: false };
});
canvas.addEventListener("pointermove", (e) => {
  if (!drag) return showTip(e.offsetX, e.offsetY);
  drag.moved ||= Math.hypot(e.offsetX - drag.x, e.offsetY - drag.y) > 4;
  if (!drag.moved) return;
  canvas.classList.add("drag");
  tip.hidden = true;
  const by = (drag.x - e.offsetX) / (width() - view.GUTTER) * (drag.to - drag.from);
  setRange(drag.from + by, drag.to + by);
  scrollBy(drag.scroll + drag.y - e.offsetY - view.scroll);
});
canvas.addEventListener("pointerup", (e) => {
  canvas.classList.remove("drag");
  const click = drag && !drag.moved;
  drag = null;
  if (!click) return;
  const k = hit(e.offsetX, e.offsetY), row = rowAt(e.offsetY);
  if (k >= 0 && slices.task[k] >= 0) { view.task = -1; selectTask(slices.task[k], k); }
  else if (e.offsetX < view.GUTTER && row >= 0) selectTask(rows()[row]);
  else { view.task = view.selected = -1; view.dirty = true; show(shown); }
});
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });

let brush = null;
const overviewTime = (e) => e.offsetX / overview.clientWidth * END;
overview.addEventListener("pointerdown", (e) => { overview.setPointerCapture(e.pointerId); brush = overviewTime(e); });
overview.addEventListener("pointermove", (e) => {
  if (brush === null || Math.abs(overviewTime(e) - brush) < END / overview.clientWidth * 3) return;
  setRange(Math.min(brush, overviewTime(e)), Math.max(brush, overviewTime(e)));
});
overview.addEventListener("pointerup", (e) => {
  if (brush !== null && Math.abs(overviewTime(e) - brush) < END / overview.clientWidth * 3) {
    const half = (view.to - view.from) / 2;
    setRange(brush - half, brush + half);
  }
  brush = null;
});

search.addEventListener("input", () => {
  const text = search.value.trim().toLowerCase();
  view.found = text ? new Set(report.tasks.map((_, t) => t).filter((t) => report.tasks[t].name.toLowerCase().includes(text) || String(report.tasks[t].id) === text)) : null;
  view.rows = [...rowOf.keys()].filter((t) => !view.found || view.found.has(t));
  view.scroll = 0;
  view.dirty = true;
  show("Tasks");
});
search.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && view.found?.size) { view.task = -1; selectTask([...view.found][0]); canvas.focus(); }
});

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  loadColours();
  view.dirty = true;
  show(shown);
}
const otherTheme = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
document.getElementById("theme").addEventListener("click", otherTheme);
const help = document.getElementById("help");
document.getElementById("help-button").addEventListener("click", () => help.showModal());

const keys = {
  w: () => zoom(1 / 1.5), "+": () => zoom(1 / 1.5), "=": () => zoom(1 / 1.5), s: () => zoom(1.5), "-": () => zoom(1.5),
  a: () => pan(-0.2), ArrowLeft: () => pan(-0.2), d: () => pan(0.2), ArrowRight: () => pan(0.2),
  ArrowUp: () => scrollBy(-view.TASK), ArrowDown: () => scrollBy(view.TASK), PageUp: () => scrollBy(-height() / 2), PageDown: () => scrollBy(height() / 2),
  0: () => setRange(0, END), Home: () => setRange(0, END), "[": () => step(-1), "]": () => step(1), t: otherTheme, "?": () => help.showModal(),
  "/": () => search.focus(),
  f: () => {
    if (view.selected < 0) return;
    const long = Math.max(MIN_SPAN, slices.end[view.selected] - slices.start[view.selected] + slices.wait[view.selected]);
    setRange(slices.start[view.selected] - slices.wait[view.selected] - long / 2, slices.end[view.selected] + long / 2);
  },
  Escape: () => { search.value = ""; view.found = null; view.rows = [...rowOf.keys()]; view.task = view.selected = -1; view.dirty = true; search.blur(); show(shown); },
};
addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || help.open || (e.target === search && e.key !== "Escape")) return;
  const action = keys[e.key];
  if (action) { e.preventDefault(); action(); }
});
new ResizeObserver(() => { scrollBy(0); view.dirty = true; }).observe(canvas);

(() => {
  const t = report.trace, facts = document.getElementById("facts"), bad = report.invariants.reduce((sum, i) => sum + i.violations, 0);
  const chip = (text, kind = "") => facts.append(el("span", { class: `chip ${kind}` }, text));
  document.getElementById("program").textContent = t.program.join(" ");
  document.title = `${t.program[0] ?? "Taskvisor"}: trace`;
  chip(`${report.cpus.length} CPU${report.cpus.length === 1 ? "" : "s"}`);
  chip(span(END));
  chip(`${number(t.records)} records`);
  if (t.policy) chip(t.policy);
  if (t.lost_records) chip(`${number(t.lost_records)} lost`, "bad");
  if (picture.resolution) chip(`below ${span(picture.resolution)} drawn together`);
  chip(bad ? `${number(bad)} violations` : "all invariants hold", bad ? "bad" : "good");
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  if (bad) show("Checks");
  const loop = () => {
    if (view.dirty) draw();
    requestAnimationFrame(loop);
  };
  loop();
})();
