// The labelling page: a question, an answer by key or click, the next question at once. The network is never waited for.

import { Keys, nameOf } from "./keys.js";
import { KINDS } from "./kinds.js";
import { call, kept, Outbox } from "./outbox.js";
import { anySheetOpen, helpSheet, readSheet, reasonSheet, Settings } from "./overlays.js";
import { buildCards, showPrompt, showTexts } from "./reading.js";
import { oneTab } from "./tabs.js";
import { element, plural } from "./text.js";

const WANT = 2; // the question shown and the next one
const FAST = 4; // seconds: whoever answers faster gets one more ahead, or a slow answer of the server would be waited for
const RENEW = 120_000; // questions are asked for again, which renews their leases
const AWAY = 900_000; // nobody touched the page: let the leases go to others
const MOST_PAST = 200;

const byId = (id) => document.getElementById(id);
const desk = byId("desk");
const labeler = desk.dataset.labeler;
const keyOf = (question) => `${question.id} ${question.attempt}`;

// Seconds for which a question was on a visible page.
class Clock {
  constructor(seconds = 0) {
    this.before = seconds * 1000;
    this.since = null;
  }
  run(on) {
    if (on === (this.since !== null)) return;
    if (!on) this.before += performance.now() - this.since;
    this.since = on ? performance.now() : null;
  }
  get seconds() {
    return Math.round(this.before + (this.since === null ? 0 : performance.now() - this.since)) / 1000;
  }
}

class Desk {
  queue = []; // questions that wait: {question, answer?, state?, comment?, confidence?, seconds?}
  past = []; // what was done on this page, for undo without the network
  answered = new Set(); // question and attempt: a late answer of the server may still name them
  current = null;
  active = false;
  progress = { done: 0, session_done: 0, left: null, goal: Number(desk.dataset.goal) || 0, pace_seconds: null };
  times = [];
  lastTouch = 0;
  draftKey = `humanward:draft:${labeler}`;
  readKey = `humanward:read:${labeler}`;

  async start() {
    this.settings = new Settings((name) => this.settingChanged(name));
    this.keys = new Keys(JSON.parse(desk.dataset.keys));
    this.texts = new Map([[desk.dataset.instructions, byId("instructions-text").textContent]]);
    this.openHelp = helpSheet(this.keys, this.settings);
    this.askSkip = reasonSheet("skip");
    this.askFlag = reasonSheet("flag");
    this.read = readSheet();
    this.listen();
    this.outbox = await Outbox.open(labeler, { changed: () => this.showSaved(), settled: (event, result) => this.settled(event, result) });
    this.showSaved();
    this.outbox.flush();
    this.takeOver = oneTab(labeler, () => this.gained(), () => this.lost());
    setInterval(() => this.active && document.visibilityState === "visible" && performance.now() - this.lastTouch < AWAY && this.refill(), RENEW);
  }

  // One tab asks

  async gained() {
    this.active = true;
    byId("take-over").hidden = true;
    await this.outbox?.load();
    this.wait("Fetching a question …");
    this.refill();
  }

  lost() {
    this.active = false;
    this.saveDraft();
    this.queue = [];
    this.current = null;
    this.wait("You are labelling in another tab", "Close it, or go on here. Nothing is lost either way.");
    byId("take-over").hidden = false;
  }

  // Questions

  async refill() {
    if (!this.active || (this.refilling && (this.refillAgain = true))) return;
    this.refilling = true;
    clearTimeout(this.pollTimer);
    try {
      do {
        this.refillAgain = false;
        await this.outbox.flush(); // first, or the answered question would come again
        this.received(await call("/api/questions", { body: { want: WANT + (this.pace < FAST) }, labeler }));
      } while (this.refillAgain && this.active);
    } finally {
      this.refilling = false;
    }
  }

