// The page of one sweep: the parts are started in the order in which a change reaches them.
hooks.lead = leadCell;
hooks.fill = (cell, column, row) => {
  if (column.key === "pattern") {
    add(cell, "button", column.text(row), { type: "button", class: "open", "aria-haspopup": "dialog" });
    return true;
  }
  if (column.key === "status" && column.text(row) !== "done") cell.classList.add("bad");
  const mark = column.marks?.[row];
  if (mark) {
    fill(mark === "best" ? add(cell, "strong") : cell, column.text(row));
    if (mark !== "best") add(cell, "span", ` ${mark}`, { class: "mark-tie" });
    return true;
  }
  if (column.kind !== "delta") return false;
  fill(cell, column.text(row));
  if (column.spread[row] > 0 && !column.paired[row] && isMixed(column)) add(cell, "sup", "u", { title: "unpaired error" });
  return true;
};
startBaseline();
startFilter();
startTable();
startCopy();
startPareto();
startParallel();
startPins();
startCell();
drawHead();
refind();
drawBody();
$("delta-note").textContent = deltaNote();
followAddress({
  columns: allColumns().map((column) => column.key), ids: data.details.ids,
  filters: Object.fromEntries(filterKeys.map((key) => [key, byKey.get(key).names])),
});
drawPareto();
drawParallel();
