/** What is around every view: the mode, who has control, the way to the other views, and STOP. */

import { complain, notice } from "./notice.js";
import { confirm } from "./dialog.js";
import { post, Problem } from "./api.js";
import { h, icon, ICONS, set, show, text } from "./dom.js";
import { MODES, sentence, span } from "./format.js";
import { listen } from "./keys.js";
import { Stop } from "./stop.js";
import { operate } from "./operate/view.js";
import { episodes } from "./episodes/list.js";
import { learning } from "./learning.js";
import { happenings } from "./events.js";
import { station } from "./station.js";

const VIEWS = [
  { id: "operate", name: "Operate", make: operate },
  { id: "episodes", name: "Episodes", make: episodes },
  { id: "learning", name: "Learning", make: learning },
  { id: "events", name: "Events", make: happenings },
  { id: "station", name: "Station", make: station },
];

export class Shell {
  constructor({ session, live, control }) {
    this.session = session;
    this.live = live;
    this.control = control;
    this.stop = new Stop(live);
    this.view = null;
    this._made = new Map();
    this._drawing = false;
    document.title = `${session.station} · so-agent`;
    this._build();
  }

  get status() {
    return this.live.status;
  }

  /** Who has control, as this page's reader would call them. */
  nameOf(lease) {
    return lease.owner === this.session.name ? "Your other page" : sentence(lease.owner);
  }

  get mayControl() {
    return this.session.role === "control";
  }

  begin() {
    for (const what of ["status", "joints", "events", "link", "beat", "waiting"]) {
      this.live.addEventListener(what, () => this.draw());
    }
    this.live.addEventListener("refused", () => this._refused());
    this.live.addEventListener("happened", ({ detail }) => this._happened(detail));
    this.control.addEventListener("change", () => this.draw());
    this.control.addEventListener("lost", ({ detail }) => {
      notice("You have no control any more.", { hint: detail, tone: "bad" });
    });
    window.addEventListener("hashchange", () => this._route());
    document.addEventListener("visibilitychange", () => this._seen());
    window.addEventListener("pageshow", (event) => event.persisted && location.reload());
    listen({
      stop: (cause) => this.stop.press(cause),
      atRest: () => !this.live.stale && this.status?.mode === "idle",
      go: (number) => (location.hash = `#/${VIEWS[number].id}`),
      act: (key) => this.view?.key?.(key),
    });
    this.live.open();
    this._route();
    this.draw();
  }

  /** Draw once a frame, however much has changed. */
  draw() {
    if (this._drawing) return;
    this._drawing = true;
    requestAnimationFrame(() => {
      this._drawing = false;
      this._drawShell();
      this.view?.draw?.();
    });
  }

  /**
   * Do something that a person asked for, and say so when it was refused. With `control` this page takes control first,
   * when nobody else has it. Returns the answer, or null.
   */
  async act(path, body = {}, { control = false, timeoutMs } = {}) {
    try {
      if (control) await this._ensureControl();
      return await post(path, body, { timeoutMs });
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      complain(problem);
      return null;
    }
  }

  async _ensureControl() {
    try {
      await this.control.ensure();
    } catch (problem) {
      const lease = this.status?.lease;
      if (problem.code !== "no-control" || !lease) throw problem;
      const wanted = await this._askToTakeOver(lease);
      if (!wanted) throw problem;
      await this.control.take(true);
    }
  }

  _askToTakeOver(lease) {
    return confirm({
      title: `${this.nameOf(lease)} has control`,
      body: lease.moves ? "The arm moves because of it. It holds as soon as control is yours." : "Control passes to you at once.",
      yes: "Take over",
      danger: lease.moves,
    });
  }

  async _takeOver() {
    const lease = this.status?.lease;
    if (lease && !(await this._askToTakeOver(lease))) return;
    try {
      await this.control.take(Boolean(lease));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      complain(problem);
    }
  }

