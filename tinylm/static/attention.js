// The attention map: who looks at whom, as one head, as all heads, or as the work of each pass.

KINDS.attention = { draw: attentionMap, css: `
.map { position: relative; }
canvas { display: block; width: 100%; touch-action: pan-y; border-radius: 4px; }
.key { position: absolute; right: 2px; top: 34px; width: 44%; font-size: 12.5px; color: var(--muted);
  pointer-events: none; display: grid; gap: 5px; justify-items: end; }
.scale { position: relative; width: 100%; height: 30px; text-align: center; }
.scale i { display: block; height: 9px; border-radius: 2px; border: 1px solid var(--line); }
.scale span { position: absolute; top: 11px; transform: translateX(-50%); font-size: 11.5px; }
.text.tall { line-height: 2.35; padding-top: 14px; margin-bottom: 10px; }
.text.long { line-height: 1.9; max-height: 270px; overflow-y: auto; }
.text svg { position: absolute; left: 0; top: 0; width: 1px; height: 1px; overflow: visible;
  pointer-events: none; }
.grid { display: grid; gap: 8px; grid-template-columns: auto repeat(var(--n), minmax(40px, 1fr));
  align-items: center; overflow-x: auto; padding: 3px; }
.grid button { padding: 2px; line-height: 0; }
.grid button[aria-pressed=true] { border-color: var(--ink); box-shadow: 0 0 0 1px var(--ink); }
.grid canvas { image-rendering: pixelated; border-radius: 3px; }
.grid span { color: var(--muted); font-size: 12.5px; text-align: center; }
@container (min-width: 1000px) { .key { font-size: 15px; } .scale span { font-size: 13px; } }
` };

// Where weights come from: rows of blocks of p queries and p keys, in a triangle. A small map holds every
// weight in 16 bits; a large one holds means in 8 bits of their square root.
const fine = (values, start = 0) => ({ p: 1, values, start, read: v => v/65535 });
const coarse = (p, values, start) => ({ p, values, start, read: v => (v/255)**2, few: true });

