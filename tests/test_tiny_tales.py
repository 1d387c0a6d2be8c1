"""Tiny Tales: probabilities against enumeration and parsing, and stories that hold together."""

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from shared import tiny_tales
from shared.tiny_tales import KNOWN_WORDS, RULES, Grammar, Tale, entropy_floor, quality, tales

PLOTS = [re.findall(r"{(\w+)}", plot) for plot in RULES["story"]]  # [settings, friend, shapes]
STRUCTURE = {"story", *(name for plot in PLOTS for name in plot)}  # these names are used once
PRONOUNS = {"she": "she her herself".split(), "he": "he his him himself".split()}


@pytest.fixture(scope="module")
def sample() -> list[Tale]:
    return list(tales(seed=11, n=20_000))


# A second implementation of the rules, which shares nothing with the module but the data: it lists
# every way to fill a template, where the module draws one.


def parts_of(template: str) -> tuple[str, str, str]:
    """Return the text before the first name, the name ("" if there is none), and the rest."""
    before, _, rest = template.partition("{")
    name, _, after = rest.partition("}")
    return before, name, after


def options_of(name: str, bound: Mapping) -> list[tuple[str, dict, float]]:
    """Return (template, memory, probability) for every option that `name` has."""
    options = bound[name] if isinstance(bound[name], list) else [bound[name]]
    records = [option if isinstance(option, dict) else {"text": option} for option in options]
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
    """Count the fillings of `template`, by the set of names that are told afterwards."""
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
    for name, he, p_name in ("Ann", "she", 1 / 4), ("Eve", "she", 1 / 4), ("Ben", "he", 1 / 2):
        by_hand[f"{name} ran. {he.capitalize()} fell, and {he} cried."] = p_name / 6
        by_hand[f"{name} ran. The end."] = p_name / 6
        for pet, p_pet in ("a big dog", 1 / 4), ("a small dog", 1 / 4), ("an owl", 1 / 2):
            big = "A" + pet[1:]
            by_hand[f"{name} ran. {big} barked at {name}, as {pet} will."] = p_name * p_pet / 6
            by_hand[f"{big} saw {name}. {he.capitalize()} hid."] = p_name * p_pet / 2
    assert sum(by_hand.values()) == pytest.approx(1, abs=1e-12)
    listed = [(text, p) for text, _, p in fillings("{story}", SMALL)]
    assert len(listed) == len(dict(listed)) == len(by_hand) == 24  # no text has two derivations
    assert dict(listed) == pytest.approx(by_hand)

    grammar, uniform = Grammar(SMALL), random.Random(5).random
    drawn = [grammar.sample(uniform) for _ in range(24_000)]
    assert {tale.text for tale in drawn} == set(by_hand)
    for tale in set(drawn):
        assert tale.log_prob == pytest.approx(math.log(by_hand[tale.text]), abs=1e-12)
    for text, n in Counter(tale.text for tale in drawn).items():  # and it happens that often
        assert n == pytest.approx(24_000 * by_hand[text], abs=5 * math.sqrt(24_000 * by_hand[text]))


def test_the_parser_sees_an_ambiguity():
    rules = {"story": ["{friend} came.", "A wise owl came."], "friend": ["A {what} owl", "A cat"]}
    rules["what"] = ["wise", "shy"]
    assert sorted(p for text, _, p in fillings("{story}", rules) if "wise" in text) == [
        1 / 8,
        1 / 2,
    ]
    assert sorted(parses("A wise owl came.", "{story}", rules)) == [1 / 8, 1 / 2]


def test_every_story_has_one_derivation_with_the_reported_probability():
    for tale in tales(seed=21, n=150):
        found = list(parses(tale.text, "{story}", RULES))
        assert len(found) == 1, tale.text
        assert math.log(found[0]) == pytest.approx(tale.log_prob, abs=1e-9)
    assert list(parses(tale.text + " The end.", "{story}", RULES)) == []


