// What a reader has chosen, as one object, and as the part of the address behind `#`.
// pins, base and cell are ids of cells; ranges are {column: [from, to]} in shown units, null for open.
const START = {
  sort: "", down: false, q: "", filters: {}, ranges: {}, pins: [], base: "", deltas: false, cell: "", all: false,
  x: "", y: "", budget: null, axes: [], colour: "",
};
const MOST_PINS = 6;

// encodeURIComponent with what is harmless behind `#` left readable. `~` and `.` are kept by it, and part ranges.
const packed = (text) => encodeURIComponent(text).replaceAll("%2C", ",").replaceAll("%3A", ":").replaceAll("%2F", "/");

function encode(state) {
  const parts = [];
  const put = (name, value) => { if (value !== "" && value !== null && value !== undefined) parts.push(`${name}=${value}`); };
  // A minus means descending; one that a column's name begins with is written in another way.
  put("sort", state.sort && (state.down ? "-" : "") + packed(state.sort).replace(/^-/, "%2D"));
  put("q", packed(state.q));
  for (const [key, value] of Object.entries(state.filters)) if (value !== "") put(packed(key), packed(value));
  for (const [key, [from, to]] of Object.entries(state.ranges)) put("range", `${packed(key)}~${from ?? ""}~${to ?? ""}`);
  put("pin", state.pins.map(packed).join(","));
  for (const key of ["base", "x", "y", "colour", "cell"]) put(key, packed(state[key]));
  put("axes", state.axes.map((key) => packed(key).replaceAll(",", "%2C")).join(","));
  put("budget", state.budget);
  if (state.deltas) put("deltas", 1);
  if (state.all) put("all", 1);
  return parts.join("&");
}

// The state that an address names, and what in it this page does not have. `known` is {columns, filters, ids}: keys of
// columns, {key: values} of the filters, ids of cells, which the address may shorten.
function decode(text, known) {
  const state = { ...START, filters: {}, ranges: {}, pins: [], axes: [] }, strange = [];
  const column = (key) => known.columns.includes(key) || (strange.push(key), false);
  const cell = (part) => {
    const found = part === "" ? [] : known.ids.filter((id) => id.startsWith(part));
    if (found.length !== 1) strange.push(part);
    return found.length === 1 ? found[0] : "";
  };
  for (const part of text.replace(/^#/, "").split("&").filter(Boolean)) {
    const at = part.indexOf("=");
    const raw = part.slice(at + 1);
    let name, value;
    try { name = decodeURIComponent(part.slice(0, at)); value = decodeURIComponent(raw); } catch { strange.push(part); continue; }
    if (name === "sort") {
      const down = raw.startsWith("-");
      const key = down ? value.slice(1) : value;
      if (column(key)) Object.assign(state, { sort: key, down });
    } else if (name === "range") {
      const ends = value.split("~"), to = ends.pop(), from = ends.pop(), key = ends.join("~");
      const ok = [from, to].every((end) => end !== undefined && (end === "" || Number.isFinite(Number(end))));
      if (!ok) strange.push(value);
      else if (column(key)) state.ranges[key] = [from, to].map((end) => end === "" ? null : Number(end));
    } else if (name === "pin") {
      state.pins = [...new Set(value.split(",").map(cell))].filter(Boolean);
      strange.push(...state.pins.splice(MOST_PINS));
    } else if (name === "base" || name === "cell") state[name] = cell(value);
    else if (name === "x" || name === "y") { if (column(value)) state[name] = value; }
    else if (name === "axes") state.axes = raw.split(",").map(decodeURIComponent).filter(column);
    else if (name === "budget" && Number.isFinite(Number(value))) state.budget = Number(value);
    else if (name === "q" || name === "colour") state[name] = value;
    else if (name === "deltas" || name === "all") state[name] = value === "1";
    else if (Object.hasOwn(known.filters, name) && known.filters[name].includes(value)) state.filters[name] = value;
    else strange.push(part);
  }
  return { state, strange };
}

const store = { state: { ...START }, watchers: [] };

// Calls `run` after each change of one of these parts of the state (of any, without keys), in the order of the calls.
function watch(keys, run) {
  store.watchers.push([keys, run]);
}

function update(patch) {
  const changed = Object.keys(patch).filter((key) => patch[key] !== store.state[key]);
  if (!changed.length) return;
  store.state = { ...store.state, ...patch };
  for (const [keys, run] of store.watchers) if (!keys || keys.some((key) => changed.includes(key))) run(changed);
}

// The address follows the state, and the state an address that somebody enters. Links to sections stay links.
function followAddress(known) {
  const read = () => {
    const text = location.hash.slice(1);
    if (text && !text.includes("=")) return;
    const { state, strange } = decode(text, known);
    update(state);
    if (strange.length) say(`The address names what this page does not have: ${strange.slice(0, 4).join(", ")}.`);
  };
  // Browsers refuse hundreds of changes of the address within seconds.
  watch(null, soon(() => {
    const text = encode(store.state), now = location.hash.slice(1);
    if (text !== now && (text || now.includes("="))) history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }, 200));
  addEventListener("hashchange", read);
  // A link to a section scrolls there, and leaves the state in the address as it is.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']"), target = link && $(link.hash.slice(1));
    if (!target || !location.hash.includes("=")) return;
    event.preventDefault();
    target.scrollIntoView();
    target.focus();
  });
  read();
}
