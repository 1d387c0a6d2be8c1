"""Tiny Tales: an endless corpus of children's stories, told by a small grammar that
knows how probable each of its stories is, so that the lowest loss any model can reach
on it is known.

Written by hand. `python -m shared.tiny_tales` prints twenty stories, those that are
kept in ch05_pretraining/tiny_tales_sample.txt; `python -m shared.tiny_tales 5 --seed 7`
prints five others.

How the grammar works. A template is a text with names in braces: "{name} lost {his}
{object}." A name stands for a template, or for a list of options, of which one is
chosen, each with the same probability. An option is a template, or a record: a
dictionary that fixes further names, with its own template under "text" (nothing if it
has none). What a name stands for is chosen once in a story and remembered, so {colour}
is the same colour to the end; {Object} is {object} with a capital. No two ways through
the rules lead to the same story, so the probability of a story is the product of the
probabilities of its choices.
"""

import argparse
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import NamedTuple

__all__ = [
    "Tale",
    "Grammar",
    "RULES",
    "tales",
    "EntropyFloor",
    "entropy_floor",
    "Quality",
    "quality",
    "KNOWN_WORDS",
]

# The data from here to the engine is all that a model has to learn. A plot has settings
# (where, what, what goes wrong, who can help and how) and shapes, the orders in which
# it can be told.

SHARED = {
    "story": [
        "{lost_thing}{friend}{lost}",
        "{torn_thing}{friend}{mended}",
        "{fear}{friend}{afraid}",
        "{gift}{friend}{present}",
        "{contest}{friend}{race}",
        "{game}{friend}{lonely}",
        "{road}{friend}{errand}",
    ],
    "name": [
        {"text": "{girl}", "he": "she", "his": "her", "him": "her", "self": "herself"},
        {"text": "{boy}", "he": "he", "his": "his", "him": "him", "self": "himself"},
    ],
    "girl": [
        "Anna", "Mia", "Lily", "Rosa", "Clara", "Nora",
        "Ella", "Ida", "Lucy", "Maya", "Zoe", "Tess",
    ],
    "boy": [
        "Ben", "Tom", "Max", "Leo", "Finn", "Sam",
        "Oscar", "Hugo", "Theo", "Jack", "Noah", "Emil",
    ],
    "colour": [
        "red", "blue", "green", "yellow", "purple",
        "pink", "white", "brown", "silver", "golden",
    ],
    "when": ["One morning", "One Saturday", "One afternoon", "One Sunday", "One Friday"],
    "giver": [
        "The {colour} {object} came from {his} grandma.",
        "The {colour} {object} came from {his} uncle.",
        "The {colour} {object} was {his} favourite thing.",
        "{He} took the {colour} {object} everywhere.",
        "The {colour} {object} was a birthday present.",
    ],
    "trait": ["kind", "friendly", "clever", "cheerful", "gentle", "wise"],
    "sad": [
        "{He} felt like crying.",
        "A tear ran down {his} cheek.",
        "{He} sat down and sighed.",
        "{name} bit {his} lip.",
        "{His} heart grew heavy.",
    ],
    "come": [
        "Just then a {trait} {helper} came along.",
        "Luckily a {trait} {helper} was close by.",
        "Up came a {trait} {helper}.",
        "Before long a {trait} {helper} stopped beside {him}.",
    ],
    "ask": [
        '"What is the matter?" asked the {helper}.',
        '"Why are you so sad?" asked the {helper}.',
        '"Can I help you?" asked the {helper}.',
        '"Tell me what is wrong," said the {helper}.',
    ],
    "plea": '"{trouble_is}," {answered} {name}.',
    "answered": ["said", "answered", "whispered", "explained"],
    "calm": [
        '"Leave it to me," said the {helper}.',
        '"Do not worry," said the {helper}.',
        '"We can put that right," said the {helper}.',
        "The {helper} thought for a moment.",
        "The {helper} smiled and nodded.",
    ],
    "promise": [  # for a helper who has not been told what is wrong
        '"Let me help you," said the {helper}.',
        '"Leave it to me," said the {helper}.',
        '"Do not be sad," said the {helper}.',
        '"That is easy to put right," said the {helper}.',
    ],
    "thanks": [
        '"Thank you!" cried {name}.',
        '"You are a true friend!" said {name}.',
        "{name} laughed and clapped {his} hands.",
        "{name} was so happy that {he} danced.",
        "{name} gave the {helper} a big hug.",
    ],
    "snack": [
        "an apple",
        "a biscuit",
        "a slice of cake",
        "a handful of berries",
        "half a sandwich",
    ],
    "but": ["But", "But suddenly", "All at once", "Then, oh dear,"],
    "had": "",  # a shape that looks back binds it to "had "
}  # fmt: skip