def test_more_than_a_thousand_million_stories(sample):
    number = number_of_stories()
    assert number > 10**9
    # The mean of 1 / p over drawn stories is the number of stories, if every p is right.
    estimate = sum(math.exp(-tale.log_prob) for tale in sample) / len(sample)
    assert estimate == pytest.approx(number, rel=0.1)


def test_length_and_vocabulary(sample):
    lengths = [len(tale.text.split()) for tale in sample]
    assert min(lengths) >= 40 and max(lengths) <= 120
    words = {w for tale in sample for w in re.findall(r"[a-z]+(?:'[a-z]+)*", tale.text.lower())}
    assert words == KNOWN_WORDS  # and so no rule is dead
    assert 600 <= len(words) <= 1500
    assert -sum(tale.log_prob for tale in sample) / len(sample) >= 25


def test_every_plot_and_shape_is_told():
    told = Counter(tale.text for tale in tales(seed=41, n=400))
    assert len(PLOTS) >= 5
    for settings, friend, shapes in PLOTS:
        assert len(RULES[shapes]) >= 3
        for shape in RULES[shapes]:
            only = {**RULES, "story": ["{" + "}{".join([settings, friend, shapes]) + "}"]}
            only[shapes] = [shape]
            found = sum(len(list(parses(text, "{story}", only))) for text in told)
            assert 2 <= found <= 40, shape  # 400 / 28 is 14


def test_no_option_is_rare():
    p_rarest = 1.0
    for settings, friend, _ in PLOTS:
        for _, memory, p in options_of(settings, RULES):
            p_rarest = min(p_rarest, *(p * p2 for _, _, p2 in options_of(friend, memory)))
    assert p_rarest / len(PLOTS) >= 1 / 200


def test_nothing_is_bound_twice():
    groups = (value for name, value in vars(tiny_tales).items() if name in "SHARED LOST MENDED "
              "AFRAID PRESENT RACE LONELY ERRAND".split())  # fmt: skip
    assert sum(map(len, groups)) == len(RULES)  # no plot overwrites another's rule


def test_pronouns_and_colours_agree(sample):
    for tale in sample:
        words = re.findall(r"\w+", tale.text)
        names = [word for word in words if word in RULES["girl"] + RULES["boy"]]
        assert len(set(names)) == 1, tale.text
        she, he = (any(w.lower() in PRONOUNS[sex] for w in words) for sex in ("she", "he"))
        assert (she, he) == (names[0] in RULES["girl"], names[0] in RULES["boy"]), tale.text
        colours = [word for word in words if word.lower() in RULES["colour"]]
        assert len(colours) >= 2 and len(set(colours)) == 1, tale.text


def test_spelling_and_punctuation(sample):
    for text, _ in sample:
        assert text.isascii() and not re.search(r"[{}\n]|\s\s|^\s|\s$| [.,!?]", text), text
        assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), text
        assert not re.search(r"\ba (?=[aeiou])|\ban (?![aeiou]|hour)", text, re.IGNORECASE), text
        assert text.count('"') % 2 == 0 and re.search(r'[.!?]"?$', text), text
        assert re.match(r'"?[A-Z]', text), text
        for end, start in re.findall(r'([.!?]"?) ("?\w)', text):
            tag_may_follow = end in ('!"', '?"') and start.islower()  # "Who?" asked the owl.
            assert start[-1].isupper() or tag_may_follow, text
        assert not re.search(r'\w "\w', text), text  # a comma or a full stop before speech
        for speech in re.findall(r'"([^"]*)"', text):
            assert speech[-1] in ".,!?" and re.match(r"\w", speech), text


def test_same_seed_same_stories():
    text = "\n".join(tale.text for tale in tales(seed=0, n=100))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "22c6d947e299d7e62a96adaecaf97df0904c35b36ab6a1159a1dd22fdd9f9aa6"
    )
    endless = tales(seed=0)
    assert [next(endless) for _ in range(100)] == list(tales(seed=0, n=100))
    assert list(tales(seed=3, n=0)) == []


