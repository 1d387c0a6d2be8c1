"""A judge behind a server: a larger model says in words how good an answer is.

    judge = make_judge()
    points = ask_judge(judge, entry, "mice") if judge else None

Any server with OpenAI's interface will do. These environment variables are read:

    LLM_COURSE_JUDGE         its address, such as http://localhost:11434/v1
    LLM_COURSE_JUDGE_MODEL   the name of the model there, llama3.2 if it is not set
    OPENAI_API_KEY           a key, if the server wants one

An entry has texts for instruction, input (maybe empty) and output, a right answer.
Before you believe a judge, measure how often it agrees with answers that are known.
With LLM_COURSE_JUDGE set,

    python ch07_instruction/judge.py

does that, and writes what the judge said to judged.json, which ch07_preference.ipynb
shows: a closed test question of each kind, once with a right answer, once with one
that is nearly right. The file that comes with the course was written by SmolLM2 itself,
served by `python ch07_instruction/chat.py --web`, with smollm2-135m as the model there.
"""

import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from shared.instruction import load_conversations
from shared.support import write_whole

RUBRIC = """You grade answers of a language model. Give 0 to 10 points: 10 for an \
answer that is right and has the form that was asked for, 5 if a part is wrong or \
missing, 0 if it is wrong.

Instruction: {instruction}
Input: {input}
A right answer: {output}
The answer to grade: {answer}

Reply with one line: Score: <points>"""

# A number by itself: not a part of a longer one, of a range (7-8) or of a percentage;
# and the scale that it is on, as in 7/10 and 7 out of 10.
N = r"(?<![\w.,/–-])(-?\d+(?:[.,]\d+)?)(?![.,]?\d)(?! ?%|[-–]\d| to \d)"
SCALE = r"(?:\s*(?:/|(?:out )?of)\s*(\d+))?"
# Where points are looked for; of the first form that is found, the last place counts.
FORMS = (
    # Score: 7, score (0-10) = 7
    rf"score(?: ?\([^()]*\)| out of 10)?\s*(?:[:=|]|[-–]\s|\s)\s*{N}{SCALE}",
    rf"score (?:is|of|should be|would be)(?: an?)? {N}{SCALE}",
    rf"{N}\s*(?:/|out of)\s*(10)\b",
    rf"^\s*{N}{SCALE}[\s.]*$",
)
# What is no verdict: a perfect score of 10; a score of 10 would need ...
NO_VERDICT = (
    rf"(?:perfect|maximum|max|full|top|highest)(?: possible)? score(?: of| is|:)? {N}",
    rf"(?:score of )?{N}{SCALE} (?:would(?! be)|needs?|requires?|means?|is for)\b",
)
FLAGS = re.IGNORECASE | re.MULTILINE


def read_score(text: str | None) -> int | None:
    """Return the points (0 to 10) in what a judge wrote, None if there are none.

    A half is rounded up. What stands in a <think> part does not count. Points on
    another scale, such as 4/5 or 80%, are None: who uses one has not read the rubric.

    >>> read_score("A fine answer. **Score: 7/10**"), read_score("I cannot grade this.")
    (7, None)
    """
    text = text or ""
    for thoughts in (r"<think\w*>.*?</think\w*>", r".*</think\w*>", r"<think\w*>.*"):
        text = re.sub(thoughts, "", text, flags=FLAGS | re.DOTALL)
    # The rubric's <points>, bold face, quotes and the like are decoration.
    text = re.sub("<score>", "score: ", text, flags=FLAGS)
    text = re.sub(r"</?[a-zA-Z]+>|[*_`\"'<>{}$]|[][]|\\boxed", " ", text)
    text = re.sub(r"[ \t]+", " ", text)
    for words in NO_VERDICT:
        text = re.sub(words, "", text, flags=FLAGS)
    for form in FORMS:
        if found := re.findall(form, text, FLAGS):
            number, scale = found[-1]  # a judge that thinks aloud decides at the end
            points = float(number.replace(",", "."))
            fits = 0 <= points <= 10 and scale in ("", "10")
            return int(points + 0.5) if fits else None
    return None


