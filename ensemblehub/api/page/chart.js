/** The judge: probability as bars, thresholds as lines; and as a table for those who do not see it. */

import { HIDDEN, element } from "./elements.js";
import { count, ratio } from "./numbers.js";
import { compared } from "./run.js";
import { row, table } from "./table.js";

const WIDTH = 320;
const LEFT = 26;
const TOP = 12;
const HEIGHT = 112;
const BELOW = 56;
const NAMES = ["Level", "Mentor tokens", "Probability", "Threshold", "Verdict"];

const y = (value) => TOP + HEIGHT * (1 - Math.min(Math.max(value, 0), 1.06));
const line = (kind, x1, x2, value) => element(`line.${kind}`, { x1, x2, y1: y(value), y2: y(value) });
const label = (kind, x, y, words, anchor = "middle") =>
  element(`text.${kind}`, { x, y, "text-anchor": anchor }, words);

export function chart(points) {
  const column = (WIDTH - LEFT) / Math.max(points.length, 3);
  const grid = [0, 0.5, 1].map((value) =>
    [line("grid", LEFT, WIDTH, value), label("tick", LEFT - 6, y(value) + 4, String(value), "end")]);
  const columns = points.map((point, index) => level(point, LEFT + column * (index + 0.5), column));
  const verdicts = points.map(({ verdict }) => verdict).filter(Boolean);
  const rows = verdicts.map((verdict) => row(verdict.level, cells(verdict), NAMES));
  const signs = [["bar", "probability that it suffices"], ["line", "threshold"]];
  return [
    element("svg.chart", { viewBox: `0 0 ${WIDTH} ${TOP + HEIGHT + BELOW}`, ...HIDDEN }, grid, columns),
    element("p.key", HIDDEN, signs.map(([sign, words]) =>
      element("span", null, element(`span.key-${sign}`), words))),
    element("div.unseen", null,
      table("The judge's probability against the threshold, at each checkpoint", NAMES, rows)),
  ];
}

const cells = ({ mentor_tokens, probability, threshold, sufficient }) =>
  [count(mentor_tokens), ratio(probability), ratio(threshold), sufficient ? "sufficient" : "not yet"];

function level({ level, mentor_tokens, probability, threshold, sufficient, verdict }, middle, column) {
  const width = Math.min(34, column * 0.5);
  const height = Math.max(1, y(0) - y(probability));
  const words = [
    ["level", verdict && sufficient ? `✓ ${level}` : level], ["tick", `${count(mentor_tokens)} tok.`],
    ["word", verdict ? compared(verdict) : "–"],
  ];
  return element(`g.${verdict ? (sufficient ? "enough" : "short") : "open"}`, null,
    verdict && element("rect.bar", { x: middle - width / 2, y: y(0) - height, width, height, rx: 3 }),
    threshold !== null && line("threshold", middle - column * 0.4, middle + column * 0.4, threshold),
    words.map(([kind, shown], index) => label(kind, middle, TOP + HEIGHT + 16 + 15 * index, shown)));
}
