"""Byte-level BPE: the same ids as the library that owns the files, or a refusal."""

import base64
import itertools
import json
import random

import pytest
from fuzzed_texts import fuzzed_texts
from make_tokenizer_fixtures import FOLDER, SEED, TEXTS, checksums, small_kinds
from tokenizer_json import LEVEL, added, digits, sequence, split, template, whole

from minilm_inf.text import bpe_files
from minilm_inf.text.around import Around
from minilm_inf.text.byte_level import byte_letters
from minilm_inf.text.byte_pairs import WORDS, learn_merges, merged, tokenizer_json
from minilm_inf.text.normalizers import nfc
from minilm_inf.text.tokenizer import load
from minilm_inf.text.byte_level import GPT2, LLAMA3_PATTERN, QWEN2, cut

KINDS = small_kinds()
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
EXPECTED = {kind: EXPECTED[kind] for kind in ("two files", *KINDS)}


def folder_of(path, raw, **others):
    """A folder with a tokenizer.json, and other JSON files by the names before their dots."""
    for name, content in {"tokenizer": raw, **others}.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def tiny(merges=(("a", "b"), ("ab", "c")), extra=(), **more):
    """A tokenizer.json of the 256 bytes and a few merges."""
    tokens = [*byte_letters(), *dict.fromkeys(a + b for a, b in merges), *extra]
    step = more.pop("pre_tokenizer", LEVEL)
    tokens_added = more.pop("added_tokens", [])
    vocab = {token: id for id, token in enumerate(tokens)}
    return whole(vocab, [list(pair) for pair in merges], step, tokens_added, **more)


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_kind_gives_the_ids_of_the_tokenizers_library(tmp_path, kind):
    """A cut, a lookahead, a normaliser or an added token that is read otherwise; of GPT-2's two
    files, a first line that is no merge."""
    ours = load(FOLDER if kind == "two files" else folder_of(tmp_path, KINDS[kind]))
    found = checksums(fuzzed_texts(TEXTS, SEED), ours.encode, ours.decode)
    assert found == EXPECTED[kind]
    if kind == "two files":
        assert ours.bos_id is None and ours.eos_id == 0


def test_the_kinds_differ():
    """A checksum that does not depend on the kind would let every kind pass as another."""
    assert len({found["ids"] for found in EXPECTED.values()}) >= len(EXPECTED) - 1


def specified(word: str, merges, ids: dict[str, int], ignore_merges: bool) -> list[int]:
    """BPE as the tokenizers library defines it: of all listed pairs the first in the list."""
    if ignore_merges and word in ids:
        return [ids[word]]
    parts = list(word)
    while True:
        pairs = [(merges.index(pair), at) for at, pair in enumerate(zip(parts, parts[1:]))
                 if pair in merges]  # fmt: skip
        if not pairs:
            return [ids[part] for part in parts]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def random_bpe(seed: int):
    """Merges as nobody would learn them: in any order, with unreachable tokens."""
    source = random.Random(seed)
    tokens, merges = list("abc"), []
    for _ in range(source.randint(1, 9)):
        pair = source.choice(tokens), source.choice(tokens)
        if pair not in merges and len("".join(pair)) <= 6:
            merges.append(pair)
            tokens.append("".join(pair))
    if source.random() < 0.3:
        source.shuffle(merges)
    unlisted = ["".join(source.choices("abc", k=3))] * (source.random() < 0.3)
    return merges, unlisted, source.random() < 0.4


def test_any_list_of_merges_is_done_exactly_or_refused(tmp_path):
    """tiktoken joins every pair that makes a token; a file of merges allows only its own."""
    words = ["".join(w) for n in range(1, 6) for w in itertools.product("abc", repeat=n)]
    done = 0
    for seed in range(40):
        merges, unlisted, ignore_merges = random_bpe(seed)
        vocab: dict[str, int] = {}
        for token in [*byte_letters(), *(a + b for a, b in merges), *unlisted]:
            vocab.setdefault(token, len(vocab))
        try:
            ours = bpe_files.byte_level(
                Around(), vocab, merges, ignore_merges, pattern=r"[\s\S]+"
            )
        except ValueError:
            continue
        done += 1
        for word in words:
            assert ours.encode(word) == specified(word, merges, vocab, ignore_merges), (
                seed, word, merges, unlisted, ignore_merges,
            )  # fmt: skip
    assert done >= 25