  received({ status, data, wait }) {
    if (!this.active) return;
    if (status !== 200 || !Array.isArray(data?.questions)) return this.trouble(status, data, wait);
    this.failures = 0;
    if (!this.outbox.size) this.outbox.tell("saved"); // signed in again
    this.merge(data.questions);
    const unsent = this.outbox.items.reduce((n, { event }) => n + (event.kind === "label") - (event.kind === "undo"), 0);
    const { progress } = data;
    this.progress = { ...progress, done: progress.done + unsent, session_done: progress.session_done + unsent };
    this.showProgress();
    if (this.current) return;
    if (this.queue.length) return this.next();
    this.polls = (this.polls ?? 0) + 1;
    const line = `${data.waiting || "There is no question for you at this moment."} New ones appear here by themselves.`;
    this.wait("Nothing to do now", this.outbox.size ? `${line} Your last answers are still being saved.` : line);
    this.poll(Math.min(30_000, 1_500 * 1.4 ** this.polls));
  }

  trouble(status, data, wait) {
    if (status === 401 || status === 403) this.outbox.tell("signed-out");
    if (status === 409) this.outbox.tell("other-labeler");
    this.failures = (this.failures ?? 0) + 1;
    this.poll(Math.max(wait * 1000, Math.min(20_000, 500 * 2 ** this.failures) * (0.75 + Math.random() / 2)));
    if (this.current) return;
    const lines = {
      0: ["No connection", "The next question comes when the server can be reached again."],
      401: ["You are signed out", "Open a new invite link in this browser; this page goes on by itself."],
      409: ["Somebody else is signed in", "In this browser somebody else is signed in now. Reload the page to label as that person."],
      429: ["Too fast for the server", "The next question comes in a moment."],
    };
    this.wait(...(lines[status] ?? lines[status === 403 ? 401 : -1] ?? ["The server cannot answer now", data?.error ?? "It is asked again by itself."]));
  }

  poll(delay) {
    clearTimeout(this.pollTimer);
    this.pollTimer = setTimeout(() => (document.visibilityState === "visible" ? this.refill() : this.poll(delay)), delay);
  }

  merge(questions) {
    const pending = new Set();
    for (const { event } of this.outbox.items) {
      if (event.kind === "undo") pending.delete(event.question_id);
      else if (event.kind !== "flag" && event.kind !== "comment") pending.add(event.question_id);
    }
    const known = new Set([this.current?.question.id, ...this.queue.map((item) => item.question.id)]);
    for (const question of questions) {
      if (!known.has(question.id) && !pending.has(question.id) && !this.answered.has(keyOf(question)) && KINDS[question.kind]) this.queue.push({ question });
    }
    const draft = kept.get(this.draftKey);
    if (!this.current && draft) {
      const at = this.queue.findIndex(({ question }) => keyOf(question) === draft.key);
      if (at >= 0) this.queue.unshift(...this.queue.splice(at, 1)); // the one that was begun comes first
    }
  }

  async next() {
    const item = this.queue.shift();
    if (!item) {
      this.current = null;
      this.wait("Fetching the next question …");
      return;
    }
    this.current = item;
    const version = item.question.instructions;
    if (version && !kept.get(this.readKey, []).includes(version) && !this.readNow?.has(version)) await this.acknowledge(version);
    if (this.current === item) this.render(item);
  }

  async acknowledge(version) {
    this.wait("New instructions", "They are being fetched.");
    while (!this.texts.has(version)) {
      const { status, data } = await call(`/api/instructions?version=${encodeURIComponent(version)}`, { labeler });
      if (status === 200) this.texts.set(version, data.text);
      else await new Promise((resolve) => setTimeout(resolve, 2000));
    }
    const former = kept.get(this.readKey, []);
    await this.read(this.texts.get(version), former.length ? "They have changed since you last read them." : "Read them once before you begin; they stay beside the questions.");
    kept.set(this.readKey, [...former, version].slice(-50));
    (this.readNow ??= new Set()).add(version); // where the browser keeps nothing
  }

  // Showing

