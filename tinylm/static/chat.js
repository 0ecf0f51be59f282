// The chat: what was said, what each answer took, and its two phases on the clock and beside the roofline.
// In a record nothing can be typed. Live, the page pulls: Python writes for a moment, sends what it has, and
// waits to be asked for more. So the kernel hears everybody else between two moments.

KINDS.chat = { draw: chatBox, css: `
.log { margin: 0 0 10px; padding: 2px; max-height: 30em; overflow-y: auto;
  display: grid; gap: 14px; }
.log > div { display: grid; gap: 6px; }
.log p { margin: 0; padding: 6px 11px; border-radius: 10px; white-space: pre-wrap; unicode-bidi: plaintext;
  width: fit-content; max-width: 88%; min-height: 2.3em; }
.log .asked { justify-self: end; background: color-mix(in srgb, var(--prefill) 18%, transparent); }
.log .answer { background: color-mix(in srgb, var(--decode) 15%, transparent); }
.log .who { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.log .facts { justify-self: start; display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12.5px;
  text-align: left; }
.log .facts[aria-pressed=true] { border-color: var(--ink); box-shadow: 0 0 0 1px var(--ink); }
.ask { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 8px; align-items: end; }
.ask label { grid-column: 1 / -1; color: var(--muted); margin-bottom: -4px; }
.ask textarea { font: inherit; color: inherit; background: var(--surface); border: 1px solid var(--muted);
  border-radius: 7px; padding: 5px 9px; width: 100%; min-height: 2.3em; resize: vertical; }
.ask button { min-height: 2.3em; min-width: 5em; }
.ask button:disabled { color: var(--muted); cursor: default; background: none; }
.turn { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 300px); gap: 2px 18px;
  border-top: 1px solid var(--line); margin-top: 12px; padding-top: 10px; }
.turn > .head { grid-column: 1 / -1; margin: 0; }
.turn .text { max-height: 9em; overflow-y: auto; line-height: 1.8; }
.turn .seam { stroke: var(--surface); stroke-width: .5; }
.turn .odd { opacity: .72; }
.turn .pick { fill: none; stroke: var(--ink); stroke-width: 2; pointer-events: none; }
svg.roof { cursor: default; }
svg.roof .limit { fill: none; stroke: var(--muted); stroke-width: 2; }
svg.roof .gap { stroke-dasharray: 2 3; stroke: var(--muted); }
svg.roof .least { fill: var(--surface); stroke: var(--c); stroke-width: 2.5; }
svg.roof .took { fill: var(--c); stroke: var(--c); stroke-width: 2.5; }
@container (max-width: 640px) {
  .turn { grid-template-columns: minmax(0, 1fr); }
  .log p { max-width: 96%; }
}
` };

const ENDED = { end: '', length: 'cut at the longest answer', stopped: 'stopped' };

function phaseFacts(turn) {   // of each phase: tokens, counted work, measured and predicted milliseconds
  const parts = [['prefill', 0, 1, turn.read], ['decode', 1, Infinity, turn.ms.length - 1]];
  return parts.filter(([, , , tokens]) => tokens).map(([name, from, to, tokens]) => {
    const total = key => turn[key] && sum(turn[key].slice(from, to));
    const [flops, bytes, ms, least] = ['flops', 'bytes', 'ms', 'least'].map(total);
    return { name, tokens, flops, bytes, ms, least };
  });
}

function power(k) {   // 10 to the k, as text
  const raised = '\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079';
  return '10' + [...String(k)].map(c => raised[c] ?? '\u207b').join('');
}