LOST = {  # something is lost, and found again
    "lost": [
        "{when} {name} took {his} {colour} {object} to {place}. {giver} {He} wanted to {wish}. "
        "{but} {gone}. {sad} {come} {ask} {plea} {calm} Then the {helper} {found}. {thanks} {kept}",
        "{scene} {name} had come with {his} {colour} {object} to {wish}. {giver} {but} {gone}. "
        "{come} {ask} {plea} {calm} Then the {helper} {found}. {thanks} {kept}",
        {
            "text": '"My {colour} {object} is gone!" cried {name}. {He} had come to {place} to '
            "{wish}, but {gone}. {giver} {sad} {come} {promise} Then the {helper} {found}. "
            "{thanks} {kept}",
            "had": "had ",
        },
        {
            "text": "At bedtime {name} put {his} {colour} {object} beside the pillow. What a day "
            "it had been! {He} had gone to {place} to {wish}, but {gone}. {sad} {come} {ask} "
            "{plea} {calm} Then the {helper} {found}. {night}",
            "had": "had ",
        },
    ],
    "kept": [
        "{He} held the {colour} {object} tight all the way home.",
        "Now {he} could {wish} after all, and the {helper} stayed to watch.",
        "From then on {he} took good care of the {colour} {object}.",
        "They shared {snack}, with the {colour} {object} safe between them.",
        "And the {colour} {object} was never lost again.",
    ],
    "night": [
        '"Good night, {helper}," {name} said softly, and touched the {colour} {object} once more.',
        "Now the {colour} {object} was safe, and {name} dreamed of the {trait} {helper}.",
        "{name} smiled and fell asleep with one hand on the {colour} {object}.",
        '"Tomorrow I will take {snack} to the {helper}," {name} thought, and fell asleep.',
    ],
    "lost_thing": [
        {
            "place": "the beach", "object": "bucket",
            "scene": ["Gulls called above the beach.", "The waves rolled up the beach."],
            "wish": ["build a castle of sand", "look for shells"],
            "gone": [
                "a big wave {had}pulled the {colour} {object} out to sea",
                "the tide {had}carried the {colour} {object} away",
            ],
            "trouble_is": "The sea has taken my {colour} {object}",
            "friend": [
                {"helper": "crab",
                 "found": "ran into the waves and came back with the {colour} {object}"},
                {"helper": "seal",
                 "found": "dived deep and came up with the {colour} {object} on its nose"},
            ],
        },
        {
            "place": "the windy hill", "object": "kite",
            "scene": ["The wind sang on the hill.", "The grass on the hill bent in the wind."],
            "wish": ["see the {object} dance", "fly the {object} up to the clouds"],
            "gone": [
                "the string {had}slipped from {his} hand",
                "a gust {had}carried the {colour} {object} over the trees",
            ],
            "trouble_is": "The wind has stolen my {colour} {object}",
            "friend": [
                {"helper": "owl",
                 "found": "flew over the trees and came back with the {colour} {object}"},
                {"helper": "squirrel",
                 "found": "climbed the tallest tree and brought the {colour} {object} down"},
            ],
        },
        {
            "place": "the pond", "object": "boat",
            "scene": ["The pond was as smooth as glass.", "Dragonflies danced over the pond."],
            "wish": ["sail the {object} to the other side", "play captain"],
            "gone": [
                "the {colour} {object} {had}drifted into the tall reeds",
                "the string {had}snapped, and the {colour} {object} was nowhere to be seen",
            ],
            "trouble_is": "My {colour} {object} has sailed away without me",
            "friend": [
                {"helper": "duck",
                 "found": "swam into the reeds and pushed the {colour} {object} back"},
                {"helper": "frog",
                 "found": "jumped into the reeds and pulled the {colour} {object} out"},
            ],
        },
        {
            "place": "the forest", "object": "rucksack",
            "scene": ["Leaves rustled in the forest.", "The forest smelled of moss."],
            "wish": ["pick mushrooms", "look for acorns"],
            "gone": [
                "the {colour} {object} {had}vanished among the ferns",
                "the {colour} {object} {had}vanished under the falling leaves",
            ],
            "trouble_is": "I cannot find my {colour} {object} anywhere",
            "friend": [
                {"helper": "deer",
                 "found": "followed the path back and found the {colour} {object}"},
                {"helper": "fox",
                 "found": "sniffed the ground and dug out the {colour} {object}"},
            ],
        },
        {
            "place": "the market", "object": "basket",
            "scene": ["The market was full of people.", "A band was playing at the market."],
            "wish": ["buy plums", "look at the ponies"],
            "gone": [
                "the {colour} {object} {had}disappeared between two stalls",
                "the {colour} {object} {had}disappeared while {he} listened to the music",
            ],
            "trouble_is": "Somebody must have moved my {colour} {object}",
            "friend": [
                {"helper": "baker",
                 "found": "found the {colour} {object} under the bread table"},
                {"helper": "dog",
                 "found": "ran from stall to stall and barked beside the {colour} {object}"},
            ],
        },
        {
            "place": "the snowy field", "object": "spade",
            "scene": ["Snow lay deep on the field.", "The field sparkled with frost."],
            "wish": ["build a snowman", "build a house of snow"],
            "gone": [
                "the {colour} {object} {had}slipped into the deep snow",
                "snow {had}dropped from a branch and covered the {colour} {object}",
            ],
            "trouble_is": "My {colour} {object} is somewhere under the snow",
            "friend": [
                {"helper": "robin",
                 "found": "hopped over the snow and found the {colour} {object} at last"},
                {"helper": "hare", "found": "dug in the snow and pulled out the {colour} {object}"},
            ],
        },
        {
            "place": "the garden", "object": "ball",
            "scene": ["Bees hummed in the garden.", "The garden smelled of roses."],
            "wish": ["practise goals", "throw the {colour} {object} up high"],
            "gone": [
                "the {colour} {object} {had}rolled deep into the thorny hedge",
                "the {colour} {object} {had}bounced into the middle of the hedge",
            ],
            "trouble_is": "My {colour} {object} is stuck in the hedge",
            "friend": [
                {"helper": "hedgehog",
                 "found": "crept into the hedge and rolled the {colour} {object} out"},
                {"helper": "gardener",
                 "found": "took a long rake and pulled the {colour} {object} out"},
            ],
        },
        {
            "place": "the meadow", "object": "whistle",
            "scene": ["The meadow was full of flowers.", "Crickets sang in the meadow."],
            "wish": ["pick flowers", "call the goats"],
            "gone": [
                "the {colour} {object} {had}slipped through a hole in {his} pocket",
                "the {colour} {object} {had}dropped into the long grass",
            ],
            "trouble_is": "My {colour} {object} is lost in the grass",
            "friend": [
                {"helper": "magpie",
                 "found": "flew low over the grass and picked up the {colour} {object}"},
                {"helper": "mole",
                 "found": "dug up half the meadow until it found the {colour} {object}"},
            ],
        },
    ],
}  # fmt: skip

