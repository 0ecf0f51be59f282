"""Sixteen streams over HTTP beside the same work given to the engine directly, in turns.

    python benchmarks/endpoint.py
    python benchmarks/endpoint.py --size S --rounds 9

Each token in an event of its own, and several of them in one (`--interval`). Random weights. The client is
a process of its own on the same machine, which reads server-sent events from plain sockets; its share of a
core is printed. Prompts are new in each round, so that no page is found again. Printed: medians of tokens a
second, from the least to the most, and the ratio within each round.
"""
import argparse, asyncio, json, time
from contextlib import ExitStack
from multiprocessing import get_context
from statistics import median

import torch

from tinylm import CharTokenizer, LanguageModel, check_count
from tinylm.bench import SIZES
from tinylm.endpoint import Endpoint
from tinylm.serving import Engine, Request

HEAD = ('POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n'
        'content-length: {}\r\n\r\n')

async def stream(where, prompt, n):
    "How many tokens came: each is a letter of four bytes."
    body = json.dumps(dict(model='m', prompt=prompt, max_tokens=n, temperature=0, stream=True))
    reader, writer = await asyncio.open_connection(*where)
    writer.write((HEAD.format(len(body)) + body).encode())
    text = await reader.read()
    writer.close()
    return text.count(b'\xf0')

def client(pipe):
    "Ask for what comes through the pipe; answer with counts, seconds, and seconds of the processor."
    async def crowd(where, prompts, n): return await asyncio.gather(*(stream(where, p, n) for p in prompts))
    while work := pipe.recv():
        start, cpu = time.perf_counter(), time.process_time()
        pipe.send((asyncio.run(crowd(*work)), time.perf_counter() - start, time.process_time() - cpu))

def alone(model, prompts, n):
    "Seconds of an engine that nobody listens to."
    engine, start = Engine(model, slots=len(prompts)), time.perf_counter()
    engine.generate([Request(ids, n, temperature=0) for ids in prompts])
    return time.perf_counter() - start

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=SIZES, default='M')
    p.add_argument('--streams', type=int, default=16, help='at a time (%(default)s)')
    p.add_argument('--tokens', type=int, default=200, help='that each writes (%(default)s)')
    p.add_argument('--interval', type=int, default=10, help='tokens in an event (%(default)s)')
    p.add_argument('--rounds', type=int, default=5, help='rounds (%(default)s)')
    args = p.parse_args()
    torch.manual_seed(0)
    intervals = sorted({1, check_count('interval', args.interval)})
    V = SIZES[args.size].vocab_size
    model = LanguageModel(SIZES[args.size], CharTokenizer(''.join(chr(0x10000 + i) for i in range(V)))).eval()
    prompts = lambda: torch.randint(V, (args.streams, 16)).tolist()
    ours, theirs = get_context('spawn').Pipe()
    get_context('spawn').Process(target=client, args=(theirs,), daemon=True).start()
    theirs.close()
    with ExitStack() as stack:
        serve = lambda every: stack.enter_context(
            Endpoint(model, name='m', slots=args.streams, stream_interval=every).running())
        rows = measure({every: serve(every) for every in intervals}, model, prompts, args, ours)
    print(f'size {args.size}: {args.streams} streams of {args.tokens} tokens, {torch.get_num_threads()} '
          f'threads, torch {torch.__version__}')
    report('engine', rows['engine'], args)
    for every in intervals:
        report(f'endpoint, {every} in an event', heard := [t for t, _ in rows[every]], args)
        ratio = [a/b for a, b in zip(rows['engine'], heard)]
        share = median(cpu/t for t, cpu in rows[every])
        print(f'    {median(ratio):.3f} of the engine ({min(ratio):.3f} to {max(ratio):.3f}); '
              f'the client used {100*share:.0f} % of one core')

def measure(urls, model, prompts, args, pipe):
    "Seconds of the engine alone, and (seconds, seconds of the client's processor) of each endpoint."
    rows = {'engine': []} | {every: [] for every in urls}
    for _ in range(args.rounds + 1):
        rows['engine'].append(alone(model, prompts(), args.tokens))
        for every, url in urls.items():
            pipe.send((url.removeprefix('http://').split(':'), prompts(), args.tokens))
            counts, *times = pipe.recv()
            assert counts == [args.tokens]*args.streams, counts
            rows[every].append(times)
    pipe.send(None)
    return {name: times[1:] for name, times in rows.items()}           # the first was the warm-up

def report(name, times, args):
    r = [args.streams*args.tokens/t for t in times]
    print(f'{name:24} {median(r):8,.0f} tokens/s  ({min(r):,.0f} to {max(r):,.0f})')

if __name__ == '__main__': main()
