/**
 * The ride, live: asks the server of this page, folds what streams back into a ride, and shows it.
 *
 * Four parts, each of which knows only those above it: wire, state, view, page.
 *
 * @typedef {{engine: string, purpose: "insight"|"answer", round: number, text: string, tokens: number}} Segment
 *   Text of one author; neighbours of one author, purpose and round are one segment.
 * @typedef {{level: string, tokens: number, probability: number, threshold: number, sufficient: boolean,
 *   at: number}} Verdict
 *   `at`: characters of insight that were there when it was judged.
 * @typedef {{about: string, chosen: string[], scores: [string, number][], reason: string}} Choice
 * @typedef {{flops: number, usd: number, seconds: number, estimated: boolean, spent: Line[]}} Bill
 * @typedef {{engine: string, purpose: string, calls: number, read: number, cached: number, written: number,
 *   discarded: number, flops: number, usd: number, seconds: number}} Line
 * @typedef {{method: string, roles: Record<string, string>, members: string[], estimate: number[]|null,
 *   segments: Segment[], verdicts: Verdict[], choices: Choice[], finish: string, flops: number, spared: number,
 *   bill: Bill|null}} Ride
 *   `flops` is the bill of the calls that had ended at the last verdict; `bill` the exact one, at the end. `spared` is
 *   what caches of earlier requests saved: it is no part of the bill, but of the comparison with the mentor alone.
 * @typedef {{format: string, version: number, question: string, request: object, started: string, served: Served,
 *   members: Member[], chunks: {at: number, chunk: object}[], stopped: boolean, error: string|null}} Saved
 *   A ride as it is saved; `at` in milliseconds since the start.
 * @typedef {{id: string, method: string, granularity: string, members: string[], params: Record<string, any>,
 *   levels: {level: string, mentor_tokens: number, threshold: number}[], bounds: Record<string, any>}} Served
 * @typedef {{id: string, parameters: number, token_flops: number}} Member
 * @typedef {{ride: Ride, saved: Saved, phase: "running"|"done"|"stopped"|"failed", replay: boolean,
 *   cancel: AbortController}} Run
 *   What the page shows: a ride under way, or a whole one.
 */

/* ── wire ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

const KEY = "ensemblehub-key"; // in sessionStorage: gone with the tab

/** Fetch from this server, asking for an API key where one is needed. A reply without success is an Error. */
async function send(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { ...options, headers }).catch((error) => {
      throw error.name === "AbortError" ? error : new Error("the server cannot be reached");
    });
    if (response.ok) return response;
    if (response.status !== 401) throw await problem(response);
    await askForKey(key !== null);
  }
}

/** What the server says is wrong. */
async function problem(response) {
  const body = await response.json().catch(() => null);
  const wait = Number(response.headers.get("retry-after"));
  return refusal(body?.error, `the server replied ${response.status}`, response.status === 413 ? TOO_LONG : "", wait);
}

const TOO_LONG = "context_length_exceeded";

/** An Error with the server's code and the field that is wrong. */
function refusal(said, otherwise, code = "", wait = 0) {
  const about = { code: text(said?.code) || code, param: text(said?.param), wait };
  return Object.assign(new Error(text(said?.message) || otherwise), about);
}

/** The data of server-sent events, parsed, until `[DONE]`. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error("the connection was lost");
    });
    if (done) throw new Error("the stream ended before the ride did");
    const blocks = (waiting + value).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const data = block.startsWith("data: ") ? block.slice(6) : ""; // anything else is a comment
      if (data === "[DONE]") return;
      if (!data) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw refusal(chunk.error, "the server failed");
      yield chunk;
    }
  }
}

/* ── state: a pure fold of chunks to a ride ───────────────────────────────────────────────────────────────────── */

/** @type {Ride} */
const NOTHING = {
  method: "", roles: {}, members: [], estimate: null, segments: [], verdicts: [], choices: [], finish: "", flops: 0,
  spared: 0, bill: null,
};

const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : 0);
const list = (value) => (Array.isArray(value) ? value : []);
const total = (values) => values.reduce((sum, value) => sum + value, 0);

/**
 * The ride with one more chunk of the stream.
 *
 * @param {Ride} ride
 * @returns {Ride}
 */
function fold(ride, chunk) {
  const said = chunk.ensemble ?? {};
  const first = chunk.choices?.[0];
  const next = { ...ride, finish: text(first?.finish_reason) || ride.finish };
  if (said.start) Object.assign(next, opened(said.start));
  const verdicts = list(said.verdicts ?? [said.verdict]).filter(Boolean); // one by itself in rides saved before
  if (verdicts.length) {
    const at = insightOf(ride).length;
    next.verdicts = [...ride.verdicts, ...verdicts.map((one) => judged(one, at))];
    next.flops = number(said.flops);
    next.spared = sparedBy(said);
  }
  next.choices = [...ride.choices, ...list(said.choices ?? [said.choice]).filter(Boolean).map(chosen)];
  if (said.engine) {
    const { engine, purpose, round, tokens } = said;
    const delta = first?.delta ?? {};
    const written = text(delta.reasoning_content ?? delta.reasoning ?? delta.content);
    next.segments = joined(ride.segments, {
      engine: text(engine), purpose: text(purpose), round: number(round), text: written, tokens: number(tokens),
    });
  }
  if (chunk.usage) {
    const cost = chunk.usage.cost_details ?? chunk.usage.cost ?? {}; // `cost` in rides saved before
    next.bill = billed(cost);
    next.spared = sparedBy(cost);
    next.estimate = interval(cost.estimated_mentor_alone_flops) ?? next.estimate;
  }
  return next;
}

