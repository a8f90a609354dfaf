// The embedded columns, with what the rest of the page asks of them: a row's text, its place in a sort, its number.
const data = JSON.parse($("data").textContent);
const columns = data.columns.map(prepared), byKey = new Map(columns.map((column) => [column.key, column]));
const filterKeys = data.filters ?? ["model", "method", "status"];

function numbers(list) {
  return Float64Array.from(list, (value) => value === null ? NaN : value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);
}

function prepared(column) {
  if (column.names) {
    const order = column.values && numbers(column.values);
    column.text = (row) => column.of[row] < 0 ? "" : column.names[column.of[row]];
    column.order = (row) => order ? order[row] : column.of[row] < 0 ? NaN : column.of[row];
    column.right = Boolean(order);
    return column;
  }
  column.raw = numbers(column.values);
  column.spread = column.errors ? numbers(column.errors) : null;
  column.dense = column.delta_errors ? numbers(column.delta_errors) : null;
  column.right = true;
  // In shown units.
  column.value = (row) => column.raw[row] * column.scale;
  column.error = (row) => column.spread ? column.spread[row] * column.scale : NaN;
  column.order = (row) => column.raw[row];
  column.text = (row, more = 0) => {
    const digits = column.digits === null ? null : column.digits + (column.digits ? more : 0);
    const text = number(column.value(row), digits, column.error(row));
    return column.exact && !column.exact[row] && text !== "—" ? `≤ ${text}` : text;
  };
  return column;
}

// A row's text with what the report's tables mark: `**best**` of the sparse patterns, `=` or `~` behind those that tie.
function markedText(column, row) {
  const text = column.text(row), mark = column.marks?.[row];
  return !mark ? text : mark === "best" ? `**${text}**` : `${text} ${mark}`;
}

const isNumber = (column) => !column.names;

// The columns that the table shows, each result followed by its difference to the baseline where that is shown.
function shownColumns() {
  const found = [];
  for (const column of columns) {
    if (!column.shown) continue;
    found.push(column);
    const delta = byKey.get(`delta:${column.key}`);
    if (delta && (column.key === "loss" || store.state.deltas)) found.push(delta);
  }
  return found;
}

// Every column, those of differences included, in that order.
function allColumns() {
  return columns.flatMap((column) => [column, byKey.get(`delta:${column.key}`)]).filter(Boolean);
}
