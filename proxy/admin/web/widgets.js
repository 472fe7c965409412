// Small things to build the page from.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Writing what is there already would lose selections and cost a layout.
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

// Makes the children of `parent` those of `items`, in order; `widgets` keeps one widget per key.
export function arrange(parent, widgets, items, keyOf, create) {
  const seen = new Set();
  let place = null;
  for (const item of items) {
    const key = keyOf(item);
    seen.add(key);
    if (!widgets.has(key)) widgets.set(key, create(item));
    const widget = widgets.get(key);
    const next = place ? place.nextSibling : parent.firstChild;
    if (widget.element !== next) parent.insertBefore(widget.element, next);
    place = widget.element;
    widget.update(item);
  }
  for (const [key, widget] of widgets) {
    if (seen.has(key)) continue;
    widget.element.remove();
    widgets.delete(key);
  }
  while (place ? place.nextSibling : parent.firstChild) (place ? place.nextSibling : parent.firstChild).remove();
}

export function toast(message, bad = false) {
  const element = make("div", { className: bad ? "toast bad" : "toast" }, message);
  document.getElementById("toasts").append(element);
  setTimeout(() => element.remove(), bad ? 9000 : 3500);
}

// Runs an action of a button: no second click meanwhile, and what goes wrong is said.
export async function act(button, action) {
  button.disabled = true;
  try {
    const message = await action();
    if (message) toast(message);
  } catch (error) {
    toast(error.message, true);
  } finally {
    button.disabled = false;
  }
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value) {
  return value < 100000 ? plain.format(value) : compact.format(value);
}

export function rate(value) {
  if (value === null) return "–";
  return value > 0 && value < 10 ? value.toFixed(1) : count(value);
}

export function span(seconds) {
  if (seconds < 1) return "just now";
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const parts = [];
  let rest = Math.floor(seconds);
  for (const [unit, size] of units) {
    if (rest >= size) parts.push(`${Math.floor(rest / size)}${unit}`);
    rest %= size;
  }
  return parts.slice(0, 2).join(" ");
}

// What a counter gains per second; a counter that went back belongs to another process.
export class Rate {
  #last = null;

  feed(value, now) {
    const last = this.#last;
    this.#last = { value, now };
    if (!last || value < last.value || now <= last.now) return null;
    return ((value - last.value) * 1000) / (now - last.now);
  }
}

// The last minute of a figure, as a line.
export class Line {
  #values = [];
  #svg;

  constructor(svg) {
    this.#svg = svg;
    svg.setAttribute("viewBox", "0 0 100 40");
    svg.setAttribute("preserveAspectRatio", "none");
    for (const name of ["area", "line"]) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", name);
      svg.append(path);
    }
  }

  push(value) {
    if (value === null) return;
    this.#values.push(value);
    if (this.#values.length > 60) this.#values.shift();
    const top = Math.max(1, ...this.#values) * 1.15;
    const points = this.#values.map((v, i) => `${100 - (this.#values.length - 1 - i) * (100 / 59)},${39 - (v / top) * 36}`);
    const [area, line] = this.#svg.children;
    line.setAttribute("d", `M${points.join("L")}`);
    area.setAttribute("d", `M${points.join("L")}L100,40L${points[0].split(",")[0]},40Z`);
  }
}
