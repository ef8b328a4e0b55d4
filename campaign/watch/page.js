"use strict";
// Asks for a view of the campaign now and then, and draws what has changed. Names, errors and sites are of whoever ran
// the campaign: they are only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const PARTS = {
  server_s: "to the task server", queue_s: "to a worker, and waiting for it", compute_s: "computing",
  store_s: "stores", return_s: "back to the task server", notify_s: "to the Thinker",
};
const byId = (id) => document.getElementById(id);
const pollMs = Number(document.body.dataset.pollMs);
const token = new URLSearchParams(location.search).get("token") || "";
const drawn = new Map();
let view = null, etag = null, lostSince = null, timer = null;

// Elements -----------------------------------------------------------------------------------------------------------

function make(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function shape(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null).map((c) => (c instanceof Node ? c : String(c))));
  return element;
}

const nothing = (text) => make("p", { class: "nothing" }, text);

// Numbers ------------------------------------------------------------------------------------------------------------

function told(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? String(Math.round(value)) : String(Number(value.toPrecision(3)));
}

const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(100 * share)} %`);
const clock = (seconds) => (seconds ? new Date(1000 * seconds).toLocaleTimeString() : "–");

function lasting(seconds) {
  if (seconds < 120) return `${told(seconds)} s`;
  return seconds < 7200 ? `${told(seconds / 60)} min` : `${told(seconds / 3600)} h`;
}

function counts(of) {
  return Object.entries(of).filter(([, n]) => n).map(([word, n]) => `${n} ${word}`).join(", ") || "none";
}

// Tables and charts --------------------------------------------------------------------------------------------------

function table(caption, columns, rows) {
  const cell = (value, column) => {
    const name = column.wide ? "wide" : typeof value === "number" || column.number ? "number" : "text";
    return make("td", { class: name }, value instanceof Node ? value : told(value));
  };
  const head = columns.map((c) => make("th", { scope: "col", class: c.number ? "number" : "text" }, c.name));
  const body = rows.map((row) => make("tr", {}, row.map((value, i) => cell(value, columns[i]))));
  const inner = make(
    "table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, head)), make("tbody", {}, body));
  return make("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": caption }, inner);
}

const column = (name) => ({ name });
const number = (name) => ({ name, number: true });

function ticks(low, high) {
  const rough = (high - low) / 4 || 1, scale = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * scale).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1000; at += step) found.push(Number(at.toPrecision(9)));
  return found;
}

function saying(series) {
  return series.map(({ name, points }) => {
    const values = points.map(([, y]) => y), last = points[points.length - 1];
    return `${name}: ${told(last[1])} at ${told(last[0])}, from ${told(Math.min(...values))} to ` +
      `${told(Math.max(...values))} in ${points.length} points`;
  }).join("; ");
}

// Lines over numbers (or, with `when`, over the time of day), as wide as there is room.
function chart(caption, xName, series, width, when) {
  series = series.filter(({ points }) => points.length);
  if (!series.length) return nothing(`${caption}: nothing yet.`);
  const height = 200, left = 56, right = 12, top = 10, bottom = 38;
  const xs = series.flatMap(({ points }) => points.map(([x]) => x));
  const ys = series.flatMap(({ points }) => points.map(([, y]) => y));
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(0, ...ys), Math.max(...ys)];
  if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  if (y0 === y1) y1 = y0 + 1;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const marks = [];
  for (const y of ticks(y0, y1)) {
    marks.push(shape("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }));
    marks.push(shape("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, told(y)));
  }
  const placed = when ? [x0, x1] : ticks(x0, x1);
  placed.forEach((x, i) => {
    const anchor = when && i === 0 ? "start" : when ? "end" : "middle";
    marks.push(shape("text", { x: px(x), y: height - bottom + 16, "text-anchor": anchor }, when ? clock(x) : told(x)));
  });
  marks.push(shape("text", { x: width - right, y: height - 4, "text-anchor": "end" }, xName));
  series.forEach(({ points }, i) => {
    const at = points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ");
    marks.push(shape("polyline", { class: `line c${i % 6}`, points: at }));
    const [x, y] = points[points.length - 1];
    marks.push(shape("circle", { class: `f${i % 6}`, cx: px(x), cy: py(y), r: 3 }));
  });
  const label = `${caption}. ${saying(series)}.`;
  const picture = shape(
    "svg", { role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}`, height: String(height) }, marks);
  const names = series.length > 1 ? legend(series.map(({ name }) => name)) : null;
  return make("figure", {}, picture, names, make("figcaption", {}, caption));
}

