// Which rows fit, and in which order: search, filters, ranges.
const found = { rows: [] };
let words = null;

function searched(row) {
  words ??= Array.from({ length: data.rows }, (_, i) => [
    ...columns.filter((column) => column.names).map((column) => column.text(i)),
    data.words?.[i] ?? "", ...(data.details ? [data.details.ids[i], errorOf(i), noteOf(i)] : []),
  ].join("\n").toLowerCase());
  return words[row];
}

// A number fits if it does as it is shown: what reads 12.5 is within 12.5.
function within(column, row, [from, to]) {
  const value = column.value(row);
  if (Number.isNaN(value)) return false;
  const fits = (v) => (from === null || v >= from) && (to === null || v <= to);
  return fits(value) || (column.digits !== null && Number.isFinite(value) && fits(Number(fixed(value, column.digits))));
}

function refind() {
  const { q, filters, ranges, sort, down } = store.state;
  const wanted = q.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = Object.entries(filters).filter(([, value]) => value !== "")
    .map(([key, value]) => [byKey.get(key), byKey.get(key).names.indexOf(value)]);
  const limits = Object.entries(ranges).map(([key, ends]) => [byKey.get(key), ends]);
  const rows = [];
  for (let row = 0; row < data.rows; row++) {
    if (chosen.every(([column, of]) => column.of[row] === of) && limits.every(([column, ends]) => within(column, row, ends))
      && (!wanted.length || wanted.every((word) => searched(row).includes(word)))) rows.push(row);
  }
  const column = byKey.get(sort);
  if (column) {
    const sign = down ? -1 : 1, keys = new Map(rows.map((row) => [row, column.order(row)]));
    rows.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      // Missing values last, whichever way.
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
      return (x < y ? -1 : x > y ? 1 : 0) * sign || a - b;
    });
  }
  found.rows = rows;
}

function narrowed() {
  const { q, filters, ranges } = store.state;
  return q.trim() !== "" || Object.values(filters).some(Boolean) || Object.keys(ranges).length > 0;
}

function setRange(key, from, to) {
  const ranges = { ...store.state.ranges };
  if (from === null && to === null) delete ranges[key];
  else ranges[key] = [from, to];
  update({ ranges });
}

function rangeText(key) {
  const [from, to] = store.state.ranges[key], title = byKey.get(key).title;
  return from === null ? `${title} ≤ ${short(to)}` : to === null ? `${title} ≥ ${short(from)}` : `${title} ${short(from)} to ${short(to)}`;
}

function startFilter() {
  const selects = [...document.querySelectorAll("[data-filter]")];
  for (const select of selects) for (const name of byKey.get(select.dataset.filter).names) add(select, "option", name, { value: name });
  $("search").addEventListener("input", () => update({ q: $("search").value }));
  for (const select of selects) {
    select.addEventListener("change", () => update({ filters: { ...store.state.filters, [select.dataset.filter]: select.value } }));
  }
  $("reset").addEventListener("click", () => update({ q: "", filters: {}, ranges: {} }));
  watch(["q", "filters"], () => {
    if ($("search").value !== store.state.q) $("search").value = store.state.q;
    for (const select of selects) select.value = store.state.filters[select.dataset.filter] ?? "";
  });
  if ($("kv")) startRanges();
}

function startRanges() {
  const most = $("kv"), column = $("range-column"), ends = [$("range-from"), $("range-to")];
  const read = (input) => input.value.trim() === "" || !Number.isFinite(Number(input.value)) ? null : Number(input.value);
  most.addEventListener("input", () => setRange("kv_ratio", store.state.ranges.kv_ratio?.[0] ?? null, read(most)));
  for (const other of allColumns().filter(isNumber)) add(column, "option", other.title, { value: other.key });
  const fill = () => ends.forEach((input, side) => { input.value = store.state.ranges[column.value]?.[side] ?? ""; });
  column.addEventListener("change", fill);
  $("range").addEventListener("submit", (event) => {
    event.preventDefault();
    const [from, to] = ends.map(read);
    setRange(column.value, from, to);
  });
  watch(["ranges"], () => {
    const [, to] = store.state.ranges.kv_ratio ?? [null, null];
    if (read(most) !== to) most.value = to ?? "";
    fill();
    const chips = $("chips");
    chips.replaceChildren();
    for (const key of Object.keys(store.state.ranges)) {
      button(chips, `${rangeText(key)} ×`, () => { setRange(key, null, null); $("cells-box").focus(); },
        { class: "chip", "aria-label": `Remove the range ${rangeText(key)}` });
    }
  });
}
