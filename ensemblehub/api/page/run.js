/**
 * A run (one question and its answer) as a pure fold of the chunks of the stream, and what is found in it.
 *
 * A segment is text of one author, purpose and round. `at` of a verdict: characters of insight it judged.
 * `flops` is the cost of the calls that had ended at the last verdict; `cost` the whole, at the end. `spared`
 * is what caches of earlier requests saved: no part of the cost, but of the comparison with the mentor alone.
 */

import { percent, ratio, total } from "./numbers.js";

export const EMPTY = {
  method: "", roles: {}, members: [], estimate: null, segments: [], verdicts: [], choices: [], finish: "",
  flops: 0, spared: 0, cost: null,
};
const FORMATS = ["ensemblehub-run", "ensemblehub-ride"]; // the second in files saved before
const VERDICT = { level: "", mentor_tokens: 0, probability: 0, threshold: 0, sufficient: false };
const CHOICE = { about: "", chosen: [], scores: [], reason: "" };
const SEGMENT = { engine: "", purpose: "", round: 0, tokens: 0 };
const COST = { flops: 0, usd: 0, seconds: 0, estimated: false, spent: [] };
const LINE = {
  engine: "", purpose: "", calls: 0, prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0,
  discarded_tokens: 0, flops: 0, usd: 0, seconds: 0,
};
const SAVED = {
  question: "", request: {}, started: "", served: {}, members: [], chunks: [], stopped: false, error: "",
};

function kind(value) {
  if (value === null) return "null";
  return Array.isArray(value) ? "list" : typeof value;
}

const isObject = (value) => kind(value) === "object";
const list = (value) => (Array.isArray(value) ? value : []);
const text = (value) => (typeof value === "string" ? value : "");

/** The fields of `value` that `defaults` names; one that is missing or of another type is the default. */
function fields(value, defaults) {
  const field = ([name, other]) => [name, kind(value?.[name]) === kind(other) ? value[name] : other];
  return Object.fromEntries(Object.entries(defaults).map(field));
}

/** The run with one more chunk of the stream. */
export function fold(run, chunk) {
  const said = chunk.ensemble ?? {};
  const first = chunk.choices?.[0];
  const next = { ...run, finish: text(first?.finish_reason) || run.finish };
  if (said.start) Object.assign(next, opened(said.start));
  const verdicts = list(said.verdicts ?? [said.verdict]).filter(Boolean); // one by itself in older files
  if (verdicts.length) {
    const at = insightOf(run).length;
    next.verdicts = [...run.verdicts, ...verdicts.map((verdict) => ({ ...fields(verdict, VERDICT), at }))];
    Object.assign(next, fields(said, { flops: 0 }), { spared: sparedBy(said) });
  }
  next.choices = [...run.choices, ...list(said.choices ?? [said.choice]).filter(Boolean).map(chosen)];
  if (said.engine) next.segments = joined(run.segments, fields(said, SEGMENT), first?.delta ?? {});
  if (chunk.usage) {
    const cost = chunk.usage.cost_details ?? chunk.usage.cost ?? {}; // `cost` in older files
    next.cost = fields(cost, COST);
    next.cost.spent = next.cost.spent.map((line) => fields(line, LINE));
    next.spared = sparedBy(cost);
    next.estimate = interval(cost.estimated_mentor_alone_flops) ?? next.estimate;
  }
  return next;
}

function opened(start) {
  const { method, members, roles } = fields(start, { method: "", members: [], roles: {} });
  const named = Object.entries(roles).map(([role, engine]) => [role, text(engine)]);
  const estimate = interval(start.estimated_mentor_alone_flops);
  return { method, roles: Object.fromEntries(named), members: members.map(text), estimate };
}

function joined(segments, segment, { reasoning_content, reasoning, content }) {
  const written = text(reasoning_content ?? reasoning ?? content);
  const last = segments.at(-1);
  const same = last && ["engine", "purpose", "round"].every((key) => last[key] === segment[key]);
  if (!same) return [...segments, { ...segment, text: written }];
  const longer = { ...last, text: last.text + written, tokens: last.tokens + segment.tokens };
  return [...segments.slice(0, -1), longer];
}

function chosen(choice) {
  const found = fields(choice, CHOICE);
  const scores = found.scores.map((pair) => Object.values(fields(pair, { 0: "", 1: 0 })));
  return { ...found, scores, chosen: found.chosen.map(text) };
}

const sparedBy = ({ flops, cold_flops }) => (cold_flops ?? flops) - flops || 0;

/** An estimate and its 95 % interval; null where there is none. */
const interval = (values) =>
  (list(values).length === 3 && values[0] > 0 ? values.map((value) => Number(value) || 0) : null);

export const insightsOf = (run) => run.segments.filter(({ purpose }) => purpose === "insight");
export const insightOf = (run) => insightsOf(run).map((segment) => segment.text).join("");
export const answersOf = (run) => run.segments.filter(({ purpose }) => purpose === "answer");
export const tokensOf = (segments) => total(segments.map((segment) => segment.tokens));

/** Exact at the end; before, the calls that had ended at the last verdict and the tokens of the others. */
export function flopsOf(run, saved) {
  if (run.cost) return run.cost.flops;
  const each = Object.fromEntries(saved.members.map(({ id, token_flops }) => [id, Number(token_flops) || 0]));
  const together = saved.served.granularity === "token"; // every member computes every token
  const rate = (author) => total((together ? run.members : author.split("+")).map((name) => each[name] ?? 0));
  return run.flops + total(run.segments.map(({ engine, tokens }) => tokens * rate(engine)));
}

