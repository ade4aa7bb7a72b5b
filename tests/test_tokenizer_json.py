"""Files of BPE: the same ids as the library that owns them, or a refusal."""

import itertools
import json
import random
import re
import time
from collections import Counter

import pytest
from fuzzed_texts import fuzzed_texts
from tokenizer_json import (
    BARE,
    FOLDER,
    LEVEL,
    STRIP,
    added,
    checksums,
    folder_of,
    metaspace,
    piece_kinds,
    small_kinds,
    split,
    steps,
    template,
    whole,
)

from minilm_inf.terminal.json_parts import Part
from minilm_inf.text.around import Around
from minilm_inf.text.byte_level import GPT2, ByteLevelTokenizer, byte_letters
from minilm_inf.text.byte_pairs import WORDS, learn_merges, tokenizer_json
from minilm_inf.text.tokenizer import load

PIECES = piece_kinds()
KINDS = small_kinds() | PIECES
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def tiny(merges=(("a", "b"), ("ab", "c")), extra=(), **more):
    """A tokenizer.json of the 256 bytes and a few merges."""
    tokens = [*byte_letters(), *dict.fromkeys(a + b for a, b in merges), *extra]
    step, marks = more.pop("pre_tokenizer", LEVEL), more.pop("added_tokens", [])
    vocab = {token: id for id, token in enumerate(tokens)}
    return whole(vocab, [list(pair) for pair in merges], step, marks, **more)


def llama(**parts):
    """The commonest kind of a Llama with some of its parts, or of its model's, replaced."""
    raw = json.loads(json.dumps(PIECES["Llama 2"]))
    for name, part in parts.items():
        in_model = name in ("dropout", "end_of_word_suffix", *raw["model"])
        (raw["model"] if in_model else raw)[name] = part
    return raw


@pytest.mark.parametrize("kind", ["two files", *KINDS])
def test_every_kind_gives_the_ids_of_the_tokenizers_library(tmp_path, kind):
    """A cut, a space, a byte, a normaliser or an added token that is read otherwise; text that
    comes out differently when it is decoded, whole or torn."""
    two = kind == "two files"
    ours = load(FOLDER if two else folder_of(tmp_path, tokenizer=KINDS[kind]))
    found = checksums(fuzzed_texts(300, seed=5), ours.encode, ours.decode)
    assert {name: found[name] for name in EXPECTED[kind]} == EXPECTED[kind]


def specified(word: str, merges, ids: dict[str, int], whole_words: bool) -> list[int]:
    """BPE as the tokenizers library defines it: of all listed pairs the first in the list."""
    if whole_words and word in ids:
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
    for _ in range(source.randint(1, 6)):
        pair = source.choice(tokens), source.choice(tokens)
        if pair not in merges and len("".join(pair)) <= 6:
            merges.append(pair)
            tokens.append("".join(pair))
    if source.random() < 0.2:
        source.shuffle(merges)
    unlisted = ["".join(source.choices("abc", k=3))] * (source.random() < 0.3)
    return merges, unlisted, source.random() < 0.4


def test_any_list_of_merges_is_done_exactly_or_refused():
    """tiktoken joins every pair that makes a token; a file of merges allows only its own."""
    words = ["".join(w) for n in range(1, 6) for w in itertools.product("abc", repeat=n)]
    done = 0
    for seed in range(80):
        merges, unlisted, whole_words = random_bpe(seed)
        vocab: dict[str, int] = {}
        for token in [*byte_letters(), *(a + b for a, b in merges), *unlisted]:
            vocab.setdefault(token, len(vocab))
        model = Part({"merges": [list(pair) for pair in merges]})
        try:
            ours = ByteLevelTokenizer(model, vocab, Around(), r"[\s\S]+", whole_words)
        except ValueError:
            continue
        done += 1
        for word in words:
            assert ours.encode(word) == specified(word, merges, vocab, whole_words), seed
    assert 30 <= done < 80


def test_a_piece_that_no_merge_makes(tmp_path):
    """sentencepiece joins any letters that are a piece, though no merges lead there."""
    ours = load(folder_of(tmp_path, tokenizer=llama(vocab=VOCAB | {"zq": 2048})))
    assert 2048 not in ours.encode("zq") and ours.decode([2048]) == "zq"