def make_judge(url: str | None = None, **options: Any) -> openai.OpenAI | None:
    """Return a client for the server at url or LLM_COURSE_JUDGE, None without either.

    It waits 60 seconds and tries three times, unless options (for openai.OpenAI) say
    otherwise; it logs no prompts. None, with a warning, for an address that is none.
    """
    url = url or os.environ.get("LLM_COURSE_JUDGE")
    if not url:
        return None
    logging.getLogger("openai").setLevel(logging.WARNING)
    settings = {"timeout": 60, "max_retries": 2} | options
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address begins with http:// or https:// and a host")
        if parts.hostname in ("localhost", "127.0.0.1", "::1"):  # no proxy leads there
            settings.setdefault(
                "http_client", openai.DefaultHttpxClient(trust_env=False)
            )
        return openai.OpenAI(base_url=url, api_key=key, **settings)
    except (ImportError, ValueError, openai.OpenAIError) as error:
        warnings.warn(f"no judge at {url}: {error}", stacklevel=2)
        return None


def request(entry: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return what a judge is asked about an answer, as the server wants it."""
    fields = {key: entry[key] for key in ("instruction", "input", "output")}
    content = RUBRIC.format(**fields, answer=answer)
    model = os.environ.get("LLM_COURSE_JUDGE_MODEL") or "llama3.2"
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "temperature": 0}


def ask_judge(judge: openai.OpenAI, entry: dict[str, Any], answer: str) -> int | None:
    """Return the judge's points (0 to 10) for an answer to an entry's instruction.

    None if it gave no score, or no reply: a judge that is away must not end a run. What
    went wrong is said in a warning, in the server's own words; Python shows it once.
    """
    asked = request(entry, answer)
    reply: Any = None
    try:
        reply = judge.chat.completions.create(**asked)
        return read_score(reply.choices[0].message.content)
    except (openai.OpenAIError, ValueError) as error:
        sent = getattr(error, "body", None) or getattr(error, "doc", None)
        said = sent or error.__cause__ or error
        if isinstance(said, dict):
            said = said.get("message", said)
    except (AttributeError, TypeError, IndexError):
        said = f"{reply} is no chat completion"
    words = re.sub(r"\s+", " ", str(said))
    if judge.api_key != "none":
        words = words.replace(judge.api_key, "(the key)")
    place = f"the judge {asked['model']} at {judge.base_url}"
    warnings.warn(f"{place} gave no score: {words[:300]}", stacklevel=2)
    return None


def judge_known_answers(judge: openai.OpenAI, per_kind: int = 1) -> dict[str, Any]:
    """Return what a judge says of right and nearly right answers to test questions."""
    tested = [
        e
        for e in load_conversations()
        if e["split"] == "test" and "accepted" in e and len(e["turns"]) == 2
    ]
    found: dict[str, list[dict]] = {}
    for entry in tested:
        found.setdefault(entry["kind"], []).append(entry)
    replies, asked = [], {}
    for entry in (e for some in found.values() for e in some[:per_kind]):
        question, right = entry["turns"]
        fields = {"instruction": question, "input": "", "output": right}
        for is_right, answer in ((True, right), (False, entry["near_miss"])):
            asked = request(fields, answer)
            reply = judge.chat.completions.create(**asked, max_tokens=20)
            said = reply.choices[0].message.content
            replies.append(
                {**fields, "answer": answer, "right": is_right, "reply": said}
            )
            print(read_score(said), answer, sep="  ", flush=True)
    return {"model": asked["model"], "replies": replies}


def main() -> int:
    """Ask the judge about known answers; write judged.json; return the exit status."""
    if not (judge := make_judge()):
        print("error: LLM_COURSE_JUDGE is not set", file=sys.stderr)
        return 1
    try:
        judged = judge_known_answers(judge)
    except openai.OpenAIError as error:
        print(f"error: no reply from {judge.base_url}: {error}", file=sys.stderr)
        return 1
    text = json.dumps(judged, indent=1, ensure_ascii=False)
    write_whole(Path(__file__).with_name("judged.json"), text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
