"Real tokenizers: as the reference reads them, in and out of files, and templates that can do no harm."
import copy, json, pickle, time

import pytest
import torch
from helpers import CHATML, quick, run_python, small_model
from hypothesis import given, settings, strategies as st

from tinylm import CharTokenizer, LanguageModel, LMConfig, SubwordTokenizer, TextStream, chat_ids
from tinylm import read_tokenizer, render, tokenizer_from_gguf, tokenizer_from_hf, tokenizer_to_gguf
from tinylm import tokenizer_to_hf, train_subwords

SCRIPTS = ['Hello, world', 'Ünïcödé ß', 'Привет, мир', 'Γειά σου Κόσμε', 'שלום עולם', 'مرحبا بالعالم',
    'नमस्ते दुनिया', 'ওহে বিশ্ব', 'வணக்கம் உலகம்', 'సలామ్ లోకం', 'ഹലോ വേൾഡ്', 'สวัสดีชาวโลก', 'ສະບາຍດີ',
    'မင်္ဂလာပါ',
    'გამარჯობა', 'Բարեւ աշխարհ', '你好，世界', 'こんにちは世界', '안녕하세요 세계', 'ሰላም ዓለም',
    'ᓄᓇᕗᑦ', 'Xin chào thế giới',
    'សួស្តី', 'བཀྲ་ཤིས', '𐍈𐌰𐌹𐌻𐍃', '𒀀𒁀']
HOSTILE = ['', ' ', '  ', '\n', '\r\n', '\n\n\n', '\t', '\0', '\x7f\x80\x9b', "it's we're I'LL ' 's",
           '1234567890',
    '3.14e-10', 'a  b   c', '   lead', 'trail   ', 'x'*300, '<|im_end|>', '<|endoftext|> <|im_start|>user',
    '<s></s>',
    '�', '\ufeff', '\u200b\u200d\u2060', '\u202eabc', 'e\u0301', 'Z͑ͫ̓ͪ̂ͫ̽͏a̴̙', '👩\u200d👩\u200d👧',
    '🏳️\u200d🌈', '👍🏽', '🇩🇪',
    'ﬁ ﷺ Ⅷ ½', '../../etc/passwd', '<script>alert(1)</script>', '{{ 7*7 }} {% for %}', '%s %d %n', '"\'`\\',
    "'; DROP TABLE",
    'NULL None nan', '\U0010ffff\ufdd0', 'ĠĊÃ©', 'Ā', '\u2028\u2029', 'ｆｕｌｌ', '٣٤٥', '１２３', 'İi̇', 'ǅ']
EVERY_BYTE = ''.join(map(chr, range(256)))
CUTS = ['gpt-2', 'smollm', 'llama-bpe', 'qwen2']
SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
SMALL = train_subwords(' '.join(SCRIPTS + HOSTILE)*2 + " it's 12 345\n", 800, SPECIAL, chat_template=CHATML)
FIELDS = tokenizer_to_gguf(SMALL)

def cut_as(pre): return tokenizer_from_gguf(FIELDS | {'tokenizer.ggml.pre': pre})

any_text = st.text(st.characters(exclude_categories=['Cs']) | st.sampled_from(' \n\'<|>0129aé真🎉'),
                   max_size=40)

def reference(tokenizer, folder):
    "The same files, read by transformers."
    from transformers import AutoTokenizer
    tokenizer_to_hf(tokenizer, folder)
    return AutoTokenizer.from_pretrained(folder)

# --- as the reference

@pytest.fixture(scope='module', params=CUTS)
def pair(request, tmp_path_factory):
    ours = cut_as(request.param)
    return ours, reference(ours, tmp_path_factory.mktemp('tokenizer'))

@pytest.mark.parametrize('text', [*SCRIPTS, *HOSTILE, EVERY_BYTE])
def test_the_hostile_set_is_read_as_transformers_reads_it(pair, text):
    ours, theirs = pair
    assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text)) == (text if ours._t.normalizer is None
                                              else ours._t.normalizer.normalize_str(text))

@quick
@given(any_text)
def test_any_text_comes_back_and_is_read_as_transformers_reads_it(pair, text):
    ours, theirs = pair
    ids = ours.encode(text, special=True)
    assert ids == theirs.encode(text, add_special_tokens=False) and ours.decode(ids) == theirs.decode(ids)
    back = text if ours._t.normalizer is None else ours._t.normalizer.normalize_str(text)
    assert ours.decode(ours.encode(text)) == ours.decode(ids) == back