function attentionMap(data, state, page) {
  const { tokens, n_layer: L, n_head: H, pool } = data, T = tokens.length;
  const N = triangle(Math.ceil(T/(pool ?? 1)));
  const W = unpack(data.weights, pool ? Uint8Array : Uint16Array);
  const held = (l, i) => pool ? coarse(pool, W, (l*H + i)*N) : fine(W, (l*H + i)*N);
  let sent = {}, whole = null;
  function source(l, i) {   // of one head: in full, where a live widget has sent it
    if (page.detail !== sent) {
      sent = page.detail;
      whole = sent?.weights ? unpack(sent.weights, Uint16Array) : null;
    }
    return whole && sent.layer === l && sent.head === i ? fine(whole) : held(l, i);
  }
  const block = (i, p) => Math.floor(i/p), from = (i, p) => block(i, p)*p;
  const until = (i, p) => Math.min(T, from(i, p) + p);
  const inBlocks = ({ p, values, start, read }, q, k) => k > q ? 0 : read(values[start + triangle(q) + k]);
  const weight = (s, q, k) => inBlocks(s, block(q, s.p), block(k, s.p));
  const now = () => source(state.layer, state.head);
  const written = (s, w) => s.few ? w.toPrecision(2) : w.toFixed(4);
  const rows = [...Array(T).keys()];
  let hover = null, inText = false, seen = new Map(), stops = {};

  const passes = () => data.passes ?? [state.prompt, ...Array(T - state.prompt).fill(1)];
  function ends() {
    const { prompt } = state;
    if (stops.prompt !== prompt) { let n = 0; stops = { prompt, ends: passes().map(p => n += p) }; }
    return stops.ends;
  }
  const passOf = q => ends().findIndex(end => q < end);
  const isPrefill = q => passes()[passOf(q)] > 1 || passOf(q) === 0;
  const lastStep = () => passes().length - 1;
  function set(change) {
    Object.assign(state, change);
    state.step = clamp(state.step, 0, lastStep());
    page.changed();
  }

  function bitmap(l, i, s) {   // one pixel a block, kept until the theme changes
    const id = `${page.theme} ${l} ${i} ${Boolean(s.few)}`;
    if (!seen.has(id)) {
      const n = Math.ceil(T/s.p), c = h('canvas', { width: n, height: n }), colors = palette(page.theme);
      const g = c.getContext('2d'), image = g.createImageData(n, n);
      const pixels = new Uint32Array(image.data.buffer);
      for (let q = 0; q < n; q++) for (let k = 0; k <= q; k++) {
        pixels[q*n + k] = colors[Math.round(255*Math.sqrt(inBlocks(s, q, k)))];
      }
      g.putImageData(image, 0, 0); seen.set(id, c);
    }
    return seen.get(id);
  }

  // controls
  const numbers = n => [...Array(n).keys()].map(i => [i, String(i)]);
  const views = [['head', 'one head'], ['heads', 'all heads'], ['phases', 'phases']];
  const view = radios('View', views, () => state.view, v => { play.stop(); set({ view: v }); });
  const layer = radios('Layer', numbers(L), () => state.layer, v => set({ layer: v }));
  const head = radios('Head', numbers(H), () => state.head, v => set({ head: v }));
  const prompt = slider('Prompt', [1, T, 1],
    () => state.prompt, v => set({ prompt: v, step: 0 }), v => `${v} tokens`);
  const step = slider('Pass', [0, T - 1, 1],
    () => state.step, v => { play.stop(); set({ step: v }); }, v => `${v + 1} of ${passes().length}`);
  const without = toggle('without a cache', () => !state.cache, v => set({ cache: !v }));
  const play = player(page, { later: after(450),
    rewind: () => { if (state.step === lastStep()) state.step = 0; },
    step: () => state.step < lastStep() && (set({ step: state.step + 1 }), true) });

  // the map and what is beside it
  function click(e) {
    const c = cell(e);
    if (c && state.view === 'phases') { play.stop(); set({ step: passOf(c.q) }); }
    else if (c) set({ query: c.q, key: c.k });
  }
  function keys(e) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
      Home: [-T, 0], End: [T, 0] };
    const move = moves[e.key];
    if (!move) return;
    e.preventDefault(); hover = null;
    if (state.view === 'phases') {
      play.stop(); set({ step: clamp(state.step + move[0] + move[1], 0, lastStep()) });
      return;
    }
    const { p } = now(), q = clamp(state.query + p*move[0], 0, T - 1);
    set({ query: q, key: clamp((state.key ?? q) + p*move[1], 0, q) });
  }
  const canvas = h('canvas', { tabindex: 0, role: 'application', 'aria-roledescription': 'attention map',
    pointermove: e => { hover = cell(e); page.draw(); },
    pointerleave: () => { hover = null; page.draw(); },
    click, keydown: keys });
  const key = h('div', { class: 'key' });
  const strip = text(tokens, {
    pointerover: i => {
      inText = true;
      hover = state.view !== 'phases' && i <= state.query ? { q: state.query, k: i } : { q: i, k: null };
      page.draw();
    },
    click: i => {
      play.stop();
      set(state.view === 'phases' ? { step: passOf(i) } : { query: i, key: null });
    } });
  strip.el.addEventListener('pointerleave', () => { hover = null; inText = false; page.draw(); });
  const arcs = h('svg:svg', { 'aria-hidden': 'true' });
  strip.el.append(arcs);
  const best = h('ol', { class: 'bars', 'aria-label': 'keys with the largest weights', style: '--w: 7em' });
  const facts = h('div', {}), say = h('p', { class: 'say', role: 'status' });
  const headSide = h('div', {}, strip.el, best);
  const phaseSide = h('div', {}, prompt.el, step.el, h('div', { class: 'row' }, play.el, without.el), facts);
  const left = h('div', { class: 'map' }, canvas, key), right = h('div', {});
  const two = h('div', { class: 'two' }, left, right);
  const grid = h('div', { class: 'grid', style: `--n: ${H}` });
  const pick = h('div', { class: 'row' }, L > 1 ? layer.el : null, H > 1 ? head.el : null);
  const note = h('p', { class: 'note' });
  const sizes = `${count(T)} tokens, ${some(L, 'layer')}, ${some(H, 'head')} each`;
  page.add(
    h('div', { class: 'head' }, h('b', {}, 'Attention map'), h('span', {}, sizes),
      h('div', { class: 'row right', style: 'margin-bottom: 0' }, view.el)),
    pick, two, grid, say, note);

  function frame() {
    const size = left.clientWidth, pad = 30, side = size - pad - 4;
    return { size, pad, side, cell: side/T };
  }
  function cell(e) {
    const box = canvas.getBoundingClientRect(), f = frame();
    const q = Math.floor((e.clientY - box.top - f.pad)/f.cell);
    const k = Math.floor((e.clientX - box.left - f.pad)/f.cell);
    return q >= 0 && q < T && k >= 0 && k <= q ? { q, k } : null;
  }

  // the map
  function axes(g, f, at) {
    const all = f.cell >= 9.5, font = size => `${size}px ui-monospace, "DejaVu Sans Mono", Menlo, monospace`;
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find(n => n*f.cell >= 26);
    g.textBaseline = 'middle'; g.textAlign = 'center';
    function put(i, isQuery, label, strong) {
      const along = f.pad + (i + .5)*f.cell, beside = f.pad - 11;
      const x = isQuery ? beside : along, y = isQuery ? along : beside;
      if (!strong) { g.fillStyle = page.color('--muted'); g.fillText(label, x, y); return; }
      const w = Math.max(18, g.measureText(label).width + 6);
      g.fillStyle = page.color('--ink'); g.fillRect(clamp(x - w/2, 0, f.size - w), y - 9, w, 18);
      g.fillStyle = page.color('--surface'); g.fillText(label, clamp(x, w/2, f.size - w/2), y);
    }
    const short = label => label.length > 3 ? label.slice(0, 2) + '\u2026' : label;
    for (const isQuery of [true, false]) {
      g.font = font(all ? clamp(f.cell*.8, 9, 14) : 10);
      const chosen = isQuery ? at?.q : at?.k;
      const free = i => chosen == null || Math.abs(i - chosen)*f.cell >= 24;
      for (const i of rows) {
        if (i === chosen || !(all || (i % every === 0 && free(i)))) continue;
        put(i, isQuery, all ? short(tokens[i]) : String(i), false);
      }
      g.font = font(14);
      if (chosen != null) put(chosen, isQuery, short(tokens[chosen]), true);
    }
  }

  function seams(g, f) {   // a thin line between cells where there is room
    if (f.cell < 7) return;
    g.strokeStyle = page.color('--surface'); g.lineWidth = 1; g.beginPath();
    for (let i = 1; i < T; i++) {
      const p = f.pad + i*f.cell;
      g.moveTo(f.pad, p); g.lineTo(p + f.cell, p);
      g.moveTo(p, p - f.cell); g.lineTo(p, f.pad + f.side);
    }
    g.stroke();
  }

  function rectangles(g, f) {   // each pass through the cache: its queries times all keys so far
    g.strokeStyle = page.color('--decode'); g.lineWidth = 2;
    let start = 0;
    for (const end of ends()) {
      g.strokeRect(f.pad + 1, f.pad + start*f.cell + 1, end*f.cell - 2, (end - start)*f.cell - 2);
      start = end;
    }
  }

  function drawHead(g, f, at) {
    const s = now(), { p } = s, top = from(at.q, p), bottom = until(at.q, p);
    g.imageSmoothingEnabled = false;
    g.drawImage(bitmap(state.layer, state.head, s), 0, 0, T/p, T/p, f.pad, f.pad, f.side, f.side);
    if (p === 1) seams(g, f);
    if (data.passes) rectangles(g, f);
    g.strokeStyle = page.color('--ink'); g.lineWidth = 1.5;
    g.strokeRect(f.pad - 1, f.pad + top*f.cell - .5, bottom*f.cell + 2, (bottom - top)*f.cell + 1);
    if (at.k == null) return;
    const left = from(at.k, p), wide = until(at.k, p) - left;
    g.strokeStyle = page.color('--decode'); g.lineWidth = 2.5;
    g.strokeRect(f.pad + left*f.cell - 1, f.pad + top*f.cell - 1, wide*f.cell + 2, (bottom - top)*f.cell + 2);
  }

  function hatch(g) {
    const c = h('canvas', { width: 6, height: 6 }), p = c.getContext('2d');
    p.strokeStyle = page.color('--again'); p.lineWidth = 1.6;
    for (const d of [-6, 0, 6]) { p.beginPath(); p.moveTo(d - 1, 7); p.lineTo(d + 7, -1); p.stroke(); }
    return g.createPattern(c, 'repeat');
  }

  function drawPhases(g, f) {
    const end = ends()[state.step], start = end - passes()[state.step];
    const row = q => g.fillRect(f.pad, f.pad + q*f.cell, (q + 1)*f.cell, f.cell + .3);
    for (const q of rows) {
      g.fillStyle = page.color(isPrefill(q) ? '--prefill' : '--decode');
      if (q >= end) { g.globalAlpha = .13; row(q); }
      else if (q >= start) { g.globalAlpha = 1; row(q); }
      else if (state.cache) { g.globalAlpha = .38; row(q); }
    }
    g.globalAlpha = 1;
    if (!state.cache) { g.fillStyle = hatch(g); for (let q = 0; q < start; q++) row(q); }
    seams(g, f);
    g.strokeStyle = page.color('--ink'); g.lineWidth = 2;
    g.strokeRect(f.pad - 1, f.pad + start*f.cell - 1, end*f.cell + 2, (end - start)*f.cell + 2);
  }

  // beside the map: one query, or one pass
  const byWeight = pairs => pairs.sort((a, b) => b[0] - a[0]);

  function drawArcs(at) {
    const middle = s => [s.offsetLeft + s.offsetWidth/2, s.offsetTop + 3];
    const [x2, y2] = middle(strip.spans[at.q]);
    const s = now(), pairs = rows.slice(0, at.q).filter(k => k % s.p === 0).map(k => [weight(s, at.q, k), k]);
    arcs.replaceChildren(...byWeight(pairs.filter(([w]) => w > .02)).slice(0, 24).map(([w, k]) => {
      const [x1, y1] = middle(strip.spans[k]);
      const lift = Math.min(y1, y2) - 6 - Math.min(18, Math.abs(x2 - x1)*.12);
      return h('svg:path', { d: `M${x1} ${y1} C${x1} ${lift}, ${x2} ${lift}, ${x2} ${y2}`, fill: 'none',
        stroke: 'var(--prefill)', 'stroke-width': 1 + 6*w, 'stroke-opacity': clamp(.25 + w, 0, .9),
        'stroke-linecap': 'round' });
    }));
  }

  function keepInSight(i) {   // scrolls a long text, and only the text
    const s = strip.spans[i], { scrollTop, clientHeight } = strip.el;
    const above = s.offsetTop < scrollTop + 20, below = s.offsetTop > scrollTop + clientHeight - 40;
    if (T > 120 && (above || below)) strip.el.scrollTop = s.offsetTop - clientHeight/2;
  }

  const words = (i, p) => tokens.slice(from(i, p), until(i, p)).join('');   // of a block
  function places(i, p) {
    const a = from(i, p), b = until(i, p) - 1;
    return a === b ? String(a) : `${a}\u2013${b}`;
  }
  const shade = w => `color-mix(in srgb, var(--prefill) ${Math.round(75*Math.sqrt(w))}%, transparent)`;

  function drawHeadSide(at) {
    if (!inText) keepInSight(at.q);
    const s = now(), { p } = s, first = from(at.q, p), end = until(at.q, p);
    const ws = rows.slice(0, end).map(k => weight(s, at.q, k));
    strip.spans.forEach((e, i) => {
      const when = i >= end ? ' future' : i >= first ? ' q' : '';
      e.className = 't' + (blank(tokens[i]) ? ' blank' : '') + when;
      e.style.background = i < end ? shade(ws[i]) : '';
    });
    drawArcs(at);
    const pairs = ws.map((w, k) => [w, k]).filter(([, k]) => k % p === 0);
    best.replaceChildren(...byWeight(pairs).slice(0, 9).map(([w, k]) =>
      h('li', { 'data-key': k },
        h('span', { class: 'name' }, h('code', {}, words(k, p)),
          h('span', { style: 'color: var(--muted); white-space: nowrap' }, places(k, p))),
        h('span', { class: 'bar' }, h('i', { style: `width: ${100*w}%` })),
        h('output', {}, written(s, w)))));
  }

  function drawPhaseSide() {
    const stops = ends(), n = passes()[state.step], end = stops[state.step], start = end - n;
    const kept = triangle(end) - triangle(start), whole = triangle(end);
    const sumKept = triangle(end), sumWhole = sum(stops.slice(0, state.step + 1).map(triangle));
    const most = sum(stops.map(triangle));
    const bold = (it, value) => h('td', {}, it ? h('b', {}, value) : value);
    const both = (what, a, b) => h('tr', { 'data-fact': what },
      h('td', {}, what), bold(state.cache, count(a)), bold(!state.cache, count(b)));
    const bar = (value, color, kind) => h('span', { class: 'bar' },
      h('i', { class: kind, style: `--c: var(--${color}); width: ${100*value/most}%` }));
    const meter = (label, value, color, kind) => h('li', {},
      h('span', {}, label), bar(value, color, kind), h('output', {}, count(value)));
    const now = n > 1 ? ' now many' : ' now', before = state.cache ? '' : ' redo';
    strip.spans.forEach((s, i) => {
      const when = i >= end ? ' future' : i >= start ? now : before;
      s.style.background = '';
      s.className = 't' + (isPrefill(i) ? ' prompt' : ' made') + when;
    });
    arcs.replaceChildren();
    const ways = ['this pass', 'with a cache', 'without'];
    facts.replaceChildren(
      h('table', {}, h('thead', {}, h('tr', {}, ways.map(t => h('th', {}, t)))),
        h('tbody', {}, both('tokens read', n, end), both('pairs computed', kept, whole),
          both('of these, again', 0, whole - kept))),
      h('p', { class: 'note', style: 'margin: 10px 0 4px' }, 'pairs computed so far, in each head'),
      h('ul', { class: 'bars', style: '--w: 7em' },
        meter('with a cache', sumKept, 'kept', ''), meter('without', sumWhole, 'again', 'again-fill')));
    if (!inText) keepInSight(end - 1);
    play.refresh();
  }

  // words
  function phaseSentence() {
    const n = passes()[state.step], end = ends()[state.step], start = end - n;
    if (hover && hover.k != null) {
      const pass = passOf(hover.q), once = state.cache || pass >= state.step;
      const again = once ? '.' : `, and again in each pass up to ${state.step + 1}.`;
      return ['Query ', name(tokens[hover.q], hover.q), ' and key ', name(tokens[hover.k], hover.k),
        `: computed in pass ${pass + 1}${again}`];
    }
    if (state.step === 0) {
      return [`Prefill: ${some(n, 'token')} in one pass.`, ' ',
        'Nothing is known yet, so both ways do the same.'];
    }
    return [n > 1 ? `A chunk: ${n} queries, each with up to ${end} keys, in one pass.`
      : `Decode: one query, ${end} keys.`, ' ',
      state.cache ? `The keys of the first ${start} tokens come from the cache.`
      : `The first ${start} tokens are read once more.`];
  }

  function sentence(at) {
    if (state.view === 'heads') return ['Each small map is one head. Choose one to enlarge it.'];
    if (state.view === 'phases') return phaseSentence();
    const s = now(), one = s.p === 1, where = i => name(words(i, s.p), places(i, s.p));
    const query = [one ? 'Query ' : 'Queries ', where(at.q)];
    if (at.k == null) {
      return [...query, one ? `: its ${at.q + 1} weights add up to 1.`
        : ': the keys that they look at most, on average.'];
    }
    return [...query, one ? ' looks at key ' : ' look at keys ', where(at.k),
      one ? ' with weight ' : ' with a mean weight of ',
      h('b', { class: 'weight' }, written(s, weight(s, at.q, at.k))), '.'];
  }

  function kept(s) {   // how exact the weights are
    if (!s.few) return 'Weights are kept in steps of 1/65535 and shown to 4 decimals';
    const what = s.p === 1 ? 'each weight' : `the mean of each block of ${s.p} queries and ${s.p} keys`;
    const more = page.detail?.weights ? 'the chosen head has' : 'a live widget shows';
    return `The map is large, so this page keeps ${what} in 256 steps; ${more} every weight`;
  }

  function remark() {
    if (state.view !== 'phases') {
      const s = state.view === 'heads' ? held(0, 0) : now();
      return 'A query (row) sees itself and the keys before it (columns). '
        + `${kept(s)}; colour follows the square root.`;
    }
    return 'Pairs of a query and a key, in each head of each layer. '
      + (data.passes ? 'The passes are those that the model made.'
        : 'The weights are the same wherever the prompt ends, so the end of the prompt can be moved.');
  }

  function legend() {
    if (state.view === 'phases') {
      return [chip('prefill', 'prefill'),
        passes().slice(1).includes(1) ? chip('decode', 'decode') : null,
        state.cache ? null : chip('computed again', 'again', 'again')].filter(Boolean);
    }
    const stops = [...Array(25).keys()].map(i => `rgb(${ramp(page.theme, (i/24)**2)})`);
    const tick = w => h('span', { style: `left: ${clamp(100*Math.sqrt(w), 2, 98)}%` }, String(w));
    const scale = h('div', { class: 'scale' },
      h('i', { style: `background: linear-gradient(90deg, ${stops})` }), [0, .1, .3, .6, 1].map(tick));
    return [scale, h('span', {}, 'weight')];
  }

  function small(l, i) {   // one head of the grid
    const map = bitmap(l, i, held(l, i));
    const c = h('canvas', { width: map.width, height: map.height, 'aria-hidden': 'true' });
    c.getContext('2d').drawImage(map, 0, 0);
    return h('button', {
      'aria-label': `enlarge layer ${l}, head ${i}`, 'data-layer': l, 'data-head': i,
      'aria-pressed': String(l === state.layer && i === state.head),
      click: () => { set({ view: 'head', layer: l, head: i }); canvas.focus({ preventScroll: true }); } }, c);
  }

  function drawGrid() {
    const cells = [h('span', {})];
    for (let i = 0; i < H; i++) cells.push(h('span', {}, `head ${i}`));
    for (let l = 0; l < L; l++) {
      cells.push(h('span', {}, `layer ${l}`));
      for (let i = 0; i < H; i++) cells.push(small(l, i));
    }
    grid.replaceChildren(...cells);
  }

  let drawn = '';
  return function draw() {
    [view, layer, head, prompt, without].forEach(c => c.refresh());
    step.refresh(lastStep());
    const { view: v } = state, inHead = v === 'head';
    const at = inHead && hover ? hover : { q: state.query, k: inHead ? state.key : null };
    pick.style.display = inHead ? '' : 'none';
    two.style.display = v === 'heads' ? 'none' : '';
    grid.style.display = v === 'heads' ? '' : 'none';
    prompt.el.style.display = data.passes ? 'none' : '';
    say.replaceChildren(...sentence(at).flat());
    note.textContent = remark();
    if (v === 'heads') {
      const id = `${page.theme} ${state.layer} ${state.head}`;
      if (id !== drawn) drawGrid();
      drawn = id;
      return;
    }
    drawn = '';
    const side = inHead ? headSide : phaseSide;
    if (right.firstChild !== side) {
      right.replaceChildren(side);
      if (inHead) headSide.prepend(strip.el); else phaseSide.insertBefore(strip.el, facts);
    }
    strip.el.className = 'text' + (inHead ? ' tall' : '') + (T > 120 ? ' long' : '');
    reachable(strip.el, 'text');
    const f = frame();
    if (f.size < 60) return;
    const g = sheet(canvas, f.size, f.size);
    key.replaceChildren(...legend());
    if (inHead) { drawHead(g, f, at); drawHeadSide(at); } else { drawPhases(g, f); drawPhaseSide(); }
    axes(g, f, inHead ? at : hover ?? { q: ends()[state.step] - 1, k: null });
    const where = inHead ? `Layer ${state.layer}, head ${state.head}` : 'Phases';
    canvas.setAttribute('aria-label', `${where}. ${say.textContent} Arrow keys move.`);
  };
}
