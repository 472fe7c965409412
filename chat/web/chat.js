import { Link } from "./link.js";
import { Log, compose } from "./log.js";
import { apply, text, toggle } from "./texts.js";

const KEY = "holdfast-session";
const $ = (id) => document.getElementById(id);

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function store(session) {
  try {
    if (session) localStorage.setItem(KEY, session);
    else localStorage.removeItem(KEY);
  } catch {
    // Then a reload begins a new conversation.
  }
}

const link = new Link({ role: "user", session: stored() });
const log = new Log({ box: $("log"), list: $("messages"), newer: $("newer"), mine: "user" });
let desk = "bot";
let owed = false;
let typingUntil = 0;
let noticeTimer = 0;

function render() {
  const name = link.state === "waiting" ? "waitingState" : link.state;
  $("dot").dataset.state = link.state;
  $("status").textContent = text(name);
  $("instance").textContent = link.instance && link.state === "open" ? `${text("served")} ${link.instance}` : "";
  $("language").textContent = text("other");
  $("text").placeholder = text("write");
  $("send").ariaLabel = text("send");
  $("human").textContent = text({ bot: "human", waiting: "waiting", agent: "withAgent" }[desk]);
  $("human").disabled = desk !== "bot" || link.state !== "open";
  $("human").classList.toggle("on", desk !== "bot");
  const ended = link.state === "ended";
  $("composer").hidden = ended;
  $("again").hidden = !ended;
  $("end").hidden = ended || link.seq === 0;
  $("hello").hidden = link.seq > 0 || link.pending.length > 0;
  document.title = text("title");
  showTyping();
}

function showTyping() {
  // The assistant is at it as long as it owes a reply; a human only while the keys move.
  const shown = link.state === "open" && ((owed && desk !== "agent") || Date.now() < typingUntil);
  if ($("typing").hidden === !shown) return;
  $("typing").hidden = !shown;
  if (shown) log.follow();
}

function suggest() {
  $("chips").replaceChildren(
    ...text("suggestions").map((words) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.textContent = words;
      chip.addEventListener("click", () => link.say(words));
      return chip;
    }),
  );
}

function notice(words) {
  clearTimeout(noticeTimer);
  $("notice").textContent = words;
  $("notice").hidden = false;
  noticeTimer = setTimeout(() => ($("notice").hidden = true), 4000);
}

function take(frame) {
  desk = frame.desk ?? desk;
  owed = frame.state === "AWAIT_NLP";
  if (frame.state === "END") {
    for (const said of link.pending) log.drop(said.id);
    link.end();
    store(null);
  }
  render();
}

link.addEventListener("state", render);
link.addEventListener("reset", () => log.clear());
link.addEventListener("welcome", ({ detail }) => {
  for (const said of link.pending) log.expect(said);
  store(detail.session);
  take(detail);
});
link.addEventListener("message", ({ detail }) => {
  if (detail.from !== "user") typingUntil = 0;
  log.add(detail);
  render();
});
link.addEventListener("pending", ({ detail }) => {
  log.expect(detail);
  render();
});
link.addEventListener("desk", ({ detail }) => take(detail));
link.addEventListener("typing", () => {
  typingUntil = Date.now() + 4000;
  showTyping();
  setTimeout(showTyping, 4100);
});
link.addEventListener("refused", ({ detail }) => {
  if (detail.id && !link.pending.some((said) => said.id === detail.id)) log.drop(detail.id);
  notice(text(detail.code) ?? detail.detail);
});

compose({
  form: $("composer"),
  field: $("text"),
  onSend: (words) => link.say(words),
  onTyping: () => link.send({ type: "typing" }),
});
$("human").addEventListener("click", () => link.send({ type: "agent" }));
$("end").addEventListener("click", () => confirm(text("confirmEnd")) && link.send({ type: "bye" }));
$("again").addEventListener("click", () => location.reload());
$("language").addEventListener("click", () => {
  toggle();
  suggest();
  render();
});

apply();
suggest();
render();
link.open();
