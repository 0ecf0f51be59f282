// The race: several ways to write the same text, each token at the moment at which it came.

KINDS.race = { draw: phaseRace, css: `
.lanes { display: grid; gap: 10px 18px; margin: 12px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.lane { border-left: 3px solid var(--line); padding-left: 10px; min-width: 0; }
.lane .head { margin: 0; gap: 0 10px; }
.lane .head b { font-size: 14px; }
.lane .text { line-height: 1.75; max-height: 12em; overflow-y: auto; }
.lane .t { cursor: default; }
.lane .t:hover { outline: none; }
.lane .t.wait { visibility: hidden; }
.lane .t.leap { box-shadow: inset 0 -3px var(--kept); border-radius: 0; }
.lane .t.leap.start { box-shadow: inset 2px -3px var(--kept); }
.lane .t.fresh { background: var(--decode); color: var(--on); }
.lane .t.fresh.first { background: var(--prefill); }
.lane .t.parts { outline: 2px solid var(--ink); }
.clock { display: grid; grid-template-columns: 6em minmax(0, 1fr); gap: 14px; align-items: center; }
.clock .slide { grid-template-columns: auto minmax(40px, 1fr) 10em; margin: 0; }
svg .solid { fill: var(--again); }
svg .seam { stroke: var(--surface); stroke-width: .5; }
svg .cover { fill: var(--surface); opacity: .68; pointer-events: none; }
svg line.playhead { stroke: var(--ink); stroke-width: 2; pointer-events: none; }
svg text.many { fill: var(--on); font-size: 11px; pointer-events: none; }
svg.plot.race { touch-action: pan-y; }
@container (max-width: 640px) {
  .clock { grid-template-columns: minmax(0, 1fr); }
  .clock .slide { grid-template-columns: auto minmax(40px, 1fr) 9.8em; }
}
` };

const SPEEDS = [.001, .01, .1, 1, 10];
const times = (n, how) => `${count(+n.toPrecision(3))} times ${how}`;
const pace = s => s === 1 ? 'real time' : s < 1 ? times(1/s, 'slower') : times(s, 'faster');

function course(lane) {   // when each token came, in which pass, and which passes wrote it
  const firsts = [], when = [], pass = [];
  lane.wrote.forEach((k, i) => {
    firsts.push(when.length);
    for (let j = 0; j < k; j++) { when.push(lane.ms[i]); pass.push(i); }
  });
  const start = i => i ? lane.ms[i - 1] : 0;
  const kind = i => firsts[i] === 0 ? 'prefill' : lane.again[i] ? 'again' : 'decode';
  return { ...lane, firsts, when, pass, start, kind, end: lane.ms.at(-1) };
}

function come(moments, t) {   // how many of these rising moments lie behind
  let low = 0, high = moments.length;
  while (low < high) { const mid = (low + high) >> 1; if (moments[mid] <= t) low = mid + 1; else high = mid; }
  return low;
}

