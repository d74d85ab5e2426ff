// The tables beside the time line. Names come from the guest and are only ever set as text.
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") node.style.cssText = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const number = (n) => n.toLocaleString("en");
const swatch = (t) => el("span", { class: "swatch", style: `background:${colour(t, paint.dark)}` });
const taskById = new Map(report.tasks.map((task, t) => [task.id, t]));
const dash = (count, ns) => (count ? span(ns) : "–");

const columns = [
  ["task", (t) => t.name.toLowerCase(), null],
  ["run", (t) => -t.run_ns, (t) => span(t.run_ns)],
  ["wait", (t) => -t.wait_ns, (t) => span(t.wait_ns)],
  ["sleep", (t) => -t.sleep_ns, (t) => span(t.sleep_ns)],
  ["wakes", (t) => -t.wakeups, (t) => number(t.wakeups)],
  ["p99", (t) => -t.wakeup_latency.p99_ns, (t) => dash(t.wakeup_latency.count, t.wakeup_latency.p99_ns)],
  ["vol", (t) => -t.switches_voluntary, (t) => number(t.switches_voluntary)],
  ["inv", (t) => -t.switches_involuntary, (t) => number(t.switches_involuntary)],
  ["migr", (t) => -t.migrations, (t) => number(t.migrations)],
];
let sorted = 1;
const LISTED = 400;

function tasksPanel() {
  const chosen = report.tasks.map((_, t) => t).filter((t) => !view.found || view.found.has(t));
  const key = columns[sorted][1];
  chosen.sort((a, b) => (key(report.tasks[a]) < key(report.tasks[b]) ? -1 : key(report.tasks[a]) > key(report.tasks[b]) ? 1 : a - b));
  const head = el("tr", {}, ...columns.map(([name], i) => {
    const th = el("th", { class: "sort", onclick: () => { sorted = i; show("Tasks"); } }, name);
    if (i === sorted) th.dataset.on = "";
    return th;
  }));
  const body = chosen.slice(0, LISTED).map((t) => {
    const task = report.tasks[t];
    return el("tr", { class: `pick${t === view.task ? " on" : ""}`, title: `${task.name} (${task.id}), ${task.policy}, priority ${task.prio}`, onclick: () => selectTask(t) },
      el("td", {}, swatch(t), el("span", { class: "name" }, task.name)),
      ...columns.slice(1).map(([, , text]) => el("td", {}, text(task))));
  });
  const rest = chosen.length - body.length + (report.unlisted?.tasks ?? 0);
  return [el("table", {}, head, ...body), rest > 0 ? el("p", { class: "dim" }, `and ${number(rest)} more`) : null];
}

function cpusPanel() {
  const head = ["cpu", "busy", "idle", "switches", "ticks", "IPIs out/in", "steal"].map((name) => el("th", {}, name));
  const body = report.cpus.map((c) => el("tr", {}, ...[c.cpu, span(c.busy_ns), span(c.idle_ns), number(c.switches), number(c.ticks), `${number(c.ipis_sent)}/${number(c.ipis_received)}`, span(c.steal_ns)].map((v) => el("td", {}, String(v)))));
  const out = [el("table", {}, el("tr", {}, ...head), ...body)];
  const reasons = [...new Set(report.cpus.flatMap((c) => Object.keys(c.exits)))].sort();
  if (reasons.length) {
    out.push(el("h3", {}, "VM exits"), el("table", {}, el("tr", {}, el("th", {}, "cpu"), ...reasons.map((r) => el("th", {}, r))),
      ...report.cpus.map((c) => el("tr", {}, el("td", {}, String(c.cpu)), ...reasons.map((r) => el("td", {}, number(c.exits[r] ?? 0)))))));
  }
  const total = report.migrations.reduce((sum, m) => sum + m.count, 0);
  out.push(el("h3", {}, `Migrations: ${number(total)}`));
  if (total && report.cpus.length <= 16) {
    const most = Math.max(...report.migrations.map((m) => m.count));
    out.push(el("table", { class: "heat" }, el("tr", {}, el("th", {}, "from \\ to"), ...report.cpus.map((c) => el("th", {}, String(c.cpu)))),
      ...report.cpus.map((from) => el("tr", {}, el("td", {}, String(from.cpu)), ...report.cpus.map((to) => {
        const m = report.migrations.find((x) => x.from === from.cpu && x.to === to.cpu);
        const share = m ? Math.round(8 + 60 * m.count / most) : 0;
        return el("td", m ? { style: `background:color-mix(in srgb, ${paint.accent} ${share}%, transparent)` } : {}, m ? number(m.count) : "·");
      })))));
  } else if (total) {
    const most = [...report.migrations].sort((a, b) => b.count - a.count).slice(0, 40);
    out.push(el("table", {}, el("tr", {}, el("th", {}, "from"), el("th", {}, "to"), el("th", {}, "times")), ...most.map((m) => el("tr", {}, ...[m.from, m.to, number(m.count)].map((v) => el("td", {}, String(v)))))));
  }
  return out;
}