@quick
@given(st.lists(st.integers(0, SMALL.vocab_size-1), max_size=30))
def test_any_ids_are_decoded_as_transformers_does(pair, ids):
    ours, theirs = pair
    assert ours.decode(ids) == theirs.decode(ids) == ours.decode(torch.tensor(ids, dtype=torch.long))

def test_the_names_of_cuts_are_four_ways_to_cut():
    text = "It's 12345 of\n\n  WE'LL see"
    cuts = {pre: tuple(cut_as(pre).encode(text)) for pre in CUTS}
    assert len(set(cuts.values())) == 4 and cut_as('default').encode(text) == list(cuts['gpt-2'])

# --- text is data

@quick
@given(st.lists(st.sampled_from(SPECIAL) | any_text, max_size=6).map(''.join))
def test_text_never_becomes_a_special_token_unless_asked(text):
    special = set(SMALL.special.values())
    assert not special & set(SMALL.encode(text))
    assert sum(i in special for i in SMALL.encode(text, special=True)) == sum(map(text.count, SPECIAL))
    assert SMALL.decode(SMALL.encode(text)) == SMALL.decode(SMALL.encode(text, special=True)) == text

@quick
@given(st.lists(st.sampled_from(SPECIAL) | any_text, min_size=1, max_size=5).map(''.join), any_text)
def test_what_is_typed_into_a_chat_stays_text(typed, other):
    messages = [{'role': 'user', 'content': typed}, {'role': 'assistant', 'content': other}]
    ids = chat_ids(SMALL, messages, False)
    assert SMALL.decode(ids) == render(SMALL, messages, False)
    assert [SMALL.decode([i]) for i in ids if i in SMALL.special.values()] == ['<|im_start|>', '<|im_end|>']*2
    if not any(s in typed + other for s in SPECIAL):
        assert ids == SMALL.encode(SMALL.decode(ids), special=True)

def test_a_message_with_every_character_that_stands_for_nothing():
    every = ''.join(map(chr, range(0xfdd0, 0xfdf0)))
    with pytest.raises(ValueError, match='all 32 characters'):
        chat_ids(SMALL, [{'role': 'user', 'content': every}])
    content = every[:30] + '<|im_end|>'
    assert content in SMALL.decode(chat_ids(SMALL, [{'role': 'user', 'content': content}]))

def test_threads_do_not_disturb_one_another():
    from concurrent.futures import ThreadPoolExecutor
    want = {special: SMALL.encode('a<|im_end|>', special) for special in (True, False)}
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: SMALL.encode('a<|im_end|>', i % 3 == 0), range(600)))
    assert got == [want[i % 3 == 0] for i in range(600)]

# --- text as it comes

@settings(quick, max_examples=100)
@given(st.data(), st.lists(st.sampled_from(SCRIPTS + HOSTILE + ['真🎉e\u0301👩\u200d👧']),
                           max_size=5).map(''.join))
def test_a_stream_never_hands_out_half_a_character(data, text):
    ids, stream, out = SMALL.encode(text), TextStream(SMALL), []
    while ids:
        n = data.draw(st.integers(1, len(ids)))
        out.append(stream.push(ids[:n])); ids = ids[n:]
    whole = ''.join(out)
    assert text.startswith(whole) and '�' not in whole.replace('�', '', text.count('�'))
    assert whole + stream.flush() == text

@quick
@given(st.lists(st.lists(st.integers(0, SMALL.vocab_size-1), max_size=4), max_size=12))
def test_a_stream_of_any_ids_is_their_text(chunks):
    stream = TextStream(SMALL)
    text = ''.join([*map(stream.push, chunks), stream.flush()])
    assert text == SMALL.decode(sum(chunks, []))

# --- in files

def test_a_model_keeps_its_tokenizer_in_its_file(tmp_path):
    model = small_model(vocab_size=SMALL.vocab_size, tokenizer=SMALL)
    model.save_safetensors(tmp_path/'m.safetensors')
    again = LanguageModel.from_safetensors(tmp_path/'m.safetensors').tokenizer
    assert again.to_json() == SMALL.to_json() and again.encode('héllo 真') == SMALL.encode('héllo 真')
    with pytest.raises(ValueError, match='the tokenizer has 800 tokens and the config says vocab_size 11'):
        LanguageModel(LMConfig(vocab_size=11), SMALL)

