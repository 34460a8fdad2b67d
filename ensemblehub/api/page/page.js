/** The page: its controls, the run it shows, and files of runs. */

import { byId, element, patch } from "./elements.js";
import { compact, count, ratio, total } from "./numbers.js";
import { EMPTY, begun, fold, parsed, phaseOf } from "./run.js";
import { TOO_LONG, events, keepKey, send } from "./stream.js";
import { show } from "./view.js";

const THEMES = { auto: "light", light: "dark", dark: "auto" };
const LEADS = {
  tandem: "A large mentor writes short insights. A judge watches for the moment they suffice, the mentor is "
    + "stopped there, and a small intern answers. Every token is counted.",
  single: "One model answers by itself, as a baseline. Every token is counted.",
  "": "Models share the work of one answer, and the text is coloured by who wrote it. "
    + "Every token is counted.",
};
const WORK = { token: "token by token", segment: "segment by segment" };

let config = null; // what the server offers
let threshold = null; // for all levels; null stands for the calibrated ones
let current = null; // {run, saved, phase, replay, cancel}: what the page shows
let drawing = false;

/** Show the run at the next frame, once. */
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    show(current);
  });
}

function notice(words) {
  byId("notice").hidden = !words;
  byId("notice").textContent = words;
}

/** Ask the reader for an API key and keep it in this tab; an Error where they would rather not. */
async function askForKey(wrong) {
  const dialog = byId("key-dialog");
  byId("key-why").textContent = wrong ? "The server does not know this key." : "The server asks for one.";
  byId("key").value = "";
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "use") throw new Error("the server wants an API key");
  keepKey(byId("key").value);
}

async function loadConfig() {
  const { version, ensembles, members } = await (await send("/v1/ensemble/config", {}, askForKey)).json();
  const known = members.map(({ id, parameters, token_flops }) => ({ id, parameters, token_flops }));
  config = { ensembles, members: known };
  const group = (label, choices) => element("optgroup", { label }, choices.map(({ id, method }) =>
    element("option", { value: id }, method && method !== id ? `${id} · ${method}` : id)));
  patch(byId("model"), group("Ensembles", ensembles), group("One model alone", known));
  byId("model").disabled = false;
  byId("version").textContent = `ensemblehub ${version}`;
  offer();
}

/** What the chosen name stands for; a model alone is an ensemble of itself. */
function served() {
  const id = byId("model").value;
  const plain = { params: {}, levels: [], bounds: {} };
  const alone = { id, method: "single", granularity: "response", members: [id], ...plain };
  return config.ensembles.find((ensemble) => ensemble.id === id) ?? alone;
}

/** Offer what the chosen ensemble lets a request set. */
function offer() {
  const { method, granularity, members, levels, bounds } = served();
  const sizes = Object.fromEntries(config.members.map(({ id, parameters }) => [id, parameters]));
  const sized = members.map((name) => (sizes[name] ? `${name} (${compact(sizes[name])} parameters)` : name));
  byId("lead").textContent = LEADS[method] ?? LEADS[""];
  byId("model-about").textContent = [WORK[granularity], sized.join(", ")].filter(Boolean).join(" · ");
  const judges = bounds.judge?.choices ?? [];
  const fixed = levels.filter(({ level }) => judges.includes(`fixed:${level}`));
  const radio = (value, label, note) => element("label", null,
    element("input", { type: "radio", name: "level", value }),
    element("span", null, label, note && element("small", null, note)));
  byId("levels").hidden = !fixed.length;
  patch(byId("level-choices"), radio("", "The judge decides"),
    fixed.map(({ level, mentor_tokens }) => radio(level, level, ` ${count(mentor_tokens)} tokens`)));
  byId("level-choices").querySelector("input").checked = true;
  const { minimum = 0, maximum = 1 } = bounds.thresholds ?? {};
  byId("thresholds").hidden = !bounds.thresholds || !levels.length;
  Object.assign(byId("threshold"), { min: minimum, max: maximum, disabled: false });
  setThreshold(null);
}

function setThreshold(value) {
  threshold = value;
  const { levels } = served();
  const words = value === null ? "as calibrated" : ratio(value);
  const mean = total(levels.map((level) => level.threshold)) / levels.length;
  if (value === null && levels.length) byId("threshold").value = mean;
  byId("threshold").setAttribute("aria-valuetext", words);
  byId("threshold-value").textContent = words;
  byId("calibrated").hidden = value === null;
}

const levelChosen = () => document.querySelector("[name=level]:checked")?.value ?? "";

/** The body of the request. */
function request(question) {
  const level = levelChosen();
  const thresholds = Object.fromEntries(served().levels.map(({ level }) => [level, threshold]));
  const params = level ? { judge: `fixed:${level}` } : threshold !== null && { thresholds };
  return {
    model: byId("model").value, messages: [{ role: "user", content: question }], stream: true,
    stream_options: { include_usage: true }, ...(params && { ensemble: { params } }),
  };
}

/** Put a run on the page in place of the one before. */
function present(saved, run, phase, replay = false) {
  current?.cancel.abort();
  current = { run, saved, phase, replay, cancel: new AbortController() };
  show(current);
  return current;
}

