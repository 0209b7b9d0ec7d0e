"use strict";

// The server says which sections have changed, as markup that it has escaped; this puts them in their places.
(() => {
  const connection = document.getElementById("connection");
  const say = (text) => { connection.textContent = text; };

  // A choice that somebody has opened stays open.
  const choices = (place) => [...place.querySelectorAll("details")];
  const nameOf = (choice) => choice.closest("[data-vmid]")?.dataset.vmid ?? "";

  // What the keyboard is at keeps it.
  const wordOf = (one) => `${nameOf(one)} ${one.tagName} ${one.value ?? ""}`;

  const source = new EventSource("events");
  source.addEventListener("open", () => say("live"));
  source.addEventListener("error", () => {
    say(source.readyState === EventSource.CLOSED ? "not live: load the page again" : "the connection is lost; trying again");
  });
  source.addEventListener("over", () => {
    source.close();
    location.assign("./");
  });
  source.addEventListener("sections", (event) => {
    for (const [name, markup] of Object.entries(JSON.parse(event.data))) {
      const place = document.querySelector(`[data-live="${CSS.escape(name)}"]`);
      if (place) {
        const focused = place.contains(document.activeElement) ? wordOf(document.activeElement) : "";
        const opened = new Set(choices(place).filter((choice) => choice.open).map(nameOf));
        place.innerHTML = markup;
        for (const choice of choices(place)) choice.open = opened.has(nameOf(choice));
        if (focused) {
          const again = [...place.querySelectorAll("a, button, summary")].find((one) => wordOf(one) === focused);
          again?.focus({ preventScroll: true });
        }
      }
    }
  });
  addEventListener("pagehide", () => source.close());
})();
