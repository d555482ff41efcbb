// The page of the dashboard. All text goes in by textContent: nothing that Redis holds becomes markup.
const byId = (id) => document.getElementById(id);
const MOST_POINTS = 120;
const history = new Map(); // by function: points of hit ratio and load time
let latest = null; // the sums and the time of the record before, for rates
let options = { invalidate: false, values: false, namespace: "" };

// Text without control characters: one that turns the direction makes a key look like another key.
const visible = (text) => `${text}`.replace(/[^\P{C}\n]/gu, (each) => `\\u{${each.codePointAt(0).toString(16)}}`);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = visible(text);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

async function ask(path, parameters) {
  const query = parameters ? `?${new URLSearchParams(parameters)}` : "";
  const answer = await fetch(`${path}${query}`);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error ?? answer.statusText);
  return found;
}

const answered = (stats) => (stats.near ?? 0) + (stats.hits ?? 0) + (stats.stale ?? 0);
const calls = (stats) => answered(stats) + (stats.misses ?? 0);
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");
const rate = (count, seconds) => (seconds > 0 ? (count / seconds).toFixed(1) : "–");
const number = (count) => (count ?? 0).toLocaleString("en");
const counted = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

function time(pair) {
  if (!pair || !pair[0]) return "–";
  const ms = (1000 * pair[1]) / pair[0];
  return ms < 10 ? `${ms.toFixed(2)} ms` : `${ms.toFixed(0)} ms`;
}

function life(ttl) {
  if (ttl === null) return "no TTL";
  return ttl < 600 ? `${ttl.toFixed(0)} s` : ttl < 36000 ? `${(ttl / 60).toFixed(0)} min` : `${(ttl / 3600).toFixed(0)} h`;
}

// --- functions

function curve(points, name) {
  const values = points.filter((value) => value !== null);
  if (values.length < 2) return null;
  const top = Math.max(...values) || 1;
  const x = (at) => ((at / (values.length - 1)) * 96).toFixed(1);
  const y = (value) => (20 - (value / top) * 18).toFixed(1);
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("viewBox", "0 0 96 22");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", `${name} over time`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", values.map((value, at) => `${at ? "L" : "M"}${x(at)} ${y(value)}`).join(""));
  made.append(path);
  return made;
}

function remember(name, before, now) {
  const points = history.get(name) ?? { ratio: [], load: [] };
  history.set(name, points);
  if (!before) return points;
  const asked = calls(now.stats) - calls(before.stats);
  const loads = (now.times.load ?? [0, 0]).map((value, at) => value - (before.times.load ?? [0, 0])[at]);
  points.ratio.push(asked > 0 ? (answered(now.stats) - answered(before.stats)) / asked : null);
  points.load.push(loads[0] > 0 ? loads[1] / loads[0] : null);
  for (const each of Object.values(points)) if (each.length > MOST_POINTS) each.shift();
  return points;
}

function cell(row, name, text, classes, more) {
  const made = element("td", text, { "data-name": name, class: classes });
  if (more) made.append(more);
  row.append(made);
  return made;
}

function functionRow(name, each, points) {
  const { stats, times } = each;
  const row = element("tr");
  const first = element("td", undefined, { "data-name": "Function" });
  const names = element("span", name);
  if (each.pattern) names.append(element("small", each.pattern));
  first.append(names);
  row.append(first);
  cell(row, "Calls", number(calls(stats)), "number");
  cell(row, "Hit ratio", percent(answered(stats), calls(stats)), "number", curve(points.ratio, "Hit ratio"));
  cell(row, "Load", time(times.load), "number", curve(points.load, "Load time"));
  cell(row, "Redis", time(times.redis), "number");
  cell(row, "Unstored", number(stats.unstored), "number");
  cell(row, "Dropped", number(stats.deleted), "number", prefixes(each.dropped));
  return row;
}

function prefixes(dropped) {
  const most = Object.entries(dropped).sort((one, other) => other[1] - one[1]).slice(0, 3);
  return most.length ? element("small", most.map(([prefix, count]) => `${prefix} ${number(count)}`).join(", ")) : null;
}

function sums(functions) {
  const total = { answered: 0, calls: 0, loads: 0, deleted: 0 };
  for (const { stats } of Object.values(functions)) {
    total.answered += answered(stats);
    total.calls += calls(stats);
    total.loads += stats.loads ?? 0;
    total.deleted += stats.deleted ?? 0;
  }
  return total;
}

