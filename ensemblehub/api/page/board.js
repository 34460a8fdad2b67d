/**
 * A board of result folders: accuracy against cost as a table and a plot, and every question with the answers
 * of all cells. It is a tab of the page, and all of the file that `ensemblehub board` writes.
 */

import { element, patch, scroll } from "./elements.js";
import { count, percent, short, threeDigits, unitOf } from "./numbers.js";

const START = { sort: "", down: false, cost: "", which: "all", subject: "", search: "", shown: 50, open: -1, cells: [] };
const COSTS = { tflops: "compute", usd: "US dollars", written: "tokens generated", wall: "wall seconds" };
const hundredths = (value) => (100 * value).toFixed(1);
const compute = (flops, { name, shown } = unitOf(flops)) => `${shown(flops)} ${name}`;
const withRange = (key) => (value, line) =>
  `${hundredths(value)} [${hundredths(line[`${key}_low`])}, ${hundredths(line[`${key}_high`])}]`;
const COLUMNS = [
  ["method", "method", String], ["n", "questions", count], ["accuracy", "accuracy, %", withRange("accuracy")],
  ["difference", "to the first, points", withRange("difference")], ["read", "tokens read", short],
  ["written", "generated", short], ["tflops", "compute", (value) => compute(1e12 * value)],
  ["usd", "dollars", threeDigits], ["seconds", "engine s", short], ["wall", "wall s", short],
  ["errors", "errors", count],
];
const KINDS = {
  all: ["all", () => true], differing: ["answered right by some", (right) => new Set(right).size > 1],
  right: ["answered right by all", (right) => Math.min(...right) === 1],
  wrong: ["answered right by none", (right) => Math.max(...right) === 0],
};
const shareOf = (samples) => samples.filter(({ correct }) => correct).length / samples.length;

/**
 * Show results (objects with a `title`) in `root`. `load` gets one by its place: its table, questions, and which
 * answers are right; `answersTo` a question's answers, by place and the question's id.  `complain` is told of errors.
 */
export async function showBoard(root, results, load, answersTo, complain) {
  let all = null;
  const state = { ...START, section: 0 };
  const draw = () => patch(root, chooser(results, state), report(all, state, root.clientWidth),
    questions(all, state), opened(all, state));
  const acts = {
    section: async (place) => {
      root.replaceChildren(element("p.hint", { role: "status" }, "Reading the answers…"));
      all = await load(place);
      Object.assign(state, START, { section: Number(place) });
      root.replaceChildren(); // the controls begin anew
    },
    sort: (key) => Object.assign(state, { sort: key, down: state.sort === key ? !state.down : key !== "method" }),
    more: () => (state.shown += 200),
    open: async (place) => {
      const { cells } = await answersTo(state.section, all.questions[place].id);
      Object.assign(state, { open: Number(place), cells });
    },
    close: () => root.querySelector("dialog").close(),
  };
  await acts.section(0);
  root.addEventListener("click", async ({ target }) => {
    const { name, value } = target.closest("button") ?? {};
    if (!acts[name]) return;
    try {
      await acts[name](value);
    } catch (error) {
      complain(error);
      return draw(); // as it was
    }
    draw();
    const dialog = root.querySelector("dialog");
    if (name === "open" && !dialog.open) dialog.showModal();
    if (name === "open") dialog.scrollTop = 0;
  });
  root.addEventListener("input", ({ target: { name, value } }) => {
    Object.assign(state, { [name]: value, shown: START.shown });
    draw();
  });
  new ResizeObserver(draw).observe(root); // which draws at once
}

const button = (look, name, value, label) => element(`button${look}`, { type: "button", name, value }, label);
const field = (label, name, entries) => element("label", null, `${label} `, element("select", { name },
  entries.map(([value, words]) => element("option", { value }, words))));

const chooser = (results, state) => results.length > 1 && element("div.row", null,
  results.map(({ title }, value) => element("button.chip",
    { type: "button", name: "section", value, "aria-pressed": state.section === value }, title)));

function report({ title, notes, lines }, state, width) {
  const costs = Object.entries(COSTS).filter(([key]) => lines.some((line) => line[key] > 0));
  const cost = state.cost || costs[0]?.[0];
  const placed = lines.filter((line) => line[cost] > 0);
  return element("section", null, element("h2", null, title),
    placed.length && element("div.card", null, field("Accuracy against", "cost", costs),
      plot(placed, cost, Math.min(900, Math.max(260, width - 36)))),
    scroll("Results", summary(lines, state)),
    notes.length && element("p.hint", null, notes.join(" ").replaceAll("`", "")));
}

