// Only improves what works without it: asks before what can't be taken back, copies what is shown once, and says
// while it is typed that a soft limit is above its hard one.
"use strict";

document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.ask;
  if (question && !window.confirm(question)) {
    event.preventDefault();
  }
});

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy).textContent;
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  });
}

const numberOf = (field) => {
  const text = field.value.trim().toLowerCase().replace(/[\s,_]/g, "");
  return /^\d+$/.test(text) ? Number(text) : null;
};

for (const row of document.querySelectorAll("[data-limit]")) {
  const soft = row.querySelector("[data-soft]");
  const hard = row.querySelector("[data-hard]");
  const check = () => {
    const [low, high] = [numberOf(soft), numberOf(hard)];
    const isAbove = low !== null && high !== null && low > high;
    soft.setCustomValidity(isAbove ? "The soft limit is above the hard limit." : "");
  };
  soft?.addEventListener("input", check);
  hard?.addEventListener("input", check);
}

for (const form of document.querySelectorAll("form[data-live]")) {
  for (const select of form.querySelectorAll("select")) {
    select.addEventListener("change", () => form.requestSubmit());
  }
}

const wait = document.querySelector("[data-wait]");
if (wait) {
  setTimeout(() => window.location.reload(), Number(wait.dataset.wait));
}