function rooflinePlot(machine, phases, width) {   // both phases under the limits of the machine, logarithmic
  const lg = Math.log10, height = 210, LEFT = 42, BOTTOM = 38, TOP = 20, RIGHT = 10;
  const points = phases.map(p => ({ ...p, x: lg(p.flops/p.bytes), took: lg(1e3*p.flops/p.ms),
    least: lg(1e3*p.flops/p.least) }));
  const ridge = lg(machine.flops/machine.bandwidth), most = lg(machine.flops), xs = points.map(p => p.x);
  const x0 = Math.floor(Math.min(ridge, ...xs) - .3), x1 = Math.ceil(Math.max(ridge, ...xs) + .3);
  const low = Math.min(lg(machine.bandwidth) + x0, ...points.map(p => p.took));
  const y0 = Math.floor(low), y1 = Math.ceil(Math.max(most, ...points.map(p => p.took)) + .1);
  const X = x => LEFT + (x - x0)/(x1 - x0)*(width - LEFT - RIGHT);
  const Y = y => height - BOTTOM - (y - y0)/(y1 - y0)*(height - BOTTOM - TOP);
  const upTo = (a, b) => [...Array(b - a + 1).keys()].map(i => a + i);
  const every = Math.ceil((y1 - y0)/6);
  const mark = (p, y, kind) => p.name === 'prefill'
    ? h('svg:circle', { class: kind, style: `--c: var(--${p.name})`, cx: X(p.x), cy: Y(y), r: 5 })
    : h('svg:rect', { class: kind, style: `--c: var(--${p.name})`, x: X(p.x) - 4.5, y: Y(y) - 4.5,
      width: 9, height: 9 });
  const slope = [[x0, lg(machine.bandwidth) + x0], [ridge, most], [x1, most]];
  const el = h('svg:svg', { class: 'plot roof', role: 'img', viewBox: `0 0 ${width} ${height}`, height },
    upTo(x0, x1).map(k =>
      h('svg:text', { x: X(k), y: height - BOTTOM + 15, 'text-anchor': 'middle' }, power(k))),
    upTo(y0, y1).filter(k => (k - y0) % every === 0).map(k => [
      h('svg:line', { x1: LEFT, x2: width - RIGHT, y1: Y(k), y2: Y(k), class: k === y0 ? 'axis' : '' }),
      h('svg:text', { x: LEFT - 5, y: Y(k) + 4, 'text-anchor': 'end' }, power(k))]),
    h('svg:text', { x: LEFT - 30, y: 11, class: 'strong' }, 'FLOPs a second'),
    h('svg:text', { x: width - RIGHT, y: height - 5, 'text-anchor': 'end', class: 'strong' }, 'FLOPs a byte'),
    h('svg:polyline', { class: 'limit', points: slope.map(([x, y]) => `${X(x)},${Y(y)}`).join(' ') }),
    points.map(p => [h('svg:line', { class: 'gap', x1: X(p.x), x2: X(p.x), y1: Y(p.least), y2: Y(p.took) }),
      mark(p, p.least, 'least'), mark(p, p.took, 'took')]));
  const facts = points.map(p => `${p.name}: ${(p.flops/p.bytes).toPrecision(3)} FLOPs a byte, `
    + `${p.ms.toFixed(1)} milliseconds measured`);
  el.setAttribute('aria-label', `Roofline. ${facts.join('; ')}. The table has the prediction.`);
  return el;
}