def test_copies_share_it():
    model = small_model(vocab_size=SMALL.vocab_size, tokenizer=SMALL)
    assert copy.deepcopy(model).tokenizer is SMALL
    assert pickle.loads(pickle.dumps(SMALL)).to_json() == SMALL.to_json()

def test_a_large_vocabulary_fits_in_the_header_of_a_file(tmp_path):
    tokens = FIELDS['tokenizer.ggml.tokens'] + [f'Ġtoken{i}' for i in range(49152 - SMALL.vocab_size)]
    large = FIELDS | {'tokenizer.ggml.tokens': tokens, 'tokenizer.ggml.token_type': [3]*3 + [1]*49149}
    start = time.perf_counter()
    big = tokenizer_from_gguf(large)
    model = LanguageModel(LMConfig(49152, 8, 1, 1, 4), big)
    model.save_safetensors(path := tmp_path/'m.safetensors')
    again = LanguageModel.from_safetensors(path).tokenizer
    assert time.perf_counter() - start < 10 and path.stat().st_size < 6e6
    assert again.encode('token42000 ') == big.encode('token42000 ') and again.vocab_size == 49152

@pytest.mark.parametrize('ours', [SMALL, *map(cut_as, CUTS)], ids=['small', *CUTS])
def test_out_and_in_again(ours, tmp_path):
    tokenizer_to_hf(ours, tmp_path/'new'/'folder')
    assert tokenizer_from_hf(tmp_path/'new'/'folder').to_json() == ours.to_json()
    fields = tokenizer_to_gguf(ours)
    again = tokenizer_from_gguf(fields)
    assert tokenizer_to_gguf(again) == tokenizer_to_gguf(again) | fields
    for text in SCRIPTS + HOSTILE: assert again.encode(text, True) == ours.encode(text, True)

def test_rows_without_a_token(tmp_path):
    "A model may have more rows than tokens; such ids have no text."
    (tmp_path/'config.json').write_text('{"vocab_size": 1024, "eos_token_id": [2, 1, 5000]}')
    tokenizer_to_hf(SMALL, tmp_path)
    wide = tokenizer_from_hf(tmp_path)
    assert wide.vocab_size == 1024 and wide.decode([1000, *wide.encode('a'), 1023]) == 'a' and wide.end == (0,
        2, 1)
    fields = tokenizer_to_gguf(wide)
    assert fields['tokenizer.ggml.tokens'][1000] == '[PAD1000]'
    assert fields['tokenizer.ggml.token_type'][1000] == 5
    assert tokenizer_from_gguf(fields).vocab_size == 1024

def test_a_model_that_wants_a_first_token(tmp_path):
    fields = FIELDS | {'tokenizer.ggml.add_bos_token': True, 'tokenizer.ggml.bos_token_id': 1}
    ours = tokenizer_from_gguf(fields)
    assert ours.bos == 1 and ours.names['bos_token'] == '<|im_start|>' and 1 not in ours.encode('a')
    tokenizer_to_hf(ours, tmp_path)
    assert tokenizer_from_hf(tmp_path).bos == 1
    assert tokenizer_to_gguf(ours)['tokenizer.ggml.add_bos_token'] is True

def test_the_roles_of_a_file_for_other_programs():
    "A first token may be id 0; ends are two; who has none of them gets an id that there is."
    zero = tokenizer_from_gguf(FIELDS | {'tokenizer.ggml.add_bos_token': True,
                                         'tokenizer.ggml.bos_token_id': 0})
    assert zero.bos == 0 and tokenizer_to_gguf(zero)['tokenizer.ggml.bos_token_id'] == 0
    two = SubwordTokenizer(SMALL.definition, end=[2, 1])
    fields = tokenizer_to_gguf(two)
    assert (fields['tokenizer.ggml.eos_token_id'], fields['tokenizer.ggml.eot_token_id']) == two.end[:2]
    for none in (SubwordTokenizer(SMALL.definition, end=[]), CharTokenizer('abc')):
        fields = tokenizer_to_gguf(none)
        last = len(fields['tokenizer.ggml.tokens']) - 1
        assert fields['tokenizer.ggml.eos_token_id'] == fields['tokenizer.ggml.bos_token_id'] == last
        assert 'tokenizer.ggml.eot_token_id' not in fields
        assert fields['tokenizer.ggml.add_bos_token'] is False

