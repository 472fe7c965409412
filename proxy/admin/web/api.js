// The admin API: calls with the token of this tab, and the stream of events.

const ask = document.getElementById("ask");
const KEY = "holdfast-token";
let asking = null;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function withToken(headers = {}) {
  const token = sessionStorage.getItem(KEY);
  return token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
}

// One question at a time, however many calls were refused meanwhile.
function askForToken() {
  if (asking) return asking;
  document.getElementById("ask-wrong").hidden = !sessionStorage.getItem(KEY);
  asking = new Promise((resolve) => {
    ask.addEventListener("cancel", (event) => event.preventDefault());
    ask.addEventListener("close", () => {
      const field = document.getElementById("token");
      sessionStorage.setItem(KEY, field.value);
      field.value = "";
      asking = null;
      resolve();
    }, { once: true });
    ask.showModal();
  });
  return asking;
}

async function send(path, options) {
  for (;;) {
    const used = sessionStorage.getItem(KEY);
    const response = await fetch(path, { ...options, headers: withToken(options.headers), cache: "no-store" });
    if (response.status !== 401) return response;
    // Another call may have asked in the meantime: then the new token is to be tried first.
    if (used === sessionStorage.getItem(KEY)) await askForToken();
  }
}

export async function call(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  const response = await send(path, options);
  const answer = await response.json();
  if (!response.ok) {
    throw new Refused(response.status, [answer.detail, ...(answer.problems ?? [])].join("\n"));
  }
  return answer;
}

export const get = (path) => call("GET", path);
export const segment = encodeURIComponent;

// Calls `take` with every event, for ever; `state` hears "live" and "broken off".
export async function follow(take, state) {
  let last = 0;
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const response = await send(`/v1/events?since=${last}`, { method: "GET" });
      if (!response.ok) throw new Refused(response.status, response.statusText);
      state("live");
      wait = 500;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const data = block.split("\n").find((line) => line.startsWith("data:"));
          if (!data) continue;
          const event = JSON.parse(data.slice(5));
          last = event.seq;
          take(event);
        }
      }
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof Refused)) throw error;
    }
    state("broken off");
    await new Promise((resolve) => setTimeout(resolve, wait * (0.5 + Math.random())));
  }
}
