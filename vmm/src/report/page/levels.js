// What lanes look like from afar: how long one ran and waited in each of 2^k equal parts of the trace, in pairs of those, and so on. A
// pixel is drawn from one to three parts, however many slices are behind it. Made when a lane is first drawn so; all lanes together
// have at most four parts for a slice.
const FEWEST_PARTS = 512;

/** The levels of the slices at(lo) to at(hi - 1), which don't overlap: finest first. */
function levelsOf(lo, hi, at) {
  const parts = 2 ** Math.ceil(Math.log2(Math.max(FEWEST_PARTS, hi - lo))), part = END / parts;
  const level = (n, part) => ({ part, ran: new Float32Array(n), wait: new Float32Array(n), most: new Float32Array(n), task: new Int32Array(n).fill(-1) });
  const finest = level(parts, part), levels = [finest];
  const each = (from, to, add) => {
    const last = Math.min(parts - 1, Math.floor(to / part));
    for (let p = Math.max(0, Math.floor(from / part)); p <= last; p++) add(p, Math.min(to, (p + 1) * part) - Math.max(from, p * part));
  };
  for (let i = lo; i < hi; i++) {
    const k = at(i), start = slices.start[k], end = slices.end[k], dense = slices.ran[k] / Math.max(1, end - start);
    each(start, end, (p, time) => {
      const ran = time * dense;
      finest.ran[p] += ran;
      if (ran > finest.most[p]) { finest.most[p] = ran; finest.task[p] = slices.task[k]; }
    });
    if (slices.wait[k] > 0) each(start - slices.wait[k], start, (p, time) => { finest.wait[p] += time; });
  }
  for (let fine = finest; fine.ran.length > FEWEST_PARTS; fine = levels.at(-1)) {
    const coarse = level(fine.ran.length / 2, fine.part * 2);
    for (let p = 0; p < coarse.ran.length; p++) {
      const a = 2 * p, b = a + 1, top = fine.most[b] > fine.most[a] ? b : a;
      coarse.ran[p] = fine.ran[a] + fine.ran[b];
      coarse.wait[p] = fine.wait[a] + fine.wait[b];
      coarse.most[p] = fine.most[top];
      coarse.task[p] = fine.task[top];
    }
    levels.push(coarse);
  }
  return levels;
}

/** The coarsest level whose parts are no longer than a pixel; none if all are. */
function levelFor(lane, pixel) {
  lane.levels ??= levelsOf(lane.lo, lane.hi, lane.at);
  return lane.levels[Math.min(lane.levels.length - 1, Math.floor(Math.log2(pixel / lane.levels[0].part)))];
}
