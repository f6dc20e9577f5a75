// One widget per kind of label. A widget puts its controls on the cards of the responses and below them, and knows the answer.
//
//   place(cards, below)   once, with an empty state or after restore(state)
//   pick(n), tie(), join(), back()   the keys; each returns a line to be read out, or "" where the key means nothing here
//   answer()   about the responses as shown, or undefined
//   missing()  what is still to be done, when there is no answer
//   words(answer)   the answer in a few words

import { element } from "./text.js";

const STRENGTH = ["", "slightly", "somewhat", "clearly", "much"];
const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th"}`;
const list = (numbers) => [numbers.slice(0, -1).join(", "), numbers.at(-1)].filter(Boolean).join(" and ");

function kbd(action) {
  const made = element("kbd");
  made.dataset.key = action;
  return made;
}

function radio(value, action, text, hook) {
  const label = element("label", "choice");
  const input = element("input");
  Object.assign(input, { type: "radio", name: "answer", value });
  input.addEventListener("change", hook);
  label.append(input, kbd(action), element("span", "", text));
  return label;
}

function button(className, action, text, hook) {
  const made = element("button", className);
  made.type = "button";
  made.append(element("span", "", text), kbd(action));
  made.addEventListener("click", hook);
  return made;
}

class Widget {
  title = "";
  direct = false; // a single key makes a whole answer, which may then be sent at once
  group = null; // "radiogroup" where the cards themselves are the choices
  pickable = false; // a click on a card picks it

  constructor(question, changed) {
    this.k = question.responses.length;
    this.changed = changed;
    this.state = undefined;
  }

  restore(state) {
    this.state = state;
  }

  pick() {
    return "";
  }
  tie() {
    return "";
  }
  join() {
    return "";
  }
  back() {
    return "";
  }

  answer() {
    return this.state;
  }

  // The state that belongs to an answer, for an undone question.
  from(answer) {
    this.state = answer;
  }
}

// The best of K, and a pair with a tie: radio buttons on the cards.
class Choice extends Widget {
  direct = true;
  group = "radiogroup";
  pickable = true;

  constructor(question, changed) {
    super(question, changed);
    this.ties = question.kind === "pair";
    this.title = this.ties ? "Which response is better?" : "Which response is the best?";
  }

  place(cards, below) {
    const set = (value) => () => ((this.state = value), this.draw(), this.changed());
    this.inputs = cards.map((card, i) => {
      const label = radio(i, `pick${i + 1}`, `Response ${i + 1}`, set(i));
      card.head.replaceChildren(label);
      return label.querySelector("input");
    });
    if (this.ties) {
      const label = radio("tie", "tie", "Equally good", set("tie"));
      label.classList.add("tie");
      this.tieInput = label.querySelector("input");
      cards[0].box.parentElement.append(label);
    }
    this.cards = cards;
    this.draw();
  }

  draw() {
    this.inputs.forEach((input, i) => (input.checked = this.state === i));
    if (this.tieInput) this.tieInput.checked = this.state === "tie";
    this.cards.forEach((card, i) => card.box.classList.toggle("picked", this.state === i));
  }

  pick(n) {
    if (n > this.k) return "";
    this.state = n - 1;
    this.draw();
    this.changed();
    return `Response ${n} picked.`;
  }

  tie() {
    if (!this.ties) return "";
    this.state = "tie";
    this.draw();
    this.changed();
    return "Equally good.";
  }

  missing() {
    return `Pick a response first: keys 1 to ${this.k}${this.ties ? ", or 0 for a tie" : ""}.`;
  }

  words(answer) {
    return answer === "tie" ? "equally good" : `response ${answer + 1}`;
  }
}

// A row of nine: a rating, or how much better one is than the other.
class Scale extends Widget {
  direct = true;

  constructor(question, changed) {
    super(question, changed);
    this.graded = question.kind === "difference";
    this.values = this.graded ? [4, 3, 2, 1, 0, -1, -2, -3, -4] : [1, 2, 3, 4, 5, 6, 7, 8, 9];
    this.title = this.graded ? "Which response is better, and by how much?" : "How good is the response?";
  }