MENDED = {  # something breaks, and is mended
    "mended": [
        "{name} was {age} years old and had a {colour} {object}. {giver} {when} {he} wanted to "
        "{wish}. {but} {broke}. {sad} {seek} {ask} {plea} {calm} Then the {helper} {fixed}. "
        "{thanks} {again}",
        {
            "text": '"Oh no, my {colour} {object}!" cried {name}. {He} had wanted to {wish}, but '
            "{broke}. {giver} {sad} {seek} {promise} Then the {helper} {fixed}. {thanks} {again}",
            "had": "had ",
        },
        {
            "text": "In {village} lived a {trait} {helper} who could mend almost anything. "
            "{when} {name} knocked at the door with {his} {colour} {object}. {ask} {plea} {He} "
            "had wanted to {wish}, but {broke}. {calm} Then the {helper} {fixed}. {thanks} "
            "{again}",
            "had": "had ",
        },
        {
            "text": "There is a story about the {colour} {object} that belongs to {name}. {when} "
            "{he} had wanted to {wish}, but {broke}. {sad} {seek} {ask} {plea} So the {helper} "
            "{fixed}. {thanks} {again}",
            "had": "had ",
        },
    ],
    "age": ["five", "six", "seven", "eight"],
    "village": ["a small village", "a crooked house", "a busy street", "a house by the mill"],
    "seek": [
        "{name} took the {colour} {object} to a {trait} {helper}.",
        "At last {he} went to see a {trait} {helper}.",
        "So {name} ran to a {trait} {helper} nearby.",
    ],
    "again": [
        "Soon {joy}, and {name} sang a song.",
        "Before the sun went down, {joy}.",
        "The {colour} {object} was better than before, and now {he} could {wish}.",
        '"My {colour} {object} is the best in the world," said {name}.',
        "{name} paid with {snack}, and then {joy}.",
    ],
    "torn_thing": [
        {
            "object": "kite",
            "wish": ["fly it over the roofs", "show it to {his} cousins"],
            "broke": ["a thorn {had}ripped a hole in the {colour} {object}",
                      "a branch {had}poked a hole in the {colour} {object}"],
            "trouble_is": "There is a hole in my {colour} {object}",
            "joy": "the {colour} {object} danced above the roofs",
            "friend": [
                {"helper": "spider",
                 "fixed": "spun a net of strong thread across the hole"},
                {"helper": "tailor", "fixed": "sewed a neat patch over the hole"},
            ],
        },
        {
            "object": "cart",
            "wish": ["take {his} cat for a ride", "carry pumpkins to the market"],
            "broke": ["a wheel {had}cracked on a stone", "a wheel {had}dropped off on the hill"],
            "trouble_is": "My {colour} {object} needs a new wheel",
            "joy": "the {colour} {object} rattled down the lane",
            "friend": [
                {"helper": "blacksmith", "fixed": "made a strong new wheel of iron"},
                {"helper": "carpenter", "fixed": "cut a fine new wheel out of oak"},
            ],
        },
        {
            "object": "boat",
            "wish": ["sail it down the stream", "sail it to the island"],
            "broke": ["a sharp rock {had}knocked a hole in the {colour} {object}",
                      "a cross swan {had}pecked a hole in the {colour} {object}"],
            "trouble_is": "Water is running into my {colour} {object}",
            "joy": "the {colour} {object} bobbed on the water",
            "friend": [
                {"helper": "fisherman", "fixed": "closed the hole with warm tar"},
                {"helper": "beaver",
                 "fixed": "closed the hole with a smooth piece of wood"},
            ],
        },
        {
            "object": "drum",
            "wish": ["play it in the parade", "wake the whole house with it"],
            "broke": ["the {colour} {object} {had}tumbled down the stairs and cracked",
                      "a goat {had}stepped on the {colour} {object} and cracked it"],
            "trouble_is": "There is a crack in my {colour} {object}",
            "joy": "the {colour} {object} boomed through the street",
            "friend": [
                {"helper": "shoemaker",
                 "fixed": "glued a piece of soft leather over the crack"},
                {"helper": "carpenter", "fixed": "filled the crack with thick glue"},
            ],
        },
        {
            "object": "train",
            "wish": ["drive it around the kitchen", "send {his} teddy bear on a trip"],
            "broke": ["a spring inside the {colour} {object} {had}snapped",
                      "the {colour} {object} {had}crashed into the wall, and a spring was bent"],
            "trouble_is": "My {colour} {object} will not move",
            "joy": "the {colour} {object} puffed across the floor",
            "friend": [
                {"helper": "clockmaker", "fixed": "put in a tiny new spring"},
                {"helper": "mouse",
                 "fixed": "crept inside and hooked a new spring in place"},
            ],
        },
        {
            "object": "coat",
            "wish": ["wear it to a party", "wear it to the theatre"],
            "broke": ["a nail {had}ripped a sleeve", "the puppy {had}chewed off a button"],
            "trouble_is": "Look what has happened to my {colour} {object}",
            "joy": "the {colour} {object} hung on its hook, as good as new",
            "friend": [
                {"helper": "seamstress",
                 "fixed": "took a needle and thread and made everything neat"},
                {"helper": "wren",
                 "fixed": "pulled a thread in and out with its beak until all was well"},
            ],
        },
    ],
}  # fmt: skip

