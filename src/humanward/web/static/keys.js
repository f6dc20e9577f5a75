// The keys of the labelling page: which key does what, printed on the buttons, changed by the labeler and kept in this browser.

import { kept } from "./outbox.js";
import { element } from "./text.js";

const STORED = "humanward:keys";
const GROUPS = {
  answer: "Answer",
  question: "This question",
  reading: "Reading",
  page: "Page",
};
const PICKS = Array.from({ length: 9 }, (_, i) => [`pick${i + 1}`, "answer", `Response ${i + 1}, or the value in place ${i + 1}`, [`${i + 1}`]]);
export const ACTIONS = [
  ...PICKS,
  ["tie", "answer", "Equally good, equal shares", ["0", "t"]],
  ["join", "answer", "Ranking: tie with the one before", ["="]],
  ["back", "answer", "Ranking: take one back", ["Backspace"]],
  ["confirm", "answer", "Confirm and go on", ["Enter"]],
  ["less", "answer", "Less sure", [","]],
  ["more", "answer", "More sure", ["."]],
  ["undo", "question", "Undo, any number of times", ["Ctrl+z", "u"]],
  ["skip", "question", "Skip, with a reason", ["s"]],
  ["flag", "question", "Flag a problem for the researcher", ["f"]],
  ["comment", "question", "Write a comment", ["c"]],
  ["differences", "reading", "Differences between responses", ["d"]],
  ["marks", "reading", "White space made visible", ["w"]],
  ["fold", "reading", "Fold or unfold a long prompt", ["p"]],
  ["instructions", "reading", "Show or hide the instructions", ["i"]],
  ["help", "page", "Show all keys and settings", ["?"]],
].map(([name, group, label, keys]) => ({ name, group, label, keys }));

// Keys that the browser, the screen reader or the controls themselves need.
const TAKEN = /^(Tab|Escape|Space|Shift|Control|Alt|AltGraph|Meta|CapsLock|Dead|Unidentified|Process|Arrow\w+|Home|End|Page\w+|F\d+|(Ctrl\+)(?!z$).*|Alt\+.*)$/;

// A key press by one name: "a", "?", "Enter", "Ctrl+z".
export function nameOf(event) {
  let key = event.key === " " ? "Space" : event.key;
  if (key.length === 1) key = key.toLowerCase();
  if (event.ctrlKey || event.metaKey) return `Ctrl+${key}`;
  return event.altKey ? `Alt+${key}` : key;
}

// The digit of the top row or the number pad, whatever the layout prints there without Shift.
function digitOf(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return null;
  return /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1] ?? null;
}

const SHOWN = { Enter: "Enter ⏎", Backspace: "⌫", "Ctrl+z": "Ctrl+Z" };
export const shown = (key) => SHOWN[key] ?? (key.length === 1 ? key.toUpperCase() : key);

export class Keys {
  // preset: action -> key, from the settings of the server.
  constructor(preset = {}) {
    this.preset = preset;
    this.load();
    addEventListener("storage", (event) => event.key === STORED && this.load());
  }

  load() {
    const own = kept.get(STORED, {});
    this.map = new Map(ACTIONS.map(({ name, keys }) => [name, keys]));
    for (const choice of [this.preset, own]) {
      for (const [name, key] of Object.entries(choice)) {
        if (this.map.has(name) && typeof key === "string" && !this.refusal(name, key)) this.map.set(name, [key]);
      }
    }
    this.changed = Object.keys(own).length > 0;
    this.print();
  }

  actionOf(event) {
    const key = nameOf(event);
    return this.find(key) ?? this.find(digitOf(event));
  }

  find(key) {
    if (key === null) return null;
    for (const [name, keys] of this.map) if (keys.includes(key)) return name;
    return null;
  }

  // Why a key cannot be given to an action; "" when it can.
  refusal(name, key) {
    if (TAKEN.test(key)) return `${shown(key)} is needed by the browser`;
    const holder = this.find(key);
    if (holder && holder !== name) return `${shown(key)} is already: ${ACTIONS.find((action) => action.name === holder).label}`;
    return "";
  }

  set(name, key) {
    const refusal = this.refusal(name, key);
    if (!refusal) {
      kept.set(STORED, { ...kept.get(STORED, {}), [name]: key });
      this.map.set(name, [key]);
      this.changed = true;
      this.print();
    }
    return refusal;
  }

  reset() {
    kept.set(STORED, null);
    this.load();
  }

  label(name) {
    return this.map.get(name).map(shown).join(" or ");
  }

  // Write the key on everything with data-key="action".
  print(root = document) {
    for (const kbd of root.querySelectorAll("kbd[data-key]")) {
      const key = this.map.get(kbd.dataset.key)[0];
      kbd.textContent = shown(key);
      kbd.setAttribute("aria-hidden", "true");
      const control = kbd.closest("button") ?? kbd.closest("label")?.querySelector("input");
      control?.setAttribute("aria-keyshortcuts", key.replace("Ctrl", "Control"));
    }
  }
}

// The table of keys in the overlay, where each one can be changed.
export function keyTable(keys, target, say) {
  let listening = null; // the button that waits for a key
  const draw = () => {
    target.replaceChildren();
    for (const [group, title] of Object.entries(GROUPS)) {
      const part = element("section", "key-group");
      part.append(element("h3", "", title));
      const list = element("ul");
      if (group === "answer") list.append(digits());
      for (const action of ACTIONS.filter((a) => a.group === group && !a.name.startsWith("pick"))) list.append(row(action));
      part.append(list);
      target.append(part);
    }
  };
  const digits = () => {
    const item = element("li");
    const buttons = element("span", "digits");
    buttons.append(...ACTIONS.slice(0, 9).map(change));
    item.append(element("span", "", "Response or value 1 to 9"), buttons);
    return item;
  };
  const row = (action) => {
    const item = element("li");
    item.append(element("span", "", action.label), change(action));
    return item;
  };
  const change = ({ name, label }) => {
    const button = element("button", "key", keys.label(name));
    button.type = "button";
    button.dataset.action = name;
    button.setAttribute("aria-label", `${label}: ${keys.label(name)}. Change the key`);
    button.addEventListener("click", () => listen(button, label));
    button.addEventListener("blur", () => listening === button && stop());
    return button;
  };
  const listen = (button, label) => {
    listening = button;
    button.textContent = "press a key";
    button.classList.add("listening");
    say(`Press the new key for: ${label}. Escape leaves it as it is.`);
  };
  const stop = () => {
    const name = listening.dataset.action;
    listening = null;
    draw();
    target.querySelector(`[data-action="${name}"]`).focus();
  };
  target.addEventListener("keydown", (event) => {
    if (!listening || ["Shift", "Control", "Alt", "Meta", "Tab"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") {
      say("Left as it is.");
      return stop();
    }
    const name = listening.dataset.action;
    const refusal = keys.set(name, nameOf(event));
    say(refusal ? `Not changed: ${refusal}.` : `Changed to ${keys.label(name)}.`);
    stop();
  });
  draw();
  return draw;
}
