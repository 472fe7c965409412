// Services and their instances.

import { call, get, segment } from "./api.js";
import { Rate, act, arrange, count, make, rate, text } from "./widgets.js";

const STATES = ["ready", "starting", "draining", "ejected", "unhealthy"];
const HEADINGS = [
  ["State"], ["Instance"], ["Version"], ["Weight", "number"], ["In flight", "number"], ["Tunnels", "number"],
  ["Requests/s", "number"], ["Failed", "number"], ["Latency", "number"], ["", "number"],
];

const closed = new Set();

class InstanceRow {
  #service;
  #id;
  #rate = new Rate();
  #cells = {};
  #weight;
  #drain;
  #eject;
  #shown = null;

  constructor(instance) {
    this.#service = instance.service;
    this.#id = instance.id;
    const cell = (name, className = "number", ...children) => (this.#cells[name] = make("td", { className }, ...children));
    this.#weight = make("input", {
      type: "number", min: 0, max: 65535, step: 1, ariaLabel: `Weight of ${instance.id}`,
      oninput: () => this.#weight.classList.toggle("changed", this.#weight.value !== String(this.#shown)),
      onkeydown: (event) => {
        if (event.key === "Enter") this.#weight.blur();
        if (event.key === "Escape") { this.#weight.value = this.#shown; this.#weight.blur(); }
      },
      onblur: () => this.#setWeight(),
    });
    this.#drain = make("button", { type: "button", onclick: () => act(this.#drain, () => this.#post(this.#drain.dataset.verb)) });
    this.#eject = make("button", { type: "button", title: "Out for 30 s; what it has goes on", onclick: () => act(this.#eject, () => this.#post("eject")) }, "Eject");
    this.name = make("span", { className: "mono" });
    this.address = make("span", { className: "under mono" });
    this.element = make("tr", {},
      cell("state", "", make("span")),
      cell("name", "name", this.name, this.address),
      cell("version", ""),
      cell("weight", "number", this.#weight),
      cell("inflight", "number load"), cell("tunnels"), cell("rate"), cell("failed"), cell("latency"),
      cell("actions", "actions", this.#drain, this.#eject));
  }

  #path() {
    return `/v1/services/${segment(this.#service)}/instances/${segment(this.#id)}`;
  }

  async #post(verb) {
    this.update(await call("POST", `${this.#path()}/${verb}`));
    return `${this.#id}: ${{ drain: "draining", undrain: "back", eject: "out for 30 s" }[verb]}`;
  }

  async #setWeight() {
    this.#weight.classList.remove("changed");
    const value = this.#weight.valueAsNumber;
    if (!Number.isInteger(value) || value === this.#shown) { this.#weight.value = this.#shown; return; }
    await act(this.#weight, async () => {
      this.update(await call("PATCH", this.#path(), { weight: value }));
      return `${this.#id}: weight ${value}`;
    });
    this.#weight.value = this.#shown;
  }

  update(instance, busiest) {
    const cells = this.#cells;
    const pill = cells.state.firstChild;
    pill.className = `pill ${instance.state}`;
    text(pill, instance.ejected_for ? `ejected ${Math.ceil(instance.ejected_for)} s` : instance.state);
    text(this.name, instance.id);
    text(this.address, instance.id === instance.address ? (instance.backup ? "backup" : "") : instance.address + (instance.backup ? " · backup" : ""));
    cells.name.title = `${instance.id}\n${instance.address}`;
    text(cells.version, instance.version || "–");
    this.#shown = instance.weight;
    if (document.activeElement !== this.#weight) this.#weight.value = instance.weight;
    const warming = instance.effective_weight < instance.weight ? `, ${instance.effective_weight} while it warms up` : "";
    this.#weight.title = `registered ${instance.registered_weight}${warming}`;
    text(cells.inflight, count(instance.inflight));
    text(cells.tunnels, count(instance.tunnels));
    // The answer to a change comes between two looks: too close for a rate.
    if (busiest !== undefined) {
      cells.inflight.style.setProperty("--part", busiest ? instance.inflight / busiest : 0);
      text(cells.rate, rate(this.#rate.feed(instance.requests, performance.now())));
    }
    text(cells.failed, count(instance.failed));
    text(cells.latency, instance.latency_ms ? `${instance.latency_ms < 10 ? instance.latency_ms.toFixed(1) : count(instance.latency_ms)} ms` : "–");
    const draining = instance.state === "draining";
    this.#drain.dataset.verb = draining ? "undrain" : "drain";
    text(this.#drain, draining ? "Undrain" : "Drain");
    this.#eject.hidden = draining;
    if (!this.#eject.matches(":focus")) this.#eject.disabled = instance.state === "ejected";
  }
}

class ServiceCard {
  #rows = new Map();
  #busiest = 0;
  #body = make("tbody");
  #counts = make("span", { className: "counts" });
  #chips = make("span", { className: "chips" });
  #scroll;

  constructor(service) {
    this.name = service.name;
    const head = make("tr", {}, ...HEADINGS.map(([name, className = ""]) => make("th", { className, scope: "col" }, name)));
    this.element = make("details", { className: "card", open: !closed.has(service.name), ontoggle: () => (this.element.open ? closed.delete(this.name) : closed.add(this.name)) },
      make("summary", {}, make("h3", {}, service.name), this.#chips, this.#counts),
      (this.#scroll = make("div", { className: "scroll" }, make("table", {}, make("thead", {}, head), this.#body))));
  }

  update(service) {
    const chips = [service.balance, service.sticky && `sticky by ${service.sticky}`, `on drain: ${service.on_drain}`].filter(Boolean);
    if (this.#chips.childElementCount !== chips.length || this.#chips.textContent !== chips.join(" ")) {
      this.#chips.replaceChildren(...chips.flatMap((chip, i) => [i ? " " : "", make("span", { className: "chip" }, chip)]));
    }
    this.#scroll.hidden = !Object.values(service.states).some(Boolean);
    const states = STATES.filter((state) => service.states[state]);
    const pills = states.map((state) => make("span", { className: `pill ${state}` }, `${service.states[state]} ${state}`));
    if (!pills.length) pills.push(make("span", { className: "pill" }, service.known ? "no instances" : "no answer yet"));
    if (this.#counts.textContent !== pills.map((pill) => pill.textContent).join("")) this.#counts.replaceChildren(...pills);
  }

  async refresh() {
    if (!this.element.open) return;
    const { instances } = await get(`/v1/services/${segment(this.name)}/instances`);
    this.#busiest = Math.max(0, ...instances.map((instance) => instance.inflight));
    arrange(this.#body, this.#rows, instances, (instance) => `${instance.id} ${instance.address}`, (instance) => {
      const row = new InstanceRow(instance);
      return { element: row.element, update: (now) => row.update(now, this.#busiest) };
    });
  }
}

const place = document.getElementById("services");
const cards = new Map();

export async function showServices(services) {
  if (!services.length) {
    place.replaceChildren(make("p", { className: "card empty" }, "No services are configured."));
    cards.clear();
    return;
  }
  arrange(place, cards, services, (service) => service.name, (service) => new ServiceCard(service));
  await Promise.all([...cards.values()].map((card) => card.refresh()));
}
