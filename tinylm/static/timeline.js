// The decode timeline: what each token of a generation waited for, and why.

KINDS.timeline = { draw: decodeTimeline, css: `
.hide { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.hatch { fill: url(#hatch); stroke: var(--again); }
.solid { fill: var(--again); }
.hover { fill: var(--shade); }
.odd { opacity: .72; }
.hover, .pick, .mark { pointer-events: none; }
.pick { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.halo { paint-order: stroke; stroke: var(--surface); stroke-width: 4px; }
svg.plot .cliff { stroke: var(--ink); stroke-dasharray: 3 3; }
.seam { stroke: var(--surface) !important; stroke-width: .5; }
` };

const CAUSES = {   // name, values of a series, how one is written
  bytes: ['bytes moved', s => s.bytes, v => human(v, 'B')],
  flops: ['FLOPs', s => s.flops, v => human(v, ' ')],
  read: ['tokens read', s => s.read, v => count(v)],
};

function logScale(low, high) {
  const floor = 10**Math.floor(Math.log10(low)), span = Math.log10(high/floor);
  const decades = [...Array(Math.floor(span) + 1).keys()].map(i => floor*10**i);
  return { ticks: decades.flatMap(t => [t, 2*t, 5*t]).filter(t => t <= high),
    position: v => Math.max(0, Math.log10(v/floor)/span),
    format: t => t.toFixed(Math.max(0, -Math.floor(Math.log10(t)))) };
}

