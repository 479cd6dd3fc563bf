/** Control: this page's lease, kept alive by a worker, given back when the page goes away. */

import { ask, post, useLease } from "./api.js";

const policy = window.trustedTypes?.createPolicy("so-worker", { createScriptURL: (url) => url });

export class Control extends EventTarget {
  constructor(session) {
    super();
    this.session = session;
    this.mine = false;
    this.slow = false; // renewals take so long that control may be lost
    this._token = null;
    this._lock = null;
    const url = "/js/heartbeat.js";
    this._worker = new Worker(policy ? policy.createScriptURL(url) : url);
    this._worker.addEventListener("message", ({ data }) => this._heard(data));
    window.addEventListener("pagehide", () => this.leave());
    // A browser lets go of the screen whenever the page is hidden, for however short a while.
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible" && this.mine) this._stayAwake();
    });
  }

  /** Raises Problem: `no-control` when somebody else has it. */
  async take(takeOver = false) {
    const taken = await post("/api/v1/lease", { take_over: takeOver });
    this._token = taken.token;
    useLease(taken.token);
    this._worker.postMessage({ token: taken.token, leaseMs: taken.ttl_s * 1000 });
    this._become(true);
    this._stayAwake();
  }

  /** Have control, if nobody else has it. */
  async ensure() {
    if (!this.mine) await this.take();
  }

  async release() {
    if (!this._token) return;
    const done = ask("POST", "/api/v1/lease/release", { timeoutMs: 3000 });
    this._forget();
    await done;
  }

  /** The page goes away: nobody can wait for an answer any more. */
  leave() {
    if (!this._token) return;
    ask("POST", "/api/v1/lease/release", { keepalive: true }).catch(() => {});
    this._forget();
  }

  _heard({ lost, tookMs }) {
    if (!this._token) return;
    if (lost !== undefined) {
      this._forget();
      this.dispatchEvent(new CustomEvent("lost", { detail: lost }));
      return;
    }
    const slow = tookMs === null || tookMs > this.session.lease_s * 500;
    if (slow !== this.slow) {
      this.slow = slow;
      this.dispatchEvent(new Event("change"));
    }
  }

  _forget() {
    this._token = null;
    useLease(null);
    this._worker.postMessage({ token: null });
    this._lock?.release().catch(() => {});
    this._lock = null;
    this.slow = false;
    this._become(false);
  }

  _become(mine) {
    this.mine = mine;
    this.dispatchEvent(new Event("change"));
  }

  /** A phone that dims its screen freezes the page, and the arm would hold. */
  async _stayAwake() {
    try {
      const lock = await navigator.wakeLock?.request("screen");
      if (this.mine) this._lock = lock;
      else lock?.release();
    } catch {
      // Not allowed now, e.g. because the battery is low: then the screen has to be kept on by hand.
    }
  }
}
