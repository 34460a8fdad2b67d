/** A run as elements: insight, handover, answer, judge, decisions and cost. */

import { HIDDEN, byId, element, patch, scroll } from "./elements.js";
import { count, percent, ratio, threeDigits, tokenCount, total, unitOf } from "./numbers.js";
import * as runs from "./run.js";

const COLOURS = 8;
const ABOUT = { models: "Who takes part", proposal: "Which proposal", answer: "Which answer" };
const ESTIMATED = "Estimated from the tokens written, without the prompts of calls that did not end.";

/** Show one run, or two of a comparison; throw, and leave the page as it is, where a part is damaged. */
export function show(session) {
  const { runs: all, replay } = session;
  const [{ run, saved }] = all;
  const phase = runs.phaseOfAll(all);
  const busy = phase === "running";
  const two = all.length > 1;
  const ended = all.filter((shown) => shown.phase !== "running").length;
  const hidden = {
    run: false, stop: !busy || replay, save: busy,
    further: two || phase !== "done" || !runs.answersOf(run).length,
    replay: (busy && !replay) || !all.some((shown) => shown.saved.chunks.length),
  };
  const content = {
    "run-title": two ? "Side by side" : "The run", replay: busy ? "Skip to the end" : "Replay",
    status: !two ? runs.statusOf(all[0]) : busy ? `${ended} of 2 have ended.`
      : runs.comparisonOf(all) || "Both have ended.",
    earlier: turns(runs.turnsOf(saved)), asked: saved.question, against: two && figures(all),
    sides: all.map((shown, index) => side(shown, two && "AB"[index])),
  };
  const stopping = document.activeElement === byId("stop");
  for (const [id, away] of Object.entries(hidden)) byId(id).hidden = away;
  for (const [id, nodes] of Object.entries(content)) patch(byId(id), nodes);
  byId("run").dataset.phase = phase;
  byId("start").setAttribute("aria-disabled", busy && !replay);
  if (stopping && !busy) byId("save").focus();
}

/** All of one run; in a comparison with its letter. */
function side(shown, letter) {
  const { run, saved, phase } = shown;
  const tandem = run.method === "tandem";
  const colour = palette(run, saved);
  return element("div.side", { "data-phase": phase },
    letter && element("h2", null, `${letter} · ${saved.served.id}`),
    letter && element("p.state", null, runs.statusOf(shown)),
    element("div.run", null,
      element("div.flow", null, tandem && guidance(shown, colour), answer(shown, colour)),
      element("div.rail", null, tandem && judge(runs.checkpoints(run, saved)),
        run.choices.length && card("choices", { title: "Decisions" },
          scroll("Decisions", run.choices.map((choice) => decision(choice, colour)))),
        run.method && cost(shown, colour)),
      run.cost && lines(run.cost, colour, letter)));
}

/** Earlier turns of a conversation, folded. */
const turns = (messages) => messages.length && element("details.card", null,
  element("summary", null, `Earlier in this conversation (${messages.length / 2})`),
  messages.map(({ role, content }) =>
    element("p.text", null, element("span.turn", null, role === "user" ? "Question" : "Answer"),
      String(content))));

/** What both runs took, line by line; less is marked. */
function figures(all) {
  const found = all.map(runs.figuresOf);
  const unit = unitOf(Math.max(...found.map(({ flops }) => flops)));
  const seconds = (value) => `${value.toFixed(2)} s`;
  const kinds = [
    ["first", "First text", seconds], ["time", "Whole time", seconds], ["read", "Tokens read", count],
    ["written", "Tokens written", count], ["flops", "Compute", (value) => `${unit.shown(value)} ${unit.name}`],
    ["usd", "Dollars", (value) => `$${threeDigits(value)}`],
  ].filter(([key]) => found.some((side) => side[key]));
  const ended = all.every(({ phase }) => phase === "done");
  const rows = kinds.map(([key, name, shown]) => {
    const values = found.map((side) => side[key]);
    const most = Math.max(...values.map((value) => value ?? 0));
    return ["", name, ...values.map((value, index) => {
      const less = ended && value < values[1 - index];
      return element("div", { class: less ? "enough" : "" },
        value === undefined ? "–" : shown(value), less && " ✓", bars(value > 0 && bar(value / most)));
    })];
  });
  const names = all.map(({ saved }, index) => `${"AB"[index]} · ${saved.served.id}`);
  return card("figures", { title: "What each of them took" },
    table("Both runs in figures", [element("span.unseen", null, "Figure"), ...names], rows),
    element("p.hint", null, "Both ran at the same time and shared what computes. Compute is counted as if no ",
      "cache held anything of earlier questions; ✓ is less."));
}

/** Colours by author: a mentor and an intern have their own, everyone else the next one. */
function palette({ roles, members, segments }, saved) {
  const known = [roles.mentor, roles.intern, ...saved.members.map(({ id }) => id), ...members];
  const order = [...new Set([...known, ...segments.map(({ engine }) => engine)].filter(Boolean))];
  return (author) => (order.includes(author) ? `author-${order.indexOf(author) % COLOURS}` : "author-none");
}

