// From numbers to places on an axis of a plot, and back.
const nice = (span, count) => {
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw)), part = raw / power;
  return (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10) * power;
};

// A scale from `values` to start..end (pixels); logarithmic where `log` and all are positive and far apart.
function scaleOf(values, start, end, { log = false, pad = 0.04, count = 5 } = {}) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (Number.isFinite(value)) { if (value < low) low = value; if (value > high) high = value; }
  if (low > high) { low = 0; high = 1; }
  const isLog = log && low > 0 && high / low > 20;
  const to = isLog ? Math.log10 : (v) => v, from = isLog ? (v) => 10 ** v : (v) => v;
  let a = to(low), b = to(high);
  if (a === b) { const room = Math.abs(a) * 0.1 || 1; a -= room; b += room; }
  const margin = (b - a) * pad;
  a -= margin; b += margin;
  const ticks = [];
  if (isLog) {
    for (let power = Math.floor(a); power <= b; power++) {
      for (const step of b - a > 2.2 ? [1] : [1, 2, 5]) { const v = step * 10 ** power; if (to(v) >= a && to(v) <= b) ticks.push(v); }
    }
  } else {
    const step = nice(b - a, count);
    for (let i = Math.ceil(a / step); i * step <= b + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  }
  return {
    log: isLog, ticks,
    at: (value) => start + (to(value) - a) / (b - a) * (end - start),
    back: (place) => from(a + (place - start) / (end - start) * (b - a)),
  };
}

// Ends of a brushed stretch with few digits, rounded outwards so that what was inside stays inside.
function roundedEnds(low, high) {
  const step = 10 ** (Math.floor(Math.log10(Math.max(high - low, 1e-12))) - 2);
  return [Math.floor(low / step) * step, Math.ceil(high / step) * step].map((value) => Number(value.toPrecision(8)));
}
