// The rows shown, as text in the clipboard.
function shownTable() {
  const own = shownColumns();
  return {
    head: own.map((column) => column.title),
    rows: shownRows().map((row) => own.map((column) => markedText(column, row))),
    right: own.map((column) => column.right),
    caption: [data.name && `Sweep ${data.name}.`, data.details && deltaNote()].filter(Boolean).join(" "),
  };
}

// CSV has whole numbers and their errors in columns of their own, as the report's CSV files do.
function shownCsv() {
  const own = shownColumns(), parts = [];
  if (data.details) parts.push(["cell", (row) => data.details.ids[row]]);
  for (const column of own) {
    if (column.names) { parts.push([column.key, column.text]); continue; }
    parts.push([column.key, (row) => column.raw[row]]);
    if (column.spread) parts.push([`${column.key}_stderr`, (row) => column.spread[row]]);
    if (column.paired) parts.push([`${column.key}_paired`, (row) => Number.isNaN(column.raw[row]) ? "" : String(Boolean(column.paired[row]))]);
    if (column.marks) parts.push([`${column.key}_mark`, (row) => column.marks[row]]);
    if (column.exact) parts.push([`${column.key}_exact`, (row) => String(column.exact[row])]);
  }
  return toCsv(parts.map(([name]) => name), shownRows().map((row) => parts.map(([, of]) => of(row))));
}

async function copyText(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(what);
    $("copied").textContent = what;
  } catch {
    // A browser may forbid it; then the text is there to be copied by hand.
    const box = $("copy-text");
    box.value = text;
    $("copy-box").showModal();
    box.focus();
    box.select();
  }
}

function startCopy() {
  const kinds = { Markdown: () => toMarkdown(shownTable()), LaTeX: () => toLatex(shownTable()), CSV: shownCsv };
  for (const [name, make] of Object.entries(kinds)) {
    const count = () => `${shownRows().length} row${shownRows().length === 1 ? "" : "s"} copied as ${name}.`;
    button($("copies"), name, () => copyText(make(), count()), { "aria-label": `Copy the rows shown as ${name}` });
  }
  watch(null, () => { $("copied").textContent = ""; });
  $("copy-close").addEventListener("click", () => $("copy-box").close());
}