AFRAID = {  # somebody is afraid, and grows brave
    "afraid": [
        "{name} was afraid of {dread}, but {he} wanted to {wish}. {time} {he} {start}. {but} "
        "{scare}. {shake} {come} {worry} {confess} {wise} Then the {helper} {help}. {calmer} "
        "{proud}",
        '"I am not brave enough," {sighed} {name}. {He} wanted to {wish}, but {he} was afraid of '
        "{dread}. {time} {he} {start} all the same. {but} {scare}. {shake} {come} {wise} And the "
        "{helper} {help}. {calmer} {proud}",
        "{name} is not afraid of {dread} any more, and this is why. {time} {he} {start}, for {he} "
        "wanted to {wish}. {but} {scare}. {shake} {come} {worry} {confess} {wise} So the {helper} "
        "{help}. {calmer} {proud}",
        "{scene} {name} {start}, for {he} wanted to {wish}. {but} {scare}. {He} had always been "
        "afraid of {dread}. {shake} {come} {wise} Then the {helper} {help}. {calmer} {proud}",
    ],
    "sighed": ["said", "sighed", "whispered"],
    "shake": [
        "{His} knees began to shake.",
        "{His} heart beat fast.",
        "{name} shut {his} eyes.",
        "{name} held {his} breath.",
        '"Oh no!" cried {name}.',
    ],
    "worry": [
        '"What is the matter?" asked the {helper}.',
        '"Are you all right?" asked the {helper}.',
        '"Did something frighten you?" asked the {helper}.',
    ],
    "confess": '"I am afraid of {dread}," {answered} {name}.',
    "wise": [
        '"Everybody is afraid sometimes," said the {helper}.',
        '"You are braver than you think," said the {helper}.',
        '"We will do it together," said the {helper}.',
        '"I was afraid once, too," said the {helper}.',
    ],
    "calmer": [
        "{name} took a deep breath.",
        "Slowly {name} began to smile.",
        "Little by little the fear went away.",
        "{name} counted to ten, and the fear was gone.",
        "{name} felt warm and strong again.",
    ],
    "proud": [
        "Then {he} {did}.",
        '"I am not afraid now," said {name}, and {he} {did}.',
        '"You see?" said the {helper}, and {name} {did}.',
        "And thanks to the {trait} {helper}, {name} {did}.",
    ],
    "fear": [
        {
            "dread": "the dark", "object": "lantern",
            "time": ["One evening", "One summer night"],
            "scene": ["Night fell over the garden.", "The moon rose over the garden."],
            "wish": ["sleep in the tent", "watch the stars"],
            "start": "crept into the tent with a {colour} {object}",
            "scare": ["the {colour} {object} flickered and went out",
                      "a puff of wind blew the {colour} {object} out"],
            "did": "stayed there until morning with the {colour} {object}",
            "friend": [
                {"helper": "firefly", "help": "sat down in the {colour} {object} and made it glow"},
                {"helper": "watchman", "help": "lit the {colour} {object} with a match"},
            ],
        },
        {
            "dread": "thunder", "object": "blanket",
            "time": ["One stormy night", "One rainy night"],
            "scene": ["Rain drummed on the roof.", "Dark clouds hung over the house."],
            "wish": ["sleep without a light", "be as brave as a lion"],
            "start": "climbed into bed with a {colour} {object}",
            "scare": ["a crash of thunder shook the window", "thunder rolled over the roof"],
            "did": "slept until the storm was over, wrapped in the {colour} {object}",
            "friend": [
                {"helper": "cat",
                 "help": "crawled under the {colour} {object} and purred louder than the storm"},
                {"helper": "dog",
                 "help": "curled up on the {colour} {object} and snored louder than the storm"},
            ],
        },
        {
            "dread": "deep water", "object": "swimming ring",
            "time": ["One hot day", "One summer morning"],
            "scene": ["The summer sun was hot.", "Swallows flew low over the water."],
            "wish": ["swim to the raft", "swim like a fish"],
            "start": "waded into the lake with a {colour} {object}",
            "scare": ["a wave splashed into {his} face", "{his} foot slipped on a stone"],
            "did": "paddled to the raft in the {colour} {object}",
            "friend": [
                {"helper": "otter", "help": "pushed the {colour} {object} gently from behind"},
                {"helper": "lifeguard",
                 "help": "held the {colour} {object} and counted every kick"},
            ],
        },
        {
            "dread": "big crowds", "object": "hat",
            "time": ["One evening", "One winter evening"],
            "scene": ["The hall was full of people.", "The curtain went up in the school hall."],
            "wish": ["sing in the concert", "sing for the whole school"],
            "start": "put on a {colour} {object} and stepped onto the stage",
            "scare": ["not one note would come out", "{his} voice got stuck in {his} throat"],
            "did": "sang every verse and waved the {colour} {object}",
            "friend": [
                {"helper": "pianist", "help": "played the first notes once more"},
                {"helper": "cricket",
                 "help": "hopped onto the {colour} {object} and chirped the first notes"},
            ],
        },
        {
            "dread": "falling", "object": "bike",
            "time": ["One morning", "One spring day"],
            "scene": ["The street was wide and quiet.", "It was a fine day for a ride."],
            "wish": ["ride to school", "ride around the park"],
            "start": "climbed onto a {colour} {object}",
            "scare": ["the {colour} {object} wobbled and tipped over",
                      "the {colour} {object} hit a stone and fell over"],
            "did": "rode the {colour} {object} all by {self}",
            "friend": [
                {"helper": "postman", "help": "held the saddle and ran beside the {object}"},
                {"helper": "neighbour",
                 "help": "picked up the {colour} {object} and held it steady"},
            ],
        },
        {
            "dread": "the forest", "object": "bell",
            "time": ["One afternoon", "One autumn day"],
            "scene": ["The trees stood close together.", "Mist hung between the tall trees."],
            "wish": ["see the waterfall", "find the hidden meadow"],
            "start": "walked into the forest with a {colour} {object}",
            "scare": ["something rustled in the leaves", "a twig snapped in the bushes"],
            "did": "walked on and rang the {colour} {object} at every tree",
            "friend": [
                {"helper": "badger",
                 "help": "looked behind every bush and found only a sleepy mouse"},
                {"helper": "woodcutter",
                 "help": "rang the {colour} {object}, and out hopped a tiny rabbit"},
            ],
        },
    ],
}  # fmt: skip