def test_a_number_of_a_template_stays_small():
    for text in ('{{ (2**20000) > 1 }}', '{{ (7**3000 * 7**3000) > 1 }}'):
        with pytest.raises(ValueError, match='too large'): render(with_template(text), TALK)
    assert render(with_template('{{ 2**99 > 1 }} {{ 10**999 > 1 }}'), TALK) == 'True True'

@pytest.mark.parametrize('asked', [None, True, False])
@pytest.mark.parametrize('begins', [False, True])
@pytest.mark.parametrize('ends', [False, True])
def test_a_first_token_is_one_that_the_tokenizer_itself_puts_before_a_text(tmp_path, begins, ends, asked):
    from tokenizers import Tokenizer, processors
    tokenizer_to_hf(SMALL, tmp_path)
    theirs = Tokenizer.from_file(str(tmp_path/'tokenizer.json'))
    names, form = [*zip(SPECIAL, range(3))], SPECIAL[1:2]*begins + ['$A'] + SPECIAL[2:]*ends
    theirs.post_processor = processors.TemplateProcessing(single=' '.join(form), special_tokens=names)
    theirs.save(str(tmp_path/'tokenizer.json'))
    about = {} if asked is None else {'add_bos_token': asked}
    (tmp_path/'tokenizer_config.json').write_text(json.dumps(about))
    assert tokenizer_from_hf(tmp_path).bos == (1 if begins and asked is not False else None)

@pytest.mark.parametrize('n', range(4))
def test_a_vocabulary_has_the_size_that_was_asked_for_and_room_for_all_bytes(n):
    special = [f'<{i}>' for i in range(n)]
    assert train_subwords('a', 256 + n, special).vocab_size == 256 + n
    with pytest.raises(ValueError, match=f'vocab_size is {255 + n}'): train_subwords('a', 255 + n, special)

def test_names_and_templates_of_every_form(tmp_path):
    tokenizer_to_hf(SMALL, tmp_path)
    path = tmp_path/'tokenizer_config.json'
    for about, template in (({'chat_template': [{'name': 'tool', 'template': 'a'},
                                                {'name': 'default', 'template': 'b'}]}, 'b'),
                            ({'eos_token': {'content': '<|im_end|>', 'lstrip': False}}, None), ({}, None)):
        path.write_text(json.dumps(about))
        ours = tokenizer_from_hf(tmp_path)
        assert ours.chat_template == template and ours.end == ((2,) if 'eos_token' in about else ())
    (tmp_path/'chat_template.jinja').write_text('own')
    assert tokenizer_from_hf(tmp_path).chat_template == 'own'

# --- characters in the forms of others

def as_llama_cpp(fields, text):
    "What llama.cpp does with a word of byte-level BPE: bytes as signs, then merges by rank."
    from tokenizers import pre_tokenizers
    ranks = {tuple(m.split(' ')): i for i, m in enumerate(fields['tokenizer.ggml.merges'])}
    ids, out = {t: i for i, t in enumerate(fields['tokenizer.ggml.tokens'])}, []
    for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
        parts = list(word)
        while (best := min(((ranks[p], i) for i, p in enumerate(zip(parts, parts[1:])) if p in ranks),
                           default=None)):
            i = best[1]
            parts[i:i+2] = [parts[i] + parts[i+1]]
        out += [ids[p] for p in parts]
    return out

@quick
@given(st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=30), st.randoms())
def test_characters_are_read_by_other_programs_as_we_do(vocabulary, rng):
    ours = CharTokenizer(vocabulary)
    text = ''.join(rng.choices(ours.chars, k=30))
    fields = tokenizer_to_gguf(ours)
    assert as_llama_cpp(fields,
                        text) == ours.encode(text) and len(fields['tokenizer.ggml.tokens']) == ours.vocab_size
    assert tokenizer_from_gguf(fields).to_json() == ours.to_json()

@pytest.mark.parametrize('vocabulary', ['ab \n', EVERY_BYTE, ''.join(SCRIPTS), '\0', 'é'])
def test_characters_in_the_form_of_hugging_face(vocabulary, tmp_path):
    ours = CharTokenizer(vocabulary)
    theirs = reference(ours, tmp_path)
    text = vocabulary*3
    assert theirs(text).input_ids == ours.encode(text) and theirs.decode(ours.encode(text)) == text
    assert len(theirs) == ours.vocab_size and tokenizer_from_hf(tmp_path).to_json() == ours.to_json()