  render(item) {
    const { question } = item;
    const draft = kept.get(this.draftKey);
    const begun = draft?.key === keyOf(question) ? draft : item;
    const widget = new KINDS[question.kind](question, () => this.answerChanged());
    if (begun.state !== undefined) widget.restore(begun.state);
    else if (item.answer !== undefined && item.answer !== null) widget.from(item.answer);
    Object.assign(item, { widget, clock: new Clock(begun.seconds) });
    byId("waiting").hidden = true;
    byId("question").hidden = false;
    byId("question-title").textContent = widget.title;
    showPrompt(question, this.settings);
    item.cards = buildCards(question, widget);
    showTexts(item, this.settings);
    this.keys.print(byId("question"));
    this.setConfidence(begun.confidence ?? null);
    byId("comment").value = begun.comment ?? "";
    this.openComment(byId("comment").value !== "");
    this.showInstructions();
    item.clock.run(document.visibilityState === "visible");
    scrollTo(0, 0);
    byId("question-title").focus({ preventScroll: true });
    this.showProgress();
    const number = this.progress.session_done + 1;
    this.say(`${this.spoken ?? ""} Question ${number}. ${widget.title} ${question.responses.length > 1 ? `${question.responses.length} responses.` : ""}`.trim());
    this.spoken = "";
  }

  showInstructions() {
    const version = this.current?.question.instructions ?? desk.dataset.instructions;
    const text = this.texts.get(version) ?? "";
    byId("instructions-text").textContent = text;
    byId("instructions-version").textContent = version.slice(0, 8);
    const on = this.settings.get("beside") && text !== "";
    byId("instructions").hidden = !on;
    byId("instructions-button").hidden = text === "";
    byId("instructions-button").setAttribute("aria-pressed", String(on));
  }

  wait(title, text = "") {
    this.current?.clock?.run(false);
    const waiting = byId("waiting");
    const changed = byId("waiting-title").textContent !== title || waiting.hidden;
    byId("question").hidden = true;
    waiting.hidden = false;
    byId("waiting-title").textContent = title;
    byId("waiting-text").textContent = text;
    byId("look-again").hidden = byId("waiting-undo").hidden = !this.active;
    if (!changed) return;
    this.say(`${title}. ${text}`);
    byId("waiting-title").focus({ preventScroll: true });
  }

  // Median seconds of the last answers on this page; undefined before there are three.
  get pace() {
    const sorted = [...this.times].sort((a, b) => a - b);
    return sorted.length > 2 ? sorted[sorted.length >> 1] : undefined;
  }

  showProgress() {
    const { done, session_done, left, pace_seconds } = this.progress;
    const goal = this.settings.get("goal") ?? this.progress.goal ?? 0;
    const bar = byId("goal-bar");
    bar.hidden = !goal;
    if (goal) Object.assign(bar, { max: goal, value: Math.min(goal, session_done) });
    const reached = goal && session_done >= goal ? ", goal reached" : "";
    byId("count").textContent = goal ? `${session_done} of ${goal}${reached}` : plural(session_done, "answer");
    const pace = this.pace ?? pace_seconds;
    const parts = [];
    if (pace) parts.push(`${pace < 10 ? pace.toFixed(1) : Math.round(pace)} s each`);
    if (pace && goal > session_done) parts.push(`about ${Math.max(1, Math.round(((goal - session_done) * pace) / 60))} min to the goal`);
    if (left !== null && left !== undefined && left < 1000) parts.push(`${left} left for you`);
    if (done > session_done) parts.push(`${done.toLocaleString("en")} in all`);
    byId("pace").textContent = parts.join(" · ");
  }

  showSaved() {
    const { outbox } = this;
    if (!outbox) return;
    const saved = byId("saved");
    if (["offline", "busy"].includes(outbox.state) && saved.dataset.state !== outbox.state) this.say(`${outbox.message}. Go on: everything is kept here.`);
    saved.textContent = outbox.message;
    saved.dataset.state = outbox.state;
    const n = outbox.size ? `${plural(outbox.size, "thing")} you did ${outbox.size === 1 ? "is" : "are"} kept in this browser. ` : "";
    const lines = {
      "signed-out": `You are signed out. ${n}Open a new invite link in this browser, then come back to this page.`,
      "other-labeler": `Somebody else is signed in in this browser. ${n}It is sent when you, ${labeler}, are signed in again.`,
      error: `The server does not take an answer yet: ${outbox.detail}. ${n}`,
    };
    this.standing("outbox", lines[outbox.state] ?? "");
    this.standing("durable", outbox.durable ? "" : "This browser lets the page keep nothing. Do not close it before everything is saved.");
    if (outbox.state === "saved" && this.active && !this.current && !this.refilling) this.refill();
  }

