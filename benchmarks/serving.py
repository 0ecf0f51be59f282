"""Sixteen requests at once beside one after the other, with the same weights, in one run.

    pip install transformers            # if you like
    python benchmarks/serving.py
    python benchmarks/serving.py --mix uneven --rounds 9

Random weights. Three ways take turns, so that a slow minute of the machine hits all of them:
`decode` for one request after the other, the `Engine`, and transformers' `generate` with all prompts
padded on the left (if it can be imported). Greedy. Only wanted tokens count, not those that a padded
batch writes while it waits for its longest row. Printed: medians, their spread, and paired ratios.
"""
import argparse, time
from statistics import median

import torch
from peers import to_transformers, toy

from tinylm.bench import SIZES
from tinylm.serving import Engine, Request

def numbers(least, most, n, g): return torch.randint(least, most + 1, (n,), generator=g).tolist()

MIXES = {   # of n requests in a window of W tokens: lengths of their prompts, new tokens of each
    'equal': lambda n, W, g: ([16]*n, [min(128, W - 16)]*n),
    'uneven': lambda n, W, g: (numbers(8, 56, n, g), numbers(16, 128, n, g)),
    'long prompts': lambda n, W, g: (numbers(128, 192, n, g), numbers(8, 24, n, g)),
}

def one_by_one(model, requests):
    return [model.decode(torch.tensor([r.ids]), r.max_new_tokens, temperature=0)[0].tolist()
            for r in requests]

def padded(peer, requests, slots):
    "Batches of `slots` rows, each padded to its longest prompt and written to its longest answer."
    out = []
    for start in range(0, len(requests), slots):
        part = requests[start:start+slots]
        T, n = max(len(r.ids) for r in part), max(r.max_new_tokens for r in part)
        idx = torch.tensor([[0]*(T - len(r.ids)) + r.ids for r in part])
        mask = torch.tensor([[0]*(T - len(r.ids)) + [1]*len(r.ids) for r in part])
        with torch.inference_mode():
            texts = peer.generate(idx, attention_mask=mask, max_new_tokens=n, min_new_tokens=n,
                                  do_sample=False, pad_token_id=0)
        out += [t[T-len(r.ids):T+r.max_new_tokens].tolist() for t, r in zip(texts, part)]
    return out

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=SIZES, default='M')
    p.add_argument('--mix', choices=MIXES, default='equal', help='lengths of prompts and answers '
                                                                 '(%(default)s)')
    p.add_argument('--requests', type=int, default=16, help='how many (%(default)s)')
    p.add_argument('--slots', type=int, default=16, help='how many at a time (%(default)s)')
    p.add_argument('--rounds', type=int, default=5, help='rounds (%(default)s)')
    args = p.parse_args()
    torch.manual_seed(0)
    model, g = toy(SIZES[args.size]), torch.Generator().manual_seed(0)
    V, W = model.config.vocab_size, model.config.block_size
    lengths, new = MIXES[args.mix](args.requests, W, g)
    if max(lengths) + max(new) > W:
        p.error(f'--mix {args.mix} needs {max(lengths) + max(new)} positions: size {args.size} has {W}')
    requests = [Request(torch.randint(V, (length,), generator=g), n, temperature=0)
                for length, n in zip(lengths, new)]
    ways = {'one by one': lambda _: one_by_one(model, requests),
            'engine': lambda engine: [t.tolist() for t in engine.generate(requests)]}
    try:
        peer = to_transformers(model); ways['transformers, padded'] = lambda _: padded(peer, requests,
            args.slots)
    except ImportError: print('transformers is not installed: without it')
    # made before the clock starts, anew in each round: it would find the prompts in its cache
    fresh = lambda: Engine(model, slots=args.slots)
    texts = {name: way(fresh()) for name, way in ways.items()}                                  # warm-up
    tokens, seconds = sum(r.max_new_tokens for r in requests), {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            engine, start = fresh(), time.perf_counter()
            way(engine)
            seconds[name].append(time.perf_counter() - start)
    print(f'size {args.size}, {args.mix}: {args.requests} requests, {sum(len(r.ids) for r in requests)} '
          f'tokens read, {tokens} written, {args.slots} at a time, {torch.get_num_threads()} threads, torch '
          f'{torch.__version__}')
    print(f'{"way":22} {"tokens/s":>9} {"min":>7} {"max":>7}   {"times one by one":>16} {"min":>6} '
          f'{"max":>6}   same text')
    for name, s in seconds.items():
        ratio = [a/b for a, b in zip(seconds['one by one'], s)]
        same = sum(a == b for a, b in zip(texts[name], texts['one by one']))
        print(f'{name:22} {tokens/median(s):9,.0f} {tokens/max(s):7,.0f} {tokens/min(s):7,.0f}   '
              f'{median(ratio):16.2f} {min(ratio):6.2f} {max(ratio):6.2f}   {same} of {len(requests)}')

if __name__ == '__main__': main()
