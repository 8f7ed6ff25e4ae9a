// Several runs in the same charts.
import { Chart } from "./charts.js";
import { element, fetchJson, problem } from "./page.js";

const POINTS = 500;
const MAX_RUNS = 8;
const EVERY_MS = 3000;

export function showComparison(main, identifiers) {
  const grid = element("div", { class: "charts" });
  const note = element("p", { class: "faint" });
  const charts = new Map();
  let timer = 0;
  let range = null;
  let closed = false;
  main.replaceChildren(note, grid);

  async function load() {
    try {
      await draw();
    } catch (error) {
      note.replaceChildren(problem(error.message));
    }
    if (!closed) timer = setTimeout(load, EVERY_MS);
  }

  async function draw() {
    const runs = await Promise.all(identifiers.slice(0, MAX_RUNS).map((each) => fetchJson(`/api/runs/${each}`)));
    note.textContent = runs.map((run) => `${run.name}: ${run.state}, step ${run.step}`).join("; ");
    const titles = new Map();
    for (const run of runs) for (const chart of run.charts) if (!titles.has(chart.title)) titles.set(chart.title, chart);
    const names = [...titles.values()].map((chart) => chart.statistics[0]);
    if (!names.length) return;
    const query = new URLSearchParams([...names.map((name) => ["name", name]), ["points", POINTS]]);
    if (range) { query.set("first", range[0]); query.set("last", range[1]); }
    const loaded = await Promise.all(runs.map((run) => fetchJson(`/api/runs/${run.id}/series?${query}`)));
    if (closed) return;
    for (const { title, unit, statistics } of titles.values()) {
      if (!charts.has(title)) {
        const chart = new Chart({
          title: title === "Time per stage" ? statistics[0] : title, unit,
          lines: runs.map((run) => ({ label: run.name, key: run.id })),
          events: () => [],
          zoomed: (chosen) => { range = chosen; draw(); },
        });
        charts.set(title, chart);
        grid.append(chart.root);
      }
      charts.get(title).draw(aligned(runs, loaded, statistics[0]));
    }
  }

  load();
  return () => {
    closed = true;
    clearTimeout(timer);
    charts.forEach((chart) => chart.destroy());
  };
}

// One column per run, on the union of the steps.
function aligned(runs, loaded, name) {
  const tables = loaded.map((points) => [points.steps, points.means[name] ?? points.steps.map(() => null)]);
  const [steps, ...columns] = uPlot.join(tables);
  return { steps, low: {}, high: {}, means: Object.fromEntries(runs.map((run, index) => [run.id, columns[index]])) };
}
