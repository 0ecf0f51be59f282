// Batches, step by step: who reads, who writes, and which places do nothing.

KINDS.batch = { draw: batchTimeline, css: `
.batch { display: grid; grid-template-columns: minmax(0, 1fr) 272px; gap: 2px 18px; margin-bottom: 14px; }
.batch > .head, .batch > .note { grid-column: 1 / -1; margin: 0; }
.batch > .note { margin-top: 4px; }
.batch .note b { color: var(--ink); }
.batch table { margin: 0; table-layout: fixed; font-size: 13px; }
.batch th, .batch td { height: 24px; padding: 0 0 0 10px; line-height: 1; border: 0 !important;
  white-space: nowrap; }
.batch tr.idle td { color: var(--muted); }
.batch tr.chosen td { background: var(--shade); }
.batch td code { overflow: hidden; }
.batch th:nth-child(2), .batch td:nth-child(2) { text-align: left; padding-left: 20px; }
.scrub { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 14px; align-items: center;
  margin-bottom: 12px; }
.scrub .slide { grid-template-columns: auto minmax(40px, 1fr) 5.5em; margin: 0; }
.chip i.none { border: 1px solid var(--line);
  background: repeating-linear-gradient(135deg, var(--muted) 0 1px, transparent 1px 5px); }
svg .bit { cursor: pointer; }
svg .bit.dim, svg .no.dim { opacity: .22; }
svg .idle { fill: url(#idle); }
svg .idle-line { fill: var(--muted); opacity: .45; }
svg text.no { fill: var(--on); font-size: 11px; pointer-events: none; }
svg .headline { fill: var(--shade); stroke: var(--ink); stroke-width: 1.5; pointer-events: none; }
@container (min-width: 1000px) { svg text.no { font-size: 13px; } }
@container (max-width: 640px) { .batch { grid-template-columns: minmax(0, 1fr); } }
` };

const phase = job => job.phase === 'read' ? 'prefill' : 'decode';
const column = title => h('th', { scope: 'col' }, title);

function journey(series, r) {   // first step at work, first and last that wrote, and how many
  const steps = series.steps.map((t, i) => [i + 1, t.jobs.find(j => j.request === r)]);
  const mine = steps.filter(([, j]) => j), wrote = mine.filter(([, j]) => j.wrote != null);
  return [mine[0]?.[0], wrote[0]?.[0], wrote.at(-1)?.[0], mine.length];
}

function jobRow(job, slot, picked) {   // what a place does in this step
  const kind = !job ? 'idle' : job.request === picked ? 'chosen' : '';
  const cells = !job ? Array(4).fill('\u2013') : [
    h('b', {}, String(job.request)), chip(phase(job), phase(job)), count(job.tokens),
    job.wrote == null ? '\u2013' : h('code', {}, job.wrote)];
  return h('tr', { 'data-slot': slot, class: kind }, cells.map(c => h('td', {}, c)));
}

function jobFacts(step, pages) {
  const fact = (key, text) => h('b', { 'data-fact': key }, text), { jobs, waiting } = step;
  const more = waiting.length > 12 ? ` and ${waiting.length - 12} more` : '';
  return ['read ', fact('read', count(sum(jobs.map(j => j.tokens)))),
    ' \u00b7 written ', fact('written', count(jobs.filter(j => j.wrote != null).length)),
    ' \u00b7 waiting ', fact('waiting', waiting.length ? waiting.slice(0, 12).join(', ') + more : 'nobody'),
    ' \u00b7 pages free ', fact('free', count(step.free)), ` of ${count(pages)}`,
    ' \u00b7 passes ', fact('passes', count(step.passes)),
    ' \u00b7 ', fact('ms', `${step.ms.toFixed(2)} ms`)];
}

function jobWords(step) {
  if (!step) return 'Done';
  const words = step.jobs.map(j => `request ${j.request}: ${phase(j)}, ${some(j.tokens, 'token')}`);
  return words.join('; ') || 'nobody runs';
}

