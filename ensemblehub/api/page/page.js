/** The page: its tabs and controls, the runs it shows, and files of them. */

import { showBoard } from "./board.js";
import { byId, element, patch } from "./elements.js";
import * as kept from "./history.js";
import { compact, count, ratio, total } from "./numbers.js";
import { EMPTY, FORMATS, PAIR, answerOf, checked, fold, phaseOf, phaseOfAll } from "./run.js";
import { events, send } from "./stream.js";
import { show } from "./view.js";

const THEMES = ["auto", "light", "dark"];
const TOO_LONG = ["context_length_exceeded", "body_too_large"];
const CHATS = "/v1/chat/completions";
const DAMAGES = { SyntaxError: "it is not JSON", TypeError: "parts of the run are missing or damaged" };
const NO_BOARD = "Start the server with --board DIR, a folder of results that `ensemblehub bench` wrote, to see "
  + "here what every configuration answered, how often it was right, and at what cost.";

let config = null; // what the server offers
let tab = "ask";
let board = null; // its loading, once the tab was opened
let conversation = []; // messages before the next question
const models = {}; // the name chosen in each tab
const settings = new Map(); // by name: the level, "" for the judge's, and the threshold, null for calibrated ones
const sessions = { ask: null, compare: null }; // what they show: {runs: [{run, saved, phase}], replay, cancel}

const notice = (words) => (byId("notice").textContent = words);

/** Ask the reader for an API key; an Error where they would rather not. */
async function askForKey(wrong) {
  const dialog = byId("key-dialog");
  byId("key-why").textContent = wrong ? "The server does not know this key." : "The server asks for one.";
  byId("key").value = dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "use") throw new Error("the server wants an API key");
  return byId("key").value;
}

async function loadConfig() {
  config = await (await send("/v1/ensemble/config", {}, askForKey)).json();
  const group = (label, choices) => element("optgroup", { label }, choices.map(({ id, method = id }) =>
    element("option", { value: id }, method === id ? id : `${id} · ${method}`)));
  patch(byId("model"), group("Ensembles", config.ensembles), group("One model alone", config.members));
  byId("other").replaceChildren(...[...byId("model").children].map((group) => group.cloneNode(true)));
  byId("other").value = [...config.members].sort((first, second) => second.parameters - first.parameters)[0].id;
  byId("model").disabled = byId("other").disabled = false;
  byId("version").textContent = `ensemblehub ${config.version}`;
  offer();
}

/** What the chosen name stands for; a model alone is an ensemble of itself. */
function served(id = byId("model").value) {
  return config.ensembles.find((ensemble) => ensemble.id === id)
    ?? { id, method: "single", granularity: "response", members: [id], params: {}, levels: [], bounds: {} };
}

/** What is set for the chosen ensemble. */
const choice = () => settings.get(byId("model").value) ?? { level: "", threshold: null };

function choose(changed) {
  settings.set(byId("model").value, { ...choice(), ...changed });
  offer();
}

/** Offer what the tab's ensemble, or the one that is chosen now, lets a request set, as it was set. */
function offer(model = models[tab]) {
  models[tab] = model;
  const two = tab === "compare";
  byId("against-whom").hidden = !two;
  byId("start").textContent = two ? "Ask both" : "Ask";
  if (!config) return;
  byId("model").value = model;
  if (!byId("model").value) byId("model").selectedIndex = 0; // none is chosen, or one that is not served here
  const { level: set, threshold } = choice();
  const { granularity, members, levels, bounds } = served();
  const sizes = new Map(config.members.map(({ id, parameters }) => [id, parameters]));
  const sized = (id) => (sizes.get(id) ? `${id} (${compact(sizes.get(id))} parameters)` : id);
  const pace = granularity === "response" ? "" : `${granularity} by ${granularity} · `;
  byId("model-about").textContent = pace + members.map(sized).join(", ");
  const fixed = levels.filter(({ level }) => bounds.judge?.choices?.includes(`fixed:${level}`));
  const radio = (value, label) =>
    element("label.button", null, element("input", { type: "radio", name: "level", value }), ` ${label}`);
  byId("levels").hidden = two || !fixed.length;
  patch(byId("levels"), element("legend", null, "Effort level"), radio("", "The judge decides"),
    fixed.map(({ level, mentor_tokens }) => radio(level, `${level} ${count(mentor_tokens)} tokens`)));
  for (const input of byId("levels").querySelectorAll("input")) input.checked = input.value === set;
  const { minimum: min = 0, maximum: max = 1 } = bounds.thresholds ?? {};
  const words = threshold === null ? "as calibrated" : ratio(threshold);
  const mean = total(levels.map((level) => level.threshold)) / levels.length;
  byId("thresholds").hidden = two || !bounds.thresholds || !levels.length;
  Object.assign(byId("threshold"), { min, max, value: threshold ?? mean, disabled: set !== "" });
  byId("threshold").setAttribute("aria-valuetext", words);
  byId("threshold-value").textContent = words;
}

