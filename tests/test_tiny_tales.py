"""Tiny Tales: probabilities against enumeration and parsing, and stories that hold
together.
"""

import hashlib
import json
import math
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

from shared.support import COURSE, tiny_tales
from shared.support.tiny_tales import RULES, Grammar, Tale, tales

sys.path.append(str(COURSE / "ch05_pretraining"))
from tales_measures import KNOWN_WORDS, entropy_floor, quality

CHAPTER = COURSE / "ch05_pretraining"
PLOTS = [re.findall(r"{(\w+)}", plot) for plot in RULES["story"]]
# [settings, friend, shapes] of each plot; like "story", every such name is used once
STRUCTURE = {"story", *(name for plot in PLOTS for name in plot)}
PRONOUNS = {"she": "she her herself".split(), "he": "he his him himself".split()}


@pytest.fixture(scope="module")
def sample() -> list[Tale]:
    return list(tales(seed=11, n=10_000))


# A second implementation of the rules, which shares nothing with the module but the
# data: it lists every way to fill a template, where the module draws one.


def parts_of(template: str) -> tuple[str, str, str]:
    """Return the text before the first name, that name or "", and the rest."""
    before, _, rest = template.partition("{")
    name, _, after = rest.partition("}")
    return before, name, after


def options_of(name: str, bound: Mapping) -> list[tuple[str, dict, float]]:
    """Return (template, memory, probability) for every option that `name` has."""
    options = bound[name] if isinstance(bound[name], list) else [bound[name]]
    records = [one if isinstance(one, dict) else {"text": one} for one in options]
    return [(r.get("text", ""), {**bound, **r}, 1 / len(options)) for r in records]


def fillings(template: str, bound: Mapping) -> Iterator[tuple[str, Mapping, float]]:
    """Yield every (text, memory, probability) that `template` can become."""
    before, name, after = parts_of(template)
    if not name:
        yield before, bound, 1.0
        return
    key = name[0].lower() + name[1:]
    for option, memory, p in options_of(key, bound):
        for value, memory2, p2 in fillings(option, memory):
            shown = value if name == key else value[0].upper() + value[1:]
            for tail, memory3, p3 in fillings(after, {**memory2, key: value}):
                yield before + shown + tail, memory3, p * p2 * p3


def parses(text: str, template: str, bound: Mapping) -> Iterator[float]:
    """Yield the probability of every derivation of `text` from `template`."""
    before, name, after = parts_of(template)
    if not text.startswith(before):
        return
    text = text[len(before) :]
    if not name:
        if not text:
            yield 1.0
    elif name in STRUCTURE:
        for option, memory, p in options_of(name, bound):
            yield from (p * p2 for p2 in parses(text, option + after, memory))
    else:
        for value, memory, p in fillings("{" + name + "}", bound):
            if text.startswith(value):
                yield from (p * p2 for p2 in parses(text[len(value) :], after, memory))


def ways(template: str, told: frozenset, bound: Mapping) -> Counter:
    """Count the fillings of `template`, by the set of names told afterwards."""
    counts = Counter({told: 1})
    for name in re.findall(r"{(\w+)}", template):
        key, following = name[0].lower() + name[1:], Counter()
        for state, n in counts.items():
            if key in state:
                following[state] += n
                continue
            for option, _, _ in options_of(key, bound):
                for after, m in ways(option, state, bound).items():
                    following[after | {key}] += n * m
        counts = following
    return counts


def number_of_stories() -> int:
    """Count the derivations of the full grammar, exactly, without listing them."""
    pronouns = dict.fromkeys(["he", "his", "him", "self"], "")
    return sum(
        sum(ways(shape, frozenset(), in_shape).values())
        for settings, friend, shapes in PLOTS
        for _, in_setting, _ in options_of(settings, {**RULES, **pronouns})
        for _, in_friend, _ in options_of(friend, in_setting)
        for shape, in_shape, _ in options_of(shapes, in_friend)
    )


SMALL = {
    "story": [
        "{name} ran. {ending}",
        {"text": "{A_pet} saw {name}.{moral}", "moral": " {He} hid."},
    ],
    "name": [{"text": "{girl}", "he": "she"}, {"text": "Ben", "he": "he"}],
    "girl": ["Ann", "Eve"],
    "ending": [
        "{He} fell, and {he} cried.",
        "{A_pet} barked at {name}, as {a_pet} will.",
        "The end.",
    ],
    "a_pet": ["a {size} dog", "an owl"],
    "size": ["big", "small"],
}