function showFunctions(found) {
  const at = Math.max(0, ...found.processes.map((process) => process.at));
  const total = sums(found.functions);
  byId("ratio").textContent = percent(total.answered, total.calls);
  if (latest === null || at > latest.at) {
    const before = latest?.total ?? total;
    const seconds = latest ? at - latest.at : 0;
    byId("calls").textContent = rate(Math.max(0, total.calls - before.calls), seconds);
    byId("loads").textContent = rate(Math.max(0, total.loads - before.loads), seconds);
    byId("dropped").textContent = rate(Math.max(0, total.deleted - before.deleted), seconds);
    const names = Object.keys(found.functions);
    names.sort((one, other) => calls(found.functions[other].stats) - calls(found.functions[one].stats));
    const rows = names.map((name) => {
      const points = remember(name, latest?.functions[name], found.functions[name]);
      return functionRow(name, found.functions[name], points);
    });
    byId("table").tBodies[0].replaceChildren(...rows);
    latest = { at, total, functions: found.functions };
  }
  byId("none").hidden = found.processes.length > 0;
  byId("table").hidden = found.processes.length === 0;
}

function showDrops(drops) {
  const rows = drops.map((drop) => {
    const row = element("tr");
    cell(row, "When", new Date(1000 * drop.at).toLocaleTimeString(), "");
    cell(row, "What", drop.key || "–", "");
    cell(row, "By", drop.function, "");
    cell(row, "Entries", number(drop.count), "number");
    return row;
  });
  byId("dropped-table").tBodies[0].replaceChildren(...rows);
}

function state(text, kind) {
  byId("state").textContent = text;
  byId("state").className = kind;
}

function listen() {
  const events = new EventSource("events");
  events.onmessage = (message) => {
    const found = JSON.parse(message.data);
    if (found.error) {
      state(found.error, "lost");
      return;
    }
    const pending = found.processes.filter((process) => process.pending).length;
    const count = found.processes.length;
    const text = `live, ${counted(count, "process", "processes")}`;
    state(pending ? `${text}; an invalidation is pending in ${pending}` : text, pending ? "lost" : "live");
    showFunctions(found);
    showDrops(found.drops);
  };
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) state("the connection is lost; reload the page", "lost");
  };
}

// --- entries

async function find() {
  const prefix = byId("prefix").value.trim();
  const found = await ask("keys", { prefix });
  const rows = found.keys.map((each) => {
    const button = element("button", undefined, { type: "button" });
    button.append(element("span", each.key), element("span", `${life(each.ttl)}, ${number(each.size)} B`));
    button.addEventListener("click", () => attempt(() => open(each.key, button)));
    const item = element("li");
    item.append(button);
    return item;
  });
  byId("list").replaceChildren(...rows);
  const count = found.keys.length;
  const shown = count >= found.most ? `the first ${count} entries` : counted(count, "entry", "entries");
  byId("count").textContent = found.whole ? shown : `${shown}; there may be more, since the index is not whole`;
}

async function open(key, button) {
  const found = await ask("entry", { key });
  for (const other of document.querySelectorAll("#list button")) other.removeAttribute("aria-current");
  button?.setAttribute("aria-current", "true");
  byId("entry").textContent = visible(key);
  const facts = found.entry
    ? [["TTL", life(found.entry.ttl)], ["Size", `${number(found.entry.size)} B`]]
    : [["Entry", "none"]];
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  byId("reasons").replaceChildren(...found.reasons.map((reason) => element("li", reason)));
  const tags = found.tags.map((tag) => element("code", tag)).flatMap((each) => [each, " "]);
  byId("tags").replaceChildren(...(tags.length ? ["Depends on ", ...tags] : []));
  byId("value").hidden = found.value === undefined;
  byId("value").textContent = found.value === undefined ? "" : visible(pretty(found.value));
  byId("detail").hidden = false;
  byId("entry").focus();
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

async function change(body) {
  const headers = { "content-type": "application/json", "x-fastrdb": "invalidate" };
  const answer = await fetch("invalidate", { method: "POST", headers, body: JSON.stringify(body) });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

async function drop() {
  const prefix = byId("prefix").value.trim();
  const { count } = await change({ prefix, count: true });
  byId("question").textContent = `Delete ${counted(count, "key", "keys")} under ${visible(prefix)}?`;
  const dialog = byId("ask");
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  if (dialog.returnValue !== "yes") return;
  const { deleted } = await change({ prefix });
  await find();
  const pending = "Redis has not taken it: the invalidation is pending";
  byId("count").textContent = deleted === null ? pending : `${counted(deleted, "entry", "entries")} deleted`;
}

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    byId("count").textContent = error.message;
  }
}

byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(find);
});
byId("drop").addEventListener("click", () => attempt(drop));

options = await ask("options");
byId("drop").hidden = !options.invalidate;
byId("namespace").textContent = options.namespace;
listen();
attempt(find);