function legend(names) {
  return make("ul", { class: "legend" }, names.map((name, i) => {
    const square = shape("rect", { class: `f${i % 6}`, width: 1, height: 1 });
    return make("li", {}, shape("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" }, square), name);
  }));
}

function strip(workers) {
  const { strip: shares, topic, site, width_s: width } = workers;
  if (!shares.length) return nothing("nothing yet");
  const mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
  const label = `${topic} at ${site}: ${percent(mean)} busy on average over ${lasting(width * shares.length)}, ` +
    `${percent(shares[shares.length - 1])} in the last ${lasting(width)}`;
  const bars = shares.map((share, i) => shape("rect", { class: "f0", x: i, y: 1 - share, width: 1, height: share }));
  const box = { viewBox: `0 0 ${shares.length} 1`, preserveAspectRatio: "none", class: "strip" };
  return shape("svg", { role: "img", "aria-label": label, ...box }, bars);
}

function stacked(latency) {
  const parts = Object.entries(latency.parts).map(([name, s]) => [name, Math.max(0, s)]);
  const whole = parts.reduce((sum, [, s]) => sum + s, 0) || 1;
  let at = 0;
  const bars = parts.map(([, s], i) => {
    const bar = shape("rect", { class: `f${i}`, x: at, y: 0, width: s / whole, height: 1 });
    at += s / whole;
    return bar;
  });
  const label = `${latency.topic}: ` + parts.map(([name, s]) => `${PARTS[name]} ${told(1000 * s)} ms`).join(", ");
  const box = { viewBox: "0 0 1 1", preserveAspectRatio: "none", class: "strip" };
  return shape("svg", { role: "img", "aria-label": label, ...box }, bars);
}

// Panels: each from the parts of a view that it needs ------------------------------------------------------------------

