// Numbers as the report's other files write them (analysis/draw/tables.py): rounded half to even, a true minus sign.
function fixed(value, digits) {
  const text = value.toFixed(digits);
  // toFixed rounds a tie up, Python to the even digit. Only a short binary fraction is a tie, so its digits end soon.
  const exact = Math.abs(value).toFixed(Math.min(100, digits + 30)), place = exact.length - 30;
  if (digits > 70 || exact.slice(place) !== "5" + "0".repeat(29)) return text;
  const down = exact.slice(0, place).replace(/\.$/, "");
  const even = "02468".includes(down.at(-1));
  return even ? (value < 0 ? "-" : "") + down : text;
}

function number(value, digits, error) {
  if (Number.isNaN(value)) return "—";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  let text = digits === null ? general(value) : fixed(value, digits);
  if (digits !== null && Math.abs(value) >= 1e6) text = value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
  if (Number(text) === 0) text = text.replace(/^-/, "");
  // A spread of zero means that nothing is known about it.
  const spread = error > 0 && error < Infinity ? ` ± ${digits === null ? general(error) : fixed(error, digits)}` : "";
  return (text + spread).replaceAll("-", "−");
}

// A difference says its sign.
function change(value, digits, error) {
  const text = number(value, digits, error);
  return /^[\d∞]/.test(text) && /[1-9∞]/.test(text.split(" ")[0]) ? `+${text}` : text;
}

// Four digits that count.
function general(value) {
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4)) return value.toExponential(3).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

// For the ticks of an axis.
function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "B"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= unit) return `${Number((value / (letter === "k" ? 1e3 : unit)).toPrecision(3))}${letter}`.replace("-", "−");
  }
  return String(Number(value.toPrecision(4))).replace("-", "−");
}