function summary(lines, { sort, down }) {
  const more = [...new Set(lines.flatMap(Object.keys))].filter((key) => /^pass@|_share$/.test(key))
    .map((key) => [key, `${key.replace(/_share$/, "").replaceAll("_", " ")}, %`, hundredths]);
  const columns = [...COLUMNS, ...more].filter(([key]) => lines.some((line) => line[key]));
  const rank = (line) => line[sort] ?? -Infinity;
  const order = (first, second) => (rank(first) > rank(second) ? 1 : rank(first) < rank(second) ? -1 : 0);
  const sorted = sort ? lines.toSorted((first, second) => (down ? -1 : 1) * order(first, second)) : lines;
  const heads = columns.map(([key, label]) => [button(".chip.quiet", "sort", key, label),
    sort !== key ? "none" : down ? "descending" : "ascending"]);
  return grid("Accuracy and cost", heads, sorted.map((line) =>
    columns.map(([key, , shown]) => [line[key] == null ? "–" : shown(line[key], line)])));
}

/** A table; a head is a label and how it is sorted, a cell a text and its look. */
const grid = (label, heads, rows) => element("table.grid", { "aria-label": label },
  element("thead", null, element("tr", null, heads.map(([words, sorted = "none"]) =>
    element("th", { scope: "col", "aria-sort": sorted }, words)))),
  element("tbody", null, rows.map(([[heading], ...cells]) => element("tr", null,
    element("th", { scope: "row" }, heading),
    cells.map(([words, look = ""]) => element("td", { class: look }, words))))));

function questions({ questions: asked, cells }, { which, subject, search, shown }) {
  const subjects = [...new Set(asked.map((question) => question.subject))].filter(Boolean).sort();
  const found = asked.map((question, place) => ({ ...question, place }))
    .filter(({ place }) =>
      KINDS[which][1](cells.map(({ answers }) => answers[place]).filter(Boolean).map(shareOf)))
    .filter((question) => !subject || question.subject === subject)
    .filter(({ id, text }) => `${id} ${text}`.toLowerCase().includes(search.toLowerCase()));
  const rows = found.slice(0, shown).map(({ id, text, place }) => [
    [button(".entry.quiet", "open", place, `${id} ${text.slice(0, 90)}`)],
    ...cells.map(({ answers }) => mark(answers[place]))]);
  return element("section", null, element("h2", null, "Questions"), element("div.row", null,
    field("Show", "which", Object.entries(KINDS).map(([value, [words]]) => [value, words])),
    field("Subject", "subject", [["", "all"], ...subjects.map((name) => [name, name])]),
    element("label", null, "Text ", element("input", { name: "search", type: "search" })),
    element("span.hint", { role: "status" }, `${found.length} of ${asked.length}`)),
  scroll("Questions", grid("Questions", [["question"], ...cells.map(({ name }) => [name])], rows)),
  found.length > shown && button("", "more", "", "Show more"));
}

function mark(samples) {
  if (!samples) return ["–"];
  const right = shareOf(samples);
  const words = samples.length > 1 ? percent(right) : right ? "✓" : "✗";
  return [words, right < 0.5 ? "wrong" : "enough"];
}

/** A question with all answers, over the page. */
function opened({ questions: asked }, { open, cells }) {
  const { id, text, answer, subject, level } = asked[open] ?? {};
  const about = [subject, level && `level ${level}`, answer && `answer: ${answer}`].filter(Boolean).join(" · ");
  const step = (place, words) => asked[place] && button(".chip", "open", place, words);
  return element("dialog.answers", { "aria-labelledby": "question-id" }, asked[open] && [
    element("div.row", null, element("h2", { id: "question-id" }, id), step(open - 1, "← Previous"),
      step(open + 1, "Next →"), button(".chip", "close", "", "Close")),
    element("p.hint", null, about), element("p.text", null, text),
    element("div.columns", null, cells.map(({ name, answers }) =>
      (answers ?? []).map((found) => told(name, found)))),
  ]);
}

