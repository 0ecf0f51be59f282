"""The laptop speedrun: how long until a model beats a table of five-letter counts?

    python benchmarks/speedrun.py                          the recipe of the course, three seeds
    python benchmarks/speedrun.py lr=.02 steps=800         with changes of yours
    python benchmarks/speedrun.py --like demo              the modern blocks of lesson 11
    python benchmarks/speedrun.py --records                the table of records
    python benchmarks/speedrun.py --search steps=500       one change a row
    python benchmarks/speedrun.py --parts steps=300        one modern part a row
    python benchmarks/speedrun.py dropout=.05 --hide .1    with keys that training hides

The text is cut as in lesson 03, and each model is judged on the whole held-out tenth. A run beats the
count if it ends below it. The clock runs during the steps and stands still during evaluations. Names
before `=` are fields of `LMConfig` or `TrainConfig`. Printed: the median of the seeds, and their spread.
"""
import argparse
import hashlib
from ast import literal_eval
from dataclasses import fields, replace
from functools import cache, partial
from statistics import median

import torch

from tinylm import (ATTENTION, PRESETS, CharTokenizer, CountModel, LanguageModel, Trainer, causal_mask,
                    check_count, check_number, evaluate, fused_attention, load_corpus, train_val_split)

RECORDS = { # each is the one before it and a change
    'AdamW': dict(optimizer='adamw', lr=5e-3, warmup=100, steps=1400),
    'Muon for the matrices of the blocks': dict(momentum=.95, pace='cosine', steps=600),
    'a straight line down': dict(momentum=.95, steps=560),
    'a shorter memory': dict(steps=520),
    'larger steps': dict(lr=.014, steps=490),
}

PARTS = { # of lesson 11, one change a row; the width of SwiGLU like for like
    'GPT': {}, 'RMSNorm': dict(norm='rms'), 'rotary': dict(positions='rotary'),
    'SwiGLU': dict(mlp='swiglu', n_inner=344), 'one head of keys': dict(n_kv_head=1),
    'QK-norm': dict(qk_norm=True), 'untied': dict(tie_embeddings=False), 'no biases': dict(bias=False),
}
PARTS['all'] = {name: value for change in PARTS.values() for name, value in change.items()}