PRESENT = {  # a present is to be made, and something goes wrong
    "present": [
        "{when} {name} began to {make} a {colour} {object} for {whom}. {secret} {but} "
        "{trouble}. {sad} {come} {ask} {plea} {calm} Then the {helper} {help}. {ready} {given}",
        '"Do not peep!" called {name}. {He} was going to {make} a {colour} {object} for '
        "{whom}. {secret} {but} {trouble}. {come} {ask} {plea} {calm} Then the {helper} {help}. "
        "{thanks} {ready} {given}",
        "{scene} {name} wanted to {make} a {colour} {object} for {whom}. {secret} {but} "
        "{trouble}. {sad} {come} {promise} Then the {helper} {help}. {thanks} {ready} {given}",
        {
            "text": '"Did you {make} this {object} all by yourself?" people asked {name}. '
            "{name} shook {his} head and told them the story. {He} had wanted to give {whom} a "
            "{colour} {object}, but {trouble}. {sad} {come} {ask} {plea} So the {helper} {help}. "
            "{ready} {given}",
            "had": "had ",
        },
    ],
    "whom": [
        "{his} grandma", "{his} grandpa", "{his} mum",
        "{his} dad", "{his} teacher", "{his} little sister",
    ],
    "secret": [
        "It was to be a birthday present.",
        "It was to be a big surprise.",
        "It had to be ready before supper.",
        "Nobody else knew about it.",
    ],
    "ready": [
        "In no time the {colour} {object} was ready.",
        "The rest was easy, and soon the {colour} {object} was ready.",
        "An hour later the {colour} {object} was ready.",
        "After that everything went well.",
    ],
    "given": [
        "{Whom} {used}.",
        '"What a wonderful {object}!" said {whom}, and {used}.',
        "There were hugs and kisses, and {whom} {used}.",
        '"You made this for me?" asked {whom}, and {used}.',
    ],
    "gift": [
        {
            "object": "scarf", "make": "knit",
            "scene": ["Balls of wool lay on the floor.", "There was wool on every chair."],
            "used": "wore the {colour} {object} all winter",
            "friend": [
                {"helper": "spider",
                 "trouble": "the kitten {had}tangled all the wool",
                 "trouble_is": "The wool is one big knot", "help": "pulled every knot apart"},
                {"helper": "weaver", "trouble": "moths {had}nibbled holes in the wool",
                 "trouble_is": "The moths have spoiled my wool",
                 "help": "brought a basket of fresh wool"},
            ],
        },
        {
            "object": "birdhouse", "make": "build",
            "scene": ["There was sawdust all over the shed.", "A hammer lay ready in the shed."],
            "used": "hung the {colour} {object} in the old pear tree",
            "friend": [
                {"helper": "carpenter", "trouble": "the hammer {had}cracked the roof",
                 "trouble_is": "I have broken the roof", "help": "sawed a new roof in a minute"},
                {"helper": "woodpecker",
                 "trouble": "all the nails {had}rolled down a crack in the floor",
                 "trouble_is": "My nails are gone", "help": "tapped in wooden pegs instead"},
            ],
        },
        {
            "object": "necklace", "make": "thread",
            "scene": ["Beads glittered on the table.", "A bag of beads lay on the table."],
            "used": "wore the {colour} {object} to the party",
            "friend": [
                {"helper": "mouse",
                 "trouble": "all the beads {had}rolled under the cupboard",
                 "trouble_is": "I cannot reach the beads",
                 "help": "fetched the beads one by one"},
                {"helper": "fisherman", "trouble": "the thread {had}snapped three times",
                 "trouble_is": "My thread is too weak",
                 "help": "brought a thread that no shark could break"},
            ],
        },
        {
            "object": "cushion", "make": "sew",
            "scene": ["Scraps of cloth covered the table.", "A needle and thread lay ready."],
            "used": "took a long nap on the {colour} {object}",
            "friend": [
                {"helper": "goose", "trouble": "the puppy {had}scattered all the feathers",
                 "trouble_is": "I have no feathers to fill it",
                 "help": "shook itself until there were feathers enough"},
                {"helper": "hedgehog", "trouble": "the needle {had}snapped in two",
                 "trouble_is": "My needle is broken", "help": "lent {him} one of its own spines"},
            ],
        },
        {
            "object": "bowl", "make": "shape",
            "scene": ["There was clay on the table.", "A lump of clay lay on the table."],
            "used": "filled the {colour} {object} with cherries",
            "friend": [
                {"helper": "potter", "trouble": "the clay {had}dried and cracked",
                 "trouble_is": "My clay is full of cracks",
                 "help": "smoothed the clay with wet hands"},
                {"helper": "snail", "trouble": "the cat {had}walked all over the wet clay",
                 "trouble_is": "There are paw prints in the clay",
                 "help": "slid over the clay until it was smooth"},
            ],
        },
        {
            "object": "cake", "make": "bake",
            "scene": ["There was flour on the kitchen floor.", "The kitchen smelled of sugar."],
            "used": "ate the {colour} {object} down to the last crumb",
            "friend": [
                {"helper": "hen", "trouble": "the eggs {had}rolled off the table",
                 "trouble_is": "I have no more eggs", "help": "laid three fresh eggs"},
                {"helper": "baker", "trouble": "the flour {had}spilled into the sink",
                 "trouble_is": "I have no more flour", "help": "brought a whole sack of flour"},
            ],
        },
    ],
}  # fmt: skip

RACE = {  # a race or a contest, and a mishap on the way
    "race": [
        "The day of {event} had come at last. {name} was there with {his} {colour} "
        "{object}, for {he} wanted to win {prize}. {before} {but} {trouble}. {sad} {come} {ask} "
        "{plea} {calm} Then the {helper} {help}. {hurry} {result}",
        '"Let the fun begin!" called the {judge}. It was the day of {event}, and {name} '
        "wanted to win {prize} with {his} {colour} {object}. {before} {but} {trouble}. {sad} "
        "{come} {promise} Then the {helper} {help}. {thanks} {hurry} {result}",
        "Beside the bed of {name} there is {prize}. It comes from {event}, where {he} "
        "took part with {his} {colour} {object}. {before} {but} {trouble}. {sad} {come} {ask} "
        "{plea} So the {helper} {help}. {hurry} {won}",
        "{scene} It was the day of {event}. {name} held on to {his} {colour} {object} and "
        "hoped to win {prize}. {before} {but} {trouble}. {come} {ask} {plea} {calm} Then the "
        "{helper} {help}. {thanks} {hurry} {result}",
    ],
    "judge": ["mayor", "teacher", "king", "captain"],
    "prize": ["a shiny cup", "a wooden star", "a big medal", "a paper crown", "a music box"],
    "before": [
        "{He} had practised for weeks.",
        "{He} was only {age}, the youngest of all.",
        "{His} whole family had come to watch.",
        "{He} had hardly slept at all.",
        "At first everything went well.",
    ],
    "hurry": [
        "Soon {he} was ready again.",
        '"Now be quick!" said the {helper}.',
        '"There is still time!" cried the {helper}.',
        "Everybody cheered {him} on.",
    ],
    "result": [
        "The {colour} {object} came first, and {name} won {prize}.",
        "The {colour} {object} came second, but {name} was as proud as a peacock.",
        "{name} did not win, but the crowd clapped longest for the {colour} {object}.",
        "{name} came last, but {he} hugged {his} {colour} {object} and laughed.",
        "{name} and the {colour} {object} won, and the {trait} {helper} got a piece of cake.",
    ],
    "won": [
        "The {colour} {object} came first, and that was that.",
        "Nobody was better than {name} and the {colour} {object} that day.",
        "In the end {name} won with the {colour} {object}, thanks to the {trait} {helper}.",
        "And when the {colour} {object} came first, the {helper} cheered loudest of all.",
    ],
    "contest": [
        {
            "event": "the boat race", "object": "boat",
            "scene": ["Flags fluttered along the river.", "Drums rolled beside the river."],
            "friend": [
                {"helper": "swan", "trouble": "the wind dropped and the {object} stood still",
                 "trouble_is": "There is no wind for my {colour} {object}",
                 "help": "beat its wings and filled the sail"},
                {"helper": "duck", "trouble": "the {colour} {object} drifted into the weeds",
                 "trouble_is": "My {colour} {object} is caught in the weeds",
                 "help": "pulled the weeds away with its beak"},
            ],
        },
        {
            "event": "the cart race", "object": "cart",
            "scene": ["People lined the steep street.", "Music played in the steep street."],
            "friend": [
                {"helper": "goat", "trouble": "the {colour} {object} rolled into the mud",
                 "trouble_is": "My {colour} {object} is stuck in the mud",
                 "help": "pushed with its horns until the {colour} {object} was free"},
                {"helper": "blacksmith", "trouble": "a wheel began to wobble",
                 "trouble_is": "My wheel is loose", "help": "fixed the wheel with three blows"},
            ],
        },
        {
            "event": "the sledge race", "object": "sledge",
            "scene": ["Snow glittered on the long hill.", "Frost sparkled on the long hill."],
            "friend": [
                {"helper": "dog", "trouble": "the {colour} {object} sank into the deep snow",
                 "trouble_is": "My {colour} {object} is stuck in the snow",
                 "help": "pulled the {colour} {object} back onto the track"},
                {"helper": "farmer", "trouble": "the rope of the {colour} {object} snapped",
                 "trouble_is": "My rope is torn", "help": "tied on a strong new rope"},
            ],
        },
        {
            "event": "the kite contest", "object": "kite",
            "scene": ["Kites danced above the meadow.", "The wind blew over the meadow."],
            "friend": [
                {"helper": "sparrow", "trouble": "the string got caught in a bush",
                 "trouble_is": "My string is full of knots",
                 "help": "picked the knots apart with its beak"},
                {"helper": "shepherd", "trouble": "the tail of the {colour} {object} tore off",
                 "trouble_is": "My {colour} {object} has lost its tail",
                 "help": "made a new tail from a handkerchief"},
            ],
        },
        {
            "event": "the music contest", "object": "drum",
            "scene": ["The square was full of music.", "Singers filled the village square."],
            "friend": [
                {"helper": "otter", "trouble": "both drumsticks fell into the stream",
                 "trouble_is": "My drumsticks are in the stream",
                 "help": "dived in and brought both sticks back"},
                {"helper": "shoemaker", "trouble": "the strap of the {colour} {object} snapped",
                 "trouble_is": "The strap of my {colour} {object} is torn",
                 "help": "sewed the strap with thick thread"},
            ],
        },
        {
            "event": "the castle contest", "object": "flag",
            "scene": ["Castles stood in rows on the beach.", "Rows of castles stood in the sun."],
            "friend": [
                {"helper": "crab", "trouble": "a wave washed the tower away",
                 "trouble_is": "My tower is gone", "help": "piled up a new tower of sand"},
                {"helper": "gull", "trouble": "a gust carried the {colour} {object} away",
                 "trouble_is": "The wind has taken my {colour} {object}",
                 "help": "caught the {colour} {object} in the air and brought it back"},
            ],
        },
    ],
}  # fmt: skip