function opened(start) {
  const roles = Object.entries(start.roles ?? {}).map(([part, engine]) => [part, text(engine)]);
  return {
    method: text(start.method), roles: Object.fromEntries(roles), members: list(start.members).map(text),
    estimate: interval(start.estimated_mentor_alone_flops),
  };
}

function joined(segments, segment) {
  const last = segments.at(-1);
  const same = last && ["engine", "purpose", "round"].every((key) => last[key] === segment[key]);
  if (!same) return [...segments, segment];
  return [...segments.slice(0, -1), { ...last, text: last.text + segment.text, tokens: last.tokens + segment.tokens }];
}

const judged = (verdict, at) => ({
  level: text(verdict.level), tokens: number(verdict.mentor_tokens), probability: number(verdict.probability),
  threshold: number(verdict.threshold), sufficient: verdict.sufficient === true, at,
});

const chosen = (choice) => ({
  about: text(choice.about), chosen: list(choice.chosen).map(text), reason: text(choice.reason),
  scores: list(choice.scores).map((pair) => [text(pair?.[0]), number(pair?.[1])]),
});

const billed = (cost) => ({
  flops: number(cost.flops), usd: number(cost.usd), seconds: number(cost.seconds), estimated: cost.estimated === true,
  spent: list(cost.spent).map((line) => ({
    engine: text(line.engine), purpose: text(line.purpose), calls: number(line.calls), read: number(line.prompt_tokens),
    cached: number(line.cached_tokens), written: number(line.completion_tokens),
    discarded: number(line.discarded_tokens), flops: number(line.flops), usd: number(line.usd),
    seconds: number(line.seconds),
  })),
});

const sparedBy = ({ flops, cold_flops }) => number(cold_flops ?? flops) - number(flops);

/** An estimate and its 95 % interval; null where there is none. */
const interval = (values) => (list(values).length === 3 && values[0] > 0 ? values.map(number) : null);

const insightOf = (ride) => ride.segments.filter((one) => one.purpose === "insight").map((one) => one.text).join("");
const answersOf = (ride) => ride.segments.filter((one) => one.purpose === "answer");

/**
 * The bill in FLOPs: exact at the end; before that the calls that had ended at the last verdict, and what the tokens of
 * the others come to. (Writers are billed when they end, after the verdicts on what they write.)
 */
function spentSoFar(ride, saved) {
  if (ride.bill) return ride.bill.flops;
  const each = Object.fromEntries(saved.members.map((one) => [one.id, number(one.token_flops)]));
  const sum = (names) => total(names.map((name) => each[name] ?? 0));
  const together = saved.served.granularity === "token"; // every member computes every token
  const rate = (author) => sum(together ? ride.members : author.split("+"));
  return ride.flops + total(ride.segments.map((one) => one.tokens * rate(one.engine)));
}

