/**
 * STOP: from every view, for whoever may see the arm, whoever has control, however old the picture is.
 *
 * It is asked for again until the station has read it back from the servos, or a person closes the alarm.
 */

import { abandon, post, Problem } from "./api.js";
import { closeDialogs } from "./dialog.js";
import { h, set, show, text } from "./dom.js";
import { span } from "./format.js";

const ANSWER_MS = 2500; // the station takes at most one second to read the servos back
const AGAIN_MS = 250;
const BEHIND_MS = 3000; // as long as a status may take
const SAME_PRESS_MS = 1000; // whoever holds it longer sends it twice, which does no harm

export class Stop extends EventTarget {
  constructor(live) {
    super();
    this.live = live;
    this.state = "ready"; // ready, sending, verified, failed
    this.tries = 0;
    this.tookMs = null;
    this.problem = null;
    this.button = document.getElementById("stop");
    // When it is touched, not when it is let go; the click that follows is the same press.
    let touchedAt = -Infinity;
    this.button.addEventListener("pointerdown", () => {
      touchedAt = performance.now();
      this.press("STOP on the page");
    });
    this.button.addEventListener("click", () => {
      if (performance.now() - touchedAt > SAME_PRESS_MS) this.press("STOP on the page");
    });
    this.banner = h("div.alarm", { role: "alert", hidden: true });
    document.getElementById("banners").prepend(this.banner);
  }

  async press(cause) {
    if (this.state === "sending") return;
    this._enter("sending");
    this.tries = 0;
    navigator.vibrate?.(60);
    closeDialogs();
    abandon();
    const pressed = performance.now();
    while (this.state === "sending") {
      this.tries += 1;
      try {
        await post("/api/v1/estop", { cause }, { timeoutMs: ANSWER_MS, priority: "high", keepalive: true });
        this.verifiedAt = performance.now();
        this.seen = false; // the latched mode, in the status
        this.tookMs = this.verifiedAt - pressed;
        this.problem = null;
        this._enter("verified");
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        this.problem = problem;
        if (problem.code === "needs-login") {
          this._enter("failed");
          return;
        }
        this._draw();
        await new Promise((done) => setTimeout(done, AGAIN_MS));
      }
    }
  }

  /** A person has seen the alarm, and does something about it. */
  giveUp() {
    this._enter("ready");
  }

  /**
   * The mode as the station tells it; a stop that was cleared needs no words any more. On a slow connection the status
   * from before the stop may still come after its answer.
   */
  follow(status) {
    if (this.state === "verified" && status) {
      const latched = status.mode === "estop";
      this.seen ||= latched;
      if (!latched && (this.seen || performance.now() - this.verifiedAt > BEHIND_MS)) this._enter("ready");
    }
    this._draw();
  }

  _enter(state) {
    this.state = state;
    this._draw();
    this.dispatchEvent(new Event("change"));
  }

  _draw() {
    const sending = this.state === "sending";
    const name = document.getElementById("stop-name");
    text(name, sending ? "Stopping…" : this.state === "verified" ? "Stopped" : "STOP");
    set(this.button, { data: { state: this.state }, "aria-busy": sending });
    show(this.button, true);
    const alarming = (sending && this.tries > 1) || this.state === "failed";
    show(this.banner, alarming || this.state === "verified");
    this.banner.dataset.tone = alarming ? "bad" : "good";
    if (alarming) {
      const again = sending ? ` Trying again (${this.tries}).` : "";
      this._say(
        "NOT confirmed: switch off the arm's power supply now.",
        `${this.problem?.message ?? ""}${again}`,
        h("button", { type: "button", onclick: () => this.giveUp() }, "The arm is safe"),
      );
    } else if (this.state === "verified") {
      this._say(
        `Stopped. Read back from the servos ${span(this.tookMs)} after the press.`,
        "It stays stopped until somebody resets it.",
      );
    }
  }

  _say(loud, quiet, ...more) {
    const key = `${loud}|${quiet}`;
    if (this.banner.dataset.said === key) return;
    this.banner.dataset.said = key;
    this.banner.replaceChildren(h("strong", {}, loud), h("span", {}, quiet), ...more);
  }
}