function told(name, found) {
  const { sample, correct, reason, finish, written, cold_flops, usd, wall, insight, text } = found;
  const costs = [finish === "length" && "cut at its length", `${count(written)} tokens`,
    cold_flops && compute(cold_flops), usd && `$${threeDigits(usd)}`, `${short(wall)} s`].filter(Boolean);
  const steps = [
    ...(found.verdicts ?? []).map(({ level, mentor_tokens, probability, threshold, sufficient }) =>
      `${level}: ${mentor_tokens} mentor tokens, ${short(probability)} against ${short(threshold)}, `
      + (sufficient ? "sufficient" : "not yet")),
    ...(found.choices ?? []).map(({ about, chosen, reason }) => `${about}: ${chosen.join(", ")} ${reason}`)];
  return element("article.card", null, element("h3", null, sample ? `${name}, sample ${sample}` : name),
    element("p", { class: correct ? "enough" : "wrong" }, correct ? "✓ right" : `✗ ${reason || "wrong"}`),
    [costs.join(" · "), ...steps].map((words) => element("p.hint", null, words)),
    insight && element("details", null, element("summary", null, "Insight"), element("p.text", null, insight)),
    element("p.text", null, text));
}

function ticks(low, high, log) {
  const rough = (high - low) / 6;
  const steps = [1, 2, 5, 10].map((digit) => digit * 10 ** Math.floor(Math.log10(rough)));
  const step = log ? 1 : steps.find((size) => size >= rough);
  const from = log ? Math.floor(Math.log10(low)) : Math.ceil(low / step);
  const places = Array.from({ length: 30 }, (_, place) => from + place);
  const found = places.flatMap((place) => (log ? [10 ** place, 3 * 10 ** place] : place * step));
  return found.filter((value) => value >= low && value <= high);
}

/** Accuracy against one kind of cost, with 95 % intervals; the table has the numbers. */
function plot(lines, key, width) {
  const unit = unitOf(1e12 * Math.max(...lines.map((line) => line[key])));
  const name = key === "tflops" ? unit.name : COSTS[key];
  const costs = lines.map((line) => (key === "tflops" ? (1e12 / unit.size) * line[key] : line[key]));
  const [least, most] = [Math.min(...costs), Math.max(...costs)];
  const log = most > 8 * least;
  const [left, right] = log ? [least / 1.3, most * 1.6] : [0, 1.15 * most];
  const bottom = Math.max(0, Math.min(...lines.map((line) => line.accuracy_low)) - 0.03);
  const top = Math.min(1, Math.max(...lines.map((line) => line.accuracy_high)) + 0.03);
  const scale = log ? Math.log10 : Number;
  const x = (value) => 40 + ((width - 60) * (scale(value) - scale(left))) / (scale(right) - scale(left));
  const y = (value) => 260 - (235 * (value - bottom)) / (top - bottom);
  const words = (x, y, anchor, text) => element("text", { x, y, "text-anchor": anchor }, text);
  const taken = lines.map((line, index) => ({ under: y(line.accuracy) + 4, left: x(costs[index]) - 6, long: 12 }));
  return element("svg", { viewBox: `0 0 ${width} 300`, role: "img", "aria-label": `Accuracy against ${name}` },
    ticks(100 * bottom, 100 * top, false).map((value) => [words(34, y(value / 100) + 4, "end", short(value)),
      element("line.tick", { x1: 40, x2: width - 20, y1: y(value / 100), y2: y(value / 100) })]),
    ticks(left, right, log).map((value) => [words(x(value), 276, "middle", short(value)),
      element("line.tick", { x1: x(value), x2: x(value), y1: 25, y2: 260 })]),
    words(40, 14, "start", "accuracy, %"), words(width / 2, 296, "middle", `${name}${log ? ", logarithmic" : ""}`),
    lines.map(({ method, accuracy, accuracy_low, accuracy_high }, index) => {
      const [across, down] = [x(costs[index]), y(accuracy)];
      const place = beside(across, down, 7 * method.length, width, taken);
      return element("g", null, element("title", null, method), element("circle", { cx: across, cy: down, r: 5 }),
        element("line", { x1: across, x2: across, y1: y(accuracy_low), y2: y(accuracy_high) }),
        place && words(place.at, place.under, place.anchor, method));
    }));
}

/** Where a name stands beside its point, inside the plot and clear of names and points; nowhere where it is crowded. */
function beside(x, y, long, width, taken) {
  const places = [4, -9, 17, -22, 30].map((step) => y + step).flatMap((under) => [
    { under, at: x + 9, left: x + 9, long, anchor: "start" },
    { under, at: x - 9, left: x - 9 - long, long, anchor: "end" },
  ]);
  const inside = ({ under, left }) => left > 40 && left + long < width && under > 20 && under < 258;
  const over = (label, other) => Math.abs(other.under - label.under) < 13
    && label.left < other.left + other.long && other.left < label.left + label.long;
  const found = places.find((label) => inside(label) && !taken.some((other) => over(label, other)));
  if (found) taken.push(found);
  return found;
}
