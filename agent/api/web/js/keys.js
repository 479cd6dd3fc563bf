/** Keyboard: Space and Esc stop the arm, from everywhere but a text field. */

import { closeDialogs } from "./dialog.js";

export const SHORTCUTS = [
  ["Space or Esc", "STOP"],
  ["R", "record, or keep what is being recorded"],
  ["T", "start or stop teleop"],
  ["1 to 5", "the views"],
  ["← →, K", "in an episode: a frame back, a frame on, play"],
  ["R", "in an episode: it was a success"],
];

const ONCE = ["r", "t", "k"];
const HELD = ["ArrowLeft", "ArrowRight"]; // go on while they are held down

const WRITES = "input:not([type=checkbox]):not([type=radio]):not([type=range]), textarea, select";

export function listen({ stop, atRest, go, act }) {
  window.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      const writing = event.target instanceof Element && event.target.matches(WRITES);
      if (event.key === "Escape") {
        // An arm that is known to lie still is not in the way of closing a question.
        const closed = closeDialogs();
        if (!(closed && atRest())) stop("Esc on the page");
        event.preventDefault();
      } else if (event.key === " " && !writing) {
        event.preventDefault();
        event.stopPropagation();
        if (!event.repeat) stop("Space on the page");
      } else if (writing || document.querySelector("dialog[open]")) {
        return; // beside an open question nothing is asked for but a stop
      } else if (!event.repeat && /^[1-5]$/.test(event.key)) {
        go(Number(event.key) - 1);
      } else if (!event.repeat && ONCE.includes(event.key.toLowerCase())) {
        act(event.key.toLowerCase());
      } else if (HELD.includes(event.key) && !event.target.matches?.("input[type=range]")) {
        act(event.key);
      }
    },
    true,
  );
  // A focused button acts when Space is let go.
  window.addEventListener(
    "keyup",
    (event) => {
      const writing = event.target instanceof Element && event.target.matches(WRITES);
      if (event.key === " " && !writing) event.preventDefault();
    },
    true,
  );
}
