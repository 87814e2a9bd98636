// The live page: asks /status and /metrics every second and shows what changed. All text goes in by textContent: names of the server's are not markup.
"use strict";

const PERIOD_MS = 1000, POINTS = 120;
const at = (id) => document.getElementById(id);
let before = null, first = null, key = sessionStorage.getItem("key") || "";
const lines = { generated: [], prompt: [], requests: [], steps: [] };

function count(v) {
  if (v === null) return "–";
  return v >= 100 ? Math.round(v).toLocaleString("en") : v.toFixed(1);
}

function bytes(v) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; v >= 1024 && i < units.length - 1; i++) v /= 1024;
  return `${v >= 100 || i === 0 ? Math.round(v) : v.toFixed(1)} ${units[i]}`;
}

function seconds(ms) {
  if (ms < 0) return "–";
  if (ms < 10000) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  return h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

function row(cells, head) {
  const tr = document.createElement("tr");
  cells.forEach((cell, i) => {
    const td = document.createElement(head && i === 0 ? "th" : "td");
    if (cell instanceof Node) td.append(cell);
    else td.textContent = cell;
    tr.append(td);
  });
  return tr;
}

// Prometheus text -> [{ name, labels, value }]
function samples(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const m = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!m) continue;
    const labels = {};
    for (const l of (m[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[l[1]] = l[2];
    found.push({ name: m[1], labels, value: Number(m[3]) });
  }
  return found;
}

// A quantile of a histogram's growth, by interpolation inside its bucket, as PromQL's histogram_quantile does; null: nothing was observed.
function quantile(now, then, name, q) {
  const old = new Map();
  for (const s of then) if (s.name === `${name}_bucket`) old.set(s.labels.le, s.value);
  const buckets = now.filter((s) => s.name === `${name}_bucket`)
    .map((s) => ({ le: s.labels.le === "+Inf" ? Infinity : Number(s.labels.le), n: s.value - (old.get(s.labels.le) || 0) }))
    .sort((a, b) => a.le - b.le);
  const all = buckets.length ? buckets[buckets.length - 1].n : 0;
  if (!(all > 0)) return null;
  let low = 0, below = 0;
  for (const b of buckets) {
    if (b.n >= q * all) {
      if (b.le === Infinity) return low;
      return low + (b.le - low) * (b.n > below ? (q * all - below) / (b.n - below) : 1);
    }
    low = b.le;
    below = b.n;
  }
  return low;
}

function sum(list, name, label, value) {
  let v = 0;
  for (const s of list) if (s.name === name && (!label || s.labels[label] === value)) v += s.value;
  return v;
}

function line(id, value) {
  const points = lines[id];
  points.push(value === null ? 0 : value);
  if (points.length > POINTS) points.shift();
  const top = Math.max(...points, 1e-9);
  at(id).textContent = count(value);
  at(`${id}-line`).firstElementChild.setAttribute("points",
    points.map((v, i) => `${POINTS - points.length + i},${(29 - 28 * v / top).toFixed(1)}`).join(" "));
}

function pool(w) {
  const cached = Math.min(w.blocks_cached, w.blocks), busy = w.blocks - cached, all = Math.max(w.n_blocks, 1);
  const span = document.createElement("span"), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "pool");
  svg.setAttribute("viewBox", "0 0 100 1");
  svg.setAttribute("preserveAspectRatio", "none");
  for (const width of [w.blocks, busy]) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("width", String(100 * width / all));
    rect.setAttribute("height", "1");
    svg.append(rect);
  }
  span.append(svg, ` ${busy} + ${cached} of ${w.n_blocks}`);
  return span;
}

function percent(part, all) {
  return all > 0 ? `${(100 * part / all).toFixed(1)} %` : "–";
}