  // A line that stays while it is true; "" removes it.
  standing(name, text) {
    let line = byId("alerts").querySelector(`[data-name="${name}"]`);
    if (!text) return line?.remove();
    if (!line) {
      line = element("p", "notice");
      line.dataset.name = name;
      byId("alerts").append(line);
    }
    if (line.textContent !== text) line.textContent = text;
  }

  // A line that the labeler closes.
  complain(text) {
    const line = element("p", "notice");
    const close = element("button", "quiet", "Close");
    close.type = "button";
    close.addEventListener("click", () => line.remove());
    line.append(element("span", "", text), close);
    byId("alerts").append(line);
  }

  say(text) {
    byId("live").textContent = text;
  }

  // A hint below the question, which is read out too.
  hint(text) {
    byId("last").textContent = text;
    byId("last").classList.add("hint-now");
    this.say(text);
  }

  // Answering

  answerChanged() {
    const last = byId("last");
    if (last.classList.contains("hint-now")) last.textContent = "";
    last.classList.remove("hint-now");
    if (this.settings.get("differences") && this.current.cards.length > 2) showTexts(this.current, this.settings); // from the picked one
    this.saveDraft();
  }

  get confidence() {
    const box = document.querySelector('input[name="confidence"]:checked');
    return box ? Number(box.value) : null;
  }

  setConfidence(value) {
    for (const box of document.querySelectorAll('input[name="confidence"]')) box.checked = value !== null && Number(box.value) === value;
    byId("sureness").hidden = !this.settings.get("sure") && value === null;
  }

  moreSure(step) {
    const value = this.confidence;
    this.setConfidence(value === null ? 0.5 : Math.min(1, Math.max(0, value + step / 4)));
    this.saveDraft();
    this.say(document.querySelector('input[name="confidence"]:checked').parentElement.textContent);
  }

  // What is there of an answer to the question on the page.
  get begun() {
    const { widget, clock } = this.current;
    return { state: widget.state, comment: byId("comment").value, confidence: this.confidence, seconds: clock.seconds };
  }

  saveDraft() {
    if (this.current?.widget) kept.set(this.draftKey, { key: keyOf(this.current.question), ...this.begun });
  }

  confirm() {
    const { question, widget, clock } = this.current;
    const answer = widget.answer();
    if (answer === undefined) return this.hint(widget.missing());
    const seconds = clock.seconds;
    this.times = [...this.times.slice(-19), seconds];
    this.did({ kind: "label", question_id: question.id, answer, seconds, confidence: this.confidence, comment: byId("comment").value.trim(), instructions: question.instructions });
    this.done(`${widget.words(answer)}`, 1);
  }

  async skip() {
    const item = this.current;
    const reason = await this.askSkip();
    if (reason === null || this.current !== item) return this.backToQuestion();
    const comment = byId("comment").value.trim();
    if (comment) this.send({ kind: "comment", question_id: item.question.id, comment });
    this.did({ kind: "skip", question_id: item.question.id, reason, seconds: item.clock.seconds, instructions: item.question.instructions });
    this.done("skipped", 0);
  }

  did(event) {
    const { question } = this.current;
    const sent = this.send(event);
    this.answered.add(keyOf(question));
    this.past.push({ id: sent.client_event_id, kind: event.kind, question, answer: event.answer, comment: event.comment, confidence: event.confidence });
    this.past.splice(0, this.past.length - MOST_PAST);
  }

