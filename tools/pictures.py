"Take the pictures of the home page from the real widget: python tools/pictures.py (needs Chromium)."
import os, shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from tinylm import AttentionMap, course_model

ROOT = Path(__file__).parents[1]
NAMES = 'chromium', 'chromium-browser', 'google-chrome'
CHROME = os.environ.get('CHROME') or next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking']
PAGE = '<!doctype html><body style="margin: 0; background: {}">{}</body>'

def main():
    widget = AttentionMap(course_model(), 'until one is found to be true', view='phases', prompt=18)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROME, args=FLAGS)
        for scheme, ground in (('light', '#ffffff'), ('dark', '#0d1117')):
            page = browser.new_page(viewport={'width': 860, 'height': 600}, color_scheme=scheme)
            page.set_content(PAGE.format(ground, widget.to_html()))
            page.wait_for_timeout(500)
            page.locator('.tlm').screenshot(path=ROOT/'nbs'/'images'/f'phases-{scheme}.png')
        browser.close()

if __name__ == '__main__': main()
