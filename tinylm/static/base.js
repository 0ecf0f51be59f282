// What all widgets share. `_drawing(kind)` makes one ES module of this file and the one that adds its row to
// KINDS, for anywidget and for the self-contained pages of `to_html`.
// Data comes from Python once; everything that can be chosen is chosen here. Text enters the page as text
// only, never as markup.

const KINDS = {};   // kind of the data -> { draw, css }: what draws it, and the looks that nothing else needs

const NS = 'http://www.w3.org/2000/svg';
const RAMPS = {   // surface to strongest weight, for eyes of every kind: one hue, growing contrast
  light: [[245, 249, 253], [158, 202, 225], [33, 113, 181], [8, 48, 107]],
  dark: [[32, 37, 43], [23, 83, 128], [86, 180, 233], [234, 247, 255]],
};
const CSS = `
:host { display: block; container-type: inline-size; margin: .5em 0; }
.tlm { --surface: var(--jp-layout-color1, #fff); --ink: var(--jp-content-font-color1, #1f2328);
  --muted: #535c67; --line: #d1d9e0; --soft: #eff2f5; --on: #fff; --shade: rgba(0,0,0,.06);
  --prefill: #0072b2; --decode: #c25200; --again: #b4528c; --kept: #009e73; --focus: #0072b2;
  --mono: ui-monospace, "DejaVu Sans Mono", "SF Mono", Menlo, Consolas, monospace;
  box-sizing: border-box; background: var(--surface); color: var(--ink);
  border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px 12px;
  font: 14px/1.45 var(--jp-ui-font-family, system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif);
  font-variant-numeric: tabular-nums; text-align: left; overflow-wrap: anywhere; }
.tlm[data-theme=dark] {
  --surface: var(--jp-layout-color1, #16191d); --ink: var(--jp-content-font-color1, #e9edf1);
  --muted: #a3adb8; --line: #3d444d; --soft: #262c33; --on: #10151a; --shade: rgba(255,255,255,.09);
  --prefill: #56b4e9; --decode: #f59a4a; --again: #e7a3cb; --kept: #35c79b; --focus: #56b4e9; }
.tlm *, .tlm *::before { box-sizing: border-box; }

.head { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; margin-bottom: 10px; }
.head b { font-size: 16px; }
.head span { color: var(--muted); }
.row { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; margin: 0 0 10px; }
.row.right { margin-left: auto; }
.two { display: grid; grid-template-columns: minmax(0, 46%) minmax(0, 1fr); gap: 18px; align-items: start; }
.say { min-height: 1.5em; margin: 8px 0 0; }
.say b, td b { font-weight: 650; }
.note { color: var(--muted); font-size: 12.5px; margin: 8px 0 0; }

fieldset { border: 0; margin: 0; padding: 0; min-width: 0;
  display: flex; flex-wrap: wrap; align-items: center; gap: 8px; }
legend { float: left; padding: 0; color: var(--muted); }
.seg { display: inline-flex; flex-wrap: wrap; overflow: hidden;
  border: 1px solid var(--line); border-radius: 7px; background: var(--soft); }
.seg label { position: relative; cursor: pointer; }
.seg input { position: absolute; opacity: 0; inset: 0; margin: 0; pointer-events: none; }
.seg span { display: block; padding: 3px 11px; min-width: 30px; text-align: center; }
.seg input:checked + span { background: var(--prefill); color: var(--on); font-weight: 600; }
.seg input:focus-visible + span { outline: 3px solid var(--ink); outline-offset: -3px; border-radius: 6px; }
.seg label:hover input:not(:checked) + span { background: var(--shade); }
.slide { display: grid; grid-template-columns: 7em minmax(70px, 1fr) 5.5em; gap: 10px; align-items: center;
  margin-bottom: 6px; }
.slide > span { color: var(--muted); }
.slide output { font-weight: 600; white-space: nowrap; }
input[type=range] { width: 100%; margin: 0; accent-color: var(--prefill); height: 22px; }
input[type=checkbox] { accent-color: var(--again); width: 16px; height: 16px; margin: 0; }
.switch { display: inline-flex; gap: 8px; align-items: center; cursor: pointer; }
button { font: inherit; color: inherit; background: var(--soft); cursor: pointer;
  border: 1px solid var(--line); border-radius: 7px; padding: 3px 12px; }
button:hover { background: var(--shade); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }

.chip { display: inline-flex; gap: 7px; align-items: center; }
.chip i { flex: none; width: 13px; height: 13px; border-radius: 3px; background: var(--c); }
.chip i.again, .again-fill { border: 1px solid var(--again);
  background: repeating-linear-gradient(135deg, var(--again) 0 2px, transparent 2px 5px) !important; }
code { font: 13px var(--mono); unicode-bidi: isolate; direction: ltr; white-space: pre-wrap;
  background: var(--soft); border-radius: 3px; padding: 0 3px; overflow-wrap: anywhere; }
.text { position: relative; font: 14px/2 var(--mono); overflow-wrap: anywhere; }
.t { unicode-bidi: isolate; direction: ltr; border-radius: 3px; padding: 2px 1px; cursor: pointer;
  white-space: pre-wrap; position: relative; }
.t.blank { color: var(--muted); }
.t.prompt { background: color-mix(in srgb, var(--prefill) 22%, transparent); }
.t.made { background: color-mix(in srgb, var(--decode) 24%, transparent); }
.t.future { opacity: .72; }
.t.future.blank { color: inherit; }
.t.now { outline: 2px solid var(--ink); background: var(--decode); color: var(--on); }
.t.prompt.now { background: var(--prefill); }
.t.now.many { outline: none; border-radius: 0; }
.t.redo { box-shadow: inset 0 -3px var(--again); }
.t.q { outline: 2px solid var(--ink); }
.t:hover { outline: 2px solid var(--focus); }
.bars { display: grid; gap: 3px; margin: 0; padding: 0; list-style: none; }
.bars li { display: grid; grid-template-columns: var(--w, 6.5em) 1fr 4.2em; gap: 8px; align-items: center;
  border-radius: 4px; }
.bars .name { display: flex; gap: 8px; align-items: center; min-width: 0; }
.bars .name code { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.bars output { text-align: right; }
.bar { position: relative; height: 15px; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 2px; background: var(--c, var(--prefill));
  min-width: 1px; }
table { border-collapse: collapse; width: 100%; margin: 6px 0; font: inherit; color: inherit; }
th { font-weight: 400; color: var(--muted); text-align: right; padding: 2px 0 2px 12px; }
td { text-align: right; padding: 2px 0 2px 12px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr + tr td, tbody tr td { border-top: 1px solid var(--line); }
svg.plot { display: block; width: 100%; cursor: crosshair; border-radius: 4px; }
svg text { fill: var(--muted); font-size: 12px; }
svg .strong { fill: var(--ink); }
svg line { stroke: var(--line); }
svg .axis { stroke: var(--muted); }
.prefill { fill: var(--prefill); }
.decode { fill: var(--decode); }

@container (min-width: 1000px) {
  .tlm, .text { font-size: 16px; }
  .head b { font-size: 19px; }
  code { font-size: 15px; }
  .note { font-size: 14px; }
  svg.plot text { font-size: 13px; }
}
@container (max-width: 640px) {
  .two { grid-template-columns: minmax(0, 1fr); }
  .row { gap: 8px 12px; }
  .tlm { padding: 12px 10px; }
  th, td { padding-left: 6px; font-size: 13px; }
}
`;

