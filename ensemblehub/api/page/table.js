/** Tables, with roles: a style that shows rows as blocks would take a table's own away. */

import { element } from "./elements.js";

const part = { role: "rowgroup" };

/** A row; `names` label its cells where a narrow screen shows it as a block. */
export const row = (name, cells, names, props) =>
  element("tr", { role: "row", ...props }, element("th", { scope: "row", role: "rowheader" }, name),
    cells.map((cell, index) => element("td", { role: "cell", "data-name": names[index + 1] }, cell)));

export const table = (caption, names, rows, foot) =>
  element("table", { role: "table" }, element("caption.unseen", null, caption),
    element("thead", part, element("tr", { role: "row" },
      names.map((name) => element("th", { scope: "col", role: "columnheader" }, name)))),
    element("tbody", part, rows), foot && element("tfoot", part, foot));
