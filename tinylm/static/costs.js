// The cost explorer: a model, a machine and a load, and what the two phases cost at least.

KINDS.costs = { draw: costExplorer, css: `
.panes { display: grid; gap: 10px 26px; align-items: start;
  grid-template-columns: minmax(0, 4fr) minmax(0, 5fr); }
.panes h3 { font: inherit; font-weight: 650; margin: 6px 0 8px; }
.panes select { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--line);
  border-radius: 7px; padding: 3px 6px; max-width: 100%; }
.pick { display: grid; grid-template-columns: 6em minmax(0, 1fr); gap: 10px; align-items: center;
  margin-bottom: 8px; }
.pick > span, legend { color: var(--muted); }
.panes .slide { grid-template-columns: 6em minmax(60px, 1fr) 7.6em; margin-bottom: 2px; }
.panes fieldset { margin-bottom: 8px; }
.panes legend { width: 6em; margin-right: 2px; }
.big { display: grid; gap: 10px; margin: 0 0 12px;
  grid-template-columns: repeat(auto-fit, minmax(9.5em, 1fr)); }
.big div { border-left: 4px solid var(--c); padding: 2px 0 2px 10px; }
.big b { display: block; font-size: 19px; line-height: 1.3; }
.big span { color: var(--muted); font-size: 12.5px; }
.room { height: 18px; display: flex; overflow: hidden; background: var(--soft);
  border: 1px solid var(--line); border-radius: 4px; }
.room i { flex: none; background: var(--kept); }
.room i + i { background: var(--again); }
.room.over { outline: 2px solid var(--ink); }
svg.plot.still { cursor: default; }
svg .roof { fill: none; stroke: var(--muted); stroke-width: 2; }
svg .curve { fill: none; stroke: var(--decode); stroke-width: 2.5; }
svg .guide { stroke: var(--muted); stroke-dasharray: 3 4; }
svg circle, svg .square { stroke: var(--surface); stroke-width: 1.5; }
.sums { margin: 10px 0 0; }
.sums summary { cursor: pointer; }
.sums li { margin: 6px 0; }
@container (max-width: 700px) { .panes { grid-template-columns: minmax(0, 1fr); } }
` };

// --- the formulas of lesson 06 (tests hold them equal to `LMConfig.pass_cost`, `cache_bytes` and `n_params`)

function sizes(m) {   // of one block and of the rest, in numbers
  const gpt = m.blocks === 'GPT-2', C = m.n_embd, D = m.head_size, F = m.n_inner;
  const Q = m.n_head*D, K = m.n_kv*D;
  const matrices = C*(Q + 2*K) + Q*C + (gpt ? 2 : 3)*C*F;
  const norm = gpt ? 2*C : C, biases = gpt ? Q + 2*K + C + F + C : 0;
  const vectors = 2*norm + biases + (m.qk_norm ? 2*D : 0);
  const table = m.vocab_size*C, head = m.tied ? 0 : table, places = gpt ? m.window*C : 0;
  const params = m.n_layer*(matrices + vectors) + norm + table + head + places;
  return { gpt, C, Q, K, F, matrices, vectors, norm, table, params };
}

const held = (m, rows, length) => 2*m.n_layer*rows*m.n_kv*m.head_size*length;   // numbers in a cache

function passCost(s, T, past, B) {   // T new tokens in each of B rows; logits for the last position only
  const z = sizes(s), S = past + T, found = B*T*z.C + (z.gpt ? T*z.C : 0);
  const weights = s.n_layer*(z.matrices + z.vectors) + z.norm + z.table + found;
  const flops = B*T*s.n_layer*(2*z.matrices + 4*S*z.Q) + 2*B*z.table;
  const weightBytes = weights*s.weight_bytes, cacheBytes = (held(s, B, S) + held(s, B, T))*s.cache_bytes;
  const bytes = weightBytes + cacheBytes;
  return { flops, weightBytes, cacheBytes, bytes, intensity: flops/bytes };
}

function bound(s, cost) {   // Machine.seconds without calls
  const work = cost.flops/s.flops, moving = cost.bytes/s.bandwidth;
  return { seconds: Math.max(work, moving), by: work > moving ? 'arithmetic' : 'memory' };
}

