/** The first thing somebody on another machine sees: a token, from its link or typed in. */

import { post, Problem } from "./api.js";
import { h, text } from "./dom.js";

/** The token behind `#token=`, which is taken out of the address at once. */
export function tokenInLink() {
  const found = /[#&]token=([^&]+)/.exec(location.hash);
  if (!found) return null;
  history.replaceState(null, "", location.pathname);
  return decodeURIComponent(found[1]);
}

/** Resolves to the session when somebody has logged in. */
export function login(view, first) {
  return new Promise((done) => {
    const problem = h("p.problem", { role: "alert" });
    const field = h("input", {
      id: "token",
      type: "password",
      autocomplete: "current-password",
      autocapitalize: "off",
      spellcheck: "false",
      required: true,
    });
    const form = h(
      "form.card.login",
      {
        onsubmit: async (event) => {
          event.preventDefault();
          text(problem, "");
          try {
            done(await post("/api/v1/session", { token: field.value.trim() }));
          } catch (error) {
            if (!(error instanceof Problem)) throw error;
            text(problem, `${error.message} ${error.hint}`);
            field.select();
          }
        },
      },
      h("h1", {}, "This station wants to know you"),
      h(
        "p",
        {},
        "On the station's machine, run ",
        h("code", {}, "so-agent token create phone --control"),
        " and open the link that it shows, or paste the token here.",
      ),
      h("label", { for: "token" }, "Token"),
      field,
      problem,
      h("button.primary", {}, "Open the station"),
    );
    view.replaceChildren(form);
    if (first) text(problem, first);
    field.focus();
  });
}