def search(c):
    "What one change to a recipe gains or costs."
    return {'as it is': {},
        'AdamW': dict(optimizer='adamw', lr=c.lr/2),
        'half the rate': dict(lr=c.lr/2),
        'twice the rate': dict(lr=c.lr*2),
        'a longer memory': dict(momentum=.95),
        'down along a cosine': dict(pace='cosine'),
        'no weight decay': dict(weight_decay=0.),
        'no warm-up': dict(warmup=0),
        'no slowing down': dict(min_lr=c.lr),
        'half the batch, twice the steps': dict(batch_size=c.batch_size//2, steps=c.steps*2),
        'twice the batch, half the steps': dict(batch_size=c.batch_size*2, steps=c.steps//2),
        'windows of 128, half as many': dict(block_size=128, batch_size=c.batch_size//2),
        'a head of its own': dict(tie_embeddings=False),
        '6 blocks': dict(n_layer=6),
        '96 channels': dict(n_embd=96)}

class Text:
    "A text, cut in two, and the score to beat."
    def __init__(self, text):
        self.tokenizer = CharTokenizer(text)
        self.parts = train_val_split(torch.tensor(self.tokenizer.encode(text)))
        self.known, self.hidden = text[:len(self.parts[0])], text[len(self.parts[0]):]
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()

    @cache
    def count(self, block_size):
        "The loss of five-letter counts on the same windows."
        return CountModel(self.known, tokens=self.tokenizer.chars).loss(self.hidden, block_size)

def configs(changes, like='course'):
    "A shape and a recipe of the library, with changes."
    shape, recipe = PRESETS[like]
    mine = {k: v for k, v in changes.items() if k in {f.name for f in fields(shape)}}
    return replace(shape, **mine), replace(recipe, **{k: v for k, v in changes.items() if k not in mine})

def hiding(rate, q, k, v, mask=None, dropout=0.):
    "Fused attention; in training each query misses some keys before it, in all heads (Li et al. 2023)."
    if not q.requires_grad: return fused_attention(q, k, v, mask, dropout)
    B, T = len(q), q.shape[-2]
    seen = causal_mask(T) & (torch.rand(B, 1, T, T) >= rate) | torch.eye(T, dtype=torch.bool)
    return fused_attention(q, k, v, seen, dropout)

def begun(text, shape, recipe):
    "A run that has not made a step."
    torch.manual_seed(recipe.seed)
    model = LanguageModel(replace(shape, vocab_size=text.tokenizer.vocab_size), text.tokenizer)
    return Trainer(model, *text.parts, recipe)

def run(text, shape, recipe):
    "Train once: validation loss and seconds."
    trainer = begun(text, shape, recipe)
    while trainer.step < recipe.steps: trainer.update()
    return evaluate(trainer.model, text.parts[1]), trainer.seconds

def row(text, name, shape, recipe, seeds):
    "Train with a few seeds, and print what came out."
    losses, seconds = zip(*(run(text, shape, replace(recipe, seed=recipe.seed+i)) for i in range(seeds)))
    beats = 'beats the count' if median(losses) < text.count(shape.block_size) else ''
    print(f'{name:36} {recipe.steps:6} {median(seconds):7.1f} s   {median(losses):.3f} ({min(losses):.3f} to '
          f'{max(losses):.3f})   {beats}', flush=True)

def change(word):
    name, _, value = word.partition('=')
    try: return name, literal_eval(value)
    except (ValueError, SyntaxError): return name, value

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('changes', nargs='*', type=change, metavar='NAME=VALUE',
                   help='fields of the shape or the recipe')
    p.add_argument('--corpus', default='python-docs', help='text to train on (%(default)s)')
    p.add_argument('--like', choices=PRESETS, default='course',
                   help='whom the changes begin with (%(default)s)')
    p.add_argument('--seeds', type=int, default=3, help='runs of each row (%(default)s)')
    p.add_argument('--hide', type=float, default=0., metavar='RATE',
                   help='in training a query misses so many of the keys before it (%(default)s)')
    which = p.add_mutually_exclusive_group()
    which.add_argument('--records', action='store_true', help='all rows of the table of records')
    which.add_argument('--parts', action='store_true', help='the modern parts, one change a row')
    which.add_argument('--search', action='store_true', help='one change a row')
    args = p.parse_args()
    try: measure(args)
    except (TypeError, ValueError, OSError, RuntimeError, MemoryError) as e:
        p.error(' '.join(str(e).split()) or repr(e))

def measure(args):
    "One row after another; what no row can train is said before the first."
    seeds, given = check_count('seeds', args.seeds), dict(args.changes)
    hide = check_number('hide', args.hide, 0, 1, below=True)
    yours = ' '.join(f'{k}={v}' for k, v in given.items()) or args.like
    if hide:
        yours += f' --hide {hide}'
        ATTENTION['hiding'] = partial(hiding, hide); given['attention'] = 'hiding'
    text, (shape, recipe) = Text(load_corpus(args.corpus)), configs(given, args.like)
    one = search(recipe) if args.search else {yours: {}}
    rows = RECORDS if args.records else PARTS if args.parts else one
    rows = {name: configs(given | changes, args.like) for name, changes in rows.items()}
    for shape_and_recipe in rows.values(): begun(text, *shape_and_recipe)
    print(f'{args.corpus}, SHA-256 {text.sha256[:12]}…; {torch.get_num_threads()} threads, '
          f'torch {torch.__version__}; {seeds} seeds; the count: {text.count(shape.block_size):.3f}')
    print(f'{"":36} {"steps":>6} {"time":>9}   loss (spread)')
    for name, shape_and_recipe in rows.items(): row(text, name, *shape_and_recipe, seeds)

if __name__ == '__main__': main()
