// What a labeler did and the server has not confirmed yet. It outlives a lost network, a reload and a closed tab.
//
// An event is first written to localStorage, which is done when the call returns, then moved to IndexedDB, which has room. Where one of
// the two is missing the other one serves. The server keeps an event once however often it is sent (client_event_id), so that sending
// again is always safe; order matters, so that one batch is under way at a time.

const BATCH_EVENTS = 20;
const BATCH_BYTES = 48_000; // careful: fetch with keepalive takes 64 KiB at most, all requests under way together
const TIMEOUT = 20_000;
const FIRST_DELAY = 500;
const LAST_DELAY = 30_000;

export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID(); // not there on plain http outside localhost
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

// localStorage that may be forbidden or full.
export const kept = {
  get(key, otherwise = null) {
    try {
      return JSON.parse(localStorage.getItem(key)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try {
      if (value === null) localStorage.removeItem(key);
      else localStorage.setItem(key, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  },
};

// One request. status 0: no network. Never throws.
export async function call(path, { body, labeler, keepalive = false } = {}) {
  const headers = { Accept: "application/json" };
  if (labeler) headers["X-Humanward-Labeler"] = labeler; // refused where another tab has signed in as somebody else
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    const answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers, keepalive, redirect: "manual", credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(TIMEOUT),
    });
    if (answer.type === "opaqueredirect") return { status: 401, data: null, wait: 0 };
    const data = await answer.json().catch(() => null);
    return { status: answer.ok && data === null ? 0 : answer.status, data, wait: seconds(answer.headers.get("Retry-After")) };
  } catch {
    return { status: 0, data: null, wait: 0 };
  }
}

function seconds(header) {
  if (!header) return 0;
  const number = Number(header);
  return Number.isFinite(number) ? Math.max(0, number) : Math.max(0, (Date.parse(header) - Date.now()) / 1000) || 0;
}

function openDatabase(name) {
  return new Promise((resolve) => {
    try {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore("events", { keyPath: "order" });
      request.onsuccess = () => {
        request.result.onversionchange = () => request.result.close();
        resolve(request.result);
      };
      request.onerror = request.onblocked = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
}

function transaction(database, mode, work) {
  return new Promise((resolve) => {
    try {
      const made = database.transaction("events", mode);
      const request = work(made.objectStore("events"));
      made.oncomplete = () => resolve(request?.result ?? true);
      made.onerror = made.onabort = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
}

export class Outbox {
  // hooks.changed(): size or state is another. hooks.settled(event, result): the server took an event, or refused it for good.
  static async open(labeler, hooks) {
    const outbox = new Outbox(labeler, hooks, await openDatabase(`humanward ${labeler}`));
    await outbox.load();
    return outbox;
  }

  constructor(labeler, hooks, database) {
    Object.assign(this, { labeler, hooks, database });
    this.journal = `humanward:outbox:${labeler}`;
    this.items = []; // {order, event}, oldest first
    this.state = "saved"; // saved, saving, offline, busy, signed-out, other-labeler, error
    this.durable = true;
    this.failures = 0;
    this.notBefore = 0;
    this.timer = 0;
    this.underway = null;
    const again = () => document.visibilityState === "visible" && this.flush();
    addEventListener("online", () => this.flush({ now: true }));
    addEventListener("focus", again);
    document.addEventListener("visibilitychange", () => (document.visibilityState === "visible" ? again() : this.leave()));
    addEventListener("pagehide", () => this.leave());
  }

  get size() {
    return this.items.length;
  }

  async load() {
    const stored = (this.database && (await transaction(this.database, "readonly", (store) => store.getAll()))) || [];
    const known = new Map(this.items.map((item) => [item.event.client_event_id, item]));
    for (const item of [...stored, ...kept.get(this.journal, [])]) if (!known.has(item.event.client_event_id)) known.set(item.event.client_event_id, item);
    this.items = [...known.values()].sort((a, b) => a.order - b.order);
    this.tell(this.size ? "saving" : "saved");
  }

  add(event) {
    const last = this.items.at(-1)?.order ?? 0;
    const item = { order: Math.max(last + 1, Date.now() * 1000), event: { client_event_id: newId(), ...event } };
    this.items.push(item);
    const written = kept.set(this.journal, [...kept.get(this.journal, []), item]);
    this.moved = this.move(item, written);
    this.tell(this.state === "saved" ? "saving" : this.state);
    return item.event;
  }

  async move(item, written) {
    const stored = this.database && (await transaction(this.database, "readwrite", (store) => store.put(item)));
    if (stored) this.strike(item);
    this.durable = Boolean(stored || written);
    if (!this.durable) this.tell(this.state);
    // The server may have confirmed it while it was being written.
    if (stored && !this.items.includes(item)) transaction(this.database, "readwrite", (store) => store.delete(item.order));
  }

  strike(item) {
    const rest = kept.get(this.journal, []).filter((other) => other.event.client_event_id !== item.event.client_event_id);
    kept.set(this.journal, rest.length ? rest : null);
  }

  drop(item) {
    this.items = this.items.filter((other) => other !== item);
    this.strike(item);
    if (this.database) transaction(this.database, "readwrite", (store) => store.delete(item.order));
  }

  tell(state, detail = "") {
    this.state = state;
    this.detail = detail;
    this.hooks.changed?.();
  }

  // What was to be taken back never counted: its undo would take back something else.
  cancelUndo(questionId) {
    const item = this.items.find(({ event }) => event.kind === "undo" && event.question_id === questionId);
    if (item) this.drop(item);
  }

  // The oldest events. An undo travels alone: it must be known before whether what it takes back was accepted.
  batch() {
    const taken = [];
    let bytes = 0;
    for (const item of this.items) {
      bytes += JSON.stringify(item.event).length * 3; // careful: UTF-8 needs up to three bytes per unit
      const alone = item.event.kind === "undo" || taken[0]?.event.kind === "undo";
      if (taken.length && (alone || taken.length >= (this.most ?? BATCH_EVENTS) || bytes > BATCH_BYTES)) break;
      taken.push(item);
    }
    return { taken, keepalive: bytes <= BATCH_BYTES };
  }

  // Send until nothing is left or something is in the way. Resolves when it stops.
  flush({ now = false } = {}) {
    if (now) this.notBefore = 0;
    this.underway ??= this.exclusively(() => this.send()).finally(() => (this.underway = null));
    return this.underway;
  }

  // Tabs take turns; where the browser has no locks, sending the same event twice does no harm.
  exclusively(work) {
    return navigator.locks ? navigator.locks.request(`humanward send ${this.labeler}`, work) : work();
  }

  async send() {
    while (this.size && Date.now() >= this.notBefore) {
      const { taken, keepalive } = this.batch();
      const answer = await call("/api/events", { body: { events: taken.map((item) => item.event) }, labeler: this.labeler, keepalive });
      if (!this.take(taken, answer)) break;
    }
    if (this.size) this.retry();
  }

  take(taken, { status, data, wait }) {
    if (status === 200 && Array.isArray(data?.results)) {
      this.failures = 0;
      this.most = undefined;
      const results = new Map(data.results.map((result) => [result.client_event_id, result]));
      let stopped = "";
      for (const item of taken) {
        const result = results.get(item.event.client_event_id);
        if (result?.ok || result?.final) {
          this.drop(item);
          this.hooks.settled?.(item.event, result);
        } else stopped ||= result?.error ?? "the server did not answer for an event";
      }
      if (!stopped) this.tell(this.size ? "saving" : "saved");
      else this.postpone("error", stopped, 0);
      return !stopped;
    }
    if ([400, 413, 422].includes(status)) {
      if (taken.length > 1) {
        this.most = 1; // find the one that the server cannot read
        return true;
      }
      const error = typeof data?.error === "string" ? data.error : `the server refused it as malformed (${status})`;
      this.drop(taken[0]);
      this.hooks.settled?.(taken[0].event, { ok: false, final: true, error });
      this.tell(this.size ? "saving" : "saved");
      return true;
    }
    const states = { 0: "offline", 401: "signed-out", 403: "signed-out", 409: "other-labeler", 429: "busy", 503: "busy" };
    this.postpone(states[status] ?? "error", data?.error ?? (status in states ? "" : `the server answered ${status}`), wait);
    return false;
  }

  postpone(state, detail, wait) {
    const delay = Math.min(LAST_DELAY, FIRST_DELAY * 2 ** this.failures++) * (0.75 + Math.random() / 2);
    this.notBefore = Date.now() + Math.max(delay, wait * 1000);
    this.tell(state, detail);
  }

  retry() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), Math.max(50, this.notBefore - Date.now()));
  }

  // The page may go away now: hand the oldest events to the browser, which sends them even then. They stay stored until they are confirmed.
  leave() {
    if (!this.size || this.state === "signed-out" || this.state === "other-labeler") return;
    const { taken, keepalive } = this.batch();
    if (keepalive) call("/api/events", { body: { events: taken.map((item) => item.event) }, labeler: this.labeler, keepalive });
  }

  // One line for people.
  get message() {
    const n = this.size;
    const why = {
      saved: "", saving: "", offline: "no connection", busy: "the server is busy", "signed-out": "signed out",
      "other-labeler": "signed in as somebody else", error: this.detail || "not accepted yet",
    }[this.state];
    if (!n) return why || "all saved";
    return why ? `unsaved: ${n} (${why})` : `unsaved: ${n}`;
  }
}
