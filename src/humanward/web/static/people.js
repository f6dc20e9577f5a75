// Copies a sign-in link. Without this script it can be marked and copied by hand.
const link = document.getElementById("link"), button = document.getElementById("copy");
if (link && button && navigator.clipboard) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(link.value);
    button.textContent = "Copied";
  });
  link.addEventListener("focus", () => link.select());
}
