/**
 * <otel-feedback token="…">: thumbs, or a scale, labels, a comment and a correction, for one answer of an LLM app.
 *
 *   <script type="module" src="/feedback/otel-feedback.js"></script>
 *   <otel-feedback token="of1_…" comment></otel-feedback>
 *
 * Attributes: `token` (from `issue_token`); `name` (default `rating`); `scale="1-5"` asks for a number instead of a thumb,
 * `labels="warm,cold"` for one or more words; `comment` and `correction` add a text each; `action` is where feedback
 * goes (default: where this file came from); `label-…` replaces a text, as in `label-up="Helpful"`.
 * Styles: parts `group`, `button`, `option`, `text`, `send`, `status`; variables `--of-accent`, `--of-ink`, `--of-line`,
 * `--of-ground`. Events: `feedback` with `detail.state`, one of `accepted`, `waiting`, `refused`.
 *
 * What cannot be sent is kept in this browser, and sent when it is online again, or at the next visit.
 */

const HERE = new URL(".", import.meta.url);
const STORE = "otel-feedback:";
const RETRY_MILLIS = [1000, 4000, 15000, 60000];
// A status that says "not now": anything else that is no success is final.
const NOT_NOW = new Set([408, 425, 429, 500, 502, 503, 504]);

const TEXTS = {
  group: "Was this answer helpful?",
  up: "Good answer",
  down: "Bad answer",
  comment: "Anything to add?",
  correction: "What should it have said?",
  send: "Send",
  accepted: "Thank you",
  removed: "Taken back",
  waiting: "Will be sent when you are online",
  refused: "Could not be sent",
};

/* ---- what this browser remembers: what was said, and what waits to be sent ---- */

const memory = new Map();

/** Read something that was kept; a browser that keeps nothing for us remembers until the page is left. */
function recall(key) {
  try {
    return JSON.parse(localStorage.getItem(STORE + key));
  } catch {
    return memory.get(key) ?? null;
  }
}

/** Keep something, or with `null` forget it. */
function keep(key, value) {
  memory.set(key, value);
  try {
    if (value === null) localStorage.removeItem(STORE + key);
    else localStorage.setItem(STORE + key, JSON.stringify(value));
  } catch {
    // Full, or not allowed: the page remembers.
  }
}

/** List what is kept under keys that begin so. */
function keysOf(prefix) {
  const found = new Set([...memory.keys()].filter((key) => memory.get(key) !== null));
  try {
    for (const key of Object.keys(localStorage)) if (key.startsWith(STORE)) found.add(key.slice(STORE.length));
  } catch {
    // Not allowed: the page's own is all there is.
  }
  return [...found].filter((key) => key.startsWith(prefix));
}

/** Make an id that nobody can guess (RFC 9562, version 4), also where the page is not secure. */
function randomId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** Name a judgement: one token, one name. The token's end is its signature, and all that is needed of it. */
const keyOf = (token, name) => `${token.slice(-22)}:${name}`;

/* ---- sending: one request at a time for each judgement, the newest state wins ---- */

const busy = new Set();

/** Send what waits of one judgement until nothing does; tell `element`, if it is still there. */
async function flush(key, attempt = 0) {
  if (busy.has(key)) return;
  const job = recall(`waits:${key}`);
  if (job === null) return;
  busy.add(key);
  let state = "waiting";
  try {
    state = await deliver(key, job);
  } catch {
    // No answer: it may have arrived, and the same id sent again is the same judgement.
  }
  busy.delete(key);
  const isNewer = recall(`waits:${key}`)?.stamp !== job.stamp;
  if (state !== "waiting" && !isNewer) keep(`waits:${key}`, null);
  if (state === "refused" && !isNewer) keep(`said:${key}`, null);
  document.dispatchEvent(new CustomEvent("otel-feedback", { detail: { key, state, isGone: job.gone !== null } }));
  if (isNewer) return flush(key);
  if (state === "waiting") setTimeout(() => flush(key, attempt + 1), RETRY_MILLIS[attempt] ?? RETRY_MILLIS.at(-1));
}

/** Send a judgement, or take it back; one whose id the server has not told yet is sent first, to learn it. */
async function deliver(key, { url, token, body, gone }) {
  let id = gone;
  if (body !== null) {
    const answer = await ask("POST", url, token, body);
    if (!answer.ok) return NOT_NOW.has(answer.status) ? "waiting" : "refused";
    id = (await answer.json()).id;
    settled(key, id);
  }
  if (gone === null) return "accepted";
  const { ok, status } = await ask("DELETE", `${url}/${id}`, token, null);
  return ok || status === 404 ? "accepted" : NOT_NOW.has(status) ? "waiting" : "refused";
}

/** Ask the feedback route. */
function ask(method, url, token, body) {
  const headers = { "content-type": "application/json", authorization: `Bearer ${token}` };
  return fetch(url, { method, headers, body: body === null ? undefined : JSON.stringify(body), keepalive: true });
}

