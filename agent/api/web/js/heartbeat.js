/** A worker that says that the page is still there. Its own thread: drawing must not be taken for absence. */

let running = 0;

self.addEventListener("message", ({ data }) => {
  running += 1;
  if (data.token) beat(data, running);
});

async function beat({ token, leaseMs }, mine) {
  const everyMs = leaseMs / 4;
  while (running === mine) {
    const began = performance.now();
    try {
      const response = await fetch("/api/v1/lease/renew", {
        method: "POST",
        headers: { "X-Lease": token },
        cache: "no-store",
        credentials: "same-origin",
        priority: "high",
        signal: AbortSignal.timeout(Math.max(leaseMs, 1000)),
      });
      if (running !== mine) return;
      if (response.status === 409 || response.status === 401 || response.status === 403) {
        self.postMessage({ lost: (await response.json()).detail });
        return;
      }
      self.postMessage({ tookMs: performance.now() - began });
    } catch {
      self.postMessage({ tookMs: null }); // no answer: the station decides, and says so when it is back
    }
    await new Promise((done) => setTimeout(done, Math.max(0, everyMs - (performance.now() - began))));
  }
}