  // The question is dealt with: show the next one now, then tell the server.
  done(words, labels) {
    const number = this.progress.session_done + 1;
    this.progress.done += labels;
    this.progress.session_done += labels;
    if (this.progress.left) this.progress.left -= 1;
    kept.set(this.draftKey, null);
    byId("last").textContent = labels ? `Question ${number}: ${words}.` : `Question ${words}.`;
    byId("last").classList.remove("hint-now");
    this.spoken = labels ? `Kept: ${words}.` : "Skipped.";
    this.current = null;
    this.polls = 0;
    this.showProgress();
    this.next();
    setTimeout(() => (this.outbox.flush(), this.refill())); // after the paint
  }

  send(event) {
    return this.outbox.add(event);
  }

  async flag() {
    const item = this.current;
    const reason = await this.askFlag();
    if (reason !== null && this.current === item) {
      this.send({ kind: "flag", question_id: item.question.id, reason });
      this.outbox.flush();
      this.hint("Flagged. Now answer the question, or skip it.");
    }
    this.backToQuestion();
  }

  sendComment() {
    const comment = byId("comment").value.trim();
    if (!comment) return this.hint("The comment is empty.");
    this.send({ kind: "comment", question_id: this.current.question.id, comment });
    this.outbox.flush();
    byId("comment").value = "";
    this.openComment(false);
    this.saveDraft();
    this.hint("Comment sent. The question is still open.");
    this.backToQuestion();
  }

  openComment(open, focus = false) {
    byId("comment-box").hidden = !open;
    byId("comment-button").setAttribute("aria-expanded", String(open));
    if (open && focus) byId("comment").focus();
  }

  backToQuestion() {
    byId("question-title").focus({ preventScroll: true });
  }

  undo() {
    const last = this.past.pop();
    this.send({ kind: "undo", question_id: last?.question.id ?? null });
    if (last) {
      const attempt = last.question.attempt + 1;
      this.reopen({ ...last, question: { ...last.question, attempt } });
      if (last.kind === "label") {
        this.progress.done -= 1;
        this.progress.session_done -= 1;
        this.showProgress();
      }
      if (this.progress.left !== null) this.progress.left += 1;
    } else this.hint("Taking back the last answer …");
    this.outbox.flush().then(() => this.refill());
  }

  // Show a question that was dealt with before; the one on the page waits.
  reopen({ question, answer, comment, confidence }) {
    if (this.current?.widget) this.queue.unshift({ question: this.current.question, ...this.begun });
    else if (this.current) this.queue.unshift(this.current);
    this.queue = this.queue.filter((item) => item.question.id !== question.id);
    this.queue.unshift({ question, answer, comment, confidence });
    this.current = null;
    this.spoken = "Taken back.";
    kept.set(this.draftKey, null);
    this.next();
    byId("last").textContent = "Taken back: answer it anew, or confirm it as it was.";
  }

  // The server took an event, or refused it for good.
  settled(event, result) {
    if (!result.ok) {
      this.complain(`Not saved: ${result.error}`);
      this.past = this.past.filter((one) => one.id !== event.client_event_id);
      if (event.kind !== "label" && event.kind !== "skip") return;
      this.outbox.cancelUndo(event.question_id);
      const asked = this.current !== null;
      this.forget(event.question_id); // where it was reopened
      if (asked && !this.current) this.next();
      return;
    }
    if (event.kind !== "undo") return;
    const { question } = result;
    if (!question) {
      if (event.question_id === null) this.hint("There is nothing to take back.");
      return;
    }
    if (event.question_id !== null && event.question_id !== question.id) this.forget(event.question_id); // another tab or device was faster
    const known = [this.current, ...this.queue].find((item) => item?.question.id === question.id);
    if (known) known.question.attempt = question.attempt;
    else if (!this.answered.has(keyOf(question)) && this.active) {
      const { answer, comment, confidence, ...rest } = question;
      this.reopen({ question: rest, answer, comment, confidence });
    }
  }

  forget(id) {
    this.queue = this.queue.filter((item) => item.question.id !== id);
    if (this.current?.question.id === id) this.current = null;
  }

  // Keys, clicks and the life of the page

  settingChanged(name) {
    if (name === "sure") this.setConfidence(this.confidence);
    if (name === "goal") this.showProgress();
    if (!this.current?.widget) return;
    if (name === "differences" || name === "marks") showTexts(this.current, this.settings);
    if (name === "marks" || name === "unfolded") showPrompt(this.current.question, this.settings);
    if (name === "beside") this.showInstructions();
  }