def test_a_word_that_merges_cannot_reach_is_no_token(tmp_path):
    """tiktoken takes a word whole that is in its ranks, though no merges lead there."""
    raw = tiny(extra=["xyz"])
    assert load(folder_of(tmp_path, raw)).encode("xyz") == [*b"xyz"]
    raw["model"]["ignore_merges"] = True
    assert load(folder_of(tmp_path, raw)).encode("xyz") == [raw["model"]["vocab"]["xyz"]]


def test_added_tokens_are_found_whole_and_the_longest_first(tmp_path):
    """Runs of spaces would be taken from the shortest; a special would be cut into letters."""
    spaces = [added(300, "  ", False), added(301, "    ", False)]
    ours = load(folder_of(tmp_path, tiny(added_tokens=spaces)))
    assert ours.encode("a     b") == [97, 301, 32, 98]
    ours = load(
        folder_of(tmp_path, tiny(added_tokens=[added(300, "<|x|>"), added(301, "yy", False)]))
    )
    assert ours.encode("ab<|x|>yy") == [256, 300, 301]
    assert ours.decode([256, 300, 301]) == "abyy"  # the special one leaves no trace
    assert 300 not in ours.encode("ab<|x|>yy", special=False)
    assert ours.decode(ours.encode("ab<|x|>yy", special=False)) == "ab<|x|>yy"
    assert ours.vocab_size == 302 and ours.decode([299]) == ""


def test_a_normalized_token_is_found_in_the_normalised_text(tmp_path):
    """Looked for in the text as it is, é as two characters would not be found."""
    tokens = [added(300, "é!", False, normalized=True), added(301, "ö!", False)]
    ours = load(folder_of(tmp_path, tiny(added_tokens=tokens, normalizer={"type": "NFC"})))
    assert ours.encode("e\u0301!") == [300]
    assert ours.encode("ö!") == [301] and 301 not in ours.encode("o\u0308!")


def test_newer_marks_stay_where_they_are():
    """Python's tables are newer than those that such models were trained with."""
    assert nfc("e\u0301") == "é" and nfc("a\u0323\u0301") == nfc("a\u0301\u0323")
    assert nfc("a\u1abf\u0301") == "a\u1abf\u0301"  # U+1ABF came with Unicode 13
    assert nfc("\U00011935\U00011930") == "\U00011935\U00011930"


def test_what_stands_around_a_text(tmp_path):
    """BOS twice, or none, is a text that the model never saw; so is an EOS left out."""
    both = template("<|x|>", 300)
    both["single"].append(both["single"][0])
    tokens = [added(300, "<|x|>")]
    for processor, before, after in (
        (None, [], []),
        (LEVEL, [], []),
        (template("<|x|>", 300), [300], []),
        ({"type": "Sequence", "processors": [LEVEL, both]}, [300], [300]),
    ):
        raw = tiny(added_tokens=tokens, post_processor=processor)
        ours = load(folder_of(tmp_path, raw))
        assert ours.encode("ab") == [*before, 256, *after]
        assert ours.encode("ab", bos=False) == [256]
        assert ours.bos_id == (before[0] if before else None)


@pytest.mark.parametrize("token", ["<|x|>", {"content": "<|x|>", "lstrip": False}])
def test_eos_is_named_beside_the_tokenizer(tmp_path, token):
    """Without its id a chat never ends."""
    raw = tiny(added_tokens=[added(300, "<|x|>")])
    assert load(folder_of(tmp_path, raw)).eos_id is None
    assert load(folder_of(tmp_path, raw, special_tokens_map={"eos_token": token})).eos_id == 300
    other = {"eos_token": "abc"}
    assert load(folder_of(tmp_path, raw, tokenizer_config=other)).eos_id == 257


BARE = LEVEL | {"use_regex": False}
APART = (("a", "b"), ("b", "c"), ("ab", "c"), ("b", "b"), ("a", "bc"))  # abc, then abc again
REFUSED = {
    "copy the model's tokenizer.model": {"pre_tokenizer": {"type": "Whitespace"}},
    "ByteLevel, after Digits or one Split": {"pre_tokenizer": sequence(LEVEL, digits(True))},
    "(nothing else": {"pre_tokenizer": sequence(digits(True), digits(True), LEVEL)},
    '"Punctuation"': {"pre_tokenizer": sequence({"type": "Punctuation"}, LEVEL)},
    '"Removed"': {"pre_tokenizer": sequence(split(GPT2) | {"behavior": "Removed"}, BARE)},
    "invert": {"pre_tokenizer": sequence(split(GPT2) | {"invert": True}, BARE)},
    "individual_digits": {"pre_tokenizer": sequence(digits(False), LEVEL)},
    "use_regex": {"pre_tokenizer": BARE},
    "use_regex must be false": {"pre_tokenizer": sequence(split(QWEN2), LEVEL)},
    "Regex must be": {"pre_tokenizer": sequence(split("(a+)+$"), BARE)},
    "not null": {"pre_tokenizer": sequence(split("e", kind="String"), BARE)},
    "NFKC": {"normalizer": {"type": "NFKC"}},
    "RobertaProcessing": {"post_processor": {"type": "RobertaProcessing"}},
    'decoder.type must be null or "ByteLevel"': {"decoder": {"type": "Metaspace"}},
    "do not stand together": {"merges": APART},
}  # fmt: skip


