// The drawing of tinylm's widgets: one ES module for anywidget and for the self-contained pages of `to_html`.
// Data comes from Python once; everything that can be chosen is chosen here. Text enters the page as text only, never as markup.

const NS = 'http://www.w3.org/2000/svg';
const RAMPS = {   // surface to strongest weight, for eyes of every kind: one hue, growing contrast
  light: [[245, 249, 253], [158, 202, 225], [33, 113, 181], [8, 48, 107]],
  dark: [[32, 37, 43], [23, 83, 128], [86, 180, 233], [234, 247, 255]],
};
const CSS = `
:host { display: block; container-type: inline-size; margin: .5em 0; }
.tlm { --surface: var(--jp-layout-color1, #fff); --ink: var(--jp-content-font-color1, #1f2328); --muted: #59636e; --line: #d1d9e0; --soft: #eff2f5;
  --prefill: #0072b2; --decode: #d55e00; --again: #b4528c; --kept: #009e73; --on: #fff; --focus: #0072b2; --shade: rgba(0,0,0,.06);
  --mono: ui-monospace, "DejaVu Sans Mono", "SF Mono", Menlo, Consolas, monospace;
  box-sizing: border-box; background: var(--surface); color: var(--ink); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px 12px;
  font: 14px/1.45 var(--jp-ui-font-family, system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif); font-variant-numeric: tabular-nums; text-align: left; overflow-wrap: anywhere; }
.tlm[data-theme=dark] { --surface: var(--jp-layout-color1, #16191d); --ink: var(--jp-content-font-color1, #e9edf1); --muted: #a3adb8; --line: #3d444d; --soft: #262c33;
  --prefill: #56b4e9; --decode: #f59a4a; --again: #e7a3cb; --kept: #35c79b; --on: #10151a; --focus: #56b4e9; --shade: rgba(255,255,255,.09); }
.tlm *, .tlm *::before { box-sizing: border-box; }
.head { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; margin-bottom: 10px; }
.head b { font-size: 16px; } .head span { color: var(--muted); }
.row { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; margin: 0 0 10px; }
.row.right { margin-left: auto; }
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; display: flex; flex-wrap: wrap; align-items: center; gap: 8px; }
legend { float: left; padding: 0; color: var(--muted); }
.seg { display: inline-flex; flex-wrap: wrap; border: 1px solid var(--line); border-radius: 7px; overflow: hidden; background: var(--soft); }
.seg label { position: relative; cursor: pointer; } .seg input { position: absolute; opacity: 0; inset: 0; margin: 0; pointer-events: none; }
.seg span { display: block; padding: 3px 11px; min-width: 30px; text-align: center; }
.seg input:checked + span { background: var(--prefill); color: var(--on); font-weight: 600; }
.seg input:focus-visible + span { outline: 3px solid var(--ink); outline-offset: -3px; border-radius: 6px; }
.seg label:hover input:not(:checked) + span { background: var(--shade); }
.slide { display: grid; grid-template-columns: 6em minmax(70px, 1fr) 5.5em; gap: 10px; align-items: center; margin-bottom: 6px; }
.slide > span { color: var(--muted); } .slide output { font-weight: 600; white-space: nowrap; }
input[type=range] { width: 100%; margin: 0; accent-color: var(--prefill); height: 22px; } input[type=checkbox] { accent-color: var(--again); width: 16px; height: 16px; margin: 0; }
.switch { display: inline-flex; gap: 8px; align-items: center; cursor: pointer; }
button { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--line); border-radius: 7px; padding: 3px 12px; cursor: pointer; }
button:hover { background: var(--shade); } :focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
.two { display: grid; grid-template-columns: minmax(0, 46%) minmax(0, 1fr); gap: 18px; align-items: start; }
.map { position: relative; } canvas { display: block; width: 100%; touch-action: pan-y; border-radius: 4px; }
.key { position: absolute; right: 2px; top: 34px; width: 44%; font-size: 12.5px; color: var(--muted); pointer-events: none; display: grid; gap: 5px; justify-items: end; }
.scale { position: relative; width: 100%; height: 30px; text-align: center; } .scale i { display: block; height: 9px; border-radius: 2px; border: 1px solid var(--line); }
.scale span { position: absolute; top: 11px; transform: translateX(-50%); font-size: 11.5px; }
.chip { display: inline-flex; gap: 7px; align-items: center; } .chip i { flex: none; width: 13px; height: 13px; border-radius: 3px; background: var(--c); }
.chip i.again, .again-fill { background: repeating-linear-gradient(135deg, var(--again) 0 2px, transparent 2px 5px) !important; border: 1px solid var(--again); }
.text { position: relative; font: 14px/2 var(--mono); overflow-wrap: anywhere; }
.text.tall { line-height: 2.35; padding-top: 14px; margin-bottom: 10px; } .text.long { line-height: 1.9; max-height: 270px; overflow-y: auto; } .text svg { position: absolute; left: 0; top: 0; width: 1px; height: 1px; pointer-events: none; overflow: visible; }
.t { unicode-bidi: isolate; direction: ltr; border-radius: 3px; padding: 2px 1px; cursor: pointer; white-space: pre-wrap; position: relative; }
.t.blank { color: var(--muted); } .t.prompt { background: color-mix(in srgb, var(--prefill) 22%, transparent); } .t.made { background: color-mix(in srgb, var(--decode) 24%, transparent); }
.t.future { opacity: .38; } .t.now { outline: 2px solid var(--ink); background: var(--decode); color: var(--on); } .t.prompt.now { background: var(--prefill); }
.t.now.many { outline: none; border-radius: 0; } .t.redo { box-shadow: inset 0 -3px var(--again); } .t.q { outline: 2px solid var(--ink); } .t:hover { outline: 2px solid var(--focus); }
.say { min-height: 1.5em; margin: 8px 0 0; } .say b, td b { font-weight: 650; } code { font: 13px var(--mono); unicode-bidi: isolate; direction: ltr; white-space: pre-wrap; background: var(--soft); border-radius: 3px; padding: 0 3px; overflow-wrap: anywhere; }
.bars { display: grid; gap: 3px; margin: 0; padding: 0; list-style: none; }
.bars li { display: grid; grid-template-columns: var(--w, 6.5em) 1fr 4.2em; gap: 8px; align-items: center; border-radius: 4px; } .bars .name { display: flex; gap: 8px; align-items: center; min-width: 0; } .bars .name code { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.bar { position: relative; height: 15px; } .bar i { position: absolute; inset: 0 auto 0 0; border-radius: 2px; background: var(--c, var(--prefill)); min-width: 1px; } .bar u { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--ink); opacity: .55; }
.bars output { text-align: right; }
.scroll { max-height: 372px; overflow-y: auto; padding: 2px 8px 2px 2px; }
li.cut { color: var(--muted); } li.cut code { text-decoration: line-through; } li.cut .bar i { display: none; } li.drawn { outline: 2px solid var(--decode); outline-offset: 1px; } li.drawn .bar i { background: var(--decode); } li .why { position: absolute; right: 0; top: -1px; font-size: 12px; line-height: 17px; white-space: nowrap; }
table { border-collapse: collapse; width: 100%; margin: 6px 0; font: inherit; color: inherit; } th { font-weight: 400; color: var(--muted); text-align: right; padding: 2px 0 2px 12px; } td { text-align: right; padding: 2px 0 2px 12px; } th:first-child, td:first-child { text-align: left; padding-left: 0; } tr + tr td, tbody tr td { border-top: 1px solid var(--line); }
.grid { display: grid; gap: 8px; grid-template-columns: auto repeat(var(--n), minmax(40px, 1fr)); align-items: center; overflow-x: auto; padding: 3px; } .grid button { padding: 2px; line-height: 0; } .grid button[aria-pressed=true] { border-color: var(--ink); box-shadow: 0 0 0 1px var(--ink); }
.grid canvas { image-rendering: pixelated; border-radius: 3px; } .grid span { color: var(--muted); font-size: 12.5px; text-align: center; }
.note { color: var(--muted); font-size: 12.5px; margin: 8px 0 0; }
.wheel { position: relative; display: flex; height: 30px; border-radius: 5px; overflow: hidden; background: var(--soft); margin-top: 22px; } .wheel div { border-right: 1px solid var(--surface); text-align: center; font: 13px/30px var(--mono); overflow: hidden; white-space: pre; color: var(--on); background: var(--prefill); } .wheel div.hit { background: var(--decode); }
.pin { position: relative; height: 0; } .pin i { position: absolute; top: -37px; width: 2px; height: 44px; background: var(--ink); } .pin i::before { content: ""; position: absolute; left: -5px; top: -2px; border: 6px solid transparent; border-top-color: var(--ink); }
.draws { display: flex; flex-wrap: wrap; gap: 3px; margin-top: 8px; } .draws code { border: 1px solid transparent; } .draws code:last-child { border-color: var(--decode); font-weight: 700; }
svg.plot { display: block; width: 100%; cursor: crosshair; border-radius: 4px; } svg text { fill: var(--muted); font-size: 12px; } svg .strong { fill: var(--ink); } svg line { stroke: var(--line); } svg .axis { stroke: var(--muted); }
.prefill { fill: var(--prefill); } .decode { fill: var(--decode); } .hatch { fill: url(#hatch); stroke: var(--again); } .solid { fill: var(--again); } .hover { fill: var(--shade); } .pick { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.halo { paint-order: stroke; stroke: var(--surface); stroke-width: 4px; } svg.plot .cliff { stroke: var(--ink); stroke-dasharray: 3 3; } .seam { stroke: var(--surface) !important; stroke-width: .5; }
.batch { display: grid; grid-template-columns: minmax(0, 1fr) 272px; gap: 2px 18px; margin-bottom: 14px; } .batch > .head, .batch > .note { grid-column: 1 / -1; margin: 0; } .batch > .note { margin-top: 4px; } .batch .note b { color: var(--ink); }
.batch table { margin: 0; table-layout: fixed; font-size: 13px; } .batch th, .batch td { height: 24px; padding: 0 0 0 10px; line-height: 1; border: 0 !important; white-space: nowrap; } .batch tr.idle td { color: var(--muted); } .batch tr.chosen td { background: var(--shade); } .batch td code { overflow: hidden; } .batch th:nth-child(2), .batch td:nth-child(2) { text-align: left; padding-left: 20px; } .scrub { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 14px; align-items: center; margin-bottom: 12px; } .scrub .slide { grid-template-columns: auto minmax(40px, 1fr) 5.5em; margin: 0; }
svg .bit { cursor: pointer; } svg .bit.dim, svg .no.dim { opacity: .22; } svg .idle { fill: url(#idle); } svg .idle-line { fill: var(--muted); opacity: .45; } svg text.no { fill: var(--on); font-size: 11px; pointer-events: none; } svg .headline { fill: var(--shade); stroke: var(--ink); stroke-width: 1.5; pointer-events: none; }
.chip i.none { background: repeating-linear-gradient(135deg, var(--muted) 0 1px, transparent 1px 5px); border: 1px solid var(--line); }
.hide { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@container (min-width: 1000px) { .tlm { font-size: 16px; } .head b { font-size: 19px; } .text { font-size: 16px; } code { font-size: 15px; } .note { font-size: 14px; } .key { font-size: 15px; } .scale span { font-size: 13px; } svg.plot text { font-size: 13px; } }
@container (max-width: 640px) { .two { grid-template-columns: minmax(0, 1fr); } .row { gap: 8px 12px; } .tlm { padding: 12px 10px; } th, td { padding-left: 6px; font-size: 13px; } .batch { grid-template-columns: minmax(0, 1fr); } }
`;

