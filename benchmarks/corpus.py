"""Training on a text that is larger than memory: `python benchmarks/corpus.py 2000 FOLDER` (megabytes).

Writes a synthetic text, encodes it once (stopped on the way, and resumed), trains 20 steps on it, and says
how much memory each of the two takes above `import torch`. FOLDER gets that many bytes twice; they are
removed.
"""
import random, resource, subprocess, sys
from pathlib import Path

def write_text(path, megabytes, seed=0):
    rng = random.Random(seed)
    words = [''.join(rng.choices('etaoinshrdlucmfwyp', k=1 + i % 9)) for i in range(5000)]
    lines = [' '.join(rng.choices(words, k=1000)) + '\n' for _ in range(500)]
    with open(path, 'w') as f:
        while f.tell() < megabytes*1e6: f.writelines(rng.choices(lines, k=200))

def peak():
    "Megabytes that this process had in memory at most."
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*unit/1e6

def child(work, text):
    import torch                                       # what the rest is compared with
    before = peak()
    from tinylm import (LanguageModel, LMConfig, TokenFile, TrainConfig, train, train_val_split,
                        write_tokens)
    tokens = text.with_suffix('.tokens')
    if work == 'encode': said = f'{len(write_tokens(text, tokens)):,} tokens'
    else:
        file = TokenFile(tokens)
        torch.manual_seed(0)
        model = LanguageModel(LMConfig(vocab_size=file.tokenizer.vocab_size), file.tokenizer)
        history = train(model, *train_val_split(file), TrainConfig(steps=20), callback=lambda run: None)
        said = f'20 steps, validation loss {history[0]["val_loss"]:.3f} -> {history[-1]["val_loss"]:.3f}'
    print(f'{work}: {said}; {peak() - before:,.0f} MB above import torch')
    assert peak() - before < 500

def main(megabytes, folder):
    text = folder/'corpus.txt'
    write_text(text, megabytes)
    again = [sys.executable, __file__, 'encode', text]
    try:
        try: subprocess.run(again, timeout=20)         # stopped on the way, if it takes longer
        except subprocess.TimeoutExpired: print('encode: stopped after 20 seconds')
        for work in ('encode', 'train'): subprocess.run([sys.executable, __file__, work, text], check=True)
        for path in sorted(folder.glob('corpus.*')): print(f'{path.name}: {path.stat().st_size/1e6:,.0f} MB')
    finally:
        for path in folder.glob('corpus.*'): path.unlink()

if __name__ == '__main__':
    what, where = sys.argv[1:]
    if what in ('encode', 'train'): child(what, Path(where))
    else: main(float(what), Path(where))