function show(status, metrics) {
  const s = status.scheduler, now = performance.now();
  if (!first || s.steps < first.steps) first = { metrics, steps: s.steps };
  const counters = { generated: s.completion_tokens, prompt: s.prompt_tokens, steps: s.steps,
                     requests: sum(metrics, "longspan_requests_total") };
  for (const id of Object.keys(counters)) {
    const known = before && counters[id] >= before.counters[id];
    line(id, known ? (counters[id] - before.counters[id]) * 1000 / (now - before.at) : null);
  }
  before = { at: now, counters };

  at("model").textContent = status.model;
  at("state").textContent = (status.ready ? "ready" : s.stalled_ms ? `no step for ${seconds(s.stalled_ms)}` : "not ready") +
    `, coordinator ${status.role}, up ${seconds(status.uptime_ms)}`;
  at("state").className = status.ready ? "" : "bad";
  const blocks = status.workers.filter((w) => ["ready", "draining", "drained"].includes(w.state));
  const total = (f) => blocks.reduce((n, w) => n + w[f], 0);
  at("facts").replaceChildren(
    row(["running", `${s.running} requests in ${s.groups} step groups`], true),
    row(["queue", s.waiting ? `${s.waiting}, the first for ${seconds(s.waited_ms)}` : "empty"], true),
    row(["KV in use", `${bytes(blocks.reduce((n, w) => n + (w.blocks - w.blocks_cached) * w.block_bytes, 0))} of ` +
      `${bytes(total("pool_bytes"))}, and ${bytes(blocks.reduce((n, w) => n + w.blocks_cached * w.block_bytes, 0))} as cache`], true),
    row(["KV read", `${percent(s.kv_bytes_read, s.kv_bytes_dense)} of what each sequence would read by itself`], true),
    row(["prompts from cache", percent(s.prefix_hit_tokens, s.prompt_tokens)], true),
    row(["longest context", `${status.positions_max.toLocaleString("en")} (pools hold ${status.positions_fit.toLocaleString("en")})`], true),
    row(["precision, KV codec, selector", `${status.precision}, ${status.kv_codec}, ${status.selector}`], true));
  at("workers").replaceChildren(...status.workers.map((w) => row([w.id, w.pid,
    w.state === "loading" ? `loading ${Math.round(100 * w.load_fraction)} %` : w.state, w.address, w.device, w.group, w.term, w.epoch, w.sequences, w.leaves,
    seconds(w.step_age_ms), bytes(w.resident_bytes), bytes(w.bytes_sent), bytes(w.bytes_received), pool(w)])));
  const ended = ["ok", "failed", "cancelled", "refused", "busy"].map((o) => {
    const n = sum(metrics, "longspan_requests_total", "outcome", o) - sum(first.metrics, "longspan_requests_total", "outcome", o);
    return `${n} ${o}`;
  });
  const times = (name) => [0.5, 0.9, 0.99].map((q) => {
    const v = quantile(metrics, first.metrics, name, q);
    return `p${q * 100} ${v === null ? "–" : v < 1 ? `${(1000 * v).toFixed(1)} ms` : `${v.toFixed(2)} s`}`;
  }).join(", ");
  at("ended").replaceChildren(row(["ended", ended.join(", ")], true),
    row(["time to first token", times("longspan_time_to_first_token_seconds")], true),
    row(["time per output token", times("longspan_time_per_output_token_seconds")], true));
  at("live").hidden = false;
}

function trouble(text) {
  at("state").textContent = text;
  at("state").className = "bad";
}

async function look() {
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const status = await fetch("status", { headers, cache: "no-store" });
    at("ask").hidden = status.status !== 401;
    if (status.status === 401) return trouble(key ? "this key is not known" : "a key is needed");
    if (!status.ok) return trouble(`/status: ${status.status}`);
    const metrics = await fetch("metrics", { cache: "no-store" });
    if (!metrics.ok) return trouble(`/metrics: ${metrics.status}`);
    show(await status.json(), samples(await metrics.text()));
  } catch (e) {
    trouble(`the coordinator does not answer (${e.message})`);
    before = null;
  }
}

async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, PERIOD_MS);
}

at("ask").addEventListener("submit", (e) => {
  e.preventDefault();
  key = at("key").value;
  sessionStorage.setItem("key", key);
  look();
});
watch();