// --- small parts

function h(tag, about = {}, ...children) {
  const e = tag.startsWith('svg:') ? document.createElementNS(NS, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (typeof value === 'function') e.addEventListener(name, value);
    else if (value === true) e.setAttribute(name, '');
    else if (value !== false && value != null) e.setAttribute(name, value);
  }
  e.append(...children.flat(Infinity).filter(c => c != null));
  return e;
}
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const triangle = n => n*(n + 1)/2;
const count = n => n.toLocaleString('en-US');
const sum = xs => xs.reduce((a, b) => a + b, 0);
const blank = label => /^[\u2423\u23ce\u21e5\u240d]+$/.test(label);
const name = (label, i) => [h('code', {}, label), i == null ? null : ` (${i})`];

function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new Type(bytes.buffer);
}

function human(n, unit) {   // 3 digits; '' spells the power of ten out, anything else stands behind its letter
  const steps = unit ? ['', 'k', 'M', 'G'] : ['', ' thousand', ' million', ' billion'];
  let i = 0;
  while (n >= 999.5 && i < 3) { n /= 1000; i++; }
  return (i ? +n.toPrecision(3) : n) + (unit ? ` ${steps[i]}${unit.trim()}` : steps[i]);
}

function radios(label, options, get, set) {
  const inputs = options.map(([value]) => h('input', { type: 'radio', name: label, value, change: () => set(value) }));
  const seg = h('span', { class: 'seg' }, options.map(([, text], i) => h('label', {}, inputs[i], h('span', {}, text))));
  const el = h('fieldset', {}, h('legend', {}, label), seg);
  return { el, refresh: () => inputs.forEach((input, i) => { input.checked = options[i][0] === get(); }) };
}

function slider(label, [min, max, step], get, set, show = String) {
  const input = h('input', { type: 'range', min, max, step, 'aria-label': label, input: () => set(+input.value) });
  const output = h('output', {});
  const el = h('label', { class: 'slide' }, h('span', {}, label), input, output);
  const refresh = (high = max) => { input.max = high; input.value = get(); output.textContent = show(get()); input.setAttribute('aria-valuetext', show(get())); };
  return { el, refresh };
}

function toggle(label, get, set) {
  const input = h('input', { type: 'checkbox', role: 'switch', change: () => set(input.checked) });
  return { el: h('label', { class: 'switch' }, input, label), refresh: () => { input.checked = get(); } };
}

const chip = (text, color, kind = '') => h('span', { class: 'chip' }, h('i', { class: kind, style: `--c: var(--${color})` }), text);

function text(labels, on) {   // tokens as running text; a line break ends its line
  const spans = labels.map((label, i) => h('span', { class: 't' + (blank(label) ? ' blank' : ''), 'data-i': i }, label));
  const el = h('div', { class: 'text' }, spans.map((s, i) => labels[i].includes('\u23ce') ? [s, h('br')] : blank(labels[i]) ? [s, h('wbr')] : s));
  for (const [event, f] of Object.entries(on)) el.addEventListener(event, e => { const i = e.target.dataset?.i; if (i != null) f(+i); });
  return { el, spans };
}

// --- light and dark: what the page says, else what it looks like, else what the reader prefers

function isDark(el) {
  const body = document.body;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === 'false';
  if (body.classList.contains('quarto-dark')) return true;
  if (body.classList.contains('quarto-light')) return false;
  for (let e = el; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?/);
    if (c && (c[4] == null || +c[4] > .5)) return .3*c[1] + .6*c[2] + .1*c[3] < 128;
  }
  return matchMedia('(prefers-color-scheme: dark)').matches;
}

function ramp(theme, w) {   // the colour of a weight: its square root, so that small weights can be told apart
  const stops = RAMPS[theme], x = Math.sqrt(clamp(w, 0, 1))*(stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x));
  return stops[i].map((a, n) => Math.round(a + (stops[i + 1][n] - a)*(x - i)));
}

function sheet(canvas, width, height) {   // a context that draws in CSS pixels, sharp on every screen
  const dpr = window.devicePixelRatio || 1;
  canvas.width = Math.round(width*dpr); canvas.height = Math.round(height*dpr); canvas.style.height = `${height}px`;
  const g = canvas.getContext('2d');
  g.scale(dpr, dpr); g.direction = 'ltr';
  return g;
}

// --- the attention map

