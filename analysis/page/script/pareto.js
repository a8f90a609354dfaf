// One column against another: frontier, budget, and a brush that filters the table.
const plot = { points: [], x: null, y: null, cursor: -1, box: null, drag: null };
const DOT = 4.5, NEAR = 18;

function axisColumns() {
  const all = plottable(), has = (key) => all.find((column) => column.key === key);
  const x = has(store.state.x) ?? has("kv_ratio") ?? all[0];
  return { x, y: has(store.state.y) ?? has("loss") ?? all.find((column) => column.kind === "result") ?? all[0], all };
}

function drawPareto() {
  const { x, y, all } = axisColumns(), box = $("pareto");
  if (!x) { $("plots").hidden = true; return; }
  options($("pareto-x"), x.key, all);
  options($("pareto-y"), y.key, all);
  const width = Math.max(280, box.clientWidth), height = Math.min(380, Math.max(260, width * .62));
  const frame = { left: 56, right: width - 12, top: 10, bottom: height - 44 };
  const rows = Array.from({ length: data.rows }, (_, row) => row).filter((row) => Number.isFinite(x.value(row)) && Number.isFinite(y.value(row)));
  const sx = scaleOf(rows.map(x.value), frame.left, frame.right, { log: isLogKind(x), count: width / 90 });
  const sy = scaleOf(rows.map(y.value), frame.bottom, frame.top, { log: isLogKind(y) });
  const fit = new Set(found.rows), look = groups();
  plot.points = rows.map((row) => ({ row, x: x.value(row), y: y.value(row), px: sx.at(x.value(row)), py: sy.at(y.value(row)), fits: fit.has(row) }));
  plot.points.sort((a, b) => a.px - b.px || a.py - b.py);
  Object.assign(plot, { x, y, sx, sy, frame, width, height, cursor: -1 });
  box.replaceChildren();
  const image = picture(box, width, height, { "aria-hidden": "true" });
  plot.image = image;
  drawAxes(image);
  const inside = plot.points.filter((point) => point.fits);
  plot.inside = inside;
  const faint = plot.points.filter((point) => !point.fits);
  const dots = (list, shape) => list.map((point) => SHAPES[shape](round(point.px), round(point.py), list.length > 400 ? 3 : DOT)).join("");
  if (faint.length) draw(image, "path", { d: dots(faint, 0), class: "faint" });
  drawFrontier(image, inside);
  look.names.forEach((_, i) => {
    const own = inside.filter((point) => look.of(point.row) === i);
    if (own.length) draw(image, "path", { d: dots(own, i), class: `mark g${i}` });
  });
  drawPinned(image);
  plot.budget = draw(image, "g", { class: "budget" });
  plot.mark = draw(image, "g");
  plot.brush = draw(image, "rect", { class: "brush", visibility: "hidden" });
  drawBudget();
  drawLegend($("pareto-legend"), look);
  const best = plot.front.map((i) => titleOf(inside[i].row));
  $("pareto").setAttribute("aria-label", `${y.title} against ${x.title}: ${inside.length} of ${plot.points.length} rows, frontier of ${best.length}. `
    + "Arrow keys go from point to point, Enter opens a cell, P pins it.");
}

const round = (value) => Math.round(value * 10) / 10;

