"Finish the site that Quarto wrote: no page asks another host, and lessons can be taken along."
import re, sys
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
# on every page with an HTML output; ours need neither
UNUSED = re.compile(r'''<script\b[^>]*(?:src="https://cdn\.jsdelivr\.net/npm/(?:requirejs|jquery)@[^>]*>'''
                    r'''|>define\('jquery'[^<]*)</script>\s*''')
# nbdev links a name that begins with _ to an entry that is not there
PRIVATE = re.compile(r'<a\b[^>]*\bhref="[^"]*#_[^"]*"[^>]*>(.*?)</a>', re.S)
FIGURE = re.compile(r'<figure\b[^>]*>(?:(?!</figure>).)*?</figure>', re.S)
ASKS = re.compile(r'<(?:script|img|iframe|source|audio|video|embed)\b[^>]*\bsrc="(?:https?:)?//[^"]*'
                  r'|<link\b[^>]*\brel="(?:stylesheet|preload|icon)"[^>]*\bhref="(?:https?:)?//[^"]*'
                  r'|(?:@import\s*|\burl\()(?:url\()?["\']?(?:https?:)?//[^)"\']*')

def captioned(m): # a figure; where its picture has no alt text, the caption is one
    caption = re.search(r'<figcaption[^>]*>(.*?)</figcaption>', m[0], re.S)
    text = re.sub(r'<[^>]+>', '', caption[1]).strip().replace('"', '&quot;') if caption else ''
    return re.sub(r'<img (?![^>]*\balt=)', lambda _: f'<img alt="{text}" ', m[0]) if text else m[0]

def unnested(text, home): # nbdev links a name inside a link once more
    return re.sub(rf'\[((?:<code>)?[^\]\s]+)\]\({re.escape(home)}[^)\s<]*\)', r'\1', text)

def finish(
    html:str, # a page as Quarto wrote it
    home:str, # the address of the site, with a slash at its end
)->str: # the page as it should be
    "Leave out scripts that nothing uses, make links into the site relative, name pictures by their captions."
    html = unnested(UNUSED.sub('', html), home)
    html = re.sub(rf'(<a\b[^>]*\bhref="){re.escape(home)}', r'\1', html)
    return FIGURE.sub(captioned, PRIVATE.sub(r'\1', html))

def ways(
    html:str, # the page of a notebook
    notebook:str, # its path in the repository
    repository:str, # its address
    branch:str, # where it stands
)->str: # the page, with ways to take the notebook along
    "Below the title: the notebook as a file, and places that run it."
    project = repository.removeprefix('https://github.com/')
    places = {'Download the notebook': f'{repository}/raw/{branch}/{notebook}',
              'open it in Colab': f'https://colab.research.google.com/github/{project}/blob/{branch}/{notebook}',
              'open it in Binder': f'https://mybinder.org/v2/gh/{project}/{branch}?labpath={notebook}'}
    links = ', '.join(f'<a href="{url}">{words}</a>' for words, url in places.items())
    header = re.compile(r'(<header id="title-block-header".*?</header>)', re.S)
    return header.sub(lambda m: f'{m[0]}\n<p class="ways">{links}</p>', html, count=1)

RELATIVE = re.compile(r'(\b(?:href|src)="|<meta name="quarto:offset" content=")'
                      r'(?![a-z][a-z0-9+.-]*:|[/#"])(?:\./)?', re.I)

def absolute(
    html:str, # a page that is shown at any address of the site
    home:str, # the address of the site, with a slash at its end
)->str: # the page, with links that begin at the root of the host
    "What a host shows for a page that is not there may stand at any depth."
    return RELATIVE.sub(rf'\g<1>{urlsplit(home).path or "/"}', html)

def main():
    config = ConfigParser(); config.read(ROOT/'settings.ini', encoding='utf-8')
    cfg = config['DEFAULT']
    site, home, asks = ROOT/cfg['doc_path'], f"{cfg['doc_host']}{cfg['doc_baseurl']}/", []
    for path in sorted([*site.glob('*.html'), *site.glob('search.json'), *site.rglob('*.css')]):
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.html': text = finish(text, home)
        if path.name == '404.html': text = absolute(text, home)
        lessons = list((ROOT/cfg['nbs_path']).glob(f'[0-9][0-9]_{path.stem}.ipynb'))
        for notebook in lessons if path.suffix == '.html' else []:
            text = ways(text, notebook.relative_to(ROOT).as_posix(), cfg['git_url'], cfg['branch'])
        if path.suffix == '.json': text = unnested(text, home)
        path.write_text(text, encoding='utf-8')
        asks += [f'{path.name}: {m[0]}' for m in ASKS.finditer(text) if path.suffix != '.json']
    if asks: sys.exit('These ask another host:\n' + '\n'.join(asks))

if __name__ == '__main__': main()
