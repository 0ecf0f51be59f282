"The checker of the rendered site, on small sites that have one fault each."
import random, re, sys

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT/'tools'))
from check_site import Look, file_faults, serve
from finish_site import absolute

GOOD = """<!doctype html><html lang="en"><head><title>Home</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">{head}</head>
<body class="quarto-light"><script>
if (matchMedia('(prefers-color-scheme: dark)').matches) document.body.className = 'quarto-dark';</script>
<style>body {{ background: #fff; color: #222 }} .quarto-dark {{ background: #111; color: #eee }}
a {{ color: inherit }}</style>
<main><header id="title-block-header"><p class="description">A page</p></header>
<p>You need nothing but a minute: this page says what it is about, in a sentence or two.</p>
<h2 id="one">One</h2>{body} <a href="https://github.com/a/b/blob/main/c.py#L3">source</a></main></body></html>"""

FILES = { # what is put into the page -> the fault that is found in the files
    '<a href="gone.html">x</a>': 'broken: gone.html', '<img src="index.html">': 'image without alt text',
    '<a href="#two">x</a>': 'no such place on the page: #two',
    '<img srcset="b.png 2x" alt="b">': 'broken: b.png',
    '<a href="https://tiny.example/lm/index.html">x</a>': 'names its own site in full',
    '<a href="https://github.com/a/b/blob/main/c.py">x</a>': 'a source link without a line'}

SEEN = { # the same for a browser
    '<script>throw Error("oh")</script>': 'the console says',
    '<p>see [here](x)</p>': 'markup is shown as text',
    '<img src="https://elsewhere.example/a.png" alt="a">': 'asks another host',
    '<p style="color: #999">pale</p>': 'light: p has contrast',
    '<style>.quarto-dark p { color: #555 }</style>': 'dark: p has contrast',
    '<div style="width: 500px">wide</div>': 'scrolls to',
    '<pre style="width: 99%; overflow: hidden">' + 'x'*200 + '</pre>': 'code is cut',
    '<div style="height: 20000px"></div>': 'screens without a table of contents'}

def site(folder, body='', head=''):
    (folder/'index.html').write_text(GOOD.format(head=head, body=body))
    (folder/'sitemap.xml').write_text('<urlset><url><loc>https://tiny.example/lm/index.html</loc></url></urlset>')
    return folder

def test_a_site_without_faults(tmp_path):
    colab = '<a href="https://colab.research.google.com/github/a/b/blob/main/c.ipynb">x</a>'
    picture = '<img src="index.html" alt="home">'
    pages, faults = file_faults(site(tmp_path, f'<a href="#one">x</a> {picture} {colab}'))
    assert list(pages) == ['index.html'] and not faults

@pytest.mark.parametrize('body', FILES)
def test_faults_of_files_are_found(tmp_path, body):
    _, faults = file_faults(site(tmp_path, body))
    assert len(faults) == 1 and FILES[body] in faults[0]

LOST = """<!doctype html><html lang="en"><head><title>None</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="./site.css"><script src="site_libs/a.js"></script>
<meta name="quarto:offset" content="./"></head><body><main><h1>None</h1><a href="./index.html">start</a>
<a href="#here">here</a><a href="https://quarto.org/">Quarto</a><b id="here"></b></main></body></html>"""

def lost(folder, page):
    site(folder)
    (folder/'404.html').write_text(page)
    (folder/'site.css').write_text('h1 { color: rgb(1, 2, 3) }')
    (folder/'site_libs').mkdir(); (folder/'site_libs'/'a.js').write_text('window.ran = true')
    return folder

def test_links_of_the_page_for_what_is_not_there_begin_at_the_root(tmp_path):
    page = absolute(LOST, 'https://tiny.example/lm/')
    assert 'href="/lm/site.css"' in page and 'src="/lm/site_libs/a.js"' in page and 'content="/lm/"' in page
    assert 'href="/lm/index.html"' in page
    assert 'href="data:,"' in page and 'href="#here"' in page and 'href="https://quarto.org/"' in page
    assert absolute(page, 'https://tiny.example/lm/') == page
    assert 'href="/index.html"' in absolute(LOST, 'https://tiny.example/')
    assert file_faults(lost(tmp_path, page))[1] == []
    (tmp_path/'404.html').write_text(LOST)
    assert all('shown at any address' in f for f in file_faults(tmp_path)[1])
    assert len(file_faults(tmp_path)[1]) == 3
    (tmp_path/'404.html').write_text(absolute(LOST, 'https://tiny.example/'))
    assert all('broken: /' in f for f in file_faults(tmp_path)[1])

