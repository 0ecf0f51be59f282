"Everything that packaging needs to know comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
config = ConfigParser()
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {e: cfg[f'{e}_requirements'].split() for e in ('weights', 'native', 'serve')}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=[cfg['lib_path']], package_data={cfg['lib_path']: cfg['package_data'].split()},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require=extras | {'dev': sum(extras.values(), cfg['dev_requirements'].split())},
    entry_points={'console_scripts': cfg['console_scripts'].split(), # and where nbdev finds documented names
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
)
