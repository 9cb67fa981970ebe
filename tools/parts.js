// What the pages of watch and explore share.
// --- elements; text only ever becomes a text node ---
const maker = space => (parent, tag, attributes = {}, text = '') => {
  const node = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = String(text).toWellFormed(); // half a surrogate pair is no text
  return parent.appendChild(node);
};
const add = maker('http://www.w3.org/1999/xhtml'), draw = maker('http://www.w3.org/2000/svg');
const pen = ({colour}) => ({class: 'of', style: colour && colour !== '#000000' ? `--c: ${colour}` : '--pen: var(--ink); --word: var(--ink)'});
const short = name => name.length > 16 ? `${name.slice(0, 7)}…${name.slice(-8)}` : name; // names often differ at their ends only
const digits = v => (Math.abs(v) < 0.01 ? 2 : Math.abs(v) < 100 ? 3 : 4);
const number = v => (v && Math.abs(v) < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(digits(v)))).replace('-', '−');
const nearest = (x, step) => x.reduce((best, s, i) => Math.abs(s - step) < Math.abs(x[best] - step) ? i : best, 0);

// --- rewards in words: low is up to the middle of what was seen of an objective, high is above ---
const KNOWN = {accuracy: ['wrong', 'right'], conciseness: ['long', 'short'], clarity: ['unclear', 'clear']};
function inWords(objectives, seen) { // seen: for each objective its rewards; of one that is always the same a pattern says nothing
  const span = seen.map(values => values.reduce(([low, high], r) => [Math.min(low, r), Math.max(high, r)], [Infinity, -Infinity]));
  const isHigh = (k, r) => r > (span[k][0] + span[k][1]) / 2;
  const word = (k, high) => (KNOWN[objectives[k]] || [`low in ${objectives[k]}`, `high in ${objectives[k]}`])[+high];
  const told = (k, r) => (r === undefined || span[k][0] >= span[k][1] ? '' : r === null ? `${objectives[k]} unknown` : word(k, isHigh(k, r)));
  return {span, isHigh, word, pattern: rewards => rewards.map((r, k) => told(k, r)).filter(Boolean).join(', ')};
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough)), step = power * [1, 2, 5, 10].find(m => m * power >= rough);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({length: last - first + 1}, (_, i) => +((first + i) * step).toPrecision(6));
}

function apart(wanted, gap, bottom) { // heights for labels: as near to `wanted` as `gap` between them allows
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]), places = [...wanted];
  order.forEach((i, n) => { if (n) places[i] = Math.max(places[i], places[order[n - 1]] + gap); });
  order.reverse().forEach((i, n) => { places[i] = Math.min(places[i], n ? places[order[n - 1]] - gap : bottom); });
  return places;
}