def test_the_page_for_what_is_not_there_works_at_any_depth(tmp_path, browser):
    def found(page):
        (tmp_path/'404.html').write_text(page)
        look.faults.clear(); look.lost()
        return list(look.faults)
    look = Look(browser, serve(lost(tmp_path, LOST)))
    assert found(absolute(LOST, 'https://tiny.example/lm/')) == []
    assert sum('not found' in f for f in found(LOST)) == 2 and 'no way to the first page' in found(LOST)[-1]
    with browser.new_context() as context:
        (tmp_path/'404.html').write_text(absolute(LOST, 'https://tiny.example/lm/'))
        page = context.new_page(); page.goto(look.base + 'a/b/c/d.html')
        assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == 'rgb(1, 2, 3)'
        assert page.evaluate('window.ran'); page.click('text=start'); assert page.title() == 'Home'

def test_the_site_has_a_page_for_what_is_not_there():
    text = (ROOT/'nbs'/'404.qmd').read_text(encoding='utf-8')
    _, about, body = text.split('---\n', 2)
    about = yaml.safe_load(about)
    assert about['title'] and about['description']
    links = re.findall(r'\]\((\S+)\)', body)
    assert 'index.ipynb' in links and all((ROOT/'nbs'/link).is_file() for link in links)

def looked_at(browser, folder):
    look = Look(browser, serve(folder))
    for scheme in ('light', 'dark'): look.desk('index.html', scheme)
    look.phone('index.html'); look.contrast()
    return look.faults

def test_faults_that_a_browser_shows_are_found(tmp_path, browser):
    assert not looked_at(browser, site(tmp_path, '<p>In code, <code>2**16</code> is no markup.</p>'))
    for body, what in SEEN.items():
        faults = looked_at(browser, site(tmp_path, body))
        assert any(what in f for f in faults), (body, faults)

@pytest.mark.parametrize('n, heavy', [(10**5, False), (10**6, True)])
def test_what_the_first_page_loads_is_weighed(tmp_path, browser, n, heavy):
    (tmp_path/'data.js').write_text(f'"{random.Random(0).randbytes(n).hex()}"')
    faults = looked_at(browser, site(tmp_path, '<script src="data.js"></script>'))
    assert heavy == any('bytes packed' in f for f in faults)

QUARTO = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))

def test_quarto_takes_along_the_pictures_that_only_a_source_names():
    named = {name for p in (ROOT/'nbs').glob('*.ipynb')
             for name in re.findall(r'srcset=\\"([^\\"]+)', p.read_text(encoding='utf-8'))}
    assert named and all((ROOT/'nbs'/name).is_file() for name in named)
    assert {name.split('/')[0] for name in named} <= {*QUARTO['project']['resources']}

CODE = '''<style>pre, .cell-output-display { overflow-x: auto; width: 30ch; max-width: 100% }</style>
<pre id="short">x</pre><pre id="long">''' + 'x'*99 + '''</pre>
<pre><code class="sourceCode"><span id="line">    if x: return</span>
<span id="empty"></span></code></pre>
<details><summary>More</summary><pre id="later">''' + 'x'*99 + '</pre></details>'

def test_what_scrolls_can_be_reached_by_keyboard_and_a_line_that_wraps_knows_its_place(tmp_path, browser):
    script = QUARTO['format']['html']['include-after-body']['text']
    with browser.new_context() as context:
        page = context.new_page(); page.goto(serve(site(tmp_path, CODE + script)))
        at = lambda id: page.evaluate(f"document.querySelector('#{id}').getAttribute('tabindex')")
        assert (at('short'), at('long')) == (None, '0')
        page.click('summary'); page.wait_for_timeout(200)
        assert at('later') == '0'
        place = lambda id: page.evaluate(f"document.querySelector('#{id}').style.getPropertyValue('--in')")
        assert (place('line'), place('empty')) == ('4ch', '0ch')
        page.evaluate("document.querySelector('#long').style.width = '200ch'")
        page.evaluate("document.querySelector('#long').style.maxWidth = 'none'")
        page.set_viewport_size(dict(width=3000, height=600)); page.wait_for_timeout(200)
        assert at('long') is None
