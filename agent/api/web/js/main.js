/** Where it begins: who is asking, then the shell with its views. */

import { get, post, Problem, UNREACHABLE } from "./api.js";
import { Control } from "./control.js";
import { h } from "./dom.js";
import { Live } from "./live.js";
import { login, tokenInLink } from "./login.js";
import { Shell } from "./shell.js";

const AGAIN_MS = 1000;

async function session() {
  const token = tokenInLink();
  let first = "";
  if (token) {
    try {
      return await post("/api/v1/session", { token });
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      first = `${problem.message} ${problem.hint}`;
    }
  }
  const view = document.getElementById("view");
  for (;;) {
    try {
      return await get("/api/v1/session");
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.code === "needs-login") return login(view, first);
      const message = problem.code === UNREACHABLE ? "The station does not answer yet." : problem.message;
      view.replaceChildren(h("p.empty", {}, `${message} Trying again.`));
      await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
  }
}

const found = await session();
const live = new Live();
const control = new Control(found);
new Shell({ session: found, live, control }).begin();