function priced(s) {
  const prefill = passCost(s, s.context, 0, 1), decode = passCost(s, 1, s.context, s.batch);
  const params = sizes(s).params, weights = params*s.weight_bytes;
  const row = held(s, 1, s.context + 1)*s.cache_bytes;
  return { params, weights, row, token: held(s, 1, 1)*s.cache_bytes, caches: s.batch*row, prefill, decode,
    ttft: bound(s, prefill), tpot: bound(s, decode), rows: Math.max(0, Math.floor((s.memory - weights)/row)),
    even: passCost(s, 1, s.context, 1).weightBytes/row, ridge: s.flops/s.bandwidth };
}

// --- numbers as words

const UNITS = ['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z'];
function si(n, unit) {   // three digits
  let i = 0;
  while (n >= 999.5 && i < UNITS.length - 1) { n /= 1000; i++; }
  return `${+n.toPrecision(3)}\u00a0${UNITS[i]}${unit}`;
}
function duration(t) {
  const [n, unit] = t >= .9995 ? [t, 's'] : t >= .9995e-3 ? [t*1e3, 'ms'] : [t*1e6, '\u00b5s'];
  return `${count(+n.toPrecision(3))}\u00a0${unit}`;
}
const large = n => n >= 1e5 ? si(n, '') : count(n >= 100 ? Math.round(n) : +n.toPrecision(3));

// --- what can be chosen

const STEPS = {
  n_embd: [64, 96, 128, 192, 256, 384, 512, 576, 768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 8192,
    12288, 16384],
  vocab_size: [65, 256, 1000, 8192, 32000, 49152, 50257, 100000, 128256, 151936, 262144],
  batch: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024],
  context: [1, 16, 64, 128, 256, 512, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000],
};
const span = (n, m) => [...Array(m - n + 1).keys()].map(i => i + n);
const divisors = n => span(1, n).filter(d => n % d === 0);
const headCounts = C => divisors(C).filter(H => C/H >= 16 && C/H <= 256);
const powers = (low, high) => {   // 1, 1.5, 2, 3, 5, 7 of each power of ten
  const out = [];
  for (let e = low; e < high; e++) for (const d of [1, 1.5, 2, 3, 5, 7]) out.push(d*10**e);
  return [...out, 10**high];
};

function stepped(label, values, get, set, show) {   // a slider over a list; another value stays, too
  let list = [];
  const at = () => list.indexOf(get());
  const one = slider(label, [0, 1, 1], at, i => set(list[i]), () => show(get()));
  const refresh = () => {
    list = [...new Set([...values(), get()])].sort((a, b) => a - b);
    one.refresh(list.length - 1);
  };
  return { el: one.el, refresh };
}

function picker(label, names, get, set) {
  const own = h('option', { value: '' }, 'your own');
  const select = h('select', { 'aria-label': label, change: () => { if (select.value) set(select.value); } },
    own, names.map(n => h('option', { value: n }, n)));
  const el = h('label', { class: 'pick' }, h('span', {}, label), select);
  return { el, refresh: () => { const name = get(); select.value = name ?? ''; own.hidden = name != null; } };
}

