// Differences to a baseline: each row's own dense cell, or one cell that the reader chose.
// Where two cells were asked the same items, and the page has what came of them, the error is of the paired differences.
const itemGroups = new Map();

function unpack({ type, data: text }) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  if (type === "u1") return bytes;
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

// {row: its items, weights and group} of one result.
function itemsOf(key) {
  if (!itemGroups.has(key)) {
    const rows = new Map();
    for (const group of data.items.of[key] ?? []) {
      const values = unpack(group.values), weights = group.weights ? unpack(group.weights) : null;
      group.rows.forEach((row, i) => rows.set(row, { group, weights, values: values.subarray(i * group.count, (i + 1) * group.count) }));
    }
    itemGroups.set(key, rows);
  }
  return itemGroups.get(key);
}

function baselineOf(row) {
  return store.state.base ? rowOf.get(store.state.base) : data.dense[row];
}

// {value, error, paired} of a row's difference in a column to another row, in shown units.
function difference(column, row, other) {
  const none = { value: NaN, error: NaN, paired: false };
  if (other < 0 || other === undefined) return none;
  const value = column.value(row) - column.value(other);
  if (row === other) return { ...none, value };
  // To its own dense cell the report has it from a bootstrap, also where the items themselves are not in the page.
  if (column.dense?.[row] > 0 && other === data.dense[row]) return { value, error: column.dense[row] * column.scale, paired: true };
  const items = itemsOf(column.key), a = items.get(row), b = items.get(other);
  if (a && b && a.group === b.group) {
    return { value, error: pairedError(a.values, b.values, a.weights) * column.scale, paired: true };
  }
  return { value, error: Math.hypot(column.error(row), column.error(other)), paired: false };
}

// A column of differences looks like any other; it is worked out when it is first asked for.
function deltaColumn(column) {
  const delta = {
    key: `delta:${column.key}`, title: `Δ ${column.title.toLowerCase() === "loss" ? "loss" : column.title}`, of: undefined,
    kind: "delta", digits: column.digits, scale: column.scale, lower: column.lower, right: true, known: null,
  };
  const known = () => {
    if (!delta.known) {
      const all = Array.from({ length: data.rows }, (_, row) => difference(column, row, baselineOf(row)));
      delta.known = {
        raw: Float64Array.from(all, ({ value }) => value / column.scale),
        spread: Float64Array.from(all, ({ error }) => error / column.scale), paired: all.map(({ paired }) => paired),
      };
    }
    return delta.known;
  };
  for (const name of ["raw", "spread", "paired"]) Object.defineProperty(delta, name, { get: () => known()[name] });
  delta.value = (row) => delta.raw[row] * column.scale;
  delta.error = (row) => delta.spread[row] * column.scale;
  delta.order = (row) => delta.raw[row];
  delta.text = (row, more = 0) => change(delta.value(row), column.digits === null ? null : column.digits + (column.digits ? more : 0), delta.error(row));
  return delta;
}

function startBaseline() {
  for (const column of columns) if (column.delta) byKey.set(`delta:${column.key}`, deltaColumn(column));
  const select = $("base");
  const fill = () => {
    select.replaceChildren();
    add(select, "option", "dense, same model and seed", { value: "" });
    const ids = new Set([...store.state.pins, store.state.base].filter(Boolean));
    for (const id of ids) add(select, "option", titleOf(rowOf.get(id)), { value: id });
    select.value = store.state.base;
  };
  select.addEventListener("change", () => update({ base: select.value }));
  $("deltas").addEventListener("change", () => update({ deltas: $("deltas").checked }));
  watch(["base"], () => {
    for (const column of columns) { const delta = byKey.get(`delta:${column.key}`); if (delta) delta.known = null; }
  });
  watch(["base", "pins"], fill);
  watch(["deltas"], () => { $("deltas").checked = store.state.deltas; drawHead(); });
  watch(["base", "deltas"], () => { $("delta-note").textContent = deltaNote(); });
  fill();
}

// What the differences are to, and what their errors are of.
function deltaNote() {
  const { base } = store.state;
  const to = base ? titleOf(rowOf.get(base)) : "the dense cell of the same model, variant and seed";
  const own = shownColumns().filter((column) => column.kind === "delta");
  const paired = [], mixed = [], apart = [];
  for (const column of own) {
    let pairs = 0, all = 0;
    for (let row = 0; row < data.rows; row++) if (column.spread[row] > 0) { all++; pairs += column.paired[row]; }
    if (all) (pairs === all ? paired : pairs ? mixed : apart).push(column.title);
  }
  const names = (list) => list.join(", ");
  const parts = [`Δ: difference to ${to}.`];
  const large = data.items.left_out.length > 0;
  const why = large ? "the outcomes of single items would be too large for this page" : "samples of the same items are not stored";
  if (paired.length) parts.push(`± of ${names(paired)}: paired, from the differences of single items.`);
  if (mixed.length) parts.push(`± of ${names(mixed)}: paired, from the differences of single items; where ${why}, unpaired (marked u).`);
  if (apart.length) parts.push(`± of ${names(apart)}: unpaired, from the two standard errors as if the items were different ones, which is wider than need be: ${why}.`);
  if (own.length) parts.push("None of them says what another training seed would change.");
  if (columns.some((column) => column.marks && column.shown)) {
    parts.push("Bold: the best sparse pattern of each model and variant; =: cannot be told from it over the items, p ≥ 0.05 (Holm)"
      + (columns.some((column) => column.marks?.includes("~")) ? "; ~: over the seeds it cannot, though over the items, where they are stored, it can." : "."));
  }
  return parts.join(" ");
}

// Whether a column has errors of both kinds, so that a row must say which its is.
function isMixed(column) {
  column.known ?? column.raw;
  column.known.mixed ??= column.paired.some(Boolean) && column.paired.some((paired, row) => !paired && column.spread[row] > 0);
  return column.known.mixed;
}
