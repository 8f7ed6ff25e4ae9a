// Charts by uPlot: one per group of statistics, drawn from columns by step, with events as marks.
import { element, shortNumber } from "./page.js";

const COLOURS = ["#2f7fd6", "#d64545", "#2c9c5a", "#a06cd5", "#d98a1f", "#1ba3a3", "#c94f9b", "#7c8a2a"];
const HEIGHT = 190;
const TICK = 4;
const EVENT_COLOURS = { launcher: "--faint", weights: "--accent" };

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Dashed lines at the steps of events, and a tick below the axis where a step published weights.
function marks(events) {
  return {
    hooks: {
      draw: [(plot) => {
        const { ctx, bbox } = plot;
        const bottom = bbox.top + bbox.height;
        ctx.save();
        for (const event of events()) {
          const x = plot.valToPos(event.step, "x", true);
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          const update = event.kind === "weights";
          ctx.strokeStyle = style(EVENT_COLOURS[event.kind] ?? "--warn");
          ctx.setLineDash(update ? [] : [4, 4]);
          ctx.beginPath();
          ctx.moveTo(x, update ? bottom : bbox.top);
          ctx.lineTo(x, update ? bottom + TICK * devicePixelRatio : bottom);
          ctx.stroke();
        }
        ctx.restore();
      }],
    },
  };
}

// uPlot's range, but for a constant series, which it would draw at the bottom of 0 to 100.
function range(plot, low, high) {
  if (low === null || low !== high) return uPlot.rangeNum(low, high, 0.1, true);
  const margin = Math.abs(low) / 10 || 1;
  return [low === 0 ? 0 : low - margin, high + margin];
}

function few(column) {
  return column.reduce((count, value) => count + (value !== null), 0) < 40;
}

export class Chart {
  // lines: [{label, key}]; band: whether low and high are drawn around each line.
  constructor({ title, unit, lines, events, zoomed }) {
    this.lines = lines;
    this.holder = element("div");
    this.root = element("section", { class: "chart", "aria-label": title },
      element("h3", {}, title, unit ? element("small", {}, ` ${unit}`) : null), this.holder);
    this.events = events;
    this.zoomed = zoomed;
    this.plot = null;
    this.banded = null;
  }

  draw(points) {
    const banded = Object.keys(points.low).length > 0;
    const data = this.data(points, banded);
    if (this.plot && this.banded === banded) this.plot.setData(data);
    else this.build(data, banded);
  }

  data(points, banded) {
    const none = points.steps.map(() => null);
    const columns = [points.steps];
    for (const { key } of this.lines) {
      columns.push(points.means[key] ?? none);
      if (banded) columns.push(points.low[key] ?? none, points.high[key] ?? none);
    }
    return columns;
  }

  build(data, banded) {
    this.banded = banded;
    this.plot?.destroy();
    const series = [{ label: "step" }];
    const bands = [];
    this.lines.forEach(({ label }, index) => {
      const column = data[1 + index * (banded ? 3 : 1)];
      const colour = COLOURS[index % COLOURS.length];
      const value = (plot, number) => shortNumber(number);
      series.push({ label, stroke: colour, width: 1.5, spanGaps: true, value, points: { show: few(column) } });
      if (banded) {
        const edge = { class: "band", stroke: "transparent", spanGaps: true, value, points: { show: false } };
        series.push({ ...edge, label: `${label} min` }, { ...edge, label: `${label} max` });
        bands.push({ series: [series.length - 1, series.length - 2], fill: `${colour}30` });
      }
    });
    const axis = { stroke: style("--faint"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false } };
    const options = {
      width: this.width(),
      height: HEIGHT,
      scales: { x: { time: false }, y: { range } },
      series,
      bands,
      axes: [{ ...axis, size: 30 }, { ...axis, size: 58, values: (plot, ticks) => ticks.map(shortNumber) }],
      legend: { live: true },
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
      plugins: [marks(this.events)],
      hooks: { setSelect: [(plot) => this.select(plot)] },
    };
    this.plot = new uPlot(options, data, this.holder);
    this.plot.root.addEventListener("dblclick", () => this.zoomed(null));
  }

  select(plot) {
    if (plot.select.width < 5) return;
    const ends = [plot.select.left, plot.select.left + plot.select.width].map((at) => plot.posToVal(at, "x"));
    this.zoomed([Math.max(0, Math.floor(ends[0])), Math.ceil(ends[1])]);
  }

  width() {
    return Math.max(200, (this.holder.clientWidth || 360) - 2);
  }

  resize() {
    this.plot?.setSize({ width: this.width(), height: HEIGHT });
  }

  destroy() {
    this.plot?.destroy();
    this.plot = null;
  }
}