/** The parts of an insight: text under each heading, as `tandem/insights.py` finds them; before the first, without. */
function sections(insight) {
  const heading = /^[\s>#*\-\d.)]*(Goal|Planning|Retrieval|Action)\b[*\s]*[:：]?[*]*/gim;
  const found = [...insight.matchAll(heading)];
  const parts = found.map((match) => ({
    heading: match[1][0].toUpperCase() + match[1].slice(1).toLowerCase(),
    start: match.index, from: match.index + match[0].length,
  }));
  return [{ heading: "", start: 0, from: 0 }, ...parts].map((part, index) => {
    const end = parts[index]?.start ?? insight.length;
    const written = insight.slice(part.from, end);
    const from = part.from + written.length - written.trimStart().length;
    return { ...part, end, from, to: from + written.trim().length };
  }).filter((part) => part.heading || part.to > part.from);
}

/** The levels of a Tandem in order, judged or not yet; the verdict is null where there is none. */
function checkpoints(ride, saved) {
  const params = saved.request.ensemble?.params ?? {};
  const planned = saved.served.levels.map((one) => ({
    level: text(one.level), tokens: number(one.mentor_tokens),
    threshold: params.judge ? null : number(params.thresholds?.[one.level] ?? one.threshold),
  }));
  const others = ride.verdicts.filter((verdict) => !planned.some((one) => one.level === verdict.level));
  return [...others, ...planned].map((one) => {
    const verdict = ride.verdicts.find((verdict) => verdict.level === one.level) ?? null;
    return { ...one, ...verdict, verdict };
  });
}

const compared = ({ probability, threshold, sufficient }) =>
  `${ratio(probability)} ${sufficient ? "≥" : "<"} ${ratio(threshold)}`;

/** How the mentor's part ended, as a sentence; "" while it has not. */
function handover(ride, saved) {
  const last = ride.verdicts.at(-1);
  if (!last) return "";
  if (last.sufficient) {
    const asked = saved.request.ensemble?.params?.judge; // a level that was set is no finding
    const why = `level ${last.level} ${asked ? "was asked for" : `suffices (${compared(last)})`}`;
    if (!last.tokens) return `No insight is needed: ${why}`;
    const budget = saved.served.levels.find((one) => one.level === last.level)?.mentor_tokens ?? 0;
    const verb = last.tokens < budget ? "ended by itself" : "stopped";
    return `Mentor ${verb} after ${last.tokens} tokens: ${why}`;
  }
  const [answer] = answersOf(ride);
  if (!answer) return "";
  if (answer.engine === ride.roles.mentor) return "No level suffices: the mentor answers itself";
  const best = ride.verdicts.reduce((one, other) => (other.probability > one.probability ? other : one));
  const used = saved.served.params.fallback === "last" ? last : best;
  return `No level suffices: the intern answers with the insight at level ${used.level} (${ratio(used.probability)})`;
}

/** One sentence on where the ride is. */
function statusOf({ ride, saved, phase }) {
  if (phase === "failed") return `The ride broke off: ${saved.error}`;
  if (phase === "stopped") return "Stopped. What had arrived is kept.";
  if (phase === "done") {
    const share = ride.estimate && percent((spentSoFar(ride, saved) + ride.spared) / ride.estimate[0]);
    const end = ride.finish === "length" ? "Ended at the token limit." : "Done.";
    return share ? `${end} It took ${share} of the estimated bill of the mentor alone.` : end;
  }
  if (!ride.method) return "The question is on its way.";
  const answer = answersOf(ride).at(-1);
  if (ride.method !== "tandem") {
    return answer ? "The answer is being written." : `At work: ${ride.members.join(", ")}.`;
  }
  if (answer) return answer.engine === ride.roles.mentor ? "The mentor is answering." : "The intern is answering.";
  const last = ride.verdicts.at(-1);
  if (last?.sufficient) return `${handover(ride, saved)}.`;
  if (!ride.segments.length && !last) return "The ride begins.";
  if (!last || insightOf(ride).length > last.at) return "The mentor is writing insights.";
  return `Level ${last.level} does not suffice (${compared(last)}).`;
}

/* ── view: a ride as a tree of elements, and the tree into the document ─────────────────────────────────────────── */

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const UNITS = [[1e15, "PFLOPs"], [1e12, "TFLOPs"], [1e9, "GFLOPs"], [1e6, "MFLOPs"], [1e3, "kFLOPs"], [1, "FLOPs"]];

const ratio = (value) => value.toFixed(2);
const percent = (value) => `${Math.round(100 * value)}\u00a0%`;
const count = (value) => value.toLocaleString("en");
const compact = (value) => value.toLocaleString("en", { notation: "compact" });
const inUnit = (flops, { size, digits }) => (flops / size).toFixed(digits);
const compute = (flops, unit = unitOf(flops)) => `${inUnit(flops, unit)} ${unit.name}`;

/** The unit for a number of FLOPs and everything beside it. */
function unitOf(flops) {
  const [size, name] = UNITS.find(([size]) => flops >= size) ?? UNITS.at(-1);
  return { size, name, digits: size === 1 ? 0 : flops < 10 * size ? 2 : 1 };
}

/** An element to be, as `tag.class`; children that are not there (null, false, "", 0) are left out. */
function h(what, attributes, ...children) {
  const [tag, ...classes] = what.split(".");
  const named = classes.length ? { class: classes.join(" ") } : {};
  return { tag, attributes: { ...named, ...attributes }, children: children.flat(Infinity).filter(Boolean) };
}

const HIDDEN = { "aria-hidden": "true" };

/** Make the children of `parent` what `nodes` say, touching only what differs. All text goes in as text. */
function patch(parent, nodes) {
  nodes.forEach((node, index) => {
    const old = parent.childNodes[index];
    const name = node.tag ?? "#text";
    if (old?.nodeName.toLowerCase() !== name) {
      const space = name === "svg" ? SVG : parent.namespaceURI;
      const made = node.tag ? document.createElementNS(space, name) : document.createTextNode("");
      if (old) old.replaceWith(made);
      else parent.append(made);
    }
    const place = parent.childNodes[index];
    if (node.tag) shape(place, node);
    else retype(place, node);
  });
  while (parent.childNodes.length > nodes.length) parent.lastChild.remove();
}

function shape(element, { attributes, children }) {
  for (const { name } of [...element.attributes]) {
    if (!(name in attributes)) element.removeAttribute(name);
  }
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
  patch(element, children);
}

/** Change a text node; text that only grows keeps what a reader has selected. */
function retype(node, value) {
  if (value.startsWith(node.data)) node.appendData(value.slice(node.data.length));
  else node.data = value;
}

/** Colours by author: a mentor and an intern have their own, everyone else the next one. */
function palette(ride, saved) {
  const known = [ride.roles.mentor, ride.roles.intern, ...saved.members.map((one) => one.id), ...ride.members];
  const order = [...new Set([...known, ...ride.segments.map((one) => one.engine)].filter(Boolean))];
  return (author) => (order.includes(author) ? `author-${order.indexOf(author) % COLOURS}` : "author-none");
}

/** Everything about one run that is on the page. */
function show(run) {
  const { ride, saved, phase, replay } = run;
  const busy = phase === "running";
  const tandem = ride.method === "tandem";
  const colour = palette(ride, saved);
  const stopping = document.activeElement === $("stop");
  $("ride").hidden = false;
  $("ride").dataset.phase = phase;
  $("judge").hidden = !tandem;
  $("choices").hidden = !ride.choices.length;
  $("bill").hidden = !ride.method;
  $("lines").hidden = !ride.bill;
  $("stop").hidden = !busy || replay;
  $("save").hidden = busy;
  $("replay").hidden = (busy && !replay) || !saved.chunks.length;
  $("start").setAttribute("aria-disabled", busy && !replay);
  if (stopping && !busy) $("save").focus();
  patch($("replay"), [busy ? "Skip to the end" : "Replay"]);
  patch($("status"), [statusOf(run)]);
  patch($("asked"), [saved.question]);
  patch($("flow"), [...(tandem ? guidance(run, colour) : []), answer(run, colour)].filter(Boolean));
  patch($("judge-body"), tandem ? judge(checkpoints(ride, saved)) : []);
  patch($("choices-body"), ride.choices.map((choice) => decision(choice, colour)));
  patch($("bill-body"), bill(run, colour));
  patch($("lines-body"), ride.bill ? [lines(ride.bill, colour)] : []);
}

const tokens = (number) => `${count(number)} tokens`;
const written = (segments) => total(segments.map((one) => one.tokens));
const caret = (there) => there && h("span.caret", HIDDEN);

function head(title, engine, note) {
  const named = engine && engine.toLowerCase() !== title.toLowerCase();
  return h("header.card-head", null,
    h("h3", null, title), named && h("span.engine", null, engine), h("span.note", null, note));
}

/** The mentor's insight by its headings, and the moment it ended. */
function guidance({ ride, saved, phase }, colour) {
  const insights = ride.segments.filter((one) => one.purpose === "insight");
  const last = ride.verdicts.at(-1);
  const writing = phase === "running" && !last?.sufficient && !answersOf(ride).length;
  const whole = insightOf(ride);
  const parts = sections(whole).map((part, index, { length }) => h("div.part", null,
    h(part.heading ? "dt" : "dt.unseen", null, part.heading || "Insight"),
    h("dd", null, marked(whole, part, ride.verdicts), caret(writing && index === length - 1))));
  const note = tokens(Math.max(written(insights), last?.tokens ?? 0)); // an end of text is a token without text
  const sentence = handover(ride, saved);
  return [
    insights.length && h("article.card.written", { id: "insight", class: `card written ${colour(ride.roles.mentor)}` },
      head("Mentor", ride.roles.mentor, note), h("dl", null, parts)),
    sentence && h("p.handover", { id: "handover", "data-sufficient": last.sufficient },
      h("span.sign", HIDDEN, last.sufficient ? "✓" : "○"), sentence),
  ];
}

/** A part of the insight, with a mark where the judge looked. */
function marked(whole, part, verdicts) {
  const inside = verdicts.filter((one) => one.at > part.start && one.at <= part.end)
    .map((one) => ({ ...one, at: Math.min(Math.max(one.at, part.from), part.to) }));
  const pieces = inside.map((one, index) => [
    whole.slice(inside[index - 1]?.at ?? part.from, one.at),
    h("span.mark", HIDDEN, `${one.sufficient ? "✓" : "○"} ${one.level}`),
  ]);
  return [pieces, whole.slice(inside.at(-1)?.at ?? part.from, part.to)];
}

/** The answer, coloured by author where there are several. */
function answer({ ride, saved, phase }, colour) {
  const pieces = answersOf(ride);
  const busy = phase === "running";
  const tandem = ride.method === "tandem";
  if (!pieces.length && (tandem || !busy)) return null;
  const authors = [...new Set(pieces.map((one) => one.engine))];
  const title = !tandem ? "Answer" : authors[0] === ride.roles.mentor ? "Mentor" : "Intern";
  const whole = saved.served.granularity === "response" && ride.members.length > 1;
  const silence = whole ? "Candidates are being written; the chosen one comes whole." : "Waiting for the first token.";
  const legend = h("ul.legend", { "aria-label": "Authors" }, authors.map((name) => h("li", { class: colour(name) },
    h("span.by", null, name), ` ${tokens(written(pieces.filter((one) => one.engine === name)))}`)));
  const look = tandem ? `written ${colour(authors[0])}` : authors.length > 1 ? "shared" : "";
  return h("article", { id: "answer", class: `card ${look}` },
    head(title, tandem && authors[0], pieces.length > 0 && tokens(written(pieces))),
    !tandem && pieces.length > 0 && legend,
    !pieces.length && h("p.hint", null, silence),
    h("p.text", null, pieces.map((one) => [
      one.round > 0 && h("span", { class: `turn ${colour(one.engine)}` }, one.engine),
      h("span", { class: `by ${colour(one.engine)}` }, boxed(one.text)),
    ]), caret(busy && pieces.length > 0)));
}

/** `\boxed{11}` as 11 in a box; its marks stay in the text, unseen. */
function boxed(text) {
  const unseen = (marks) => h("span.unseen", HIDDEN, marks);
  return text.split(/(\\boxed\{[^{}]*\})/).map((piece, index) => (index % 2 === 0 ? piece
    : [unseen("\\boxed{"), h("strong.boxed", null, piece.slice(7, -1)), unseen("}")]));
}

const CHART = { width: 320, left: 26, top: 12, height: 112, below: 56 };

/** Probability as bars, thresholds as lines; and the same as a table for those who do not see it. */
function judge(points) {
  const { width, left, top, height, below } = CHART;
  const column = (width - left) / Math.max(points.length, 3);
  const y = (value) => top + height * (1 - Math.min(Math.max(value, 0), 1.06));
  const line = (kind, x1, x2, value) => h(`line.${kind}`, { x1, x2, y1: y(value), y2: y(value) });
  const grid = [0, 0.5, 1].map((value) => [
    line("grid", left, width, value),
    h("text.tick", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)),
  ]);
  const columns = points.map(({ level, tokens, probability, threshold, sufficient, verdict }, index) => {
    const middle = left + column * (index + 0.5);
    const broad = Math.min(34, column * 0.5);
    const tall = verdict && Math.max(1, y(0) - y(probability));
    const label = (kind, row, words) => h(`text.${kind}`,
      { x: middle, y: top + height + 16 + 15 * row, "text-anchor": "middle" }, words);
    return h(`g.${verdict ? (sufficient ? "enough" : "short") : "open"}`, null,
      verdict && h("rect.bar", { x: middle - broad / 2, y: y(0) - tall, width: broad, height: tall, rx: 3 }),
      threshold !== null && line("threshold", middle - column * 0.4, middle + column * 0.4, threshold),
      label("level", 0, verdict && sufficient ? `✓ ${level}` : level),
      label("tick", 1, `${count(tokens)} tok.`),
      label("word", 2, verdict ? compared(verdict) : "–"));
  });
  const cells = ({ tokens, probability, threshold, sufficient }) =>
    [count(tokens), ratio(probability), ratio(threshold), sufficient ? "sufficient" : "not yet"];
  const names = ["Level", "Mentor tokens", "Probability", "Threshold", "Verdict"];
  return [
    h("svg.chart", { viewBox: `0 0 ${width} ${top + height + below}`, ...HIDDEN }, grid, columns),
    h("p.key", HIDDEN, h("span", null, h("span.key-bar"), "probability that it suffices"),
      h("span", null, h("span.key-line"), "threshold")),
    h("div.unseen", null, table("The judge's probability against the threshold, at each checkpoint", names,
      points.filter(({ verdict }) => verdict).map(({ level, verdict }) => row(level, cells(verdict), names)))),
  ];
}