  _build() {
    this._who = document.getElementById("who");
    this._whoText = h("span.who-text");
    this._whoButton = h("button.quiet", { type: "button", onclick: () => this._whoPressed() });
    this._who.append(this._whoText, this._whoButton);
    const tabs = document.getElementById("tabs");
    this._tabs = VIEWS.map(({ id, name }) => h("a.tab", { href: `#/${id}` }, icon(ICONS[id]), h("span", {}, name)));
    tabs.append(...this._tabs);
    this._stale = h("div.banner", { role: "status", data: { tone: "warn" }, hidden: true });
    document.getElementById("banners").append(this._stale);
  }

  async _whoPressed() {
    if (!this.control.mine) return this._takeOver();
    try {
      await this.control.release();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      complain(problem);
    }
  }

  _route() {
    const [, id, ...rest] = location.hash.split("/");
    const about = VIEWS.find((view) => view.id === id) ?? VIEWS[0];
    if (!this._made.has(about.id)) this._made.set(about.id, about.make(this));
    const before = this.view;
    this.view = this._made.get(about.id);
    if (before && before !== this.view) before.leave?.();
    const place = document.getElementById("view");
    if (place.firstChild !== this.view.element) {
      place.replaceChildren(this.view.element);
      window.scrollTo(0, 0);
    }
    for (const [number, view] of VIEWS.entries()) {
      set(this._tabs[number], { "aria-current": view === about ? "page" : null });
    }
    this.view.enter?.(rest);
    this.draw();
  }

  /** A page that nobody sees costs the station nothing, unless somebody controls the arm from it. */
  _seen() {
    if (document.visibilityState === "visible") {
      this.live.open();
      this.view?.enter?.(location.hash.split("/").slice(2));
    } else if (!this.control.mine) {
      this.live.close();
      this.view?.leave?.();
    }
  }

  async _refused() {
    // The stream ended with an answer: log in again, or the station has too many viewers.
    const known = await fetch("/api/v1/session", { cache: "no-store" }).catch(() => null);
    if (known?.status === 401) location.reload();
    else setTimeout(() => this.live.open(), 1000);
  }

  _happened(event) {
    const { kind, data, text: words } = event;
    if (kind === "episode" && (data.outcome === "rejected" || data.outcome === "salvaged")) {
      notice(words, { tone: "bad" });
    } else if (kind === "child" && data.given_up) {
      notice(words, { tone: "bad" });
    }
  }

  _drawShell() {
    const { status, live } = this;
    const mode = MODES[status?.mode] ?? { name: "Connecting", tone: "busy" };
    const known = status && !live.problem;
    document.body.dataset.tone = known ? mode.tone : "unknown";
    document.body.dataset.link = live.stale ? "stale" : live.problem ? "down" : "fresh";
    if (status || live.problem) document.body.dataset.ready = ""; // keys do something from here on
    text(document.getElementById("mode-name"), known ? mode.name : live.problem ? "No agent" : mode.name);
    text(document.getElementById("mode-reason"), sentence(live.problem ? live.problem.message : status?.reason ?? "to the station"));
    this._drawWho(status?.lease);
    show(this._stale, live.stale && live.heardAt > 0);
    if (live.stale) {
      const since = span(performance.now() - live.heardAt);
      text(this._stale, `No connection for ${since}. What you see is from then. STOP is still sent.`);
    }
    this.stop.follow(live.stale ? null : status);
  }

  _drawWho(lease) {
    const { control } = this;
    document.body.dataset.control = control.mine ? "mine" : lease ? "theirs" : "free";
    const holder = control.mine ? "You have control" : lease ? `${this.nameOf(lease)} has control` : "Nobody has control";
    text(this._whoText, control.slow ? "Control: slow connection" : holder);
    text(this._whoButton, control.mine ? "Give back" : lease ? "Take over" : "Take control");
    show(this._whoButton, this.mayControl);
    if (!this.mayControl) text(this._whoText, lease ? holder : "You may look and stop");
  }
}
