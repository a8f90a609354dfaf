// The page of two sweeps.
hooks.fill = (cell, column, row) => {
  if (column.key !== "verdict" || column.text(row) === "not certain") return false;
  add(cell, "strong", column.text(row));
  return true;
};
startFilter();
startTable();
startCopy();
drawHead();
followAddress({
  columns: columns.map((column) => column.key), ids: [],
  filters: Object.fromEntries(filterKeys.map((key) => [key, byKey.get(key).names])),
});
refind();
drawBody();
