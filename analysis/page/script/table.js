// The table: a head whose buttons sort, and a body of the rows that fit. Only the rows shown are elements.
// A page may set `hooks.lead` (cells before the columns) and `hooks.fill` (the inside of a cell).
const hooks = { lead: null, fill: null };

function shownRows() {
  return store.state.all ? found.rows : found.rows.slice(0, data.most);
}

function drawHead() {
  const line = $("cells").tHead.rows[0];
  line.replaceChildren();
  if (hooks.lead) add(line, "th", "Pin", { scope: "col", class: "pin" });
  for (const column of shownColumns()) {
    const head = add(line, "th", "", { scope: "col", "data-key": column.key, class: column.right ? "n" : column.key });
    add(head, "button", column.title, { type: "button" });
  }
  drawArrows();
}

function drawArrows() {
  for (const head of $("cells").tHead.rows[0].querySelectorAll("[data-key]")) {
    const sorted = head.dataset.key === store.state.sort;
    head.setAttribute("aria-sort", sorted ? (store.state.down ? "descending" : "ascending") : "none");
  }
}

function drawBody() {
  const rows = shownRows(), own = shownColumns(), body = document.createElement("tbody");
  for (const row of rows) {
    const line = document.createElement("tr");
    line.dataset.row = row;
    if (hooks.lead) hooks.lead(line, row);
    for (const column of own) {
      const cell = document.createElement("td");
      cell.className = column.right ? "n" : column.key;
      if (!hooks.fill?.(cell, column, row)) fill(cell, column.text(row));
      line.append(cell);
    }
    body.append(line);
  }
  $("cells").tBodies[0].replaceWith(body);
  const all = found.rows.length;
  $("count").textContent = `${all} of ${data.rows} ${data.what}` + (rows.length < all ? `, the first ${rows.length} shown` : "")
    + (narrowed() && !all ? ": nothing fits, choose “Show all”" : "");
  $("more").hidden = rows.length >= all;
  $("more").textContent = `Show all ${all} rows`;
}

// `1.700 ± 0.006`, the error paler than the value.
function fill(cell, text) {
  const at = text.indexOf(" ± ");
  if (at < 0) cell.textContent = text;
  else {
    cell.append(text.slice(0, at));
    add(cell, "span", text.slice(at), { class: "error" });
  }
}

function startTable() {
  $("cells").tHead.addEventListener("click", (event) => {
    const head = event.target.closest("button")?.closest("[data-key]");
    if (!head) return;
    const same = head.dataset.key === store.state.sort;
    update({ sort: head.dataset.key, down: same && !store.state.down });
  });
  $("more").addEventListener("click", () => { update({ all: true }); $("cells-box").focus(); });
  watch(["sort", "down"], drawArrows);
  watch(["q", "filters", "ranges", "sort", "down", "base", "deltas"], refind);
  watch(["q", "filters", "ranges", "sort", "down", "base", "deltas", "all"], drawBody);
}