/** A row of a table; `names` label its cells where a narrow screen shows it as a block. */
const row = (name, cells, names, attributes) =>
  h("tr", { role: "row", ...attributes }, h("th", { scope: "row", role: "rowheader" }, name),
    cells.map((cell, index) => h("td", { role: "cell", "data-name": names[index + 1] }, cell)));

function table(caption, names, rows, foot) {
  const part = { role: "rowgroup" }; // roles, since a style that shows rows as blocks would take them away
  return h("table", { role: "table" }, h("caption.unseen", null, caption),
    h("thead", part, h("tr", { role: "row" },
      names.map((name) => h("th", { scope: "col", role: "columnheader" }, name)))),
    h("tbody", part, rows), foot && h("tfoot", part, foot));
}

const ABOUT = { models: "Who takes part", proposal: "Which proposal", answer: "Which answer" };

function decision({ about, chosen, scores, reason }, colour) {
  const by = (name) => colour(name.split("#")[0]);
  const best = Math.max(...scores.map(([, score]) => score));
  const bars = best > 0 && scores.every(([, score]) => score >= 0); // a bar says nothing about a score below 0
  const names = chosen.map((name, index) => [index > 0 && ", ", h("strong", { class: `by ${by(name)}` }, name)]);
  return h("div.choice", null,
    h("p", null, h("span.about", null, ABOUT[about] ?? about), " ", chosen.length ? names : "none"),
    reason && h("p.hint", null, reason),
    scores.length > 0 && h("ul.scores", { "aria-label": "Scores" }, scores.map(([name, score]) =>
      h("li", { class: by(name) }, h("span", null, `${chosen.includes(name) ? "✓ " : ""}${name}`),
        h("svg.meter", { height: 8, ...HIDDEN },
          bars && h("rect.fill", { height: 8, rx: 2, width: `${(100 * score) / best}%` })),
        h("span.figure", null, String(Number(score.toPrecision(3))))))));
}

