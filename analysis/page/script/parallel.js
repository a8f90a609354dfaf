// Parallel coordinates: a line a row across several columns; a stretch dragged on an axis filters the table.
const MOST_LINES = 2000, MOST_AXES = 9;
const parallel = { axes: [], drag: null };

function chosenAxes() {
  const all = plottable(), chosen = store.state.axes.map((key) => byKey.get(key)).filter((column) => all.includes(column));
  if (chosen.length) return chosen;
  const start = all.filter((column) => column.key === "kv_ratio" || column.key === "attention_flops_ratio" || column.key === "dilation"
    || (column.kind === "result" && column.shown));
  // What is the same in all rows tells nothing.
  const told = start.filter((column) => new Set(column.raw.filter((value) => !Number.isNaN(value))).size > 1);
  const settings = told.filter((column) => column.kind !== "result");
  return [...settings, ...told.filter((column) => column.kind === "result").slice(0, 6 - settings.length)];
}

function drawParallel() {
  const axes = chosenAxes(), box = $("parallel");
  $("parallel-part").hidden = axes.length < 2;
  if (axes.length < 2) return;
  const width = Math.max(280, box.clientWidth), height = 320, top = 46, bottom = height - 22;
  const edge = Math.min(46, width / 9), gap = (width - 2 * edge) / (axes.length - 1);
  parallel.axes = axes.map((column, i) => ({
    column, x: edge + i * gap, scale: scaleOf(column.raw.map((_, row) => column.value(row)), bottom, top, { log: isLogKind(column), pad: 0 }),
  }));
  Object.assign(parallel, { width, height, top, bottom, gap });
  box.replaceChildren();
  const image = parallel.image = picture(box, width, height, { role: "img" });
  const look = groups(), rows = spread(found.rows, MOST_LINES);
  const path = (row) => {
    let text = "", move = true;
    for (const { column, x, scale } of parallel.axes) {
      const value = column.value(row);
      // A value that is missing leaves a gap.
      if (!Number.isFinite(value)) { move = true; continue; }
      text += `${move ? "M" : "L"}${round(x)} ${round(scale.at(value))}`;
      move = false;
    }
    return text;
  };
  const fit = new Set(found.rows), faint = spread(Array.from({ length: data.rows }, (_, row) => row).filter((row) => !fit.has(row)), MOST_LINES / 4);
  if (faint.length) draw(image, "path", { d: faint.map(path).join(""), class: "lines faint" });
  look.names.forEach((_, i) => {
    const own = rows.filter((row) => look.of(row) === i);
    // Where hundreds lie on each other, only pale lines show where most of them run.
    if (own.length) draw(image, "path", { d: own.map(path).join(""), class: `lines g${i}`, "stroke-opacity": Math.max(.12, Math.min(.75, 30 / rows.length)) });
  });
  store.state.pins.forEach((id, i) => {
    const row = rowOf.get(id), last = parallel.axes.at(-1), value = last.column.value(row);
    draw(image, "path", { d: path(row), class: "lines strong" });
    if (Number.isFinite(value)) draw(image, "text", { x: last.x + 5, y: last.scale.at(value) + 4, class: "pinned" }, String(i + 1));
  });
  for (const axis of parallel.axes) drawAxis(image, axis);
  parallel.brush = draw(image, "rect", { class: "brush", visibility: "hidden" });
  const left = found.rows.length - rows.length;
  $("parallel-note").textContent = left > 0 ? `${rows.length} of ${found.rows.length} rows that fit are drawn, evenly spread over the table's order.` : "";
  image.setAttribute("aria-label", `Parallel coordinates of ${axes.map((column) => column.title).join(", ")}: ${rows.length} rows. `
    + "“Add a range” above narrows any of these columns too.");
}

function spread(rows, most) {
  return rows.length <= most ? rows : Array.from({ length: most }, (_, i) => rows[Math.floor(i * rows.length / most)]);
}