/** Note under which id a judgement is kept: for a known user the server derives it. */
function settled(key, id) {
  const said = recall(`said:${key}`);
  if (said !== null) keep(`said:${key}`, { ...said, id, isKept: true });
}

/** Put a judgement's newest state in the way out, in the place of an older one. */
function submit(key, job) {
  keep(`waits:${key}`, { ...job, stamp: randomId() });
  return flush(key);
}

const flushAll = () => keysOf("waits:").forEach((key) => flush(key.slice("waits:".length)));
addEventListener("online", flushAll);
flushAll();

/* ---- the element ---- */

const SHEET = new CSSStyleSheet();
SHEET.replaceSync(`
  :host { display: block; color-scheme: light dark; font: inherit; color: var(--of-ink, inherit);
    --line: var(--of-line, color-mix(in srgb, currentColor 28%, transparent));
    --accent: var(--of-accent, light-dark(#0b6bcb, #7cb8ff)); max-width: 100%; }
  :host([hidden]) { display: none; }
  form { display: grid; gap: .6em; margin: 0; max-width: 28em; }
  fieldset { border: 0; margin: 0; padding: 0; min-width: 0; display: flex; flex-wrap: wrap; gap: .4em; align-items: center; }
  legend { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
  button, label.option { font: inherit; color: inherit; background: var(--of-ground, transparent); border: 1px solid var(--line);
    border-radius: .6em; padding: .35em .6em; min-width: 2.4em; min-height: 2.4em; cursor: pointer; display: inline-flex;
    align-items: center; justify-content: center; line-height: 1; box-sizing: border-box; }
  button:hover, label.option:hover { border-color: currentColor; }
  button[aria-pressed="true"], label.option:has(input:checked), button.send { border-color: var(--accent);
    background: color-mix(in srgb, var(--accent) 16%, transparent); color: var(--accent); }
  button:focus-visible, label.option:has(input:focus-visible), textarea:focus-visible { outline: 2px solid var(--accent);
    outline-offset: 2px; }
  label.option input { position: absolute; opacity: 0; pointer-events: none; }
  label.text { display: grid; gap: .3em; font-size: .9em; }
  textarea { font: inherit; color: inherit; background: var(--of-ground, transparent); border: 1px solid var(--line);
    border-radius: .6em; padding: .5em; min-height: 4.2em; resize: vertical; box-sizing: border-box; width: 100%; }
  .more { display: grid; gap: .6em; } .more[hidden] { display: none; }
  .send { justify-self: start; } svg { width: 1.15em; height: 1.15em; fill: currentColor; }
  .status { font-size: .85em; opacity: .8; min-height: 1.2em; margin: 0; }
  @media (prefers-reduced-motion: no-preference) { button, label.option { transition: background-color .12s, border-color .12s; } }
`);

const THUMB =
  "M2 21h3a1 1 0 0 0 1-1v-9a1 1 0 0 0-1-1H2v11zm20-10.2a2 2 0 0 0-2-2h-5.6l.9-4.1.03-.32a1.5 1.5 0 0 0-.44-1.06L13.8 2.2 " +
  "7.6 8.4A2 2 0 0 0 7 9.8V19a2 2 0 0 0 2 2h8.1a2 2 0 0 0 1.8-1.2l2.9-6.8a2 2 0 0 0 .2-.8v-1.4z";

/** Build an element; texts are only ever set as text. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Draw a thumb, up or down. */
function thumb(isUp) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", THUMB);
  if (!isUp) path.setAttribute("transform", "rotate(180 12 12)");
  svg.append(path);
  return svg;
}

class OtelFeedback extends HTMLElement {
  static observedAttributes = ["token", "name", "scale", "labels", "comment", "correction"];

  #root = this.attachShadow({ mode: "open" });
  #heard = (event) => this.#hear(event.detail);

  connectedCallback() {
    this.#root.adoptedStyleSheets = [SHEET];
    document.addEventListener("otel-feedback", this.#heard);
    this.#draw();
  }

  disconnectedCallback() {
    document.removeEventListener("otel-feedback", this.#heard);
  }

  attributeChangedCallback() {
    if (this.isConnected) this.#draw();
  }

  get #name() {
    return this.getAttribute("name") || "rating";
  }

  get #token() {
    return this.getAttribute("token") || "";
  }

  get #key() {
    return keyOf(this.#token, this.#name);
  }