const PANELS = {
  headline: {
    needs: ["status", "system", "policy", "seed", "segments", "target", "simulated_ns", "frames", "ns_per_day",
      "segments_per_hour", "coverage", "model_versions", "inferences", "steered_fraction", "failures", "quarantined",
      "hooks", "on_frames", "stream", "processes", "elapsed_s"],
    draw(v) {
      const of = v.target === null ? "" : ` of ${v.target}`;
      const cells = v.coverage === null ? "–"
        : v.coverage.cells_deg === null ? `${told(v.coverage.value)} cells of two principal components`
          : `${told(v.coverage.value)} phi/psi cells of ${v.coverage.cells_deg}°`;
      const facts = [
        ["System", v.system], ["Policy", v.policy], ["Seed", v.seed],
        ["Segments", `${v.segments}${of}`, "segments"],
        ["Simulated", `${v.simulated_ns.toFixed(3)} ns, ${v.frames} frames`, "simulated"],
        ["Pace", v.ns_per_day === null ? "–" : `${told(v.ns_per_day)} ns/day`],
        ["Of late", v.segments_per_hour === null ? "–" : `${Math.round(v.segments_per_hour)} segments/h`],
        ["Coverage", cells, "coverage"], ["Model version", v.model_versions, "model"],
        ["Inferences", v.inferences, "inferences"], ["Steered", percent(v.steered_fraction), "steered"],
        ["Failed attempts", counts(v.failures), "failed"], ["Quarantined starts", v.quarantined, "quarantined"],
        ["At work for", lasting(v.elapsed_s)], ["Processes so far", v.processes],
      ];
      for (const [name, of] of [["Hooks", v.hooks], ["Frames looked at", v.on_frames], ["Batches", v.stream]]) {
        if (Object.values(of).some(Boolean)) facts.push([name, counts(of)]);
      }
      const list = facts.map(([name, value, key]) => make(
        "div", {}, make("dt", {}, name), make("dd", key ? { "data-key": key } : {}, told(value))));
      const bar = v.target === null ? null : make("progress", {
        max: Math.max(1, v.target), value: Math.min(v.segments, v.target), "aria-label": `${v.segments} of ${v.target} segments`,
      });
      return [bar, make("dl", { class: "facts" }, list)];
    },
  },
  workers: {
    needs: ["workers"],
    draw(v) {
      if (!v.workers.length) return [nothing("No result has come, and nothing is out.")];
      const columns = [column("Topic"), column("Site"), column("Busy now"), number("Last 5 min"), number("So far"),
        number("Results"), number("Failed"), { name: "Over time", wide: true }];
      const rows = v.workers.map((w) => [w.topic, w.site,
        w.slots ? `${w.busy} of ${w.slots}${w.out > w.busy ? `, ${w.out - w.busy} waiting` : ""}` : `${w.out} out`,
        percent(w.recent), percent(w.utilisation), w.n_results, w.n_failed, strip(w)]);
      const long = v.workers.reduce((a, b) => (a.strip.length * a.width_s > b.strip.length * b.width_s ? a : b));
      const caption = "Share of the workers that computed: so far (from the first segment to the last), and over time " +
        `(${clock(long.begin)} to ${clock(long.begin + long.strip.length * long.width_s)} where most came)`;
      return [table(caption, columns, rows)];
    },
  },
  learning: {
    needs: ["learning"],
    draw({ learning: l }, width) {
      const losses = Object.entries(l.losses), n = Math.max(0, ...losses.map(([, values]) => values.length));
      const step = n > 1 ? (l.n_epochs - 1) / (n - 1) : 1;
      const series = losses.map(([name, values]) => ({ name, points: values.map((y, i) => [1 + i * step, y]) }));
      const of = l.model_version === null ? "Losses" : `Losses of model version ${l.model_version} on ${l.n_frames} frames`;
      const versions = Object.entries(l.last_losses).map(([name, points]) => ({ name, points }));
      const several = versions.some(({ points }) => points.length > 1);
      // As many beside each other as the style sheet lets there be.
      const beside = Math.min(several ? 4 : 3, Math.max(1, Math.floor((width + 16) / 316)));
      const each = Math.floor((width - 16 * (beside - 1)) / beside), axis = "simulated ns looked at";
      const charts = [
        chart("Cells visited", axis, [{ name: "coverage", points: l.coverage }], each),
        chart("Mean novelty of new segments", axis, [{ name: "novelty", points: l.novelty }], each),
        chart(of, "epoch", series, each),
        several ? chart("Losses at the end of each training", "model version", versions, each) : null,
      ];
      return [make("div", { class: "charts" }, charts)];
    },
  },
  failures: {
    needs: ["errors", "failures"],
    draw(v) {
      const kinds = Object.entries(v.failures).map(([kind, n]) => `${n} ${kind}`).join(", ");
      if (!v.errors.length) return [nothing(kinds ? `${kinds}: what they say is yet to be read.` : "Nothing failed.")];
      const open = new Set([...document.querySelectorAll("#failures details[open]")].map((each) => each.dataset.key));
      const list = v.errors.map((error) => {
        const key = `${error.task_id}/${error.attempt}`;
        const first = error.error.split("\n", 1)[0];
        const what = `${error.kind} task ${error.task_id}, attempt ${error.attempt} at ${error.site}: ${first}`;
        return make("details", { "data-key": key, ...(open.has(key) ? { open: "" } : {}) },
          make("summary", {}, what), make("pre", { tabindex: "0" }, error.error));
      });
      return [make("p", {}, `${counts(v.failures)}; the newest first.`), list];
    },
  },
  pace: {
    needs: ["pace"],
    draw({ pace: p }, width) {
      const points = p.ns_per_day.map((y, i) => [p.begin + (i + 0.5) * p.width_s, y]);
      return [chart(`Simulated ns per day, in steps of ${lasting(p.width_s)}`, "time of day",
        [{ name: "ns per day", points }], width, true)];
    },
  },
  latency: {
    needs: ["latencies"],
    draw({ latencies: all }) {
      if (!all.length) return [nothing("No result has come.")];
      const names = Object.keys(PARTS);
      const bars = all.map((each) => make("figure", {}, stacked(each),
        make("figcaption", {}, `${each.topic}: medians over the newest ${each.n} results`)));
      const rows = all.map((each) => [each.topic, ...names.map((name) => 1000 * each.parts[name])]);
      const columns = [column("Topic"), ...names.map((name) => number(PARTS[name]))];
      return [legend(names.map((name) => PARTS[name])), bars, table("Medians in ms", columns, rows)];
    },
  },
  ensemble: {
    needs: ["ensemble", "summary"],
    draw({ ensemble: e, summary: s }, width) {
      if (e === null) return null;
      const of = s && s.weighted_ensemble ? s.weighted_ensemble : {};
      const facts = [["Coordinate", e.pcoord], ["Target", e.target], ["Iterations", e.iterations.join(", ") || "none"],
        ["Walkers", e.walkers.join(", ") || "none"], ["Flux", e.flux_per_ps === null ? "–" : `${told(e.flux_per_ps)} /ps`]];
      if (of.rate_per_s) facts.push(["Rate", `${of.rate_per_s.toPrecision(3)} /s`]);
      if (of.rate_low_per_s) {
        facts.push(["95 % interval", `${of.rate_low_per_s.toPrecision(3)} to ${of.rate_high_per_s.toPrecision(3)} /s`]);
      }
      return [
        make("dl", { class: "facts" }, facts.map(([k, x]) => make("div", {}, make("dt", {}, k), make("dd", {}, told(x))))),
        chart("Weight that reached the target in each iteration", "iteration", [{ name: "flux", points: e.fluxes }], width),
      ];
    },
  },
  live: {
    needs: ["live"],
    draw({ live }) {
      if (!live.length) return null;
      return [table("Segments that IMD clients can follow", [number("Segment"), number("Attempt"), column("Address")],
        live.map((each) => [each.segment_id, each.attempt, make("code", {}, each.url)]))];
    },
  },
  tasks: {
    needs: ["tasks"],
    draw({ tasks }) {
      const states = [...new Set(Object.values(tasks).flatMap(Object.keys))].sort();
      if (!states.length) return [nothing("There are no tasks yet.")];
      const rows = Object.entries(tasks).map(([kind, of]) => [kind, ...states.map((state) => of[state] || 0)]);
      return [table("Tasks by kind and state", [column("Kind"), ...states.map(number)], rows)];
    },
  },
  newest: {
    needs: ["newest"],
    draw({ newest }) {
      if (!newest.length) return [nothing("No segment has come.")];
      const columns = [number("Segment"), column("Began at"), number("Walker"), column("Site"), number("Attempt"),
        column("Steered"), number("Novelty"), number("ps"), number("K"), column("Came")];
      const rows = newest.map((s) => [s.segment_id,
        s.parent_id === null ? `basis state ${s.parent_frame === null ? 0 : s.parent_frame}` : `${s.parent_id}, frame ${s.parent_frame}`,
        s.walker_id, s.site, s.attempt, s.steered ? "yes" : "no", s.novelty, s.simulated_ps, s.mean_temperature_K,
        clock(s.received)]);
      return [table("The newest segments", columns, rows)];
    },
  },
  end: {
    needs: ["summary"],
    draw({ summary: s }) {
      if (s === null) return null;
      const of = (each, key) => (each ? told(each[key]) : "–");
      const facts = [["Wall time", s.wall_s === null ? "–" : lasting(s.wall_s)],
        ["To the first segment", s.startup_s === null ? "–" : lasting(s.startup_s)],
        ["Decisions, median", `${of(s.decision_ms, "p50")} ms`], ["Decisions, 95 %", `${of(s.decision_ms, "p95")} ms`],
        ["Sent per segment", `${of(s.thinker_bytes_per_segment, "sent")} bytes`],
        ["Received per segment", `${of(s.thinker_bytes_per_segment, "received")} bytes`],
        ["Objects in stores", `${of(s.proxies, "created")} made, ${of(s.proxies, "left")} left`]];
      return [make("dl", { class: "facts" }, facts.map(([k, x]) => make("div", {}, make("dt", {}, k), make("dd", {}, x))))];
    },
  },
};