function drawAxis(image, { column, x, scale }) {
  const { top, bottom, gap } = parallel, range = store.state.ranges[column.key];
  draw(image, "line", { x1: x, x2: x, y1: top, y2: bottom, class: "tick" });
  // A title has the room between two axes: long ones take two lines.
  const letters = Math.max(7, Math.floor(gap / 6.8)), [first, second] = twoLines(column.title, letters);
  const name = draw(image, "text", { "text-anchor": "middle", class: "name", x, y: top - 24 }, second ? first : "");
  draw(image, "text", { "text-anchor": "middle", class: "name", x, y: top - 11 }, second || first);
  draw(name, "title", {}, column.title);
  const ticks = scale.log && scale.ticks.length > 7 ? scale.ticks.filter((tick) => Number.isInteger(Math.log10(tick))) : scale.ticks;
  for (const tick of ticks) draw(image, "text", { x: x - 4, y: scale.at(tick) + 4, "text-anchor": "end", class: "halo" }, short(tick));
  if (range) {
    const ends = [range[0] ?? scale.back(bottom), range[1] ?? scale.back(top)].map((value) => Math.min(bottom, Math.max(top, scale.at(value))));
    const at = Number.isFinite(ends[0]) && Number.isFinite(ends[1]) ? ends : [bottom, top];
    draw(image, "rect", { x: x - 5, width: 10, y: Math.min(...at) - 1, height: Math.abs(at[0] - at[1]) + 2, class: "brush" });
  }
}

function twoLines(title, letters) {
  const cut = (text) => text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
  if (title.length <= letters) return [title, ""];
  const at = title.lastIndexOf(" ", letters);
  return at > 0 ? [title.slice(0, at), cut(title.slice(at + 1))] : [cut(title), ""];
}

function startParallel() {
  const box = $("parallel"), redraw = soon(drawParallel, 60);
  const place = (event) => {
    const area = parallel.image.getBoundingClientRect(), scale = parallel.width / area.width;
    return { px: (event.clientX - area.left) * scale, py: (event.clientY - area.top) * scale };
  };
  const inside = (py) => Math.min(parallel.bottom, Math.max(parallel.top, py));
  box.addEventListener("pointerdown", (event) => {
    const { px, py } = place(event);
    const axis = parallel.axes.reduce((a, b) => Math.abs(b.x - px) < Math.abs(a.x - px) ? b : a);
    if (event.button || Math.abs(axis.x - px) > Math.min(26, parallel.gap / 2)) return;
    parallel.drag = { axis, from: inside(py) };
    box.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  box.addEventListener("pointermove", (event) => {
    const { drag, brush } = parallel;
    if (!drag) return;
    const py = inside(place(event).py);
    const at = { x: drag.axis.x - 6, y: Math.min(py, drag.from), width: 12, height: Math.abs(py - drag.from), visibility: "visible" };
    for (const [name, value] of Object.entries(at)) brush.setAttribute(name, value);
  });
  box.addEventListener("pointerup", (event) => {
    const { drag } = parallel;
    parallel.drag = null;
    if (!drag) return;
    const py = inside(place(event).py), { scale, column } = drag.axis;
    parallel.brush.setAttribute("visibility", "hidden");
    // A click takes the range away.
    if (Math.abs(py - drag.from) < 4) setRange(column.key, null, null);
    else setRange(column.key, ...roundedEnds(scale.back(Math.max(py, drag.from)), scale.back(Math.min(py, drag.from))));
    say($("count").textContent);
  });
  box.addEventListener("pointercancel", () => { parallel.drag = null; parallel.brush.setAttribute("visibility", "hidden"); });
  const list = $("axes"), boxes = plottable().map((column) => {
    const input = add(add(add(list, "li"), "label"), "input", "", { type: "checkbox", value: column.key });
    input.parentNode.append(` ${column.title}`);
    input.addEventListener("change", () => {
      const now = chosenAxes().map(({ key }) => key);
      const axes = input.checked ? [...now, column.key] : now.filter((key) => key !== column.key);
      if (axes.length < 2 || axes.length > MOST_AXES) {
        input.checked = !input.checked;
        say(`Between 2 and ${MOST_AXES} axes.`);
      } else update({ axes });
    });
    return input;
  });
  const tick = () => {
    const now = new Set(chosenAxes().map(({ key }) => key));
    for (const input of boxes) input.checked = now.has(input.value);
  };
  tick();
  watch(["axes"], tick);
  watch(["q", "filters", "ranges", "base", "colour", "pins", "axes", "sort", "down"], redraw);
  new ResizeObserver(() => { if (parallel.width !== Math.max(280, box.clientWidth)) redraw(); }).observe(box);
}
