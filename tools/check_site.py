"""Look at a rendered site as its readers do: python tools/check_site.py [_docs] [--shots FOLDER] [--axe FILE]

One line for each failure; exit status 1 when there is any. Needs Playwright's Python package and a Chromium.
With `--axe`, a copy of axe.min.js (npm's axe-core), it also looks for what keeps people out.
"""
import argparse, functools, gzip, http.server, os, re, shutil, sys, threading
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

SEARCH = { # what a reader types -> a page that must be among the first three answers
    'kv cache': 'kv_cache', 'speculative': 'speculative', 'tokenizer': 'data', 'causal mask': 'attention',
    'residual stream': 'model', 'learning rate': 'prefill', 'temperature': 'decode', 'roofline': 'cost',
    'online softmax': 'long_prompts', 'continuous batching': 'batching', 'rotary': 'modern',
    'gguf': 'pretrained', 'int8': 'fewer_bytes', 'bandwidth': 'seven_billion'}
LISTS = ['api.html', '404.html']                  # no reader wants the code that makes a list
NO_INTRO_LINE = ['index.html', *LISTS]            # pages without a "You need" line
PHONE, DESKTOP = {'width': 390, 'height': 844}, {'width': 1280, 'height': 900}
FIRST_PAGE = 500_000                              # bytes, packed: the home page and all that it loads
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']
CHROME = 'chromium', 'chromium-browser', 'google-chrome'

# --- what the files say

class Page(HTMLParser):
    "The ids, links and images of a page."
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.ids, self.links, self.images = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        self.links += [(tag, a[k]) for k in ('href', 'src', 'poster') if a.get(k)]
        self.links += [(tag, part.split()[0]) for part in (a.get('srcset') or '').split(',') if part.strip()]
        if tag == 'img': self.images.append((a.get('src', ''), a.get('alt')))
    handle_startendtag = handle_starttag

def address(site):
    "Where the site will stand, by its map: links that name it in full are links into it."
    if not (site/'sitemap.xml').exists(): return ''
    places = re.findall(r'<loc>(.*?)</loc>', (site/'sitemap.xml').read_text(encoding='utf-8'))
    home = [p.removesuffix('index.html') for p in places if p.endswith('/index.html')]
    return min(home, key=len, default='')

def link_faults(site, pages, name, home):
    "What is wrong with the links of one page."
    root = urlsplit(home).path or '/'
    for tag, link in pages[name].links:
        if home and link.startswith(home) and tag == 'a':
            yield f'names its own site in full: {link}'
            link = root + link.removeprefix(home)
        parts = urlsplit(link)
        if parts.scheme or parts.netloc: continue
        if name == '404.html' and link[0] not in '/#':
            yield f'relative, on a page that is shown at any address: {link}'
        place = unquote(urlsplit(urljoin(root + name, link)).path)
        target = place.removeprefix(root) or 'index.html'
        if not (place.startswith(root) and (site/target).is_file()): yield f'broken: {link}'
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
            yield f'no such place on the page: {link}'

def file_faults(site):
    "(pages, faults) of all HTML files of a site."
    found = [p for p in sorted(site.rglob('*.html')) if 'site_libs' not in p.parts]
    pages = {p.relative_to(site).as_posix(): Page(p.read_text(encoding='utf-8')) for p in found}
    home, faults = address(site), []
    for name, page in pages.items():
        faults += [f'{name}: {f}' for f in link_faults(site, pages, name, home)]
        faults += [f'{name}: image without alt text: {src[:80]}' for src, alt in page.images
                   if not (alt or '').strip()]
    links = [link for p in pages.values() for _, link in p.links]
    sources = [link for link in links if re.match('https://github.com/.*/blob/', link)]
    if not sources: faults.append('site: no link from a documented name to its source')
    faults += [f'site: a source link without a line: {link}' for link in sources
               if not re.search(r'#L\d+$', link)]
    return pages, faults

# --- what a browser shows