def test_neighbouring_seeds_share_nothing():
    # Two stories are equal with probability sum of p^2, about e^-25: chance gives none in 10^6.
    texts = [{tale.text for tale in tales(seed, 500)} for seed in range(10)]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 5000


def test_bad_input_is_named():
    with pytest.raises(ValueError):
        tales(seed=1, n=-1)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        tales(seed=-1)
    for rules, message in (
        ({"story": "{who} ran."}, "no rule for who"),
        ({"tale": "The end."}, "no rule for story"),
    ):
        with pytest.raises(ValueError, match=message):
            Grammar(rules)


class Characters:
    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(character) for character in text]


class OneToken:
    def encode_ordinary(self, text: str) -> list[int]:
        return [0]


def test_entropy_floor():
    floor = entropy_floor(Characters(), n=400)
    characters = [len(tale.text) for tale in tales(1_000_003, 400)]
    factor = sum(characters) / (sum(characters) + 400)  # the end of text is a token as well
    assert floor.nats_per_token == pytest.approx(floor.nats_per_character * factor)
    assert entropy_floor(OneToken(), n=400).nats_per_token == pytest.approx(
        floor.nats_per_story / 2
    )

    # The errors: as large as the spread over independent samples, and smaller for larger ones.
    apart = [entropy_floor(Characters(), n=400, seed=seed) for seed in range(60)]
    for value, error in (0, 1), (2, 3), (4, 5):
        values = [one[value] for one in apart]
        mean = sum(values) / 60
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 59)
        assert floor[error] == pytest.approx(spread, rel=0.4)  # 60 samples know it to about 9 %
        assert entropy_floor(Characters(), n=6400)[error] == pytest.approx(
            floor[error] / 4, rel=0.2
        )


def test_quality_of_tales_and_of_shuffled_words():
    texts = [tale.text for tale in tales(seed=31, n=2000)]
    assert quality(texts) == (1.0, 1.0, 1.0)

    rng = random.Random(0)
    pool = [word for text in texts for word in text.split()]
    rng.shuffle(pool)
    position, shuffled = 0, []
    for text in texts:
        n = len(text.split())
        shuffled.append(" ".join(pool[position : position + n]))
        position += n
    words, pronouns, colours = quality(shuffled)
    assert words == 1.0  # they are still words ...
    assert pronouns < 0.2 and colours < 0.2  # ... but nobody keeps track of who and what
    letters = ["".join(rng.sample(text, len(text))) for text in texts[:200]]
    assert quality(letters).words < 0.3


def test_quality_by_hand():
    assert quality(["Mia lost her red kite.", "Ben lost her red kite. The kite was blue."]) == (
        1.0, 1 / 2, 0.0,
    )  # fmt: skip
    assert quality(["Tom gave the girl a kite. Then Mia came. She was red, red."]).pronouns == 0
    assert quality(["Ben ran.", "Ben ran and he sang."]).pronouns == 1  # no pronoun: not counted
    assert quality(["She ran.", "Ben ran and he sang."]).pronouns == 1 / 2  # no name: a failure
    assert quality(["The xqz owl sang."]).words == 3 / 4
    assert quality([]) == (0, 0, 0)


def test_the_sample_beside_the_chapter(capsys):
    sample = Path(__file__).parent.parent / "ch05_pretraining" / "tiny_tales_sample.txt"
    tiny_tales.main([])
    printed = capsys.readouterr().out
    assert sample.read_text(encoding="utf-8") == printed
    assert len(printed.strip().split("\n\n")) == 20
    tiny_tales.main(["2", "--seed", "7"])
    assert capsys.readouterr().out == "\n\n".join(t.text for t in tales(7, 2)) + "\n"
