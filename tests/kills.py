"Kills at random times while a child trains, saves and resumes: `python tests/kills.py 300 FOLDER SEED`."
import ctypes, json, mmap, os, random, signal, sys, time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import torch
from helpers import start_python
from tinylm import CharTokenizer, LanguageModel, LMConfig, Trainer, checkpoint_path, core, read_run, training
from tinylm.cli import main

TINY = ('--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4 --steps 30 --eval-every 3 '
        '--eval-windows 4 --dropout .1').split()
TEXT = 'the cat sat on the mat and looked at the moon.\n' * 60
POLITE = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
PHASES = 'begin', 'resume', 'step', 'evaluate', 'write', 'end'
BOARD = mmap.mmap(-1, 64)                              # shared with the children: the phase, a count

def phase(n, work):
    "The same function, which tells where it is."
    def told(*a, **k):
        before, BOARD[0] = BOARD[0], n
        BOARD[1] = (BOARD[1] + 1) % 256
        try: return work(*a, **k)
        finally: BOARD[0] = before
    return told

def child(work, log):
    "The number of a new process that does this work and ends."
    BOARD[0] = BOARD[1] = 255
    if pid := os.fork(): return pid
    code = 99
    try:
        for s in POLITE[1:]: signal.signal(s, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(log, 'w') as out: os.dup2(out.fileno(), 1); os.dup2(out.fileno(), 2)
        sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', closefd=False)
        Trainer.load = phase(1, Trainer.load); Trainer.update = phase(2, Trainer.update)
        Trainer.record = phase(3, Trainer.record)
        for room in (training, sys.modules['tinylm.model']): room.write_atomic = phase(4, room.write_atomic)
        BOARD[0] = 0
        code = work()
        sys.stdout.flush(); sys.stderr.flush()
    finally: os._exit(code)

def ended(pid):
    "The exit code of a child, minus the signal that killed it."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def kill_somewhere(pid, rng, sign):
    "Wait for a random moment of a random phase, kill, and say in which it was; None if it had ended before."
    aim, passes, last = rng.choice([0, 1, 2, 3, 4, 4]), rng.randint(1, 6), None
    while True:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): return None
        if BOARD[0] == aim and BOARD[1] != last:
            last, passes = BOARD[1], passes - 1
            if not passes: break
        time.sleep(1e-4)
    time.sleep(rng.uniform(0, 2e-3))
    where = BOARD[0]
    os.kill(pid, sign)
    return PHASES[where]

def kill_later(pid, rng):
    "The same for a process that has no board: at any time of its first seconds."
    time.sleep(rng.uniform(0, 10))
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): return None
    os.kill(pid, signal.SIGKILL)
    return 'somewhere'

def bits(tensors): return sha256(b''.join(k.encode() + tensors[k].numpy().tobytes()
                                          for k in sorted(tensors))).hexdigest()

def hidden(folder): return [p.name for p in folder.glob('.*')]

class Runs:
    "A training that is killed and resumed again and again, beside one that nobody disturbs."
    def __init__(self, folder):
        self.folder, self.out = folder, folder/'broken'/'model.safetensors'
        self.state, self.log = checkpoint_path(self.out), folder/'log'
        (folder/'text.txt').write_text(TEXT)
        self.known = {}                                # step -> bits of the run that nobody disturbs
        whole = folder/'whole.safetensors'
        def work():
            save = Trainer.save
            def noted(run, path):
                save(run, path)
                with open(folder/'known', 'a') as f:
                    both = bits(read_run(path).tensors), bits(run.model.state_dict())
                    f.write(json.dumps([run.step, *both]) + '\n')
            Trainer.save = noted
            return main(self.words(whole))
        assert ended(child(work, self.log)) == 0, self.log.read_text()
        self.known = {step: both for step, *both in map(json.loads, open(folder/'known'))}
        self.whole, self.history = whole.read_bytes(), read_run(checkpoint_path(whole)).progress['history']

    def words(self, out, *more):
        return ['train', '--corpus', str(self.folder/'text.txt'), '--out', str(out), *TINY, *more]

    def again(self): return self.words(self.out, '--resume' if self.state.exists() else '--overwrite')

    def check(self):
        "Every file is one that the undisturbed run wrote, at the same step or the one before."
        step = 0
        if self.state.exists():
            run = read_run(self.state)
            step = run.progress['step']
            assert bits(run.tensors) == self.known[step][0], f'another checkpoint at step {step}'
            losses = [(h['step'], h['loss'], h['val_loss']) for h in run.progress['history'][1:]]
            want = [(h['step'], h['loss'], h['val_loss']) for h in self.history[1:]]
            assert losses == want[:len(losses)], 'other losses'
        if self.out.exists():
            model = LanguageModel.from_safetensors(self.out)
            at = [s for s, (_, b) in self.known.items() if b == bits(model.state_dict())]
            assert at and step - 3 <= at[0] <= step, f'a model of steps {at} beside a run at step {step}'
        return step

    def sweep(self):
        "The next one who writes these files owns them and sweeps up."
        for path in (self.out, self.state): core.check_writable(path)
        with core.owning(self.out): pass
        assert not hidden(self.out.parent), hidden(self.out.parent)

    def finished(self):
        names = sorted(p.name for p in self.out.parent.iterdir())
        assert names == sorted([self.out.name, self.state.name]), names
        assert self.out.read_bytes() == self.whole
        for p in self.out.parent.iterdir(): p.unlink()