function decodeTimeline(data, state, page) {
  const { series, prompt } = data, n = Math.max(...series.map(s => s.ms.length)), first = series[0];
  let hover = null;
  const set = change => { Object.assign(state, change); page.changed(); };
  const known = Object.keys(CAUSES).filter(k => series.every(CAUSES[k][1])).map(k => [k, CAUSES[k][0]]);
  const cause = radios('Cause', known, () => state.cause, v => set({ cause: v }));
  const scales = [['linear', 'from 0'], ['log', 'logarithmic']];
  const scale = radios('Time axis', scales, () => state.scale, v => set({ scale: v }));
  const kind = (s, i) => i === 0 ? 'prefill' : s.again[i] ? 'again' : 'decode';
  const fill = (s, i, front) => kind(s, i) === 'again' ? (front ? 'solid' : 'hatch') : kind(s, i);
  const cliff = first.again.findIndex((a, i) => i > 1 && a && !first.again[i - 1]);

  function keys(e) {
    const { token } = state, moves = { ArrowLeft: token - 1, ArrowRight: token + 1, Home: 0, End: n - 1,
      PageUp: token - 10, PageDown: token + 10 };
    const to = moves[e.key];
    if (to == null) return;
    e.preventDefault(); hover = null; set({ token: clamp(to, 0, n - 1) });
  }
  const plot = h('svg:svg', {
    class: 'plot', tabindex: 0, role: 'application', 'aria-roledescription': 'timeline',
    pointermove: e => { hover = index(e); page.draw(); },
    pointerleave: () => { hover = null; page.draw(); },
    click: e => { const i = index(e); if (i != null) set({ token: i }); },
    keydown: keys });
  const strip = text([...prompt, ...first.tokens], {
    pointerover: i => { hover = Math.max(0, i - prompt.length); page.draw(); },
    click: i => set({ token: Math.max(0, i - prompt.length) }) });
  strip.el.addEventListener('pointerleave', () => { hover = null; page.draw(); });
  strip.spans.forEach((s, i) => s.classList.add(i < prompt.length ? 'prompt' : 'made'));
  const table = h('tbody', {}), say = h('p', { class: 'hide', role: 'status' });
  const caption = h('span', {});
  const again = series.some(s => s.again.some(a => a));
  const columns = ['way', 'token', 'time', 'bytes', 'FLOPs', 'tokens read'];
  const behind = series.slice(1).map(s => s.name).join(', ');
  page.add(
    h('div', { class: 'head' }, h('b', {}, 'Decode timeline'), caption),
    h('div', { class: 'row' }, scale.el, cause.el,
      h('div', { class: 'row right', style: 'margin-bottom: 0' },
        chip('prefill', 'prefill'), chip('decode', 'decode'),
        again ? chip('reads all again', 'again', 'again') : null)),
    plot,
    h('table', {}, h('thead', {}, h('tr', {}, columns.map(t => h('th', {}, t)))), table),
    say, strip.el,
    h('p', { class: 'note' },
      series.length > 1 ? `Wide bars behind: ${behind}. Narrow bars in front: ${first.name}. ` : '',
      'Times were measured on one machine; bytes and FLOPs are counted.'));

  const LEFT = 66, RIGHT = 84, LANE = 22, TOP = series.length*(LANE + 6) + 26;
  const longest = Math.max(...series.map(s => sum(s.ms)));
  const box = () => ({ width: Math.max(280, plot.clientWidth), bars: 170, cause: 84 });
  const band = () => (box().width - LEFT - 8)/n;

  function index(e) {   // the token under the mouse
    const r = plot.getBoundingClientRect(), y = e.clientY - r.top;
    const x = (e.clientX - r.left)*box().width/r.width - LEFT;
    if (x < 0 || y < 0) return null;
    const s = series[Math.floor((y - 2)/(LANE + 6))];
    if (s && y < TOP - 24) {
      const at = x/unit(), i = starts[series.indexOf(s)].findLastIndex(t => t <= at);
      return at < sum(s.ms) ? i : null;
    }
    const i = Math.floor(x/band());
    return i < n ? i : null;
  }

  const starts = series.map(s => { let t = 0; return s.ms.map(m => (t += m) - m); });
  const unit = () => (box().width - LEFT - RIGHT)/longest, laneTop = j => 2 + j*(LANE + 6);

  function lane(s, j) {   // all tokens of a series, end to end on the shared clock
    const y = laneTop(j), u = unit(), middle = y + LANE/2 + 4, end = LEFT + sum(s.ms)*u;
    const label = s.name.length > 9 ? s.name.slice(0, 8) + '\u2026' : s.name;
    const boxes = s.ms.map((m, i) => [fill(s, i, true) + (i % 2 ? ' odd' : '') + (m*u > 4 ? ' seam' : ''),
      LEFT + starts[j][i]*u, y, Math.max(.5, m*u), LANE]);
    return [h('svg:text', { x: LEFT - 6, y: middle, 'text-anchor': 'end', class: 'strong' }, label),
      ...shapes(boxes, i => ({ 'data-lane': j, 'data-place': i })),
      h('svg:text', { x: end + 8, y: middle, class: 'strong' }, `${sum(s.ms).toFixed(1)} ms`)];
  }

  function clock() {   // the axis of the lanes
    const ticks = nice(longest, 6), d = digits(ticks), base = TOP - 26;
    return ticks.flatMap(t => {
      const x = LEFT + t/longest*(box().width - LEFT - RIGHT), unit = t === ticks.at(-1) ? ' ms' : '';
      return [h('svg:line', { x1: x, x2: x, y1: base, y2: base + 4, class: 'axis' }),
        h('svg:text', { x, y: base + 16, 'text-anchor': 'middle' }, t.toFixed(d) + unit)];
    });
  }

  function bars(y0, height, values, label, { position, ticks, format }) {   // axis, ticks, bars of all series
    const w = band(), out = [];
    for (const t of ticks) {
      const y = y0 + height - position(t)*height, kind = t === ticks[0] ? 'axis' : '';
      out.push(h('svg:line', { x1: LEFT, x2: box().width - 8, y1: y, y2: y, class: kind }),
        h('svg:text', { x: LEFT - 6, y: y + 4, 'text-anchor': 'end' }, format(t)));
    }
    out.push(h('svg:text', { x: LEFT, y: y0 - 8, class: 'strong' }, label));
    for (const j of [...series.keys()].reverse()) {
      const share = j ? .84 : series.length > 1 ? .46 : .74, width = Math.max(.8, share*w);
      const bar = (v, i) => {
        const high = Math.max(1, position(v)*height), kind = fill(series[j], i, j === 0);
        return [kind, LEFT + (i + (1 - share)/2)*w, y0 + height - high, width, high];
      };
      out.push(...shapes(values(series[j]).map(bar), i => ({ 'data-series': j, 'data-token': i })));
    }
    return out;
  }

  function times(y, height) {   // the upper chart
    const all = series.flatMap(s => s.ms), high = 1.05*Math.max(...all);
    const low = Math.min(...all.filter(v => v > 0));
    const log = state.scale === 'log', ticks = nice(high), format = t => t.toFixed(digits(ticks));
    return bars(y, height, s => s.ms,
      'milliseconds for each token' + (log ? ' (logarithmic axis, it does not start at 0)' : ''),
      log ? logScale(low, high) : { ticks, format, position: v => v/high });
  }

  function causes(y, height) {   // the lower chart
    const [what, of, format] = CAUSES[state.cause];
    const high = 1.05*(Math.max(...series.flatMap(of)) || 1), ticks = nice(high, 2);
    return bars(y, height, of, `${what} for each token`, { ticks, format, position: v => v/high });
  }

  function numbers(y) {   // the axis of the tokens
    const w = band(), every = [1, 2, 5, 10, 20, 50, 100, 200].find(k => k*w >= 34) ?? 500, out = [];
    for (let i = 0; i < n; i += every) {
      out.push(h('svg:text', { x: LEFT + (i + .5)*w, y, 'text-anchor': 'middle' }, String(i + 1)));
    }
    return [...out, h('svg:text', { x: LEFT, y: y + 15 }, 'new token')];
  }

  function edge(top, bottom) {   // where the window is full
    const x = LEFT + cliff*band(), flip = x > box().width*.6, anchor = flip ? 'end' : 'start';
    return [h('svg:line', { x1: x, x2: x, y1: top - 18, y2: bottom, class: 'cliff' }),
      h('svg:text', { x: x + (flip ? -5 : 5), y: top + 12, 'text-anchor': anchor, class: 'strong halo' },
        'the window is full')];
  }

  const stripes = h('svg:pattern', { id: 'hatch', width: 5, height: 5, patternUnits: 'userSpaceOnUse',
    patternTransform: 'rotate(45)' }, h('svg:rect', { width: 2, height: 5, class: 'solid' }));

  function row(s, at) {   // of the table
    const cells = [s.name, name(s.tokens[at], at + 1), h('b', {}, `${s.ms[at].toFixed(3)} ms`),
      human(s.bytes[at], 'B'), human(s.flops[at], ''), s.read ? count(s.read[at]) : '\u2013'];
    return h('tr', { 'data-name': s.name }, cells.map(c => h('td', {}, c)));
  }

  function words(at) {
    const now = series.filter(s => at < s.ms.length), here = prompt.length + at;
    caption.textContent = series.map(s => `${s.name}: first token ${s.ms[0].toFixed(2)} ms, `
      + `later ones ${s.median.toFixed(2)} ms (median)`).join(' \u00b7 ');
    table.replaceChildren(...now.map(s => row(s, at)));
    say.textContent = `Token ${at + 1}: `
      + now.map(s => `${s.name} ${s.ms[at].toFixed(3)} milliseconds`).join(', ');
    plot.setAttribute('aria-label', `${say.textContent}. Arrow keys move.`);
    strip.spans[lit]?.classList.remove('now');
    strip.spans[lit = here]?.classList.add('now');
  }

  const marks = {   // what moves; all else is drawn once for each width, cause and axis
    hover: h('svg:rect', { class: 'hover' }), pick: h('svg:rect', { class: 'pick' }),
    lanes: series.map(() => [h('svg:rect'), h('svg:rect', { class: 'pick' })]),
  };
  const heights = () => {
    const b = box(), y1 = TOP + 24, y2 = y1 + b.bars + 36;
    return { y1, y2, bottom: y2 + b.cause };
  };

  function build() {
    const b = box(), height = TOP + b.bars + 46 + b.cause + 34, { y1, y2, bottom } = heights();
    plot.setAttribute('viewBox', `0 0 ${b.width} ${height}`); plot.setAttribute('height', height);
    plot.replaceChildren(h('svg:defs', {}, stripes),
      ...series.flatMap(lane), ...marks.lanes.flat(), ...clock(), marks.hover,
      ...times(y1, b.bars), ...causes(y2, b.cause), marks.pick,
      ...numbers(bottom + 16), ...(cliff > 0 ? edge(y1, bottom) : []));
  }

  function point(at) {   // the marks at one token
    const w = band(), u = unit(), { y1, bottom } = heights();
    place(marks.hover, { x: LEFT + at*w, width: w, y: y1, height: bottom - y1 });
    place(marks.pick, { x: LEFT + at*w + .5, width: Math.max(1, w - 1), y: y1, height: bottom - y1 });
    series.forEach((s, j) => {
      const [bar, edge] = marks.lanes[j], here = at < s.ms.length, y = laneTop(j);
      for (const e of marks.lanes[j]) e.style.display = here ? '' : 'none';
      if (!here) return;
      const x = LEFT + starts[j][at]*u, wide = s.ms[at]*u;
      place(bar, { x, y, width: Math.max(.5, wide), height: LANE, class: `${fill(s, at, true)} mark` });
      place(edge, { x, y: y - 1, width: Math.max(2, wide), height: LANE + 2 });
    });
  }

  let built = '', lit = -1;
  return function draw() {
    [cause, scale].forEach(c => c.refresh());
    const id = `${box().width} ${state.cause} ${state.scale}`, at = clamp(hover ?? state.token, 0, n - 1);
    if (id !== built) { build(); built = id; }
    point(at);
    words(at);
  };
}