function phaseRace(data, state, page) {
  const { prompt } = data, lanes = data.lanes.map(course), n = lanes[0].tokens.length;
  const end = Math.max(...lanes.map(l => l.end)), stops = [...new Set([0, ...lanes.flatMap(l => l.ms)])];
  stops.sort((a, b) => a - b);
  const bare = ms => end < 10000 ? ms.toFixed(1) : (ms/1000).toFixed(2);
  const time = ms => `${bare(ms)} ${end < 10000 ? 'ms' : 's'}`;
  const still = matchMedia('(prefers-reduced-motion: reduce)'), JUMPS = 12;
  const set = change => { Object.assign(state, change); page.changed(); };

  // the clock
  function step(passed) {
    const more = still.matches ? end/JUMPS : Math.min(250, passed)*state.speed;
    state.time = Math.min(end, state.time + more); page.draw();
    return state.time < end;
  }
  const later = f => still.matches ? after(700)(f) : requestAnimationFrame(f);
  const play = player(page, { later, step, rewind: () => { if (state.time >= end) state.time = 0; } });
  function go(ms) { play.stop(); set({ time: clamp(ms, 0, end) }); }

  const clock = slider('Time', [0, end, end/1000], () => state.time,
    v => go(v > end*.9995 ? end : v), ms => `${bare(ms)} of ${time(end)}`);
  const offered = SPEEDS.filter(s => s === 1 || s === state.speed || (end/s > 500 && end/s < 120e3));
  const all = offered.includes(state.speed) ? offered : [...offered, state.speed].sort((a, b) => a - b);
  const speed = radios('Speed', all.map(s => [s, pace(s)]), () => state.speed, v => set({ speed: v }));

  // the track: every pass of every lane on one axis
  const LEFT = 88, RIGHT = 28, LANE = 22, STEP = LANE + 6, BOTTOM = lanes.length*STEP + 4;
  const width = () => Math.max(260, plot.clientWidth), unit = () => (width() - LEFT - RIGHT)/end;
  function keys(e) {
    const t = state.time, i = stops.findIndex(s => s > t + 1e-9), before = stops.filter(s => s < t - 1e-9);
    const moves = { ArrowRight: i < 0 ? end : stops[i], ArrowLeft: before.at(-1) ?? 0, Home: 0, End: end,
      PageUp: t - end/10, PageDown: t + end/10 };
    if (e.key === ' ') { e.preventDefault(); play.toggle(); return; }
    if (moves[e.key] == null) return;
    e.preventDefault(); go(moves[e.key]);
  }
  const seek = e => go((e.clientX - plot.getBoundingClientRect().left - LEFT)/unit());
  const plot = h('svg:svg', {
    class: 'plot race', tabindex: 0, role: 'application', 'aria-roledescription': 'race',
    pointerdown: seek, pointermove: e => { if (e.buttons & 1) seek(e); }, keydown: keys });
  const cover = h('svg:rect', { class: 'cover', y: 0, height: BOTTOM });
  const head = h('svg:line', { class: 'playhead', y1: 0, y2: BOTTOM });

  function track(l, j) {
    const y = 2 + j*STEP, u = unit(), middle = y + LANE/2 + 4;
    const label = l.name.length > 12 ? l.name.slice(0, 11) + '\u2026' : l.name, fill = { again: 'solid' };
    const boxes = l.ms.map((ms, i) => {
      const x = LEFT + l.start(i)*u, wide = (ms - l.start(i))*u, kind = fill[l.kind(i)] ?? l.kind(i);
      return [kind + (wide > 3 ? ' seam' : ''), x, y, Math.max(.5, wide), LANE];
    });
    const numbers = l.wrote.map((k, i) => {   // how many tokens came out, where one pass brought several
      const wide = (l.ms[i] - l.start(i))*u;
      return k < 2 || wide < 11 ? null : h('svg:text', { class: 'many', 'text-anchor': 'middle',
        x: LEFT + l.start(i)*u + wide/2, y: middle }, String(k));
    });
    return [h('svg:text', { x: LEFT - 8, y: middle, 'text-anchor': 'end', class: 'strong' }, label),
      ...shapes(boxes, i => ({ 'data-lane': j, 'data-pass': i })), ...numbers.filter(Boolean)];
  }

  function build() {
    panels.forEach(p => reachable(p.strip.el, `text of ${p.l.name}`));
    place(plot, { viewBox: `0 0 ${width()} ${BOTTOM + 22}`, height: BOTTOM + 22 });
    plot.replaceChildren(...lanes.flatMap(track), cover, head,
      ...clockAxis(end, LEFT, unit(), BOTTOM, width()));
  }

  // the texts
  const panels = lanes.map(l => {
    const strip = text([...prompt, ...l.tokens], {}), facts = h('span', {});
    strip.spans.forEach((s, i) => {
      const k = i - prompt.length;
      if (k < 0) { s.classList.add('prompt', 'future'); return; }
      s.classList.add('made', 'wait');
      if (l.wrote[l.pass[k]] > 1) s.classList.add('leap', ...(l.firsts[l.pass[k]] === k ? ['start'] : []));
      if (k === l.part) s.classList.add('parts');
    });
    const el = h('div', { class: 'lane', 'data-name': l.name },
      h('div', { class: 'head' }, h('b', {}, l.name), facts), strip.el);
    return { l, strip, facts, el, shown: 0, fresh: [0, 0] };
  });

  function write(p, t) {   // the text of a lane up to now; only what has changed is touched
    const { l, strip } = p, spans = strip.spans, T0 = prompt.length, k = come(l.when, t);
    for (let i = p.shown; i < k; i++) spans[T0 + i].classList.remove('wait');
    for (let i = k; i < p.shown; i++) spans[T0 + i].classList.add('wait');
    if (!k !== !p.shown) for (let i = 0; i < T0; i++) spans[i].classList.toggle('future', !k);
    for (let i = p.fresh[0]; i < p.fresh[1]; i++) spans[T0 + i].classList.remove('fresh', 'first');
    p.fresh = k && k < n ? [l.firsts[l.pass[k - 1]], k] : [0, 0];
    for (let i = p.fresh[0]; i < p.fresh[1]; i++) {
      spans[T0 + i].classList.add('fresh'); spans[T0 + i].classList.toggle('first', p.fresh[0] === 0);
    }
    if (k !== p.shown && strip.el.scrollHeight > strip.el.clientHeight) {
      strip.el.scrollTop = spans[T0 + Math.max(0, k - 1)].offsetTop - strip.el.clientHeight + 40;
    }
    p.shown = k;
    const at = l.rows > 1 ? `, one of ${count(l.rows)} rows at once` : '';
    p.facts.textContent = (k < n ? `${count(k)} of ${some(n, 'token')}` : `done after ${time(l.end)}`) + at;
  }

  // the numbers
  const columns = ['way', 'written', 'passes', 'first token', 'tokens/s'];
  const cells = lanes.map(l => [h('td', {}, l.name), ...columns.slice(1).map(() => h('td', {}))]);
  const rows = cells.map((c, j) => h('tr', { 'data-lane': lanes[j].name }, c));
  function numbers(t) {
    lanes.forEach((l, j) => {
      const k = come(l.when, t), first = k ? time(l.ttft) : '\u2013';
      const values = [count(k), count(come(l.ms, t)), first, k < n ? '\u2013' : count(Math.round(l.rate))];
      values.forEach((v, i) => { cells[j][i + 1].textContent = v; });
    });
  }

  function agree() {   // whether the texts are the same, and where they part
    const parted = lanes.filter(l => l.part != null);
    if (!parted.length) return `All lanes write the same ${some(n, 'token')}.`;
    const where = l => `${l.name} parts from ${lanes[0].name} at token ${count(l.part + 1)}: `
      + `${l.tokens[l.part]} in place of ${lanes[0].tokens[l.part]}.`;
    return [...parted.map(where), 'Where two logits are closer than rounding, either may win.'].join(' ');
  }
  const shared = l => `${l.name} is one of ${count(l.rows)} texts that the same passes wrote. Its tokens/s `
    + `count this one; all ${count(l.rows)} together came at ${count(Math.round(l.rows*l.rate))} a second.`;
  const say = h('p', { class: 'say', role: 'status' });
  const kinds = new Set(lanes.flatMap(l => l.ms.map((_, i) => l.kind(i))));
  const leaps = lanes.some(l => l.wrote.some(k => k > 1));
  page.add(
    h('div', { class: 'head' }, h('b', {}, 'Phase race'),
      h('span', {}, `${some(n, 'token')} after a prompt of ${count(prompt.length)}, `
        + 'one lane recorded after the other')),
    h('div', { class: 'row' }, speed.el, h('div', { class: 'row right', style: 'margin-bottom: 0' },
      chip('prefill', 'prefill'), kinds.has('decode') ? chip('decode', 'decode') : null,
      kinds.has('again') ? chip('reads all again', 'again') : null,
      leaps ? chip('several tokens of one pass', 'kept') : null)),
    h('div', { class: 'clock' }, play.el, clock.el), h('div', { style: 'height: 8px' }), plot,
    h('div', { class: 'lanes' }, panels.map(p => p.el)),
    h('table', {}, h('thead', {}, h('tr', {}, columns.map(t => h('th', { scope: 'col' }, t)))),
      h('tbody', {}, rows)),
    say, h('p', { class: 'note agree' }, [agree(), ...lanes.filter(l => l.rows > 1).map(shared)].join(' ')),
    h('p', { class: 'note' }, 'Times were measured on one machine; tokens/s are over the whole time. '
      + 'Left and right keys move from pass to pass, the space bar plays.'));

  let built = 0;
  return function draw() {
    const t = state.time = clamp(state.time, 0, end), wide = width();
    if (built !== wide) { build(); built = wide; }
    speed.refresh(); clock.refresh();
    play.refresh();
    const x = LEFT + t*unit();
    place(cover, { x, width: Math.max(0, wide - x) }); place(head, { x1: x, x2: x });
    panels.forEach(p => write(p, t)); numbers(t);
    if (play.plays()) return;   // nobody wants every frame read out
    const so = k => k < n ? `${count(k)} of ${count(n)}` : 'done';
    const facts = panels.map(p => `${p.l.name} ${so(p.shown)}`);
    say.textContent = `After ${time(t)}: ${facts.join(', ')}.`;
    plot.setAttribute('aria-label', `${say.textContent} Arrow keys move from pass to pass, space plays.`);
  };
}