def test_log_probabilities_equal_an_enumeration():
    by_hand = {}  # the same grammar, unrolled on paper
    for name, he, p in (
        ("Ann", "she", 1 / 4),
        ("Eve", "she", 1 / 4),
        ("Ben", "he", 1 / 2),
    ):
        by_hand[f"{name} ran. {he.capitalize()} fell, and {he} cried."] = p / 6
        by_hand[f"{name} ran. The end."] = p / 6
        for pet, p_pet in ("big dog", 1 / 4), ("small dog", 1 / 4), ("n owl", 1 / 2):
            pet = pet if pet == "n owl" else " " + pet
            barked = f"{name} ran. A{pet} barked at {name}, as a{pet} will."
            by_hand[barked] = p * p_pet / 6
            by_hand[f"A{pet} saw {name}. {he.capitalize()} hid."] = p * p_pet / 2
    assert sum(by_hand.values()) == pytest.approx(1, abs=1e-12)
    listed = [(text, p) for text, _, p in fillings("{story}", SMALL)]
    assert len(listed) == len(by_hand) == 24  # no text has two derivations
    assert dict(listed) == pytest.approx(by_hand)

    grammar, uniform = Grammar(SMALL), random.Random(5).random
    drawn = [grammar.sample(uniform) for _ in range(24_000)]
    for tale in set(drawn):
        assert tale.log_prob == pytest.approx(math.log(by_hand[tale.text]), abs=1e-12)
    counts = Counter(tale.text for tale in drawn)
    for text, p in by_hand.items():  # and it happens that often
        expected = 24_000 * p
        assert counts[text] == pytest.approx(expected, abs=5 * math.sqrt(expected))


def test_the_parser_sees_an_ambiguity():
    rules = {
        "story": ["{friend} came.", "A wise owl came."],
        "friend": ["A {what} owl", "A cat"],
        "what": ["wise", "shy"],
    }
    assert sorted(parses("A wise owl came.", "{story}", rules)) == [1 / 8, 1 / 2]


def test_every_story_has_one_derivation_with_the_reported_probability():
    for tale in tales(seed=21, n=100):
        found = list(parses(tale.text, "{story}", RULES))
        assert len(found) == 1, tale.text
        assert math.log(found[0]) == pytest.approx(tale.log_prob, abs=1e-9)
    assert list(parses(tale.text + " The end.", "{story}", RULES)) == []


def test_more_than_a_thousand_million_stories(sample):
    number = number_of_stories()
    assert number > 10**9
    # The mean of 1 / p over drawn stories is their number, if every p is right.
    estimate = sum(math.exp(-tale.log_prob) for tale in sample) / len(sample)
    assert estimate == pytest.approx(number, rel=0.1)


def test_no_rule_is_written_twice():
    def once(pairs: list[tuple]) -> dict:
        assert len(pairs) == len(dict(pairs)), [name for name, _ in pairs]
        return dict(pairs)

    text = (CHAPTER / "tiny_tales.json").read_text(encoding="utf-8")
    assert json.loads(text, object_pairs_hook=once) == RULES


def test_length_and_vocabulary(sample):
    lengths = [len(tale.text.split()) for tale in sample]
    assert min(lengths) >= 40 and max(lengths) <= 120
    text = " ".join(tale.text for tale in sample).lower()
    words = set(re.findall(r"[a-z]+(?:'[a-z]+)*", text))
    assert words == KNOWN_WORDS  # and so no rule is dead
    assert 600 <= len(words) <= 1500
    assert -sum(tale.log_prob for tale in sample) / len(sample) >= 25


def test_many_plots_and_shapes_and_no_rare_option():
    assert len(PLOTS) >= 5
    for settings, friend, shapes in PLOTS:
        assert len(RULES[shapes]) >= 3
        for _, memory, p in options_of(settings, RULES):
            for _, _, p2 in options_of(friend, memory):
                assert p * p2 / len(PLOTS) >= 1 / 200


def test_pronouns_and_colours_agree(sample):
    for tale in sample:
        words = re.findall(r"\w+", tale.text)
        (name,) = {word for word in words if word in RULES["girl"] + RULES["boy"]}
        small = {word.lower() for word in words}
        assert (not small.isdisjoint(PRONOUNS["she"])) == (name in RULES["girl"])
        assert (not small.isdisjoint(PRONOUNS["he"])) == (name in RULES["boy"])
        colours = [word for word in words if word.lower() in RULES["colour"]]
        assert len(colours) >= 2 and len(set(colours)) == 1, tale.text


def test_spelling_and_punctuation(sample):
    wrong = [
        r"[{}\n]|\s\s|^\s|\s$| [.,!?]|[^\x00-\x7f]",
        r"(?i)\b(\w+) \1\b",
        r"(?i)\ba (?=[aeiou])|\ban (?![aeiou]|hour)",
        r'\w "\w',  # a comma or a full stop stands before speech
        r'^"?[^A-Z"]|[^.!?"]$|[^.!?]"$',
    ]
    for text, _ in sample:
        for pattern in wrong:
            assert not re.search(pattern, text), (pattern, text)
        assert text.count('"') % 2 == 0, text
        for end, start in re.findall(r'([.!?]"?) ("?\w)', text):
            tag_may_follow = end in ('!"', '?"')  # "Who?" asked the owl.
            assert start[-1].isupper() or tag_may_follow and start.islower(), text
        for speech in re.findall(r'"([^"]*)"', text):
            assert re.fullmatch(r"\w.*[.,!?]", speech), text


def test_same_seed_same_stories():
    text = "\n".join(tale.text for tale in tales(seed=0, n=100))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "22c6d947e299d7e62a96adaecaf97df0904c35b36ab6a1159a1dd22fdd9f9aa6"
    )
    endless = tales(seed=0)
    assert [next(endless) for _ in range(100)] == list(tales(seed=0, n=100))
    assert list(tales(seed=3, n=0)) == []


