/** Elements, and the document made to match them. All text goes in as text. */

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = ["svg", "rect", "line"];

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

/** Make the children of `parent` what `children` say, touching only what differs. */
export function patch(parent, ...children) {
  morph(parent, element("div", null, children));
}

function morph(parent, wanted) {
  const nodes = [...wanted.childNodes];
  for (const [index, node] of nodes.entries()) {
    const old = parent.childNodes[index];
    if (!old) parent.append(node);
    else if (old.nodeName !== node.nodeName) old.replaceWith(node);
    else if (old.nodeType === Node.TEXT_NODE) retype(old, node.data);
    else update(old, node);
  }
  while (parent.childNodes.length > nodes.length) parent.lastChild.remove();
}

/** Change a text node; text that only grows keeps what a reader has selected. */
function retype(place, text) {
  if (text.startsWith(place.data)) place.appendData(text.slice(place.data.length));
  else place.data = text;
}

function update(place, wanted) {
  for (const name of place.getAttributeNames()) {
    if (!wanted.hasAttribute(name)) place.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (place.getAttribute(name) !== value) place.setAttribute(name, value);
  }
  morph(place, wanted);
}
