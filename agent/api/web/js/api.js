/** Requests to the station, and the problems that come back. */

/** What went wrong, with the station's own sentence and hint. */
export class Problem extends Error {
  constructor(status, about) {
    super(about.detail || "The station answered something unexpected.");
    this.status = status;
    this.code = about.code || "agent-error";
    this.hint = about.hint || "";
  }
}

export const UNREACHABLE = "unreachable";

function unreachable() {
  return new Problem(0, {
    code: UNREACHABLE,
    detail: "The station does not answer.",
    hint: "Is this device still in its network?",
  });
}

let lease = null;
const abandonable = new Set();

/** The token that goes with everything that moves the arm. */
export function useLease(token) {
  lease = token;
}

/**
 * Ask; returns the Response. `timeoutMs` bounds the whole exchange.
 * Raises Problem, also when nothing answers.
 */
export async function ask(method, path, { body, timeoutMs = 15000, priority, keepalive } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (lease && method !== "GET") headers["X-Lease"] = lease;
  // By hand: a STOP must not depend on what browsers of four years ago do not have yet (AbortSignal.timeout).
  const ended = new AbortController();
  setTimeout(() => ended.abort(), timeoutMs);
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: ended.signal,
      cache: "no-store",
      credentials: "same-origin",
      priority,
      keepalive,
    });
  } catch {
    throw unreachable();
  }
  if (response.ok) return response;
  let about = {};
  try {
    about = await response.json();
  } catch {
    // Not from the station itself: the status alone has to do.
  }
  throw new Problem(response.status, about);
}

export async function get(path, options) {
  return (await ask("GET", path, options)).json();
}

export async function post(path, body = {}, options = {}) {
  return (await ask("POST", path, { ...options, body })).json();
}

export async function remove(path) {
  const response = await ask("DELETE", path);
  return response.status === 204 ? null : response.json();
}

/**
 * A request that gives way: browsers keep six connections to one station, and a stop must never wait for a picture.
 */
export async function abandonableGet(path, timeoutMs) {
  const controller = new AbortController();
  abandonable.add(controller);
  try {
    return await ask("GET", path, { signal: controller.signal, timeoutMs, priority: "low" });
  } finally {
    abandonable.delete(controller);
  }
}

export function abandon() {
  for (const controller of abandonable) controller.abort();
}
