// Foreign text as text: shown with textContent only, nothing hidden in it, and what differs between two texts.

// The same set as visible() in report/text.py: controls, bidirectional, zero-width, tag and unassigned characters, lone surrogates.
// A joiner behind a character that is not ASCII stays: Persian, Indic scripts and emoji are spelled with it. Of variation selectors
// one stays; a second in a row spells nothing and may carry hidden text.
const HIDDEN = new RegExp(
  "(?<=[^\\0-\\x7f])[\\u200c\\u200d]()" + // group 1: matched, and let stand
    "|[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u115f\\u1160\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0" +
    "\\u{e0000}-\\u{e007f}\\p{Cs}\\p{Co}\\p{Cn}]" +
    "|(?<=[\\ufe00-\\ufe0f\\u{e0100}-\\u{e01ef}])[\\ufe00-\\ufe0f\\u{e0100}-\\u{e01ef}]",
  "gu",
);
const PLAIN = /^[\n\t\x20-\x7e]*$/;
const SPACES = /[ \t\n\xa0\u2000-\u200a\u202f\u205f\u3000]/g;
const SPACE_SIGNS = { " ": "·", "\t": "→", "\n": "↵" };
const MOST_SPACES = 6000;

// Letters of other alphabets that look like Latin ones; marked inside words that also have Latin letters.
const WORD = /[\p{L}\p{M}]+/gu;
const LATIN = /\p{Script=Latin}/u;
const LOOKALIKE = /[аеорсухіјѕһԁԛԝАВЕКМНОРСТХІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧοανρικ]/gu;

const NAMES = {
  0x00: "null", 0x07: "bell", 0x08: "backspace", 0x0d: "carriage return", 0x1b: "escape", 0xad: "soft hyphen", 0x200b: "zero-width space",
  0x200c: "zero-width non-joiner", 0x200d: "zero-width joiner", 0x200e: "left-to-right mark", 0x200f: "right-to-left mark",
  0x2028: "line separator", 0x2029: "paragraph separator", 0x202a: "left-to-right embedding", 0x202b: "right-to-left embedding",
  0x202c: "pop directional formatting", 0x202d: "left-to-right override", 0x202e: "right-to-left override", 0x2060: "word joiner",
  0x2066: "left-to-right isolate", 0x2067: "right-to-left isolate", 0x2068: "first strong isolate", 0x2069: "pop directional isolate",
  0xfeff: "byte order mark",
};

export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

const codeOf = (character) => "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

function nameOf(character) {
  const code = character.codePointAt(0);
  if (NAMES[code]) return `${NAMES[code]}, ${codeOf(character)}`;
  if (code >= 0xe0000 && code <= 0xe007f) return `tag character, ${codeOf(character)}`;
  return codeOf(character);
}

function hiddenMark(character) {
  const mark = element("span", "mark-hidden", `⟨${codeOf(character)}⟩`);
  mark.title = nameOf(character);
  return mark;
}

function lookalikeMark(character) {
  const mark = element("span", "mark-lookalike", character);
  mark.title = `not a Latin letter: ${codeOf(character)}`;
  return mark;
}

function spaceMark(character) {
  // The character itself stays, so that lines break where they did; the sign is drawn over it by the style sheet.
  const mark = element("span", "mark-space", character);
  mark.dataset.sign = SPACE_SIGNS[character] ?? "⍽";
  return mark;
}

// What is to be replaced in the text: [start, end, make], in order.
function specials(text, spaces) {
  const found = [];
  const collect = (match, make, offset = 0) => found.push([offset + match.index, offset + match.index + match[0].length, make]);
  for (const match of text.matchAll(HIDDEN)) if (match[1] === undefined) collect(match, hiddenMark);
  for (const word of text.matchAll(WORD)) {
    if (!PLAIN.test(word[0]) && LATIN.test(word[0])) for (const match of word[0].matchAll(LOOKALIKE)) collect(match, lookalikeMark, word.index);
  }
  if (spaces) {
    let left = MOST_SPACES;
    for (const match of text.matchAll(SPACES)) {
      if (left-- === 0) break;
      collect(match, spaceMark);
    }
  }
  return found.sort((a, b) => a[0] - b[0]);
}

// Put a text into an element. spaces: show white space too. changed: ranges [start, end) to mark as different.
export function show(target, text, { spaces = false, changed = [] } = {}) {
  if (!spaces && !changed.length && PLAIN.test(text)) {
    target.textContent = text;
    return;
  }
  const found = specials(text, spaces);
  const parts = document.createDocumentFragment();
  let next = 0;
  const pour = (into, start, end) => {
    let at = start;
    while (next < found.length && found[next][0] < end) {
      const [from, to, make] = found[next++];
      if (from > at) into.append(text.slice(at, from));
      into.append(make(text.slice(from, to)));
      at = to;
    }
    if (end > at) into.append(text.slice(at, end));
  };
  let at = 0;
  for (const [start, end] of changed) {
    pour(parts, at, start);
    const mark = element("mark");
    pour(mark, start, end);
    parts.append(mark);
    at = end;
  }
  pour(parts, at, text.length);
  target.replaceChildren(parts);
}

// Words, single characters of scripts without spaces, single signs. White space does not count.
const TOKEN = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|\S/gu;
const MOST_CELLS = 4_000_000;

function tokens(text) {
  return Array.from(text.matchAll(TOKEN), (match) => ({ text: match[0], start: match.index, end: match.index + match[0].length }));
}

// For each text, true where its token is not in a longest common subsequence of both.
function byOrder(a, b) {
  const width = b.length + 1;
  const table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const cell = i * width + j;
      table[cell] = a[i].text === b[j].text ? table[cell + width + 1] + 1 : Math.max(table[cell + width], table[cell + 1]);
    }
  }
  const inA = new Array(a.length).fill(true);
  const inB = new Array(b.length).fill(true);
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i].text === b[j].text) inA[i++] = inB[j++] = false;
    else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
    else j++;
  }
  return [inA, inB];
}

// The same without regard to order, in linear time: for texts that are too long.
function byWords(a, b) {
  const missing = (from, other) => {
    const left = new Map();
    for (const token of other) left.set(token.text, (left.get(token.text) ?? 0) + 1);
    return from.map((token) => {
      const n = left.get(token.text) ?? 0;
      left.set(token.text, n - 1);
      return n <= 0;
    });
  };
  return [missing(a, b), missing(b, a)];
}

function ranges(list, different) {
  const made = [];
  list.forEach((token, index) => {
    if (!different[index]) return;
    if (index && different[index - 1]) made[made.length - 1][1] = token.end;
    else made.push([token.start, token.end]);
  });
  return made;
}

// Which stretches of two texts differ. exact: false where the texts are so long that words were compared without their order.
export function differences(first, second) {
  const a = tokens(first);
  const b = tokens(second);
  let head = 0;
  while (head < a.length && head < b.length && a[head].text === b[head].text) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail].text === b[b.length - 1 - tail].text) tail++;
  const middleA = a.slice(head, a.length - tail);
  const middleB = b.slice(head, b.length - tail);
  const exact = (middleA.length + 1) * (middleB.length + 1) <= MOST_CELLS && Math.min(middleA.length, middleB.length) < 65_535;
  const [inA, inB] = (exact ? byOrder : byWords)(middleA, middleB);
  return { first: ranges(middleA, inA), second: ranges(middleB, inB), exact };
}