@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_be_done_exactly_is_refused(tmp_path, named):
    """Other ids than the model was trained with are a quiet loss of everything it learned."""
    with pytest.raises(ValueError) as refusal:
        load(folder_of(tmp_path, tiny(**REFUSED[named])))
    sentence = str(refusal.value)
    assert "tokenizer.json" in sentence and len(sentence.splitlines()) == 1
    assert named in sentence


def test_damaged_files_end_in_a_sentence(tmp_path):
    """A cut-off file, a missing part or a missing byte would be a traceback."""
    raw = tiny()
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw)[:-9])
    with pytest.raises(ValueError, match="no JSON object"):
        load(tmp_path)
    without = {name: part for name, part in raw.items() if name != "model"}
    with pytest.raises(ValueError, match="model.vocab must be an object of tokens"):
        load(folder_of(tmp_path, without))
    raw["model"]["merges"].append(["a", "zzz"])
    with pytest.raises(ValueError, match=r"merges\[2\] must be two tokens of its vocabulary"):
        load(folder_of(tmp_path, raw))
    raw = tiny()
    del raw["model"]["vocab"]["A"]
    raw["model"]["unk_token"] = "b"
    with pytest.raises(ValueError, match='writes "b" for bytes that its vocabulary lacks'):
        load(folder_of(tmp_path, raw))
    raw = tiny()
    del raw["model"]["vocab"]["abc"]
    with pytest.raises(ValueError, match=r"merges\[1\] must be two tokens of its vocabulary"):
        load(folder_of(tmp_path, raw))
    raw = tiny() | {"model": {"type": "Unigram", "vocab": []}}
    with pytest.raises(ValueError, match="only BPE"):
        load(folder_of(tmp_path, raw))


def test_a_byte_that_the_vocabulary_lacks_is_left_out(tmp_path):
    """A KeyError, or neighbours that stay apart: the tokenizers library joins them."""
    raw = tiny()
    del raw["model"]["vocab"]["A"]  # a letter, so that it stands within a word
    ours = load(folder_of(tmp_path, raw))
    assert ours.encode("aAbc abc") == [257, 32, 257]
    assert ours.encode("A") == [] and ours.encode("aAAbAc") == [257]
    assert ours.encode("abc") == [257]


def test_digits_cut_before_gpt2_does(tmp_path):
    """A run of spaces before a digit ends there: as one expression GPT-2's would leave one."""
    space = (("Ġ", "Ġ"), ("1", "2"))
    raw = tiny(merges=space, pre_tokenizer=sequence(digits(True), LEVEL))
    ours, one, two = load(folder_of(tmp_path, raw)), raw["model"]["vocab"]["Ġ"], 256
    assert ours.encode("a  12") == [97, two, 49, 50]
    assert ours.encode("a  b") == [97, one, one, 98]  # a word takes the space before it


@pytest.mark.parametrize("pattern", [LLAMA3_PATTERN, QWEN2, GPT2])
def test_python_cuts_where_tiktoken_does(tmp_path, pattern):
    """Python knows no \\p, and another \\s; and no expression may read a run many times."""
    assert cut("12 aé\u3000漢x-½", GPT2) == ["12", " aé", "\u3000", "漢x", "-", "½"]
    assert cut("a\x1cb\x85\x85c", GPT2) == ["a", "\x1c", "b", "\x85", "\x85", "c"]
    ours = load(folder_of(tmp_path, tiny(pre_tokenizer=sequence(split(pattern), BARE))))
    for text in fuzzed_texts(200, seed=4):
        words = cut(text, pattern)
        assert "".join(words) == text
        ids = [id for word in words for id in ours.encoding.encode_ordinary(word)]
        assert ids == ours.encoding.encode_ordinary(text)
    for text in ("a" * 50_000 + "!", " " * 50_000 + "1", "1" * 50_000, "\r" * 50_000 + "x"):
        assert ours.decode(ours.encode(text)) == text