/** The bill so far or at the end, beside what the mentor alone would have cost. */
function bill({ ride, saved, phase }, colour) {
  const flops = spentSoFar(ride, saved);
  const [figure, unit] = compute(flops).split(" ");
  const exact = ride.bill && !ride.bill.estimated;
  const left = phase === "running"
    ? "Estimated from the tokens written so far, without the prompts of open calls. The exact bill comes at the end."
    : "Estimated from the tokens written by then, without the prompts of calls that did not end.";
  return [
    h("p.total", null, !exact && h("span.about", null, "≈"), h("data", { id: "total", value: flops }, figure),
      h("span.unit", null, ` ${unit}`)),
    ride.estimate && comparison(ride, flops, colour),
    h("p.hint", null, ride.bill ? paid(ride.bill) : left),
  ].filter(Boolean);
}

const paid = ({ usd, seconds }) => `${usd > 0 ? `$${usd.toPrecision(3)}, ` : ""}${seconds.toFixed(2)} s of computing`;

/** Both without what earlier requests left in caches, or a question that was asked before would always look cheap. */
function comparison({ bill, spared, estimate: [mean, low, high] }, flops, colour) {
  const cold = flops + spared;
  const widest = 1.03 * Math.max(high, mean, cold);
  const at = (value) => `${(100 * value) / widest}%`;
  const bar = (...shapes) => h("svg.meter", { height: 16, ...HIDDEN }, shapes);
  const kept = spared > 0 ? [{ engine: "from a cache", flops: spared, from: flops }] : [];
  const slices = bill ? [...shares(bill.spent), ...kept] : [];
  const stacked = slices.map(({ engine, flops, from }) =>
    h("rect", { class: `fill ${colour(engine)}`, x: at(from), width: at(flops), height: 16 }));
  const unit = unitOf(mean);
  const range = `${inUnit(low, unit)} to ${inUnit(high, unit)}`;
  return h("div.against", null,
    h("p.share", null, !bill && "so far ", h("strong", { id: "share" }, percent(cold / mean)),
      " of the mentor alone, ", h("em", null, "estimated"), spared > 0 && ", both without caches"),
    h("p", null, "this ride"),
    bar(bill ? stacked : h("rect.fill.running", { width: at(cold), height: 16 })),
    slices.length > 0 && h("ul.legend", { "aria-label": "Shares of this ride" }, slices.map(({ engine, flops: own }) =>
      h("li", { class: colour(engine) }, h("span.by", null, engine), ` ${percent(own / cold)}`))),
    h("p", null, "mentor alone, estimated"),
    bar(h("rect.ghost", { x: 0.5, y: 0.5, width: at(mean), height: 15 }),
      h("line.whisker", { x1: at(low), x2: at(high), y1: 8, y2: 8 }),
      [low, high].map((end) => h("line.whisker", { x1: at(end), x2: at(end), y1: 3, y2: 13 }))),
    h("p", null, `${compute(mean)} (95 %: ${range})`));
}