function attentionMap(data, state, page) {
  const { tokens, n_layer: L, n_head: H } = data, T = tokens.length, N = triangle(T);
  const W = unpack(data.weights, Uint16Array);
  const weight = (l, head, q, k) => k > q ? 0 : W[(l*H + head)*N + triangle(q) + k]/65535;
  const rows = [...Array(T).keys()];
  let hover = null, inText = false, playing = null, seen = new Map();

  const passes = () => data.passes ?? [state.prompt, ...Array(T - state.prompt).fill(1)];
  const ends = () => { let n = 0; return passes().map(p => n += p); };
  const passOf = q => ends().findIndex(end => q < end);
  const lastStep = () => passes().length - 1;
  const set = change => { Object.assign(state, change); state.step = clamp(state.step, 0, lastStep()); page.changed(); };
  const stop = () => { clearInterval(playing); playing = null; };

  function bitmap(l, head) {   // one pixel a weight, kept until the theme changes
    const id = `${page.theme} ${l} ${head}`;
    if (!seen.has(id)) {
      const c = h('canvas', { width: T, height: T }), g = c.getContext('2d'), image = g.createImageData(T, T);
      for (let q = 0; q < T; q++) for (let k = 0; k <= q; k++) image.data.set([...ramp(page.theme, weight(l, head, q, k)), 255], 4*(q*T + k));
      g.putImageData(image, 0, 0); seen.set(id, c);
    }
    return seen.get(id);
  }

  // controls
  const numbers = n => [...Array(n).keys()].map(i => [i, String(i)]);
  const view = radios('View', [['head', 'one head'], ['heads', 'all heads'], ['phases', 'phases']], () => state.view, v => { stop(); set({ view: v }); });
  const layer = radios('Layer', numbers(L), () => state.layer, v => set({ layer: v }));
  const head = radios('Head', numbers(H), () => state.head, v => set({ head: v }));
  const prompt = slider('Prompt', [1, T, 1], () => state.prompt, v => set({ prompt: v, step: 0 }), v => `${v} tokens`);
  const step = slider('Pass', [0, T - 1, 1], () => state.step, v => { stop(); set({ step: v }); }, v => `${v + 1} of ${passes().length}`);
  const without = toggle('without a cache', () => !state.cache, v => set({ cache: !v }));
  const play = h('button', { click: () => {
    if (playing) { stop(); page.draw(); return; }
    if (state.step === lastStep()) state.step = 0;
    playing = setInterval(() => { if (state.step < lastStep()) set({ step: state.step + 1 }); else { stop(); page.draw(); } }, 450);
    page.draw();
  } });

  // the map and what is beside it
  const canvas = h('canvas', { tabindex: 0, role: 'application', 'aria-roledescription': 'attention map',
    pointermove: e => { hover = cell(e); page.draw(); }, pointerleave: () => { hover = null; page.draw(); },
    click: e => { const c = cell(e); if (c) state.view === 'phases' ? (stop(), set({ step: passOf(c.q) })) : set({ query: c.q, key: c.k }); },
    keydown: e => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [-T, 0], End: [T, 0] }[e.key];
      if (!move) return;
      e.preventDefault(); hover = null;
      if (state.view === 'phases') { stop(); set({ step: clamp(state.step + move[0] + move[1], 0, lastStep()) }); return; }
      const q = clamp(state.query + move[0], 0, T - 1);
      set({ query: q, key: clamp((state.key ?? q) + move[1], 0, q) });
    } });
  const key = h('div', { class: 'key' });
  const strip = text(tokens, {
    pointerover: i => { inText = true; hover = state.view === 'phases' ? { q: i, k: null } : i <= state.query ? { q: state.query, k: i } : { q: i, k: null }; page.draw(); },
    click: i => { stop(); state.view === 'phases' ? set({ step: passOf(i) }) : set({ query: i, key: null }); } });
  strip.el.addEventListener('pointerleave', () => { hover = null; inText = false; page.draw(); });
  const arcs = h('svg:svg', { 'aria-hidden': 'true' });
  strip.el.append(arcs);
  const best = h('ol', { class: 'bars', 'aria-label': 'keys with the largest weights', style: '--w: 7em' });
  const facts = h('div', {}), say = h('p', { class: 'say', role: 'status' });
  const headSide = h('div', {}, strip.el, best), phaseSide = h('div', {}, prompt.el, step.el, h('div', { class: 'row' }, play, without.el), facts);
  const left = h('div', { class: 'map' }, canvas, key), right = h('div', {}), two = h('div', { class: 'two' }, left, right);
  const grid = h('div', { class: 'grid', style: `--n: ${H}` });
  const pick = h('div', { class: 'row' }, L > 1 ? layer.el : null, H > 1 ? head.el : null);
  const note = h('p', { class: 'note' });
  page.add(h('div', { class: 'head' }, h('b', {}, 'Attention map'), h('span', {}, `${count(T)} tokens, ${L} ${L > 1 ? 'layers' : 'layer'}, ${H} ${H > 1 ? 'heads' : 'head'} each`), h('div', { class: 'row right', style: 'margin-bottom: 0' }, view.el)),
    pick, two, grid, say, note);

  const frame = () => { const size = left.clientWidth, pad = 30; return { size, pad, side: size - pad - 4, cell: (size - pad - 4)/T }; };
  function cell(e) {
    const box = canvas.getBoundingClientRect(), f = frame();
    const q = Math.floor((e.clientY - box.top - f.pad)/f.cell), k = Math.floor((e.clientX - box.left - f.pad)/f.cell);
    return q >= 0 && q < T && k >= 0 && k <= q ? { q, k } : null;
  }

  function axes(g, f, at) {
    const all = f.cell >= 9.5, font = size => `${size}px ui-monospace, "DejaVu Sans Mono", Menlo, monospace`;
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find(n => n*f.cell >= 26);
    g.textBaseline = 'middle'; g.textAlign = 'center';
    const put = (i, isQuery, label, strong) => {
      const x = isQuery ? f.pad - 11 : f.pad + (i + .5)*f.cell, y = isQuery ? f.pad + (i + .5)*f.cell : f.pad - 11;
      if (strong) { const w = Math.max(18, g.measureText(label).width + 6); g.fillStyle = page.color('--ink'); g.fillRect(clamp(x - w/2, 0, f.size - w), y - 9, w, 18); g.fillStyle = page.color('--surface'); g.fillText(label, clamp(x, w/2, f.size - w/2), y); }
      else { g.fillStyle = page.color('--muted'); g.fillText(label, x, y); }
    };
    const short = label => label.length > 3 ? label.slice(0, 2) + '\u2026' : label;
    for (const isQuery of [true, false]) {
      g.font = font(all ? clamp(f.cell*.8, 9, 14) : 10);
      const chosen = isQuery ? at?.q : at?.k;
      for (const i of rows) if (i !== chosen && (all || (i % every === 0 && !(chosen != null && Math.abs(i - chosen)*f.cell < 24)))) put(i, isQuery, all ? short(tokens[i]) : String(i), false);
      g.font = font(14);
      if (chosen != null) put(chosen, isQuery, short(tokens[chosen]), true);
    }
  }

  function seams(g, f) {   // a thin line between cells where there is room
    if (f.cell < 7) return;
    g.strokeStyle = page.color('--surface'); g.lineWidth = 1; g.beginPath();
    for (let i = 1; i < T; i++) { const p = f.pad + i*f.cell; g.moveTo(f.pad, p); g.lineTo(p + f.cell, p); g.moveTo(p, p - f.cell); g.lineTo(p, f.pad + f.side); }
    g.stroke();
  }

  function rectangles(g, f) {   // each pass through the cache: its queries times all keys so far
    g.strokeStyle = page.color('--decode'); g.lineWidth = 2;
    let start = 0;
    for (const end of ends()) { g.strokeRect(f.pad + 1, f.pad + start*f.cell + 1, end*f.cell - 2, (end - start)*f.cell - 2); start = end; }
  }

  function drawHead(g, f, at) {
    g.imageSmoothingEnabled = false;
    g.drawImage(bitmap(state.layer, state.head), f.pad, f.pad, f.side, f.side);
    seams(g, f);
    if (data.passes) rectangles(g, f);
    g.strokeStyle = page.color('--ink'); g.lineWidth = 1.5;
    g.strokeRect(f.pad - 1, f.pad + at.q*f.cell - .5, (at.q + 1)*f.cell + 2, f.cell + 1);
    if (at.k != null) { g.strokeStyle = page.color('--decode'); g.lineWidth = 2.5; g.strokeRect(f.pad + at.k*f.cell - 1, f.pad + at.q*f.cell - 1, f.cell + 2, f.cell + 2); }
  }

  function hatch(g) {
    const c = h('canvas', { width: 6, height: 6 }), p = c.getContext('2d');
    p.strokeStyle = page.color('--again'); p.lineWidth = 1.6;
    for (const d of [-6, 0, 6]) { p.beginPath(); p.moveTo(d - 1, 7); p.lineTo(d + 7, -1); p.stroke(); }
    return g.createPattern(c, 'repeat');
  }

  function drawPhases(g, f) {
    const stops = ends(), end = stops[state.step], start = end - passes()[state.step];
    const hue = q => page.color(passes()[passOf(q)] > 1 || passOf(q) === 0 ? '--prefill' : '--decode');
    for (const q of rows) {
      const box = [f.pad, f.pad + q*f.cell, (q + 1)*f.cell, f.cell + .3];
      g.fillStyle = hue(q);
      if (q >= end) { g.globalAlpha = .13; g.fillRect(...box); }
      else if (q >= start) { g.globalAlpha = 1; g.fillRect(...box); }
      else if (state.cache) { g.globalAlpha = .38; g.fillRect(...box); }
    }
    g.globalAlpha = 1;
    if (!state.cache) { g.fillStyle = hatch(g); for (let q = 0; q < start; q++) g.fillRect(f.pad, f.pad + q*f.cell, (q + 1)*f.cell, f.cell + .3); }
    seams(g, f);
    g.strokeStyle = page.color('--ink'); g.lineWidth = 2;
    g.strokeRect(f.pad - 1, f.pad + start*f.cell - 1, end*f.cell + 2, (end - start)*f.cell + 2);
  }

  function drawArcs(at) {
    arcs.replaceChildren();
    const middle = i => { const s = strip.spans[i]; return [s.offsetLeft + s.offsetWidth/2, s.offsetTop + 3]; };
    const [x2, y2] = middle(at.q);
    rows.slice(0, at.q).map(k => [weight(state.layer, state.head, at.q, k), k]).filter(([w]) => w > .02).sort((a, b) => b[0] - a[0]).slice(0, 24).forEach(([w, k]) => {
      const [x1, y1] = middle(k), lift = Math.min(y1, y2) - 6 - Math.min(18, Math.abs(x2 - x1)*.12);
      arcs.append(h('svg:path', { d: `M${x1} ${y1} C${x1} ${lift}, ${x2} ${lift}, ${x2} ${y2}`, fill: 'none', stroke: 'var(--prefill)', 'stroke-width': 1 + 6*w, 'stroke-opacity': clamp(.25 + w, 0, .9), 'stroke-linecap': 'round' }));
    });
  }

  function keepInSight(i) {   // scrolls a long text, and only the text
    const s = strip.spans[i], { scrollTop, clientHeight } = strip.el;
    if (T > 120 && (s.offsetTop < scrollTop + 20 || s.offsetTop > scrollTop + clientHeight - 40)) strip.el.scrollTop = s.offsetTop - clientHeight/2;
  }

  function drawHeadSide(at) {
    if (!inText) keepInSight(at.q);
    const ws = rows.slice(0, at.q + 1).map(k => weight(state.layer, state.head, at.q, k));
    strip.spans.forEach((s, i) => {
      s.className = 't' + (blank(tokens[i]) ? ' blank' : '') + (i > at.q ? ' future' : '') + (i === at.q ? ' q' : '');
      s.style.background = i <= at.q ? `color-mix(in srgb, var(--prefill) ${Math.round(75*Math.sqrt(ws[i]))}%, transparent)` : '';
    });
    drawArcs(at);
    const top = ws.map((w, k) => [w, k]).sort((a, b) => b[0] - a[0]).slice(0, 9);
    best.replaceChildren(...top.map(([w, k]) => h('li', { 'data-key': k }, h('span', { class: 'name' }, h('code', {}, tokens[k]), h('span', { style: 'color: var(--muted)' }, String(k))), h('span', { class: 'bar' }, h('i', { style: `width: ${100*w}%` })), h('output', {}, w.toFixed(4)))));
  }

  function drawPhaseSide() {
    const stops = ends(), n = passes()[state.step], end = stops[state.step], start = end - n;
    const kept = triangle(end) - triangle(start), whole = triangle(end), sumKept = triangle(end), sumWhole = sum(stops.slice(0, state.step + 1).map(triangle));
    const both = (what, a, b) => h('tr', { 'data-fact': what }, h('td', {}, what), h('td', {}, state.cache ? h('b', {}, count(a)) : count(a)), h('td', {}, state.cache ? count(b) : h('b', {}, count(b))));
    const most = sum(stops.map(triangle)), meter = (label, value, color, kind) => h('li', {}, h('span', {}, label), h('span', { class: 'bar' }, h('i', { class: kind, style: `--c: var(--${color}); width: ${100*value/most}%` })), h('output', {}, count(value)));
    strip.spans.forEach((s, i) => {
      s.style.background = '';
      s.className = 't' + (passes()[passOf(i)] > 1 || passOf(i) === 0 ? ' prompt' : ' made') + (i >= end ? ' future' : i >= start ? ' now' + (n > 1 ? ' many' : '') : state.cache ? '' : ' redo');
    });
    arcs.replaceChildren();
    facts.replaceChildren(
      h('table', {}, h('thead', {}, h('tr', {}, h('th', {}, 'this pass'), h('th', {}, 'with a cache'), h('th', {}, 'without'))),
        h('tbody', {}, both('tokens read', n, end), both('pairs computed', kept, whole), both('of these, again', 0, whole - kept))),
      h('p', { class: 'note', style: 'margin: 10px 0 4px' }, 'pairs computed so far, in each head'),
      h('ul', { class: 'bars', style: '--w: 7em' }, meter('with a cache', sumKept, 'kept', ''), meter('without', sumWhole, 'again', 'again-fill')));
    if (!inText) keepInSight(end - 1);
    play.textContent = playing ? '\u2016 pause' : '\u25b6 play';
  }

  function sentence(at) {
    if (state.view === 'heads') return ['Each small map is one head. Choose one to enlarge it.'];
    if (state.view === 'phases') {
      const n = passes()[state.step], end = ends()[state.step], start = end - n;
      if (hover && hover.k != null) return [`Query `, name(tokens[hover.q], hover.q), ` and key `, name(tokens[hover.k], hover.k), `: computed in pass ${passOf(hover.q) + 1}` + (state.cache || passOf(hover.q) >= state.step ? '.' : `, and again in each pass up to ${state.step + 1}.`)];
      const what = state.step === 0 ? `Prefill: ${count(n)} ${n > 1 ? 'tokens' : 'token'} in one pass.` : n > 1 ? `A chunk: ${n} queries, each with up to ${end} keys, in one pass.` : `Decode: one query, ${end} keys.`;
      return [what, ' ', state.step === 0 ? 'Nothing is known yet, so both ways do the same.' : state.cache ? `The keys of the first ${start} tokens come from the cache.` : `The first ${start} tokens are read once more.`];
    }
    if (at.k == null) return ['Query ', name(tokens[at.q], at.q), `: its ${at.q + 1} weights add up to 1.`];
    return ['Query ', name(tokens[at.q], at.q), ' looks at key ', name(tokens[at.k], at.k), ' with weight ', h('b', { class: 'weight' }, weight(state.layer, state.head, at.q, at.k).toFixed(4)), '.'];
  }

  function legend() {
    if (state.view === 'phases') return [chip('prefill', 'prefill'), passes().slice(1).includes(1) ? chip('decode', 'decode') : null, state.cache ? null : chip('computed again', 'again', 'again')].filter(Boolean);
    const stops = [...Array(25).keys()].map(i => `rgb(${ramp(page.theme, (i/24)**2)})`);
    return [h('div', { class: 'scale' }, h('i', { style: `background: linear-gradient(90deg, ${stops})` }), [0, .1, .3, .6, 1].map(w => h('span', { style: `left: ${clamp(100*Math.sqrt(w), 2, 98)}%` }, String(w)))), h('span', {}, 'weight')];
  }

  function drawGrid() {
    const cells = [h('span', {}), ...rows.slice(0, 0)];
    for (let i = 0; i < H; i++) cells.push(h('span', {}, `head ${i}`));
    for (let l = 0; l < L; l++) {
      cells.push(h('span', {}, `layer ${l}`));
      for (let i = 0; i < H; i++) {
        const c = h('canvas', { width: T, height: T, 'aria-hidden': 'true' });
        c.getContext('2d').drawImage(bitmap(l, i), 0, 0);
        cells.push(h('button', { 'aria-label': `enlarge layer ${l}, head ${i}`, 'aria-pressed': String(l === state.layer && i === state.head), 'data-layer': l, 'data-head': i,
          click: () => { set({ view: 'head', layer: l, head: i }); canvas.focus({ preventScroll: true }); } }, c));
      }
    }
    grid.replaceChildren(...cells);
  }

  let drawn = '';
  return function draw() {
    [view, layer, head, prompt, without].forEach(c => c.refresh());
    step.refresh(lastStep());
    const { view: v } = state, at = v === 'head' && hover ? hover : { q: state.query, k: v === 'head' ? state.key : null };
    pick.style.display = v === 'head' ? '' : 'none'; two.style.display = v === 'heads' ? 'none' : ''; grid.style.display = v === 'heads' ? '' : 'none';
    prompt.el.style.display = data.passes ? 'none' : '';
    say.replaceChildren(...sentence(at).flat());
    note.textContent = v === 'phases' ? `Pairs of a query and a key, in each head of each layer. ${data.passes ? 'The passes are those that the model made.' : 'The weights are the same wherever the prompt ends, so the end of the prompt can be moved.'}`
      : 'A query (row) sees itself and the keys before it (columns). Weights are kept in steps of 1/65535 and shown to 4 decimals; colour follows their square root.';
    if (v === 'heads') { const id = `${page.theme} ${state.layer} ${state.head}`; if (id !== drawn) drawGrid(); drawn = id; return; }
    drawn = '';
    const side = v === 'head' ? headSide : phaseSide;
    if (right.firstChild !== side) { right.replaceChildren(side); if (v === 'head') headSide.prepend(strip.el); else phaseSide.insertBefore(strip.el, facts); }
    strip.el.className = 'text' + (v === 'head' ? ' tall' : '') + (T > 120 ? ' long' : '');
    const f = frame();
    if (f.size < 60) return;
    const g = sheet(canvas, f.size, f.size);
    key.replaceChildren(...legend());
    if (v === 'head') { drawHead(g, f, at); drawHeadSide(at); } else { drawPhases(g, f); drawPhaseSide(); }
    axes(g, f, v === 'head' ? at : hover ?? { q: ends()[state.step] - 1, k: null });
    canvas.setAttribute('aria-label', `${v === 'head' ? `Layer ${state.layer}, head ${state.head}` : 'Phases'}. ${say.textContent} Arrow keys move.`);
  };
}

