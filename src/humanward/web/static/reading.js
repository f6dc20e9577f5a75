// What is read on the labelling page: the prompt, and the responses on their cards.

import { differences, element, plural, show } from "./text.js";

const LONG_PROMPT = 1600;
const LONG_PROMPT_LINES = 18;
const FOLDED_END = 360;
const LONG_RESPONSE = 1200;

const byId = (id) => document.getElementById(id);

// The beginning of a text, up to a space where there is one; a pair of surrogates is not torn apart.
function upTo(text, end) {
  const space = text.slice(end - 40, end).search(/\s\S*$/);
  if (space >= 0) return text.slice(0, end - 40 + space);
  return text.slice(0, /[\ud800-\udbff]/.test(text[end - 1]) ? end - 1 : end);
}

// The prompt. A long one is folded in its middle: for a text to be continued the end counts most.
export function showPrompt({ prompt: text }, settings) {
  const spaces = settings.get("marks");
  const long = text.length > LONG_PROMPT || (text.length > 300 && text.split("\n").length > LONG_PROMPT_LINES);
  const folded = long && !settings.get("unfolded");
  const box = byId("prompt");
  byId("prompt-box").hidden = text === "";
  if (folded) {
    const end = Math.min(FOLDED_END, Math.floor(text.length / 3));
    const first = upTo(text, end);
    const last = text.slice(upTo(text, text.length - end).length);
    const [head, tail] = [element("span"), element("span")];
    const gap = element("span", "gap", `⋯ ${plural(text.length - first.length - last.length, "character")} folded ⋯`);
    show(head, first, { spaces });
    show(tail, last.trimStart(), { spaces });
    box.replaceChildren(head, gap, tail);
  } else show(box, text, { spaces });
  const button = byId("fold-button");
  button.hidden = !long;
  button.firstChild.textContent = folded ? `Show all ${plural(text.length, "character")}` : "Fold the prompt";
  button.setAttribute("aria-expanded", String(!folded));
}

// One card per response, with the controls of the widget. The texts come later.
export function buildCards(question, widget) {
  const grid = byId("responses");
  const longest = Math.max(...question.responses.map((text) => text.length));
  const k = question.responses.length;
  grid.dataset.columns = Math.min(k === 4 ? 2 : k, longest > LONG_RESPONSE ? 2 : 3);
  if (widget.group) grid.setAttribute("role", widget.group);
  else grid.removeAttribute("role");
  if (widget.group) grid.setAttribute("aria-labelledby", "question-title");
  else grid.removeAttribute("aria-labelledby");
  const cards = question.responses.map((_, i) => {
    const box = element("div", "card");
    const head = element("h2", "card-head");
    const text = element("div", "foreign");
    text.dir = "auto";
    box.append(head, text);
    box.addEventListener("click", (event) => {
      if (!widget.pickable || event.target.closest("button, input, label") || !getSelection().isCollapsed) return;
      if (widget.toggle) widget.toggle(i);
      else widget.pick(i + 1);
    });
    return { box, head, text };
  });
  grid.replaceChildren(...cards.map((card) => card.box));
  byId("widget").replaceChildren();
  widget.place(cards, byId("widget"));
  return cards;
}

// The responses; where that is asked for, with white space and with what differs from the picked one, or from the first.
export function showTexts({ question, cards, widget }, settings) {
  const spaces = settings.get("marks");
  const on = settings.get("differences") && cards.length > 1;
  const state = widget.state;
  const base = Number.isInteger(state) && cards[state] ? state : 0;
  const changed = cards.map(() => []);
  let exact = true;
  for (let i = 0; on && i < cards.length; i++) {
    if (i === base) continue;
    const found = differences(question.responses[base], question.responses[i]);
    changed[i] = found.second;
    if (cards.length === 2) changed[base] = found.first;
    exact &&= found.exact;
  }
  cards.forEach((card, i) => show(card.text, question.responses[i], { spaces, changed: changed[i] }));
  byId("legend").hidden = !on;
  const what = cards.length === 2 ? "Words that differ are marked." : `Words that are not in response ${base + 1} are marked.`;
  byId("legend").textContent = exact ? what : `${what} These texts are long: their words were compared without the order.`;
  byId("differences-button").setAttribute("aria-pressed", String(settings.get("differences")));
  byId("marks-button").setAttribute("aria-pressed", String(spaces));
}
