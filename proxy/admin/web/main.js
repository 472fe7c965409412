// The page: asks for the state once a second, or at once when something has happened.

import { call, get } from "./api.js";
import { showEvents } from "./events.js";
import { showRoutes } from "./routes.js";
import { showServices } from "./services.js";
import { Line, Rate, act, arrange, count, make, rate, span, text } from "./widgets.js";

const $ = (id) => document.getElementById(id);
const lines = Object.fromEntries(["rate", "tunnels", "failed", "connections"].map((id) => [id, new Line($(`${id}-line`))]));
const rates = { requests: new Rate(), failed: new Rate(), tunnels: new Rate(), connections: new Rate() };
const registries = new Map();

function showTotals({ totals, services }) {
  const now = performance.now();
  const failed = services.reduce((sum, service) => sum + service.failed, 0);
  const perSecond = {
    requests: rates.requests.feed(totals.requests, now),
    failed: rates.failed.feed(failed, now),
    tunnels: rates.tunnels.feed(totals.tunnels, now),
    connections: rates.connections.feed(totals.connections, now),
  };
  text($("rate"), rate(perSecond.requests));
  text($("rate-note"), `${count(totals.requests)} so far, ${count(totals.retries)} retries`);
  text($("tunnels"), count(totals.tunnels_open));
  text($("tunnels-note"), `${rate(perSecond.tunnels)} new /s, ${count(totals.tunnels)} so far`);
  text($("failed"), rate(perSecond.failed));
  text($("failed-note"), `${count(failed)} so far, ${count(totals.refused)} requests refused`);
  $("failed").closest(".tile").classList.toggle("alarm", perSecond.failed > 0);
  text($("connections"), count(totals.connections_open));
  text($("connections-note"), `${rate(perSecond.connections)} new /s, ${count(totals.connections_refused)} refused`);
  lines.rate.push(perSecond.requests);
  lines.tunnels.push(totals.tunnels_open);
  lines.failed.push(perSecond.failed);
  lines.connections.push(totals.connections_open);
}

class RegistryLine {
  constructor() {
    this.pill = make("span", { className: "pill" });
    this.name = make("b", {});
    this.note = make("div", { className: "quiet" });
    this.element = make("li", {}, this.name, " ", this.pill, this.note);
  }

  update(registry) {
    text(this.name, registry.kind);
    text(this.pill, registry.state);
    this.pill.className = `pill ${registry.state}`;
    const notes = [registry.staleness >= 1 && `last known to be right ${span(registry.staleness)} ago`, registry.held && `${registry.held} missing instances are kept until that is certain`, !["live", "idle"].includes(registry.state) && registry.error];
    text(this.note, notes.filter(Boolean).join("; "));
  }
}

function showStatus(status) {
  const pulse = $("pulse");
  pulse.className = `pill ${status.ready ? "ready" : "unhealthy"}`;
  text(pulse, status.ready ? "ready" : status.reasons.join("; "));
  text($("about"), `version ${status.version} · process ${status.pid} · up ${span(status.uptime)}`);
  document.title = status.ready ? "holdfast" : "! holdfast";
  if (status.registries.length) arrange($("registries"), registries, status.registries, (registry) => registry.name, () => new RegistryLine());
  else $("registries").replaceChildren(make("li", { className: "quiet" }, "None: all instances are in the configuration."));
  showTotals(status);
}

let timer = null;
let asking = false;
let again = false;

async function refresh() {
  clearTimeout(timer);
  if (asking) { again = true; return; }
  asking = true;
  try {
    const status = await get("/v1/status");
    showStatus(status);
    await Promise.all([showServices(status.services), showRoutes()]);
  } catch (error) {
    $("pulse").className = "pill unhealthy";
    text($("pulse"), error instanceof TypeError ? "no answer" : error.message);
  } finally {
    asking = false;
    // Nobody looks: ask rarely, so that a forgotten tab costs next to nothing.
    timer = setTimeout(refresh, again ? 150 : document.hidden ? 15000 : 1000);
    again = false;
  }
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  $("theme").ariaLabel = `Colours: ${name || "as the system says"}`;
}

$("theme").addEventListener("click", () => {
  const order = ["", "light", "dark"];
  const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "") + 1) % order.length];
  localStorage.setItem("holdfast-theme", next);
  theme(next);
});
$("reload").addEventListener("click", () => act($("reload"), async () => {
  const { changes } = await call("POST", "/v1/reload");
  return changes.length ? changes.map((change) => change.line).join("\n") : "Nothing has changed in the file.";
}));
document.addEventListener("visibilitychange", () => document.hidden || refresh());

theme(localStorage.getItem("holdfast-theme") ?? "");
refresh();
showEvents(() => { clearTimeout(timer); timer = setTimeout(refresh, asking ? 1000 : 60); });
