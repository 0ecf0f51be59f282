"A conversation over a kept cache is a fresh model that reads all again, whatever was stopped or dropped."
import threading, time, warnings
from inspect import signature
from itertools import islice
from time import perf_counter

import pytest
import torch
from helpers import FAILURES, decided, failing, quick, small_model
from hypothesis import given, settings, strategies as st

from tinylm import (CharTokenizer, Conversation, KVCache, Machine, Sampling, Timeline, Turn, chat, chat_ids,
                    phases_of, train_subwords)

TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content | trim }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOKENIZER = train_subwords('what is a token? a piece of a word. 真的 é\n'*9, 300,
                           ['<|im_end|>', '<|im_start|>'],
                           chat_template=TEMPLATE)
MACHINE = Machine(1e9, 1e9, 1e-6)

def talker(seed=0, block_size=512, **more):
    return small_model(seed, TOKENIZER, vocab_size=TOKENIZER.vocab_size, block_size=block_size, **more).eval()

def fresh(model, messages, n):
    "What a model answers that reads the whole conversation anew: ids up to the end token."
    ids = torch.tensor([chat_ids(model.tokenizer, messages)])
    new = model.decode(ids, min(n, model.config.block_size - ids.shape[1]), temperature=0)[0,
        ids.shape[1]:].tolist()
    ends = [i for i, token in enumerate(new) if token in model.tokenizer.end]
    return ids, new[:ends[0]+1] if ends else new

def agrees_with_its_cache(c):
    "Keys and values of the cache are those of one pass over the ids that it has read."
    held = c.cache.lengths[0]
    assert held <= len(c.ids)
    if not held: return
    again = KVCache.of(c.model, 1)
    with torch.no_grad(): c.model.prefill(torch.tensor([c.ids[:held]]), cache=again)
    for kept, new in zip(c.cache.kv, again.kv):
        assert torch.allclose(kept[..., :held, :], new[..., :held, :], atol=1e-4, rtol=1e-3)

def common(a, b): return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))

words = st.text(st.sampled_from('what is a token? 真é🎉\n<|im_end|>'), min_size=1, max_size=12)

@settings(quick, max_examples=25)
@given(st.integers(0, 9), st.lists(words, min_size=1, max_size=4), st.none() | words,
       st.sampled_from([1, 6, 20]))
def test_every_answer_is_that_of_a_fresh_model_and_what_is_saved_is_counted(seed, questions, system, n):
    model = talker(seed)
    c = chat(model, system=system, max_new_tokens=n)
    for q in questions:
        before, held = c.ids, c.cache.lengths[0]
        text = ''.join(c.say(q))
        ids, want = fresh(model, c.messages[:-1], n)
        turn, known = c.turns[-1], ids[0].tolist()
        assert turn.saved == min(common(before[:held], known),
                                 len(known)-1) and turn.read == len(known) - turn.saved
        if decided(model, ids, len(want))[1]:
            assert turn.timeline.tokens == want and TOKENIZER.decode(want).startswith(text)
        assert c.messages[-1] == {'role': 'assistant', 'content': text}
        assert turn.ended == ('end' if turn.timeline.tokens[-1] in TOKENIZER.end else 'length')
        agrees_with_its_cache(c)

def test_a_second_turn_reads_only_what_is_new():
    c = chat(talker(), max_new_tokens=8)
    ''.join(c.say('what is a token?'))
    first = chat_ids(TOKENIZER, c.messages[:1])
    ''.join(c.say('a word'))
    assert c.turns[0].saved == 0 and c.turns[0].read == len(first)
    assert c.turns[1].saved >= len(first) and c.turns[1].read < c.turns[1].saved

# --- stopped

@pytest.mark.parametrize('pieces', [0, 1, 3])
def test_a_generator_that_is_closed_leaves_what_was_said(pieces):
    c = chat(talker(), max_new_tokens=20)
    answer = c.say('what is a token?')
    said = ''.join(next(answer) for _ in range(pieces))
    answer.close()
    want = [{'role': 'user', 'content': 'what is a token?'}, {'role': 'assistant', 'content': said}]
    assert c.messages == (want if pieces else []) and list(answer) == []
    agrees_with_its_cache(c)

def test_a_new_message_ends_the_answer_before():
    c = chat(talker(), max_new_tokens=20)
    first = c.say('what is a token?')
    next(first)
    ''.join(c.say('a word'))
    assert list(first) == [] and len(c.messages) == 4 and [t.ended for t in c.turns][0] == 'stopped'
    late = c.say('one that nobody reads')
    ''.join(c.say('another'))
    assert list(late) == [] and len(c.messages) == 6