LONELY = {  # somebody is lonely, and finds a friend
    "lonely": [
        "{name} had just moved to {home}. {He} had a {colour} {object}, but nobody to share it "
        "with. {giver} {when} {he} {tried}. {alone} {come} {hello} {yes} So the {helper} {joined}, "
        "and they {played}. {friends}",
        '"Who wants to play?" called {name}, but nobody answered. {He} had just moved to {home} '
        "with {his} {colour} {object}. {giver} {He} {tried}. {alone} {come} {hello} {yes} Then the "
        "{helper} {joined}. They {played}. {friends}",
        "For three days a {trait} {helper} had watched {name} from far away. {name} had just moved "
        "to {home} with a {colour} {object} and had nobody to play with. {when} {he} {tried}. "
        "{alone} Then the {helper} came closer. {hello} {yes} So the {helper} {joined}, and they "
        "{played}. {friends}",
        '"Dear Grandpa," wrote {name}, "today I made a friend." {He} had just moved to {home}, '
        "where {he} knew nobody. That morning {he} took out {his} {colour} {object} and {tried}. "
        "{alone} {come} {hello} {yes} And the {helper} {joined}. They {played}. {friends}",
    ],
    "home": [
        "a new town", "a quiet village", "an old farm", "a house by the water", "a quiet street",
    ],
    "alone": [
        "{He} felt very small.",
        '"If only I had a friend," {he} thought.',
        "{name} wished for a friend with all {his} heart.",
        "A tear dropped onto the {colour} {object}.",
        "It was no fun to play alone.",
    ],
    "hello": [
        '"May I play with you?" asked the {helper}.',
        '"Are you all alone?" asked the {helper}. "I am, too."',
        '"That looks like fun," said the {helper}.',
        '"You need a friend for that," said the {helper}.',
    ],
    "yes": [
        '"Then let us play together," said {name}.',
        '"Please stay," whispered {name}.',
        "{name} nodded and smiled.",
        "{name} blushed and made room.",
    ],
    "friends": [
        "From that day on {he} and {his} {colour} {object} were never alone.",
        '"Will you come again?" asked {name}. "If you bring the {colour} {object}," said the '
        "{helper}.",
        'That night {name} told the {colour} {object}, "Now we have a friend."',
        "That night {name} dreamed of the {trait} {helper} and the {colour} {object}.",
        "Then they shared {snack} beside the {colour} {object}, like old friends.",
    ],
    "game": [
        {
            "object": "ball",
            "tried": ["kicked it against a wall, but the wall never laughed",
                      "threw it up and caught it, again and again"],
            "played": "played catch until supper",
            "friend": [
                {"helper": "girl", "joined": "caught the {colour} {object} and threw it back"},
                {"helper": "dog",
                 "joined": "picked up the {colour} {object} and laid it at {his} feet"},
            ],
        },
        {
            "object": "skipping rope",
            "tried": ["tied it to a tree, but it would not swing",
                      "tied it to a fence, but the knot slipped"],
            "played": "skipped until their legs were tired",
            "friend": [
                {"helper": "goat",
                 "joined": "took the other end between its teeth"},
                {"helper": "boy", "joined": "took the other end and began to count"},
            ],
        },
        {
            "object": "kite",
            "tried": ["ran up and down, but it would not rise",
                      "pulled it along, but it only bumped over the grass"],
            "played": "kept it in the air until the sun went down",
            "friend": [
                {"helper": "shepherd", "joined": "held the {colour} {object} up to the wind"},
                {"helper": "stork", "joined": "lifted the {colour} {object} into the air"},
            ],
        },
        {
            "object": "tea set",
            "tried": ["laid the table for two, but one chair stayed empty",
                      "filled two cups, but one grew cold"],
            "played": "drank tea and told jokes until evening",
            "friend": [
                {"helper": "squirrel",
                 "joined": "hopped onto the empty chair and bowed"},
                {"helper": "neighbour", "joined": "sat down and lifted a cup"},
            ],
        },
        {
            "object": "drum",
            "tried": ["played a march, but nobody marched along",
                      "played a dance, but nobody danced"],
            "played": "made music until the stars came out",
            "friend": [
                {"helper": "fiddler", "joined": "tuned a fiddle and joined in"},
                {"helper": "cricket", "joined": "chirped along in perfect time"},
            ],
        },
        {
            "object": "rowing boat",
            "tried": ["pulled at the oars, but it only went in circles",
                      "pushed and pushed, but it would not leave the bank"],
            "played": "drifted over the water until sunset",
            "friend": [
                {"helper": "sailor", "joined": "climbed in and took an oar"},
                {"helper": "otter",
                 "joined": "gave the {colour} {object} a push with its nose"},
            ],
        },
    ],
}  # fmt: skip