// --- the decode timeline

function decodeTimeline(data, state, page) {
  const { series, prompt } = data, n = Math.max(...series.map(s => s.ms.length)), first = series[0];
  let hover = null;
  const set = change => { Object.assign(state, change); page.changed(); };
  const CAUSES = { bytes: ['bytes moved', s => s.bytes, v => human(v, 'B')], flops: ['FLOPs', s => s.flops, v => human(v, ' ')], read: ['tokens read', s => s.read, v => count(v)] };
  const cause = radios('Cause', Object.entries(CAUSES).filter(([, [, of]]) => series.every(of)).map(([k, [label]]) => [k, label]), () => state.cause, v => set({ cause: v }));
  const scale = radios('Time axis', [['linear', 'from 0'], ['log', 'logarithmic']], () => state.scale, v => set({ scale: v }));
  const kind = (s, i) => i === 0 ? 'prefill' : s.again[i] ? 'again' : 'decode';
  const fill = (s, i, front) => kind(s, i) === 'again' ? (front ? 'solid' : 'hatch') : kind(s, i);
  const cliff = first.again.findIndex((a, i) => i > 1 && a && !first.again[i - 1]);

  const plot = h('svg:svg', { class: 'plot', tabindex: 0, role: 'application', 'aria-roledescription': 'timeline',
    pointermove: e => { hover = index(e); page.draw(); }, pointerleave: () => { hover = null; page.draw(); }, click: e => { const i = index(e); if (i != null) set({ token: i }); },
    keydown: e => {
      const to = { ArrowLeft: state.token - 1, ArrowRight: state.token + 1, Home: 0, End: n - 1, PageUp: state.token - 10, PageDown: state.token + 10 }[e.key];
      if (to == null) return;
      e.preventDefault(); hover = null; set({ token: clamp(to, 0, n - 1) });
    } });
  const strip = text([...prompt, ...first.tokens], { pointerover: i => { hover = Math.max(0, i - prompt.length); page.draw(); }, click: i => set({ token: Math.max(0, i - prompt.length) }) });
  strip.el.addEventListener('pointerleave', () => { hover = null; page.draw(); });
  const table = h('tbody', {}), say = h('p', { class: 'hide', role: 'status' });
  const caption = h('span', {});
  const again = series.some(s => s.again.some(a => a));
  page.add(h('div', { class: 'head' }, h('b', {}, 'Decode timeline'), caption),
    h('div', { class: 'row' }, scale.el, cause.el, h('div', { class: 'row right', style: 'margin-bottom: 0' }, chip('prefill', 'prefill'), chip('decode', 'decode'), again ? chip('reads all again', 'again', 'again') : null)),
    plot, h('table', {}, h('thead', {}, h('tr', {}, ['', 'token', 'time', 'bytes', 'FLOPs', 'tokens read'].map(t => h('th', {}, t)))), table), say, strip.el,
    h('p', { class: 'note' }, series.length > 1 ? `Wide bars behind: ${series.slice(1).map(s => s.name).join(', ')}. Narrow bars in front: ${first.name}. ` : '', 'Times were measured on one machine; bytes and FLOPs are counted.'));

  const LEFT = 66, RIGHT = 84, LANE = 22, TOP = series.length*(LANE + 6) + 26;
  const box = () => ({ width: Math.max(280, plot.clientWidth), bars: 170, cause: 84 });
  const band = () => (box().width - LEFT - 8)/n;
  function index(e) {
    const r = plot.getBoundingClientRect(), y = e.clientY - r.top, x = (e.clientX - r.left)*box().width/r.width - LEFT;
    if (x < 0 || y < 0) return null;
    const s = series[Math.floor((y - 2)/(LANE + 6))];
    if (s && y < TOP - 24) { const at = x/(box().width - LEFT - RIGHT)*longest; let t = 0; const i = s.ms.findIndex(m => (t += m) > at); return i < 0 ? null : i; }
    const i = Math.floor(x/band());
    return i < n ? i : null;
  }
  const longest = Math.max(...series.map(s => sum(s.ms)));

  function nice(high, parts = 4) {
    const raw = high/parts, power = 10**Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].find(m => m*power >= raw)*power;
    return [...Array(Math.floor(high/step + 1e-9) + 1).keys()].map(i => +(i*step).toPrecision(6));
  }
  const digits = ticks => Math.max(0, ...ticks.map(t => (String(+t.toPrecision(3)).split('.')[1] ?? '').length));

  function bars(y0, height, values, top, position, label, ticks, format) {   // one chart: axis, ticks, a bar a token and series
    const w = band(), out = [];
    for (const t of ticks) { const y = y0 + height - position(t)*height; out.push(h('svg:line', { x1: LEFT, x2: box().width - 8, y1: y, y2: y, class: t === ticks[0] ? 'axis' : '' }), h('svg:text', { x: LEFT - 6, y: y + 4, 'text-anchor': 'end' }, format(t))); }
    out.push(h('svg:text', { x: LEFT, y: y0 - 8, class: 'strong' }, label));
    [...series.keys()].reverse().forEach(j => values(series[j]).forEach((v, i) => {
      const share = j ? .84 : series.length > 1 ? .46 : .74, height_ = Math.max(1, position(v)*height);
      out.push(h('svg:rect', { x: LEFT + (i + (1 - share)/2)*w, width: Math.max(.8, share*w), y: y0 + height - height_, height: height_, class: fill(series[j], i, j === 0), 'data-series': j, 'data-token': i }));
    }));
    return out;
  }

  return function draw() {
    [cause, scale].forEach(c => c.refresh());
    const b = box(), w = band(), at = hover ?? state.token;
    const high = Math.max(...series.flatMap(s => s.ms)), low = Math.min(...series.flatMap(s => s.ms).filter(v => v > 0));
    const height = TOP + b.bars + 46 + b.cause + 34;
    plot.setAttribute('viewBox', `0 0 ${b.width} ${height}`); plot.setAttribute('height', height);
    const out = [h('svg:defs', {}, h('svg:pattern', { id: 'hatch', width: 5, height: 5, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, h('svg:rect', { width: 2, height: 5, class: 'solid' })))];

    series.forEach((s, j) => {   // a lane for each series: one shared clock
      const y = 2 + j*(LANE + 6), unit = (b.width - LEFT - RIGHT)/longest;
      let t = 0;
      out.push(h('svg:text', { x: LEFT - 6, y: y + LANE/2 + 4, 'text-anchor': 'end', class: 'strong' }, s.name.length > 9 ? s.name.slice(0, 8) + '\u2026' : s.name));
      s.ms.forEach((m, i) => { out.push(h('svg:rect', { x: LEFT + t*unit, y, width: Math.max(.5, m*unit), height: LANE, class: fill(s, i, true) + (m*unit > 4 ? ' seam' : ''), opacity: i === at || i % 2 === 0 ? 1 : .72 })); if (i === at) out.push(h('svg:rect', { x: LEFT + t*unit, y: y - 1, width: Math.max(2, m*unit), height: LANE + 2, class: 'pick' })); t += m; });
      out.push(h('svg:text', { x: LEFT + t*unit + 8, y: y + LANE/2 + 4, class: 'strong' }, `${t.toFixed(1)} ms`));
    });
    const clock = nice(longest, 6), d = digits(clock), base = TOP - 26;
    for (const t of clock) { const x = LEFT + t/longest*(b.width - LEFT - RIGHT); out.push(h('svg:line', { x1: x, x2: x, y1: base, y2: base + 4, class: 'axis' }), h('svg:text', { x, y: base + 16, 'text-anchor': 'middle' }, t.toFixed(d) + (t === clock.at(-1) ? ' ms' : ''))); }

    const y1 = TOP + 24, y2 = y1 + b.bars + 36;
    if (at < n) out.push(h('svg:rect', { x: LEFT + at*w, width: w, y: y1, height: y2 + b.cause - y1, class: 'hover' }));
    const log = state.scale === 'log', floor = 10**Math.floor(Math.log10(low)), span = Math.log10(high*1.05/floor);
    const decades = [...Array(Math.floor(span) + 1).keys()].map(i => floor*10**i), ticks = log ? decades.flatMap(t => [t, 2*t, 5*t]).filter(t => t <= high*1.05) : nice(high*1.05);
    out.push(...bars(y1, b.bars, s => s.ms, high, v => log ? Math.max(0, Math.log10(v/floor)/span) : v/(high*1.05), log ? 'milliseconds for each token (logarithmic axis, it does not start at 0)' : 'milliseconds for each token', ticks, t => t.toFixed(log ? Math.max(0, -Math.floor(Math.log10(t))) : digits(ticks))));
    const [what, of, show] = CAUSES[state.cause], most = Math.max(...series.flatMap(s => of(s))) || 1;
    out.push(...bars(y2, b.cause, of, most, v => v/(most*1.05), `${what} for each token`, nice(most*1.05, 2), show));
    if (at < n) out.push(h('svg:rect', { x: LEFT + at*w + .5, width: Math.max(1, w - 1), y: y1, height: y2 + b.cause - y1, class: 'pick' }));
    const bottom = y2 + b.cause + 16, every = [1, 2, 5, 10, 20, 50, 100, 200].find(k => k*w >= 34) ?? 500;
    for (let i = 0; i < n; i += every) out.push(h('svg:text', { x: LEFT + (i + .5)*w, y: bottom, 'text-anchor': 'middle' }, String(i + 1)));
    out.push(h('svg:text', { x: LEFT, y: bottom + 15 }, 'new token'));
    if (cliff > 0) { const x = LEFT + cliff*w, flip = x > b.width*.6; out.push(h('svg:line', { x1: x, x2: x, y1: y1 - 18, y2: y2 + b.cause, class: 'cliff' }), h('svg:text', { x: x + (flip ? -5 : 5), y: y1 + 12, 'text-anchor': flip ? 'end' : 'start', class: 'strong halo' }, 'the window is full')); }
    plot.replaceChildren(...out);

    caption.textContent = series.map(s => `${s.name}: first token ${s.ms[0].toFixed(2)} ms, later ones ${s.median.toFixed(2)} ms (median)`).join(' \u00b7 ');
    table.replaceChildren(...series.filter(s => at < s.ms.length).map(s => h('tr', { 'data-name': s.name }, h('td', {}, s.name), h('td', {}, name(s.tokens[at], at + 1)), h('td', {}, h('b', {}, `${s.ms[at].toFixed(3)} ms`)), h('td', {}, human(s.bytes[at], 'B')), h('td', {}, human(s.flops[at], '')), h('td', {}, s.read ? count(s.read[at]) : '\u2013'))));
    say.textContent = `Token ${at + 1}: ` + series.filter(s => at < s.ms.length).map(s => `${s.name} ${s.ms[at].toFixed(3)} milliseconds`).join(', ');
    plot.setAttribute('aria-label', `${say.textContent}. Arrow keys move.`);
    const here = prompt.length + at;
    strip.spans.forEach((s, i) => { s.className = 't' + (i < prompt.length ? ' prompt' : ' made') + (i === here ? ' now' : '') + (blank(s.textContent) ? ' blank' : ''); });
  };
}