CONTRAST = """() => {   // the worst contrast of each kind of text, with what stands behind it
  const rgba = s => { const m = s.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1);
  const line = v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4;
  const light = c => { const [r, g, b] = c.slice(0, 3).map(line); return .2126*r + .7152*g + .0722*b; };
  const ground = e => {
    const layers = [];
    for (; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((b, l) => over(l, b), [255, 255, 255, 1]);
  };
  const seen = e => e.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const says = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const kind = e => {
    const head = e.closest('h1, h2, h3, h4, h5, h6');
    if (head && e.closest('code')) return 'code in a heading';
    const where = [e.closest('.cell-output') ? '.cell-output' : '', e.closest('pre') ? 'pre' : ''];
    return [...where, e.localName + (e.classList[0] ? '.' + e.classList[0] : '')].filter(Boolean).join(' ');
  };
  const all = 'main *, #quarto-sidebar *, #quarto-margin-sidebar *, .nav-page *, header .navbar *';
  const worst = {};
  for (const e of document.querySelectorAll(all)) {
    if (e.closest('svg, script, style, .aa-Panel') || !seen(e) || !says(e)) continue;
    const b = ground(e), color = getComputedStyle(e).color, f = over(rgba(color), b);
    const [x, y] = [light(f), light(b)].sort((p, q) => q - p), c = (x + .05)/(y + .05), k = kind(e);
    const on = `rgb(${b.slice(0, 3).map(Math.round)})`;
    if (!worst[k] || c < worst[k].c) worst[k] = { c, text: e.textContent.trim().slice(0, 30), color, on };
  }
  return worst; }"""

WIDE = """() => {   // what makes the page scroll sideways, and code that is cut without a way to reach it
  const root = document.documentElement, room = root.clientWidth, culprits = [], cut = [];
  const scrolls = e => {
    for (; e && e !== document.body; e = e.parentElement) {
      if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return true;
    }
    return false;
  };
  const name = e => e.localName + (e.id ? '#' + e.id : '') + (e.classList[0] ? '.' + e.classList[0] : '')
    + ' ' + JSON.stringify(e.textContent.trim().slice(0, 24));
  for (const e of document.querySelectorAll('main *')) {
    if (!e.checkVisibility() || e.closest('.math, svg')) continue;
    const beyond = e.getBoundingClientRect().right > room + 1 && !scrolls(e.parentElement);
    if (beyond && !culprits.some(c => c.contains(e))) culprits.push(e);
    if (e.localName === 'pre' && e.scrollWidth > e.clientWidth + 1 && !scrolls(e)) cut.push(name(e));
  }
  return { wide: root.scrollWidth, room, culprits: culprits.map(name), cut }; }"""

INTRO = """() => {
  const main = document.querySelector('main'), first = main.querySelector('h2, .cell');
  const before = p => !first || p.compareDocumentPosition(first) & Node.DOCUMENT_POSITION_FOLLOWING;
  const said = [...main.querySelectorAll('p')].filter(p => !p.closest('#title-block-header') && before(p));
  const text = said.map(p => p.textContent.trim()).join('\\n');
  return { description: !!main.querySelector('.description'), text }; }"""

MARKUP = r"""() => {
  const seen = [], walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const n = walk.currentNode, at = n.parentElement;
    if (at.closest('pre, code, script, style, .cell-output')) continue;
    if (/\]\(|^:::|\*\*\S|<\/?(details|summary)>/.test(n.data)) seen.push(at.textContent.trim().slice(0, 80));
  }
  return seen; }"""

SCREENS = """() => {   // how many screens the page has, and whether there is a way through it
  const toc = document.querySelector('#TOC, nav.toc-active');
  return { screens: document.documentElement.scrollHeight/innerHeight, toc: !!toc }; }"""