  place(cards, below) {
    cards.forEach((card, i) => card.head.replaceChildren(element("span", "", this.k === 1 ? "Response" : `Response ${i + 1}`)));
    const row = element("div", "scale");
    row.setAttribute("role", "radiogroup");
    row.setAttribute("aria-labelledby", "question-title");
    this.inputs = this.values.map((value, i) => {
      const label = radio(value, `pick${i + 1}`, this.words(value), () => ((this.state = value), this.draw(), this.changed()));
      label.lastChild.className = "away";
      row.append(label);
      return label.querySelector("input");
    });
    const ends = element("div", "scale-ends");
    ends.setAttribute("aria-hidden", "true");
    const [low, middle, high] = this.graded ? ["Response 1 is much better", "equal", "Response 2 is much better"] : ["worst", "", "best"];
    ends.append(element("span", "", low), element("span", "", middle), element("span", "", high));
    this.said = element("p", "said");
    below.append(ends, row, this.said);
    this.draw();
  }

  draw() {
    this.inputs.forEach((input, i) => (input.checked = this.state === this.values[i]));
    this.said.textContent = this.state === undefined ? "\u00a0" : this.sentence(this.state);
  }

  sentence(value) {
    const words = this.words(value);
    return words[0].toUpperCase() + words.slice(1);
  }

  pick(n) {
    this.state = this.values[n - 1];
    this.draw();
    this.changed();
    return `${this.sentence(this.state)}.`;
  }

  tie() {
    return this.graded ? this.pick(5) : "";
  }

  missing() {
    return this.graded ? "Say first how they compare: 1 (the first is much better), 5 (equal) to 9." : "Rate it first: 1 (worst) to 9 (best).";
  }

  words(value) {
    if (!this.graded) return `${value} of 9`;
    return value === 0 ? "equally good" : `response ${value > 0 ? 1 : 2} is ${STRENGTH[Math.abs(Math.round(value))]} better`;
  }
}

// An order with ties: groups of responses, the best ones first. The last one left over need not be placed.
class Ranking extends Widget {
  title = "Order the responses from best to worst";
  pickable = true;

  constructor(question, changed) {
    super(question, changed);
    this.state = { groups: [], joining: false };
  }

  from(ranks) {
    const groups = [...new Set(ranks)].sort((a, b) => a - b).map((rank) => ranks.flatMap((r, i) => (r === rank ? [i] : [])));
    this.state = { groups, joining: false };
  }

  get left() {
    const placed = this.state.groups.flat();
    return Array.from({ length: this.k }, (_, i) => i).filter((i) => !placed.includes(i));
  }

  place(cards, below) {
    this.cards = cards.map((card, i) => {
      const badge = element("button", "place");
      badge.type = "button";
      badge.addEventListener("click", () => this.toggle(i));
      const name = element("span", "choice");
      name.append(kbd(`pick${i + 1}`), element("span", "", `Response ${i + 1}`));
      card.head.replaceChildren(name, badge);
      return { ...card, badge };
    });
    this.line = element("output", "order");
    const tools = element("div", "tools");
    this.joinButton = button("quiet", "join", "Tie with the one before", () => this.join());
    this.backButton = button("quiet", "back", "Take back", () => this.back());
    tools.append(this.joinButton, this.backButton);
    below.append(this.line, tools);
    this.draw();
  }

  draw() {
    const { groups, joining } = this.state;
    this.cards.forEach((card, i) => {
      const place = groups.findIndex((group) => group.includes(i));
      card.box.classList.toggle("placed", place >= 0);
      card.box.classList.toggle("picked", place === 0);
      card.badge.textContent = place < 0 ? "place next" : ordinal(place + 1);
      card.badge.setAttribute("aria-label", place < 0 ? `Response ${i + 1}: place next` : `Response ${i + 1} is ${ordinal(place + 1)}: take it out`);
    });
    const left = this.left;
    const text = this.words(undefined);
    const rest = left.length === 1 && groups.length && !joining ? `${text} › ${left[0] + 1} (last)` : text + (joining ? " = …" : left.length && groups.length ? " › …" : "");
    this.line.textContent = groups.length ? rest : "Type the digits from the best to the worst.";
    this.joinButton.disabled = !groups.length || !left.length;
    this.joinButton.setAttribute("aria-pressed", String(joining));
    this.backButton.disabled = !groups.length;
  }

  update(text) {
    this.draw();
    this.changed();
    return text;
  }

  pick(n) {
    const i = n - 1;
    if (n > this.k) return "";
    if (this.state.groups.flat().includes(i)) return `Response ${n} has its place already.`;
    if (this.state.joining) this.state.groups.at(-1).push(i);
    else this.state.groups.push([i]);
    this.state.joining = false;
    return this.update(`Response ${n} is ${ordinal(this.state.groups.length)}.`);
  }

  toggle(i) {
    const { groups } = this.state;
    if (!groups.flat().includes(i)) return this.pick(i + 1);
    this.state = { groups: groups.map((group) => group.filter((j) => j !== i)).filter((group) => group.length), joining: false };
    return this.update(`Response ${i + 1} taken out.`);
  }