function batchTimeline(data, state, page) {
  const { series } = data, n = Math.max(...series.map(s => s.steps.length)), LANE = 24, LEFT = 24;
  const requests = series.flatMap(s => s.requests);
  const all = [...new Set(requests.map(r => r.number))].sort((a, b) => a - b);
  let hover = null, built = 0;
  const set = change => { Object.assign(state, change); page.changed(); };

  const step = slider('Step', [0, n - 1, 1],
    () => state.step, v => { play.stop(); set({ step: v }); }, v => `${v + 1} of ${n}`);
  const play = player(page, { later: after(350),
    rewind: () => { if (state.step === n - 1) state.step = 0; },
    step: () => state.step < n - 1 && (set({ step: state.step + 1 }), true) });

  function keys(e) {   // left and right through the steps, up and down through the requests
    const at = state.step, i = all.indexOf(state.request);
    const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: n - 1,
      PageUp: at - 10, PageDown: at + 10 };
    const others = { ArrowDown: all[Math.min(all.length - 1, i + 1)], ArrowUp: i > 0 ? all[i - 1] : null,
      Escape: null };
    const to = steps[e.key], who = others[e.key];
    if (to == null && who === undefined) return;
    e.preventDefault(); hover = null; play.stop();
    set(to == null ? { request: who } : { step: clamp(to, 0, n - 1) });
  }

  const charts = series.map(s => {
    const slots = [...Array(s.slots).keys()];
    const lanes = slots.map(slot => s.steps.map(t => t.jobs.find(j => j.slot === slot)));
    function at(e) {
      const r = plot.getBoundingClientRect(), i = Math.floor((e.clientX - r.left - LEFT)/band());
      const slot = Math.floor((e.clientY - r.top)/LANE) - 1;
      return { i, job: lanes[slot]?.[i] };
    }
    function click(e) {
      const { i, job } = at(e);
      if (i >= 0) { play.stop(); set({ step: clamp(i, 0, n - 1), request: job?.request ?? null }); }
    }
    const plot = h('svg:svg', {
      class: 'plot', tabindex: 0, role: 'application', 'aria-roledescription': 'batch',
      pointermove: e => { hover = at(e).job?.request ?? null; page.draw(); },
      pointerleave: () => { hover = null; page.draw(); },
      click, keydown: keys });
    const rows = h('tbody', {}), facts = h('p', { class: 'note' });
    const mark = h('svg:rect', { class: 'headline', rx: 2 });
    const empty = sum(lanes.map(lane => lane.filter(j => !j).length)), places = s.slots*s.steps.length;
    const says = `${some(s.steps.length, 'step')}, ${count(empty)} of ${count(places)} places without work`;
    const titles = ['request', 'phase', 'read', 'written'];
    const el = h('div', { class: 'batch', 'data-name': s.name },
      h('div', { class: 'head' }, h('b', {}, s.name), h('span', {}, says)), plot,
      h('table', {}, h('thead', {}, h('tr', {}, titles.map(column))), rows), facts);
    return { s, lanes, plot, rows, facts, mark, el };
  });
  const who = column(''), ways = h('tbody', {}), say = h('p', { class: 'say', role: 'status' });
  const columns = ['first read in step', 'first token in step', 'last token in step', 'steps at work'];
  page.add(
    h('div', { class: 'head' }, h('b', {}, 'Batches, step by step'),
      h('span', {}, 'a row is a place in the batch, a column a step'),
      h('div', { class: 'row right', style: 'margin-bottom: 0' },
        chip('prefill', 'prefill'), chip('decode', 'decode'), chip('no work', 'muted', 'none'))),
    h('div', { class: 'scrub' }, play.el, step.el),
    ...charts.map(c => c.el), say,
    h('table', {}, h('thead', {}, h('tr', {}, who, columns.map(column))), ways),
    h('p', { class: 'note' }, 'Times were measured on one machine; the rest is counted. '
      + 'Left and right keys move through the steps, up and down through the requests.'));

  const band = () => (charts[0].plot.clientWidth - LEFT - 4)/n;

  function ruler(w) {   // the numbers of the steps
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find(k => k*w >= 28) ?? 5000, out = [];
    for (let i = 0; i < n; i++) {
      if (i > 0 && (i + 1) % every) continue;
      out.push(h('svg:text', { x: LEFT + (i + .5)*w, y: 16, 'text-anchor': 'middle' }, String(i + 1)));
    }
    return out;
  }

  function bits(lane, slot, w) {   // the bars of a place
    const y = LANE*(slot + 1) + 2, box = { y, height: LANE - 4 };
    const middle = y + LANE/2 + 2, gap = w > 4 ? 1 : 0;
    const out = [h('svg:text', { x: LEFT - 8, y: middle, 'text-anchor': 'end' }, String(slot))];
    lane.forEach((job, i) => {
      const x = LEFT + i*w;
      if (job) {
        out.push(h('svg:rect', { ...box, x, width: Math.max(.7, w - gap), rx: w > 8 ? 2 : 0,
          class: `bit ${phase(job)}`, 'data-request': job.request, 'data-step': i }));
      } else if (i === 0 || lane[i - 1]) {
        out.push(h('svg:rect', { ...box, x, width: upTo(lane, i, j => !j)*w - gap, class: 'idle' }));
      }
    });
    lane.forEach((job, i) => {   // the number of a request where there is room
      if (!job || lane[i - 1]?.request === job.request) return;
      const r = job.request, wide = upTo(lane, i, j => j?.request === r)*w;
      if (wide <= 8*String(r).length) return;
      out.push(h('svg:text', { x: LEFT + i*w + 3, y: middle, class: 'no', 'data-request': r }, String(r)));
    });
    return out;
  }

  const stripes = h('svg:pattern', { id: 'idle', width: 6, height: 6, patternUnits: 'userSpaceOnUse',
    patternTransform: 'rotate(45)' }, h('svg:rect', { width: 1.2, height: 6, class: 'idle-line' }));

  function build(c) {   // what does not move
    const { s, lanes, plot, mark } = c, w = band(), height = LANE*(s.slots + 1) + 2;
    plot.setAttribute('viewBox', `0 0 ${plot.clientWidth} ${height}`); plot.setAttribute('height', height);
    mark.setAttribute('y', LANE - 1); mark.setAttribute('height', LANE*s.slots + 1);
    plot.replaceChildren(...(c === charts[0] ? [h('svg:defs', {}, stripes)] : []),
      ...ruler(w), ...lanes.flatMap((lane, slot) => bits(lane, slot, w)), mark);
  }

  function beside(c, picked) {   // what happens in this step
    const { s, lanes, rows, facts, plot } = c, now = s.steps[state.step];
    rows.replaceChildren(...lanes.map((lane, slot) => jobRow(lane[state.step], slot, picked)));
    facts.replaceChildren(...(now ? jobFacts(now, s.pages) : [`done after ${count(s.steps.length)} steps`]));
    plot.setAttribute('aria-label', `${s.name}, step ${state.step + 1}. ${jobWords(now)}. Arrow keys move.`);
  }

  function follow(picked) {   // one request through all charts
    const known = requests.find(r => r.number === picked);
    who.textContent = known ? `request ${picked}` : 'no request chosen';
    say.replaceChildren(...(known
      ? ['Request ', h('b', {}, String(picked)),
        `: a prompt of ${some(known.prompt, 'token')}, ${count(known.new)} new.`]
      : ['Move over a bar to follow a request through all charts; a click holds it.']));
    ways.replaceChildren(...series.map(s => {
      const steps = journey(s, known ? picked : null).map(v => v ? count(v) : '\u2013');
      return h('tr', { 'data-way': s.name }, [s.name, ...steps].map(t => h('td', {}, t)));
    }));
  }

  return function draw() {
    const wide = charts[0].plot.clientWidth;
    if (wide < 60) return;
    if (built !== wide) { charts.forEach(build); built = charts[0].plot.clientWidth; }
    step.refresh(); play.refresh();
    const picked = hover ?? state.request, w = band();
    for (const c of charts) {
      beside(c, picked);
      c.mark.setAttribute('x', LEFT + state.step*w - 1); c.mark.setAttribute('width', Math.max(3, w + 1));
      for (const e of c.plot.querySelectorAll('[data-request]')) {
        e.classList.toggle('dim', picked != null && +e.dataset.request !== picked);
      }
    }
    follow(picked);
  };
}
