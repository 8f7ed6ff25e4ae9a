// Chooses the view by the address: #/, #/run/ID, #/compare/ID,ID.
import { showComparison } from "./compare.js";
import { element, visitor } from "./page.js";
import { RunView } from "./run.js";
import { showProblem, showRuns } from "./runs.js";
import { showSignIn, signOut } from "./signin.js";

const main = document.getElementById("main");
const where = document.getElementById("where");
const connection = document.getElementById("connection");
const user = document.getElementById("user");
let close = () => {};
let signingIn = false;

function show() {
  close();
  where.textContent = "";
  connection.textContent = "";
  document.title = "grpo runs";
  const [view, argument = ""] = location.hash.replace(/^#\/?/, "").split("/");
  if (view === "run" && /^[0-9a-f]{16}$/.test(argument)) {
    const run = new RunView(main, argument, where, connection);
    close = () => run.close();
  } else if (view === "compare" && /^[0-9a-f,]+$/.test(argument)) {
    where.textContent = "comparison";
    close = showComparison(main, argument.split(","));
  } else if (view === "") {
    close = showRuns(main);
  } else {
    close = () => {};
    showProblem(main, "There is no such page.");
  }
  main.focus();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
visitor.addEventListener("signin", () => {
  if (signingIn) return;
  signingIn = true;
  close();
  close = () => {};
  user.replaceChildren();
  showSignIn(main, () => { signingIn = false; show(); });
});
visitor.addEventListener("user", ({ detail: name }) => {
  if (user.textContent.startsWith(name)) return;
  user.replaceChildren(name, " ", element("button", { type: "button", onclick: async () => {
    await signOut();
    location.reload();
  } }, "Sign out"));
});
addEventListener("hashchange", () => { if (!signingIn) show(); });
show();