# --- what makes no sense

@pytest.mark.parametrize('call, says', [
    (lambda: SMALL.encode(None), 'None is not text'), (lambda: SMALL.encode('a\ud800'), 'half a character'),
    (lambda: SMALL.decode([800]), 'a token id is 800'), (lambda: SMALL.decode([-1]), 'a token id is -1'),
    (lambda: SMALL.decode(['a']), "a token id is 'a'"), (lambda: SMALL.decode(5), '5 is not a row of token '
        'ids'),
    (lambda: SMALL.decode([True]), 'a token id is True'),
    (lambda: SubwordTokenizer(None), 'None is no tokenizer.json'),
    (lambda: SubwordTokenizer('{}'), 'this is no tokenizer.json'),
    (lambda: SubwordTokenizer(SMALL.definition, end=[800]), 'is 800'),
    (lambda: SubwordTokenizer(SMALL.definition, bos=-1), 'is -1'),
    (lambda: SubwordTokenizer(SMALL.definition, vocab_size=799), 'vocab_size of the tokenizer is 799'),
    (lambda: SubwordTokenizer(SMALL.definition, chat_template=5), 'the chat template is 5'),
    (lambda: SubwordTokenizer(SMALL.definition, names={'a': 5}), '5 is no name'),
    (lambda: train_subwords('a', 5), 'vocab_size is 5'), (lambda: tokenizer_to_gguf('a'), "'a': expected a"),
    (lambda: tokenizer_to_hf(None, 'nowhere'), 'None: expected a'),
    (lambda: read_tokenizer({'kind': 'tokenizers', 'tokenizer': 5, 'end': [], 'bos': None,
                             'chat_template': None,
                             'names': {}, 'vocab_size': None}), '5 is no tokenizer.json')])
def test_one_line_for_what_makes_no_sense(call, says):
    with pytest.raises(ValueError) as e: call()
    assert says in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 300

def test_a_way_to_cut_that_gguf_files_have_no_name_for_is_refused():
    from tokenizers import Tokenizer, pre_tokenizers
    t = Tokenizer.from_str(SMALL.definition)
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match='cuts text by .*Whitespace.*gpt-2'):
        tokenizer_to_gguf(SubwordTokenizer(t.to_str()))

@pytest.mark.parametrize('changes, says', [
    ({'model': 'llama'}, "tokenizer.ggml.model is 'llama': expected one of gpt2"),
    ({'model': None}, 'model is None'),
    ({'pre': 'tekken'}, "tokenizer.ggml.pre is 'tekken'"), ({'pre': 5}, 'pre is 5'),
    ({'tokens': 5}, 'tokens holds 5'),
    ({'tokens': []}, 'expected lists'), ({'tokens': None}, 'has no tokenizer.ggml.tokens'),
    ({'tokens': 'abc'}, 'expected lists'),
    ({'tokens': ['a', 'a'], 'token_type': [1, 1]}, 'holds a token twice'),
    ({'token_type': [1]}, '800 tokens and 1 kinds'),
    ({'token_type': ['a']*800}, "token_type holds 'a'"), ({'merges': ['ab']}, "merges holds 'ab'"),
    ({'merges': ['a b c']}, 'expected two pieces'), ({'merges': ['真 真']}, 'makes no sense'),
    ({'merges': [5]}, 'merges holds 5'), ({'eos_token_id': 10**6}, 'is 1000000'),
    ({'bos_token_id': 'a'}, "holds 'a'"),
    ({'add_bos_token': 1}, 'add_bos_token holds 1')])
def test_one_line_for_a_header_that_makes_no_sense(changes, says):
    fields = FIELDS | {f'tokenizer.ggml.{k}': v for k, v in changes.items()}
    with pytest.raises(ValueError) as e: tokenizer_from_gguf(fields)
    assert says in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 300

JUNK = ['', '{', '[]', '5', 'null', '"a"', '{"a": 1', '\x00', '{"model": {}}', '['*50000,
        '{"version": "1.0"}', '{"model": null}',
        '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', '{"model": {"type": "nope"}}']