AXE = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
  .filter(v => ['serious', 'critical'].includes(v.impact))
  .map(v => `${v.id}: ${v.nodes.length} times, as ${v.nodes[0].html.slice(0, 80)}`)"""

class Handler(http.server.SimpleHTTPRequestHandler):
    "The files of a site where it will stand; what is not there shows the page for that, at any address."
    root, log_message = '/', lambda *args: None

    def translate_path(self, path):
        return super().translate_path(path.removeprefix(self.root.rstrip('/')) if path.startswith(self.root)
                                      else '/not/here')

    def send_error(self, code, *about):
        page = Path(self.directory)/'404.html'
        if code != 404 or not page.exists(): return super().send_error(code, *about)
        content = page.read_bytes()
        self.send_response(404)
        self.send_header('Content-Type', 'text/html; charset=utf-8')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

def serve(site):
    "The address of a server for these files, on this machine only."
    kind = type('Here', (Handler,), {'root': urlsplit(address(site)).path or '/'})
    handler = functools.partial(kind, directory=str(site))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_port}{kind.root}'

class Look:
    "One browser, all pages, what is wrong with them."
    def __init__(self, browser, base, shots=None, axe=None):
        self.browser, self.base, self.shots, self.axe = browser, base, shots, axe
        self.faults, self.faint = [], defaultdict(list)

    def fail(self, name, what): self.faults.append(f'{name}: {what}'); print(self.faults[-1], flush=True)

    def visit(self, context, name):
        "Open a page; note what it loads, what it asks of others, and what it complains about."
        page = context.new_page()
        page.asked, page.said, page.missed, page.loaded = set(), set(), set(), 0
        def route(r):
            if r.request.url.startswith((self.base, 'data:', 'blob:')): return r.continue_()
            page.asked.add(r.request.url.split('?')[0]); r.abort()
        def weigh(response):
            if response.status == 404 and not response.request.is_navigation_request():
                page.missed.add(response.url)
            if response.url.startswith(self.base) and response.ok:
                page.loaded += len(gzip.compress(response.body()))
        ours = lambda m: (m.location or {}).get('url', self.base).startswith(self.base)
        page.route('**/*', route)
        page.on('response', weigh)
        page.on('console', lambda m: page.said.add(m.text[:160]) if m.type == 'error' and ours(m) else None)
        page.on('pageerror', lambda e: page.said.add(str(e).splitlines()[0]))
        page.goto(self.base + name, wait_until='load')
        page.wait_for_timeout(250)
        return page

    def words(self, page, name):
        "What the page says, and what it should not."
        intro, size = page.evaluate(INTRO), page.evaluate(SCREENS)
        for url in sorted(page.asked): self.fail(name, f'asks another host: {url}')
        for text in sorted(page.said): self.fail(name, f'the console says: {text}')
        if not intro['description']: self.fail(name, 'no description below its title')
        if len(intro['text']) < 60: self.fail(name, 'no introduction before the first section or cell')
        elif name not in NO_INTRO_LINE and 'You need' not in intro['text']:
            self.fail(name, 'no "You need" line')
        for text in page.evaluate(MARKUP)[:3]: self.fail(name, f'markup is shown as text: {text}')
        if name in LISTS and page.query_selector('main .sourceCode.cell-code'):
            self.fail(name, 'shows the code that makes it')
        if size['screens'] > 12 and not size['toc']:
            self.fail(name, f'{size["screens"]:.0f} screens without a table of contents')
        if name == 'index.html' and page.loaded > FIRST_PAGE:
            self.fail(name, f'loads {page.loaded:,} bytes packed: expected at most {FIRST_PAGE:,}')

    def desk(self, name, scheme):
        "On a desk, in one colour scheme."
        with self.browser.new_context(viewport=DESKTOP, color_scheme=scheme) as context:
            page = self.visit(context, name)
            if scheme == 'light': self.words(page, name)
            elif page.evaluate("!document.body.classList.contains('quarto-dark')"):
                self.fail(name, 'stays light for a reader whose system is dark')
                page.evaluate('window.quartoToggleColorScheme && window.quartoToggleColorScheme()')
            page.wait_for_timeout(250)
            for kind, w in page.evaluate(CONTRAST).items():
                if w['c'] >= 4.5: continue
                self.faint[scheme, kind, w['color'], w['on']].append((w['c'], name, w['text']))
            if self.axe:
                page.add_script_tag(content=self.axe)
                for text in page.evaluate(AXE): self.fail(name, f'{scheme}: {text}')
            if self.shots: page.screenshot(path=self.shots/f'{Path(name).stem}-{scheme}.png')

    def phone(self, name):
        "On a phone."
        how = dict(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
        with self.browser.new_context(**how) as context:
            page = self.visit(context, name)
            w = page.evaluate(WIDE)
            what = '; '.join(w['culprits'][:3])
            if w['wide'] > w['room']: self.fail(name, f'{w["room"]} px wide, scrolls to {w["wide"]}: {what}')
            elif what: self.fail(name, f'{w["room"]} px wide, cut: {what}')
            for text in w['cut'][:3]: self.fail(name, f'code is cut on a phone: {text}')
            if self.shots: page.screenshot(path=self.shots/f'{Path(name).stem}-phone.png')

    def lost(self):
        "At an address deep in the site where nothing is: the page that says so, and its way home."
        with self.browser.new_context(viewport=DESKTOP) as context:
            page = self.visit(context, 'old/lesson/there-is-none.html')
            own = lambda text: 'status of 404' not in text             # of the page itself
            for text in sorted(filter(own, page.said)): self.fail('404.html', f'the console says: {text}')
            for url in sorted(page.asked): self.fail('404.html', f'asks another host: {url}')
            for url in sorted(page.missed): self.fail('404.html', f'deep in the site, not found: {url}')
            home = page.evaluate("[...document.querySelectorAll('main a')].map(a => a.href)")
            if self.base + 'index.html' not in home: self.fail('404.html', 'no way to the first page')

    def contrast(self):
        "What was hard to read, once for each kind of text."
        for (scheme, kind, color, on), seen in sorted(self.faint.items()):
            c, name, text = min(seen)
            self.fail(name, f'{scheme}: {kind} has contrast {c:.1f}, below 4.5 ({color} on {on}, {text!r}; '
                            f'{len({n for _, n, _ in seen})} pages)')

    def search(self):
        "Whether readers find what they look for."
        with self.browser.new_context(viewport=DESKTOP) as context:
            for words, wanted in SEARCH.items():
                page = self.visit(context, 'index.html')
                if not page.query_selector('#quarto-search'): return self.fail('search', 'there is none')
                page.evaluate('window.quartoOpenSearch ? window.quartoOpenSearch() : 0')
                if not page.query_selector('.aa-Input'): page.click('#quarto-search button')
                page.fill('.aa-Input', words)
                page.wait_for_timeout(1200)
                links = page.eval_on_selector_all('.aa-Panel a[href], .aa-PanelLayout a[href]',
                                                  'all => all.map(a => a.href)')
                hits = list(dict.fromkeys(Path(urlsplit(link).path).stem for link in links))[:3]
                if not any(wanted in h for h in hits):
                    self.fail('search', f'"{words}" finds {", ".join(hits) or "nothing"}, not {wanted}')
                page.close()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('site', nargs='?', default='_docs', type=Path, help='the rendered site (%(default)s)')
    p.add_argument('--shots', type=Path, help='write a picture of each page: light, dark and on a phone')
    p.add_argument('--axe', type=Path, help='axe.min.js')
    args = p.parse_args()
    if not (args.site/'index.html').exists():
        sys.exit(f'no index.html in {args.site}: `make docs` renders it')
    chrome = os.environ.get('CHROME') or next(filter(None, map(shutil.which, CHROME)), None)
    if not chrome: sys.exit('no Chromium: install one, or set CHROME to its program')
    from playwright.sync_api import sync_playwright
    pages, faults = file_faults(args.site)
    for line in faults: print(line)
    if args.shots: args.shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chrome, args=FLAGS)
        axe = args.axe and args.axe.read_text(encoding='utf-8')
        look = Look(browser, serve(args.site.resolve()), args.shots, axe)
        for name in pages:
            for scheme in ('light', 'dark'): look.desk(name, scheme)
            look.phone(name)
        look.lost(); look.contrast(); look.search()
        browser.close()
    faults += look.faults
    print(f'{len(pages)} pages, {sum(len(p.links) for p in pages.values())} links: {len(faults)} failures')
    return bool(faults)

if __name__ == '__main__': sys.exit(main())
