// A table of texts as Markdown, LaTeX and CSV; escaped as the report's own files are (analysis/draw/tables.py, latex.py).
// `table` is {head, rows, right: which columns are right-aligned, caption}; a cell `**so**` is bold.
const LATEX = {
  "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "_": "\\_", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#",
  "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "\"": "''",
  "±": "$\\pm$", "−": "$-$", "×": "$\\times$", "Δ": "$\\Delta$", "∞": "$\\infty$", "≤": "$\\leq$", "≥": "$\\geq$",
  "·": "$\\cdot$", "—": "---", "–": "--", "…": "\\ldots{}", "“": "``", "”": "''", "‘": "`", "’": "'", "\u00a0": "~",
};
const bold = (text) => /^\*\*(.+)\*\*$/.exec(text)?.[1];
const line = (text) => text.split(/\s+/).filter(Boolean).join(" ");

function toMarkdown(table) {
  // A bracket is special where it would make an image or a link, an underscore at the edge of a word.
  const plain = (text) => text.replace(/[\\|*<>`]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])/g, "\\$&");
  const escaped = (text) => bold(line(text)) ? `**${plain(bold(line(text)))}**` : plain(line(text));
  const rows = [table.head, ...table.rows].map((row) => row.map(escaped));
  const widths = table.head.map((_, i) => Math.max(3, ...rows.map((row) => row[i].length)));
  const cells = (row) => `| ${row.map((text, i) => table.right[i] ? text.padStart(widths[i]) : text.padEnd(widths[i])).join(" | ")} |`;
  const rule = `| ${widths.map((width, i) => table.right[i] ? "-".repeat(width - 1) + ":" : "-".repeat(width)).join(" | ")} |`;
  const caption = table.caption ? `${escaped(table.caption)}\n\n` : "";
  return caption + [cells(rows[0]), rule, ...rows.slice(1).map(cells)].join("\n") + "\n";
}

function toLatex(table) {
  const plain = (text) => [...text].map((letter) => LATEX[letter] ?? letter).join("");
  const escaped = (text) => bold(line(text)) ? `\\textbf{${plain(bold(line(text)))}}` : plain(line(text));
  const row = (texts) => `${texts.map(escaped).join(" & ")} \\\\`;
  return [
    "% Needs \\usepackage{booktabs}.", "\\begin{table}[tbp]", "\\centering\\small",
    ...(table.caption ? [`\\caption{${escaped(table.caption)}}`] : []),
    `\\begin{tabular}{@{}${table.right.map((right) => right ? "r" : "l").join("")}@{}}`, "\\toprule",
    row(table.head), "\\midrule", ...table.rows.map(row), "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
  ].join("\n");
}

// Cells are texts or numbers; a text that a spreadsheet would take for a formula begins with an apostrophe.
function toCsv(head, rows) {
  const cell = (value) => {
    if (typeof value === "number") return Number.isNaN(value) ? "" : Number.isFinite(value) ? String(value) : value > 0 ? "inf" : "-inf";
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll("\"", "\"\"")}"` : text;
  };
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}