function drawAxes(image) {
  const { x, y, sx, sy, frame } = plot;
  for (const tick of sy.ticks) {
    draw(image, "line", { x1: frame.left, x2: frame.right, y1: sy.at(tick), y2: sy.at(tick), class: "grid" });
    draw(image, "text", { x: frame.left - 7, y: sy.at(tick) + 4, "text-anchor": "end" }, short(tick));
  }
  for (const tick of sx.ticks) {
    draw(image, "line", { x1: sx.at(tick), x2: sx.at(tick), y1: frame.bottom, y2: frame.bottom + 4, class: "tick" });
    draw(image, "text", { x: sx.at(tick), y: frame.bottom + 17, "text-anchor": "middle" }, short(tick));
  }
  draw(image, "line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, class: "tick" });
  const better = (column, low, high) => column.kind === "setting" ? "" : isDown(column) ? ` ${low}` : ` ${high}`;
  draw(image, "text", { x: (frame.left + frame.right) / 2, y: plot.height - 6, "text-anchor": "middle", class: "name" },
    `${x.title}${sx.log ? ", logarithmic" : ""}${better(x, "(← better)", "(better →)")}`);
  const middle = (frame.top + frame.bottom) / 2;
  draw(image, "text", { x: 13, y: middle, "text-anchor": "middle", class: "name", transform: `rotate(-90 13 ${middle})` },
    `${y.title}${better(y, "(← better)", "(better →)")}`);
}

function drawFrontier(image, inside) {
  const down = { x: isDown(plot.x), y: isDown(plot.y) };
  plot.front = frontier(inside, down);
  // A step a point: what is reached at a cost is reached at every higher one too.
  let path = "";
  plot.front.forEach((i, step) => {
    const { px, py } = inside[i];
    path += step ? `H${round(px)}V${round(py)}` : `M${round(px)} ${round(py)}`;
  });
  if (plot.front.length > 1) draw(image, "path", { d: path, class: "frontier" });
}

function drawPinned(image) {
  const labels = draw(image, "g");
  store.state.pins.forEach((id, i) => {
    const point = plot.points.find(({ row }) => row === rowOf.get(id));
    if (!point) return;
    draw(labels, "circle", { cx: point.px, cy: point.py, r: 8, class: "ring" });
    const after = point.px > plot.width - 40;
    draw(labels, "text", { x: point.px + (after ? -11 : 11), y: point.py - 7, "text-anchor": after ? "end" : "start", class: "pinned" }, String(i + 1));
  });
}

// ---- budget ----
function budgetStops() {
  return [...new Set(plot.inside.map(({ x }) => x))].sort((a, b) => isDown(plot.x) ? a - b : b - a);
}

function drawBudget() {
  const { x, y, sx, frame } = plot, { budget } = store.state, stops = budgetStops(), slider = $("budget");
  const sign = isDown(x) ? "≤" : "≥", fits = (value) => budget === null || (isDown(x) ? value <= budget : value >= budget);
  slider.max = stops.length;
  slider.value = budget === null ? stops.length : Math.max(0, stops.findLastIndex(fits));
  $("budget-name").textContent = `Budget: ${x.title} ${sign}`;
  const shown = budget === null ? "any" : short(Number(budget.toPrecision(4)));
  slider.setAttribute("aria-valuetext", shown);
  $("budget-value").textContent = shown;
  plot.budget.replaceChildren();
  if (budget !== null) {
    const place = Math.min(frame.right, Math.max(frame.left, sx.at(budget)));
    if (Number.isFinite(place)) {
      const outside = isDown(x) ? [place, frame.right - place] : [frame.left, place - frame.left];
      draw(plot.budget, "rect", { x: outside[0], y: frame.top, width: Math.max(0, outside[1]), height: frame.bottom - frame.top, class: "beyond" });
      draw(plot.budget, "line", { x1: place, x2: place, y1: frame.top, y2: frame.bottom, class: "limit" });
    }
  }
  const inside = plot.inside.filter((point) => fits(point.x)), line = $("budget-best");
  line.replaceChildren();
  $("budget-keep").hidden = budget === null;
  if (!inside.length) { line.textContent = "No row fits."; return; }
  const better = (a, b) => (isDown(y) ? a.y < b.y : a.y > b.y) || (a.y === b.y && (isDown(x) ? a.x < b.x : a.x > b.x));
  const best = inside.reduce((a, b) => better(b, a) ? b : a);
  line.append(`${budget === null ? "Best" : "Best within it"} in ${y.title}: `);
  button(line, titleOf(best.row), () => update({ cell: data.details.ids[best.row] }), { class: "open", "aria-haspopup": "dialog" });
  line.append(`, ${y.text(best.row)}, at ${x.title} ${x.text(best.row)}. `);
  const apart = byKey.get(y.kind === "delta" ? y.key.slice(6) : y.key);
  if (apart.delta) {
    const close = inside.filter((point) => {
      const { value, error } = difference(apart, point.row, best.row);
      return point !== best && Math.abs(value) <= 1.96 * error;
    });
    const cheapest = close.length ? close.reduce((a, b) => (isDown(x) ? b.x < a.x : b.x > a.x) ? b : a) : null;
    if (!close.length) line.append("The 95 % interval of every other’s difference to it leaves out zero.");
    else {
      line.append(`The 95 % interval of the difference to it holds zero for ${close.length} other${close.length > 1 ? "s" : ""}`);
      if (isDown(x) ? cheapest.x < best.x : cheapest.x > best.x) line.append(`, the cheapest ${titleOf(cheapest.row)} (${x.title} ${x.text(cheapest.row)})`);
      line.append(".");
    }
  }
}

// ---- pointer and keys ----
function nearest(px, py) {
  let best = null, least = NEAR ** 2;
  for (const point of plot.points) {
    const far = (point.px - px) ** 2 + (point.py - py) ** 2;
    if (far < least || (far === least && point.fits)) { least = far; best = point; }
  }
  return best;
}

function markPoint(point) {
  plot.mark.replaceChildren();
  const tip = $("pareto-tip");
  tip.hidden = !point;
  if (!point) return;
  draw(plot.mark, "circle", { cx: point.px, cy: point.py, r: 9, class: "ring" });
  tip.replaceChildren();
  add(tip, "strong", titleOf(point.row));
  add(tip, "span", `${plot.y.title} ${plot.y.text(point.row)}`);
  add(tip, "span", `${plot.x.title} ${plot.x.text(point.row)}`);
  const scale = $("pareto").clientWidth / plot.width;
  tip.style.top = `${(point.py + 14) * scale}px`;
  tip.style.left = `${Math.max(0, Math.min(point.px * scale - 20, $("pareto").clientWidth - tip.offsetWidth))}px`;
}

function startPareto() {
  const box = $("pareto"), redraw = soon(drawPareto, 30);
  const place = (event) => {
    const area = plot.image.getBoundingClientRect(), scale = plot.width / area.width;
    return { px: (event.clientX - area.left) * scale, py: (event.clientY - area.top) * scale };
  };
  box.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const { px, py } = place(event), { budget } = store.state;
    const onLine = budget !== null && Math.abs(plot.sx.at(budget) - px) < 6;
    plot.drag = { px, py, line: onLine };
    box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    const { px, py } = place(event), { drag, frame } = plot;
    if (!drag) { markPoint(nearest(px, py)); return; }
    if (drag.line) { update({ budget: Number(plot.sx.back(Math.min(frame.right, Math.max(frame.left, px))).toPrecision(4)) }); return; }
    markPoint(null);
    const [x, y] = [Math.min(px, drag.px), Math.min(py, drag.py)];
    const [width, height] = [Math.abs(px - drag.px), Math.abs(py - drag.py)];
    for (const [name, value] of Object.entries({ x, y, width, height, visibility: "visible" })) plot.brush.setAttribute(name, value);
  });
  box.addEventListener("pointerup", (event) => {
    const { px, py } = place(event), { drag, sx, sy } = plot;
    plot.drag = null;
    if (!drag || drag.line) return;
    plot.brush.setAttribute("visibility", "hidden");
    if (Math.hypot(px - drag.px, py - drag.py) < 5) {
      const point = nearest(px, py);
      if (point && event.pointerType !== "mouse") markPoint(point);
      else if (point) update({ cell: data.details.ids[point.row] });
      return;
    }
    const ends = (scale, a, b) => roundedEnds(...[scale.back(a), scale.back(b)].sort((p, q) => p - q));
    const ranges = { ...store.state.ranges, [plot.x.key]: ends(sx, drag.px, px), [plot.y.key]: ends(sy, drag.py, py) };
    update({ ranges });
    say($("count").textContent);
  });
  box.addEventListener("pointercancel", () => { plot.drag = null; plot.brush.setAttribute("visibility", "hidden"); });
  box.addEventListener("pointerleave", () => { if (!plot.drag) markPoint(null); });
  box.addEventListener("keydown", (event) => paretoKey(event));
  box.addEventListener("blur", () => markPoint(null));
  for (const axis of ["x", "y"]) {
    $(`pareto-${axis}`).addEventListener("change", (event) => update(axis === "x" ? { x: event.target.value, budget: null } : { y: event.target.value }));
  }
  $("colour").addEventListener("change", () => update({ colour: $("colour").value }));
  $("budget").addEventListener("input", () => {
    const stops = budgetStops(), at = Number($("budget").value);
    update({ budget: at >= stops.length ? null : stops[at] });
  });
  $("budget-keep").addEventListener("click", () => {
    const { budget } = store.state;
    if (isDown(plot.x)) setRange(plot.x.key, null, Number(budget.toPrecision(8)));
    else setRange(plot.x.key, Number(budget.toPrecision(8)), null);
    $("cells-box").focus();
  });
  watch(["colour"], () => { $("colour").value = store.state.colour || "model"; });
  watch(["q", "filters", "ranges", "base", "x", "y", "colour", "pins"], redraw);
  watch(["budget"], () => { if (plot.image) drawBudget(); });
  new ResizeObserver(() => { if (plot.width !== Math.max(280, box.clientWidth)) redraw(); }).observe(box);
}

function paretoKey(event) {
  const list = plot.inside, at = list.indexOf(plot.points[plot.cursor]);
  const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: list.length - 1 };
  const point = plot.points[plot.cursor];
  if (event.key in steps && list.length) {
    const next = list[Math.max(0, Math.min(list.length - 1, steps[event.key]))];
    plot.cursor = plot.points.indexOf(next);
    markPoint(next);
    say(rowText(next.row, [plot.y, plot.x]) + (plot.front.includes(list.indexOf(next)) ? "; on the frontier" : ""));
  } else if (event.key === "Enter" && point) update({ cell: data.details.ids[point.row] });
  else if ((event.key === "p" || event.key === "P") && point) togglePin(data.details.ids[point.row]);
  else if (event.key === "Escape") {
    const ranges = { ...store.state.ranges };
    delete ranges[plot.x.key];
    delete ranges[plot.y.key];
    update({ ranges });
    say($("count").textContent);
  } else return;
  event.preventDefault();
}
