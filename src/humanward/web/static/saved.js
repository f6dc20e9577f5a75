// On pages beside the labelling page: send what is still in the outbox, say how much that is, and warn before signing out.

import { Outbox } from "./outbox.js";

const line = document.getElementById("saved");
let warned = false;
let outbox = null;

function show(error = "") {
  if (!outbox) return;
  line.hidden = !outbox.size && !error;
  line.dataset.state = outbox.state;
  line.textContent = error ? `Not saved: ${error}` : outbox.message;
}

for (const form of document.querySelectorAll("form[data-leaves]")) {
  form.addEventListener("submit", async (event) => {
    if (!outbox.size || warned) return;
    event.preventDefault();
    await outbox.flush({ now: true });
    if (!outbox.size) return form.submit();
    warned = true;
    line.textContent = `${outbox.message}. They stay in this browser until you sign in here again. Press once more to sign out all the same.`;
  });
}

outbox = await Outbox.open(line.dataset.labeler, { changed: () => show(), settled: (_, result) => !result.ok && show(result.error) });
show();
outbox.flush();