def rank_file(folder, tokens, monkeypatch):
    """A tokenizer.model of tiktoken's, as if Llama 3 had these few ranks."""
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(bpe_files, "LLAMA3_RANKS", len(tokens))
    return folder


def test_a_rank_file_is_llama_3(tmp_path, monkeypatch):
    """Its specials stand in no file: an id off by one is another token."""
    tokens = [bytes([byte]) for byte in range(256)] + [b" a", b" ab", b"12", b"123"]
    ours = load(rank_file(tmp_path, tokens, monkeypatch))
    assert ours.encode("x ab1234") == [260, 120, 257, 259, 52]  # three digits at a time
    assert ours.encode("<|begin_of_text|><|eot_id|>", bos=False) == [260, 269]
    assert ours.encode("<|reserved_special_token_245|>", bos=False) == [260 + 255]
    assert ours.vocab_size == 260 + 256 and ours.eos_id == 261
    assert ours.decode(ours.encode("x ab1234")) == "x ab1234"


def test_another_rank_file_is_refused(tmp_path, monkeypatch):
    """Read with Llama 3's expression, another model's text would be cut into other words."""
    tokens = [bytes([byte]) for byte in range(256)]
    rank_file(tmp_path, tokens, monkeypatch)
    monkeypatch.setattr(bpe_files, "LLAMA3_RANKS", 128_000)
    with pytest.raises(ValueError, match="256 ranks, not the 128,000 of Llama 3"):
        load(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg 1\n")
    with pytest.raises(ValueError, match="no token and rank"):
        load(tmp_path)


def test_two_files_that_do_not_fit_are_refused(tmp_path):
    """Merges of another model would be a KeyError."""
    (tmp_path / "vocab.json").write_text(json.dumps(tiny()["model"]["vocab"]), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nq zz\n")
    with pytest.raises(ValueError, match="do not fit"):
        load(tmp_path)


def test_two_files_and_what_stands_beside_them(tmp_path):
    """GPT-J's 143 extra tokens are in a file of their own, and BOS only where it is asked."""
    vocab = tiny()["model"]["vocab"] | {"<|endoftext|>": 258}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\na b\r\nab c\r\n")
    (tmp_path / "added_tokens.json").write_text('{"<|extratoken_1|>": 259}')
    ours = load(tmp_path)
    assert ours.encode("abc<|extratoken_1|>") == [257, 259]
    assert ours.decode([257, 258, 259]) == "abc<|extratoken_1|>"
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert load(tmp_path).encode("abc") == [258, 257]


def test_white_space_without_end_is_refused():
    """tiktoken's own regular expressions would end the program."""
    ours = load(FOLDER)
    with pytest.raises(ValueError, match="white spaces in a row"):
        ours.encode("a" + " " * 1_000_000)
    assert ours.decode(ours.encode("a" + " " * 150_000)) == "a" + " " * 150_000


def test_merges_are_learned_by_frequency():
    """A stale count in the queue, or a pair across words, learns other merges."""
    assert learn_merges(["ab ab ab abc"], 3) == [(b"a", b"b"), (b" ", b"ab"), (b" ab", b"c")]
    assert merged([b"a", b"a", b"a"], (b"a", b"a")) == [b"aa", b"a"]
    texts = [text for text in fuzzed_texts(200, seed=9) if text.isascii()]
    learned = learn_merges(texts, 30)
    words = [[bytes([b]) for b in w.encode()] for t in texts for w in WORDS.findall(t)]
    for pair in learned:  # counted again for each merge
        counts = {}
        for word in words:
            for other in zip(word, word[1:]):
                counts[other] = counts.get(other, 0) + 1
        assert counts[pair] == max(counts.values())
        words = [merged(word, pair) for word in words]
    with pytest.raises(ValueError, match="only 1 pairs to merge"):
        learn_merges(["ab"], 2)


def test_what_is_learned_can_be_loaded(tmp_path):
    """The trainer's file, read by the loader: one token before a text, and every byte."""
    merges = learn_merges(["the cat sat on the mat, the end. " * 3], 12)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(merges), encoding="utf-8")
    ours = load(tmp_path)
    assert ours.vocab_size == 257 + 12
    assert ours.encode("the 12")[0] == 0 and len(ours.encode("the 12")) == 5
    for text in fuzzed_texts(200):
        plain = text.replace("<|endoftext|>", "")
        assert ours.decode(ours.encode(plain)) == plain
