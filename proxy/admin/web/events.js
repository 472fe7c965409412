// The list of events, newest first.

import { follow } from "./api.js";
import { make, text } from "./widgets.js";

const MOST = 200;
const STATES = new Set(["ready", "starting", "draining", "ejected", "unhealthy", "gone"]);
const list = document.getElementById("events");
const pill = document.getElementById("events-state");

function word(value) {
  if (typeof value === "string" && STATES.has(value)) return make("span", { className: `pill ${value}` }, value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

function line(event) {
  const { seq, at, kind, service, instance, route, before, after, ...rest } = event;
  const title = kind === "lost" ? `${event.count} events were missed` : kind.replaceAll("_", " ");
  const time = new Date(at);
  const head = make("div", {}, make("time", { dateTime: at, title: at }, time.toLocaleTimeString()), make("b", {}, title));
  const facts = make("div", {});
  const subject = [service, instance, route].filter(Boolean).join(" · ");
  if (subject) facts.append(make("span", { className: "mono" }, subject), " ");
  if (before !== undefined && after !== undefined) facts.append(word(before), " → ", word(after), " ");
  const others = Object.entries(rest).filter(([name, value]) => name !== "count" && value !== null && value !== "");
  facts.append(make("span", { className: "quiet" }, others.map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ")));
  return make("li", {}, head, facts);
}

export function showEvents(changed) {
  follow(
    (event) => {
      list.prepend(line(event));
      while (list.childElementCount > MOST) list.lastChild.remove();
      changed();
    },
    (state) => {
      pill.className = `pill ${state === "live" ? "live" : "failed"}`;
      text(pill, state);
    },
  );
}