def test_only_the_post_processor_tells_of_bos(tmp_path):
    """BOS twice, or none, is a text that the model never saw; transformers drops add_bos_token
    and add_eos_token where there is a tokenizer.json."""
    both = template("<|x|>", 300)
    both["single"].append(both["single"][0])
    about = {"add_bos_token": False, "add_eos_token": True, "bos_token": "<|x|>",
             "eos_token": {"content": "abc"}}  # fmt: skip
    for processor, before, after in (
        (None, [], []),
        (template("<|x|>", 300), [300], []),
        ({"type": "Sequence", "processors": [LEVEL, both]}, [300], [300]),
    ):
        raw = tiny(added_tokens=[added(300, "<|x|>")], post_processor=processor)
        ours = load(folder_of(tmp_path, tokenizer=raw, tokenizer_config=about))
        assert ours.encode("ab") == [*before, 256, *after]
        assert ours.encode("ab", bos=False) == [256]
        assert ours.bos_id == (before[0] if before else None)
        assert ours.bos_token_id == 300 and ours.eos_id == 257
        assert ours.vocab_size == 301 and ours.decode([299]) == ""  # an id that none has


def test_text_that_continues(tmp_path):
    """A reply glued to its prompt; between two marks a space that appears, or vanishes."""
    for kind, spaced in (("Llama 2", True), ("Llama, first", False), ("Metaspace", True)):
        ours = load(folder_of(tmp_path, tokenizer=PIECES[kind]))
        sea = ours.encode("sea", bos=False)
        assert ours.stream().push(sea[0]) == "sea" == ours.stream(begun=True).push(sea[0])[1:]
        after = ours.encode("sea", bos=False, begun=True)
        assert after == ours.encode("</s>sea", bos=False)[1:][: len(after)]
        assert (after == sea[: len(after)]) == spaced
    assert ours.marks["</s>"] == 2 and "sea" not in ours.marks


REMOVED = split(GPT2) | {"behavior": "Removed"}
APART = (("a", "b"), ("b", "c"), ("ab", "c"), ("b", "b"), ("a", "bc"))  # abc, then abc again
LONG = ["a" * 8, "a" * 249]
MERGES, VOCAB = (PIECES["Llama 2"]["model"][name] for name in ("merges", "vocab"))
NORMAL, OTHER = [added(2048, "<x>", normalized=True)], "in another way than GPT-2"
REFUSED = [
    (tiny, OTHER, {"pre_tokenizer": steps("pretokenizers", REMOVED, BARE)}),
    (tiny, OTHER, {"pre_tokenizer": steps("pretokenizers", split("(a+)+$"), BARE)}),
    (tiny, OTHER, {"pre_tokenizer": LEVEL | {"add_prefix_space": True}}),
    (tiny, "(NFKC, ByteLevel)", {"normalizer": {"type": "NFKC"}}),
    (tiny, "RobertaProcessing", {"post_processor": {"type": "RobertaProcessing"}}),
    (tiny, 'must be null or "ByteLevel"', {"decoder": {"type": "Metaspace"}}),
    (tiny, "do not stand together", {"merges": APART}),
    (tiny, "do not make", {"merges": [LONG], "extra": LONG}),
    (tiny, "normalized", {"added_tokens": NORMAL, "normalizer": {"type": "NFC"}}),
    (llama, OTHER, {"pre_tokenizer": metaspace("first", True)}),
    (llama, "(no steps)", {"normalizer": None}),
    (llama, "and perhaps Strip", {"decoder": steps("decoders", STRIP)}),
    (llama, "end_of_word_suffix", {"end_of_word_suffix": "</w>"}),
    (llama, "merges[0] must be two tokens", {"merges": ["a b c"]}),
    (llama, "and both joined another", {"merges": [["zq", "qz"]]}),
    (llama, "its merges do not make", {"merges": [m for m in MERGES if m != "t he"]}),
    (llama, "unk_token", {"unk_token": "<none>"}),
    (llama, "with a token for each byte", {"byte_fallback": False}),
    (llama, "all ids", {"vocab": VOCAB | {"zq": 9999}}),
    (llama, "the text stands once", {"post_processor": template("<s>", 1) | {"single": []}}),
    (llama, '"<x>" has the id 1', {"added_tokens": [added(1, "<x>")]}),
    (llama, "lstrip", {"added_tokens": [added(2048, "<x>") | {"lstrip": True}]}),
    (llama, 'type must be null or "BPE"', {"model": {"type": "Unigram", "vocab": []}}),
    (llama, "model.vocab must be an object", {"model": {}}),
]  # fmt: skip