  get #url() {
    return new URL(this.getAttribute("action") || HERE.href.replace(/\/$/, ""), location.href).href.replace(/\/$/, "");
  }

  get #scale() {
    const found = /^(-?\d+)-(\d+)$/.exec(this.getAttribute("scale") || "");
    return found === null ? null : [Number(found[1]), Number(found[2])];
  }

  get #labels() {
    const found = (this.getAttribute("labels") || "").split(",").map((label) => label.trim());
    return found.filter((label) => label !== "");
  }

  /** What was said here before, in this browser. */
  get #said() {
    return recall(`said:${this.#key}`);
  }

  #text(name) {
    return this.getAttribute(`label-${name}`) ?? TEXTS[name];
  }

  /** Draw everything anew from the attributes and from what was said. */
  #draw() {
    const more = make("div", { class: "more" }, ...this.#texts());
    const form = make("form", {}, this.#choice(), more, make("p", { class: "status", part: "status", role: "status" }));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(this.#collected());
    });
    this.#root.replaceChildren(form);
    this.#show();
  }

  /** Draw what is chosen from: thumbs, a scale or labels. */
  #choice() {
    const legend = make("legend", {}, this.#text("group"));
    const field = make("fieldset", { part: "group" }, legend);
    const [scale, labels] = [this.#scale, this.#labels];
    if (scale !== null) {
      for (let number = scale[0]; number <= scale[1]; number += 1) field.append(this.#option("radio", String(number)));
    } else if (labels.length > 0) {
      labels.forEach((label) => field.append(this.#option("checkbox", label)));
    } else {
      for (const isUp of [true, false]) {
        const words = this.#text(isUp ? "up" : "down");
        const button = make("button", { type: "button", part: "button", title: words, "aria-label": words }, thumb(isUp));
        button.dataset.value = String(isUp);
        button.addEventListener("click", () => this.#press(isUp));
        field.append(button);
      }
    }
    return field;
  }

  #option(type, words) {
    const input = make("input", { type, name: "value", value: words });
    input.addEventListener("change", () => this.#send(this.#collected()));
    if (type === "radio") {
      // A second click on what is chosen takes it back.
      input.addEventListener("click", () => input.value === String(this.#said?.value) && this.#retract());
    }
    return make("label", { class: "option", part: "option" }, input, words);
  }

  #texts() {
    const asked = ["comment", "correction"].filter((name) => this.hasAttribute(name));
    const fields = asked.map((name) => {
      const words = this.getAttribute(name) || this.#text(name);
      return make("label", { class: "text", part: "text" }, words, make("textarea", { name, maxlength: "10000" }));
    });
    if (asked.length === 0) return [];
    return [...fields, make("button", { class: "send", part: "send" }, this.#text("send"))];
  }

  /** Show what stands: what is pressed, chosen and written. */
  #show() {
    const said = this.#said;
    for (const button of this.#root.querySelectorAll("button[data-value]")) {
      button.setAttribute("aria-pressed", String(button.dataset.value === String(said?.value)));
    }
    for (const input of this.#root.querySelectorAll("input")) {
      input.checked = [said?.value].flat().map(String).includes(input.value);
    }
    for (const area of this.#root.querySelectorAll("textarea")) {
      if (said !== null) area.value = said[area.name] ?? "";
    }
    this.#root.querySelector(".more").hidden = said === null;
  }

  /** Read what is chosen and written now. */
  #collected() {
    const pressed = this.#root.querySelector('button[aria-pressed="true"]');
    const chosen = [...this.#root.querySelectorAll("input:checked")].map((input) => input.value);
    const found = {};
    if (pressed !== null) found.value = pressed.dataset.value === "true";
    else if (this.#scale !== null && chosen.length > 0) Object.assign(found, { value: Number(chosen[0]), scale: this.#scale });
    else if (chosen.length > 0) found.value = chosen;
    for (const area of this.#root.querySelectorAll("textarea")) {
      if (area.value.trim() !== "") found[area.name] = area.value.trim();
    }
    return found;
  }

  /** A thumb: another one replaces, the same one takes back. */
  #press(isUp) {
    if (this.#said?.value === isUp) this.#retract();
    else this.#send({ ...this.#collected(), value: isUp });
  }

  #send(found) {
    if (Object.keys(found).length === 0) return this.#said === null ? undefined : this.#retract();
    const id = this.#said?.id ?? randomId();
    keep(`said:${this.#key}`, { ...found, id, isKept: this.#said?.isKept ?? false });
    this.#show();
    return submit(this.#key, { url: this.#url, token: this.#token, body: this.#body(found, id), gone: null });
  }

  #retract() {
    const { id, isKept, ...found } = this.#said;
    keep(`said:${this.#key}`, null);
    this.#draw();
    const body = isKept ? null : this.#body(found, id);
    return submit(this.#key, { url: this.#url, token: this.#token, body, gone: id });
  }

  #body(found, id) {
    return { ...found, name: this.#name, id };
  }

  /** Tell the person, and the page, what became of what they said. */
  #hear({ key, state, isGone }) {
    if (key !== this.#key) return;
    if (state === "refused") this.#show();
    const words = state === "accepted" && isGone ? "removed" : state;
    this.#root.querySelector(".status").textContent = this.#text(words);
    this.dispatchEvent(new CustomEvent("feedback", { bubbles: true, composed: true, detail: { state, name: this.#name } }));
  }
}

customElements.define("otel-feedback", OtelFeedback);