def test_a_message_from_another_thread_ends_the_answer_before(monkeypatch):
    model = talker(); c, heard, errors = chat(model, max_new_tokens=200), [], []
    begun = threading.Event()
    def slowly(*_): begun.set(); time.sleep(.005)
    hook = model.blocks[0].register_forward_pre_hook(slowly)
    def first():
        try: heard.extend(c.say('what is a token?'))
        except Exception as e: errors.append(e)
    t = threading.Thread(target=first); t.start(); begun.wait()
    answer = c.say('a word'); second = ''.join(islice(answer, 3)); answer.close(); t.join(); hook.remove()
    assert errors == [] and c.messages[-1]['content'] == second
    assert c.messages[-2]['content'] == 'a word' and len(c.messages) == 2 + 2*bool(heard)
    agrees_with_its_cache(c)

@settings(quick, max_examples=60)
@given(st.sampled_from(sorted(FAILURES)), st.integers(1, 1500), st.integers(0, 3))
def test_an_interrupt_anywhere_leaves_a_conversation_that_keeps_the_law(how, n, seed):
    model = talker(seed)
    c = chat(model, max_new_tokens=6)
    ''.join(c.say('what is a token?'))
    before = c.messages
    heard = []
    with failing(how, n):
        for piece in c.say('a piece?'): heard.append(piece)
    assert c.messages[:2] == before and len(c.messages) in (2, 4) and len(c.turns) == len(c.messages)//2
    if len(c.messages) == 4: assert c.messages[3]['content'].startswith(''.join(heard))
    agrees_with_its_cache(c)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ''.join(c.say('is'))
    ids, want = fresh(model, c.messages[:-1], 6)
    if decided(model, ids, len(want))[1]: assert c.turns[-1].timeline.tokens == want

# --- the window

def test_the_oldest_turns_go_and_the_line_of_the_system_stays():
    model = talker(block_size=100)
    c = chat(model, system='be brief', max_new_tokens=10)
    dropped = 0
    for i in range(12):
        with warnings.catch_warnings(record=True) as came:
            warnings.simplefilter('always')
            ''.join(c.say(f'what is token {i}?'))
        turn = c.turns[-1]
        assert len(came) == (turn.dropped > 0)
        if came:
            assert f'{turn.dropped} oldest messages' in str(came[0].message) and came[0].filename == __file__
        dropped += turn.dropped
        assert c.messages[0] == {'role': 'system', 'content': 'be brief'} and turn.read + turn.saved < 100
        assert c.messages[-2]['content'] == f'what is token {i}?'
        ids, want = fresh(model, c.messages[:-1], 10)
        if decided(model, ids, len(want))[1]: assert turn.timeline.tokens == want
    assert dropped and len(c.messages) == 1 + 2*12 - dropped
    assert sum(t.dropped > 0 for t in c.turns) < 10          # not with every message

def test_a_message_that_never_fits_is_refused_and_nothing_changes():
    c = chat(talker(block_size=100), max_new_tokens=10)
    ''.join(c.say('what'))
    before = c.messages, list(c.ids), c.cache.lengths
    with pytest.raises(ValueError, match='this message makes .* expected fewer than block_size 100'):
        c.say('真'*99)
    assert (c.messages, list(c.ids), c.cache.lengths) == before
    ''.join(c.say('is'))

def test_the_cache_grows_with_the_conversation_and_not_before():
    c = chat(talker(), max_new_tokens=8)
    assert c.cache.length == 64
    for _ in range(6): ''.join(c.say('what is a token?'))
    assert 64 < c.cache.length <= 512 and c.turns[-1].saved > 64

@pytest.mark.parametrize('spare, length', [(-1, 128), (0, 64), (1, 64)])
def test_the_cache_grows_when_an_answer_would_not_fit_into_it(spare, length):
    said = len(chat_ids(TOKENIZER, [{'role': 'user', 'content': 'what?'}]))
    c = chat(talker(), max_new_tokens=64 - said - spare)
    ''.join(c.say('what?'))
    assert c.cache.length == length

