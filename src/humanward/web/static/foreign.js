// Researchers see hidden characters in foreign text as marks, as labelers do.
import { show } from "./text.js";

for (const target of document.querySelectorAll(".foreign")) show(target, target.textContent);