/** The body of the request to an ensemble; in a comparison all options are the operator's. */
function request(model) {
  const { level, threshold } = choice();
  const thresholds = Object.fromEntries(served().levels.map(({ level }) => [level, threshold]));
  const params = tab === "ask" && (level ? { judge: `fixed:${level}` } : threshold !== null && { thresholds });
  const before = tab === "ask" ? conversation : [];
  const messages = [...before, { role: "user", content: byId("question").value.trim() }];
  const stream = { stream: true, stream_options: { include_usage: true } };
  return { model, messages, ...stream, ...(params && { ensemble: { params } }) };
}

/** Put one run, or two to compare, on the page in place of what their tab showed before. */
function present(runs, replay = false) {
  const name = runs.length > 1 ? "compare" : "ask";
  const next = { runs, replay, cancel: new AbortController() };
  show(next);
  sessions[name]?.cancel.abort();
  sessions[name] = next;
  if (tab !== name) setTab(name);
  return next;
}

const presentWhole = (all) => present(all.map((saved) =>
  ({ saved, run: saved.chunks.reduce((run, { chunk }) => fold(run, chunk), EMPTY), phase: phaseOf(saved) })));

const savedOf = ({ runs: [{ saved }, other] }) => (!other ? saved
  : { format: PAIR, version: 1, started: saved.started, runs: [saved, other.saved] });

/** Runs on the page, each of them fed from a `source` of its own at the same time. */
async function follow(all, source) {
  const session = present(all.map((saved) => ({ run: EMPTY, saved, phase: "running" })), source === replayed);
  byId("run").scrollIntoView();
  await Promise.all(session.runs.map((shown) => feed(session, shown, source)));
  if (source === replayed || !all.some(({ chunks }) => chunks.length)) return;
  kept.remember(savedOf(session));
  if (tab === "history") showHistory();
}

async function feed(session, shown, source) {
  const { saved } = shown;
  const { signal } = session.cancel;
  const draw = () => sessions[tab] === session && show(session);
  try {
    for await (const chunk of source(saved, signal)) {
      shown.run = fold(shown.run, chunk);
      session.frame ??= requestAnimationFrame(() => {
        session.frame = null;
        draw();
      });
    }
  } catch (error) {
    Object.assign(saved, signal.aborted ? { stopped: true } : { error: worded(error) });
  }
  shown.phase = phaseOf(saved);
  draw();
}

