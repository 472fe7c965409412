// The connection to the chat: one that outlives sockets, instances and page reloads.
//
// What is said is kept until it is acknowledged, and sent again, under the same id, over every new socket; the
// server drops what it has. What is received is shown once and in order, because every new socket begins after
// the last message that was received over the old one.

const FIRST_DELAY = 300;
const MOST_DELAY = 15_000;
const RESTARTING = new Set([1001, 1012]);

function randomId() {
  // crypto.randomUUID exists only on secure origins.
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => b.toString(16).padStart(2, "0")).join("");
}

// A subprotocol may hold few characters, and unlike the URL it stands in no log.
function encoded(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

export class Link extends EventTarget {
  // Events: state, reset (forget what is shown), welcome, message, desk, typing, refused, pending.
  constructor({ role, session = null, token = null }) {
    super();
    this.role = role;
    this.session = session;
    this.token = token;
    this.state = "connecting";
    this.instance = null;
    this.seq = 0;
    this.pending = this.#load();
    addEventListener("online", () => this.#retryNow());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.#retryNow());
  }

  #socket = null;
  #timer = 0;
  #failures = 0;
  #resend = 0;
  #joining = null;

  open() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#become("connecting");
    const url = new URL("ws", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const query = { role: this.role, last_seq: this.seq };
    if (this.session) query.session = this.session;
    url.search = new URLSearchParams(query);
    const socket = (this.#socket = new WebSocket(url, this.token ? ["holdfast-chat", `holdfast-token.${encoded(this.token)}`] : []));
    socket.onmessage = (event) => socket === this.#socket && this.#take(JSON.parse(event.data));
    socket.onclose = (event) => socket === this.#socket && this.#closed(event);
  }

  say(text) {
    const said = { id: randomId(), text, session: this.session };
    this.pending.push(said);
    this.#store();
    this.#emit("pending", said);
    if (this.state === "open") this.#sendSaid(said);
  }

  send(frame) {
    if (this.state === "open") this.#send(frame);
  }

  // An agent takes a session over, and sees it from its beginning.
  join(session) {
    this.#joining = session;
    this.send({ type: "join", session });
  }

  // Leaves for good: no socket is opened any more.
  end() {
    this.pending = [];
    this.#store();
    this.#become("ended");
    clearTimeout(this.#timer);
  }

  #send(frame) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }

  #take(frame) {
    switch (frame.type) {
      case "welcome":
        // After a migration behind the proxy a second welcome comes over the same socket.
        this.#welcome(frame);
        break;
      case "message":
        // What still comes from the session that is being left, or twice from the one that is joined again.
        if (this.#joining) break;
        this.#settle(frame.id, frame.from === this.role);
        if (frame.seq <= this.seq) break;
        if (frame.seq > this.seq + 1) {
          this.#reopen();
          break;
        }
        this.seq = frame.seq;
        this.#emit("message", frame);
        break;
      case "ack":
        this.#settle(frame.id, true);
        break;
      case "state":
        this.#emit("desk", frame);
        break;
      case "error":
        if (["rate_limited", "unavailable"].includes(frame.code)) this.#sendLater();
        else if (frame.id) this.#settle(frame.id, true);
        else this.#joining = null;
        this.#emit("refused", frame);
        break;
      default:
        this.#emit(frame.type, frame);
    }
  }

  #welcome(frame) {
    const joined = this.#joining !== null && frame.session === this.#joining;
    if (joined || frame.session !== this.session || frame.seq < this.seq) {
      this.seq = 0;
      this.#emit("reset");
    }
    this.session = frame.session;
    this.instance = frame.instance;
    this.#failures = 0;
    this.#become("open");
    this.#emit("welcome", frame);
    if (joined) this.#joining = null;
    else if (this.#joining) this.#send({ type: "join", session: this.#joining });
    if (frame.session && frame.state !== "END") this.#sendPending();
  }

  #settle(id, mine) {
    if (!mine || !this.pending.some((said) => said.id === id)) return;
    this.pending = this.pending.filter((said) => said.id !== id);
    this.#store();
  }

  #sendSaid({ id, text, session }) {
    // An agent may be in another session by now; then it waits for the return.
    if (session === null || session === this.session) this.#send({ type: "message", id, text });
  }

  #sendPending() {
    for (const said of this.pending) this.#sendSaid(said);
  }

  #sendLater() {
    if (this.#resend) return;
    this.#resend = setTimeout(() => {
      this.#resend = 0;
      if (this.state === "open") this.#sendPending();
    }, 1000 + Math.random() * 1000);
  }

  #reopen() {
    const socket = this.#socket;
    this.#socket = null;
    socket.close();
    this.open();
  }

  #closed(event) {
    if (this.state === "ended") return;
    // Announced restarts are over quickly, and everybody comes at once: a short wait, but not the same for all.
    const planned = RESTARTING.has(event.code) && this.#failures === 0;
    const most = planned ? 400 : Math.min(MOST_DELAY, FIRST_DELAY * 2 ** this.#failures);
    this.#failures += 1;
    this.#become(navigator.onLine === false ? "offline" : "waiting");
    this.#timer = setTimeout(() => this.open(), planned ? 40 + Math.random() * most : most * (0.5 + Math.random() / 2));
  }

  #retryNow() {
    if (this.#timer && (this.state === "waiting" || this.state === "offline")) this.open();
  }

  #become(state) {
    if (this.state === "ended") return;
    this.state = state;
    this.#emit("state", state);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // Of this tab alone, so that two tabs do not send each other's words.
  #load() {
    try {
      return JSON.parse(sessionStorage.getItem(`holdfast-pending-${this.role}`)) ?? [];
    } catch {
      return [];
    }
  }

  #store() {
    try {
      sessionStorage.setItem(`holdfast-pending-${this.role}`, JSON.stringify(this.pending));
    } catch {
      // Private windows may refuse; what is pending then lives as long as the page.
    }
  }
}