// --- the distribution of the next token

function random(seed, n) {   // the n-th number of mulberry32, in [0, 1)
  let a = seed >>> 0, out = 0;
  for (let i = 0; i < n; i++) { a = (a + 0x6d2b79f5) | 0; let t = Math.imul(a ^ (a >>> 15), 1 | a); t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t; out = ((t ^ (t >>> 14)) >>> 0)/4294967296; }
  return out;
}

function distribution(logits, order, temperature, topK, topP) {   // as tinylm.decoding.probabilities, best token first, in single precision
  const f = Math.fround, top = logits[order[0]], one = temperature < 1e-9;
  const raw = order.map((id, i) => one ? +(i === 0) : Math.exp(f(f(logits[id] - top)/f(temperature)))), total = sum(raw), p = raw.map(x => f(x/total));
  let cum = 0;
  const why = p.map((x, i) => { cum += x; const before = f(f(cum) - x); return topK != null && i >= topK ? 'top-k' : topP != null && topP < 1 && before >= topP ? 'top-p' : one && i ? 'temperature 0' : ''; });
  const left = sum(p.filter((_, i) => !why[i]));
  return { p: p.map((x, i) => why[i] ? 0 : f(x/left)), why };
}

function tokenProbabilities(data, state, page) {
  const { tokens } = data, logits = unpack(data.logits, Float32Array), V = logits.length;
  const order = [...Array(V).keys()].sort((a, b) => logits[b] - logits[a] || a - b), shown = Math.min(V, 200);
  const plain = distribution(logits, order, 1, null, null).p;
  const ks = [...Array(V).keys()].map(i => i + 1).filter(k => k <= 64 || k === V || Math.floor(8*Math.log2(k)) !== Math.floor(8*Math.log2(k - 1)));
  const set = change => { Object.assign(state, change); page.changed(); };

  const temperature = slider('Temperature', [0, 3, .05], () => state.temperature, v => set({ temperature: v }), v => v.toFixed(2));
  const topK = slider('Top-k', [0, ks.length - 1, 1], () => state.top_k == null ? ks.length - 1 : Math.max(0, ks.findLastIndex(k => k <= state.top_k)), i => set({ top_k: ks[i] === V ? null : ks[i] }), () => state.top_k == null ? 'off' : count(state.top_k));
  const topP = slider('Top-p', [.01, 1, .01], () => state.top_p ?? 1, v => set({ top_p: v === 1 ? null : v }), () => state.top_p == null ? 'off' : state.top_p.toFixed(2));
  const again = h('button', { click: () => set({ draw: state.draw + 1 }) }, 'draw another token');
  const rows = order.slice(0, shown).map(id => {
    const i = h('i', {}), u = h('u', { title: 'at temperature 1, nothing cut' }), out = h('output', {}), why = h('span', { class: 'why' });
    return { i, u, out, why, el: h('li', { 'data-id': id }, h('span', { class: 'name' }, h('code', { title: `token ${id}` }, tokens[id])), h('span', { class: 'bar' }, i, u, why), out) };
  });
  const list = h('ol', { class: 'bars', style: '--w: 4.2em', 'aria-label': 'tokens, most likely first' }, rows.map(r => r.el));
  const wheel = h('div', { class: 'wheel', role: 'img' }), pin = h('i', {}), draws = h('div', { class: 'draws', 'aria-label': 'tokens drawn so far' });
  const say = h('p', { class: 'say', role: 'status' }), after = data.text.length ? [' after ', h('code', {}, data.text.slice(-24).join(''))] : [];
  page.add(h('div', { class: 'head' }, h('b', {}, 'The next token'), h('span', {}, after)),
    h('div', { class: 'two' },
      h('div', {}, temperature.el, topK.el, topP.el, h('p', { class: 'note', style: 'margin-bottom: 12px' }, 'The thin mark on each bar is the probability at temperature 1 with nothing cut.'), again, wheel, h('div', { class: 'pin' }, pin), say, draws),
      h('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': 'probabilities' }, list)),
    h('p', { class: 'note' }, shown < V ? `The ${shown} best of ${count(V)} tokens. ` : `All ${count(V)} tokens. `, `Probabilities to 4 decimals. Draws come from seed ${data.seed}, so they repeat.`));

  return function draw() {
    [temperature, topK, topP].forEach(c => c.refresh());
    const { p, why } = distribution(logits, order, state.temperature, state.top_k, state.top_p), most = Math.max(p[0], plain[0]);
    const land = u => { let t = 0; const i = p.findIndex(x => (t += x) > u); return i < 0 ? p.findLastIndex(x => x > 0) : i; };
    const u = random(data.seed, state.draw), hit = land(u), kept = p.filter(x => x > 0).length;
    rows.forEach((r, i) => {
      r.el.className = why[i] ? 'cut' : i === hit ? 'drawn' : '';
      r.i.style.width = `${100*p[i]/most}%`; r.u.style.left = `${100*plain[i]/most}%`;
      r.out.textContent = p[i].toFixed(4); r.why.textContent = why[i] ? `cut by ${why[i]}` : '';
      r.el.setAttribute('aria-current', i === hit ? 'true' : 'false');
    });
    const big = p.findIndex(x => x < .004), cut = big < 0 ? V : big, rest = sum(p.slice(cut));
    wheel.replaceChildren(...p.slice(0, cut).map((x, i) => h('div', { class: i === hit ? 'hit' : '', style: `width: ${100*x}%` }, x > .03 ? tokens[order[i]].slice(0, 4) : '')), ...(rest > 0 ? [h('div', { class: hit >= cut ? 'hit' : '', style: `width: ${100*rest}%; opacity: .5` })] : []));
    wheel.setAttribute('aria-label', `all kept probabilities side by side, and the drawn number ${u.toFixed(4)}`);
    pin.style.left = `calc(${100*u}% - 1px)`;
    say.replaceChildren(`${count(kept)} of ${count(V)} tokens can come. Draw ${state.draw}: the number ${u.toFixed(4)} lands on `, h('code', { class: 'hit' }, tokens[order[hit]]), '.');
    const from = Math.max(1, state.draw - 29);
    draws.replaceChildren(...[...Array(state.draw - from + 1).keys()].map(i => h('code', {}, tokens[order[land(random(data.seed, from + i))]])));
  };
}

