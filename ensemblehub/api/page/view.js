/** A run as elements: insight, handover, answer, decisions and cost. The judge's chart is in `chart.js`. */

import { chart } from "./chart.js";
import { HIDDEN, byId, element, patch } from "./elements.js";
import { count, inUnit, percent, threeDigits, tokenCount, total, unitOf } from "./numbers.js";
import * as runs from "./run.js";
import { row, table } from "./table.js";

const COLOURS = 8;
const ABOUT = { models: "Who takes part", proposal: "Which proposal", answer: "Which answer" };

/** Everything about one run that is on the page. */
export function show(current) {
  const { run, saved, phase, replay } = current;
  const busy = phase === "running";
  const tandem = run.method === "tandem";
  const colour = palette(run, saved);
  const hidden = {
    run: false, judge: !tandem, choices: !run.choices.length, cost: !run.method, lines: !run.cost,
    stop: !busy || replay, save: busy, replay: (busy && !replay) || !saved.chunks.length,
  };
  const content = {
    replay: busy ? "Skip to the end" : "Replay", status: runs.statusOf(current), asked: saved.question,
    flow: [tandem && guidance(current, colour), answer(current, colour)],
    "judge-body": tandem && chart(runs.checkpoints(run, saved)),
    "choices-body": run.choices.map((choice) => decision(choice, colour)),
    "cost-body": cost(current, colour), "lines-body": run.cost && lines(run.cost, colour),
  };
  const stopping = document.activeElement === byId("stop");
  for (const [id, away] of Object.entries(hidden)) byId(id).hidden = away;
  for (const [id, nodes] of Object.entries(content)) patch(byId(id), nodes);
  byId("run").dataset.phase = phase;
  byId("start").setAttribute("aria-disabled", busy && !replay);
  if (stopping && !busy) byId("save").focus();
}

/** Colours by author: a mentor and an intern have their own, everyone else the next one. */
function palette({ roles, members, segments }, saved) {
  const known = [roles.mentor, roles.intern, ...saved.members.map(({ id }) => id), ...members];
  const order = [...new Set([...known, ...segments.map(({ engine }) => engine)].filter(Boolean))];
  return (author) => (order.includes(author) ? `author-${order.indexOf(author) % COLOURS}` : "author-none");
}

const caret = (there) => there && element("span.caret", HIDDEN);

function head(title, engine, note) {
  const named = engine && engine.toLowerCase() !== title.toLowerCase();
  return element("header.card-head", null, element("h3", null, title),
    named && element("span.engine", null, engine), element("span.note", null, note));
}

/** The mentor's insight by its headings, and the moment it ended. */
function guidance({ run, saved, phase }, colour) {
  const insights = runs.insightsOf(run);
  const last = run.verdicts.at(-1);
  const writing = phase === "running" && !last?.sufficient && !runs.answersOf(run).length;
  const whole = runs.insightOf(run);
  const parts = runs.sections(whole).map((part, index, { length }) => element("div.part", null,
    element(part.heading ? "dt" : "dt.unseen", null, part.heading || "Insight"),
    element("dd", null, marked(whole, part, run.verdicts), caret(writing && index === length - 1))));
  const tokens = Math.max(runs.tokensOf(insights), last?.mentor_tokens ?? 0); // an end of text has no text
  const sentence = runs.handover(run, saved);
  return [
    insights.length && element("article.card.written", { id: "insight", class: colour(run.roles.mentor) },
      head("Mentor", run.roles.mentor, tokenCount(tokens)), element("dl", null, parts)),
    sentence && element("p.handover", { id: "handover", "data-sufficient": last.sufficient },
      element("span.sign", HIDDEN, last.sufficient ? "✓" : "○"), sentence),
  ];
}

/** A part of the insight, with a mark where the judge looked. */
function marked(whole, { start, from, to, end }, verdicts) {
  let written = from;
  const pieces = verdicts.filter(({ at }) => at > start && at <= end).map(({ at, sufficient, level }) => {
    const before = whole.slice(written, (written = Math.min(Math.max(at, from), to)));
    return [before, element("span.mark", HIDDEN, `${sufficient ? "✓" : "○"} ${level}`)];
  });
  return [pieces, whole.slice(written, to)];
}

/** The answer, coloured by author where there are several. */
function answer({ run, saved, phase }, colour) {
  const pieces = runs.answersOf(run);
  const busy = phase === "running";
  const tandem = run.method === "tandem";
  if (!pieces.length && (tandem || !busy)) return null;
  const authors = [...new Set(pieces.map(({ engine }) => engine))];
  const title = !tandem ? "Answer" : authors[0] === run.roles.mentor ? "Mentor" : "Intern";
  const look = tandem ? `written ${colour(authors[0])}` : authors.length > 1 && "shared";
  const props = { id: "answer", class: look || "" };
  if (!pieces.length) {
    const whole = saved.served.granularity === "response" && run.members.length > 1;
    const silence = whole ? "Candidates are being written; the chosen one comes whole."
      : "Waiting for the first token.";
    return element("article.card", props, head(title), element("p.hint", null, silence));
  }
  const tokens = (name) => tokenCount(runs.tokensOf(pieces.filter(({ engine }) => engine === name)));
  const text = pieces.map(({ engine, round, text }) => [
    round > 0 && element("span.turn", { class: colour(engine) }, engine),
    element("span.by", { class: colour(engine) }, boxed(text)),
  ]);
  return element("article.card", props,
    head(title, tandem && authors[0], tokenCount(runs.tokensOf(pieces))),
    !tandem && legend("Authors", authors.map((name) => [name, tokens(name)]), colour),
    element("p.text", null, text, caret(busy)));
}

