"""What decoding keeps of its speed beside a busy neighbour.

    python benchmarks/busy.py                    # sizes M and L, all threads
    python benchmarks/busy.py --size M --repeats 9

A process that only spins is started and stopped in turn with quiet runs; it is not pinned to a core. Printed:
medians of tokens a second, and the share that is kept, pairwise, with its spread.
"""
import argparse, multiprocessing, time
from copy import deepcopy
from statistics import median

import torch

from tinylm import LanguageModel, native_reason, quantize_
from tinylm.bench import SIZES

def spin():
    while True: pass

class Neighbour:
    def __enter__(self):
        self.process = multiprocessing.get_context('spawn').Process(target=spin, daemon=True)
        self.process.start(); time.sleep(1.5)                         # a new interpreter takes a moment
    def __exit__(self, *_): self.process.terminate(); self.process.join()

def rate(model, new, choice):
    idx, start = torch.zeros(1, 16, dtype=torch.long), time.perf_counter()
    model.decode(idx, new, temperature=0, compile=choice)
    return new/(time.perf_counter() - start)

def compare(size, repeats, new):
    torch.manual_seed(0)
    model = LanguageModel(SIZES[size]).eval()
    ways = {'eager': (model, False), 'native': (model, True),
            'native int8': (quantize_(deepcopy(model)), True)}
    for m, choice in ways.values(): rate(m, 4, choice)                # warm-up
    quiet, busy = ({n: [] for n in ways} for _ in range(2))
    for _ in range(repeats):
        for name, (m, choice) in ways.items(): quiet[name].append(rate(m, new, choice))
        with Neighbour():
            for name, (m, choice) in ways.items(): busy[name].append(rate(m, new, choice))
    for name in ways:
        kept = [b/q for q, b in zip(quiet[name], busy[name])]
        rates = f'quiet {median(quiet[name]):8,.0f}, busy {median(busy[name]):8,.0f} tokens/s'
        print(f'{size} {name:12} {rates}   kept {median(kept):4.0%} '
              f'({min(kept):.0%} to {max(kept):.0%})', flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=SIZES, action='append', help='M and L when not given')
    p.add_argument('--repeats', type=int, default=5, help='pairs of runs (%(default)s)')
    p.add_argument('--new', type=int, default=48, help='tokens that are written (%(default)s)')
    args = p.parse_args()
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}; '
          + (native_reason(LanguageModel().eval()) or 'compiled loops'))
    for size in args.size or ['M', 'L']:
        compare(size, args.repeats, min(args.new, SIZES[size].block_size - 17))

if __name__ == '__main__': main()
