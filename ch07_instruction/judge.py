"""A judge behind a server: a larger model says in words how good an answer is.

    judge = make_judge()
    points = ask_judge(judge, entry, "mice") if judge else None

Any server with OpenAI's interface will do. These environment variables are read:

    LLM_COURSE_JUDGE         its address, such as http://localhost:11434/v1
    LLM_COURSE_JUDGE_MODEL   the name of the model there, llama3.2 if it is not set
    OPENAI_API_KEY           a key, if the server wants one

An entry is one of `shared.instruction.load_instructions`. Before you believe a judge,
measure how often it agrees with answers that are known; section 7.7 shows how.
"""

import logging
import os
import re
from typing import Any

import openai

RUBRIC = """You grade answers of a language model. Give 0 to 10 points: 10 for an \
answer that is right and has the form that was asked for, 5 if a part is wrong or \
missing, 0 if it is wrong.

Instruction: {instruction}
Input: {input}
A right answer: {output}
The answer to grade: {answer}

Reply with one line: Score: <points>"""

# Where points are looked for, N being a number; the first form that is found counts.
FORMS = (
    r"score(?: is| of)?[\s:=*_]*N",  # Score: 7
    r"N\s*(?:/|out of)\s*10\b",  # 7/10, 7 out of 10
    r"^[\s*]*N[\s*.]*$",  # 7
)


def read_score(text: str | None) -> int | None:
    """Return the points (0 to 10) in what a judge wrote, None if there are none.

    >>> read_score("A fine answer. **Score: 7/10**"), read_score("I cannot grade this.")
    (7, None)
    """
    for form in FORMS:
        pattern = form.replace("N", r"(-?\d+(?:\.\d+)?)")
        if found := re.findall(pattern, text or "", re.IGNORECASE):
            points = float(found[-1])  # a judge that thinks aloud decides at the end
            return round(points) if 0 <= points <= 10 else None
    return None


def make_judge(url: str | None = None, **options: Any) -> openai.OpenAI | None:
    """Return a client for the server at url or LLM_COURSE_JUDGE, None without either.

    It waits 60 seconds and tries three times, unless options (for openai.OpenAI) say
    otherwise; it logs no prompts.
    """
    url = url or os.environ.get("LLM_COURSE_JUDGE")
    if not url:
        return None
    logging.getLogger("openai").setLevel(logging.WARNING)
    settings = {"timeout": 60, "max_retries": 2} | options
    key = os.environ.get("OPENAI_API_KEY", "none")
    return openai.OpenAI(base_url=url, api_key=key, **settings)


def ask_judge(judge: openai.OpenAI, entry: dict[str, Any], answer: str) -> int | None:
    """Return the judge's points (0 to 10) for an answer to an entry's instruction.

    None if it gave no score, or no reply: a judge that is away must not end a run.
    """
    fields = {key: entry[key] for key in ("instruction", "input", "output")}
    content = RUBRIC.format(**fields, answer=answer)
    try:
        reply = judge.chat.completions.create(
            model=os.environ.get("LLM_COURSE_JUDGE_MODEL", "llama3.2"),
            messages=[{"role": "user", "content": content}],
            temperature=0,
        )
        return read_score(reply.choices[0].message.content)
    except (openai.OpenAIError, ValueError, AttributeError, TypeError, IndexError):
        return None
