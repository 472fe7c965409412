// Routes, and how their traffic is split.

import { call, get, segment } from "./api.js";
import { Rate, act, arrange, make, rate, text } from "./widgets.js";

function conditions(match) {
  const parts = [];
  if (match.method) parts.push(match.method.join("|"));
  parts.push((match.host ?? "") + (match.path_exact ?? match.path_regex ?? (match.path ?? "/").replace(/\/?$/, "/…")));
  for (const [kind, wanted] of [["header", match.headers], ["cookie", match.cookies], ["query", match.query]]) {
    for (const [name, value] of Object.entries(wanted ?? {})) parts.push(`${kind} ${name}${value === "*" ? "" : `=${value}`}`);
  }
  return parts;
}

class VersionLine {
  #total = new Rate();
  #failed = new Rate();

  constructor(version, tone, changed) {
    const label = version || "(no version)";
    this.slider = make("input", { type: "range", min: 0, max: 100, ariaLabel: `Share of ${label}`, oninput: () => { this.number.value = this.slider.value; changed(); } });
    this.number = make("input", { type: "number", min: 0, max: 1000000, ariaLabel: `Share of ${label}, as a number`, oninput: () => { this.slider.value = this.number.value; changed(); } });
    this.part = make("span", { className: "number mono" });
    this.traffic = make("span", { className: "quiet wide" });
    this.ready = make("span", { className: "quiet wide number" });
    this.dot = make("span", { className: `dot tone-${tone}` });
    this.cells = [make("span", { className: "mono" }, this.dot, label), this.slider, this.number, this.part, make("span", { className: "wide" }, this.ready, " ", this.traffic)];
    this.bar = make("i", { className: `tone-${tone}` });
  }

  show(counts, traffic) {
    text(this.ready, `${counts.ready}/${counts.instances} ready`);
    const now = performance.now();
    const total = this.#total.feed(traffic?.requests ?? 0, now);
    const failed = this.#failed.feed(traffic?.statuses["5xx"] ?? 0, now);
    text(this.traffic, total === null ? "" : `· ${rate(total)}/s${failed ? `, ${rate(failed)} failing` : ""}`);
  }

  get share() {
    return Math.max(0, Math.floor(Number(this.number.value) || 0));
  }

  set share(value) {
    this.number.value = value;
    this.slider.max = Math.max(100, value);
    this.slider.value = value;
  }

  draw(total) {
    this.bar.style.flexGrow = this.share;
    text(this.part, total ? `${((100 * this.share) / total).toFixed(this.share % total && this.share * 100 < total * 10 ? 1 : 0)} %` : "–");
  }
}

class RouteCard {
  #lines = new Map();
  #dirty = false;
  #shares = make("div", { className: "shares" });
  #meter = make("div", { className: "meter", ariaHidden: "true" });
  #apply = make("button", { type: "button", className: "main", onclick: () => act(this.#apply, () => this.#put(Object.fromEntries([...this.#lines].map(([version, line]) => [version, line.share])))) }, "Apply split");
  #undo = make("button", { type: "button", onclick: () => { this.#dirty = false; this.update(this.route); } }, "Undo");
  #off = make("button", { type: "button", title: "Every version gets traffic, by its instances' weights", onclick: () => act(this.#off, () => this.#put(null)) }, "No split");
  #note = make("span", { className: "quiet" });

  constructor(route) {
    this.route = route;
    const chips = conditions(route.match).map((condition) => make("span", { className: "chip mono" }, condition));
    this.element = make("article", { className: "card route" },
      make("div", { className: "head" }, make("h3", {}, route.name), ...chips, make("span", { className: "quiet" }, `→ ${route.service}`), this.#note),
      this.#meter, this.#shares,
      make("div", { className: "buttons" }, this.#apply, this.#undo, this.#off));
  }

  async #put(split) {
    const answer = await call("PUT", `/v1/routes/${segment(this.route.name)}/split`, { split });
    this.#dirty = false;
    this.update({ ...this.route, ...answer });
    return split === null ? `${this.route.name}: no split` : `${this.route.name}: split changed`;
  }

  update(route) {
    this.route = route;
    const versions = Object.keys(route.versions);
    if (versions.join("\n") !== [...this.#lines.keys()].join("\n")) this.#rebuild(versions);
    for (const [version, line] of this.#lines) {
      line.show(route.versions[version], route.traffic[version]);
      if (!this.#dirty) line.share = route.split ? (route.split[version] ?? 0) : 0;
    }
    const one = versions.length < 2 && !route.split;
    for (const element of [this.#meter, this.#shares, this.#apply.parentElement]) element.hidden = one;
    const configured = JSON.stringify(route.split) === JSON.stringify(route.configured);
    text(this.#note, [!route.split && versions.length > 1 ? "no split: by weights" : "", configured ? "" : "differs from the file"].filter(Boolean).join(" · "));
    this.#draw();
  }

  #rebuild(versions) {
    this.#lines = new Map(versions.map((version, i) => [version, this.#lines.get(version) ?? new VersionLine(version, i % 6, () => { this.#dirty = true; this.#draw(); })]));
    this.#shares.replaceChildren(...[...this.#lines.values()].flatMap((line) => line.cells));
    this.#meter.replaceChildren(...[...this.#lines.values()].map((line) => line.bar));
  }

  #draw() {
    const total = [...this.#lines.values()].reduce((sum, line) => sum + line.share, 0);
    for (const line of this.#lines.values()) line.draw(total);
    this.#apply.hidden = this.#undo.hidden = !this.#dirty;
    this.#apply.disabled = total === 0;
    this.#off.hidden = !this.route.split || this.#dirty;
    this.#apply.parentElement.hidden = this.#apply.hidden && this.#off.hidden;
  }
}

const place = document.getElementById("routes");
const cards = new Map();

export async function showRoutes() {
  const { routes } = await get("/v1/routes");
  if (!routes.length) {
    place.replaceChildren(make("p", { className: "card empty" }, "No routes are configured."));
    cards.clear();
    return;
  }
  arrange(place, cards, routes, (route) => `${route.name} ${JSON.stringify(route.match)} ${route.service}`, (route) => new RouteCard(route));
}