/** What each engine took, and where its slice of a stacked bar begins. */
function shares(spent) {
  let from = 0;
  return [...new Set(spent.map((line) => line.engine))].map((engine) => {
    const flops = total(spent.filter((line) => line.engine === engine).map((line) => line.flops));
    from += flops;
    return { engine, flops, from: from - flops };
  });
}

/** The bill by engine and purpose; columns that are all zero are left out. */
function lines(bill, colour) {
  const unit = unitOf(bill.flops);
  const columns = [
    ["calls", "calls", count], ["read", "read", count], ["cached", "of it cached", count],
    ["written", "written", count], ["discarded", "of it discarded", count], ["flops", unit.name, (value) => inUnit(value, unit)],
    ["usd", "US dollars", (value) => value.toPrecision(3)], ["seconds", "seconds", (value) => value.toFixed(3)],
  ].filter(([key]) => key === "flops" || bill.spent.some((line) => line[key]));
  const cells = (values) => columns.map(([key, , shown]) => shown(values[key]));
  const sums = Object.fromEntries(columns.map(([key]) => [key, total(bill.spent.map((line) => line[key]))]));
  const names = ["engine", "purpose", ...columns.map(([, name]) => name)];
  const rows = bill.spent.map((line) =>
    row(h("span.by", null, line.engine), [line.purpose, ...cells(line)], names, { class: colour(line.engine) }));
  return table("The bill by engine and purpose", names, rows,
    row("all", [bill.estimated && "partly estimated", ...cells({ ...sums, flops: bill.flops })], names));
}

/* ── page: controls, files, keys ──────────────────────────────────────────────────────────────────────────────── */

const FORMAT = "ensemblehub-ride";
const THEMES = { auto: "light", light: "dark", dark: "auto" };
const EXAMPLES = {
  "Two steps": "There are 3 more mugs than bowls. The kitchen has 8 bowls. How many mugs are there?",
  "A gap": "The spoons are half of the bowls. There are 4 jars. There are 18 bowls. "
    + "How many more bowls than jars are there?",
  "A baker's dozen": "In the workshop stand a baker's dozen drills. The workshop has 8 wires. The planks are 2 more "
    + "than the screws. To each of the drills belong 4 screws. Count the planks and the wires together.",
  "Six steps": "There are 14 tools. There are 5 more clamps than saws. The saws are three times the drills. There are "
    + "half as many nails as clamps. The workshop has 19 drills. The tools fall 2 short of the planks. In the workshop "
    + "stand a quartet of screws. How many more nails than tools are there?",
};
const LEADS = {
  tandem: "A large mentor writes short insights. A judge watches for the moment they suffice, the mentor is stopped "
    + "there, and a small intern answers. Every token is on the bill.",
  single: "One model answers by itself, as a baseline. Every token is on the bill.",
  "": "Models share the work of one answer, and the text is coloured by who wrote it. Every token is on the bill.",
};
const WORK = { token: "token by token", segment: "segment by segment" };

/**
 * @type {{config: {ensembles: Served[], members: Member[]}|null, threshold: number|null, run: Run|null,
 *   drawing: boolean}}
 */
const page = { config: null, threshold: null, run: null, drawing: false };

/** Show the run at the next frame, once. */
function redraw() {
  if (page.drawing) return;
  page.drawing = true;
  requestAnimationFrame(() => {
    page.drawing = false;
    show(page.run);
  });
}

function notice(words) {
  $("notice").hidden = !words;
  $("notice").textContent = words;
}