def test_neighbouring_seeds_share_nothing():
    # Two stories are equal with a probability of about e^-25.
    texts = [{tale.text for tale in tales(seed, 500)} for seed in range(10)]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 5000


def test_bad_input_is_named():
    with pytest.raises(ValueError):
        tales(seed=1, n=-1)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        tales(seed=-1)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"story": "The', "Unterminated string"),
        ("\xff", "codec can't decode"),
        ("3", "not iterable"),
        ("[]", "no rule for story"),
        ('{"story": "{Who} ran."}', "no rule for who"),
        ('{"story": []}', r"story must be a text or a list, got \[\]"),
        ('{"story": [{"who": 3}]}', "who must be a text or a list, got 3"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    path = tmp_path / "rules.json"
    with pytest.raises(FileNotFoundError, match="^" + re.escape(f"{path} is missing")):
        tiny_tales.read_grammar(path)
    path.write_text(text, encoding="latin-1")
    start = re.escape(f"{path} is damaged")
    with pytest.raises(ValueError, match=f"^{start}.*{message}"):
        tiny_tales.read_grammar(path)


class Characters:
    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(character) for character in text]


class OneToken:
    def encode_ordinary(self, text: str) -> list[int]:
        return [0]


def test_entropy_floor():
    floor = entropy_floor(Characters(), n=400)
    characters = sum(len(tale.text) for tale in tales(1_000_003, 400))
    factor = 400 / (characters + 400)  # the end of text is a token as well
    assert floor.nats_per_token == pytest.approx(floor.nats_per_story * factor)
    one_token = entropy_floor(OneToken(), n=400)
    assert one_token.nats_per_token == pytest.approx(floor.nats_per_story / 2)
    nats = -sum(tale.log_prob for tale in tales(1_000_003, 400))
    assert floor.nats_per_story == pytest.approx(nats / 400)

    one, other = tales(1_000_003, 2)
    by_hand = abs(one.log_prob - other.log_prob) / 2  # the error of a mean of two
    two = entropy_floor(OneToken(), n=2)
    assert two.nats_per_story_error == pytest.approx(by_hand)

    # The errors are as large as the spread over independent samples, which 40 of them
    # know to about 11 %.
    apart = [entropy_floor(Characters(), n=400, seed=seed) for seed in range(40)]
    for value, error in (0, 1), (2, 3):
        spread = statistics.stdev(one[value] for one in apart)
        assert floor[error] == pytest.approx(spread, rel=0.4)


def test_quality_of_tales_and_of_shuffled_words():
    texts = [tale.text for tale in tales(seed=31, n=2000)]
    assert quality(texts) == (1.0, 1.0, 1.0)

    rng = random.Random(0)
    pool = " ".join(texts).split()
    rng.shuffle(pool)
    words_left = iter(pool)
    shuffled = [" ".join(next(words_left) for _ in text.split()) for text in texts]
    words, pronouns, colours = quality(shuffled)
    assert words == 1.0  # they are still words ...
    assert pronouns < 0.2 and colours < 0.2  # ... but nobody tracks who and what
    letters = ["".join(rng.sample(text, len(text))) for text in texts[:200]]
    assert quality(letters).words < 0.3


@pytest.mark.parametrize(
    "texts, field, share",
    [
        (["Mia lost her red kite.", "Ben lost his sock."], "words", 8 / 9),
        (["The xqz owl sang."], "words", 3 / 4),
        (["Mia lost her kite.", "Ben lost her kite."], "pronouns", 1 / 2),
        (["Tom gave it to a girl. Then Mia came. She sang."], "pronouns", 0),
        (["Ben ran.", "Ben ran and he sang."], "pronouns", 1),  # the first: not counted
        (["She ran.", "Ben ran and he sang."], "pronouns", 1 / 2),  # no name: a failure
        (["An owl.", "Ben ran and he sang."], "pronouns", 1 / 2),
        (["A red kite. The kite was blue."], "colours", 0),
        (["Red, red.", "A red kite, a blue one.", "A red kite."], "colours", 1 / 2),
        ([], "words", 0),
        ([], "pronouns", 0),
        ([], "colours", 0),
    ],
)
def test_quality_by_hand(texts, field, share):
    assert getattr(quality(texts), field) == share


@pytest.mark.parametrize(
    "name, agree, others", [("Mia", "she", "he"), ("Ben", "he", "she")]
)
def test_every_pronoun_is_known(name, agree, others):
    assert quality(f"{name} {word}" for word in PRONOUNS[agree]).pronouns == 1
    wrong = [f"{name} and {agree} {word}" for word in PRONOUNS[others]]
    assert quality(wrong).pronouns == 0


def test_the_sample_beside_the_chapter():
    program = [sys.executable, "-m", "shared.support.tiny_tales"]
    printed = subprocess.check_output(program, text=True, encoding="utf-8")
    assert printed == (CHAPTER / "tiny_tales_sample.txt").read_text(encoding="utf-8")
    assert len(printed.strip().split("\n\n")) == 20