function costExplorer(data, state, page) {
  const set = change => { Object.assign(state, change); page.changed(); };
  const named = all => Object.keys(all).find(n => Object.entries(all[n]).every(([k, v]) => state[k] === v));
  const nearest = (list, v) => list.reduce((a, b) => Math.abs(b - v) < Math.abs(a - v) ? b : a);

  function setChannels(n_embd) {   // heads and inner width follow, so that the shape stays one
    const n_inner = Math.round(state.n_inner/state.n_embd*n_embd);
    const n_head = nearest(headCounts(n_embd), state.n_head/state.n_embd*n_embd);
    state.n_embd = n_embd; state.n_inner = n_inner; setHeads(n_head);
  }
  function setHeads(n_head) {
    const n_kv = nearest(divisors(n_head), n_head*state.n_kv/state.n_head);
    set({ n_head, n_kv, head_size: state.n_embd/n_head });
  }
  const field = (label, key, values, show = count, put = v => set({ [key]: v })) =>
    stepped(label, values, () => state[key], put, show);
  const inner = () => [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8].map(k => k*state.n_embd);
  const bytes = b => b === .5 ? '\u00bd' : String(b);
  const controls = {
    model: [
      picker('Model', Object.keys(data.models), () => named(data.models), n => set(data.models[n])),
      radios('Blocks', [['GPT-2', 'GPT-2'], ['Llama', 'Llama']], () => state.blocks,
        v => set({ blocks: v, qk_norm: false })),
      field('Layers', 'n_layer', () => [1, 2, 3, 4, 6, 8, 12, 16, 24, 30, 32, 40, 48, 64, 80, 96, 128]),
      field('Channels', 'n_embd', () => STEPS.n_embd, count, setChannels),
      field('Heads', 'n_head', () => headCounts(state.n_embd), count, setHeads),
      field('Key heads', 'n_kv', () => divisors(state.n_head)),
      field('Inner width', 'n_inner', inner),
      field('Vocabulary', 'vocab_size', () => STEPS.vocab_size),
      radios('Head', [[true, 'tied'], [false, 'its own']], () => state.tied, v => set({ tied: v })),
    ],
    load: [
      field('Context', 'context', () => STEPS.context, n => `${large(n)} tokens`),
      field('Batch', 'batch', () => STEPS.batch, n => some(n, 'row')),
      radios('Weights', [4, 2, 1, .5].map(b => [b, bytes(b)]), () => state.weight_bytes,
        v => set({ weight_bytes: v })),
      radios('Cache', [4, 2, 1].map(b => [b, bytes(b)]), () => state.cache_bytes,
        v => set({ cache_bytes: v })),
    ],
    machine: [
      picker('Machine', Object.keys(data.machines), () => named(data.machines), n => set(data.machines[n])),
      field('Arithmetic', 'flops', () => powers(10, 16), v => si(v, 'FLOP/s')),
      field('Bandwidth', 'bandwidth', () => powers(9, 13), v => si(v, 'B/s')),
      field('Memory', 'memory', () => powers(9, 13), v => si(v, 'B')),
    ],
  };
  const titles = { model: 'The model', load: 'The load (bytes of a number)', machine: 'The machine' };

  // --- what comes out
  const head = (color, label) => {
    const b = h('b', {}), note = h('span', {});
    return { el: h('div', { style: `--c: var(--${color})` }, h('span', {}, label), b, note), b, note };
  };
  const first = head('prefill', 'time to the first token, at least');
  const each = head('decode', 'time for each later token, at least');
  const total = head('decode', 'all rows together, at most');
  const cells = {}, lines = { flops: 'FLOPs', weightBytes: 'bytes of weights', cacheBytes: 'bytes of cache',
    intensity: 'FLOPs a byte', by: 'waits for' };
  const phases = ['prefill', 'decode'].map(p => h('th', { scope: 'col' }, chip(p, p)));
  const table = h('table', {}, h('thead', {}, h('tr', {}, h('td', {}), phases)),
    h('tbody', {}, Object.entries(lines).map(([key, label]) => h('tr', {}, h('td', {}, label),
      ['prefill', 'decode'].map(phase => cells[phase + key] = h('td', { 'data-of': `${phase} ${key}` }))))));
  const bar = [h('i', {}), h('i', {})], room = h('div', { class: 'room', role: 'img' }, bar);
  const fits = h('p', { class: 'note', style: 'margin: 4px 0 8px' });
  const roof = h('svg:svg', { class: 'plot still', role: 'img' });
  const crowd = h('svg:svg', { class: 'plot still', role: 'img' });
  const pays = h('p', { class: 'note', style: 'margin-bottom: 12px' });
  const sums = h('ul', {}), say = h('p', { class: 'say', role: 'status' });

  const LEFT = 62, RIGHT = 24, TOP = 22, HEIGHT = 190, BOTTOM = 36;
  function axes(svg, x, y, label, unit) {   // logarithmic in both; x and y are [low, high]
    const width = Math.max(240, svg.clientWidth), w = width - LEFT - RIGHT, t = HEIGHT - TOP - BOTTOM;
    const at = (v, [a, b]) => Math.log(v/a)/Math.log(b/a);
    const X = v => LEFT + w*clamp(at(v, x), 0, 1), Y = v => TOP + t*(1 - clamp(at(v, y), 0, 1));
    const tens = ([a, b], most) => {
      const all = span(Math.ceil(Math.log10(a) - 1e-9), Math.floor(Math.log10(b) + 1e-9)).map(e => 10**e);
      if (all.length > 2) return all.filter((_, i) => i % Math.ceil(all.length/most) === 0);
      return span(Math.floor(Math.log10(a)), Math.ceil(Math.log10(b))).flatMap(e => [10**e, 3*10**e])
        .filter(v => v >= a && v <= b);
    };
    place(svg, { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT });
    const ticks = tens(x, 7).flatMap(v => [
      h('svg:line', { x1: X(v), x2: X(v), y1: TOP + t, y2: TOP + t + 4, class: 'axis' }),
      h('svg:text', { x: X(v), y: TOP + t + 17, 'text-anchor': 'middle' }, large(v))]);
    const marks = tens(y, 4).flatMap(v => [
      h('svg:line', { x1: LEFT, x2: LEFT + w, y1: Y(v), y2: Y(v) }),
      h('svg:text', { x: LEFT - 6, y: Y(v) + 4, 'text-anchor': 'end' }, si(v, ''))]);
    svg.replaceChildren(...marks, ...ticks, h('svg:text', { x: LEFT - 50, y: 13 }, unit),
      h('svg:text', { x: LEFT + w, y: HEIGHT - 3, 'text-anchor': 'end' }, label));
    return { X, Y, path: points => points.map(([a, b], i) => `${i ? 'L' : 'M'}${X(a)} ${Y(b)}`).join('') };
  }

  const guide = (x, y) => h('svg:line', { class: 'guide', x1: x, x2: x, y1: y, y2: HEIGHT - BOTTOM });

  function drawRoof(p) {
    const a = p.prefill.intensity, b = p.decode.intensity, x = [.1, Math.max(1e4, 2*a, 2*b, 4*p.ridge)];
    const top = v => Math.min(state.flops, v*state.bandwidth), y = [top(x[0]), 2*state.flops];
    const { X, Y, path } = axes(roof, x, y, 'FLOPs a byte', 'FLOP/s');
    const edge = [x[0], p.ridge, x[1]].map(v => [v, top(v)]);
    roof.append(h('svg:path', { class: 'roof', d: path(edge) }),
      guide(X(p.ridge), Y(state.flops)),
      h('svg:rect', { class: 'prefill square', x: X(a) - 6, y: Y(top(a)) - 6, width: 12, height: 12 }),
      h('svg:circle', { class: 'decode', cx: X(b), cy: Y(top(b)), r: 6.5 }));
    roof.setAttribute('aria-label', `Roofline: the ridge lies at ${large(p.ridge)} FLOPs a byte, `
      + `prefill at ${large(a)}, decode at ${large(b)}.`);
  }

  const rate = B => B/bound(state, passCost(state, 1, state.context, B)).seconds;
  function drawCrowd(p) {
    const most = 1024, points = STEPS.batch.map(B => [B, rate(B)]), high = Math.max(...points.map(q => q[1]));
    const { X, Y, path } = axes(crowd, [1, most], [points[0][1]/1.5, Math.max(1.5*high, 12*points[0][1])],
      'rows in the batch', 'tokens/s, at most');
    const full = p.rows < most ? [guide(X(Math.max(1, p.rows)), TOP),
      h('svg:text', { x: X(Math.max(1, p.rows)) + (p.rows > 200 ? -5 : 5), y: TOP + 10,
        'text-anchor': p.rows > 200 ? 'end' : 'start' }, 'memory full')] : [];
    crowd.append(...full, h('svg:path', { class: 'curve', d: path(points) }),
      h('svg:circle', { class: 'decode', cx: X(state.batch), cy: Y(rate(state.batch)), r: 6.5 }));
    const all = `from at most ${large(points[0][1])} to ${large(high)}`;
    crowd.setAttribute('aria-label', `Tokens a second for 1 to ${most} rows: ${all}; `
      + `${some(state.batch, 'row')}: ${large(rate(state.batch))}.`);
  }

  function drawSums(p) {
    const z = sizes(state), s = state, B = s.batch, P = s.context;
    const [C, Q, K, F, matrices, head] = [z.C, z.Q, z.K, z.F, z.matrices, z.table].map(large);
    const block = S => `${s.n_layer} layers \u00d7 (2\u00d7${matrices} + 4\u00d7${large(S)}\u00d7${Q})`;
    const top = large(s.flops), wide = large(s.bandwidth);
    const bound = c => `max(${large(c.flops)} / ${top}, ${large(c.bytes)} / ${wide})`;
    const all = [
      ['matrices of a block',
        `${C}\u00d7(${Q} + 2\u00d7${K}) + ${Q}\u00d7${C} + ${z.gpt ? 2 : 3}\u00d7${C}\u00d7${F}`, matrices],
      ['FLOPs of prefill', `${some(P, 'token')} \u00d7 ${block(P)} + 2\u00d7${head}`, large(p.prefill.flops)],
      ['FLOPs of a decode step', `${some(B, 'row')} \u00d7 (${block(P + 1)} + 2\u00d7${head})`,
        large(p.decode.flops)],
      ['cache of one token', `2 \u00d7 ${s.n_layer} layers \u00d7 ${K} \u00d7 ${bytes(s.cache_bytes)} B`,
        si(p.token, 'B')],
      ['memory', `${large(p.params)} \u00d7 ${bytes(s.weight_bytes)} B + ${B} \u00d7 ${large(P + 1)} \u00d7 `
        + si(p.token, 'B'), si(p.weights + p.caches, 'B')],
      ['first token', bound(p.prefill), duration(p.ttft.seconds)],
      ['each later token', bound(p.decode), duration(p.tpot.seconds)]];
    const line = ([what, sum, is]) => h('li', {}, `${what}: `, h('code', {}, `${sum} = ${is}`));
    sums.replaceChildren(...all.map(line));
  }

  const titled = (text, ...parts) => [h('h3', {}, text), ...parts];
  page.add(
    h('div', { class: 'head' }, h('b', {}, 'Cost explorer'),
      h('span', {}, 'bounds, not forecasts: no machine is faster, most are slower')),
    h('div', { class: 'big' }, [first, each, total].map(b => b.el)),
    h('div', { class: 'panes' },
      h('div', {}, Object.entries(controls).map(([k, all]) => titled(titles[k], all.map(c => c.el)))),
      h('div', {}, titled('The two phases', table), titled('Memory', room, fits,
        h('div', { class: 'row' }, chip('weights', 'kept'), chip('caches', 'again'))),
        titled('On the roofline', roof),
        titled('How many rows pay', crowd, pays))),
    h('details', { class: 'sums' }, h('summary', {}, 'The sums, with the numbers in them'), sums), say,
    h('p', { class: 'note' }, 'Prefill reads the context of one row. Decode writes one token in each row, '
      + 'after that context. Activations and calls cost nothing here. ', data.note));

  return function draw() {
    Object.values(controls).flat().forEach(c => c.refresh());
    const p = priced(state), { ttft, tpot } = p;
    first.b.textContent = duration(ttft.seconds); first.note.textContent = `waits for ${ttft.by}`;
    each.b.textContent = duration(tpot.seconds);
    each.note.textContent = `${large(1/tpot.seconds)} tokens/s in each row, waits for ${tpot.by}`;
    total.b.textContent = `${large(state.batch/tpot.seconds)} tokens/s`;
    total.note.textContent = `from ${some(state.batch, 'row')}`;
    for (const [phase, time] of [['prefill', ttft], ['decode', tpot]]) {
      const cost = { ...p[phase], by: time.by };
      for (const key of Object.keys(lines)) {
        const v = cost[key], unit = key.endsWith('Bytes') ? 'B' : '';
        cells[phase + key].textContent = key === 'by' ? v : unit ? si(v, unit) : large(v);
      }
    }
    const all = Math.max(state.memory, p.weights + p.caches), over = p.weights + p.caches > state.memory;
    bar.forEach((b, i) => { b.style.width = `${100*[p.weights, p.caches][i]/all}%`; });
    room.classList.toggle('over', over);
    fits.textContent = `${human(p.params)} parameters: ${si(p.weights, 'B')}. Caches: ${si(p.caches, 'B')}, `
      + `${si(p.token, 'B')} a token. ` + (over ? `More than the ${si(state.memory, 'B')} of this machine.`
        : `Of ${si(state.memory, 'B')}.`);
    room.setAttribute('aria-label', fits.textContent);
    drawRoof(p); drawCrowd(p); drawSums(p);
    const weightier = p.even < 1 ? 'One cache already weighs more than the weights that a step reads.'
      : `Up to ${some(Math.floor(p.even), 'row')}, the weights that a step reads weigh more than the caches: `
        + 'there a new row costs little. Beyond, each brings mostly its own bytes.';
    const rows = p.rows ? some(p.rows, 'row') : 'none';
    pays.textContent = `${weightier} The memory holds ${rows} of this length.`;
    say.textContent = `First token after at least ${duration(ttft.seconds)}, then one in each row every `
      + `${duration(tpot.seconds)}.`;
  };
}
