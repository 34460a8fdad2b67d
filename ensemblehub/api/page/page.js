/** The page: its controls, the run it shows, and files of runs. */

import { byId, element, patch } from "./elements.js";
import { compact, count, ratio, total } from "./numbers.js";
import { EMPTY, FORMATS, fold, parsed, phaseOf } from "./run.js";
import { KEY, events, send } from "./stream.js";
import { show } from "./view.js";

const THEMES = ["auto", "light", "dark"];
const TOO_LONG = ["context_length_exceeded", "body_too_large"];
const DAMAGES = { SyntaxError: "it is not JSON", TypeError: "parts of the run are missing or damaged" };

let config = null; // what the server offers
let threshold = null; // for all levels; null stands for the calibrated ones
let current = null; // {run, saved, phase, replay, cancel}: what the page shows

const notice = (words) => (byId("notice").textContent = words);

/** Ask the reader for an API key and keep it in this tab; an Error where they would rather not. */
async function askForKey(wrong) {
  const dialog = byId("key-dialog");
  byId("key-why").textContent = wrong ? "The server does not know this key." : "The server asks for one.";
  byId("key").value = dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "use") throw new Error("the server wants an API key");
  sessionStorage.setItem(KEY, byId("key").value);
}

async function loadConfig() {
  config = await (await send("/v1/ensemble/config", {}, askForKey)).json();
  const group = (label, choices) => element("optgroup", { label }, choices.map(({ id, method = id }) =>
    element("option", { value: id }, method === id ? id : `${id} · ${method}`)));
  patch(byId("model"), group("Ensembles", config.ensembles), group("One model alone", config.members));
  byId("model").disabled = false;
  byId("version").textContent = `ensemblehub ${config.version}`;
  offer();
}

/** What the chosen name stands for; a model alone is an ensemble of itself. */
function served() {
  const id = byId("model").value;
  return config.ensembles.find((ensemble) => ensemble.id === id)
    ?? { id, method: "single", granularity: "response", members: [id], params: {}, levels: [], bounds: {} };
}

/** Offer what the chosen ensemble lets a request set. */
function offer() {
  const { granularity, members, levels, bounds } = served();
  const sizes = new Map(config.members.map(({ id, parameters }) => [id, parameters]));
  const sized = (id) => (sizes.get(id) ? `${id} (${compact(sizes.get(id))} parameters)` : id);
  const pace = granularity === "response" ? "" : `${granularity} by ${granularity} · `;
  byId("model-about").textContent = pace + members.map(sized).join(", ");
  const fixed = levels.filter(({ level }) => bounds.judge?.choices?.includes(`fixed:${level}`));
  const radio = (value, label) =>
    element("label.button", null, element("input", { type: "radio", name: "level", value }), ` ${label}`);
  byId("levels").hidden = !fixed.length;
  patch(byId("levels"), element("legend", null, "Effort level"), radio("", "The judge decides"),
    fixed.map(({ level, mentor_tokens }) => radio(level, `${level} ${count(mentor_tokens)} tokens`)));
  byId("levels").querySelector("input").checked = true;
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
  byId("threshold").value = value ?? mean;
  byId("threshold").setAttribute("aria-valuetext", words);
  byId("threshold-value").textContent = words;
}

/** The body of the request. */
function request() {
  const form = new FormData(byId("ask"));
  const level = form.get("level");
  const thresholds = Object.fromEntries(served().levels.map(({ level }) => [level, threshold]));
  const params = level ? { judge: `fixed:${level}` } : threshold !== null && { thresholds };
  const messages = [{ role: "user", content: form.get("question").trim() }];
  const stream = { stream: true, stream_options: { include_usage: true } };
  return { model: form.get("model"), messages, ...stream, ...(params && { ensemble: { params } }) };
}

/** Put a run on the page in place of the one before. */
function present(saved, run, phase, replay = false) {
  const next = { run, saved, phase, replay, cancel: new AbortController() };
  show(next);
  current?.cancel.abort();
  current = next;
}

const presentWhole = (saved) =>
  present(saved, saved.chunks.reduce((run, { chunk }) => fold(run, chunk), EMPTY), phaseOf(saved));

/** A run on the page that is fed from `source`. */
async function follow(saved, source) {
  present(saved, EMPTY, "running", source === replayed);
  const shown = current;
  const { signal } = shown.cancel;
  byId("run").scrollIntoView();
  try {
    for await (const chunk of source(saved, signal)) {
      shown.run = fold(shown.run, chunk);
      shown.frame ??= requestAnimationFrame(() => {
        shown.frame = null;
        show(current);
      });
    }
  } catch (error) {
    Object.assign(saved, signal.aborted ? { stopped: true } : { error: worded(error) });
  }
  shown.phase = phaseOf(saved);
  show(current);
}

