// One cell: everything that is known of it.
const rowOf = new Map(data.details.ids.map((id, row) => [id, row]));
const nameColumns = ["model", "pattern", "seed"].map((key) => byKey.get(key)).filter(Boolean);

const errorOf = (row) => data.details.errors.names[data.details.errors.of[row]];
const noteOf = (row) => data.details.notes.names[data.details.notes.of[row]];

// Short, for plots and lists: the whole label may be as long as a model is deep.
function titleOf(row) {
  return nameColumns.map((column) => column.key === "seed" ? `seed ${column.text(row)}` : column.text(row)).join(" · ");
}

function list(parent, title, pairs) {
  if (!pairs.length) return;
  add(parent, "h3", title);
  const box = add(parent, "dl");
  for (const [name, value] of pairs) { add(box, "dt", name); add(box, "dd", value); }
}

const pairsOf = (table, row) => Object.entries(table).filter(([, { of }]) => of[row] >= 0).map(([key, { names, of }]) => [key, names[of[row]]]);

function showCell() {
  const id = store.state.cell, box = $("cell-body"), row = rowOf.get(id);
  if (!id) { $("cell").close(); return; }
  const { details } = data, status = byKey.get("status").text(row), error = errorOf(row), note = noteOf(row);
  box.replaceChildren();
  $("cell-title").textContent = details.titles[row];
  if (!$("cell").open) $("cell").showModal();
  if (error) add(box, "p", `${status}: ${error}`, { class: "bad" });
  if (note) add(box, "p", `Note: ${note}`);
  const actions = add(box, "p", "", { class: "actions" }), pinned = store.state.pins.includes(id);
  button(actions, pinned ? "Unpin" : "Pin to compare", (event) => {
    togglePin(id);
    event.target.textContent = store.state.pins.includes(id) ? "Unpin" : "Pin to compare";
  });
  button(actions, "Take as the baseline", () => { update({ base: id, cell: "" }); });
  const results = allColumns().filter((column) => ["result", "delta", "cost"].includes(column.kind) && !Number.isNaN(column.value(row)));
  list(box, "Results and costs", results.map((column) => [column.title, column.text(row, 1)]));
  add(box, "p", deltaNote(), { class: "soft" });
  drawStages(box, [row]);
  add(box, "h3", "Reproduce");
  add(box, "pre", details.commands[row]);
  list(box, "Stages", pairsOf(details.stages, row));
  list(box, "Configuration that is its own", pairsOf(details.config, row));
  list(box, "Provenance", pairsOf(details.provenance, row));
  add(box, "p", "What all cells share stands at the end of the page.", { class: "soft" });
  $("cell").scrollTop = 0;
  $("cell-title").focus();
}

function startCell() {
  document.addEventListener("click", (event) => {
    const line = event.target.closest("#cells .open")?.closest("tr");
    if (line) update({ cell: data.details.ids[line.dataset.row] });
  });
  $("close").addEventListener("click", () => $("cell").close());
  $("cell").addEventListener("click", (event) => { if (event.target === $("cell")) $("cell").close(); });
  // The browser gives the focus back to what had it when the dialog opened.
  $("cell").addEventListener("close", () => update({ cell: "" }));
  watch(["cell"], showCell);
}