ERRAND = {  # something is to be brought to somebody, and the way is blocked
    "errand": [
        "{when} {name} filled {his} {colour} {object} with {food} and set out to see {who}, who "
        "{why}. {but} {trouble}. {sad} {come} {ask} {plea} {calm} Then the {helper} {help}. "
        "{thanks} {arrived}",
        '"Please take this {colour} {object} to {who}," Mum said to {name}. It was full of '
        "{food}, for {who} {why}. {name} put on {his} shoes and set out. {but} {trouble}. "
        "{sad} {come} {ask} {plea} {calm} Then the {helper} {help}. {thanks} {arrived}",
        {
            "text": "{Who} heard a knock at the door. There stood {name} with a {colour} {object} "
            'of {food}. "How did you get here?" asked {who}, who {why}. {name} sat down and told '
            "the story. {He} had been halfway there, but {trouble}. {worried} {come} {ask} {plea} "
            "So the {helper} {help}. {listened}",
            "had": "had ",
        },
        "It was a long way to the house of {who}, who {why}. {when} {name} took a {colour} "
        "{object} of {food} and went there all by {self}. {but} {trouble}. {worried} {come} {ask} "
        "{plea} {calm} Then the {helper} {help}. {arrived}",
    ],
    "object": ["basket", "box", "bag", "tin"],
    "food": ["warm bread", "ripe plums", "honey cakes", "roasted nuts", "fresh cheese"],
    "who": ["Grandma", "Grandpa", "Aunt Jo", "the miller", "the old teacher"],
    "why": ["had a bad cold", "had a birthday that day", "lived all alone", "had a sore foot"],
    "worried": [
        "{name} looked left and right, but nobody was there.",
        "{He} almost turned back.",
        "{He} thought of {who} and felt sad.",
        "{He} did not want to give up.",
    ],
    "arrived": [
        "Soon the {colour} {object} stood on the table, and {who} smiled.",
        '"What a lovely {colour} {object}!" said {who} at the door. "And what a brave child!"',
        "At the door {who} took the {colour} {object} and gave {name} a big kiss.",
        "Soon {who} opened the {colour} {object}, and they ate the {food} together.",
        "That evening {name} skipped home with the empty {colour} {object}.",
    ],
    "listened": [
        '"Then we must thank that {trait} {helper}," said {who}, and opened the {colour} {object}.',
        '"How brave you are!" said {who}, and they shared what was in the {colour} {object}.',
        "{Who} laughed, and soon the {colour} {object} was empty.",
        "{Who} put the {colour} {object} on the table and gave {name} a big kiss.",
    ],
    "road": [
        {
            "trouble": ["a flood {had}washed the bridge away",
                        "the bridge over the stream {had}cracked"],
            "trouble_is": "I cannot get across the stream",
            "friend": [
                {"helper": "beaver", "help": "laid a log across the water"},
                {"helper": "boatman", "help": "rowed {him} to the other side"},
            ],
        },
        {
            "trouble": ["thick fog {had}covered the path", "a thick fog {had}rolled down the hill"],
            "trouble_is": "I cannot see the path",
            "friend": [
                {"helper": "shepherd", "help": "walked in front and rang a bell"},
                {"helper": "goose", "help": "honked and led {him} step by step"},
            ],
        },
        {
            "trouble": ["deep snow {had}covered the road",
                        "the wind {had}piled snow across the road"],
            "trouble_is": "The snow is too deep for me",
            "friend": [
                {"helper": "dog", "help": "pulled {him} over the snow on a sledge"},
                {"helper": "reindeer", "help": "carried {him} on its back"},
            ],
        },
        {
            "trouble": ["somebody {had}turned the signpost around",
                        "the signpost {had}tumbled into a ditch"],
            "trouble_is": "I do not know which way to go",
            "friend": [
                {"helper": "owl", "help": "flew ahead from tree to tree"},
                {"helper": "postman", "help": "drew a map on an envelope"},
            ],
        },
        {
            "trouble": ["the {colour} {object} {had}turned as heavy as a stone",
                        "{his} arms {had}started to ache"],
            "trouble_is": "I cannot carry the {colour} {object} any further",
            "friend": [
                {"helper": "donkey", "help": "carried the {colour} {object} on its back"},
                {"helper": "farmer", "help": "gave {him} a ride on the hay cart"},
            ],
        },
        {
            "trouble": ["a tree {had}crashed across the road",
                        "a pile of rocks {had}tumbled across the road"],
            "trouble_is": "The road is blocked",
            "friend": [
                {"helper": "bear", "help": "cleared the road with its strong paws"},
                {"helper": "goat", "help": "showed {him} a secret path around it"},
            ],
        },
    ],
}  # fmt: skip

RULES = {**SHARED, **LOST, **MENDED, **AFRAID, **PRESENT, **RACE, **LONELY, **ERRAND}


class Tale(NamedTuple):
    """A story and the natural logarithm of the probability that `tales` tells it."""

    text: str
    log_prob: float


