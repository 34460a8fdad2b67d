/** Elements, and the document made to match them. All text goes in as text. */

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = ["svg", "g", "rect", "line", "circle", "text", "title"];

export const HIDDEN = { "aria-hidden": "true" };
export const byId = (id) => document.getElementById(id);

/** An element, as `tag.class`; children that are not there (null, false, "", 0) are left out. */
export function element(what, props, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = SHAPES.includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) made.setAttribute(name, value);
  if (classes.length) made.classList.add(...classes);
  made.append(...children.flat(Infinity).filter(Boolean));
  return made;
}

/** What may be wider than the screen, in a box that scrolls, by keyboard too. */
export const scroll = (label, ...content) =>
  element("div.scroll", { role: "group", tabindex: 0, "aria-label": label }, content);

/** Make the children of `parent` what `children` say, touching only what differs; what is open stays open. */
export function patch(parent, ...children) {
  const nodes = [...element("div", null, children).childNodes];
  for (const [index, node] of nodes.entries()) {
    const old = parent.childNodes[index];
    if (!old) parent.append(node);
    else if (old.nodeName !== node.nodeName) old.replaceWith(node);
    else if (old.nodeType === Node.ELEMENT_NODE) update(old, node);
    else if (node.data.startsWith(old.data)) old.appendData(node.data.slice(old.data.length));
    else old.data = node.data; // text that only grows keeps what a reader has selected
  }
  while (parent.childNodes.length > nodes.length) parent.lastChild.remove();
}

function update(old, wanted) {
  const gone = old.getAttributeNames().filter((name) => name !== "open" && !wanted.hasAttribute(name));
  const changed = [...wanted.attributes].filter(({ name, value }) => old.getAttribute(name) !== value);
  for (const name of gone) old.removeAttribute(name);
  for (const { name, value } of changed) old.setAttribute(name, value);
  patch(old, ...wanted.childNodes);
}
