// Researchers see hidden characters in foreign text and in names as marks, as labelers do.
import { show } from "./text.js";

for (const target of document.querySelectorAll(".foreign, bdi")) show(target, target.textContent);