class Grammar:
    """A probabilistic grammar with memory; the module's docstring says how its rules
    are read.

    Raises ValueError for a name without rule.

    >>> Grammar({"story": "A {pet} is a {pet}.", "pet": ["cat", "dog"]}).sample(lambda: 0.9)
    Tale(text='A dog is a dog.', log_prob=-0.6931471805599453)
    """

    def __init__(self, rules: Mapping, start: str = "story"):
        self.rules, self.start = dict(rules), start
        self.templates: dict[
            str, list[str]
        ] = {}  # template -> [text, name, text, ..., text]
        defined, used = set(), {start}
        for name, value in walk(self.rules):
            defined.add(name)
            if isinstance(value, str):
                self.templates[value] = parts = re.split(r"\{(\w+)\}", value)
                used.update(map(uncapped, parts[1::2]))
        if not used <= defined:
            raise ValueError(f"no rule for {', '.join(sorted(used - defined))}")

    def sample(self, uniform: Callable[[], float]) -> Tale:
        """Tell one story, with one number from `uniform`, in [0, 1), for each choice."""
        bound = dict(self.rules)  # what every name stands for in this story
        told = set()  # the names whose text is settled
        log_prob = 0.0

        def value(name: str) -> str:
            nonlocal log_prob
            key = uncapped(name)
            if key not in told:
                option = bound[key]
                while isinstance(option, list):
                    log_prob -= math.log(len(option))
                    option = option[int(uniform() * len(option))]
                if isinstance(option, dict):
                    bound.update(option)
                    option = option.get("text", "")
                bound[key] = fill(option)
                told.add(key)
            text = bound[key]
            return text if key == name else text[:1].upper() + text[1:]

        def fill(template: str) -> str:
            parts = self.templates[template].copy()
            parts[1::2] = map(value, parts[1::2])
            return "".join(parts)

        return Tale(value(self.start), log_prob)


def uncapped(name: str) -> str:
    """Return `name` with a small first letter: the key under which {Name} is
    remembered.
    """
    return name[:1].lower() + name[1:]


def walk(rules: Mapping) -> Iterator[tuple[str, object]]:
    """Yield every name in `rules`, however deep, with each thing that it may stand for."""
    for name, value in rules.items():
        yield name, value
        for option in value if isinstance(value, list) else []:
            yield from walk(option if isinstance(option, dict) else {name: option})


GRAMMAR = Grammar(RULES)


def tales(seed: int, n: int | None = None) -> Iterator[Tale]:
    """Stream `n` stories, or without end; a seed gives the same stories on every
    machine.

    Raises ValueError for a negative `n` or `seed`.

    >>> [tale.text.split()[0] for tale in tales(seed=0, n=3)]
    ['"Who', 'It', 'Zoe']
    """
    if seed < 0:
        raise ValueError(
            f"seed must be at least 0, got {seed}"
        )  # Random(-1) equals Random(1)
    uniform = random.Random(
        seed
    ).random  # Python promises that its numbers never change
    return islice((GRAMMAR.sample(uniform) for _ in repeat(None)), n)


class EntropyFloor(NamedTuple):
    """The lowest mean loss that any model can reach on Tiny Tales, with standard
    errors.
    """

    nats_per_token: float
    nats_per_token_error: float
    nats_per_character: float
    nats_per_character_error: float
    nats_per_story: float
    nats_per_story_error: float


def entropy_floor(tokenizer, n: int = 2000, seed: int = 1_000_003) -> EntropyFloor:
    """Measure the entropy of Tiny Tales on `n` stories: sum of -log p over sum of
    tokens.

    Tokens are what `tokenizer.encode_ordinary(text)` gives. Every story counts one
    token more, <|endoftext|>; it is no character. A model that knew the grammar by
    heart would have this loss. A standard error needs an `n` of at least 2.
    """
    sample = list(tales(seed, n))
    nats = [-tale.log_prob for tale in sample]
    tokens = [len(tokenizer.encode_ordinary(tale.text)) + 1 for tale in sample]
    characters = [len(tale.text) for tale in sample]
    return EntropyFloor(
        *ratio(nats, tokens), *ratio(nats, characters), *ratio(nats, [1] * n)
    )


def ratio(tops: Sequence[float], bottoms: Sequence[float]) -> tuple[float, float]:
    """Return sum(tops) / sum(bottoms) and its standard error by the delta method."""
    n, total = len(tops), sum(bottoms)
    quotient = sum(tops) / total
    spread = sum((a - quotient * b) ** 2 for a, b in zip(tops, bottoms, strict=True))
    return quotient, math.sqrt(spread * n / (n - 1)) / total


WORD = r"[A-Za-z]+(?:'[A-Za-z]+)*"
NAMES = dict.fromkeys(RULES["girl"], "she") | dict.fromkeys(RULES["boy"], "he")
PRONOUNS = {
    "she": "she", "her": "she", "herself": "she",
    "he": "he", "his": "he", "him": "he", "himself": "he",
}  # fmt: skip
TEXTS = [text for parts in GRAMMAR.templates.values() for text in parts[::2]]
KNOWN_WORDS = frozenset(
    re.findall(WORD, " ".join(TEXTS).lower())
)  # every word of the grammar


class Quality(NamedTuple):
    """Three shares between 0 and 1 that say how much a generated text is like a tale."""

    words: float
    pronouns: float
    colors: float


def quality(texts: Iterable[str]) -> Quality:
    """Measure generated texts; 1.0 three times for the grammar's own stories.

    words: the share of words that exist in the grammar. pronouns: the share of texts in
    which all of he, she, his, her, him, himself, herself agree with the first name (a
    text without a name fails, one with a name and no pronoun is not counted). colors:
    the share of texts with one and the same colour, among those that mention a colour
    twice or more. A share of nothing is 0.
    """
    known, pronouns, colors = [], [], []
    for text in texts:
        words = re.findall(WORD, text)
        lower = [word.lower() for word in words]
        known += [word in KNOWN_WORDS for word in lower]
        first = next((NAMES[word] for word in words if word in NAMES), None)
        used = {PRONOUNS[word] for word in lower if word in PRONOUNS}
        if first is None or used:
            pronouns.append(used == {first})
        mentioned = [word for word in lower if word in RULES["colour"]]
        if len(mentioned) >= 2:
            colors.append(len(set(mentioned)) == 1)
    return Quality(
        *(sum(hits) / max(len(hits), 1) for hits in (known, pronouns, colors))
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print stories with a blank line between them."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.tiny_tales", description="Tiny Tales."
    )
    parser.add_argument(
        "n", type=int, nargs="?", default=20, help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=2026, help="default: %(default)s")
    options = parser.parse_args(argv)
    print("\n\n".join(tale.text for tale in tales(options.seed, options.n)))


if __name__ == "__main__":
    main()