function chatBox(data, state, page) {
  const live = Boolean(page.send);
  let hover = null, token = 0, pending = null, stopping = false, warning = '', drawn = null, built = '';
  const sent = new Set([page.detail?.text ?? '']);   // what may come back to this view
  const turns = () => page.data.turns;
  const at = () => clamp(state.turn ?? turns().length - 1, 0, turns().length - 1);
  const writing = () => pending ?? (page.detail?.step != null ? page.detail : null);
  const set = change => { Object.assign(state, change); page.changed(); };

  // what was said
  const spoken = (kind, who, words) =>
    h('p', { class: kind, dir: 'auto' }, h('span', { class: 'who' }, who), words);
  function facts(t, i) {
    const more = [ENDED[t.ended], t.dropped ? `${some(t.dropped, 'message')} before it left out` : ''];
    const choose = () => { token = 0; set({ turn: i }); };
    return h('button', { class: 'facts', type: 'button', 'data-turn': i, click: choose },
      h('span', { class: 'who' }, `turn ${count(i + 1 + page.data.gone)}: `),
      chip(`${count(t.read)} read`, 'prefill'), chip(`${count(t.saved)} from the cache`, 'kept'),
      chip(`${count(t.ms.length - 1)} decoded`, 'decode'), more.filter(Boolean).map(m => h('span', {}, m)));
  }
  const entry = (t, i) =>
    h('div', {}, spoken('asked', 'You: ', t.asked), spoken('answer', 'Model: ', t.answer), facts(t, i));
  const log = h('div', { class: 'log', role: 'log', tabindex: 0, 'aria-label': 'conversation' });
  const words = h('span', {}), asked = h('span', {});
  const open = h('div', {}, spoken('asked', 'You: ', asked), spoken('answer', 'Model: ', words));
  const empty = h('div', {}, h('span', { class: 'note' }, live ? 'Say something.' : 'Nothing was said yet.'));

  // what is said next
  function ask() {
    const text = field.value.toWellFormed?.() ?? field.value;   // half a letter cannot be sent
    if (!text.trim()) return;
    if (writing()) { warning = 'One answer at a time: wait for it, or stop it.'; page.draw(); return; }
    pending = { asked: text, answer: '' }; sent.add(text); field.value = ''; stopping = false; warning = '';
    tell({ say: text }); page.draw();
  }
  function stop() { stopping = true; pending = null; tell({ stop: true }); field.focus(); page.draw(); }
  function takeBack(text) {   // before what was typed since
    if (sent.delete(text)) field.value = [text, field.value].filter(Boolean).join('\n');
  }
  function tell(message) {
    try { page.send(message); }
    catch (e) {
      pending = null; warning = `The kernel cannot be reached: ${e.message}`; takeBack(message.say);
    }
  }
  const field = h('textarea', { id: 'message', rows: 2, dir: 'auto', keydown: e => {
    if (e.key === 'Enter' && !e.isComposing) {   // JupyterLab lets no line break through
      e.preventDefault();
      if (!e.shiftKey) ask(); else field.setRangeText('\n', field.selectionStart, field.selectionEnd, 'end');
    }
    if (e.key === 'Escape' && writing()) { e.preventDefault(); stop(); }
  } });
  const sends = h('button', { type: 'button', click: ask }, 'Send');
  const stops = h('button', { type: 'button', click: stop }, '\u25a0 Stop');
  const say = h('p', { class: 'say', role: 'status' });

  page.heard = () => {   // Python has something new
    const { step, line, text } = page.detail ?? {};
    pending = null;
    takeBack(text);
    if (line != null || step == null) warning = line ?? '';   // more of the answer takes no line away
    if (step == null) stopping = false; else if (!stopping) tell({ more: step });
  };

  // the phases of one turn
  const title = h('b', {}), took = h('span', {});
  const plot = h('svg:svg', {
    class: 'plot', tabindex: 0, role: 'application', 'aria-roledescription': 'timeline',
    pointermove: e => { hover = bar(e); page.draw(); }, pointerleave: () => { hover = null; page.draw(); },
    click: e => { token = bar(e) ?? token; page.draw(); }, keydown: keys });
  const strip = h('div', {}), roof = h('div', {}), rows = h('tbody', {});
  const which = h('p', { class: 'say' });
  const left = h('div', {}, plot, which, strip);
  const section = h('div', { class: 'turn', role: 'group', 'aria-label': 'phases of one turn' },
    h('div', { class: 'head' }, title, took, h('div', { class: 'row right', style: 'margin: 0 0 0 auto' },
      chip('prefill', 'prefill'), chip('decode', 'decode'))), left, roof);
  const columns = ['phase', 'tokens', 'FLOPs/byte', 'measured', 'predicted'];
  const titles = columns.map(t => h('th', { scope: 'col' }, t));
  const table = h('table', {}, h('thead', {}, h('tr', {}, titles)), rows);
  const pick = h('svg:rect', { class: 'pick', y: 1, height: 26 });
  let spans = [], turn = null, starts = [];
  const width = () => Math.max(240, plot.clientWidth), LEFT = 4, RIGHT = 70;
  const unit = () => (width() - LEFT - RIGHT)/sum(turn.ms);
  function bar(e) {   // the token under the mouse
    const x = (e.clientX - plot.getBoundingClientRect().left - LEFT)/unit();
    return x < 0 || x > sum(turn.ms) ? null : starts.findLastIndex(t => t <= x);
  }
  function keys(e) {
    const n = turn.ms.length, moves = { ArrowLeft: token - 1, ArrowRight: token + 1, Home: 0, End: n - 1,
      PageUp: token - 10, PageDown: token + 10 };
    if (moves[e.key] == null) return;
    e.preventDefault(); hover = null; token = clamp(moves[e.key], 0, n - 1); page.draw();
  }

  function clock() {   // all tokens of the turn, end to end: prefill is the first bar
    let t = 0; starts = turn.ms.map(ms => (t += ms) - ms);
    const u = unit(), kind = i => i ? `decode${i % 2 ? '' : ' odd'}` : 'prefill';
    const boxes = turn.ms.map((ms, i) => [kind(i) + (ms*u > 4 ? ' seam' : ''), LEFT + starts[i]*u, 3,
      Math.max(.5, ms*u), 22]);
    place(plot, { viewBox: `0 0 ${width()} 50`, height: 50 });
    plot.replaceChildren(...shapes(boxes, i => ({ 'data-place': i })), pick,
      h('svg:text', { x: LEFT + t*u + 6, y: 18, class: 'strong' }, `${t.toFixed(1)} ms`),
      ...clockAxis(t, LEFT, u, 28, width()));
    const tokens = text(turn.tokens, { pointerover: i => { hover = i; page.draw(); },
      click: i => { token = i; page.draw(); } });
    tokens.el.addEventListener('pointerleave', () => { hover = null; page.draw(); });
    spans = tokens.spans;
    spans.forEach((s, i) => s.classList.add(i ? 'made' : 'prompt'));
    strip.replaceChildren(tokens.el);
    reachable(tokens.el, 'tokens of the answer');
  }

  function numbers() {
    const phases = phaseFacts(turn), { machine } = page.data;
    const cells = p => [chip(p.name, p.name), count(p.tokens), (p.flops/p.bytes).toFixed(1),
      h('b', {}, `${p.ms.toFixed(1)} ms`), machine ? `${p.least.toFixed(2)} ms` : '\u2013'];
    rows.replaceChildren(...phases.map(p =>
      h('tr', { 'data-phase': p.name }, cells(p).map(c => h('td', {}, c)))));
    const wide = clamp(roof.clientWidth, 220, 420);
    roof.replaceChildren(...(machine ? [rooflinePlot(machine, phases, wide)] : []));
  }

  function drawTurn() {
    const i = at(), first = `${width()} ${roof.clientWidth}`;
    turn = turns()[i];
    section.style.display = table.style.display = turn ? '' : 'none';
    if (!turn) return;
    token = clamp(token, 0, turn.ms.length - 1);
    if (built !== `${i} ${first}` || drawn.turn !== turn) {
      clock(); numbers(); built = `${i} ${first}`; drawn.turn = turn;
      title.textContent = `Turn ${count(i + 1 + page.data.gone)}`;
      const later = turn.ms.slice(1), rate = 1e3*later.length/sum(later);
      took.textContent = `first token after ${turn.ms[0].toFixed(1)} ms`
        + (later.length ? `, then ${count(Math.round(rate))} tokens a second` : '');
    }
    const now = clamp(hover ?? token, 0, turn.ms.length - 1), u = unit();
    place(pick, { x: LEFT + starts[now]*u, width: Math.max(2, turn.ms[now]*u) });
    spans.forEach((s, k) => s.classList.toggle('now', k === now));
    const phase = now ? 'decode' : 'prefill';
    which.replaceChildren(`Token ${count(now + 1)} `, h('code', {}, turn.tokens[now]), `: ${phase}, `,
      h('b', {}, `${turn.ms[now].toFixed(2)} ms`));
    plot.setAttribute('aria-label', `${which.textContent}. Arrow keys move from token to token.`);
  }

  const about = page.data.about;
  page.add(
    h('div', { class: 'head' }, h('b', {}, 'Chat'),
      h('span', {}, `${human(about.n_params, '')} parameters, window of ${some(about.block_size, 'token')}`)),
    log,
    ...(live ? [h('div', { class: 'ask' }, h('label', { for: 'message' }, 'Your message'), field,
      h('div', { class: 'row', style: 'margin: 0' }, sends, stops)), say] : []),
    section, table,
    h('p', { class: 'note' },
      'Prefill reads what is new and brings the first token; each later token is a pass of its own. ',
      page.data.machine ? 'Roofline: a full mark was measured, a hollow one is predicted from the counted '
        + 'work and the limits of this machine (circle: prefill, square: decode). ' : '',
      live ? 'Enter sends, Shift and Enter break the line, Escape stops.'
        : 'This is a record. In a notebook, widget() makes one that takes messages.'));
  page.host.setAttribute('data-lm-suppress-shortcuts', 'true');   // JupyterLab's, for whoever types here
  page.heard();   // shown anew, perhaps in the middle of an answer

  return function draw() {
    const w = writing(), low = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
    if (drawn?.data !== page.data) {
      log.replaceChildren(...turns().map(entry)); drawn = { data: page.data, turn: null };
      if (state.turn == null) token = 0;
    }
    if (w) { if (!open.isConnected) log.append(open); } else open.remove();
    if (w || turns().length) empty.remove(); else log.append(empty);
    if (w) { asked.textContent = w.asked; words.textContent = w.answer || '\u2026'; }
    log.setAttribute('aria-busy', String(Boolean(w)));
    for (const b of log.querySelectorAll('.facts')) {
      b.setAttribute('aria-pressed', String(+b.dataset.turn === at()));
    }
    if (low) log.scrollTop = log.scrollHeight;
    sends.disabled = Boolean(w); stops.style.visibility = w ? '' : 'hidden';
    say.textContent = warning || (w ? 'The answer is being written.' : '');
    drawTurn();
  };
}
