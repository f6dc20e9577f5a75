// What the labeler did, newest first. Texts are folded, and put on the page as text only.

import { answerWords } from "./kinds.js";
import { call } from "./outbox.js";
import "./saved.js";
import { element, show } from "./text.js";

const list = document.getElementById("history");
const said = document.getElementById("history-said");
const older = document.getElementById("older");
const WORDS = { label: "Answered", skip: "Skipped", flag: "Flagged", comment: "Commented", undo: "Took back an answer", adjudicate: "Decided" };
const times = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
let before = null;

// For each response as shown: is it (among) the best of this answer?
function best(kind, answer) {
  if (kind === "best_of_k" || kind === "pair") return (i) => answer === i;
  if (kind === "ranking") return (i) => answer[i] === Math.min(...answer);
  if (kind === "soft") return (i) => answer[i] === Math.max(...answer);
  return (i) => kind === "difference" && (answer > 0 ? i === 0 : answer < 0 && i === 1);
}

function words({ kind, answer, question }) {
  const what = answer === null || answer === undefined ? "" : answerWords(question.kind, question.responses, answer);
  return what ? `${WORDS[kind]}: ${what}` : WORDS[kind] ?? kind;
}

function card(title, text, picked) {
  const box = element("div", picked ? "card picked" : "card");
  const foreign = element("div", "foreign");
  foreign.dir = "auto";
  show(foreign, text);
  box.append(element("h2", "card-head", title), foreign);
  return box;
}

function texts({ question, answer }) {
  const details = element("details");
  details.append(element("summary", "", question.responses.length > 1 ? `The prompt and ${question.responses.length} responses` : "The prompt and the response"));
  details.addEventListener(
    "toggle",
    () => {
      const isBest = answer === null ? () => false : best(question.kind, answer);
      if (question.prompt) details.append(card("Prompt", question.prompt, false));
      question.responses.forEach((text, i) => details.append(card(`Response ${i + 1}${isBest(i) ? " (best)" : ""}`, text, isBest(i))));
    },
    { once: true },
  );
  return details;
}

function row(event) {
  const item = element("li", event.undone ? "undone" : "");
  const line = element("p", "entry");
  const time = element("time", "", times.format(new Date(event.time)));
  time.dateTime = event.time;
  line.append(element("b", "what", words(event)));
  if (event.undone) line.append(element("span", "badge", "taken back"));
  if (event.seconds) line.append(element("span", "muted", `${event.seconds < 10 ? event.seconds.toFixed(1) : Math.round(event.seconds)} s`));
  line.append(time);
  item.append(line);
  for (const text of [event.reason, event.comment, event.text].filter(Boolean)) {
    const quote = element("blockquote");
    show(quote, text);
    item.append(quote);
  }
  if (event.question) {
    const first = element("p", "first-words");
    first.dir = "auto";
    show(first, event.question.prompt.slice(0, 160).replace(/\s+/g, " "));
    item.append(first, texts(event));
  }
  return item;
}

async function more() {
  older.disabled = true;
  const { status, data } = await call(before === null ? "/api/history" : `/api/history?before=${before}`);
  older.disabled = false;
  if (status !== 200 || !Array.isArray(data?.events)) {
    said.textContent = status === 401 ? "You are signed out. Open a new invite link in this browser." : "The history cannot be fetched now. Try again.";
    older.hidden = false;
    older.textContent = "Try again";
    return;
  }
  list.append(...data.events.map(row));
  before = data.events.at(-1)?.seq ?? before;
  older.hidden = data.events.length < 50;
  older.textContent = "Show older ones";
  said.textContent = list.children.length ? "" : "Nothing yet: what you answer, skip, flag or comment on is listed here.";
}

older.addEventListener("click", more);
more();