/** A card; beside its title stand an engine's name, where it says more, and a note. */
function card(name, { title, engine, note, look = "" }, ...content) {
  const named = engine && engine.toLowerCase() !== title.toLowerCase();
  return element(`section.card.${name}`, { class: look }, element("header.row", null, element("h3", null, title),
      named && element("span.engine", null, engine), note && element("span.note", null, note)),
    content);
}

/** The mentor's insight by its headings, and the moment it ended. */
function guidance({ run, saved, phase }, colour) {
  const { mentor } = run.roles;
  const insights = runs.insightsOf(run);
  const last = run.verdicts.at(-1);
  const writing = phase === "running" && !last?.sufficient && !runs.answersOf(run).length;
  const whole = runs.insightOf(run);
  const parts = runs.sections(whole).map((part) => element("div.part", null,
    element(part.heading ? "dt" : "dt.unseen", null, part.heading || "Insight"),
    element("dd", null, marked(whole, part, run.verdicts))));
  const tokens = Math.max(runs.tokensOf(insights), last?.mentor_tokens ?? 0); // an end of text has no text
  const look = `written ${colour(mentor)} ${writing ? "running" : ""}`;
  const sentence = runs.handover(run, saved);
  return [
    insights.length && card("insight", { title: "Mentor", engine: mentor, note: tokenCount(tokens), look },
      element("dl", null, parts)),
    sentence && element("p.handover", { "data-sufficient": last.sufficient },
      element("span", HIDDEN, last.sufficient ? "✓" : "○"), sentence),
  ];
}

/** A part of the insight, with a mark where the judge looked. */
function marked(whole, { start, from, to, end }, verdicts) {
  const seen = verdicts.filter(({ at }) => at > start && at <= end);
  const marks = seen.map(({ sufficient, level }) =>
    element("span.mark", HIDDEN, `${sufficient ? "✓" : "○"} ${level}`));
  const cuts = [...seen.map(({ at }) => Math.max(from, Math.min(at, to))), to];
  return cuts.map((cut, index) => [whole.slice(cuts[index - 1] ?? from, cut), marks[index]]);
}

/** The answer, coloured by author where there are several. */
function answer({ run, phase }, colour) {
  const pieces = runs.answersOf(run);
  const tandem = run.method === "tandem";
  if (!pieces.length) return null;
  const authors = [...new Set(pieces.map(({ engine }) => engine))];
  const title = !tandem ? "Answer" : authors[0] === run.roles.mentor ? "Mentor" : "Intern";
  const look = authors.length > 1 ? "shared" : `written ${colour(authors[0])}`;
  const tokens = (name) => tokenCount(runs.tokensOf(pieces.filter(({ engine }) => engine === name)));
  const head = { title, engine: tandem && authors[0], note: tokenCount(runs.tokensOf(pieces)) };
  const text = pieces.map(({ engine, round, text }) => [
    round > 0 && element("span.turn", { class: colour(engine) }, engine),
    element("span.by", { class: colour(engine) }, boxed(text)),
  ]);
  return card("answer", { ...head, look: `${look} ${phase}` },
    !tandem && legend("Authors", authors.map((name) => [name, tokens(name)]), colour),
    element("p.text", null, text));
}

const legend = (label, entries, colour) => element("ul.row.legend", { "aria-label": label },
  entries.map(([name, note]) =>
    element("li", { class: colour(name) }, element("span.by", null, name), ` ${note}`)));

/** `\boxed{11}` as 11 in a box; its marks stay in the text, unseen. */
function boxed(text) {
  const unseen = (marks) => element("span.unseen", HIDDEN, marks);
  return text.split(/\\boxed\{([^{}]*)\}/).map((piece, index) => (index % 2 === 0 ? piece
    : [unseen("\\boxed{"), element("strong.boxed", null, piece), unseen("}")]));
}

const part = (share) => `${100 * share}%`;
const bars = (...shapes) => element("svg", { height: 14, ...HIDDEN }, shapes);
const bar = (size, props) => element("rect.bar", { width: part(size), height: 14, ...props });
const line = (from, to, y1, y2) => element("line", { x1: part(from), x2: part(to), y1, y2 });

/** The judge's probability as a bar, the threshold as a line, at each level. */
function judge(points) {
  const rows = points.map((point) => {
    const { level, mentor_tokens, probability, threshold, sufficient, at } = point;
    const judged = at !== undefined;
    const words = judged ? runs.compared(point) : threshold === null ? "–" : ratio(threshold);
    const drawn = bars(judged && bar(probability), threshold !== null && line(threshold, threshold, 0, 14));
    const look = sufficient ? "enough" : judged ? "" : "open";
    const verdict = judged && (sufficient ? "sufficient" : "not yet");
    return [look, level, count(mentor_tokens), [words, drawn], verdict];
  });
  const names = ["Level", "Tokens", "Probability, threshold", "Verdict"];
  return card("judge", { title: "The judge" }, table("Verdicts of the judge", names, rows));
}

