// The sheets over the labelling page: keys and settings, the reason of a skip or a flag, and new instructions.

import { kept } from "./outbox.js";
import { keyTable } from "./keys.js";
import { element } from "./text.js";

const SETTINGS = "humanward:settings";
const DEFAULTS = { direct: false, sure: false, keys: true, goal: null, differences: false, marks: false, unfolded: false, beside: true };
const REASONS = {
  skip: ["I cannot decide", "The text is broken or makes no sense", "I do not know the subject or the language", "I do not want to read this"],
  flag: ["It breaks the instructions or is unsafe", "It says who or what wrote it", "It tells me how to label", "It holds personal data", "It is shown wrongly"],
};

const byId = (id) => document.getElementById(id);

export class Settings {
  constructor(changed) {
    this.changed = changed;
    this.values = { ...DEFAULTS, ...kept.get(SETTINGS, {}) };
  }

  get(name) {
    return this.values[name];
  }

  set(name, value) {
    this.values[name] = value;
    kept.set(SETTINGS, this.values);
    this.changed(name);
  }
}

export const anySheetOpen = () => document.querySelector("dialog[open]") !== null;

for (const button of document.querySelectorAll("dialog [data-close]")) button.addEventListener("click", () => button.closest("dialog").close());

// Returns open().
export function helpSheet(keys, settings) {
  const sheet = byId("help");
  const draw = keyTable(keys, byId("key-table"), (line) => (byId("help-said").textContent = line));
  byId("reset-keys").addEventListener("click", () => {
    keys.reset();
    draw();
    byId("help-said").textContent = "All keys are as at first.";
  });
  for (const name of ["direct", "sure", "keys"]) {
    const box = byId(`set-${name}`);
    box.checked = settings.get(name);
    box.addEventListener("change", () => settings.set(name, box.checked));
  }
  const goal = byId("set-goal");
  goal.value = settings.get("goal") ?? byId("desk").dataset.goal;
  goal.addEventListener("change", () => settings.set("goal", goal.checkValidity() && goal.value ? goal.valueAsNumber : null));
  return () => {
    byId("help-said").textContent = "";
    draw();
    sheet.showModal();
  };
}

// A sheet that asks for a reason: digits choose, Enter sends. Returns open(), which resolves with the reason, or null.
export function reasonSheet(name) {
  const sheet = byId(name);
  const words = byId(`${name}-words`);
  const boxes = REASONS[name].map((reason, i) => {
    const label = element("label", "choice");
    const input = element("input");
    Object.assign(input, { type: "radio", name: `${name}-reason`, value: reason });
    label.append(input, element("kbd", "", String(i + 1)), element("span", "", reason));
    sheet.querySelector(".reasons").append(label);
    return input;
  });
  let settle = () => {}; // what open() promised
  // A dialog tells of its end a task later; keys pressed by then would go to the question that is being skipped.
  const close = (event, value) => {
    event.preventDefault();
    sheet.close(value);
    settle();
  };
  sheet.addEventListener("close", () => sheet.open || settle()); // ended in any other way
  sheet.querySelector("form").addEventListener("submit", (event) => close(event, "send"));
  sheet.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) return close(event, "");
    if (event.target === words || event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key !== "Enter") return;
    }
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1] ?? event.key;
    const box = event.target === words ? undefined : boxes[Number(digit) - 1];
    if (box) {
      event.preventDefault();
      box.checked = true;
      box.focus();
    } else if (event.key === "Enter" && event.target.tagName === "INPUT") {
      if (event.repeat) event.preventDefault();
      else close(event, "send");
    }
  });
  return () =>
    new Promise((resolve) => {
      words.value = "";
      boxes.forEach((box, i) => (box.checked = i === 0));
      sheet.returnValue = "";
      settle = () => {
        const parts = [boxes.find((box) => box.checked)?.value, words.value.trim()].filter(Boolean);
        resolve(sheet.returnValue === "send" ? parts.join(": ") : null);
      };
      sheet.showModal();
      boxes[0].focus();
    });
}

// New instructions must be acknowledged before a question of theirs can be answered. Returns read(version, text, why) -> promise.
export function readSheet() {
  const sheet = byId("read-first");
  let read = null;
  sheet.addEventListener("close", () => sheet.returnValue !== "read" && sheet.showModal()); // Escape does not mean "read"
  byId("read-button").addEventListener("click", () => {
    sheet.close("read");
    read();
  });
  return (text, why) =>
    new Promise((resolve) => {
      read = resolve;
      byId("read-text").textContent = text;
      byId("read-why").textContent = why;
      sheet.returnValue = "";
      if (!sheet.open) sheet.showModal();
      byId("read-title").focus();
    });
}