  join() {
    if (!this.state.groups.length || !this.left.length) return "";
    this.state.joining = !this.state.joining;
    return this.update(this.state.joining ? "The next one ties with the one before." : "No tie.");
  }

  back() {
    const { groups, joining } = this.state;
    if (joining) return this.join();
    if (!groups.length) return "";
    const gone = groups.at(-1).pop();
    if (!groups.at(-1).length) groups.pop();
    return this.update(`Response ${gone + 1} taken back.`);
  }

  answer() {
    const { groups, joining } = this.state;
    const left = this.left;
    if (!groups.length || left.length > 1 || (joining && left.length)) return undefined;
    const all = left.length ? [...groups, left] : groups;
    return Array.from({ length: this.k }, (_, i) => all.findIndex((group) => group.includes(i)));
  }

  missing() {
    return `Place response${this.left.length > 1 ? "s" : ""} ${list(this.left.map((i) => i + 1))} first.`;
  }

  words(ranks) {
    const other = new Ranking({ responses: Array(this.k) }, () => {});
    if (ranks) other.from(ranks);
    const { groups } = ranks ? other.state : this.state;
    return groups.map((group) => group.map((i) => i + 1).join(" = ")).join(" › ");
  }
}

// The probability that each response is the best one: linked sliders that sum to one.
class Soft extends Widget {
  title = "How likely is each response the best one?";

  constructor(question, changed) {
    super(question, changed);
    this.state = { p: Array(this.k).fill(1 / this.k), touched: false };
  }

  from(p) {
    this.state = { p: [...p], touched: true };
  }

  place(cards, below) {
    this.inputs = cards.map((card, i) => {
      const name = element("span", "choice");
      name.append(kbd(`pick${i + 1}`), element("span", "", `Response ${i + 1}`));
      const input = element("input", "share");
      Object.assign(input, { type: "range", min: 0, max: 100, step: 1 });
      input.setAttribute("aria-label", `Response ${i + 1}: probability that it is the best`);
      input.addEventListener("input", () => this.share(i, input.valueAsNumber / 100));
      const said = element("output", "percent");
      card.head.replaceChildren(name, input, said);
      return { input, said, box: card.box };
    });
    const tools = element("div", "tools");
    tools.append(button("quiet", "tie", "Equal shares", () => this.tie()), element("span", "hint", "A digit adds 10 %; arrow keys move by 1 %."));
    below.append(tools);
    this.draw();
  }

  draw() {
    this.inputs.forEach(({ input, said, box }, i) => {
      const percent = Math.round(this.state.p[i] * 100);
      input.value = percent;
      input.setAttribute("aria-valuetext", `${percent} percent`);
      said.textContent = `${percent} %`;
      box.classList.toggle("picked", this.state.touched && this.state.p[i] === Math.max(...this.state.p) && this.state.p[i] > 1 / this.k + 1e-9);
    });
  }

  // Give one response a share; the others keep their proportions.
  share(i, value) {
    const { p } = this.state;
    const rest = p.reduce((sum, x, j) => (j === i ? sum : sum + x), 0);
    const mine = Math.min(1, Math.max(0, value));
    this.state = { p: p.map((x, j) => (j === i ? mine : rest > 1e-9 ? (x / rest) * (1 - mine) : (1 - mine) / (this.k - 1))), touched: true };
    this.draw();
    this.changed();
  }

  pick(n) {
    if (n > this.k) return "";
    this.share(n - 1, Math.round(this.state.p[n - 1] * 100) / 100 + 0.1);
    this.inputs[n - 1].input.focus({ preventScroll: true });
    return `Response ${n}: ${this.inputs[n - 1].said.textContent}.`;
  }

  tie() {
    this.state = { p: Array(this.k).fill(1 / this.k), touched: true };
    this.draw();
    this.changed();
    return "Equal shares.";
  }

  answer() {
    return this.state.touched ? this.state.p : undefined;
  }

  missing() {
    return `Give the shares first: a digit adds 10 %, 0 makes them equal.`;
  }

  words(p) {
    return p.map((x) => `${Math.round(100 * x)} %`).join(" · ");
  }
}

export const KINDS = { best_of_k: Choice, pair: Choice, rating: Scale, difference: Scale, ranking: Ranking, soft: Soft };

// An answer in words, without a page.
export function answerWords(kind, responses, answer) {
  if (!KINDS[kind] || answer === undefined || answer === null) return "";
  return new KINDS[kind]({ kind, responses }, () => {}).words(answer);
}
