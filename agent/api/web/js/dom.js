/** Small helpers to build the page. Nothing here parses HTML, so no text can become markup. */

/**
 * An element: `h("button.primary", {type: "button", onclick}, "Start")`.
 * Attributes that are false, null or undefined are left out; `on...` are listeners; `data` fills the dataset.
 */
export function h(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (value === false || value === null || value === undefined) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  return element;
}

/** Change the text only when it differs: a screen reader hears changes, and so does the browser's layout. */
export function text(element, value) {
  const wanted = value === null || value === undefined ? "" : String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function show(element, visible) {
  if (element.hidden === Boolean(visible)) element.hidden = !visible;
}

/** Enable, or disable and say why where a pointer or a screen reader asks. */
export function enable(button, possible, why = "") {
  button.disabled = !possible;
  button.title = possible ? "" : why;
}

const SVG = "http://www.w3.org/2000/svg";

/** An icon of 24 x 24 from its path. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  set(svg, { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" });
  const drawn = document.createElementNS(SVG, "path");
  drawn.setAttribute("d", path);
  svg.append(drawn);
  return svg;
}

export const ICONS = {
  operate: "M4 20h8M8 20v-5l-3-6 8-5 5 5M15 12l3-3 4 .5M18 9l.5-4",
  episodes: "M4 5h16v14H4zM4 9h16M8 5v4M12 5v4M16 5v4M10 12l5 3-5 3z",
  learning: "M12 4v4M12 16v4M5 8l3.5 2M15.5 14l3.500 2M5 16l3.500-2M15.500 10L19 8M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
  events: "M4 6h2M4 12h2M4 18h2M10 6h10M10 12h10M10 18h10",
  station: "M4 5h16v6H4zM4 13h16v6H4zM7 8h.01M7 16h.01",
  yes: "M5 13l4.500 4.500L19 7",
  no: "M6 6l12 12M18 6L6 18",
  play: "M8 5l11 7-11 7z",
  pause: "M8 5v14M16 5v14",
  back: "M15 5l-7 7 7 7",
  next: "M9 5l7 7-7 7",
  bin: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13M10.500 11v6M13.500 11v6",
  undo: "M8 5L4 9l4 4M4 9h10a6 6 0 0 1 0 12h-4",
};