@pytest.mark.parametrize("make, named, parts", REFUSED)
def test_what_cannot_be_done_exactly_is_refused(tmp_path, make, named, parts):
    """Other ids than the model was trained with are a quiet loss of everything it learned."""
    with pytest.raises(ValueError, match=f"^.*tokenizer.json.*{re.escape(named)}.*$"):
        load(folder_of(tmp_path, tokenizer=make(**parts)))


def test_texts_that_cannot_be_encoded_are_refused(tmp_path):
    """A byte that the vocabulary lacks would be left out; tiktoken's own regular expressions
    would end the program at white space without end."""
    raw = tiny()
    del raw["model"]["vocab"]["A"]
    ours = load(folder_of(tmp_path, tokenizer=raw))
    assert ours.encode("abc") == [257]
    with pytest.raises(ValueError, match="no token of this"):
        ours.encode("aAbc")
    with pytest.raises(ValueError, match="white spaces in a row"):
        ours.encode("a" + " " * 1_000_000)
    assert ours.decode(ours.encode("a" + " " * 150_000)) == "a" + " " * 150_000


def test_a_long_word_takes_no_square_of_its_length(tmp_path):
    """Without spaces a text is one word: a search for each next merge in all of it is hours."""
    ours, began = load(folder_of(tmp_path, tokenizer=llama())), time.monotonic()
    for text in ("ab" * 20_000, "漢" * 10_000, " " * 40_000):
        assert ours.decode(ours.encode(text)) == text
    assert time.monotonic() - began < 20


def test_two_files_and_what_stands_beside_them(tmp_path):
    """GPT-J's 143 extra tokens are in a file of their own, and BOS only where it is asked;
    merges of another model would be a KeyError."""
    vocab = tiny()["model"]["vocab"] | {"<|endoftext|>": 258}
    (tmp_path / "merges.txt").write_text("#version: 0.2\r\na b\r\nab c\r\n")
    more = {"<|extratoken_1|>": 259}
    ours = load(folder_of(tmp_path, vocab=vocab, added_tokens=more))
    assert ours.encode("abc<|extratoken_1|>") == [257, 259]
    assert ours.bos_id is None and ours.eos_id == 258
    assert ours.decode([257, 258, 259]) == "abc<|extratoken_1|>"
    folder_of(tmp_path, tokenizer_config={"add_bos_token": True})
    assert load(tmp_path).encode("abc") == [258, 257]
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nq zz\n")
    with pytest.raises(ValueError, match=r"merges.txt: merges\[1\] must be two tokens of its"):
        load(tmp_path)


def test_merges_are_learned_by_frequency():
    """A stale count, an overlap counted twice, or a pair across words, learns other merges."""
    assert learn_merges(["ab ab ab abc"], 3) == [(b"a", b"b"), (b" ", b"ab"), (b" ab", b"c")]
    texts = [text for text in fuzzed_texts(200, seed=9) if text.isascii()]
    words = [[bytes([b]) for b in w.encode()] for t in texts for w in WORDS.findall(t)]
    for pair in learn_merges(texts, 30):  # counted again for each merge
        counts = Counter(other for word in words for other in itertools.pairwise(word))
        assert counts[pair] == max(counts.values())
        for word in words:
            for at in range(len(word)):
                if tuple(word[at : at + 2]) == pair:
                    word[at : at + 2] = [b"".join(pair)]
    with pytest.raises(ValueError, match="only 1 pairs to merge"):
        learn_merges(["ab"], 2)


def test_what_is_learned_can_be_loaded(tmp_path):
    """The trainer's file, read by the loader: one token before a text, and every byte."""
    merges = learn_merges(["the cat sat on the mat, the end. " * 3], 12)
    ours = load(folder_of(tmp_path, tokenizer=json.loads(tokenizer_json(merges))))
    assert ours.vocab_size == 257 + 12
    assert ours.encode("the 12")[0] == 0 and len(ours.encode("the 12")) == 5
    for text in fuzzed_texts(100):
        plain = text.replace("<|endoftext|>", "")
        assert ours.decode(ours.encode(plain)) == plain