function histogram(title, d) {
  const most = Math.max(1, ...(d.buckets ?? []).map((b) => b.count));
  return [el("h3", {}, title),
    el("p", { class: "dim" }, d.count ? `${number(d.count)} times · mean ${span(d.mean_ns)} · p50 ${span(d.p50_ns)} · p99 ${span(d.p99_ns)} · max ${span(d.max_ns)}` : "never"),
    ...(d.buckets ?? []).map((b) => el("div", { class: "bar" }, el("span", { class: "dim" }, `${span(b.from_ns)} – ${span(b.to_ns)}`), el("span", {}, number(b.count)),
      el("i", { class: b.count ? "" : "none", style: `width:${(b.count / most * 100).toFixed(1)}%` })))];
}
const latencyPanel = () => [...histogram("Wake-up latency", report.wakeup_latency), ...histogram("Run delay", report.run_delay)];

function delaysPanel() {
  if (!report.worst_delays.length) return [el("p", { class: "dim" }, "No task ever waited for a CPU.")];
  return report.worst_delays.map((d) => {
    const t = taskById.get(d.task) ?? -1;
    const bars = d.instead.map((i) => el("span", { style: `width:${(i.ran_ns / d.delay_ns * 100).toFixed(1)}%;background:${i.task === null ? "transparent" : colour(taskById.get(i.task) ?? -1, paint.dark)}` }));
    return el("div", { class: "card", onclick: () => goTo(t, d.ready_ns - report.trace.begin_ns, d.delay_ns) },
      el("div", {}, el("b", {}, span(d.delay_ns)), "  ", swatch(t), `${d.name} `, el("span", { class: "dim" }, `${d.task} on CPU ${d.cpu}${d.woken_by === null ? "" : `, woken by ${d.woken_by}`}`)),
      el("div", { class: "split" }, ...bars),
      el("div", { class: "dim" }, d.instead.length ? `meanwhile: ${d.instead.map((i) => `${i.name} ${span(i.ran_ns)}`).join(", ")}` : "what ran meanwhile is not known"));
  });
}

function checksPanel() {
  const rows = report.invariants.map((i) => el("tr", {}, el("td", {}, i.name), el("td", {}, number(i.checked)),
    el("td", { class: i.violations ? "wrong" : i.checked ? "ok" : "dim" }, i.violations ? number(i.violations) : i.checked ? "✓ 0" : "–")));
  const out = [el("table", {}, el("tr", {}, el("th", {}, "invariant"), el("th", {}, "checked"), el("th", {}, "violations")), ...rows)];
  const t = report.trace;
  out.push(el("p", { class: "dim" }, `${number(t.records)} records, ${number(t.lost_records)} lost, ${number(t.missing_places)} places missing, ${number(t.unknown_records)} of unknown kind`));
  for (const v of report.violations) {
    out.push(el("div", { class: "violation", onclick: () => goTo(taskById.get(v.tasks[0]) ?? -1, v.time_ns - report.trace.begin_ns, 1e5) },
      el("b", {}, v.invariant), el("div", {}, v.what),
      el("pre", {}, v.around.map((r) => `${span(r.time_ns - report.trace.begin_ns).padStart(10)}  CPU ${r.cpu}  ${r.kind.padEnd(9)} ${r.task} #${r.seq}${r.to === undefined ? "" : ` → ${r.to}`}`).join("\n"))));
  }
  return out;
}

const panels = { Tasks: tasksPanel, CPUs: cpusPanel, Latency: latencyPanel, Delays: delaysPanel, Checks: checksPanel };
let shown = "Tasks";
function show(name) {
  shown = name;
  const tabs = document.getElementById("tabs"), bad = report.invariants.some((i) => i.violations);
  tabs.replaceChildren(...Object.keys(panels).map((tab) => el("button", { role: "tab", "aria-selected": String(tab === name), class: tab === "Checks" && bad ? "wrong" : "", onclick: () => show(tab) }, tab)));
  const panel = document.getElementById("panel"), at = panel.scrollTop;
  panel.replaceChildren(...panels[name]().filter(Boolean));
  panel.scrollTop = at;
}