const legend = (label, entries, colour) => element("ul.legend", { "aria-label": label },
  entries.map(([name, note]) =>
    element("li", { class: colour(name) }, element("span.by", null, name), ` ${note}`)));

/** `\boxed{11}` as 11 in a box; its marks stay in the text, unseen. */
function boxed(text) {
  const unseen = (marks) => element("span.unseen", HIDDEN, marks);
  return text.split(/\\boxed\{([^{}]*)\}/).map((piece, index) => (index % 2 === 0 ? piece
    : [unseen("\\boxed{"), element("strong.boxed", null, piece), unseen("}")]));
}

function decision({ about, chosen, scores, reason }, colour) {
  const by = (name) => colour(name.split("#")[0]);
  const best = Math.max(...scores.map(([, score]) => score));
  const bars = best > 0 && scores.every(([, score]) => score >= 0); // a bar cannot show a score below 0
  const names = chosen.map((name, index) =>
    [index > 0 && ", ", element("strong.by", { class: by(name) }, name)]);
  const score = ([name, score]) => element("li", { class: by(name) },
    element("span", null, chosen.includes(name) && "✓ ", name),
    meter(8, bars && element("rect.fill", { height: 8, rx: 2, width: `${(100 * score) / best}%` })),
    element("span.figure", null, String(Number(score.toPrecision(3)))));
  return element("div.choice", null,
    element("p", null,
      element("span.about", null, ABOUT[about] ?? about), " ", chosen.length ? names : "none"),
    reason && element("p.hint", null, reason),
    scores.length && element("ul.scores", { "aria-label": "Scores" }, scores.map(score)));
}

const meter = (height, ...shapes) => element("svg.meter", { height, ...HIDDEN }, shapes);

/** The cost so far or at the end, beside what the mentor alone would have cost. */
function cost({ run, saved, phase }, colour) {
  const flops = runs.flopsOf(run, saved);
  const unit = unitOf(flops);
  const estimated = phase === "running"
    ? "Estimated from the tokens written so far, without the prompts of open calls. "
      + "The exact cost comes at the end."
    : "Estimated from the tokens written by then, without the prompts of calls that did not end.";
  return [
    element("p.total", null, (run.cost?.estimated ?? true) && element("span.about", null, "≈"),
      element("data", { id: "total", value: flops }, inUnit(flops, unit)),
      element("span.unit", null, ` ${unit.name}`)),
    run.estimate && comparison(run, flops, colour),
    element("p.hint", null, run.cost ? paid(run.cost) : estimated),
  ];
}

const paid = ({ usd, seconds }) =>
  `${usd > 0 ? `$${usd.toPrecision(3)}, ` : ""}${seconds.toFixed(2)} s of computing`;

/** Both without what earlier requests left in caches, or a question asked before would always look cheap. */
function comparison({ cost, spared, estimate: [mean, low, high] }, flops, colour) {
  const cold = flops + spared;
  const widest = 1.03 * Math.max(high, mean, cold);
  const at = (value) => `${(100 * value) / widest}%`;
  const line = (from, to, y1, y2) => element("line.whisker", { x1: at(from), x2: at(to), y1, y2 });
  const unit = unitOf(mean);
  const slices = cost ? shares(cost.spent) : [];
  if (cost && spared > 0) slices.push(["from a cache", spared]);
  let from = 0;
  const stacked = slices.map(([engine, size]) => {
    const x = at(from);
    from += size;
    return element("rect.fill", { class: colour(engine), x, width: at(size), height: 16 });
  });
  return element("div.against", null,
    element("p.share", null, !cost && "so far ", element("strong", { id: "share" }, percent(cold / mean)),
      " of the mentor alone, ", element("em", null, "estimated"), spared > 0 && ", both without caches"),
    element("p", null, "this run"),
    meter(16, cost ? stacked : element("rect.fill.running", { width: at(cold), height: 16 })),
    slices.length
      && legend("Shares of this run", slices.map(([name, size]) => [name, percent(size / cold)]), colour),
    element("p", null, "mentor alone, estimated"),
    meter(16, element("rect.ghost", { x: 0.5, y: 0.5, width: at(mean), height: 15 }),
      line(low, high, 8, 8), line(low, low, 3, 13), line(high, high, 3, 13)),
    element("p", null,
      `${inUnit(mean, unit)} ${unit.name} (95 %: ${inUnit(low, unit)} to ${inUnit(high, unit)})`));
}

/** What each engine took. */
function shares(spent) {
  const sums = new Map();
  for (const { engine, flops } of spent) sums.set(engine, (sums.get(engine) ?? 0) + flops);
  return [...sums];
}

/** The cost by engine and purpose; columns that are all zero are left out. */
function lines({ spent, flops, estimated }, colour) {
  const unit = unitOf(flops);
  const columns = [
    ["calls", "calls", count], ["prompt_tokens", "read", count], ["cached_tokens", "of it cached", count],
    ["completion_tokens", "written", count], ["discarded_tokens", "of it discarded", count],
    ["flops", unit.name, (value) => inUnit(value, unit)], ["usd", "US dollars", threeDigits],
    ["seconds", "seconds", (value) => value.toFixed(3)],
  ].filter(([key]) => key === "flops" || spent.some((line) => line[key]));
  const cells = (values) => columns.map(([key, , shown]) => shown(values[key]));
  const sums = Object.fromEntries(columns.map(([key]) => [key, total(spent.map((line) => line[key]))]));
  const names = ["engine", "purpose", ...columns.map(([, name]) => name)];
  const rows = spent.map((line) => row(element("span.by", null, line.engine),
    [line.purpose, ...cells(line)], names, { class: colour(line.engine) }));
  const all = row("all", [estimated && "partly estimated", ...cells({ ...sums, flops })], names);
  return table("The cost by engine and purpose", names, rows, all);
}