@pytest.mark.parametrize('spare', [-1, 0, 1])
def test_messages_go_when_an_answer_would_not_fit_and_not_before(spare):
    first, question = chat(talker(positions='rotary'), max_new_tokens=8), {'role': 'user', 'content': 'is'}
    ''.join(first.say('what?'))
    size = len(chat_ids(TOKENIZER, first.messages + [question])) + 8 + spare
    c = chat(talker(positions='rotary', block_size=size), max_new_tokens=8)    # which gives the same answer
    ''.join(c.say('what?'))
    with warnings.catch_warnings(record=True) as came:
        warnings.simplefilter('always')
        ''.join(c.say('is'))
    assert c.turns[1].dropped == (2 if spare < 0 else 0) and len(came) == (spare < 0)

# --- dials, accounts, bad input

def test_the_dials_and_their_seed():
    said = lambda seed: [''.join(c.say(q))
                         for c in [chat(talker(), sampling=Sampling(2., seed=seed), max_new_tokens=9)]
                         for q in ('what', 'is')]
    assert said(1) == said(1) != said(2)

def test_the_line_of_a_conversation_and_the_clock_of_a_turn():
    c = chat(talker(), max_new_tokens=6)
    assert repr(c) == 'Conversation(0 messages, 0 tokens in the cache)'
    start = perf_counter()
    list(c.say('what is a token?'))
    seconds = c.turns[0].timeline.seconds
    assert min(seconds) > 0 and sum(seconds) <= perf_counter() - start
    assert repr(c) == f'Conversation(2 messages, {c.cache.lengths[0]} tokens in the cache)'

def test_the_account_of_a_turn_is_the_work_of_its_tokens():
    c = chat(talker(), max_new_tokens=5)
    for q in ('what', 'is a token?'): ''.join(c.say(q))
    turn, config = c.turns[1], c.model.config
    n = turn.read + turn.saved
    want = [config.pass_cost(turn.read, turn.saved, last_only=True)]
    want += [config.pass_cost(1, n+i, last_only=True) for i in range(len(turn.timeline.tokens)-1)]
    assert turn.timeline.costs == want and len(turn.timeline.seconds) == len(want)
    table = phases_of(turn, MACHINE).splitlines()
    assert [line.split()[0] for line in table] == ['phase', 'prefill', 'decode']
    parts = (turn.read, want[:1], turn.timeline.seconds[:1]), (4, want[1:], turn.timeline.seconds[1:])
    for line, (tokens, costs, seconds) in zip(table[1:], parts, strict=True):
        intensity = sum(c.flops for c in costs)/sum(c.n_bytes for c in costs)
        least = sum(map(MACHINE.seconds, costs))
        shown = f'{tokens:,} {intensity:.1f} {1e3*sum(seconds):.1f} {1e3*least:.2f}'
        assert line.split()[1:] == shown.split()

@quick
@given(st.lists(st.floats(1e-4, 9), max_size=5))
def test_the_rate_of_a_turn_is_that_of_the_tokens_after_the_first(seconds):
    turn = Turn(5, 3, timeline=Timeline(seconds, [], []))
    assert turn.rate == pytest.approx((len(seconds) - 1)/sum(seconds[1:]) if len(seconds) > 1 else 0)
    after = f'; first after {1e3*seconds[0]:,.0f} ms' if seconds else ''
    then = f', then {turn.rate:,.0f} tokens a second' if len(seconds) > 1 else ''
    assert str(turn) == '5 tokens read, 3 saved' + after + then

def test_chat_and_the_class_have_the_same_dials():
    dials = [{p.name: p.default for p in signature(f).parameters.values() if p.name != 'tokenizer'}
             for f in (chat, Conversation)]
    assert dials[0] == dials[1]

@pytest.mark.parametrize('wrong, says', [
    (dict(tokenizer=CharTokenizer('abc')), 'has 3 tokens and the config says vocab_size'),
    (dict(sampling=.5), 'sampling is 0.5'), (dict(max_new_tokens=0), 'max_new_tokens is 0'),
    (dict(system=5), 'messages are')])
def test_a_conversation_that_makes_no_sense_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says): chat(talker(), **wrong)

@pytest.mark.parametrize('text', ['', None, 5, b'a', '\ud800'])
def test_a_message_that_is_none_is_refused_before_anything_is_written(text):
    c = chat(talker())
    with pytest.raises(ValueError): c.say(text)
    assert c.messages == [] and isinstance(c, Conversation)

def test_a_tokenizer_without_a_template_is_refused():
    bare = train_subwords('abc', 300)
    with pytest.raises(ValueError, match='no chat template'):
        chat(small_model(vocab_size=bare.vocab_size, tokenizer=bare))
    chars = small_model(tokenizer=CharTokenizer('abcdefghijk'))
    with pytest.raises(ValueError, match='no chat template'): chat(chars)
