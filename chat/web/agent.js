import { Link } from "./link.js";
import { Log, compose } from "./log.js";
import { apply, language, text, toggle } from "./texts.js";

const TOKEN = "holdfast-agent-token";
const REFRESH = 2000;
const $ = (id) => document.getElementById(id);

const log = new Log({ box: $("log"), list: $("messages"), newer: $("newer"), mine: "agent" });
let token = sessionStorage.getItem(TOKEN);
let link = null;
let sessions = [];
// The session that is looked at; joined when the link is in it, otherwise only read.
let shown = null;
let shownSeq = 0;
let typingUntil = 0;

const joined = () => shown !== null && link?.session === shown;

async function ask(path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { headers });
  if (response.status === 401) $("gate").hidden = false;
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

async function refresh() {
  try {
    sessions = (await ask("api/sessions")).sessions;
    renderList();
    if (shown !== null && !joined()) await readOn();
  } catch {
    // The link's own state tells that the server cannot be reached; the list is asked for again.
  }
}

async function readOn() {
  const session = shown;
  const found = await ask(`api/sessions/${session}/messages?after=${shownSeq}`);
  if (session !== shown || joined()) return;
  for (const message of found.messages) {
    if (message.seq <= shownSeq) continue;
    shownSeq = message.seq;
    log.add(message);
  }
}

function ago(iso) {
  const seconds = Math.max(0, (Date.now() - new Date(iso)) / 1000);
  const [amount, unit] =
    seconds < 60 ? [seconds, "second"] : seconds < 3600 ? [seconds / 60, "minute"] : [seconds / 3600, "hour"];
  return new Intl.RelativeTimeFormat(language, { style: "narrow" }).format(-Math.floor(amount), unit);
}

function tag(session) {
  const label = document.createElement("span");
  const ended = session.state === "END";
  label.className = `tag ${ended ? "" : session.desk}`;
  const names = { bot: "deskBot", waiting: "deskWaiting", agent: "deskAgent" };
  label.textContent = text(ended ? "endedTag" : names[session.desk]);
  return label;
}

const nameOf = (id) => `${text("user")} ${id.slice(0, 6)}`;

function entry(session) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-current", String(session.id === shown));
  const row = document.createElement("span");
  row.className = "row";
  const name = document.createElement("b");
  name.textContent = nameOf(session.id);
  button.title = session.id;
  const time = document.createElement("time");
  time.textContent = ago(session.waiting_since ?? session.active);
  row.append(name, tag(session), time);
  const said = document.createElement("span");
  said.className = "said";
  said.textContent = session.last ? session.last.text : "";
  button.append(row, said);
  button.addEventListener("click", () => choose(session.id));
  item.append(button);
  return item;
}

function renderList() {
  const focused = document.activeElement?.closest("#sessions li");
  const index = focused ? [...$("sessions").children].indexOf(focused) : -1;
  $("sessions").replaceChildren(...sessions.map(entry));
  $("sessions").children[index]?.firstChild.focus();
  $("none").hidden = sessions.length > 0;
  render();
}

function render() {
  const state = link?.state ?? "connecting";
  $("dot").dataset.state = state;
  $("status").textContent =
    text(state === "waiting" ? "waitingState" : state) + (state === "open" ? ` · ${link.instance}` : "");
  $("language").textContent = text("other");
  document.title = text("console");
  $("console").classList.toggle("talking", shown !== null);
  $("choose").hidden = shown !== null;
  $("talk").hidden = shown === null;
  const session = sessions.find((each) => each.id === shown);
  $("name").textContent = shown === null ? "" : nameOf(shown);
  $("about").replaceChildren(...(session ? [tag(session)] : []));
  const over = session?.state === "END";
  $("join").hidden = joined() || over;
  $("join").disabled = state !== "open";
  $("leave").hidden = !joined() || over;
  $("text").disabled = !joined() || over;
  $("send").disabled = !joined() || over;
  $("text").placeholder = text(joined() ? "write" : "joinFirst");
  $("send").ariaLabel = text("send");
  $("typing").hidden = !(joined() && Date.now() < typingUntil);
}

function choose(session) {
  if (shown === session) return;
  shown = session;
  shownSeq = 0;
  log.clear();
  // Being in a session and leaving its page is not handing it back; joining it again shows all of it.
  if (joined()) link.join(session);
  else refresh();
  renderList();
}

function connect() {
  link = new Link({ role: "agent", token });
  link.addEventListener("state", render);
  link.addEventListener("reset", () => log.clear());
  link.addEventListener("welcome", () => {
    // Out of a session the messages are read anew.
    shownSeq = 0;
    for (const said of link.pending) if (said.session === link.session) log.expect(said);
    refresh();
  });
  link.addEventListener("message", ({ detail }) => {
    if (!joined()) return;
    if (detail.from === "user") typingUntil = 0;
    shownSeq = detail.seq;
    log.add(detail);
    render();
  });
  link.addEventListener("pending", ({ detail }) => log.expect(detail));
  link.addEventListener("desk", refresh);
  link.addEventListener("typing", () => {
    typingUntil = Date.now() + 4000;
    render();
    log.follow();
    setTimeout(render, 4100);
  });
  link.addEventListener("refused", ({ detail }) => {
    if (detail.id && !link.pending.some((said) => said.id === detail.id)) log.drop(detail.id);
    $("notice").textContent = text(detail.code) ?? detail.detail;
    $("notice").hidden = false;
    setTimeout(() => ($("notice").hidden = true), 4000);
  });
  link.open();
}

compose({
  form: $("composer"),
  field: $("text"),
  onSend: (words) => link.say(words),
  onTyping: () => link.send({ type: "typing" }),
});
$("join").addEventListener("click", () => link.join(shown));
$("leave").addEventListener("click", () => link.send({ type: "bye" }));
$("back").addEventListener("click", () => {
  shown = null;
  renderList();
});
$("language").addEventListener("click", () => {
  toggle();
  renderList();
});
$("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem(TOKEN, token);
  location.reload();
});

apply();
connect();
refresh();
setInterval(refresh, REFRESH);
