// The list of messages, as both pages show it.

import { language, text } from "./texts.js";

const SAME_BREATH = 5 * 60_000;

export class Log {
  constructor({ box, list, newer, mine }) {
    this.box = box;
    this.list = list;
    this.newer = newer;
    this.mine = mine;
    this.waiting = new Map();
    this.last = null;
    newer.addEventListener("click", () => this.#toEnd());
    box.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // A keyboard that opens, a turned phone: who was at the end stays there.
    new ResizeObserver(() => this.#sticks && this.#toEnd()).observe(box);
  }

  #sticks = true;

  clear() {
    this.list.replaceChildren();
    this.waiting.clear();
    this.last = null;
    this.newer.hidden = true;
  }

  // A message of one's own that the server has not confirmed yet.
  expect({ id, text: words }) {
    if (this.waiting.has(id)) return;
    const item = this.#item("mine pending", words, text("sending"));
    this.waiting.set(id, item);
    this.list.append(item);
    this.#toEnd();
  }

  add(message) {
    const follow = this.#sticks;
    const mine = message.from === this.mine;
    if (mine && this.waiting.has(message.id)) {
      this.waiting.get(message.id).remove();
      this.waiting.delete(message.id);
    }
    const at = new Date(message.at);
    const before = this.last;
    if (!before || before.at.toDateString() !== at.toDateString()) this.#place(this.#day(at));
    const system = message.from === "bot" && message.reply_to === undefined;
    const joined = before && before.from === message.from && !before.system && at - before.at < SAME_BREATH;
    const kind = system ? "system" : mine ? "mine" : message.from;
    const time = at.toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit" });
    const item = this.#item(`${kind} last`, message.text, mine ? `${time} ✓` : time);
    if (joined && !system) before.item.classList.remove("last");
    else item.classList.add("first");
    if (!joined && !mine && !system) {
      const who = document.createElement("span");
      who.className = "who";
      who.textContent = text(message.from);
      item.prepend(who);
    }
    this.#place(item);
    this.last = { from: message.from, at, item, system };
    if (follow || mine) this.#toEnd();
    else this.newer.hidden = false;
  }

  drop(id) {
    this.waiting.get(id)?.remove();
    this.waiting.delete(id);
  }

  // After something below the messages has grown.
  follow() {
    if (this.#sticks) this.#toEnd();
  }

  #place(item) {
    // What is confirmed comes before what is still on its way.
    this.list.insertBefore(item, this.waiting.values().next().value ?? null);
  }

  #item(kind, words, meta) {
    const item = document.createElement("li");
    item.className = kind;
    const bubble = document.createElement("div");
    bubble.className = "bubble";
    bubble.textContent = words;
    const small = document.createElement("span");
    small.className = "meta";
    small.textContent = meta;
    item.append(bubble, small);
    return item;
  }

  #day(at) {
    const item = document.createElement("li");
    item.className = "day";
    const today = at.toDateString() === new Date().toDateString();
    item.textContent = today ? text("today") : at.toLocaleDateString(language, { dateStyle: "medium" });
    return item;
  }

  #scrolled() {
    this.#sticks = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 80;
    if (this.#sticks) this.newer.hidden = true;
  }

  #toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
    this.#sticks = true;
    this.newer.hidden = true;
  }
}

// A text field that grows, sends on Enter (not while an input method composes), and says that one is typing.
export function compose({ form, field, onSend, onTyping }) {
  let told = 0;
  const fit = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
  };
  field.addEventListener("input", () => {
    fit();
    if (field.value.trim() && Date.now() - told > 2500) {
      told = Date.now();
      onTyping();
    }
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const words = field.value.trim();
    if (!words) return;
    field.value = "";
    fit();
    onSend(words);
    field.focus();
  });
}