@pytest.mark.parametrize('junk', JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize('name',
    ['tokenizer', 'tokenizer_config', 'config', 'generation_config', 'special_tokens_map'])
def test_one_line_for_files_that_make_no_sense(tmp_path, name, junk):
    tokenizer_to_hf(SMALL, tmp_path)
    (tmp_path/f'{name}.json').write_text(junk)
    try: ours = tokenizer_from_hf(tmp_path)
    except ValueError as e: assert '\n' not in str(e) and len(str(e)) < 600 and str(tmp_path) in str(e)
    else: assert name != 'tokenizer' and ours.encode('a') == SMALL.encode('a')

def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no .*tokenizer.json'): tokenizer_from_hf(tmp_path)
    (tmp_path/'tokenizer.json').write_bytes(b'\xff')
    with pytest.raises(ValueError, match='not UTF-8'): tokenizer_from_hf(tmp_path)

@settings(quick, max_examples=150)
@given(st.randoms())
def test_a_damaged_definition_is_refused_or_reads_text(rng):
    "Values of a tokenizer.json exchanged at random."
    about, text = json.loads(SMALL.definition), 'a 12 <|im_end|> 真'
    places = [(about, k) for k in about] + [(about['model'], k) for k in about['model']] + [
        (about['pre_tokenizer'], k) for k in about['pre_tokenizer']] + [(t, k)
            for t in about['added_tokens'] for k in t]
    for where, key in rng.sample(places, 2):
        where[key] = rng.choice([None, 5, -1, 10**30, 'a', '', [], {}, [5], True, 1.5, {'type': 'Digits'},
                                 {'a': 0}])
    try: ours = SubwordTokenizer(json.dumps(about)); ours.decode(ours.encode(text))
    except ValueError as e: assert '\n' not in str(e)

def test_a_text_is_never_cut_short_by_what_a_file_says():
    about = json.loads(SMALL.definition)
    about['truncation'] = {'direction': 'Right', 'max_length': 2, 'strategy': 'LongestFirst', 'stride': 0}
    about['padding'] = {'strategy': {'Fixed': 50}, 'direction': 'Right', 'pad_to_multiple_of': None,
                        'pad_id': 0,
                        'pad_type_id': 0, 'pad_token': '!'}
    assert SubwordTokenizer(json.dumps(about)).encode('one two three') == SMALL.encode('one two three')

@pytest.mark.parametrize('package, call',
                         [('tokenizers', 'train_subwords("a", 300)'), ('jinja2', 'render(t, [m])')])
def test_a_package_that_is_missing_is_asked_for_in_one_line(package, call):
    code = (f'import sys\nsys.modules[{package!r}] = None\nimport tinylm\nfrom tinylm import *\n'
            'class t: chat_template, names = "a", {}\nm = dict(role="user", content="a")\n'
            f'try: {call}\nexcept ImportError as e: print(e)')
    said = run_python('-c', code, check=True).stdout
    assert f'needs the package {package} (pip install {package})' in said and said.count('\n') == 1

def test_import_tinylm_imports_none_of_the_packages():
    code = ('import sys, tinylm\n'
            'print([m for m in ("tokenizers", "jinja2", "transformers", "gguf") if m in sys.modules])')
    assert run_python('-c', code, check=True).stdout == '[]\n'

# --- templates

def with_template(template): return SubwordTokenizer(SMALL.definition, chat_template=template,
                                                     names={'bos_token': '<s>', 'eos_token': '</s>'})

TALK = [{'role': 'user', 'content': ' Hi <there> '}, {'role': 'assistant', 'content': 'Hello\n'},
        {'role': 'user', 'content': 'é "真"'}]
TEMPLATES = {'chatml': CHATML,
    'llama3': "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
              "'<|start_header_id|>' + "
              "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if "
              "loop.index0 == 0 %}"
              "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if "
              "add_generation_prompt %}"
              "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    'mistral': "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
               "(loop.index0 % 2 == 0) %}"
               "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
               "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token "
               "}}{% endif %}{% endfor %}",
    'qwen': "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + "
            "messages[0]['content'] }}\n{%- else %}\n"
            "    {{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in "
            "messages %}\n"
            "    {%- if message.role in ['user', 'assistant'] and not message.tool_calls %}\n"
            "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n "
            "   {%- endif %}\n{%- endfor %}\n",
    'namespace': "{% set ns = namespace(n=0, last='') %}{% for m in messages if m.role == 'user' %}{% set "
                 "ns.n = ns.n + 1 %}"
                 "{% set ns.last = m.content %}{% endfor %}{{ ns.n }} {{ ns.last | upper }} {{ messages | "
                 "length }} {{ messages[::-1][0].role }}",
    'macros': "{% macro say(role, text='none') %}[{{ role | capitalize }}: {{ text | replace('\\n', ' ') "
              "}}]{% endmacro %}"
              "{% for m in messages %}{{ say(m.role, m.content) }}{{ ', ' if not loop.last }}{% endfor %}",
    'filters': "{{ messages | map(attribute='role') | join('-') }} {{ messages | selectattr('role', "
               "'equalto', 'user') | list | length }}"
               " {{ messages[0] | tojson }} {{ messages[0].content.strip().split(' ') | last }} {{ x is "
               "defined }} {{ 'a' ~ 1 ~ none }}"
               " {{ [1, 2] + [3] }} {{ (1, 'b') }} {{ {'a': 1}.items() | list }} {{ 7 // 2 }} {{ 'abc'[1:] "
               "}} {{ messages[0].get('x', 5) }}",
    'controls': "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.content }}{% "
                "if loop.index == 3 %}"
                "{% break %}{% endif %}{% else %}nothing{% endfor %}{% set x %}a{{ 1 }}{% endset %}{{ x }}{% "
                "filter upper %}b{{ x }}{% endfilter %}",
    'generation': "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% "
                  "endgeneration %}{% else %}"
                  "{{ m.content }}{% endif %}{% endfor %}",
    'tree': "{% for x in [[1, [2]], [3]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x "
            "}}{% endif %}{% endfor %}"}

@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('prompt', [True, False])
def test_templates_are_filled_as_transformers_does(name, prompt):
    from transformers.utils.chat_template_utils import render_jinja_template
    want, _ = render_jinja_template([TALK], chat_template=TEMPLATES[name], add_generation_prompt=prompt,
                                    bos_token='<s>',
                                    eos_token='</s>')
    assert render(with_template(TEMPLATES[name]), TALK, prompt) == want[0]

def doubled(first, more, last):
    loop = f'{{% for i in range(60) %}}{{% set n.x = {more} %}}{{% endfor %}}'
    return f'{{% set n = namespace(x={first}) %}}{loop}{last}'

NESTED = '{% set n0 = namespace(x=1) %}' + ''.join(f'{{% set n{i+1} = namespace(a=n{i}, b=n{i}) %}}'
                                                   for i in range(60))
LOOP = ('{% set a = range(9999) | list %}{% set b = range(9999) | list %}{% set s = "a"*9999 %}'
        '{% for i in range(99999) %}')
HARMFUL = ['{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
           '{{ "a" * 10**10 }}',
    '{% for i in range(99999) if range(9999) | list | length < 0 %}{% endfor %}',
    '{{ ([1] * 10**9) | length }}', '{{ 2**99999999 }}',
    doubled('7', 'n.x * n.x', ''), doubled('"ab"', 'n.x ~ n.x', ''), doubled('"ab"', 'n.x + n.x', ''),
    doubled('[1]', '[n.x, n.x]', ''),
    doubled('1', '{"a": n.x, "b": n.x}', '{{ n.x | tojson }}'),
    doubled('(1,)', '(n.x, n.x)', '{{ {n.x: 1} }}'),
    doubled('"a"', 'n.x.replace("a", "aa")', ''), doubled('"a"', 'n.x | replace("a", "aa")', ''),
    NESTED + '{{ n60 }}', NESTED + '{{ n60 ~ "" }}', NESTED + '{{ n60 | string }}', NESTED
    + '{{ [n60] | join }}', NESTED + '{{ raise_exception(n60) }}',
    LOOP + '{% if a == b %}{% endif %}{% endfor %}', LOOP + '{% if -1 in a %}{% endif %}{% endfor %}', LOOP
    + '{% if -1 is in a %}{% endif %}{% endfor %}',
    LOOP + '{% set c = s[1:] %}{% endfor %}', LOOP + '{% set c = a | sort %}{% endfor %}', LOOP
    + '{{ s }}{% endfor %}', LOOP + 'x'*999 + '{% endfor %}',
    LOOP + '{% set c = s.find("b") %}{% endfor %}', '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    '{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}',
    '{% for x in [1, 1] recursive %}{% if loop.depth < 60 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}',
    '{{ ("a"*99999) | replace("a", "b"*99999) }}', '{{ ("a"*99999).replace("", "b"*99999) }}',
    '{{ (["a"]*99999) | join("b"*99999) }}',
    '{{ ("b"*99999).join(["a"]*99999) }}', '{{ "%999999999d" | format(1) }}', '{{ "%999999999d" % 1 }}',
    '{{ "{:999999999}".format(1) }}',
    '{{ "a" | center(10**9) }}', '{{ "a".center(10**9) }}', '{{ "a".zfill(10**9) }}',
    '{{ "a\nb" | indent(10**9) }}', '{{ [1] | tojson(indent=10**9) }}',
    '{{ lipsum(n=10**6) }}', '{{ range(10**12) | list }}', '{% for i in range(10**18) %}{% endfor %}',
    '{% include "/etc/passwd" %}',
    '{% import "os" as os %}', '{% extends "x" %}', '{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}',
    'a'*10**6,
    '{{ ' + 'not '*20000 + '1 }}', '{{ 1' + '+1'*20000 + ' }}', '{% if 1 %}'*300 + '{% endif %}'*300,
    '{% for i in [1] %}'*50 + '{% endfor %}'*50,
    "{{ ''.__class__.__mro__ }}", "{{ '' | attr('__class__') }}", '{{ namespace.__init__.__globals__ }}',
    '{{ self.__init__.__globals__ }}',
    '{{ messages.append(1) }}', "{{ messages[0].update({'a': 1}) }}", "{{ messages | groupby('__class__') }}",
    '{{ "a".encode("x") }}',
    '{{ raise_exception("no such role") }}', '{{ 1/0 }}', '{{ nothing.at.all }}', '{% for %}', '{{ ',
    '{{ 1 | nope }}', '{{ messages | map("upper") }}']

@pytest.mark.parametrize('template', HARMFUL, ids=range(len(HARMFUL)))
def test_a_template_that_does_harm_ends_in_one_line_and_soon(template):
    before, start = copy.deepcopy(TALK), time.perf_counter()
    with pytest.raises(ValueError) as e: render(with_template(template), TALK)
    assert time.perf_counter() - start < 5
    said = str(e.value)
    assert said.startswith('the chat template') and '\n' not in said and len(said) < 400 and TALK == before

@pytest.mark.parametrize('template', ["{{ ''['__class__'] }}", "{{ [''] | map(attribute='__class__') | list "
                                                               "}}",
    "{{ messages | selectattr('__class__') | list }}", '{% macro f() %}{% endmacro %}{{ f.__init__ }}{{ '
                                                       'f._func }}', '{{ cycler.__init__ }}'])
def test_what_a_template_may_not_see_is_not_there(template):
    assert render(with_template(template), TALK).strip() in ('', '[Undefined]', '[]')

PIECES = ['{% for i in messages %}', '{% endfor %}', '{% if x %}', '{% else %}', '{% endif %}',
          '{{ messages }}', '{{ ', ' }}', '{%', '%}', '"a"',
          ' * 999999', ' ** 99', '[', ']', '(', ')', ' | join', ' | list', ' | tojson', '.__class__',
          'range(99999)', 'namespace()', '{# ', ' #}', '\n',
          '{% macro f() %}', '{% endmacro %}', '{{ f() }}', '{% set x = ', 'messages', 'loop.index', '~', '+',
          ' in ', ' is string', '真', '\0']

@settings(quick, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map(''.join))
def test_random_templates_give_text_or_one_line(template):
    start = time.perf_counter()
    try: assert isinstance(render(with_template(template), TALK), str)
    except ValueError as e: assert str(e).startswith('the chat template') and '\n' not in str(e)
    assert time.perf_counter() - start < 5

@pytest.mark.parametrize('messages',
    [[], None, 'a', [5], [{}], [{'role': 'user'}], [{'role': 5, 'content': 'a'}],
     [{'role': 'user', 'content': None}]])
def test_messages_that_are_none_are_refused(messages):
    for f in (render, chat_ids):
        with pytest.raises(ValueError, match='messages are .*: expected a list'): f(SMALL, messages)

def test_a_long_conversation_is_within_the_budget():
    talk = [{'role': ('user', 'assistant')[i % 2], 'content': 'word '*200} for i in range(300)]
    for name in ('chatml', 'qwen', 'llama3', 'namespace'):
        assert len(render(with_template(TEMPLATES[name]), talk)) > 500

def test_more_variables_reach_the_template():
    assert render(with_template('{{ a }} {{ bos_token }}{{ tools is none }}'), TALK, a=5) == '5 <s>True'
