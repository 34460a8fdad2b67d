/** The page: its controls, the run it shows, and files of runs. */

import { byId, element, patch } from "./elements.js";
import { compact, count, ratio, total } from "./numbers.js";
import { EMPTY, begun, fold, parsed, phaseOf } from "./run.js";
import { TOO_LONG, events, keepKey, send } from "./stream.js";
import { show } from "./view.js";

const THEMES = ["auto", "light", "dark"];
const LEADS = {
  tandem: "A large mentor writes short insights. A judge watches for the moment they suffice, the mentor is "
    + "stopped there, and a small intern answers.",
  single: "One model answers by itself, as a baseline.",
  other: "Models share the work of one answer, and the text is coloured by who wrote it.",
};
const WORK = { token: "token by token", segment: "segment by segment" };

let config = null; // what the server offers
let threshold = null; // for all levels; null stands for the calibrated ones
let current = null; // {run, saved, phase, replay, cancel}: what the page shows
let drawing = 0;

/** Show the run at the next frame, once. */
function redraw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
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
  byId("key").value = dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "use") throw new Error("the server wants an API key");
  keepKey(byId("key").value);
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
  const alone = { id, method: "single", granularity: "response", members: [id], params: {}, levels: [], bounds: {} };
  return config.ensembles.find((ensemble) => ensemble.id === id) ?? alone;
}

/** Offer what the chosen ensemble lets a request set. */
function offer() {
  const { method, granularity, members, levels, bounds } = served();
  const sizes = new Map(config.members.map(({ id, parameters }) => [id, parameters]));
  const sized = (id) => (sizes.get(id) ? `${id} (${compact(sizes.get(id))} parameters)` : id);
  byId("lead").textContent = `${LEADS[method] ?? LEADS.other} Every token is counted.`;
  byId("model-about").textContent =
    [WORK[granularity], members.map(sized).join(", ")].filter(Boolean).join(" · ");
  const fixed = levels.filter(({ level }) => bounds.judge?.choices?.includes(`fixed:${level}`));
  const radio = (value, label, note) => element("label.button", null,
    element("input", { type: "radio", name: "level", value }), label, note && element("small", null, note));
  byId("levels").hidden = !fixed.length;
  patch(byId("levels"), element("legend", null, "Effort level"), radio("", "The judge decides"),
    fixed.map(({ level, mentor_tokens }) => radio(level, level, ` ${count(mentor_tokens)} tokens`)));
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
  if (value === null) byId("threshold").value = total(levels.map(({ threshold }) => threshold)) / levels.length;
  byId("threshold").setAttribute("aria-valuetext", words);
  byId("threshold-value").textContent = words;
  byId("calibrated").hidden = value === null;
}

/** The body of the request. */
function request() {
  const form = new FormData(byId("ask"));
  const level = form.get("level");
  const thresholds = Object.fromEntries(served().levels.map(({ level }) => [level, threshold]));
  const params = level ? { judge: `fixed:${level}` } : threshold !== null && { thresholds };
  return {
    model: form.get("model"), messages: [{ role: "user", content: form.get("question").trim() }], stream: true,
    stream_options: { include_usage: true }, ...(params && { ensemble: { params } }),
  };
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
      redraw();
    }
  } catch (error) {
    Object.assign(saved, signal.aborted ? { stopped: true } : { error: worded(error) });
  }
  shown.phase = phaseOf(saved);
  redraw();
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
  await follow(begun(body.messages[0].content, body, served(), config.members), asked);
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
    const saved = parsed(await file.text());
    presentWhole(saved);
  } catch (error) {
    const words = error instanceof TypeError ? "parts of the run are missing or damaged" : error.message;
    return notice(`${file.name} cannot be opened: ${words}.`);
  }
  notice("");
  byId("run").scrollIntoView();
  byId("run-title").focus({ preventScroll: true });
}

const complain = (error) => notice(sentence(worded(error)));
const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;

/** An error in words that name what can be set here. */
function worded({ message, code, param, wait }) {
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
  const found = advice[code] ?? advice[/^(ensemble\.params\.\w+|\w*)/.exec(param ?? "")[0]];
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
on("question", "keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask").requestSubmit();
});
on("stop", "click", stop);
on("save", "click", () => save(current));
on("replay", "click", () => (current.phase === "running" ? stop() : follow(current.saved, replayed)));
on("model", "change", offer);
on("levels", "change", ({ target }) => (byId("threshold").disabled = target.value !== ""));
on("threshold", "input", ({ target }) => setThreshold(target.valueAsNumber));
on("calibrated", "click", () => {
  byId("threshold").focus();
  setThreshold(null);
});
on("theme", "click", () => setTheme(THEMES[(THEMES.indexOf(localStorage["ensemblehub-theme"]) + 1) % 3]));
on("file", "change", ({ target }) => {
  if (target.files.length) open(target.files[0]);
  target.value = "";
});
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, dragged);
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && !byId("key-dialog").open) stop();
});
setTheme(THEMES.find((theme) => theme === localStorage["ensemblehub-theme"]) ?? "auto");
loadConfig().catch(complain);
