/** Elements as plain descriptions, and the document made to match them. All text goes in as text. */

const SVG = "http://www.w3.org/2000/svg";

export const HIDDEN = { "aria-hidden": "true" };
export const byId = (id) => document.getElementById(id);

/** An element to be, as `tag.class`; children that are not there (null, false, "", 0) are left out. */
export function element(what, props, ...children) {
  const [tag, ...classes] = what.split(".");
  const attributes = { ...props };
  const names = [...classes, props?.class].filter(Boolean);
  if (names.length) attributes.class = names.join(" ");
  return { tag, attributes, children: children.flat(Infinity).filter(Boolean) };
}

/** Make the children of `parent` what `nodes` say, touching only what differs. */
export function patch(parent, ...nodes) {
  const wanted = nodes.flat(Infinity).filter(Boolean);
  wanted.forEach((node, index) => {
    const old = parent.childNodes[index];
    const fits = old?.nodeName.toLowerCase() === (node.tag ?? "#text");
    const place = fits ? old : made(node, parent);
    if (!fits) old ? old.replaceWith(place) : parent.append(place);
    if (node.tag) update(place, node);
    else retype(place, node);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

function made({ tag }, parent) {
  if (!tag) return document.createTextNode("");
  return document.createElementNS(tag === "svg" ? SVG : parent.namespaceURI, tag);
}

/** Change a text node; text that only grows keeps what a reader has selected. */
function retype(place, text) {
  if (text.startsWith(place.data)) place.appendData(text.slice(place.data.length));
  else place.data = text;
}

function update(place, { attributes, children }) {
  for (const name of place.getAttributeNames()) {
    if (!(name in attributes)) place.removeAttribute(name);
  }
  for (const [name, value] of Object.entries(attributes)) {
    if (place.getAttribute(name) !== String(value)) place.setAttribute(name, value);
  }
  patch(place, children);
}