/** Ask the reader for an API key and keep it in this tab; an Error where they would rather not. */
function askForKey(wrong) {
  const dialog = $("key-dialog");
  $("key-why").textContent = wrong ? "The server does not know this key." : "The server asks for one.";
  $("key").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => {
      if (dialog.returnValue !== "use") return reject(new Error("the server wants an API key"));
      sessionStorage.setItem(KEY, $("key").value);
      resolve();
    };
    dialog.returnValue = "";
  });
}

async function loadConfig() {
  const { version, ensembles, members } = await (await send("/v1/ensemble/config")).json();
  const known = members.map(({ id, parameters, token_flops }) => ({ id, parameters, token_flops }));
  page.config = { ensembles, members: known };
  const option = (id, method) => h("option", { value: id }, method && method !== id ? `${id} · ${method}` : id);
  patch($("model"), [
    h("optgroup", { label: "Ensembles" }, ensembles.map(({ id, method }) => option(id, method))),
    h("optgroup", { label: "One model alone" }, members.map(({ id }) => option(id))),
  ]);
  $("model").disabled = false;
  $("version").textContent = `ensemblehub ${version}`;
  controls();
}

/** What the chosen name stands for; a model alone is an ensemble of one. */
function served() {
  const id = $("model").value;
  const alone = { id, method: "single", granularity: "response", members: [id], params: {}, levels: [], bounds: {} };
  return page.config.ensembles.find((one) => one.id === id) ?? alone;
}

/** Offer what the chosen ensemble lets a request set. */
function controls() {
  const { method, granularity, members, levels, bounds } = served();
  const sizes = Object.fromEntries(page.config.members.map((one) => [one.id, one.parameters]));
  const sized = (name) => (sizes[name] ? `${name} (${compact(sizes[name])} parameters)` : name);
  $("lead").textContent = LEADS[method] ?? LEADS[""];
  $("model-about").textContent = [WORK[granularity], members.map(sized).join(", ")].filter(Boolean).join(" · ");
  const budgets = Object.fromEntries(levels.map((one) => [one.level, one.mentor_tokens]));
  const judges = list(bounds.judge?.choices).map(text);
  const fixed = judges.map((one) => one.split("fixed:")[1]).filter((level) => level in budgets);
  const radio = (value, label, note) => h("label", null,
    h("input", { type: "radio", name: "level", value }), h("span", null, label, note && h("small", null, note)));
  $("levels").hidden = !fixed.length;
  patch($("level-choices"), [
    radio("", "The judge decides"), ...fixed.map((level) => radio(level, level, ` ${count(budgets[level])} tokens`)),
  ]);
  $("level-choices").querySelector("input").checked = true;
  const { minimum, maximum } = bounds.thresholds ?? {};
  $("thresholds").hidden = !bounds.thresholds || !levels.length;
  Object.assign($("threshold"), { min: minimum ?? 0, max: maximum ?? 1 });
  $("threshold").disabled = false;
  setThreshold(null);
}

/** One threshold for all levels, or null for the calibrated ones. */
function setThreshold(value) {
  page.threshold = value;
  const calibrated = page.config ? served().levels.map((one) => one.threshold) : [];
  if (value === null && calibrated.length) $("threshold").value = String(total(calibrated) / calibrated.length);
  const words = value === null ? "as calibrated" : ratio(value);
  $("threshold-value").textContent = words;
  $("threshold").setAttribute("aria-valuetext", words);
  $("calibrated").hidden = value === null;
}

const levelChosen = () => document.querySelector("[name=level]:checked")?.value ?? "";

/** The body of the request. */
function request(question) {
  const { levels } = served();
  const level = levelChosen();
  const thresholds = Object.fromEntries(levels.map((one) => [one.level, page.threshold]));
  const params = level ? { judge: `fixed:${level}` } : page.threshold !== null ? { thresholds } : null;
  return {
    model: $("model").value, messages: [{ role: "user", content: question }], stream: true,
    stream_options: { include_usage: true }, ...(params && { ensemble: { params } }),
  };
}

/** Put a run on the page in place of the one before, and feed it from `source`. */
async function travel(saved, source, replay) {
  page.run?.cancel.abort();
  const run = { ride: NOTHING, saved, phase: "running", replay, cancel: new AbortController() };
  page.run = run;
  show(run);
  reveal();
  try {
    for await (const chunk of source(run.cancel.signal)) {
      run.ride = fold(run.ride, chunk);
      redraw();
    }
    run.phase = phaseOf(saved);
  } catch (error) {
    const stopped = run.cancel.signal.aborted;
    if (replay && page.run === run) return present(saved);
    if (!replay) Object.assign(saved, stopped ? { stopped } : { error: worded(error) });
    run.phase = phaseOf(saved);
  }
  redraw();
}

const phaseOf = (saved) => (saved.error !== null ? "failed" : saved.stopped ? "stopped" : "done");

/** Bring the ride into sight where it is not. */
function reveal() {
  const { top } = $("ride").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) $("ride").scrollIntoView();
}

/** Show a whole ride at once. */
function present(saved) {
  const whole = saved.chunks.map((one) => one.chunk).reduce(fold, NOTHING);
  page.run?.cancel.abort();
  page.run = { ride: whole, saved, phase: phaseOf(saved), replay: false, cancel: new AbortController() };
  show(page.run);
}

