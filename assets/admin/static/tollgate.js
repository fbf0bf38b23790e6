// Only improves what works without it: asks before what can't be taken back, copies what is shown once, says while it
// is typed that a soft limit is above its hard one, sends what is typed in one form with another that would lose it,
// and keeps what is in flight up to date.
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

for (const form of document.querySelectorAll("form[data-with]")) {
  form.addEventListener("formdata", ({ formData }) => {
    for (const field of document.querySelectorAll(`#${form.dataset.with} input[name]`)) {
      formData.append(field.name, field.value);
    }
  });
}

for (const form of document.querySelectorAll("form[data-live]")) {
  for (const select of form.querySelectorAll("select")) {
    select.addEventListener("change", () => form.requestSubmit());
  }
}

// On a narrow screen the page looked at may be beyond the edge of the navigation.
for (const here of document.querySelectorAll("nav [aria-current]")) {
  const nav = here.parentElement;
  nav.scrollLeft = here.offsetLeft - nav.offsetLeft - (nav.clientWidth - here.offsetWidth) / 2;
}

const wait = document.querySelector("[data-wait]");
if (wait) {
  setTimeout(() => window.location.reload(), Number(wait.dataset.wait));
}

const live = document.querySelector("[data-live-from]");
if (live) {
  const showLive = (isLive) => {
    document.querySelector("[data-live-mark]").hidden = !isLive;
    document.querySelector("[data-still]").hidden = isLive;
  };
  const events = new EventSource(live.dataset.liveFrom);
  events.addEventListener("open", () => showLive(true));
  events.addEventListener("error", () => showLive(false));
  events.addEventListener("over", () => window.location.reload());
  events.addEventListener("message", (event) => {
    // What is just being pressed must stay where it is.
    if (live.matches(":active")) {
      return;
    }
    const focused = document.activeElement?.id;
    live.innerHTML = event.data;
    if (focused) {
      document.getElementById(focused)?.focus({ preventScroll: true });
    }
  });
}