// --- small parts

function h(tag, about = {}, ...children) {
  const svg = tag.startsWith('svg:');
  const e = svg ? document.createElementNS(NS, tag.slice(4)) : document.createElement(tag);
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
const some = (n, what) => `${count(n)} ${what}${n === 1 ? '' : 's'}`;
const sum = xs => xs.reduce((a, b) => a + b, 0);
const blank = label => /^[\u2423\u23ce\u21e5\u240d]+$/.test(label);
const name = (label, i) => [h('code', {}, label), i == null ? null : ` (${i})`];

function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new Type(bytes.buffer);
}

function human(n, unit) {   // 3 digits; '' spells the power of ten out, all else stands behind its letter
  const steps = unit ? ['', 'k', 'M', 'G'] : ['', ' thousand', ' million', ' billion'];
  let i = 0;
  while (n >= 999.5 && i < 3) { n /= 1000; i++; }
  return (i ? +n.toPrecision(3) : n) + (unit ? ` ${steps[i]}${unit.trim()}` : steps[i]);
}

function radios(label, options, get, set) {
  const input = value => h('input', { type: 'radio', name: label, value, change: () => set(value) });
  const inputs = options.map(([value]) => input(value));
  const parts = options.map(([, text], i) => h('label', {}, inputs[i], h('span', {}, text)));
  const el = h('fieldset', {}, h('legend', {}, label), h('span', { class: 'seg' }, parts));
  return { el, refresh: () => inputs.forEach((input, i) => { input.checked = options[i][0] === get(); }) };
}

