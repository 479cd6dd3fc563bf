/** A question that must be answered before something that cannot be taken back. */

import { h } from "./dom.js";

/** Resolves to true when confirmed. `danger` colours the button that does it. */
export function confirm({ title, body, yes, no = "Cancel", danger = false }) {
  return new Promise((answer) => {
    const done = (value) => {
      dialog.close();
      dialog.remove();
      answer(value);
    };
    const dialog = h(
      "dialog.question",
      { "aria-labelledby": "question", oncancel: (event) => (event.preventDefault(), done(false)) },
      h("h2", { id: "question" }, title),
      ...[body].flat().map((line) => h("p", {}, line)),
      h(
        "div.row.end",
        {},
        h("button", { type: "button", onclick: () => done(false) }, no),
        h(`button.${danger ? "danger" : "primary"}`, { type: "button", onclick: () => done(true) }, yes),
      ),
    );
    document.body.append(dialog);
    // Not `showModal`: the rest of the page would become inert, and the STOP with it.
    dialog.show();
    dialog.querySelector("button").focus();
  });
}

/** Close what is open; whether something was. */
export function closeDialogs() {
  const open = [...document.querySelectorAll("dialog[open]")];
  for (const dialog of open) dialog.dispatchEvent(new Event("cancel", { cancelable: true }));
  return open.length > 0;
}