def ended_politely(code, log, folder, where):
    "One line, no traceback, nothing left behind."
    assert code == 130, (code, log)
    assert 'Traceback' not in log and log.splitlines()[-1].startswith('tinylm: stopped'), log
    assert not hidden(folder), (where, hidden(folder))

def train_and_kill(n, folder, rng, start=None):
    "Figures of n kills; `start` makes a process from the words of a command, forked when not given."
    runs, seen = Runs(folder), Counter()
    while seen['kills'] < n:
        words, resumes = runs.again(), runs.state.exists()
        pid = child(lambda: main(words), runs.log) if start is None else start(words, runs.log)
        sign = rng.choice([signal.SIGKILL]*4 + [*POLITE]) if start is None else signal.SIGKILL
        where = kill_somewhere(pid, rng, sign) if start is None else kill_later(pid, rng)
        code = ended(pid)
        runs.check()
        if code == 0: runs.finished(); seen['runs'] += 1; continue
        assert where is not None, (code, runs.log.read_text())
        seen['kills'] += 1; seen[where] += 1; seen[sign.name] += 1; seen['resumed'] += resumes
        if code == -signal.SIGKILL: seen['left'] += len(hidden(runs.out.parent))
        elif where != 'begin' or code != -sign:
            ended_politely(code, runs.log.read_text(), runs.out.parent, where)
        if rng.random() < .5: runs.sweep()
    assert ended(child(lambda: main(runs.again()), runs.log)) == 0, runs.log.read_text()
    runs.check(); runs.finished()
    return seen

def save_and_kill(n, folder, rng):
    "A child writes one version of a model after another; the file is always the last one or the one before."
    path, seen, log = folder/'saved.safetensors', Counter(), folder/'log'
    folder.mkdir(exist_ok=True)
    count = ctypes.c_int64.from_buffer(BOARD, 8)
    def work():
        model = LanguageModel(LMConfig(vocab_size=11, n_embd=64), CharTokenizer('abcdefghijk'))
        for version in range(count.value + 1, 10**6):
            with torch.no_grad(): [p.fill_(version) for p in model.parameters()]
            model.save_safetensors(path)
            count.value = version
    while seen['kills'] < n:
        pid, before = child(work, log), count.value
        more = rng.randint(0, 3)
        while count.value < before + more or BOARD[0] == 255: time.sleep(1e-4)
        time.sleep(rng.uniform(0, 5e-3))
        where = PHASES[BOARD[0]]
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL, log.read_text()
        seen['kills'] += 1; seen[where] += 1; seen['left'] += len(hidden(folder))
        if path.exists():
            held = {v for t in LanguageModel.from_safetensors(path).state_dict().values()
                    for v in t.unique().tolist()}
            assert len(held) == 1 and held.pop() - count.value in (0, 1)
        else: assert count.value == 0
        if rng.random() < .3:
            core.write_atomic(path, [path.read_bytes() if path.exists() else b''])
            if not count.value: path.unlink(missing_ok=True)
            assert not hidden(folder), hidden(folder)
        assert count.value >= before
    seen['versions'] = count.value
    return seen

def command(words, log):
    "A true command line."
    with open(log, 'w') as out:
        return start_python('-m', 'tinylm', *words, stdout=out, stderr=out).pid

if __name__ == '__main__':
    n, folder, seed = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    rng = random.Random(seed)
    for name in ('forked', 'command'): (folder/name).mkdir()
    print(json.dumps({'train': train_and_kill(2*n//3, folder/'forked', rng),
                      'save': save_and_kill(n - 2*n//3, folder/'saved', rng),
                      'command': train_and_kill(n//15, folder/'command', rng, command) if n >= 300 else {}}))