// --- batches, step by step

function batchTimeline(data, state, page) {
  const { series } = data, n = Math.max(...series.map(s => s.steps.length)), LANE = 24, LEFT = 24;
  const all = [...new Set(series.flatMap(s => s.requests.map(r => r.number)))].sort((a, b) => a - b);
  let hover = null, playing = null, built = 0;
  const set = change => { Object.assign(state, change); page.changed(); };
  const stop = () => { clearInterval(playing); playing = null; };
  const phase = job => job.phase === 'read' ? 'prefill' : 'decode';
  const tokens = k => `${count(k)} ${k === 1 ? 'token' : 'tokens'}`;

  const step = slider('Step', [0, n - 1, 1], () => state.step, v => { stop(); set({ step: v }); }, v => `${v + 1} of ${n}`);
  const play = h('button', { click: () => {
    if (playing) { stop(); page.draw(); return; }
    if (state.step === n - 1) state.step = 0;
    playing = setInterval(() => { if (state.step < n - 1 && play.isConnected) set({ step: state.step + 1 }); else { stop(); page.draw(); } }, 350);
    page.draw();
  } });

  function keys(e) {   // left and right through the steps, up and down through the requests
    const to = { ArrowLeft: state.step - 1, ArrowRight: state.step + 1, Home: 0, End: n - 1, PageUp: state.step - 10, PageDown: state.step + 10 }[e.key], i = all.indexOf(state.request);
    const who = { ArrowDown: all[Math.min(all.length - 1, i + 1)], ArrowUp: i > 0 ? all[i - 1] : null, Escape: null }[e.key];
    if (to == null && who === undefined) return;
    e.preventDefault(); hover = null; stop();
    set(to == null ? { request: who } : { step: clamp(to, 0, n - 1) });
  }

  const charts = series.map(s => {
    const lanes = [...Array(s.slots).keys()].map(slot => s.steps.map(t => t.jobs.find(j => j.slot === slot)));
    const at = e => { const r = c.plot.getBoundingClientRect(), i = Math.floor((e.clientX - r.left - LEFT)/band()), slot = Math.floor((e.clientY - r.top)/LANE) - 1; return { i, job: lanes[slot]?.[i] }; };
    const plot = h('svg:svg', { class: 'plot', tabindex: 0, role: 'application', 'aria-roledescription': 'batch', keydown: keys,
      pointermove: e => { hover = at(e).job?.request ?? null; page.draw(); }, pointerleave: () => { hover = null; page.draw(); },
      click: e => { const { i, job } = at(e); if (i >= 0) { stop(); set({ step: clamp(i, 0, n - 1), request: job?.request ?? null }); } } });
    const empty = sum(lanes.map(lane => lane.filter(j => !j).length));
    const c = { s, lanes, plot, rows: h('tbody', {}), facts: h('p', { class: 'note' }), mark: h('svg:rect', { class: 'headline', rx: 2 }) };
    c.el = h('div', { class: 'batch', 'data-name': s.name }, h('div', { class: 'head' }, h('b', {}, s.name), h('span', {}, `${count(s.steps.length)} ${s.steps.length === 1 ? 'step' : 'steps'}, ${count(empty)} of ${count(s.slots*s.steps.length)} places without work`)),
      plot, h('table', {}, h('thead', {}, h('tr', {}, ['request', 'phase', 'read', 'written'].map(t => h('th', { scope: 'col' }, t)))), c.rows), c.facts);
    return c;
  });
  const who = h('th', { scope: 'col' }), ways = h('tbody', {}), say = h('p', { class: 'say', role: 'status' });
  page.add(h('div', { class: 'head' }, h('b', {}, 'Batches, step by step'), h('span', {}, 'a row is a place in the batch, a column a step'), h('div', { class: 'row right', style: 'margin-bottom: 0' }, chip('prefill', 'prefill'), chip('decode', 'decode'), chip('no work', 'muted', 'none'))),
    h('div', { class: 'scrub' }, play, step.el),
    ...charts.map(c => c.el), say, h('table', {}, h('thead', {}, h('tr', {}, who, ['first read in step', 'first token in step', 'last token in step', 'steps at work'].map(t => h('th', { scope: 'col' }, t)))), ways),
    h('p', { class: 'note' }, 'Times were measured on one machine; the rest is counted. Left and right keys move through the steps, up and down through the requests.'));

  const band = () => (charts[0].plot.clientWidth - LEFT - 4)/n;

  function build(c) {   // what does not move
    const { s, lanes, plot, mark } = c, w = band(), height = LANE*(s.slots + 1) + 2, out = [], every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find(k => k*w >= 28) ?? 5000;
    plot.setAttribute('viewBox', `0 0 ${plot.clientWidth} ${height}`); plot.setAttribute('height', height);
    if (c === charts[0]) out.push(h('svg:defs', {}, h('svg:pattern', { id: 'idle', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, h('svg:rect', { width: 1.2, height: 6, class: 'idle-line' }))));
    for (let i = 0; i < n; i++) if (i === 0 || (i + 1) % every === 0) out.push(h('svg:text', { x: LEFT + (i + .5)*w, y: 16, 'text-anchor': 'middle' }, String(i + 1)));
    lanes.forEach((lane, slot) => {
      const y = LANE*(slot + 1) + 2, box = { y, height: LANE - 4 };
      out.push(h('svg:text', { x: LEFT - 8, y: y + LANE/2 + 2, 'text-anchor': 'end' }, String(slot)));
      const upTo = (i, same) => { let end = i; while (end < lane.length && same(lane[end])) end++; return end - i; };
      lane.forEach((job, i) => {
        const x = LEFT + i*w, before = lane[i - 1];
        if (job) out.push(h('svg:rect', { ...box, x, width: Math.max(.7, w > 4 ? w - 1 : w), rx: w > 8 ? 2 : 0, class: `bit ${phase(job)}`, 'data-request': job.request, 'data-step': i }));
        else if (i === 0 || before) out.push(h('svg:rect', { ...box, x, width: upTo(i, j => !j)*w - (w > 4 ? 1 : 0), class: 'idle' }));
      });
      lane.forEach((job, i) => {
        if (job && lane[i - 1]?.request !== job.request && upTo(i, j => j?.request === job.request)*w > 8*String(job.request).length) out.push(h('svg:text', { x: LEFT + i*w + 3, y: y + LANE/2 + 2, class: 'no', 'data-request': job.request }, String(job.request)));
      });
    });
    mark.setAttribute('y', LANE - 1); mark.setAttribute('height', LANE*s.slots + 1);
    plot.replaceChildren(...out, mark);
  }

  function beside(c, picked) {   // what happens in this step
    const { s, lanes, rows, facts, plot } = c, now = s.steps[state.step];
    rows.replaceChildren(...lanes.map((lane, slot) => {
      const job = lane[state.step];
      return h('tr', { 'data-slot': slot, class: !job ? 'idle' : job.request === picked ? 'chosen' : '' }, job ? [h('td', {}, h('b', {}, String(job.request))), h('td', {}, h('span', { class: 'chip' }, h('i', { style: `--c: var(--${phase(job)})` }), phase(job))), h('td', {}, count(job.tokens)), h('td', {}, job.wrote == null ? '\u2013' : h('code', {}, job.wrote))] : Array.from({ length: 4 }, () => h('td', {}, '\u2013')));
    }));
    const fact = (key, text) => h('b', { 'data-fact': key }, text);
    if (now) facts.replaceChildren('read ', fact('read', count(sum(now.jobs.map(j => j.tokens)))), ' \u00b7 written ', fact('written', count(now.jobs.filter(j => j.wrote != null).length)), ' \u00b7 waiting ', fact('waiting', now.waiting.length ? now.waiting.slice(0, 12).join(', ') + (now.waiting.length > 12 ? ` and ${now.waiting.length - 12} more` : '') : 'nobody'),
      ' \u00b7 blocks free ', fact('free', count(now.free)), ` of ${count(s.blocks)} \u00b7 passes `, fact('passes', count(now.passes)), ' \u00b7 ', fact('ms', `${now.ms.toFixed(2)} ms`));
    else facts.replaceChildren(`done after ${count(s.steps.length)} steps`);
    plot.setAttribute('aria-label', `${s.name}, step ${state.step + 1}. ${now ? now.jobs.map(j => `request ${j.request}: ${phase(j)}, ${tokens(j.tokens)}`).join('; ') || 'nobody runs' : 'Done'}. Arrow keys move.`);
  }

  function journey(s, r) {
    const mine = s.steps.map((t, i) => [i + 1, t.jobs.find(j => j.request === r)]).filter(([, j]) => j), wrote = mine.filter(([, j]) => j.wrote != null);
    return [mine[0]?.[0], wrote[0]?.[0], wrote.at(-1)?.[0], mine.length];
  }

  return function draw() {
    if (charts[0].plot.clientWidth < 60) return;
    if (built !== charts[0].plot.clientWidth) { charts.forEach(build); built = charts[0].plot.clientWidth; }
    step.refresh(); play.textContent = playing ? '\u2016 pause' : '\u25b6 play';
    const picked = hover ?? state.request, w = band();
    for (const c of charts) {
      beside(c, picked);
      c.mark.setAttribute('x', LEFT + state.step*w - 1); c.mark.setAttribute('width', Math.max(3, w + 1));
      for (const e of c.plot.querySelectorAll('[data-request]')) e.classList.toggle('dim', picked != null && +e.dataset.request !== picked);
    }
    const known = series.flatMap(s => s.requests).find(r => r.number === picked);
    who.textContent = known ? `request ${picked}` : 'no request chosen';
    say.replaceChildren(...(known ? ['Request ', h('b', {}, String(picked)), `: a prompt of ${tokens(known.prompt)}, ${count(known.new)} new.`] : ['Move over a bar to follow a request through all charts; a click holds it.']));
    ways.replaceChildren(...series.map(s => h('tr', { 'data-way': s.name }, h('td', {}, s.name), journey(s, known ? picked : null).map(v => h('td', {}, v ? count(v) : '\u2013')))));
  };
}

// --- one page for all of them

function render({ model, el }) {
  const shadow = el.shadowRoot ?? el.attachShadow({ mode: 'open' }), card = h('div', { class: 'tlm', role: 'group' });
  shadow.replaceChildren(h('style', {}, CSS), card);
  const data = model.get('data'), state = { ...model.get('chosen') };
  let draw = () => {}, asked = 0;
  const page = {
    theme: 'light', add: (...parts) => card.append(...parts), color: property => getComputedStyle(card).getPropertyValue(property).trim(),
    draw: () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(() => draw()); },
    changed: () => { page.draw(); model.set('chosen', { ...state }); model.save_changes(); },
  };
  const look = () => { const theme = isDark(el) ? 'dark' : 'light'; if (theme !== card.dataset.theme) { page.theme = card.dataset.theme = theme; page.draw(); } };
  draw = { attention: attentionMap, timeline: decodeTimeline, batch: batchTimeline, probabilities: tokenProbabilities }[data.kind](data, state, page);
  card.setAttribute('aria-label', card.querySelector('b').textContent);
  look(); page.draw();

  const taken = () => { Object.assign(state, model.get('chosen')); page.draw(); }, media = matchMedia('(prefers-color-scheme: dark)');
  const size = new ResizeObserver(page.draw), classes = new MutationObserver(look);
  model.on('change:chosen', taken); media.addEventListener('change', look); size.observe(card);
  for (const e of [document.documentElement, document.body]) classes.observe(e, { attributes: true, attributeFilter: ['class', 'style', 'data-jp-theme-light', 'data-theme', 'data-bs-theme'] });
  return () => { model.off('change:chosen', taken); media.removeEventListener('change', look); size.disconnect(); classes.disconnect(); cancelAnimationFrame(asked); };
}

export default { render };