async function* asked({ request, chunks }, signal) {
  const started = performance.now();
  const options = { method: "POST", body: JSON.stringify(request), signal };
  for await (const { ensemble, choices, usage } of events((await send(CHATS, options, askForKey)).body)) {
    const chunk = { ensemble, choices, usage }; // all that differs from chunk to chunk
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
  const names = [byId("model").value, ...(tab === "compare" ? [byId("other").value] : [])];
  const all = names.map((name) => ({
    format: FORMATS[0], version: 1, question: byId("question").value.trim(), request: request(name),
    served: served(name), members: config.members, started: new Date().toISOString(), chunks: [],
    stopped: false, error: null,
  }));
  await follow(all, asked);
}

/** Stop what the tab runs; a replay jumps to its end. */
function stop() {
  const session = sessions[tab];
  if (!session || phaseOfAll(session.runs) !== "running") return;
  if (session.replay) presentWhole(session.runs.map(({ saved }) => saved));
  else session.cancel.abort();
}

/** The next question goes on with this conversation, or begins one. */
function goOn(messages) {
  conversation = messages;
  byId("following").hidden = !messages.length;
  patch(byId("following"), messages.length && [
    element("span.clipped", null, "Follows “", messages.at(-2).content, "”"),
    element("button.chip", { type: "button" }, "Begin anew")]);
  byId("question").focus();
}

function followUp([{ run, saved }]) {
  const before = saved.request.messages ?? [{ role: "user", content: saved.question }];
  goOn([...before, { role: "assistant", content: answerOf(run) }]);
  byId("question").value = "";
  offer(saved.request.model);
}

function save(session) {
  const saved = savedOf(session);
  const href = URL.createObjectURL(new Blob([JSON.stringify(saved)], { type: "application/json" }));
  const name = saved.format === PAIR ? "comparison" : "run";
  const download = `${name}-${saved.started.slice(0, 19).replaceAll(":", "-")}.json`;
  Object.assign(document.createElement("a"), { href, download }).click();
  URL.revokeObjectURL(href);
}

/** Show what was saved, from a file or the history. */
function open(saved, name) {
  try {
    presentWhole(checked(typeof saved === "string" ? JSON.parse(saved) : saved));
  } catch (error) {
    return notice(`${name} cannot be opened: ${DAMAGES[error.name] ?? error.message}.`);
  }
  notice("");
  byId("run").scrollIntoView();
  byId("run-title").focus({ preventScroll: true });
}

const openFile = async (file) => open(await file.text(), file.name);

function showHistory() {
  const found = kept.entries();
  byId("keep").checked = kept.keeps();
  byId("clear").disabled = !found.length;
  patch(byId("entries"), found.length ? found : element("li.hint", null, "Nothing is kept yet."));
}

async function loadBoard() {
  const load = async (path) => (await send(`/v1/ensemble/board${path}`, {}, askForKey)).json();
  const { results } = await load("");
  if (!results.length) return patch(byId("results"), element("p.lead", null, NO_BOARD));
  await showBoard(byId("results"), results, (place) => load(`/${place}`),
    (place, id) => load(`/${place}/answers?question=${encodeURIComponent(id)}`), complain);
}

/** Show a tab; the form and the run are in the one of the first two that is shown. */
function setTab(name) {
  tab = name;
  notice("");
  for (const button of byId("tabs").children) {
    const chosen = button.value === name;
    button.ariaSelected = chosen;
    button.tabIndex = chosen ? 0 : -1;
    byId(button.value).hidden = !chosen;
  }
  window.history.replaceState(null, "", name === "ask" ? location.pathname : `#${name}`);
  if (name in sessions) {
    byId(name).append(byId("work"));
    offer();
    byId("start").ariaDisabled = "false"; // what runs in the other does not keep this one from asking
    if (sessions[name]) show(sessions[name]);
    else byId("run").hidden = true;
  }
  if (name === "board") board ??= loadBoard().catch((error) => complain(error, (board = null)));
  if (name === "history") showHistory();
}

const linked = () => byId(`${location.hash.slice(1) || "ask"}-tab`); // what the address names

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

function setTheme(theme = THEMES.find((name) => name === localStorage["ensemblehub-theme"]) ?? "auto") {
  localStorage.setItem("ensemblehub-theme", theme);
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

/** A file dropped anywhere is opened. */
function dragged(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.toggle("dropping", event.type === "dragover");
  if (event.type === "drop") openFile(event.dataTransfer.files[0]);
}

const on = (id, type, handler) => byId(id).addEventListener(type, handler);
on("examples", "click", ({ target }) => {
  if (!target.value) return;
  byId("question").value = target.value.replace(/\s+/g, " ");
  byId("question").focus();
});
on("form", "submit", (event) => {
  event.preventDefault();
  if (byId("question").value.trim() && byId("start").ariaDisabled !== "true") ask().catch(complain);
});
on("stop", "click", stop);
on("save", "click", () => save(sessions[tab]));
on("further", "click", () => followUp(sessions[tab].runs));
on("following", "click", ({ target }) => target.closest("button") && goOn([]));
on("replay", "click", () => {
  const { runs } = sessions[tab];
  if (phaseOfAll(runs) === "running") stop();
  else follow(runs.map(({ saved }) => saved), replayed);
});
on("tabs", "click", ({ target }) => target.value && setTab(target.value));
on("tabs", "keydown", ({ key, target }) => {
  const all = [...byId("tabs").children];
  const at = all.indexOf(target);
  const next = { ArrowRight: (at + 1) % all.length, ArrowLeft: at - 1, Home: 0, End: -1 }[key];
  if (next === undefined) return;
  setTab(all.at(next).value);
  all.at(next).focus();
});
on("entries", "click", ({ target: { name, value } }) => {
  if (name === "open") open(kept.read().find(({ started }) => started === value), "This answer");
  if (name !== "remove") return;
  kept.remove(value);
  showHistory();
  byId("history-tab").focus();
});
on("clear", "click", () => {
  if (!confirm("Remove everything that this browser keeps of your questions and answers here?")) return;
  kept.clear();
  showHistory();
});
on("keep", "change", ({ target }) => kept.setKeeps(target.checked));
on("model", "change", ({ target }) => offer(target.value));
on("levels", "change", ({ target }) => choose({ level: target.value }));
on("threshold", "input", ({ target }) => choose({ threshold: target.valueAsNumber }));
on("calibrated", "click", () => choose({ threshold: null }));
on("theme", "click", () => setTheme(THEMES[(THEMES.indexOf(localStorage["ensemblehub-theme"]) + 1) % 3]));
on("file", "click", ({ target }) => (target.value = "")); // or the same file would be no change
on("file", "change", ({ target }) => openFile(target.files[0]));
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, dragged);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("key-dialog").open) stop();
  if (event.key !== "Enter" || event.target.id !== "question" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("form").requestSubmit();
});
window.addEventListener("storage", () => { // another window has changed what this browser keeps
  setTheme();
  if (tab === "history") showHistory();
});
window.addEventListener("hashchange", () => linked()?.click());
setTheme();
(linked() ?? byId("ask-tab")).click();
loadConfig().catch(complain);
