// Learning curves, one or several in a picture: `series` are {name, points (tokens, loss)}.
function drawCurves(parent, title, series) {
  const known = series.map(({ name, points }) => ({ name, points: points.filter(([, loss]) => loss !== null) })).filter(({ points }) => points.length > 1);
  if (!known.length) return;
  add(parent, "h3", title);
  const width = Math.max(240, Math.min(640, parent.clientWidth)), height = 220;
  const frame = { left: 46, right: width - 12, top: 10, bottom: height - 40 };
  const all = known.flatMap(({ points }) => points);
  const sx = scaleOf(all.map(([x]) => x), frame.left, frame.right, { pad: 0, count: width / 110 });
  const sy = scaleOf(all.map(([, y]) => y), frame.bottom, frame.top);
  const spoken = known.map(({ name, points }) => `${name ? `${name}: ` : ""}loss from ${points[0][1].toFixed(3)} to ${points.at(-1)[1].toFixed(3)} nats`);
  const image = picture(parent, width, height, { role: "img", "aria-label": `${title}: ${spoken.join("; ")}`, class: "curves" });
  for (const tick of sy.ticks) {
    draw(image, "line", { x1: frame.left, x2: frame.right, y1: sy.at(tick), y2: sy.at(tick), class: "grid" });
    draw(image, "text", { x: frame.left - 6, y: sy.at(tick) + 4, "text-anchor": "end" }, short(tick));
  }
  for (const tick of sx.ticks) draw(image, "text", { x: sx.at(tick), y: frame.bottom + 16, "text-anchor": "middle" }, short(tick));
  draw(image, "text", { x: (frame.left + frame.right) / 2, y: height - 6, "text-anchor": "middle", class: "name" }, "tokens; loss in nats");
  known.forEach(({ points }, i) => {
    draw(image, "polyline", { points: points.map(([x, y]) => `${round(sx.at(x))},${round(sy.at(y))}`).join(" "), class: `curve g${i}` });
  });
  if (known.length < 2 && !known[0].name) return;
  const legend = add(parent, "ul", "", { class: "legend" });
  known.forEach(({ name }, i) => {
    const item = add(legend, "li");
    draw(picture(item, 26, 10, { "aria-hidden": "true" }), "path", { d: "M1 5H25", class: `curve g${i}` });
    item.append(name);
  });
}

const stageOf = (row, stage) => {
  const column = data.details.stages[stage];
  return column && column.of[row] >= 0 ? column.names[column.of[row]] : "";
};

// The learning curves of some rows, stage by stage; rows that share a stage share its line.
function drawStages(parent, rows, nameOf) {
  for (const stage of Object.keys(data.details.stages)) {
    const lines = new Map();
    for (const row of rows) {
      const id = stageOf(row, stage);
      if (data.details.curves[id]) lines.set(id, [...(lines.get(id) ?? []), row]);
    }
    const series = [...lines].map(([id, own]) => ({ name: nameOf ? own.map(nameOf).join(", ") : "", points: data.details.curves[id] }));
    drawCurves(parent, `Learning curve${series.length > 1 ? "s" : ""} of ${stage} (training loss)`, series);
  }
}
