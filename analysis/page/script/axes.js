// What both plots share: how groups of rows look, which columns can be axes, axis lines.
const SHAPES = [
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  (x, y, r) => `M${x - r * .9} ${y - r * .9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}z`,
  (x, y, r) => `M${x} ${y - r * 1.2}L${x + r * 1.15} ${y + r * .8}H${x - r * 1.15}z`,
  (x, y, r) => `M${x} ${y - r * 1.3}L${x + r * 1.3} ${y}L${x} ${y + r * 1.3}L${x - r * 1.3} ${y}z`,
  (x, y, r) => `M${x} ${y + r * 1.2}L${x + r * 1.15} ${y - r * .8}H${x - r * 1.15}z`,
  (x, y, r) => `M${x - r} ${y - r * .4}h${r * .6}v${-r * .6}h${r * .8}v${r * .6}h${r * .6}v${r * .8}h${-r * .6}v${r * .6}h${-r * .8}v${-r * .6}h${-r * .6}z`,
];

// {names, of(row)}: at most six groups, and one of all others. Many variants of a model are one group.
function groups() {
  const column = byKey.get(store.state.colour === "method" ? "method" : "model");
  let names = column.names, of = (row) => column.of[row];
  if (names.length > SHAPES.length) {
    const bare = names.map((name) => name.split(", ")[0]), kept = [...new Set(bare)];
    const place = bare.map((name) => kept.indexOf(name));
    names = kept;
    of = (row) => place[column.of[row]];
  }
  if (names.length <= SHAPES.length) return { names, of };
  const last = SHAPES.length - 1, others = `${names.length - last} others`;
  return { names: [...names.slice(0, last), others], of: (row) => Math.min(of(row), last) };
}

function drawLegend(box, { names }) {
  box.replaceChildren();
  names.forEach((name, i) => {
    const item = add(box, "li");
    draw(picture(item, 14, 14, { "aria-hidden": "true" }), "path", { d: SHAPES[i](7, 7, 4.5), class: `mark g${i}` });
    item.append(name);
  });
}

const plottable = () => allColumns().filter((column) => isNumber(column) && column.raw.some((value) => !Number.isNaN(value)));

function options(select, chosen, list) {
  const kinds = [["cost", "Costs"], ["result", "Results"], ["delta", "Differences"], ["setting", "Settings"]];
  select.replaceChildren();
  for (const [kind, title] of kinds) {
    const own = list.filter((column) => column.kind === kind);
    if (!own.length) continue;
    const group = add(select, "optgroup", "", { label: title });
    for (const column of own) add(group, "option", column.title, { value: column.key });
  }
  select.value = chosen;
}

// Text of a row for a tooltip or a screen reader.
function rowText(row, own) {
  return [titleOf(row), ...own.map((column) => `${column.title} ${column.text(row)}`)].join("; ");
}

const isDown = (column) => column.lower !== false;
const isLogKind = (column) => column.kind === "cost" || column.kind === "setting";