function slider(label, [min, max, step], get, set, show = String) {
  const moved = () => set(+input.value);
  const input = h('input', { type: 'range', min, max, step, 'aria-label': label, input: moved });
  const output = h('output', {});
  const el = h('label', { class: 'slide' }, h('span', {}, label), input, output);
  const refresh = (high = max) => {
    input.max = high; input.value = get(); output.textContent = show(get());
    input.setAttribute('aria-valuetext', show(get()));
  };
  return { el, refresh };
}

function toggle(label, get, set) {
  const input = h('input', { type: 'checkbox', role: 'switch', change: () => set(input.checked) });
  return { el: h('label', { class: 'switch' }, input, label), refresh: () => { input.checked = get(); } };
}

function player(page, { rewind, step, later }) {   // a button; `step` moves on, false where all is done
  let playing = false, last = 0, wait = 0;
  const stop = () => { playing = false; wait++; };   // who waits now, waits in vain
  const end = () => { stop(); page.changed(); };
  function next() {
    const mine = ++wait;
    later(now => {
      if (mine !== wait) return;
      const passed = now - last; last = now;
      if (!el.isConnected) stop(); else if (step(passed)) next(); else end();
    });
  }
  function toggle() {
    if (playing) { end(); return; }
    rewind(); playing = true; last = performance.now();
    page.draw(); next();
  }
  const el = h('button', { click: toggle });
  const refresh = () => { el.textContent = playing ? '\u2016 pause' : '\u25b6 play'; };
  return { el, stop, toggle, refresh, plays: () => playing };
}
const after = ms => f => setTimeout(() => f(performance.now()), ms);

function chip(text, color, kind = '') {
  return h('span', { class: 'chip' }, h('i', { class: kind, style: `--c: var(--${color})` }), text);
}

function text(labels, on) {   // tokens as running text; a line break ends its line
  const span = (label, i) => h('span', { class: 't' + (blank(label) ? ' blank' : ''), 'data-i': i }, label);
  const spans = labels.map(span);
  const after = label => label.includes('\u23ce') ? [h('br')] : blank(label) ? [h('wbr')] : [];
  const el = h('div', { class: 'text' }, spans.map((s, i) => [s, after(labels[i])]));
  for (const [event, f] of Object.entries(on)) {
    el.addEventListener(event, e => { const i = e.target.dataset?.i; if (i != null) f(+i); });
  }
  return { el, spans };
}

const MANY = 200;   // more bars than this are one shape
function shapes(boxes, about) {   // [class, x, y, width, height]; where they are many, one path of a class
  if (boxes.length <= MANY) {
    return boxes.map(([kind, x, y, width, height], i) =>
      h('svg:rect', { class: kind, x, y, width, height, ...about(i) }));
  }
  const ways = {}, r = v => v.toFixed(2);
  for (const [kind, x, y, width, height] of boxes) {
    (ways[kind] ??= []).push(`M${r(x)} ${r(y)}h${r(width)}v${r(height)}h${r(-width)}z`);
  }
  return Object.entries(ways).map(([kind, d]) =>
    h('svg:path', { class: kind, d: d.join(''), ...about(null) }));
}

function reachable(e, name) {   // by keys, where it scrolls
  const about = { tabindex: 0, role: 'group', 'aria-label': name };
  if (e.scrollHeight > e.clientHeight + 1) place(e, about);
  else for (const k of Object.keys(about)) e.removeAttribute(k);
}

function place(e, about) { for (const [k, v] of Object.entries(about)) e.setAttribute(k, v); }

// --- axes

function nice(high, parts = 4) {   // round numbers for an axis
  const raw = high/parts, power = 10**Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find(m => m*power >= raw)*power;
  return [...Array(Math.floor(high/step + 1e-9) + 1).keys()].map(i => +(i*step).toPrecision(6));
}

function digits(ticks) {   // how many the numbers of an axis need behind the point
  return Math.max(0, ...ticks.map(t => (String(+t.toPrecision(3)).split('.')[1] ?? '').length));
}

function clockAxis(end, left, unit, y, width) {   // milliseconds from `left` on; seconds where it is long
  const long = end >= 10000, scale = long ? 1000 : 1, ticks = nice(end/scale, Math.max(2, width/130));
  const d = digits(ticks);
  return ticks.flatMap((t, i) => {
    const x = left + t*scale*unit, name = i < ticks.length - 1 ? '' : long ? ' s' : ' ms';
    return [h('svg:line', { x1: x, x2: x, y1: y, y2: y + 4, class: 'axis' }),
      h('svg:text', { x, y: y + 17, 'text-anchor': i ? 'middle' : 'start' }, t.toFixed(d) + name)];
  });
}

