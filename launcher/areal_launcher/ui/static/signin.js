// Signing in with a token of the cluster, on a page that several visitors share.
import { element, problem } from "./page.js";

export function showSignIn(main, done) {
  const token = element("input", { type: "password", id: "token", autocomplete: "off", required: true, size: 40 });
  const note = element("div", { role: "status" });
  async function submit(event) {
    event.preventDefault();
    const body = JSON.stringify({ token: token.value });
    try {
      const response = await fetch("/login", { method: "POST", headers: { "content-type": "application/json" }, body });
      if (response.ok) { done(); return; }
      note.replaceChildren(problem((await response.json()).detail));
    } catch (error) {
      note.replaceChildren(problem(`The server does not answer: ${error.message}`));
    }
    token.value = "";
    token.focus();
  }
  main.replaceChildren(element("form", { class: "signin", onsubmit: submit },
    element("label", { for: "token" }, "Token of this cluster"), token,
    element("button", { type: "submit" }, "Sign in"), note,
    element("p", { class: "faint" }, "For example one of a service account that may get grpoexperiments: ",
      element("code", {}, "kubectl create token NAME --namespace NAMESPACE --audience areal-page"))));
  token.focus();
}

export async function signOut() {
  await fetch("/logout", { method: "POST" });
}