function decision({ about, chosen, scores, reason }, colour) {
  const by = (name) => colour(name.split("#")[0]);
  const best = Math.max(...scores.map(([, score]) => score));
  const drawn = best > 0 && scores.every(([, score]) => score >= 0); // a bar cannot show a score below 0
  const rows = scores.map(([name, score]) => [by(name), [chosen.includes(name) && "✓ ", name],
    [String(Number(score.toPrecision(3))), bars(drawn && bar(score / best))]]);
  return element("div.choice", null,
    element("p", null, `${ABOUT[about] ?? about} `, element("strong", null, chosen.join(", ") || "none")),
    reason && element("p.hint", null, reason),
    rows.length && table("Scores", ["Of", "Score"], rows));
}

/** The cost so far or at the end, beside what the mentor alone would have cost. */
function cost({ run, saved }, colour) {
  const { estimated = true, usd = 0, seconds } = run.cost ?? {};
  const flops = runs.flopsOf(run, saved);
  const { name, shown } = unitOf(flops);
  return card("cost", { title: "The cost" },
    element("p.total", null, estimated && "≈ ",
      element("data", { value: flops }, shown(flops)), element("small", null, ` ${name}`)),
    run.estimated_mentor_alone_flops?.[0] > 0 && comparison(run, flops, colour),
    element("p.hint", null, usd > 0 && `$${usd.toPrecision(3)}, `,
      run.cost ? `${seconds.toFixed(2)} s of computing` : ESTIMATED));
}

/** Both without what earlier requests left in caches, or a question asked before would always look cheap. */
function comparison({ cost, spared, estimated_mentor_alone_flops: [mean, low, high] }, flops, colour) {
  const cold = flops + spared;
  const widest = 1.03 * Math.max(high, mean, cold);
  const { name, shown } = unitOf(mean);
  const slices = [...Map.groupBy(cost?.spent ?? [], ({ engine }) => engine)]
    .map(([engine, lines]) => [engine, total(lines.map(({ flops }) => flops))]);
  if (cost && spared > 0) slices.push(["from a cache", spared]);
  let end = 0;
  const stacked = slices.map(([engine, size]) => {
    end += size;
    return bar(size / widest, { class: colour(engine), x: part((end - size) / widest) });
  });
  return element("div.against", null,
    element("p.share", null, !cost && "so far ", element("strong", null, percent(cold / mean)),
      " of the mentor alone, ", element("em", null, "estimated"), spared > 0 && ", both without caches"),
    element("p", null, "this run"), bars(cost ? stacked : bar(cold / widest)),
    slices.length
      && legend("Shares of this run", slices.map(([name, size]) => [name, percent(size / cold)]), colour),
    element("p", null, "mentor alone, estimated"),
    bars(bar(mean / widest, { class: "ghost" }), line(low / widest, high / widest, 7, 7)),
    element("p", null, `${shown(mean)} ${name} (95 %: ${shown(low)} to ${shown(high)})`));
}

/** The cost by engine and purpose; columns that are all zero are left out. */
function lines({ spent, flops, estimated }, colour, folded) {
  const unit = unitOf(flops);
  const columns = [
    ["calls", "calls", count], ["prompt_tokens", "read", count], ["cached_tokens", "of it cached", count],
    ["completion_tokens", "written", count], ["discarded_tokens", "of it discarded", count],
    ["flops", unit.name, unit.shown], ["usd", "US dollars", threeDigits],
    ["seconds", "seconds", (value) => value.toFixed(3)],
  ].filter(([key]) => key === "flops" || spent.some((line) => line[key]));
  const names = ["engine", "purpose", ...columns.map(([, name]) => name)];
  const row = (name, purpose, values) =>
    [colour(name), name, purpose, ...columns.map(([key, , shown]) => shown(values[key]))];
  const sums = Object.fromEntries(columns.map(([key]) => [key, total(spent.map((line) => line[key]))]));
  const all = row("all", estimated && "partly estimated", { ...sums, flops });
  const rows = spent.map((line) => row(line.engine, line.purpose, line));
  const title = "The cost, line by line";
  const content = table("The cost by engine and purpose", names, rows, all);
  if (folded) return element("details.card.lines", null, element("summary", null, title), content);
  return card("lines", { title, look: "wide" }, content);
}

/** A table; a row is a class and its cells, the first of them a heading. */
function table(label, names, rows, ...foot) {
  const row = ([look, heading, ...cells]) => element("tr", { class: look },
    element("th", { scope: "row" }, heading),
    cells.map((cell, index) => element("td", { "data-name": names[index + 1] }, cell)));
  return element("table", { "aria-label": label },
    element("thead", null, element("tr", null, names.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", null, rows.map(row)), element("tfoot", null, foot.map(row)));
}
