/**
 * A run (one question and its answer) as a pure fold of the chunks of the stream, and what is found in it.
 *
 * A segment is text of one author, purpose and round. `at` of a verdict: characters of insight it judged.
 * `flops` is the cost of the calls that had ended at the last verdict; `cost` the whole, at the end. `spared`
 * is what caches of earlier requests saved: no part of the cost, but of the comparison with the mentor alone.
 */

import { percent, ratio, total } from "./numbers.js";

export const EMPTY = {
  method: "", roles: {}, members: [], segments: [], verdicts: [], choices: [], flops: 0, spared: 0,
};
export const PAIR = "ensemblehub-comparison";
export const FORMATS = ["ensemblehub-run", "ensemblehub-ride"]; // the second in files saved before
const HEADING = /^[\s>#*\-\d.)]*(Goal|Planning|Retrieval|Action)\b[*\s]*[:：]?[*]*/gim;

/** The run with one more chunk of the stream. */
export function fold(run, chunk) {
  const said = chunk.ensemble ?? {};
  const first = chunk.choices?.[0];
  const next = { ...run, finish: first?.finish_reason ?? run.finish };
  Object.assign(next, said.start);
  const verdicts = several(said.verdicts, said.verdict);
  if (verdicts.length) {
    const at = insightOf(run).length;
    next.verdicts = [...run.verdicts, ...verdicts.map((verdict) => ({ ...verdict, at }))];
    Object.assign(next, { flops: said.flops ?? 0, spared: sparedBy(said) });
  }
  next.choices = [...run.choices, ...several(said.choices, said.choice)];
  if (said.engine) next.segments = joined(run.segments, said, first?.delta ?? {});
  if (chunk.usage) {
    const cost = chunk.usage.cost_details ?? chunk.usage.cost; // `cost` in older files
    Object.assign(next, { cost, spared: sparedBy(cost) });
    next.estimated_mentor_alone_flops = cost.estimated_mentor_alone_flops ?? run.estimated_mentor_alone_flops;
  }
  return next;
}

const several = (all, single) => all ?? (single ? [single] : []); // one by itself in older files
const sparedBy = ({ flops, cold_flops }) => (cold_flops ?? flops) - flops || 0;

function joined(segments, { engine, purpose, round = 0, tokens = 0 }, delta) {
  const text = delta.reasoning_content ?? delta.reasoning ?? delta.content ?? "";
  const last = segments.at(-1);
  const same = last?.engine === engine && last.purpose === purpose && last.round === round;
  if (!same) return [...segments, { engine, purpose, round, tokens, text }];
  return [...segments.slice(0, -1), { ...last, text: last.text + text, tokens: last.tokens + tokens }];
}

export const insightsOf = (run) => run.segments.filter(({ purpose }) => purpose === "insight");
export const insightOf = (run) => insightsOf(run).map((segment) => segment.text).join("");
export const answersOf = (run) => run.segments.filter(({ purpose }) => purpose === "answer");
export const tokensOf = (segments) => total(segments.map((segment) => segment.tokens));

/** Exact at the end; before, the calls that had ended at the last verdict and the tokens of the others. */
export function flopsOf(run, { members, served }) {
  if (run.cost) return run.cost.flops;
  const each = new Map(members.map(({ id, token_flops }) => [id, token_flops]));
  const together = served.granularity === "token"; // every member computes every token
  const rate = (author) => total((together ? run.members : author.split("+")).map((id) => each.get(id) ?? 0));
  return run.flops + total(run.segments.map(({ engine, tokens }) => tokens * rate(engine)));
}

/** The parts of an insight by their headings, as `lab/paper/gpra.py` finds them; first what has none. */
export function sections(insight) {
  const found = [...insight.matchAll(HEADING)].map(({ 0: whole, 1: word, index }) => ({
    heading: word[0].toUpperCase() + word.slice(1).toLowerCase(), start: index, from: index + whole.length,
  }));
  const parts = [{ heading: "", start: 0, from: 0 }, ...found].map((part, index) => {
    const end = found[index]?.start ?? insight.length;
    const to = part.start + insight.slice(part.start, end).trimEnd().length;
    const from = end - insight.slice(part.from, end).trimStart().length;
    return { ...part, end, from: Math.min(from, to), to };
  });
  return parts.filter(({ heading, from, to }) => heading || to > from);
}

/** The levels of a Tandem in order, planned or with the judge's verdict. */
export function checkpoints(run, { request, served }) {
  const { judge, thresholds } = request.ensemble?.params ?? {};
  const planned = served.levels.map((point) =>
    ({ ...point, threshold: judge ? null : thresholds?.[point.level] ?? point.threshold }));
  return [...new Map([...planned, ...run.verdicts].map((point) => [point.level, point])).values()];
}

export const compared = ({ probability, threshold, sufficient }) =>
  `${ratio(probability)} ${sufficient ? "≥" : "<"} ${ratio(threshold)}`;

/** How the mentor's part ended, as a sentence; "" while it has not. */
export function handover(run, { request, served }) {
  const last = run.verdicts.at(-1);
  if (last?.sufficient) {
    const asked = request.ensemble?.params?.judge; // a level that was set is no finding
    const why = `level ${last.level} ${asked ? "was asked for" : `suffices (${compared(last)})`}`;
    if (!last.mentor_tokens) return `No insight is needed: ${why}`;
    const budget = served.levels.find(({ level }) => level === last.level)?.mentor_tokens ?? 0;
    const verb = last.mentor_tokens < budget ? "ended by itself" : "stopped";
    return `Mentor ${verb} after ${last.mentor_tokens} tokens: ${why}`;
  }
  const [answer] = answersOf(run);
  if (!last || !answer) return "";
  if (answer.engine === run.roles.mentor) return "No level suffices: the mentor answers itself";
  const [best] = run.verdicts.toSorted((first, second) => second.probability - first.probability);
  const { level, probability } = served.params.fallback === "last" ? last : best;
  return `No level suffices: the intern answers with the insight at level ${level} (${ratio(probability)})`;
}

/** One sentence on where the run is. */
export function statusOf({ run, saved, phase }) {
  if (phase === "failed") return `The run broke off: ${saved.error}`;
  if (phase === "stopped") return "Stopped. What had arrived is kept.";
  if (phase === "done") {
    const end = run.finish === "length" ? "Ended at the token limit." : "Done.";
    const explained = run.cost?.explanation;
    if (explained) return `${end} ${explained[0].toUpperCase()}${explained.slice(1)}.`;
    const [estimate = 0] = run.estimated_mentor_alone_flops ?? [];
    if (!estimate) return end;
    const share = percent((flopsOf(run, saved) + run.spared) / estimate);
    return `${end} It took ${share} of the estimated cost of the mentor alone.`;
  }
  if (!run.method) return "The question is on its way.";
  const answer = answersOf(run).at(-1);
  if (answer && answer.engine === run.roles.mentor) return "The mentor is answering.";
  if (answer) return run.roles.intern ? "The intern is answering." : "The answer is being written.";
  const last = run.verdicts.at(-1);
  if (last?.sufficient) return `${handover(run, saved)}.`;
  if (last?.at === insightOf(run).length) return `Level ${last.level} does not suffice (${compared(last)}).`;
  return run.segments.length ? "The mentor is writing insights." : `At work: ${run.members.join(", ")}.`;
}

export const phaseOf = (saved) => (saved.error ? "failed" : saved.stopped ? "stopped" : "done");

/** What one or two runs are, or were, as a whole: at work while one of them is. */
export const phaseOfAll = (runs) =>
  ["running", "failed", "stopped"].find((phase) => runs.some((shown) => shown.phase === phase)) ?? "done";

/** The turns of a conversation before the question. */
export const turnsOf = ({ request }) => (request.messages ?? []).slice(0, -1);

export const answerOf = (run) => answersOf(run).map(({ text }) => text).join("");

/** What a run took: seconds to its first text and its end as seen here, tokens, FLOPs without caches, dollars. */
export function figuresOf({ run, saved }) {
  const first = saved.chunks.find(({ chunk }) => chunk.ensemble?.engine);
  const spent = run.cost?.spent;
  const sum = (key) => spent && total(spent.map((line) => line[key]));
  return {
    first: first && first.at / 1000, time: saved.chunks.length && saved.chunks.at(-1).at / 1000,
    read: sum("prompt_tokens"), written: sum("completion_tokens") ?? tokensOf(run.segments),
    flops: flopsOf(run, saved) + run.spared, usd: run.cost?.usd,
  };
}

/** How two runs that have ended compare, as a sentence; the one that took less compute is its subject. */
export function comparisonOf(runs) {
  if (runs.some(({ phase }) => phase !== "done")) return "";
  const names = runs.map(({ saved }, index) => `${"AB"[index]} (${saved.served.id})`);
  const [first, second] = runs.map(figuresOf);
  const [less, more] = first.flops <= second.flops ? [0, 1] : [1, 0];
  const [mine, theirs] = less ? [second, first] : [first, second];
  const share = (key) => theirs[key] > 0 && percent(mine[key] / theirs[key]);
  const shares = [[share("flops"), "compute"], [share("time"), "time"]].filter(([found]) => found);
  const words = shares.map(([found, name]) => `${found} of the ${name}`).join(" and ");
  return words && `${names[less]} took ${words} of ${names[more]}.`;
}

/** The one run, or the two of a comparison, in a saved value. */
export function checked(saved) {
  if (saved?.format !== PAIR) return [checkedRun(saved)];
  if (saved.version !== 1) throw new Error(`version ${saved.version} is not known here`);
  if (saved.runs.length !== 2) throw new TypeError();
  return saved.runs.map(checkedRun);
}

/** A saved run with all its fields; `at` of a chunk is in milliseconds since the start. */
function checkedRun(saved) {
  if (!FORMATS.includes(saved?.format)) throw new Error("it is not a saved run");
  if (saved.version !== 1) throw new Error(`version ${saved.version} is not known here`);
  const timed = saved.chunks.every(({ at }) => Number.isFinite(at));
  if (!timed || typeof saved.question !== "string") throw new TypeError();
  const served = { levels: [], params: {}, ...saved.served };
  return { started: "", request: {}, members: [], ...saved, format: FORMATS[0], served };
}
