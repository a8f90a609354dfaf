// Standard error of the weighted mean of paired differences: of a ratio of two sums over items, linearised.
function pairedError(first, second, weights) {
  const count = first.length;
  let total = 0, sum = 0, squares = 0;
  for (let i = 0; i < count; i++) { const w = weights ? weights[i] : 1; total += w; sum += w * (first[i] - second[i]); }
  const mean = sum / total;
  for (let i = 0; i < count; i++) { const w = weights ? weights[i] : 1; squares += (w * (first[i] - second[i] - mean)) ** 2; }
  return count < 2 ? NaN : Math.sqrt(squares * count / (count - 1)) / total;
}

// Which of some points no other one beats: none is better in y and as good in x, or the other way round.
// `points` are {x, y}; `down` says whether less is better.
function frontier(points, down) {
  const sign = { x: down.x ? 1 : -1, y: down.y ? 1 : -1 };
  const order = points.map((_, i) => i).filter((i) => Number.isFinite(points[i].x) && Number.isFinite(points[i].y));
  order.sort((a, b) => sign.x * (points[a].x - points[b].x) || sign.y * (points[a].y - points[b].y));
  const kept = [];
  let best = Infinity, bestAt = NaN;
  for (const i of order) {
    const y = sign.y * points[i].y;
    if (y < best || (y === best && points[i].x === bestAt)) { kept.push(i); best = y; bestAt = points[i].x; }
  }
  return kept;
}