function draw() {
  for (const [id, panel] of Object.entries(PANELS)) {
    const section = byId(id), width = Math.max(240, section.clientWidth - 34);
    const key = JSON.stringify([width, panel.needs.map((name) => view[name])]);
    if (drawn.get(id) === key) continue;
    drawn.set(id, key);
    const parts = panel.draw(view, width);
    section.hidden = parts === null;
    const body = section.querySelector(".body"), at = body.querySelector(".scrolls")?.scrollLeft || 0;
    const focused = body.contains(document.activeElement) ? [...body.querySelectorAll("[tabindex], summary")].indexOf(document.activeElement) : -1;
    body.replaceChildren(...(parts || []).flat().filter((part) => part !== null));
    if (at) body.querySelector(".scrolls").scrollLeft = at;
    if (focused >= 0) body.querySelectorAll("[tabindex], summary")[focused]?.focus({ preventScroll: true });
  }
}

// The status, which is read aloud when it changes ----------------------------------------------------------------------

function sentence() {
  if (lostSince !== null) {
    return `The page has lost its server since ${lostSince}: figures are of then. It goes on trying.`;
  }
  const why = view.reason ? `: ${view.reason}` : "";
  if (view.status === "died") {
    return "The campaign has died: its process ended without a word. Resume it, and this page goes on.";
  }
  if (view.status === "running") return "The campaign is running.";
  if (!view.over) return `A process has the campaign, which is ${view.status}: it begins, ends, or has others to run.`;
  return { complete: `The campaign is complete${why}.`, interrupted: `The campaign was interrupted${why}.`,
    failed: `The campaign failed${why}.` }[view.status] || `The campaign is ${view.status}${why}.`;
}