/** The parts of an insight by their headings, as `tandem/insights.py` finds them; first what has none. */
export function sections(insight) {
  const heading = /^[\s>#*\-\d.)]*(Goal|Planning|Retrieval|Action)\b[*\s]*[:：]?[*]*/gim;
  const found = [...insight.matchAll(heading)].map(({ 0: whole, 1: word, index }) => ({
    heading: word[0].toUpperCase() + word.slice(1).toLowerCase(), start: index, from: index + whole.length,
  }));
  const parts = [{ heading: "", start: 0, from: 0 }, ...found].map((part, index) => {
    const end = found[index]?.start ?? insight.length;
    const written = insight.slice(part.from, end);
    const from = part.from + written.length - written.trimStart().length;
    return { ...part, end, from, to: from + written.trim().length };
  });
  return parts.filter((part) => part.heading || part.to > part.from);
}

/** The levels of a Tandem in order, judged or not yet; the verdict is null where there is none. */
export function checkpoints(run, saved) {
  const { judge, thresholds } = saved.request.ensemble?.params ?? {};
  const planned = saved.served.levels.map((planned) => {
    const level = fields(planned, VERDICT);
    const threshold = Number(thresholds?.[level.level] ?? level.threshold) || 0;
    return { ...level, threshold: judge ? null : threshold };
  });
  const others = run.verdicts.filter(({ level }) => !planned.some((point) => point.level === level));
  return [...others, ...planned].map((point) => {
    const verdict = run.verdicts.find(({ level }) => level === point.level) ?? null;
    return { ...point, ...verdict, verdict };
  });
}

export const compared = ({ probability, threshold, sufficient }) =>
  `${ratio(probability)} ${sufficient ? "≥" : "<"} ${ratio(threshold)}`;

/** How the mentor's part ended, as a sentence; "" while it has not. */
export function handover(run, saved) {
  const last = run.verdicts.at(-1);
  if (last?.sufficient) {
    const asked = saved.request.ensemble?.params?.judge; // a level that was set is no finding
    const why = `level ${last.level} ${asked ? "was asked for" : `suffices (${compared(last)})`}`;
    if (!last.mentor_tokens) return `No insight is needed: ${why}`;
    const budget = saved.served.levels.find(({ level }) => level === last.level)?.mentor_tokens ?? 0;
    const verb = last.mentor_tokens < budget ? "ended by itself" : "stopped";
    return `Mentor ${verb} after ${last.mentor_tokens} tokens: ${why}`;
  }
  const [answer] = answersOf(run);
  if (!last || !answer) return "";
  if (answer.engine === run.roles.mentor) return "No level suffices: the mentor answers itself";
  const best = run.verdicts.reduce((best, other) => (other.probability > best.probability ? other : best));
  const used = saved.served.params.fallback === "last" ? last : best;
  const insight = `the insight at level ${used.level} (${ratio(used.probability)})`;
  return `No level suffices: the intern answers with ${insight}`;
}

/** One sentence on where the run is. */
export function statusOf({ run, saved, phase }) {
  if (phase === "failed") return `The run broke off: ${saved.error}`;
  if (phase === "stopped") return "Stopped. What had arrived is kept.";
  if (phase === "done") {
    const end = run.finish === "length" ? "Ended at the token limit." : "Done.";
    if (!run.estimate) return end;
    const share = percent((flopsOf(run, saved) + run.spared) / run.estimate[0]);
    return `${end} It took ${share} of the estimated cost of the mentor alone.`;
  }
  if (!run.method) return "The question is on its way.";
  const answer = answersOf(run).at(-1);
  if (run.method !== "tandem") {
    return answer ? "The answer is being written." : `At work: ${run.members.join(", ")}.`;
  }
  if (answer) return `The ${answer.engine === run.roles.mentor ? "mentor" : "intern"} is answering.`;
  const last = run.verdicts.at(-1);
  if (last?.sufficient) return `${handover(run, saved)}.`;
  if (!run.segments.length && !last) return "The run begins.";
  if (!last || insightOf(run).length > last.at) return "The mentor is writing insights.";
  return `Level ${last.level} does not suffice (${compared(last)}).`;
}

export const phaseOf = (saved) => (saved.error ? "failed" : saved.stopped ? "stopped" : "done");

/** A run that has just been asked for, as it is saved; `at` of a chunk is in milliseconds since the start. */
export function begun(question, request, served, members) {
  const started = new Date().toISOString();
  const empty = { chunks: [], stopped: false, error: null };
  return { format: FORMATS[0], version: 1, question, request, started, served, members, ...empty };
}

/** A saved run out of a file's text. */
export function parsed(content) {
  let saved;
  try {
    saved = JSON.parse(content);
  } catch {
    throw new Error("it is not JSON");
  }
  if (!FORMATS.includes(saved?.format)) throw new Error("it is not a saved run");
  if (saved.version !== 1) throw new Error(`version ${saved.version} is not known here`);
  const whole = ["question", "request", "chunks"].every((name) => kind(saved[name]) === kind(SAVED[name]));
  const timed = (entry) => isObject(entry) && Number.isFinite(entry.at) && isObject(entry.chunk);
  if (!whole || !saved.chunks.every(timed)) throw new Error("parts of the run are missing");
  const { error, members, served, ...rest } = fields(saved, SAVED);
  const { levels, params } = fields(served, { levels: [], params: {} });
  return {
    format: FORMATS[0], version: 1, ...rest, error: error || null, members: members.filter(isObject),
    served: { ...served, params, levels: levels.filter(isObject) },
  };
}