async function ask(question) {
  notice("");
  if (!page.config) await loadConfig();
  const body = request(question);
  /** @type {Saved} */
  const saved = {
    format: FORMAT, version: 1, question, request: body, started: new Date().toISOString(), served: served(),
    members: page.config.members, chunks: [], stopped: false, error: null,
  };
  await travel(saved, async function* (signal) {
    const started = performance.now();
    const options = { method: "POST", body: JSON.stringify(body), signal };
    for await (const chunk of events((await send("/v1/chat/completions", options)).body)) {
      saved.chunks.push({ at: Math.round(performance.now() - started), chunk });
      yield chunk;
    }
  }, false);
}

function replay(saved) {
  return travel(saved, async function* (signal) {
    const started = performance.now();
    for (const { at, chunk } of saved.chunks) {
      await pause(at - (performance.now() - started), signal);
      yield chunk;
    }
  }, true);
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new Error("skipped"));
    }, { once: true });
  });
}

function save(saved) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(saved)], { type: "application/json" }));
  link.download = `ride-${saved.started.slice(0, 19).replaceAll(":", "-")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

/**
 * A saved ride out of a file's text.
 *
 * @returns {Saved}
 */
function parsed(content) {
  let saved;
  try {
    saved = JSON.parse(content);
  } catch {
    throw new Error("it is not JSON");
  }
  if (saved?.format !== FORMAT) throw new Error("it is not a saved ride");
  if (saved.version !== 1) throw new Error(`version ${saved.version} is not known here`);
  const object = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  const sound = typeof saved.question === "string" && object(saved.request) && Array.isArray(saved.chunks)
    && saved.chunks.every((one) => object(one) && Number.isFinite(one.at) && object(one.chunk));
  if (!sound) throw new Error("parts of the ride are missing");
  const served = object(saved.served) ? saved.served : {};
  return {
    ...saved, started: text(saved.started), stopped: saved.stopped === true, error: text(saved.error) || null,
    members: list(saved.members).filter(object),
    served: {
      ...served, levels: list(served.levels).filter(object), params: object(served.params) ? served.params : {},
    },
  };
}

async function open(file) {
  try {
    present(parsed(await file.text()));
  } catch (error) {
    notice(`${file.name} cannot be opened: ${error.message}.`);
    return;
  }
  notice("");
  reveal();
  $("ride-title").focus({ preventScroll: true });
}

/** Stop what is running; a replay jumps to its end. */
function stop() {
  if (page.run?.phase === "running") page.run.cancel.abort();
}

const complain = (error) => notice(sentence(worded(error)));
const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;

/** An error in words that name what can be set here. */
function worded({ message, code, param, wait }) {
  const level = $("levels").hidden ? "" : ", or a lower effort level";
  if (code === TOO_LONG || code === "body_too_large") return `the question is too long: shorten it, or choose another ensemble${level}`;
  const again = `ask again ${wait ? `in ${wait} s` : "later"}`;
  const advice = {
    overloaded: again, not_ready: again, model_not_found: "reload the page and choose another ensemble",
    timeout: `ask again, or choose another ensemble${level}`, engine_error: "ask again, or choose another ensemble",
    "ensemble.params.judge": "choose another effort level", "ensemble.params.thresholds": "set another threshold",
    messages: "change the question",
  };
  const found = advice[code] ?? advice[/^(ensemble\.params\.\w+|\w+)/.exec(param)?.[0]];
  return found ? `${message}. ${sentence(found)}` : message;
}

function setTheme(theme) {
  localStorage.setItem("ensemblehub-theme", theme);
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
}

function main() {
  const kept = localStorage.getItem("ensemblehub-theme");
  setTheme(kept in THEMES ? kept : "auto");
  patch($("examples"), Object.keys(EXAMPLES).map((name) => h("button", { type: "button", class: "chip" }, name)));
  $("examples").addEventListener("click", ({ target }) => {
    if (!(target.textContent in EXAMPLES) || target === $("examples")) return;
    $("question").value = EXAMPLES[target.textContent];
    $("question").focus();
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("question").value.trim();
    if (question && $("start").getAttribute("aria-disabled") !== "true") ask(question).catch(complain);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("key-dialog").open) stop();
  });
  $("stop").addEventListener("click", stop);
  $("save").addEventListener("click", () => save(page.run.saved));
  $("replay").addEventListener("click", () => (page.run.phase === "running" ? stop() : replay(page.run.saved)));
  $("model").addEventListener("change", controls);
  $("levels").addEventListener("change", () => {
    $("threshold").disabled = levelChosen() !== "";
  });
  $("threshold").addEventListener("input", () => setThreshold($("threshold").valueAsNumber));
  $("calibrated").addEventListener("click", () => {
    $("threshold").focus();
    setThreshold(null);
  });
  $("theme").addEventListener("click", () => setTheme(THEMES[document.documentElement.dataset.theme]));
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    if (file) open(file);
    $("file").value = "";
  });
  $("key-cancel").addEventListener("click", () => $("key-dialog").close("cancel"));
  dropping();
  loadConfig().catch(complain);
}

/** A file dropped anywhere is opened. */
function dropping() {
  const files = (event) => event.dataTransfer?.types.includes("Files");
  for (const [type, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(type, (event) => {
      if (!files(event)) return;
      event.preventDefault();
      document.body.classList.toggle("dropping", over);
      if (type === "drop" && event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
    });
  }
}

main();
