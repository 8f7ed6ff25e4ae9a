// The list of runs.
import { ago, element, fetchJson, problem, shortNumber, stateLabel, visitor } from "./page.js";

const EVERY_MS = 3000;

export function showRuns(main) {
  const chosen = new Set();
  const compare = element("button", { type: "button", disabled: true, onclick: () => {
    location.hash = `#/compare/${[...chosen].join(",")}`;
  } }, "Compare");
  const filter = element("input", { type: "search", placeholder: "name or state", "aria-label": "Filter runs" });
  const body = element("tbody");
  const note = element("p", { class: "faint" });
  let runs = [];
  let timer = 0;

  function row(run) {
    const box = element("input", { type: "checkbox", "aria-label": `compare ${run.name}`, onchange: () => {
      if (box.checked) chosen.add(run.id); else chosen.delete(run.id);
      compare.disabled = chosen.size < 2;
    } });
    box.checked = chosen.has(run.id);
    const steps = run.step === null || run.step === undefined ? "–" : `${run.step}${run.total ? ` / ${run.total}` : ""}`;
    return element("tr", {}, element("td", {}, box),
      element("td", { class: "name" }, element("a", { href: `#/run/${run.id}` }, run.name)),
      element("td", {}, stateLabel(run)),
      element("td", { class: "number" }, steps),
      element("td", { class: "number" }, shortNumber(run.reward)),
      element("td", {}, ago(run.changed)),
      element("td", { class: "name faint" }, run.reason));
  }

  function draw() {
    const text = filter.value.toLowerCase();
    const shown = runs.filter((run) => `${run.name} ${run.state}`.toLowerCase().includes(text));
    const focused = document.activeElement?.getAttribute("href") ?? document.activeElement?.getAttribute("aria-label");
    body.replaceChildren(...shown.map(row));
    if (focused) {
      [...body.querySelectorAll("a, input")]
        .find((other) => [other.getAttribute("href"), other.getAttribute("aria-label")].includes(focused))?.focus();
    }
    const none = visitor.signedIn
      ? "There are no experiments that you may see: those of namespaces where you may get grpoexperiments are listed here."
      : "There are no runs here yet. grpo run makes one; this list finds it by itself.";
    note.textContent = runs.length === 0 ? none : `${shown.length} of ${runs.length} runs`;
  }

  async function load() {
    try {
      runs = await fetchJson("/api/runs");
      draw();
    } catch (error) {
      note.textContent = `The list could not be loaded: ${error.message}`;
    }
    timer = setTimeout(load, EVERY_MS);
  }

  const heads = ["", "run", "state", "step", "reward", "changed", ""].map((text) =>
    element("th", { scope: "col", class: ["step", "reward"].includes(text) ? "number" : null }, text));
  filter.addEventListener("input", draw);
  main.replaceChildren(element("div", { class: "bar" }, filter, compare), note,
    element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, heads)), body)));
  load();
  return () => clearTimeout(timer);
}

// The same charts for several runs.
export function showProblem(main, text) {
  main.replaceChildren(problem(text), element("p", {}, element("a", { href: "#/" }, "All runs")));
}
