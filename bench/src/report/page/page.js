"use strict";
// Draws the selected plots from the figures in the page. Text is inserted as text only.
(() => {
  const data = JSON.parse(document.getElementById("figures").textContent);
  const byId = (id) => document.getElementById(id);
  const PARTS = [["round-trip", "Round trip"], ["l2-to-l1", "L2 to L1"], ["l1", "L1"], ["l1-to-l2", "L1 to L2"]];
  const BOX = { width: 620, height: 320, left: 66, right: 606, top: 12, bottom: 272 };
  const state = { group: 0, kind: 0, plot: "percentiles", off: new Set() };

  const add = (parent, name, attributes, text) => {
    const svg = parent.namespaceURI === "http://www.w3.org/2000/svg" || name === "svg";
    const one = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) one.setAttribute(key, value);
    if (text !== undefined) one.textContent = text;
    parent.append(one);
    return one;
  };
  const number = (value) => {
    if (value === null || !Number.isFinite(value)) return "-";
    const digits = value !== 0 && Math.abs(value) < 10 ? 1 : 0;
    return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  };
  const percent = (q) => {
    const beyond = (1 - q) * 100;
    const digits = beyond > 0 ? Math.min(6, Math.max(0, Math.ceil(-Math.log10(beyond)) + 1)) : 6;
    return (q * 100).toFixed(digits) + " %";
  };

  // Each further nine is at the same distance from the one before; the last sample is half a sample from the end.
  const rank = (q, samples) => -Math.log10(Math.max(1 - q, 0.5 / Math.max(samples, 1)));
  const unrank = (place) => 1 - Math.pow(10, -place);

  // An axis that maps values to positions; `log` if its ends are far apart.
  const axis = (from, to, first, last, log) => {
    const f = log ? Math.log : (v) => v;
    const g = log ? Math.exp : (v) => v;
    const [a, b] = [f(from), f(to)];
    return {
      from, to, log,
      place: (v) => first + (f(log ? Math.max(v, from / 1e6) : v) - a) / (b - a) * (last - first),
      value: (p) => g(a + (p - first) / (last - first) * (b - a)),
    };
  };
  const ticks = ({ from, to, log }) => {
    const found = [];
    if (log && to / from > 4) {
      const steps = to / from > 1e3 ? [1] : [1, 2, 5];
      for (let decade = Math.pow(10, Math.floor(Math.log10(from))); decade <= to && found.length < 40; decade *= 10)
        for (const step of steps) found.push(step * decade);
    } else {
      const rough = (to - from) / 5;
      const power = Math.pow(10, Math.floor(Math.log10(rough)));
      const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
      for (let n = Math.ceil(from / step); n * step <= to && found.length < 40; n += 1) found.push(n * step);
    }
    return found.filter((tick) => tick >= from && tick <= to);
  };

  const ends = (series) => {
    let [least, most, samples] = [Infinity, 0, 1];
    for (const { part } of series) {
      least = Math.min(least, part.steps[0][0]);
      most = Math.max(most, part.steps[part.steps.length - 1][0]);
      samples = Math.max(samples, part.n);
    }
    return { least, most, log: least > 0, samples };
  };

  // The whole view of a plot, in its own coordinates.
  const whole = (series, plot, log) => {
    let { least, most, samples } = ends(series);
    log = log && least > 0;
    const air = Math.max((most - least) * 0.05, most * 0.004, 1e-9);
    [least, most] = log ? [least / 1.1, most * 1.1] : [Math.max(0, least - air), most + air];
    if (plot === "percentiles") return { x: [0, rank(1, samples)], y: [least, most], xlog: false, ylog: log, samples };
    return { x: [least, most], y: [0, null], xlog: log, ylog: false, samples };
  };

  const stairs = (part, x, y) => {
    let below = 0;
    let path = "";
    for (const [value, count] of part.steps) {
      const [from, to] = [below / part.n, (below + count) / part.n];
      below += count;
      const at = y.place(value).toFixed(1);
      path += (path ? "L" : "M") + x.place(rank(from, part.n)).toFixed(1) + " " + at + "L" + x.place(rank(to, part.n)).toFixed(1) + " " + at;
    }
    return path;
  };

  const BINS = 110;
  // Shares of the samples in bins of the visible range, so that a zoomed view shows more detail.
  const binned = (part, x) => {
    const shares = new Array(BINS).fill(0);
    for (const [value, count] of part.steps) {
      const bin = Math.floor((x.place(value) - BOX.left) / (BOX.right - BOX.left) * BINS);
      if (bin >= 0 && bin < BINS) shares[bin] += count / part.n;
    }
    return shares;
  };

  const at = (part, q) => {
    let below = 0;
    for (const [value, count] of part.steps) {
      below += count;
      if (below / part.n >= q) return value;
    }
    return part.max;
  };

  // One plot, with its own view.
  class Plot {
    constructor(host, name, title) {
      this.name = name;
      this.figure = add(host, "figure", {});
      const caption = add(this.figure, "figcaption", {});
      add(caption, "b", {}, title);
      this.note = add(caption, "span", {}, "");
      this.svg = add(this.figure, "svg", {
        viewBox: `0 0 ${BOX.width} ${BOX.height}`, tabindex: "0", role: "img", "data-part": name,
      });
      this.says = add(this.figure, "output", { "aria-live": "off" });
      this.listen();
    }

    show(series, plot, log) {
      this.series = series;
      this.plot = plot;
      this.log = log;
      this.view = series.length ? whole(series, plot, log) : null;
      this.draw();
    }

    draw() {
      const { svg } = this;
      svg.replaceChildren();
      this.says.replaceChildren();
      const unit = data.unit;
      this.svg.setAttribute("aria-label", this.figure.querySelector("b").textContent + ": " +
        this.series.map(({ mode, part }) => `${mode}: median ${number(part.p50)} ${unit}`).join("; "));
      if (!this.view) {
        this.note.textContent = "";
        add(svg, "text", { x: BOX.width / 2, y: BOX.height / 2, "text-anchor": "middle" }, "no mode is chosen");
        return;
      }
      const { view } = this;
      this.note.textContent = this.plot === "percentiles"
        ? ` · ${unit}${view.ylog ? " (logarithmic)" : ""} by percentile`
        : ` · share of the samples by ${unit}${view.xlog ? " (logarithmic)" : ""}`;
      const x = axis(view.x[0], view.x[1], BOX.left, BOX.right, view.xlog);
      let bins = null;
      let top = view.y[1];
      if (this.plot === "histogram") {
        bins = this.series.map(({ part }) => binned(part, x));
        if (top === null) top = Math.max(...bins.flat(), 1e-9) * 1.08;
      }
      const y = axis(view.y[0], top, BOX.bottom, BOX.top, view.ylog);
      this.axes = { x, y };
      const id = "clip-" + this.name;
      const clip = add(add(svg, "defs"), "clipPath", { id });
      add(clip, "rect", { x: BOX.left, y: BOX.top, width: BOX.right - BOX.left, height: BOX.bottom - BOX.top });
      for (const tick of ticks(y)) {
        const place = y.place(tick).toFixed(1);
        add(svg, "path", { class: "grid", d: `M${BOX.left} ${place}H${BOX.right}` });
        const text = bins ? (tick * 100).toFixed(top < 0.05 ? 1 : 0) + " %" : number(tick);
        add(svg, "text", { x: BOX.left - 7, y: +place + 4, "text-anchor": "end" }, text);
      }
      for (const [place, text] of this.marks(x)) {
        add(svg, "path", { class: "grid", d: `M${place.toFixed(1)} ${BOX.top}V${BOX.bottom}` });
        add(svg, "text", { x: place.toFixed(1), y: BOX.bottom + 18, "text-anchor": "middle" }, text);
      }
      const inside = add(svg, "g", { "clip-path": `url(#${id})` });
      this.series.forEach(({ mode, part }, index) => {
        const path = bins ? this.outline(bins[index], y) : stairs(part, x, y);
        if (bins) add(inside, "path", { class: "area", "data-mode": mode, d: path });
        add(add(inside, "path", { class: "curve", "data-mode": mode, d: path }), "title", {}, mode);
      });
      add(svg, "path", { class: "frame", d: `M${BOX.left} ${BOX.top}V${BOX.bottom}H${BOX.right}` });
      this.cross = add(svg, "path", { class: "cross", d: "M0 0" });
      this.chosen = add(svg, "rect", { class: "chosen-area", width: 0, height: 0 });
      const under = this.plot === "percentiles" ? "percentile of the samples" : data.unit;
      add(svg, "text", { x: (BOX.left + BOX.right) / 2, y: BOX.bottom + 40, "text-anchor": "middle" }, under);
    }

    marks(x) {
      if (this.plot !== "percentiles") return ticks(x).map((tick) => [x.place(tick), number(tick)]);
      const found = [];
      const quantiles = [0, 0.25, 0.5, 0.75];
      for (let nines = 1; nines < 9; nines += 1) quantiles.push(1 - Math.pow(10, -nines));
      let last = -Infinity;
      for (const q of quantiles) {
        const place = x.place(rank(q, 1e12));
        if (place < BOX.left - 0.5 || place > BOX.right || place - last < 34) continue;
        last = place;
        found.push([place, q >= 0.9 ? percent(q).replace(/0+ %$/, " %").replace(/\. %$/, " %") : q * 100 + " %"]);
      }
      return found;
    }

    outline(shares, y) {
      const width = (BOX.right - BOX.left) / BINS;
      let path = `M${BOX.left} ${y.place(0).toFixed(1)}`;
      shares.forEach((share, bin) => {
        const [from, to] = [BOX.left + bin * width, BOX.left + (bin + 1) * width];
        path += `L${from.toFixed(1)} ${y.place(share).toFixed(1)}L${to.toFixed(1)} ${y.place(share).toFixed(1)}`;
      });
      return path + `L${BOX.right} ${y.place(0).toFixed(1)}`;
    }

    place(event) {
      const box = this.svg.getBoundingClientRect();
      const inside = (v, low, high) => Math.min(high, Math.max(low, v));
      return [
        inside((event.clientX - box.left) / box.width * BOX.width, BOX.left, BOX.right),
        inside((event.clientY - box.top) / box.height * BOX.height, BOX.top, BOX.bottom),
      ];
    }

    // Zooms to the range between two positions of the plot.
    zoom([x0, y0], [x1, y1]) {
      const { x, y } = this.axes;
      const sorted = (a, b) => (a < b ? [a, b] : [b, a]);
      const wide = sorted(x.value(x0), x.value(x1));
      const high = this.plot === "histogram" ? [0, null] : sorted(y.value(y0), y.value(y1));
      if (!(wide[1] - wide[0] > 1e-9 * Math.max(1, Math.abs(wide[1])))) return;
      if (high[1] !== null && !(high[1] - high[0] > 1e-9 * Math.max(1, high[1]))) return;
      this.view = { ...this.view, x: wide, y: high };
      this.draw();
    }

    scale(factor, [cx, cy]) {
      const about = (low, high, centre) => [centre - (centre - low) * factor, centre + (high - centre) * factor];
      const [x0, x1] = about(BOX.left, BOX.right, cx);
      const [y0, y1] = about(BOX.top, BOX.bottom, cy);
      this.zoom([x0, y1], [x1, y0]);
    }

    reset() {
      if (!this.series.length) return;
      this.view = whole(this.series, this.plot, this.log);
      this.draw();
    }

    listen() {
      const { svg } = this;
      let from = null;
      svg.addEventListener("pointerdown", (event) => {
        if (!this.view || event.button !== 0) return;
        from = this.place(event);
        svg.setPointerCapture(event.pointerId);
        svg.focus({ preventScroll: true });
      });
      svg.addEventListener("pointermove", (event) => {
        if (!this.view) return;
        const to = this.place(event);
        this.tell(to);
        if (!from) return;
        const y = this.plot === "histogram" ? [BOX.top, BOX.bottom] : [Math.min(from[1], to[1]), Math.max(from[1], to[1])];
        for (const [key, value] of Object.entries({
          x: Math.min(from[0], to[0]), width: Math.abs(from[0] - to[0]), y: y[0], height: y[1] - y[0],
        })) this.chosen.setAttribute(key, value.toFixed(1));
      });
      const end = (event) => {
        if (!from) return;
        const [start, to] = [from, this.place(event)];
        from = null;
        if (Math.abs(start[0] - to[0]) > 5 && (this.plot === "histogram" || Math.abs(start[1] - to[1]) > 5)) this.zoom(start, to);
        else this.chosen.setAttribute("width", 0);
      };
      svg.addEventListener("pointerup", end);
      svg.addEventListener("pointercancel", () => { from = null; if (this.view) this.draw(); });
      svg.addEventListener("dblclick", () => this.reset());
      // The wheel scrolls the page until a plot is selected.
      svg.addEventListener("wheel", (event) => {
        if (!this.view || (document.activeElement !== svg && !event.ctrlKey)) return;
        event.preventDefault();
        this.scale(event.deltaY > 0 ? 1.25 : 0.8, this.place(event));
      }, { passive: false });
      svg.addEventListener("keydown", (event) => {
        if (!this.view) return;
        const middle = [(BOX.left + BOX.right) / 2, (BOX.top + BOX.bottom) / 2];
        const [dx, dy] = [(BOX.right - BOX.left) / 8, (BOX.bottom - BOX.top) / 8];
        const shift = (x, y) => this.zoom([BOX.left + x, BOX.bottom + y], [BOX.right + x, BOX.top + y]);
        const keys = {
          "0": () => this.reset(), Escape: () => this.reset(), Home: () => this.reset(),
          "+": () => this.scale(0.8, middle), "=": () => this.scale(0.8, middle), "-": () => this.scale(1.25, middle),
          ArrowLeft: () => shift(-dx, 0), ArrowRight: () => shift(dx, 0), ArrowUp: () => shift(0, -dy), ArrowDown: () => shift(0, dy),
        };
        if (!keys[event.key] || event.altKey || event.metaKey) return;
        event.preventDefault();
        keys[event.key]();
      });
    }

    // The values of the lines under the pointer.
    tell([px]) {
      const { x } = this.axes;
      this.cross.setAttribute("d", `M${px.toFixed(1)} ${BOX.top}V${BOX.bottom}`);
      this.says.replaceChildren();
      const head = add(this.says, "span", {});
      const value = x.value(px);
      head.textContent = this.plot === "percentiles" ? percent(unrank(value)) : `${number(value)} ${data.unit}`;
      for (const { mode, part } of this.series) {
        const one = add(this.says, "span", { "data-mode": mode });
        add(one, "i", {});
        if (this.plot === "percentiles") one.append(`${mode} ${number(at(part, unrank(value)))}`);
        else {
          let below = 0;
          for (const [step, count] of part.steps) if (step <= value) below += count;
          one.append(`${mode} ${percent(below / part.n)} at most`);
        }
      }
    }
  }

  const cell = (mode) => data.groups[state.group].cells[mode][state.kind];
  const plots = PARTS.map(([name, title]) => new Plot(byId("plots"), name, title));

  const options = (select, names, chosen) => {
    select.replaceChildren();
    names.forEach((name, index) => add(select, "option", { value: index }, name));
    select.value = chosen;
  };

  const modeButtons = () => {
    const host = byId("modes");
    host.replaceChildren();
    for (const { name, title } of data.groups[state.group].modes) {
      const button = add(host, "button", { class: "mode", "data-mode": name, title, type: "button" });
      button.setAttribute("aria-pressed", String(!state.off.has(name)));
      const svg = add(button, "svg", { viewBox: "0 0 34 10", "aria-hidden": "true" });
      add(svg, "path", { class: "sample", d: "M0 5H34" });
      button.append(name);
      button.addEventListener("click", () => {
        if (!state.off.delete(name)) state.off.add(name);
        button.setAttribute("aria-pressed", String(!state.off.has(name)));
        drawPlots();
      });
    }
  };

  const drawPlots = () => {
    const { modes } = data.groups[state.group];
    const shown = plots.map((plot) => {
      const series = [];
      modes.forEach(({ name }, index) => {
        const part = cell(index) && cell(index).parts[plot.name];
        if (part && part.steps.length && !state.off.has(name)) series.push({ mode: name, part });
      });
      return series;
    });
    // All parts on the same kind of axis, so that they can be compared; a part that was not measured has no plot.
    const log = shown.every((series) => !series.length || ends(series).log);
    const measured = (plot) => modes.some((_, index) => cell(index) && cell(index).parts[plot.name]);
    plots.forEach((plot, index) => {
      plot.figure.hidden = !measured(plot);
      plot.show(shown[index], state.plot, log);
    });
    byId("no-parts").hidden = plots.every((plot) => !plot.figure.hidden);
  };

  const drawNumbers = () => {
    const host = byId("numbers");
    host.replaceChildren();
    const table = add(host, "table", {});
    const head = add(add(table, "thead", {}), "tr", {});
    for (const name of ["", "samples", "min", "p50", "95 % interval of p50", "p90", "p99", "p99.9", "max", "mean"])
      add(head, "th", { scope: "col" }, name);
    const body = add(table, "tbody", {});
    data.groups[state.group].modes.forEach(({ name }, index) => {
      for (const [part, title] of PARTS) {
        const figures = cell(index) && cell(index).parts[part];
        if (!figures) continue;
        const row = add(body, "tr", {});
        add(row, "th", { scope: "row" }, `${name}: ${title}`);
        const interval = figures.ci ? `${number(figures.ci[0])} .. ${number(figures.ci[1])}` : "-";
        for (const text of [String(figures.n), number(figures.min), number(figures.p50), interval, number(figures.p90),
          number(figures.p99), number(figures.p99_9), number(figures.max), number(figures.mean)]) add(row, "td", {}, text);
      }
    });
  };

  const COLOURS = ["#0067b8", "#b45309", "#1a7f37", "#8b3fb5", "#b3261e", "#00828a", "#6b7280", "#a1396f", "#5d6b00", "#3d52a8"];
  const drawExits = () => {
    const host = byId("exits");
    host.replaceChildren();
    const { modes } = data.groups[state.group];
    const rows = modes.map(({ name }, index) => ({ name, cell: cell(index) })).filter(({ cell }) => cell && cell.exits !== null);
    if (!rows.length) {
      add(host, "p", { class: "soft" }, "Not counted for this kind.");
      return;
    }
    const reasons = [];
    for (const { cell } of rows) for (const [reason] of cell.reasons || []) if (!reasons.includes(reason)) reasons.push(reason);
    const sum = (cell) => (cell.reasons || []).reduce((all, [, count]) => all + count, 0);
    const most = Math.max(...rows.map(({ cell }) => Math.max(sum(cell), cell.exits)), 1e-9);
    const bars = add(host, "div", { class: "bars", role: "list" });
    for (const { name, cell } of rows) {
      add(bars, "span", {}, name);
      const words = (cell.reasons || []).map(([reason, count]) => `${reason} ${count.toFixed(2)}`).join(", ");
      const stack = add(bars, "div", { class: "stack", role: "listitem", "aria-label": `${name}: ${cell.exits.toFixed(2)}. ${words}` });
      const pieces = cell.reasons
        ? [...cell.reasons].sort(([a], [b]) => reasons.indexOf(a) - reasons.indexOf(b))
        : [["not told apart", cell.exits]];
      for (const [reason, count] of pieces) {
        const colour = cell.reasons ? COLOURS[reasons.indexOf(reason) % COLOURS.length] : "#6b7280";
        const piece = add(stack, "span", { title: `${reason} ${count.toFixed(2)}` });
        piece.style.setProperty("--r", colour);
        piece.style.width = `${(count / most * 100).toFixed(2)}%`;
        if (count / most > 0.09) piece.textContent = `${reason} ${count.toFixed(1)}`;
      }
      add(bars, "span", {}, cell.exits.toFixed(1));
    }
    const key = add(host, "div", { class: "key" });
    reasons.forEach((reason, index) => {
      const one = add(key, "span", {});
      add(one, "i", {}).style.setProperty("--r", COLOURS[index % COLOURS.length]);
      one.append(reason);
    });
  };

  const show = () => {
    const group = data.groups[state.group];
    options(byId("kind"), group.kinds.map(({ name, words }) => (name === words ? name : `${name} (${words})`)), state.kind);
    byId("group").value = state.group;
    byId("plot").value = state.plot;
    modeButtons();
    drawPlots();
    drawNumbers();
    drawExits();
    for (const row of document.querySelectorAll("tr[data-group]")) {
      const chosen = +row.dataset.group === state.group && +row.dataset.kind === state.kind;
      row.classList.toggle("chosen", chosen);
    }
  };

  // #group=0&kind=cpuid&plot=histogram
  const fromAddress = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const group = Number(wanted.get("group") || 0);
    if (data.groups[group]) state.group = group;
    const kind = data.groups[state.group].kinds.findIndex(({ name }) => name === wanted.get("kind"));
    state.kind = kind < 0 ? 0 : kind;
    if (wanted.get("plot") === "histogram") state.plot = "histogram";
  };
  const toAddress = () => {
    const kind = data.groups[state.group].kinds[state.kind].name;
    history.replaceState(null, "", "#" + new URLSearchParams({ group: state.group, kind, plot: state.plot }));
  };
  const choose = (change) => { Object.assign(state, change); toAddress(); show(); };

  if (!data.groups.length) return;
  options(byId("group"), data.groups.map(({ title }) => title), 0);
  byId("group").addEventListener("change", (event) => choose({ group: +event.target.value, kind: 0 }));
  byId("kind").addEventListener("change", (event) => choose({ kind: +event.target.value }));
  byId("plot").addEventListener("change", (event) => choose({ plot: event.target.value }));
  for (const button of document.querySelectorAll("button[data-kind]")) {
    button.addEventListener("click", () => {
      choose({ group: +button.dataset.group, kind: +button.dataset.kind });
      byId("chosen").scrollIntoView({ block: "start" });
    });
  }
  addEventListener("hashchange", () => { fromAddress(); show(); });
  fromAddress();
  show();
})();
