/** Saved runs and comparisons in this browser's storage, the latest first. */

import { element } from "./elements.js";

const KEY = "ensemblehub-history";
const KEEP = "ensemblehub-keep"; // "no" where the reader wants nothing kept
const MOST = 50;
const CHARACTERS = 2_000_000;

export const keeps = () => localStorage.getItem(KEEP) !== "no";
export const setKeeps = (wanted) => localStorage.setItem(KEEP, wanted ? "yes" : "no");
export const clear = () => localStorage.removeItem(KEY);
export const remove = (started) => store(read().filter((saved) => saved.started !== started));

/** What is kept; nothing where it is damaged. */
export function read() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(found) ? found.filter((saved) => typeof saved?.started === "string") : [];
  } catch {
    return [];
  }
}

/** Keep a saved run or comparison; what is too long by itself is not kept. */
export function remember(saved) {
  if (keeps() && JSON.stringify(saved).length < CHARACTERS) store([saved, ...read()].slice(0, MOST));
}

/** Store as many of the first as fit. */
function store(all) {
  for (let text; ; all.pop()) {
    text = JSON.stringify(all);
    if (all.length && text.length > CHARACTERS) continue;
    try {
      return localStorage.setItem(KEY, text);
    } catch (error) { // the browser allows less
      if (!all.length) throw error;
    }
  }
}

/** The list, with a button to open each and one to remove it. */
export const entries = () => read().map((saved) => {
  const runs = [saved.runs ?? saved].flat();
  const question = String(runs[0]?.question);
  const when = new Date(saved.started).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const names = runs.map((run) => run?.served?.id).join(" and ");
  return element("li.card.row", null,
    element("button.entry.quiet", { type: "button", name: "open", value: saved.started }, question),
    element("span.hint", null, `${when} · ${names}`),
    element("button.chip", { type: "button", name: "remove", value: saved.started,
      "aria-label": `Remove ${question.slice(0, 60)}` }, "Remove"));
});
