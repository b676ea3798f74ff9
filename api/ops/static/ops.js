/* The operators' page: asks for the state each second, keeps the last minutes, and draws them.
 *
 * What it shows is always marked as what it is: an answer that is old makes the board stale, an API
 * that is away is asked again until it is back. All text is set as text. */
"use strict";

const POLL_MS = 1_000;
const ANSWER_MS = 6_000;
const STALE_MS = 4_000;
const KEPT_MS = 5 * 60_000;
const POINTS_MAX = 400;
const GAP_MS = 5_000;
const SERIES_MAX = 12;
const RATE_POINTS = 3;

const TONES = {
  live: "good", alive: "good", behind: "warn", rebuilding: "warn", silent: "bad", gone: "bad",
  missing: "bad", failed: "bad", stopped: "bad", away: "bad", unknown: "unknown",
};
const WORDS = { missing: "not running", silent: "silent" };

const byId = (id) => document.getElementById(id);
const svg = (name, attributes = {}) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const tell = (node, tone, text) => {
  if (node.dataset.tone !== tone) node.dataset.tone = tone;
  say(node, text);
};

// In words

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
const some = (value) => (value >= 100 ? whole.format(value) : short.format(value));

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${short.format(value)} ${units[unit]}`;
}

// What was seen of the last minutes

class Series {
  constructor() { this.points = []; }

  add(at, value) {
    this.points.push({ at, value });
    while (this.points.length > POINTS_MAX || this.points[0].at < at - KEPT_MS) this.points.shift();
  }

  get last() { return this.points.at(-1); }

  get most() { return this.points.reduce((most, point) => Math.max(most, point.value), 0); }

  nearest(at) {
    let found = null;
    for (const point of this.points) {
      if (found === null || Math.abs(point.at - at) < Math.abs(found.at - at)) found = point;
    }
    return found;
  }
}

class History {
  constructor() {
    this.rate = new Series();
    this.lags = new Map();
    this.positions = new Map();
  }

  lag(name) {
    if (!this.lags.has(name)) this.lags.set(name, new Series());
    return this.lags.get(name);
  }

  /* Events a second since some looks ago; null where that can't be told. */
  speed(name, position, at) {
    if (!this.positions.has(name)) this.positions.set(name, []);
    const known = this.positions.get(name);
    const before = known.at(-1);
    if (before && (position < before.position || at - before.at > GAP_MS)) known.length = 0;
    known.push({ position, at });
    if (known.length > RATE_POINTS) known.shift();
    const first = known[0];
    return at > first.at ? (position - first.position) * 1000 / (at - first.at) : null;
  }
}

// Charts

const MARGIN = { left: 44, right: 8, top: 8, bottom: 20 };

/* The least of 1, 2 and 5 times a power of ten that is not below. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/* Parts of a line: where nothing was seen, there is none. */
function runs(points) {
  const found = [];
  points.forEach((point, index) => {
    if (index === 0 || point.at - points[index - 1].at > GAP_MS) found.push([]);
    found.at(-1).push(point);
  });
  return found;
}

const path = (run, x, y) =>
  run.map((point, i) => `${i ? "L" : "M"}${x(point.at).toFixed(1)} ${y(point.value).toFixed(1)}`).join("");

class Chart {
  constructor(node, least, reading) {
    this.node = node;
    this.least = least;
    this.reading = reading;
    this.pointed = null;
    this.lines = [];
    node.addEventListener("pointermove", (moved) => {
      this.pointed = moved.clientX - node.getBoundingClientRect().left;
      this.draw();
    });
    node.addEventListener("pointerleave", () => { this.pointed = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(node);
  }

  show(lines, until) {
    this.lines = lines;
    this.until = until;
    this.draw();
  }

  draw() {
    const { width, height } = this.node.getBoundingClientRect();
    if (!width || !this.lines.length) return;
    const most = ceiling(Math.max(this.least, ...this.lines.map((line) => line.series.most)));
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const x = (at) => right - (this.until - at) / KEPT_MS * (right - MARGIN.left);
    const y = (value) => bottom - value / most * (bottom - MARGIN.top);
    this.node.replaceChildren(...this.frame(most, y, right, bottom));
    const isAlone = this.lines.length === 1;
    for (const line of this.lines) {
      for (const run of runs(line.series.points.filter((point) => x(point.at) >= MARGIN.left))) {
        if (isAlone) this.node.append(svg("path", { class: "area", d:
          `${path(run, x, y)}L${x(run.at(-1).at)} ${bottom}L${x(run[0].at)} ${bottom}Z` }));
        this.node.append(svg("path", { class: `line s${line.colour}`, d: path(run, x, y) }));
      }
    }
    this.read(x, right, bottom);
  }

  frame(most, y, right, bottom) {
    const parts = [];
    for (const value of [0, most / 2, most]) {
      parts.push(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }));
      const label = svg("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" });
      label.textContent = some(value);
      parts.push(label);
    }
    for (const [at, anchor, text] of [[MARGIN.left, "start", "5 min ago"], [right, "end", "now"]]) {
      const label = svg("text", { x: at, y: bottom + 16, "text-anchor": anchor });
      label.textContent = text;
      parts.push(label);
    }
    return parts;
  }

  /* What is below the pointer, or the newest. */
  read(x, right, bottom) {
    if (this.pointed === null || this.pointed < MARGIN.left || this.pointed > right) {
      say(this.reading, this.words(this.lines.map((line) => [line.name, line.series.last])));
      return;
    }
    const at = this.until - (right - this.pointed) / (right - MARGIN.left) * KEPT_MS;
    const found = this.lines.map((line) => [line.name, line.series.nearest(at)]);
    if (!found[0][1]) return;
    const place = x(found[0][1].at);
    this.node.append(svg("line", { class: "cross", x1: place, x2: place, y1: MARGIN.top, y2: bottom }));
    const ago = seconds((this.until - found[0][1].at) / 1000);
    say(this.reading, `${ago} ago: ${this.words(found)}`);
  }

  words(found) {
    const known = found.filter(([, point]) => point);
    if (!known.length) return "";
    const [name, point] = known.reduce((most, one) => (one[1].value > most[1].value ? one : most));
    const value = some(Math.round(point.value * 10) / 10);
    return known.length === 1 ? value : point.value < 0.05 ? "none" : `${value} (${name})`;
  }
}

function spark(node, series, colour, until) {
  const width = 160, height = 24;
  const most = Math.max(10, series.most);
  const x = (at) => width - (until - at) / KEPT_MS * width;
  const y = (value) => height - 2 - value / most * (height - 4);
  node.setAttribute("viewBox", `0 0 ${width} ${height}`);
  node.setAttribute("preserveAspectRatio", "none");
  node.replaceChildren(...runs(series.points).map((run) =>
    svg("path", { class: `line s${colour}`, d: path(run, x, y), "vector-effect": "non-scaling-stroke" })));
}

// The board

class Table {
  constructor(id, make) {
    this.body = byId(id).tBodies[0];
    this.make = make;
    this.rows = new Map();
  }

  /* A row for each key, in this order; rows that are there stay the same nodes. */
  show(items) {
    const keys = new Set(items.map(([key]) => key));
    for (const [key, row] of this.rows) if (!keys.has(key)) { row.node.remove(); this.rows.delete(key); }
    items.forEach(([key, item], index) => {
      if (!this.rows.has(key)) this.rows.set(key, this.make(item));
      const row = this.rows.get(key);
      if (this.body.children[index] !== row.node) this.body.insertBefore(row.node, this.body.children[index] ?? null);
      row.update(item);
    });
  }
}

function cells(title, names) {
  const node = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.append(...title);
  node.append(head);
  const made = names.map(([name, kind]) => {
    const cell = document.createElement("td");
    if (kind) cell.className = kind;
    if (name) cell.dataset.name = name;
    node.append(cell);
    return cell;
  });
  const state = document.createElement("span");
  state.className = "state";
  made[0].append(state);
  return { node, made, state };
}

function modelRow({ name, colour }) {
  const swatch = svg("svg", { class: "swatch", viewBox: "0 0 14 8", "aria-hidden": "true" });
  swatch.append(svg("line", { class: `s${colour}`, x1: 2, x2: 12, y1: 4, y2: 4 }));
  const { node, made, state } = cells([swatch, name], [
    ["", ""], ["at", "number"], ["lag", "number"], ["behind", "number"], ["a second", "number"], ["", "wide"],
  ]);
  node.dataset.key = name;
  const drawing = svg("svg", { class: "spark", role: "img", "aria-label": `Lag of ${name}` });
  made[5].append(drawing);
  const [, position, lag, behind, rate] = made;
  return {
    node,
    update(item) {
      tell(state, TONES[item.state] ?? "unknown", item.state);
      say(position, count(item.position));
      say(lag, count(item.lag_events));
      say(behind, seconds(item.lag_seconds));
      say(rate, item.rate === null ? "–" : some(Math.round(item.rate * 10) / 10));
      spark(drawing, item.series, colour, item.until);
    },
  };
}

function processRow({ role, process }) {
  const { node, made, state } = cells([role], [
    ["", ""], ["", ""], ["heard", "number"], ["connected", "number"],
  ]);
  node.dataset.key = role;
  const [, who, heard, connected] = made;
  say(who, process ?? "–");
  return {
    node,
    update(item) {
      node.classList.toggle("is-gone", item.state === "gone");
      tell(state, TONES[item.state] ?? "unknown", WORDS[item.state] ?? item.state);
      say(heard, item.heard_seconds === null ? "–" : `${seconds(item.heard_seconds)} ago`);
      say(connected, seconds(item.connected_seconds));
    },
  };
}

class Board {
  constructor() {
    this.history = new History();
    this.epoch = null;
    this.newest = 0;
    this.heardAt = null;
    this.trouble = "";
    this.problems = [];
    this.models = new Table("models", modelRow);
    this.processes = new Table("processes", processRow);
    this.rateChart = new Chart(byId("rate-chart"), 10, byId("rate-reading"));
    this.lagChart = new Chart(byId("lag-chart"), 1, byId("lag-reading"));
    this.rates = new Map();
  }

  heard(state) {
    this.heardAt = performance.now();
    this.trouble = "";
    this.problems = state.problems;
    this.isGrave = !state.database.is_up || [state.relay, ...state.projections, ...state.processes]
      .some((one) => TONES[one.state] === "bad");
    if (state.database.is_up) this.take(state);
    this.showProblems(state);
    this.showProcesses(state);
    this.showVerdict(state.database.is_up);
  }

  /* The numbers, where PostgreSQL told them. An answer that we had already adds nothing. */
  take(state) {
    const at = Date.parse(state.at);
    if (state.epoch !== this.epoch) this.history = new History();
    this.epoch = state.epoch;
    if (at > this.newest || this.newest - at > GAP_MS) {
      this.newest = at;
      this.remember(state, at);
    }
    this.showNumbers(state);
    this.showModels(state, at);
  }

  remember(state, at) {
    const rate = this.history.speed("log", state.position, at);
    if (rate !== null) this.history.rate.add(at, rate);
    for (const item of followers(state)) {
      if (item.position !== null) this.rates.set(item.name, this.history.speed(item.name, item.position, at));
      if (item.lag_events !== null) this.history.lag(item.name).add(at, item.lag_events);
      if (item.lag_seconds !== null) this.history.lag(`${item.name} seconds`).add(at, item.lag_seconds);
    }
  }

  showNumbers(state) {
    const rate = this.history.rate;
    say(byId("head"), count(state.position));
    say(byId("epoch"), `epoch ${state.epoch}`);
    say(byId("rate"), rate.last ? some(Math.round(rate.last.value * 10) / 10) : "–");
    say(byId("rate-most"), `at most ${some(Math.round(rate.most * 10) / 10)} in 5 min`);
    const slowest = state.projections.reduce((most, one) => (one.lag_seconds > most.lag_seconds ? one : most));
    say(byId("slowest"), seconds(slowest.lag_seconds));
    say(byId("slowest-name"), slowest.lag_events ? `${slowest.name}, ${count(slowest.lag_events)} events` : "all at the head");
    say(byId("people"), count(state.people_connected));
    say(byId("uploads"), count(state.upkeep.unfinished_uploads));
    say(byId("removals"), `removals ${count(state.upkeep.removals_lag_events)} events behind`);
    say(byId("size"), bytes(state.database.size_bytes));
    say(byId("database"), "PostgreSQL answers");
  }

  showModels(state, at) {
    const items = followers(state).map((item, index) => {
      const colour = index % SERIES_MAX;
      const more = { colour, until: at, series: this.history.lag(item.name), rate: this.rates.get(item.name) ?? null };
      return [item.name, { ...item, ...more }];
    });
    this.models.show(items);
    this.rateChart.show([{ name: "log", series: this.history.rate, colour: 0 }], at);
    this.lagChart.show(items.map(([name, item]) => (
      { name, series: this.history.lag(`${name} seconds`), colour: item.colour })), at);
    byId("rate-chart").setAttribute("aria-label", `Events a second, now ${byId("rate").textContent}`);
    byId("lag-chart").setAttribute("aria-label", `Lag in seconds, at most ${byId("slowest").textContent}`);
  }

  showProblems(state) {
    const list = byId("problem-list");
    byId("problems").hidden = !state.problems.length;
    byId("problems").dataset.grave = this.isGrave;
    const shown = Array.from(list.children, (item) => item.textContent);
    if (shown.join("\n") === state.problems.join("\n")) return;
    list.replaceChildren(...state.problems.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }));
  }

  showProcesses(state) {
    this.processes.show(state.processes.map((item) => [`${item.role} ${item.process}`, item]));
  }

  showVerdict(isUp) {
    const number = this.problems.length;
    if (!number) tell(byId("verdict"), "good", "All is well");
    else tell(byId("verdict"), this.isGrave ? "bad" : "warn", number === 1 ? "1 problem" : `${number} problems`);
    if (!isUp) say(byId("database"), "PostgreSQL is away");
    this.tick(isUp);
  }

  /* How old all of it is. */
  tick(isUp = this.isUp) {
    this.isUp = isUp;
    if (this.heardAt === null) {
      if (this.trouble) tell(byId("verdict"), "bad", this.trouble);
      return;
    }
    const ageMs = performance.now() - this.heardAt;
    const isOld = ageMs > STALE_MS || this.trouble !== "";
    document.body.classList.toggle("is-stale", isOld || !isUp);
    if (isOld) tell(byId("verdict"), "bad", this.trouble || "Stale");
    say(byId("age"), isOld ? `as of ${seconds(ageMs / 1000)} ago` : isUp ? "live" : "numbers are old");
  }

  lost(trouble) {
    this.trouble = trouble;
    this.tick();
  }
}

/* Who follows the log: the relay, then the read models. */
const followers = (state) => [{ name: "relay", ...state.relay }, ...state.projections];

// Asking

class Refused extends Error {}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
  if (answer.status === 401) throw new Refused();
  return answer;
}

let board = null;
let asking = 0;

async function watch(mine) {
  while (mine === asking) {
    const began = performance.now();
    try {
      const answer = await ask("/ops/state");
      const state = answer.ok ? await answer.json() : null;
      if (mine !== asking) return;
      if (state) board.heard(state);
      else board.lost(answer.status === 429 ? "Asked too often" : "The API is unwell");
    } catch (error) {
      if (mine !== asking) return;
      if (error instanceof Refused) { showSignIn("The session is over: sign in again."); return; }
      board.lost("The API is away");
    }
    await new Promise((resolve) => setTimeout(resolve, Math.max(100, POLL_MS - (performance.now() - began))));
  }
}

function showSignIn(reason = "") {
  asking += 1;
  byId("board").hidden = true;
  byId("sign-in").hidden = false;
  document.body.classList.remove("is-stale");
  say(byId("sign-in-problem"), reason);
  byId("token").focus();
}

function showBoard() {
  byId("sign-in").hidden = true;
  byId("board").hidden = false;
  board ??= new Board();
  asking += 1;
  watch(asking);
}

async function signIn(submitted) {
  submitted.preventDefault();
  const field = byId("token");
  const button = submitted.target.querySelector("button");
  button.disabled = true;
  say(byId("sign-in-problem"), "");
  try {
    const answer = await fetch("/ops/session", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token: field.value }),
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    field.value = "";
    if (answer.ok) showBoard();
    else if (answer.status === 429) {
      say(byId("sign-in-problem"), `Too many wrong tokens: try again in ${answer.headers.get("Retry-After")} s.`);
    } else say(byId("sign-in-problem"), "This is not the operators' token.");
  } catch {
    say(byId("sign-in-problem"), "The API does not answer: try again.");
  } finally {
    button.disabled = false;
    if (!byId("sign-in").hidden) field.focus();
  }
}

async function signOut() {
  try {
    const answer = await ask("/ops/session", { method: "DELETE" });
    if (answer.ok) showSignIn();
    else board.lost("PostgreSQL is away: still signed in");
  } catch {
    board.lost("The API is away: still signed in");
  }
}

async function begin() {
  byId("sign-in-form").addEventListener("submit", signIn);
  byId("sign-out").addEventListener("click", signOut);
  setInterval(() => { if (board && !byId("board").hidden) board.tick(); }, POLL_MS);
  try {
    const answer = await ask("/ops/session");
    if ((await answer.json()).signed_in) showBoard();
    else showSignIn();
  } catch {
    showSignIn("The API does not answer.");
  }
}

begin();
