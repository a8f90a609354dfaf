// Two to six cells side by side: settings that differ, results with their differences, learning curves.
function togglePin(id) {
  const { pins } = store.state;
  if (pins.includes(id)) update({ pins: pins.filter((other) => other !== id) });
  else if (pins.length < MOST_PINS) update({ pins: [...pins, id] });
  else {
    say(`No more than ${MOST_PINS} cells can be pinned.`);
    return;
  }
  const now = store.state.pins;
  say(`${now.includes(id) ? "Pinned" : "No longer pinned"}: ${titleOf(rowOf.get(id))}. ${now.length} of at most ${MOST_PINS}.`);
}

function leadCell(line, row) {
  const cell = add(line, "td", "", { class: "pin" }), id = data.details.ids[row];
  const box = add(cell, "input", "", { type: "checkbox", "aria-label": `Pin ${titleOf(row)}` });
  box.checked = store.state.pins.includes(id);
  box.disabled = !box.checked && store.state.pins.length >= MOST_PINS;
}

function drawPins() {
  const { pins } = store.state, full = pins.length >= MOST_PINS;
  for (const line of $("cells").tBodies[0].rows) {
    const box = line.cells[0].firstChild, pinned = pins.includes(data.details.ids[line.dataset.row]);
    box.checked = pinned;
    box.disabled = full && !pinned;
    line.classList.toggle("chosen", pinned);
  }
  $("pin-count").textContent = pins.length ? `${pins.length} pinned: compare` : "";
  $("pin-link").hidden = !pins.length;
  drawComparison();
}

function drawComparison() {
  const { pins } = store.state, box = $("pins-body"), rows = pins.map((id) => rowOf.get(id));
  box.replaceChildren();
  $("pins-none").hidden = rows.length > 0;
  $("unpin").hidden = !rows.length;
  if (!rows.length) return;
  const name = (row) => `${rows.indexOf(row) + 1} ${titleOf(row)}`;
  const area = add(box, "div", "", { class: "scroll", role: "region", "aria-label": "Pinned cells side by side", tabindex: "0" });
  const table = add(area, "table", "", { class: "pins" }), head = add(add(table, "thead"), "tr");
  add(head, "th", "Cell", { scope: "col" });
  rows.forEach((row, i) => {
    const cell = add(head, "th", "", { scope: "col" });
    add(cell, "span", `${i + 1} `, { class: "rank" });
    button(cell, titleOf(row), () => update({ cell: pins[i] }), { class: "open", "aria-haspopup": "dialog" });
    const actions = add(cell, "span", "", { class: "actions" }), based = store.state.base === pins[i];
    button(actions, based ? "baseline" : "set baseline", () => update({ base: based ? "" : pins[i] }),
      { class: "small", "aria-pressed": String(based), "aria-label": `Baseline: ${titleOf(row)}` });
    button(actions, "unpin", () => { togglePin(pins[i]); $("pins").focus(); }, { class: "small", "aria-label": `Unpin ${titleOf(row)}` });
  });
  const heading = (text) => add(add(add(table, "tbody"), "tr"), "th", text, { colspan: rows.length + 1, class: "part", scope: "rowgroup" });
  settingRows(table, rows, heading);
  resultRows(table, rows, heading);
  const notes = [deltaNote(), "Bold Δ: its 95 % interval leaves out zero, not adjusted for the number of comparisons."];
  for (const note of notes) add(box, "p", note, { class: "soft" });
  drawStages(box, rows, name);
}

function settingRows(table, rows, heading) {
  const own = Object.entries(data.details.config).map(([key, { names, of }]) => [key, rows.map((row) => of[row] < 0 ? "—" : names[of[row]])]);
  for (const key of ["method", "pattern", "model"]) own.unshift([byKey.get(key).title, rows.map((row) => byKey.get(key).text(row))]);
  const differ = own.filter(([, texts]) => new Set(texts).size > 1);
  if (rows.length > 1) heading(differ.length ? "Settings that differ" : "No setting differs");
  const body = add(table, "tbody");
  for (const [key, texts] of rows.length > 1 ? differ : []) {
    const line = add(body, "tr");
    add(line, "th", key, { scope: "row" });
    for (const text of texts) add(line, "td", text, { class: "setting" });
  }
}

function resultRows(table, rows, heading) {
  heading("Results and costs");
  const body = add(table, "tbody");
  for (const column of columns) {
    if (!["result", "cost"].includes(column.kind) || rows.every((row) => Number.isNaN(column.value(row)))) continue;
    const line = add(body, "tr"), delta = byKey.get(`delta:${column.key}`);
    add(line, "th", column.title, { scope: "row" });
    for (const row of rows) {
      const cell = add(line, "td", "", { class: "n" });
      fill(cell, column.text(row, 1));
      if (!delta || Number.isNaN(delta.value(row)) || baselineOf(row) === row) continue;
      const sure = Math.abs(delta.value(row)) > 1.96 * delta.error(row), change = add(cell, "span", "", { class: "delta" });
      add(change, sure ? "strong" : "span", `Δ ${delta.text(row, 1)}${isMixed(delta) && !delta.paired[row] && delta.error(row) > 0 ? " u" : ""}`);
    }
  }
}

function startPins() {
  $("cells").addEventListener("change", (event) => {
    if (event.target.type === "checkbox") togglePin(data.details.ids[event.target.closest("tr").dataset.row]);
  });
  $("unpin").addEventListener("click", () => { update({ pins: [] }); $("pins").focus(); });
  watch(["pins"], drawPins);
  watch(["base"], drawComparison);
  new ResizeObserver(soon(() => { if (store.state.pins.length) drawComparison(); }, 150)).observe($("pins-body").parentNode);
}