function presentWhole(saved) {
  const run = saved.chunks.reduce((run, { chunk }) => fold(run, chunk), EMPTY);
  present(saved, run, phaseOf(saved));
}

/** Bring the run into sight where it is not. */
function reveal() {
  const { top } = byId("run").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) byId("run").scrollIntoView();
}

/** A run on the page that is fed from `source`. */
async function follow(saved, source, replay) {
  const shown = present(saved, EMPTY, "running", replay);
  reveal();
  try {
    for await (const chunk of source(shown.cancel.signal)) {
      shown.run = fold(shown.run, chunk);
      redraw();
    }
  } catch (error) {
    if (replay && current === shown) return presentWhole(saved);
    const stopped = shown.cancel.signal.aborted;
    if (!replay) Object.assign(saved, stopped ? { stopped } : { error: worded(error) });
  }
  shown.phase = phaseOf(saved);
  redraw();
}

async function ask(question) {
  notice("");
  if (!config) await loadConfig();
  const body = request(question);
  const saved = begun(question, body, served(), config.members);
  await follow(saved, async function* (signal) {
    const started = performance.now();
    const options = { method: "POST", body: JSON.stringify(body), signal };
    for await (const chunk of events((await send("/v1/chat/completions", options, askForKey)).body)) {
      saved.chunks.push({ at: Math.round(performance.now() - started), chunk });
      yield chunk;
    }
  }, false);
}

function replay(saved) {
  return follow(saved, async function* (signal) {
    const started = performance.now();
    for (const { at, chunk } of saved.chunks) {
      await pause(at - (performance.now() - started), signal);
      yield chunk;
    }
  }, true);
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", reject, { once: true });
    setTimeout(resolve, milliseconds);
  });
}

function save(saved) {
  const href = URL.createObjectURL(new Blob([JSON.stringify(saved)], { type: "application/json" }));
  const download = `run-${saved.started.slice(0, 19).replaceAll(":", "-")}.json`;
  Object.assign(document.createElement("a"), { href, download }).click();
  URL.revokeObjectURL(href);
}

async function open(file) {
  try {
    presentWhole(parsed(await file.text()));
  } catch (error) {
    return notice(`${file.name} cannot be opened: ${error.message}.`);
  }
  notice("");
  reveal();
  byId("run-title").focus({ preventScroll: true });
}

/** Stop what is running; a replay jumps to its end. */
function stop() {
  if (current?.phase === "running") current.cancel.abort();
}

const complain = (error) => notice(sentence(worded(error)));
const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;

/** An error in words that name what can be set here. */
function worded({ message, code, param = "", wait }) {
  const other = "choose another ensemble";
  const lower = byId("levels").hidden ? other : `${other}, or a lower effort level`;
  if ([TOO_LONG, "body_too_large"].includes(code)) return `the question is too long: shorten it, or ${lower}`;
  const again = `ask again ${wait ? `in ${wait} s` : "later"}`;
  const advice = {
    overloaded: again, not_ready: again, model_not_found: `reload the page and ${other}`,
    timeout: `ask again, or ${lower}`, engine_error: `ask again, or ${other}`,
    "ensemble.params.judge": "choose another effort level",
    "ensemble.params.thresholds": "set another threshold",
    messages: "change the question",
  };
  const found = advice[code] ?? advice[/^(ensemble\.params\.\w+|\w*)/.exec(param)[0]];
  return found ? `${message}. ${sentence(found)}` : message;
}

function setTheme(theme) {
  localStorage.setItem("ensemblehub-theme", theme);
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

/** What happens to which element. */
const HANDLERS = {
  examples: {
    click({ target }) {
      if (!target.matches("button")) return;
      byId("question").value = target.value.replace(/\s+/g, " ");
      byId("question").focus();
    },
  },
  ask: {
    submit(event) {
      event.preventDefault();
      const question = byId("question").value.trim();
      if (question && byId("start").ariaDisabled !== "true") ask(question).catch(complain);
    },
  },
  question: {
    keydown(event) {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId("ask").requestSubmit();
    },
  },
  stop: { click: stop },
  save: { click: () => save(current.saved) },
  replay: { click: () => (current.phase === "running" ? stop() : replay(current.saved)) },
  model: { change: offer },
  levels: { change: () => (byId("threshold").disabled = levelChosen() !== "") },
  threshold: { input: ({ target }) => setThreshold(target.valueAsNumber) },
  calibrated: {
    click() {
      byId("threshold").focus();
      setThreshold(null);
    },
  },
  theme: { click: () => setTheme(THEMES[document.documentElement.dataset.theme]) },
  file: {
    change({ target }) {
      if (target.files.length) open(target.files[0]);
      target.value = "";
    },
  },
  "key-cancel": { click: () => byId("key-dialog").close("cancel") },
};

/** A file dropped anywhere is opened. */
function dragged(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.toggle("dropping", event.type === "dragover");
  if (event.type === "drop" && event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
}

for (const [id, handlers] of Object.entries(HANDLERS)) {
  for (const [type, handler] of Object.entries(handlers)) byId(id).addEventListener(type, handler);
}
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, dragged);
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && !byId("key-dialog").open) stop();
});
const kept = localStorage.getItem("ensemblehub-theme");
setTheme(kept in THEMES ? kept : "auto");
loadConfig().catch(complain);