async function* asked({ request, chunks }, signal) {
  const started = performance.now();
  const options = { method: "POST", body: JSON.stringify(request), signal };
  for await (const chunk of events((await send("/v1/chat/completions", options, askForKey)).body)) {
    chunks.push({ at: Math.round(performance.now() - started), chunk });
    yield chunk;
  }
}

async function* replayed({ chunks }, signal) {
  const started = performance.now();
  for (const { at, chunk } of chunks) {
    await new Promise((resolve) => setTimeout(resolve, at - (performance.now() - started)));
    if (signal.aborted) return;
    yield chunk;
  }
}

async function ask() {
  notice("");
  if (!config) await loadConfig();
  const body = request();
  const saved = {
    format: FORMATS[0], version: 1, question: body.messages[0].content, request: body, served: served(),
    members: config.members, started: new Date().toISOString(), chunks: [], stopped: false, error: null,
  };
  await follow(saved, asked);
}

/** Stop what is running; a replay jumps to its end. */
function stop() {
  if (current?.phase !== "running") return;
  if (current.replay) presentWhole(current.saved);
  else current.cancel.abort();
}

function save({ saved }) {
  const href = URL.createObjectURL(new Blob([JSON.stringify(saved)], { type: "application/json" }));
  const download = `run-${saved.started.slice(0, 19).replaceAll(":", "-")}.json`;
  Object.assign(document.createElement("a"), { href, download }).click();
  URL.revokeObjectURL(href);
}

async function open(file) {
  try {
    presentWhole(parsed(await file.text()));
  } catch ({ name, message }) {
    return notice(`${file.name} cannot be opened: ${DAMAGES[name] ?? message}.`);
  }
  notice("");
  byId("run").scrollIntoView();
  byId("run-title").focus({ preventScroll: true });
}

const complain = (error) => notice(sentence(worded(error)));
const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;

/** An error in words that name what can be set here. */
function worded({ name, message, code, param, wait }) {
  if (name === "TypeError") return `the connection to the server failed (${message})`;
  const other = "choose another ensemble";
  const lower = byId("levels").hidden ? other : `${other}, or a lower effort level`;
  if (TOO_LONG.includes(code)) return `the question is too long: shorten it, or ${lower}`;
  const again = `ask again ${wait ? `in ${wait} s` : "later"}`;
  const advice = {
    overloaded: again, not_ready: again, model_not_found: `reload the page and ${other}`,
    timeout: `ask again, or ${lower}`, engine_error: `ask again, or ${other}`,
    judge: "choose another effort level", thresholds: "set another threshold",
    messages: "change the question",
  };
  const found = advice[code] ?? advice[/^(ensemble\.params\.)?(\w*)/.exec(param ?? "")[2]];
  return found ? `${message}. ${sentence(found)}` : message;
}

function setTheme(theme) {
  localStorage.setItem("ensemblehub-theme", theme);
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

/** A file dropped anywhere is opened. */
function dragged(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.toggle("dropping", event.type === "dragover");
  if (event.type === "drop") open(event.dataTransfer.files[0]);
}

const on = (id, type, handler) => byId(id).addEventListener(type, handler);
on("examples", "click", ({ target }) => {
  if (!target.value) return;
  byId("question").value = target.value.replace(/\s+/g, " ");
  byId("question").focus();
});
on("ask", "submit", (event) => {
  event.preventDefault();
  if (byId("question").value.trim() && byId("start").ariaDisabled !== "true") ask().catch(complain);
});
on("stop", "click", stop);
on("save", "click", () => save(current));
on("replay", "click", () => (current.phase === "running" ? stop() : follow(current.saved, replayed)));
on("model", "change", offer);
on("levels", "change", ({ target }) => (byId("threshold").disabled = target.value !== ""));
on("threshold", "input", ({ target }) => setThreshold(target.valueAsNumber));
on("calibrated", "click", () => setThreshold(null));
on("theme", "click", () => setTheme(THEMES[(THEMES.indexOf(localStorage["ensemblehub-theme"]) + 1) % 3]));
on("file", "click", ({ target }) => (target.value = "")); // or the same file would be no change
on("file", "change", ({ target }) => open(target.files[0]));
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, dragged);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("key-dialog").open) stop();
  if (event.key !== "Enter" || event.target.id !== "question" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask").requestSubmit();
});
setTheme(THEMES.find((theme) => theme === localStorage["ensemblehub-theme"]) ?? "auto");
loadConfig().catch(complain);
