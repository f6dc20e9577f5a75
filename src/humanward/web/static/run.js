// The run's page: asks for news every few seconds and draws the curves. The page is whole without it.
const SECONDS = 5;
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 340, HEIGHT = 190, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 24;
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

// Round numbers, about as many as asked for, that span low to high.
function ticks(low, high, wanted) {
  const rough = (high - low || Math.abs(high) || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).reduce((best, size) => (Math.abs(size - rough) < Math.abs(best - rough) ? size : best));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))} k`;
  return String(Number(value.toPrecision(3)));
}

function drawing(chart) {
  const points = chart.series.flatMap((one) => one.points);
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [low - room, high + room];
  const x = (value) => LEFT + ((value - left) / (right - left || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const drawn = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": summary(chart) });
  for (const at of ticks(low, high, 4)) {
    drawn.append(element("line", { class: "grid-line", x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at) }));
    drawn.append(element("text", { class: "tick", x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, short(at)));
  }
  for (const at of ticks(left, right, 4)) {
    if (Number.isInteger(at)) drawn.append(element("text", { class: "tick", x: x(at), y: HEIGHT - 6, "text-anchor": "middle" }, short(at)));
  }
  chart.series.forEach((one, index) => {
    const line = one.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    drawn.append(element("polyline", { class: `line line-${index % 4}`, points: line }));
    const [lastX, lastY] = one.points.at(-1);
    drawn.append(element("circle", { class: `dot line-${index % 4}`, cx: x(lastX), cy: y(lastY), r: 3 }));
  });
  return drawn;
}

function summary(chart) {
  const ends = chart.series.map((one) => `${one.name} from ${short(one.points[0][1])} to ${short(one.points.at(-1)[1])}`);
  return `${chart.title}: ${ends.join(", ")}`;
}

function figure(chart) {
  const made = document.createElement("figure");
  const caption = made.appendChild(document.createElement("figcaption"));
  caption.append(chart.title);
  const legend = made.appendChild(document.createElement("p"));
  legend.className = "keys";
  chart.series.forEach((one, index) => {
    const key = legend.appendChild(document.createElement("span"));
    key.className = `series line-${index % 4}`;
    key.append(`${one.name} `);
    const value = key.appendChild(document.createElement("b"));
    value.append(short(one.points.at(-1)[1]));
  });
  made.append(drawing(chart));
  const below = made.appendChild(document.createElement("p"));
  below.className = "below";
  below.append(chart.below);
  return made;
}

let lastCharts = "", lastCord = null;

function show({ progress, charts }) {
  const text = JSON.stringify(charts);
  if (charts.length && text !== lastCharts) {
    lastCharts = text;
    byId("charts").replaceChildren(...charts.map(figure));
    byId("charts").hidden = false;
    byId("no-curves")?.remove();
    if (byId("latest")?.open && !byId("latest").dataset.seen) {
      byId("latest").open = false;
      byId("latest").dataset.seen = "yes";
    }
  }
  const cord = JSON.stringify(progress.cord), appeared = Boolean(progress.now) !== Boolean(byId("now-bar"));
  if ((lastCord !== null && cord !== lastCord) || appeared) {
    location.reload(); // the page has other parts now
    return;
  }
  lastCord = cord;
  const now = progress.now;
  if (!now) {
    byId("now-state").textContent = `The trainer ${progress.doing}.`;
    return;
  }
  byId("now-labels").textContent = now.labels;
  byId("now-wanted").textContent = now.wanted;
  byId("now-round").textContent = now.name;
  byId("now-policy").hidden = !now.policy;
  const code = document.createElement("code");
  code.append(now.policy);
  byId("now-policy").replaceChildren(", policy ", code);
  byId("now-bar").max = Math.max(now.wanted, 1);
  byId("now-bar").value = now.labels;
  const waiting = progress.waits ? `: ${now.missing} labels are missing` : "";
  const out = now.leased === 1 ? "1 question is" : `${now.leased} questions are`;
  byId("now-state").textContent = `The trainer ${progress.doing}${waiting}. ${out} with labelers now.`;
}

async function refresh() {
  try {
    if (!document.hidden) {
      const answer = await fetch("/api/run", { headers: { Accept: "application/json" } });
      if (answer.status === 401) return location.assign("/sign-in");
      if (answer.ok) show(await answer.json());
    }
  } catch {
    // the server is away: the next round tells
  }
  setTimeout(refresh, SECONDS * 1000);
}
refresh();