function say() {
  const status = byId("status"), text = sentence();
  if (status.textContent !== text) status.textContent = text;
  document.body.dataset.state = lostSince !== null ? "lost" : view.status;
  if (!view) return;
  const of = view.target === null ? "" : `/${view.target}`;
  document.title = `${view.segments}${of} ${lostSince !== null ? "lost" : view.status} - ${view.run}`;
  const reading = view.behind > 0 ? [`${percent(view.behind)} of what is there is still to be read.`] : [];
  const words = [...view.trouble, ...reading].join(" "), trouble = byId("trouble");
  if (trouble.textContent !== words) trouble.textContent = words;
  trouble.hidden = !words;
}

// Asking ---------------------------------------------------------------------------------------------------------------

async function ask() {
  const late = new AbortController(), timeout = setTimeout(() => late.abort(), 10000);
  try {
    const headers = etag === null ? {} : { "If-None-Match": etag };
    const answer = await fetch(`view.json?token=${encodeURIComponent(token)}`,
      { headers, cache: "no-store", signal: late.signal });
    if (answer.status === 200) {
      view = await answer.json();
      etag = answer.headers.get("Etag");
    } else if (answer.status === 304) {
      await answer.text();
    } else {
      throw new Error(String(answer.status));
    }
    lostSince = null;
  } catch (error) {
    lostSince = lostSince || new Date().toLocaleTimeString();
  } finally {
    clearTimeout(timeout);
  }
  if (view !== null) draw();
  say();
}

async function goOn() {
  clearTimeout(timer);
  await ask();
  // Nobody looks at a hidden page, and what nobody asks for is not read.
  if (!document.hidden) timer = setTimeout(goOn, pollMs);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) goOn(); });
window.addEventListener("resize", () => { if (view !== null) draw(); });
goOn();