function upTo(lane, i, same) {   // how many jobs from here on are the same
  let end = i;
  while (end < lane.length && same(lane[end])) end++;
  return end - i;
}

// --- light and dark: what the page says, else what it looks like, else what the reader prefers

function isDark(el) {
  const body = document.body;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === 'false';
  if (body.classList.contains('quarto-dark')) return true;
  if (body.classList.contains('quarto-light')) return false;
  for (let e = el; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    const c = color.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?/);
    if (c && (c[4] == null || +c[4] > .5)) return .3*c[1] + .6*c[2] + .1*c[3] < 128;
  }
  return matchMedia('(prefers-color-scheme: dark)').matches;
}

function ramp(theme, w) {   // the colour of a weight: its square root, so that small ones can be told apart
  const stops = RAMPS[theme], x = Math.sqrt(clamp(w, 0, 1))*(stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(x));
  return stops[i].map((a, n) => Math.round(a + (stops[i + 1][n] - a)*(x - i)));
}

function palette(theme) {   // the colours of 256 weights, evenly apart in their square root, as pixels
  const colors = [...Array(256).keys()].map(i => [...ramp(theme, (i/255)**2), 255]);
  return new Uint32Array(Uint8Array.from(colors.flat()).buffer);
}

function sheet(canvas, width, height) {   // a context that draws in CSS pixels, sharp on every screen
  const dpr = window.devicePixelRatio || 1;
  canvas.width = Math.round(width*dpr); canvas.height = Math.round(height*dpr);
  canvas.style.height = `${height}px`;
  const g = canvas.getContext('2d');
  g.scale(dpr, dpr); g.direction = 'ltr';
  return g;
}

// --- one page for all of them

const THEME_SIGNS = ['class', 'style', 'data-jp-theme-light', 'data-theme', 'data-bs-theme'];

function render({ model, el }) {
  const data = model.get('data'), state = { ...model.get('chosen') }, kind = KINDS[data.kind];
  el.ended?.();   // what stood here before
  const shadow = el.shadowRoot ?? el.attachShadow({ mode: 'open' });
  const card = h('div', { class: 'tlm', role: 'group' });
  shadow.replaceChildren(h('style', {}, CSS + kind.css), card);
  let draw = () => {}, asked = 0;
  const page = {
    theme: 'light', host: el, data,
    detail: model.get('detail'),   // what a live widget is sent beside the data
    send: model.send ? message => model.send(message) : null,   // to Python, if there is one
    heard: () => {},   // Python has sent another detail
    end: () => {},   // nobody sees it any more
    add: (...parts) => card.append(...parts),
    color: property => getComputedStyle(card).getPropertyValue(property).trim(),
    draw: () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(() => {
      if (!el.isConnected) page.end();   // its size was watched, and is none now
      draw(); title();
    }); },
    changed: () => { page.draw(); model.set('chosen', { ...state }); model.save_changes(); },
  };
  const look = () => {
    const theme = isDark(el) ? 'dark' : 'light';
    if (theme !== card.dataset.theme) { page.theme = card.dataset.theme = theme; page.draw(); }
  };
  function title() {   // what the whole is called when it is read out: its heading, and what stands beside it
    const parts = [...card.querySelector('.head').children].filter(e => e.matches('b, span'));
    card.setAttribute('aria-label', parts.map(e => e.textContent).filter(Boolean).join(', '));
  }
  draw = kind.draw(data, state, page);
  title();
  look(); page.draw();

  const taken = () => { Object.assign(state, model.get('chosen')); page.draw(); };
  const more = () => { page.detail = model.get('detail'); page.heard(); page.draw(); };
  const fresh = () => { page.data = model.get('data'); page.draw(); };
  const media = matchMedia('(prefers-color-scheme: dark)');
  const size = new ResizeObserver(page.draw), classes = new MutationObserver(look);
  model.on('change:chosen', taken); model.on('change:detail', more);
  model.on('change:data', fresh);
  media.addEventListener('change', look); size.observe(card);
  for (const e of [document.documentElement, document.body]) {
    classes.observe(e, { attributes: true, attributeFilter: THEME_SIGNS });
  }
  el.ended = () => {
    page.end();
    model.off('change:chosen', taken); model.off('change:detail', more);
    model.off('change:data', fresh);
    media.removeEventListener('change', look);
    size.disconnect(); classes.disconnect(); cancelAnimationFrame(asked);
  };
  return el.ended;
}
