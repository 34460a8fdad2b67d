/** Numbers as a person reads them. */

const PREFIXES = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
const format = (options) => new Intl.NumberFormat("en", options).format;

export const total = (values) => values.reduce((sum, value) => sum + value, 0);
export const ratio = (value) => value.toFixed(2);
export const percent = (value) => `${Math.round(100 * value)}\u00a0%`;
export const count = format();
export const compact = format({ notation: "compact" });
export const tokenCount = (value) => `${count(value)} tokens`;
export const short = format({ maximumSignificantDigits: 3 });
export const threeDigits = format({ minimumSignificantDigits: 3, maximumSignificantDigits: 3 });

/** The unit for a number of FLOPs, and for all that stands beside it. */
export function unitOf(flops) {
  const power = Math.floor(Math.log10(Number(Math.max(flops, 1).toPrecision(3))) / 3);
  const size = 1000 ** power;
  return { name: `${PREFIXES[power]}FLOPs`, size, shown: (value) => (value ? threeDigits(value / size) : "0") };
}