  toggle(name, words) {
    this.settings.set(name, !this.settings.get(name));
    this.say(`${words} ${this.settings.get(name) ? "on" : "off"}.`);
  }

  run(action) {
    if (action === "help") return this.openHelp();
    if (!this.active) return undefined;
    if (action === "undo") return this.undo();
    if (!this.current?.widget || byId("question").hidden) return undefined;
    const { widget } = this.current;
    const pressed = { tie: () => widget.tie(), join: () => widget.join(), back: () => widget.back() };
    for (let n = 1; n <= 9; n++) pressed[`pick${n}`] = () => widget.pick(n);
    if (pressed[action]) {
      const line = pressed[action]();
      if (line) this.say(line);
      if (line && widget.direct && this.settings.get("direct") && widget.answer() !== undefined) this.confirm();
      return undefined;
    }
    return {
      confirm: () => this.confirm(), skip: () => this.skip(), flag: () => this.flag(),
      comment: () => this.openComment(byId("comment-box").hidden || document.activeElement !== byId("comment"), true),
      less: () => this.moreSure(-1), more: () => this.moreSure(1),
      differences: () => this.toggle("differences", "Differences"), marks: () => this.toggle("marks", "White space"),
      fold: () => this.settings.set("unfolded", !this.settings.get("unfolded")), instructions: () => this.toggle("beside", "Instructions"),
    }[action]?.();
  }

  pressed(event) {
    if (event.defaultPrevented || event.isComposing || anySheetOpen()) return;
    const { target } = event;
    if (target.matches("textarea, input:not([type=radio], [type=range], [type=checkbox])")) {
      if (event.key === "Escape") this.backToQuestion();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) this.run("confirm");
      else return;
      event.preventDefault();
      return;
    }
    const name = nameOf(event);
    if (name === "Enter" && target.closest("button, a, summary")) return;
    const action = this.keys.actionOf(event);
    if (!action || (!this.settings.get("keys") && !name.startsWith("Ctrl+"))) return;
    event.preventDefault();
    const repeats = ["less", "more", "back"].includes(action) || (action.startsWith("pick") && this.current?.question.kind === "soft");
    if (!event.repeat || repeats) this.run(action);
  }

  listen() {
    document.addEventListener("keydown", (event) => this.pressed(event));
    byId("question").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run("confirm");
    });
    const buttons = ["undo", "skip", "flag", "comment", "differences", "marks", "instructions", "fold", "help"];
    for (const action of buttons) this.click(`${action}-button`, () => this.run(action));
    this.click("waiting-undo", () => this.run("undo"));
    this.click("look-again", () => this.refill());
    this.click("take-over", () => this.takeOver());
    this.click("send-comment", () => this.sendComment());
    byId("comment").addEventListener("input", () => this.saveDraft());
    byId("sureness").addEventListener("change", () => this.saveDraft());
    document.addEventListener("visibilitychange", () => {
      const visible = document.visibilityState === "visible";
      if (this.current?.widget) this.current.clock.run(visible && !byId("question").hidden);
      if (!visible) this.saveDraft();
      else if (this.active && !this.current) this.refill();
    });
    addEventListener("pagehide", () => this.saveDraft());
    for (const type of ["keydown", "pointerdown"]) addEventListener(type, () => (this.lastTouch = performance.now()), { passive: true });
    addEventListener("focus", () => ["signed-out", "other-labeler"].includes(this.outbox?.state) && this.refill());
    addEventListener("online", () => this.active && this.refill());
    addEventListener("beforeunload", (event) => this.outbox?.size && !this.outbox.durable && event.preventDefault());
  }

  // After a click with the mouse the keys go back to the question, so that Enter confirms.
  click(id, hook) {
    byId(id).addEventListener("click", (event) => {
      hook();
      if (event.detail > 0 && document.activeElement === event.currentTarget) this.backToQuestion();
    });
  }
}

new Desk().start();
