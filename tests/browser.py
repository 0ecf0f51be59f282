"A real browser, and a real JupyterLab in it."
import os, shutil, socket, subprocess, time, urllib.request

import pytest
from conftest import ROOT
from helpers import start_python

NAMES = ('chromium', 'google-chrome', 'chromium-browser')
CHROME = os.environ.get('CHROME') or next(filter(None, map(shutil.which, NAMES)), None)
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
        '--disable-background-networking', '--disable-component-update', '--disable-sync']
HOW = ('no browser, so no widget was tried in one: `apt-get install chromium`, '
       'or set CHROME to the program of a Chromium or Chrome')
SETTINGS = {'notebook-extension/tracker': '{"windowingMode":"none"}',
            'apputils-extension/notification': '{"fetchNews":"false","checkForUpdates":false}'}
PAGE = '<!doctype html><link rel="icon" href="data:,"><body {}>{}</body>'

@pytest.fixture(scope='session')
def browser():
    "A Chromium; whoever uses it is marked `browser`, and skipped where there is none."
    if not CHROME: pytest.skip(HOW)
    sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROME, args=ARGS)
        yield b
        b.close()

def watched(context):
    "A page that remembers what it complained about."
    page = context.new_page()
    page.bad = []
    page.on('pageerror', lambda e: page.bad.append(str(e)))
    page.on('console', lambda m: page.bad.append(m.text) if m.type == 'error' else None)
    page.on('dialog', lambda d: (page.bad.append(d.message), d.dismiss()))
    return page

@pytest.fixture
def show(browser):
    "show(html) opens a page without network; at the end it must have asked and complained about nothing."
    pages = []
    def f(html, body='', script=True, **about):
        size = {'width': 900, 'height': 800}
        about = dict(viewport=size, color_scheme='light', java_script_enabled=script) | about
        context = browser.new_context(**about)
        context.set_default_timeout(15000); page = watched(context); page.asked = []; pages.append(page)
        def answer(route):
            if route.request.url == 'http://page.test/':
                return route.fulfill(content_type='text/html', body=PAGE.format(body, html))
            page.asked.append(route.request.url); route.abort()
        context.route('**/*', answer)
        page.goto('http://page.test/')
        return page
    yield f
    for page in pages: assert page.bad == [] and page.asked == []; page.context.close()

@pytest.fixture(scope='session')
def lab(browser, tmp_path_factory):
    "The address and folder of a JupyterLab on a copy of nbs/, so that no run touches the tracked notebooks."
    tmp = tmp_path_factory.mktemp('lab')
    shutil.copytree(ROOT/'nbs', tmp/'nbs')
    for plugin, text in SETTINGS.items():
        f = tmp/'settings'/'@jupyterlab'/f'{plugin}.jupyterlab-settings'
        f.parent.mkdir(parents=True, exist_ok=True); f.write_text(text)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(os.environ, JUPYTER_CONFIG_DIR=str(tmp/'config'), JUPYTER_DATA_DIR=str(tmp/'data'),
               JUPYTERLAB_SETTINGS_DIR=str(tmp/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(tmp/'ws'))
    options = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
               '--ServerApp.port_retries=0', f'--ServerApp.root_dir={tmp/"nbs"}',
               '--IdentityProvider.token=', '--expose-app-in-browser']
    with open(tmp/'lab.log', 'w') as log:
        process = start_python('-m', 'jupyterlab', *options, env=env, stdout=log, stderr=log)
    url, deadline = f'http://127.0.0.1:{port}', time.monotonic() + 90
    while True:
        try: urllib.request.urlopen(url + '/api/status', timeout=2); break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail((tmp/'lab.log').read_text()[-2000:])
            time.sleep(.25)
    yield url, tmp/'nbs'
    process.terminate()                                                # shuts its kernels down as well
    try: process.wait(20)
    except subprocess.TimeoutExpired: process.kill()

class Notebook:
    "One open notebook, driven through JupyterLab's own commands."
    def __init__(self, page): self.page = page

    def widgets(self): return self.page.locator('.jp-Notebook .tlm')

    def python(self, code):
        "Run code in the notebook's kernel and return what it prints."
        return self.page.evaluate("""async code => {
            const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const f = k.requestExecute({ code }), error = c => c.evalue ? c.ename + ': ' + c.evalue : '';
            let out = '';
            f.onIOPub = m => { out += m.content.text ?? error(m.content); };
            await f.done; return out; }""", code).strip()

    def run_all(self, timeout=150):
        "Run every cell, wait until all are done, and raise with the first error's text."
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        done = """() => {
            const w = window.jupyterapp.shell.currentWidget, k = w.sessionContext.session?.kernel;
            const code = [...w.content.model.cells]
                .filter(c => c.type === 'code' && c.sharedModel.source.trim());
            const failed = code.some(c => c.outputs.toJSON().some(o => o.output_type === 'error'));
            const ran = c => c.executionCount !== null && c.executionState !== 'running';
            return k?.status === 'idle' && (failed || code.every(ran)); }"""
        self.page.wait_for_function(done, timeout=1000*timeout)
        errors = self.page.evaluate("""() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
            .filter(c => c.type === 'code').flatMap(c => c.outputs.toJSON())
            .filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)""")
        assert not errors, errors
        return self

@pytest.fixture
def open_notebook(lab, browser):
    "open_notebook(name) opens a notebook in JupyterLab and waits for its kernel."
    pages = []
    def f(name, **about):
        page = watched(browser.new_context(viewport={'width': 1300, 'height': 1000}, **about))
        pages.append(page)
        page.set_default_timeout(30000)
        page.goto(f'{lab[0]}/lab/tree/{name}?reset')
        current = 'window.jupyterapp?.shell?.currentWidget'
        for ready in ('context?.isReady', "sessionContext?.session?.kernel?.status === 'idle'"):
            page.wait_for_function(f'() => {current}?.{ready}', timeout=60000)
        return Notebook(page)
    yield f
    for page in pages: page.context.close()
