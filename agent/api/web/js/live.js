/** What happens at the station, as it happens: one stream, and the knowledge of how old what is shown is. */

export const STALE_MS = 2000;
const REOPEN_MS = 6000;
const MEMORY = 1000;

export class Live extends EventTarget {
  constructor() {
    super();
    this.status = null;
    this.problem = null; // the agent does not answer, though its page does
    this.joints = null;
    this.jointsAt = 0;
    this.events = [];
    this.heardAt = 0;
    this.stale = true;
    this._source = null;
    this._openedAt = 0;
    setInterval(() => this._look(), 250);
  }

  get lastSeq() {
    return this.events.length ? this.events[this.events.length - 1].seq : 0;
  }

  open() {
    if (this._source) return;
    this._openedAt = performance.now();
    const since = this.lastSeq ? `?since=${this.lastSeq}` : "";
    const source = (this._source = new EventSource(`/api/v1/live${since}`));
    source.addEventListener("status", (message) => this._onStatus(JSON.parse(message.data)));
    source.addEventListener("joints", (message) => {
      this.joints = JSON.parse(message.data);
      this.jointsAt = performance.now();
      this._heard("joints");
    });
    source.addEventListener("event", (message) => this.remember([JSON.parse(message.data)]));
    source.addEventListener("beat", () => this._heard("beat"));
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) {
        this.close();
        this.dispatchEvent(new Event("refused"));
      }
    });
  }

  close() {
    if (this._source) this._source.close();
    this._source = null;
  }

  /** Take events in, oldest first; those that are known already are left out. */
  remember(events) {
    const fresh = events.filter((event) => event.seq > this.lastSeq);
    this.events.push(...fresh);
    if (this.events.length > MEMORY) this.events.splice(0, this.events.length - MEMORY);
    this._heard("events");
    for (const event of fresh) this.dispatchEvent(new CustomEvent("happened", { detail: event }));
  }

  _onStatus(told) {
    this.problem = told.running ? null : told;
    if (told.running) this.status = told.status;
    this._heard("status");
  }

  _heard(what) {
    this.heardAt = performance.now();
    if (this.stale) {
      this.stale = false;
      this.dispatchEvent(new Event("link"));
    }
    this.dispatchEvent(new Event(what));
  }

  _look() {
    const now = performance.now();
    const silent = now - this.heardAt;
    if (!this.stale && silent > STALE_MS) {
      this.stale = true;
      this.dispatchEvent(new Event("link"));
    }
    if (this.stale) this.dispatchEvent(new Event("waiting"));
    // A network that vanished leaves the old connection silent for minutes: begin a new one.
    if (this._source && silent > REOPEN_MS && now - this._openedAt > REOPEN_MS) {
      this.close();
      this.open();
    }
  }
}
