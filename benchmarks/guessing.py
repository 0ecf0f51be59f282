"""When guessing pays: decode with a drafter beside decode alone, by the share of guesses that are right.

    python benchmarks/guessing.py                  # sizes M and L
    python benchmarks/guessing.py --size M --rounds 9

Random weights, prompt of 16, greedy, in PyTorch and in compiled loops. How good a drafter is depends on the
text; so here that is chosen, and only the work is real: a drafter guesses, by n-grams or with a model of a
twentieth of the parameters, and then each guess becomes the token that will come or, by chance, another one.
Printed: what decode gains, the median of pairs of runs, and the smallest and largest of them.
"""
import argparse, random, time
from dataclasses import replace
from statistics import median

import torch
from peers import toy

from tinylm import ModelDrafter, NGramDrafter
from tinylm.bench import SIZES

SHARES = .4, .6, .8, 1.

class Knowing:
    "A drafter that is right as often as it is told; what guessing costs, it pays."
    def __init__(self, drafter, answer, share, seed=0):
        self.drafter, self.answer, self.share, self.rng = drafter, answer, share, random.Random(seed)
        self.vocab_size = drafter.vocab_size

    def draft(self, text, most, **dials):
        self.drafter.draft(text, most, **dials)
        coming = self.answer[len(text):][:self.drafter.k][:most]        # n-grams may have found nothing
        guesses = [t if self.rng.random() < self.share else (t + 1) % 65 for t in coming]
        if read := getattr(self.drafter, 'read', None): read[len(text):] = guesses[:-1]  # as its own
        return guesses, None

def clocked(model, idx, n, **how):
    start = time.perf_counter()
    out = model.decode(idx, n, temperature=0, **how)
    return time.perf_counter() - start, out

def compare(size, rounds, n):
    torch.manual_seed(0)
    config, idx = SIZES[size], torch.randint(64, (1, 16))
    model, helper = toy(config), toy(replace(config, n_layer=2, n_head=2, n_embd=128))
    drafters = {'n-grams': NGramDrafter, 'small model': lambda: ModelDrafter(helper)}
    print(f'{size}, {n} tokens; the small model has {helper.config.n_params/config.n_params:.1%} of the '
          f'parameters\n{"":22}' + ''.join(f'{s:>10.0%} right' + ' '*4 for s in SHARES))
    for choice, way in ((False, 'eager'), (True, 'native')):
        answer = clocked(model, idx, n, compile=choice)[1]              # the first runs warm up
        for name, make in drafters.items():
            gains = {s: [] for s in SHARES}
            clocked(model, idx, n, drafter=Knowing(make(), answer[0].tolist(), .5), compile=choice)
            for r in range(rounds):
                alone = clocked(model, idx, n, compile=choice)[0]
                for s in SHARES:
                    drafter = Knowing(make(), answer[0].tolist(), s, r)
                    took, out = clocked(model, idx, n, drafter=drafter, compile=choice)
                    assert torch.equal(out, answer)
                    gains[s].append(alone/took)
            cells = (f'{median(g):6.2f} ({min(g):.2f}-{max(g):.2f})' for g in gains.values())
            print(f'{way:7} {name:14}' + '  '.join(cells), flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=['M', 'L'], action='append', help='both when not given')
    p.add_argument('--rounds', type=int, default=5, help='rounds (%(default)s)')
    p.add_argument('--new', type=int, default=64, help='tokens that are written (%(default)s)')
    args = p.parse_args()
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}; times as fast as decode alone')
    for size in args.size or ['M', 'L']: compare(size, args.rounds, args.new)

if __name__ == '__main__': main()
