"""What the exercises of chapter 5 are checked with. It gives them away: try first."""

import copy
import math
import random
import re
from functools import partial
from operator import add, truediv
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as schedulers

from shared.support.exercises import Checks, Exercise, Mistake, numbers, refuses

# --- 5.1 -----------------------------------------------------------------------------


def loss_with(log_p, ignore=True, total=False, least=0):
    """Return a cross-entropy with something changed."""

    def cross_entropy(logits, targets):
        counts = targets >= (least if ignore else -100)
        chosen = log_p(logits).gather(1, targets.clamp(min=0)[:, None])[:, 0]
        lost = -chosen.masked_fill(targets < least, 0)
        return lost.sum() / (1 if total else counts.sum())

    return cross_entropy


def watched(answer, given, parts):
    """Call an answer: cross-entropies of more than a part are not let through.

    In 5.1 there are no parts, only targets, and PyTorch's own function is not allowed.
    """
    most = max(len(t) for _, t in parts) if isinstance(parts, list) else 0
    with mock.patch.object(F, "cross_entropy", wraps=F.cross_entropy) as loss:
        found = answer(given, parts)
    rows = [len([*c.args, *c.kwargs.values()][0]) for c in loss.call_args_list]
    return "not allowed" if max(rows, default=0) > most else found


log_softmax = partial(torch.log_softmax, dim=-1)
LOGITS = torch.tensor([[2, 0.5, 0.1, -1, 0], [0] * 5, [0.1, 3, 0.2, 0, -2]])
TARGETS = torch.tensor([0, 3, 4])
LOSS = Exercise(
    "5.1",
    "cross-entropy from logits",
    F.cross_entropy,
    judge=watched,
    cases={
        "the three places of section 5.1": (LOGITS, TARGETS),
        "scores in the hundreds": (300 * LOGITS, TARGETS),
        "the middle target is −100": (LOGITS, torch.tensor([0, -100, 4])),
    },
    differentiable=True,
    notice="log p = score − log of the sum of all e^score, and the largest score can "
    "be taken out of that sum before anything overflows.",
    mistakes=[
        Mistake(
            loss_with(lambda x: x.softmax(-1).log()),
            "Nothing is wrong with your mathematics, but large scores leave the range "
            "of float32 on the way. Where do you take e to the power of one?",
            "deeplearning4j issue 785; NNlib.jl issue 68",
        ),
        Mistake(
            loss_with(lambda x: (x.exp() / x.exp().sum(-1, keepdim=True)).log()),
            "Nothing is wrong with your mathematics, but e to the power of a large "
            "score is infinite in float32, and infinity divided by itself is nan.",
            "deeplearning4j issue 785; NNlib.jl issue 68",
        ),
        Mistake(
            loss_with(log_softmax, total=True),
            "That is the sum over the places. Asked for is the mean.",
            "section 5.2: sums and means",
        ),
        Mistake(
            loss_with(log_softmax, ignore=False),
            "A target of −100 adds nothing, but you count it when you divide.",
            "OpenNMT-py issue 2209: divided by the wrong count",
        ),
        Mistake(
            lambda logits, targets: F.cross_entropy(logits, targets),
            "That is PyTorch's own function, which you are to write. You may use "
            "`logsumexp` and `log_softmax`.",
            "a learner's trial of ours",
        ),
        Mistake(
            loss_with(partial(torch.log_softmax, dim=0)),
            "Each column adds up to 1 with you. The alternatives of one place stand "
            "in a row: which axis is that?",
            "a learner's trial of ours",
        ),
        Mistake(
            loss_with(log_softmax, least=1),
            "The token with the id 0 is a target like any other. Which targets are "
            "to be left out?",
            "a learner's trial of ours",
        ),
        Mistake(
            loss_with(lambda x: x),
            "Those are the scores themselves. What makes log-probabilities of them?",
            "a learner's trial of ours",
        ),
        Mistake(
            loss_with(lambda x: log_softmax(x) / math.log(2)),
            "These are bits. Asked for are nats, with the natural logarithm.",
            "a learner's trial of ours",
        ),
    ],
)

# --- 5.2 -----------------------------------------------------------------------------

STEPS = ["zero", "forward", "backward", "clip", "step"]


def order(*places: int) -> list[str]:
    """Return the five things in another order."""
    return [STEPS[n] for n in places]


ORDER = Exercise(
    "5.2",
    "a training step in order",
    STEPS,
    notice="Between `backward` and `step` the gradients are there, and may be changed.",
    mistakes=[
        Mistake(
            order(0, 1, 2, 4, 3),
            "You clip when the step has been made. Who still reads those gradients?",
            "VGRNN issue 4; onsets-and-frames issue 24; graphstorm issue 1366",
        ),
        Mistake(
            order(0, 1, 3, 2, 4),
            "You clip gradients that have not been computed yet.",
            "our own trial",
        ),
        Mistake(
            order(0, 3, 1, 2, 4),
            "You clip gradients that have just been forgotten. Which of the five makes"
            "new ones?",
            "a learner's trial of ours",
        ),
        Mistake(
            [step.replace("clip", "clipping") for step in STEPS],
            "The order is right. Write the names as they stand in the list.",
            "a learner's trial of ours",
        ),
        Mistake(
            order(0, 2, 1, 3, 4),
            "You compute gradients of a loss that nobody has measured yet.",
            "our own trial",
        ),
        Mistake(
            order(1, 2, 3, 4, 0),
            "A loop may well run so. But begin with `zero`, as the chapter's does.",
            "our own trial",
        ),
    ],
)

# --- 5.3 -----------------------------------------------------------------------------

N, BITS = 4096 * 4096, 4096 * 4096 // 64 * (64 * 3 + 32)
BYTES = Exercise(
    "5.3",
    "the bytes of a rounded matrix",
    BITS // 8,
    notice="3.5 bits a weight. With groups of 32 it would be 4: finer groups cost.",
    mistakes=[
        Mistake(
            N * 3 // 8,
            "These are the weights alone. What else is needed to read them back?",
            "section 5.18: “scales counted”",
        ),
        Mistake(
            N * 3 // 8 + N // 64 * 2,
            "A group has two numbers beside its weights, and you count one.",
            "section 5.10: a scale and a minimum",
        ),
        Mistake(
            BITS,
            "These are bits. How many bits are in a byte?",
            "our own trial",
        ),
        Mistake(
            N * 3 // 8 + N // 64 * 2 * 16,
            "You count 16 bytes for each scale. How many bytes are 16 bits?",
            "a learner's trial of ours",
        ),
        Mistake(
            N * 3 + N // 64 * 4,
            "You count 3 bytes a weight. It has 3 bits.",
            "a learner's trial of ours",
        ),
        Mistake(
            N * 3 // 8 + 4096 // 64 * 4,
            "You count the groups of one row only. How many rows are there?",
            "a learner's trial of ours",
        ),
        Mistake(
            N * 3 // 8 + 4096 * 4,
            "You count one group a row. How many groups of 64 are in a row?",
            "a learner's trial of ours",
        ),
        Mistake(
            BITS // 8 / 1e6,
            "Those are megabytes. Asked for are bytes.",
            "a learner's trial of ours",
        ),
    ],
)

# --- 5.4 -----------------------------------------------------------------------------


def all_rates(function, peak, warmup_steps, max_steps, final_share):
    """Call a schedule for every step of a training."""
    given = (peak, warmup_steps, max_steps, final_share)
    return torch.tensor([float(function(step, *given)) for step in range(max_steps)])


def torch_rate(step, peak, warm, steps, share):
    """Let PyTorch's own schedulers count up to a step."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    rising = schedulers.LinearLR(optimizer, 1 / max(warm, 1), 1, warm - 1)
    count, least = steps - 1 - warm, peak * share
    falling = schedulers.CosineAnnealingLR(optimizer, count, least)
    whole = schedulers.SequentialLR(optimizer, [rising, falling], [warm])
    for _ in range(step):
        optimizer.step()
        whole.step()
    return optimizer.param_groups[0]["lr"]


def rate(step, peak, warm, steps, share, one=1, less=1, floor=True, rise=0):
    """Return the rate of a schedule with something changed."""
    if step < warm:
        return peak * (step + one) / (warm - rise)
    progress = (step - warm) / (steps - less - warm)
    share = share if floor else 0.0
    return peak * (share + (1 - share) * (1 + math.cos(math.pi * progress)) / 2)


SCHEDULE = Exercise(
    "5.4",
    "warm-up and cosine",
    torch_rate,
    judge=all_rates,
    cases={
        "10 steps, 4 of them warm-up, down to 0.1": (1.0, 4, 10, 0.1),
        "12 steps, no warm-up": (3e-3, 0, 12, 0.05),
    },
    notice="Half of the fall is over when half of the steps are: the cosine lingers at "
    "both ends.",
    mistakes=[
        Mistake(
            partial(rate, one=0),
            "Your first rate is 0, so the first step changes nothing.",
            "torchtune issue 2010; google-research/bert issue 1293",
        ),
        Mistake(
            partial(rate, one=0, rise=1),
            "Your first rate is 0, so the first step changes nothing. With 4 steps of "
            "warm-up there are four equal rises, and the first step has one of them.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(rate, less=0),
            "Nearly: the last step of the training should have the final share itself. "
            "Which number has the last step?",
            "torchtitan pull request 1261",
        ),
        Mistake(
            partial(rate, one=0, less=0),
            "Two ends are off by one: your first rate is 0, and your last one has not "
            "quite come down. Which numbers have the first and the last step?",
            "torchtune issue 2010",
        ),
        Mistake(
            partial(rate, floor=False),
            "Your rates fall to 0. They should end at a share of the peak.",
            "our own trial",
        ),
    ],
)

# --- 5.5 -----------------------------------------------------------------------------


def trained(answer, weight, gradients):
    """Return the weights after each step; or let a function do so for all of them."""
    if not isinstance(answer, type):
        return answer(weight, gradients)
    optimizer, seen = answer(lr=0.1, beta1=0.9, beta2=0.95, decay=0.5), [weight.clone()]
    for n, gradient in enumerate(gradients):  # the first weight itself: is it changed?
        seen.append(optimizer.step(seen[-1].clone() if n else weight, gradient))
    return None if seen[-1] is None else torch.stack(seen)


def torch_adamw(weight, gradients, kind=torch.optim.AdamW):
    p, seen = nn.Parameter(weight.clone()), [weight]
    optimizer = kind([p], lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    for p.grad in gradients:
        optimizer.step()
        seen.append(p.detach().clone())
    return torch.stack(seen)


def adamw_with(w, g, first=1, kept=1, decay=0.05, new=(0.1, 0.05), fix=(0.9, 0.95)):
    mean, square, seen = torch.zeros(()), torch.zeros(()), [w]
    for t, gradient in enumerate(g, first):
        mean = (1 - new[0]) * mean + new[0] * gradient
        square = (1 - new[1]) * square + new[1] * gradient**2
        m, v = mean / (1 - fix[0] ** t), square / (1 - fix[1] ** t)
        mean, square = (mean, square) if kept else (m, v)
        seen.append(seen[-1] * (1 - decay) - 0.1 * m / (v.sqrt() + 1e-8))
    return torch.stack(seen)


ONE_STEP = torch.ones(3), torch.tensor([[1.0, 0.1, -0.01]])
ADAMW = Exercise(
    "5.5",
    "AdamW as a class",
    torch_adamw,
    judge=trained,
    cases={
        "weights 1, gradients 1, 0.1, −0.01; lr 0.1, β 0.9, 0.95, decay 0.5": ONE_STEP,
        "five steps": (numbers(2, 3, seed=0), numbers(5, 2, 3, seed=1)),
        "tiny gradients": (torch.ones(3), torch.tensor([[1e-6, 1e-7, -1e-8]])),
        "no gradient at all": (torch.ones(2), torch.zeros(3, 2)),
    },
    notice="With no gradient the weights still shrink: that is the decay, alone.",
    mistakes=[
        Mistake(
            partial(adamw_with, fix=(0, 0)),
            "Both averages start at 0 and are too small at first. Which corrections "
            "make up for that?",
            "section 5.4: the corrections by 1 − βᵗ",
        ),
        Mistake(
            partial(adamw_with, first=0),
            "You divide by 0: the first step has the number 1, not 0.",
            "our own trial",
        ),
        Mistake(
            partial(adamw_with, kept=0),
            "The first step is right. Then you go on with the corrected averages. Keep "
            "the plain ones; corrected ones are only for the step.",
            "our own trial",
        ),
        Mistake(
            partial(torch_adamw, kind=torch.optim.Adam),
            "You add the decay to the gradient, and so it goes into the averages. That "
            "is Adam with L2. The W means that the decay goes to the weights directly.",
            "nntrainer pull request 3565; anhquan0412/basic_model_scratch issue 2",
        ),
        Mistake(
            partial(adamw_with, decay=0.5),
            "Your decay takes away a share of `decay` at each step. It should be "
            "smaller: what else scales a step?",
            "neural-fortran issue 152: is λ multiplied by the rate?",
        ),
        Mistake(
            partial(adamw_with, decay=0),
            "The weights do not decay. They should shrink even without a gradient.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(adamw_with, new=(0.9, 0.95)),
            "In your averages the old and the new have changed places: which of them "
            "gets the large β?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(adamw_with, fix=(0.9, 0)),
            "One of your two averages is corrected for its start at 0. And the other?",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(adamw_with, new=(0.1, 0.1)),
            "Your two averages forget equally fast. Which of them has `beta2`?",
            "a learner's trial of ours",
        ),
    ],
)

# --- 5.6 -----------------------------------------------------------------------------


def at_once(weight, parts, loss=F.cross_entropy):
    """Return the gradient of the mean loss of all parts, put together as one."""
    inputs, targets = map(torch.cat, zip(*parts, strict=True))
    weight = weight.detach().clone().requires_grad_()
    loss(inputs @ weight, targets).backward()
    return weight.grad


def added_up(weight, parts, reduction="mean", by="parts"):
    """Return the gradients of the parts, added up and divided by something."""
    weight = weight.detach().clone().requires_grad_()
    for inputs, targets in parts:
        F.cross_entropy(inputs @ weight, targets, reduction=reduction).backward()
    sizes = [len(targets) for _, targets in parts]
    counts = {"parts": len(parts), "rows": sum(sizes), "one": 1}
    return weight.grad / counts[by]


def part(size, n_ignored=0, seed=0):
    """Return inputs (N, 3) and targets (N,), of which the last do not count."""
    targets = torch.arange(size) % 4
    targets[size - n_ignored :] = -100
    return numbers(size, 3, seed=seed), targets


ACCUMULATE = Exercise(
    "5.6",
    "mend it: accumulation",
    at_once,
    judge=watched,
    faulty=added_up,
    cases={
        "parts of 4 and 4 tokens": (numbers(3, 4, seed=0), [part(4), part(4, seed=1)]),
        "parts of 4 and 1 tokens": (numbers(3, 4, seed=0), [part(4), part(1, seed=1)]),
        "parts with padding": (numbers(3, 4, seed=0), [part(4, 3), part(5, 1, seed=1)]),
    },
    notice="Add sums, count what counts, and divide once. So does `Trainer`.",
    mistakes=[
        Mistake(
            partial(added_up, by="one"),
            "Now you add up means. With two parts the gradient is twice as long.",
            "Automodel issue 3829; transformers issue 37197",
        ),
        Mistake(
            partial(added_up, reduction="sum"),
            "You add up sums now, but divide by the number of parts. Which number "
            "makes a mean of such a sum?",
            "a half-mended stub",
        ),
        Mistake(
            partial(added_up, reduction="sum", by="one"),
            "The sums are right. By what must they be divided, once?",
            "our own trial",
        ),
        Mistake(
            partial(added_up, reduction="sum", by="rows"),
            "Nearly: you divide by all places. Those with padding do not count.",
            "torchtune pull request 1875: the non-padding tokens",
        ),
        Mistake(
            partial(at_once, loss=lambda *pair: F.cross_entropy(*pair)),
            "You put all parts together first, and then they do not fit into memory. "
            "Take them one by one.",
            "a learner's trial of ours",
        ),
    ],
)

# --- 5.7 -----------------------------------------------------------------------------


def smallest_set(p, top_k, top_p):
    """Return the smallest set of the likeliest that reaches top_p."""
    likeliest = sorted(range(len(p)), key=lambda n: -p[n].item())[:top_k]
    whole = p[likeliest].double().sum().item()
    shares = [p[n].double().item() / whole for n in likeliest]
    sizes = range(1, len(likeliest) + 1)
    n_kept = next((n for n in sizes if sum(shares[:n]) >= top_p), len(likeliest))
    kept = torch.zeros_like(p)
    kept[likeliest[:n_kept]] = p[likeliest[:n_kept]]
    return kept / kept.sum()


def reached_before(total, shares, top_p):
    return total - shares < top_p


def cut_with(keep=reached_before, again=True, scale=True, ordered=False):
    """Return a cut of the tail with something changed."""

    def cut_tail(p, top_k, top_p):
        best, places = p.topk(min(top_k, len(p)))
        shares = best / best.sum() if again else best
        kept = shares * keep(shares.cumsum(0), shares, top_p)
        kept = kept / kept.sum() if scale else kept
        places = torch.arange(len(kept)) if ordered else places
        return torch.zeros_like(p).scatter(0, places, kept)

    return cut_tail


def places_of(answer, p, top_k, top_p):
    """Call an answer; where all are equal, any of them may be left."""
    kept = answer(p, top_k, top_p)
    return kept.sort()[0] if torch.is_tensor(kept) and p.std() == 0 else kept


HALVES = torch.tensor([0.0625, 0.5, 0.125, 0.25, 0.0625])
CUT = Exercise(
    "5.7",
    "top-k and top-p",
    smallest_set,
    judge=places_of,
    cases={
        "all five, p = 0.8": (HALVES, 5, 0.8),
        "two of them make exactly p = 0.75": (HALVES, 5, 0.75),
        "three of them, p = 0.8": (HALVES, 3, 0.8),
        "the likeliest two, p = 0.8": (HALVES, 2, 0.8),
        "p is smaller than the largest": (HALVES, 9, 0.25),
        "four equal ones, the likeliest two": (torch.full((4,), 0.25), 2, 0.8),
    },
    notice="There is always a token left, however small p is.",
    mistakes=[
        Mistake(
            cut_with(lambda total, shares, top_p: total <= top_p),
            "You drop the token with which the sum reaches p. It belongs to the set: "
            "without it p is not reached.",
            "fish-speech pull request 1171; esm pull request 360",
        ),
        Mistake(
            cut_with(lambda total, shares, top_p: total < top_p),
            "You drop the token with which the sum reaches p, even where it is exactly "
            "p. Look at what had been reached before a token.",
            "our own trial",
        ),
        Mistake(
            lambda p, top_k, top_p: smallest_set(p, len(p), top_p),
            "More than `top_k` are left in one of the cases.",
            "our own trial",
        ),
        Mistake(
            cut_with(lambda total, shares, top_p: total - shares <= top_p),
            "One token too many is kept where the sum is exactly p already.",
            "section 5.5: the smallest set that reaches p",
        ),
        Mistake(
            cut_with(scale=False),
            "The right ones are kept, but they no longer add up to 1.",
            "our own trial",
        ),
        Mistake(
            cut_with(ordered=True),
            "The right ones are left, but they have changed their places.",
            "our own trial",
        ),
        Mistake(
            cut_with(again=False),
            "The k that are left should add up to 1 again before p is measured.",
            "openai/gpt-2 issue 187: top-p on what top-k has left",
        ),
        Mistake(
            lambda p, k, q: smallest_set(p, sum(p >= p.sort()[0][-k:][0]), q),
            "Of four equal ones all are left, and `top_k` is 2. A threshold cannot "
            "choose among equals.",
            "a learner's trial of ours",
        ),
    ],
)

# --- 5.8 -----------------------------------------------------------------------------


class Run:
    """A small training run, with all that a run has to remember."""

    def __init__(self):
        self.weight, (self.mean, self.square) = numbers(4, seed=0), torch.zeros(2, 4)
        self.n_steps, self.dice = 0, random.Random(7)

    def train(self, n: int) -> None:
        """Make n more steps."""
        for _ in range(n):
            self.n_steps += 1
            gradient = self.weight - torch.tensor([self.dice.gauss() for _ in "1234"])
            self.mean = 0.9 * self.mean + 0.1 * gradient
            self.square = 0.95 * self.square + 0.05 * gradient**2
            step = self.mean / (self.square.sqrt() + 1e-8)
            self.weight -= step / (9 + self.n_steps)


def save(run, copied=True):
    return copy.deepcopy(vars(run)) if copied else dict(vars(run))


def resume(state, forget=()):
    run = Run()
    known = {name: value for name, value in state.items() if name not in forget}
    vars(run).update(copy.deepcopy(known))
    return run


def resumed(new_run, save, resume, before=3, after=3, more=3, at_once=False):
    """Test a checkpoint; with other arguments it is a weaker test."""
    run = new_run()
    run.train(before)
    state = save(run)
    other = resume(state) if at_once else None
    run.train(after)
    other = other or resume(state)
    other.train(more)
    assert torch.allclose(other.weight, run.weight)


FORGETFUL = {
    "a good one": (save, resume),
    "without the averages": (save, partial(resume, forget=("mean", "square"))),
    "without the number of steps": (save, partial(resume, forget=("n_steps",))),
    "without the random numbers' state": (save, partial(resume, forget=("dice",))),
    "a checkpoint that is no copy": (partial(save, copied=False), resume),
}
RESUME = Exercise(
    "5.8",
    "break it: resume exactly",
    resumed,
    judge=refuses,
    cases={name: (Run, *pair) for name, pair in FORGETFUL.items()},
    notice="Real checkpoints lost just these four things, and nobody noticed for long.",
    mistakes=[
        Mistake(
            partial(resumed, after=0, more=0),
            "Your test accepts all of them. Right after loading they have the same "
            "weights: what is forgotten shows only when both runs go on. (And does it "
            "raise `AssertionError`, as `assert` does?)",
            "the_well issue 77; stylegan2-ada-pytorch issue 108",
        ),
        Mistake(
            partial(resumed, at_once=True),
            "One is still accepted: a checkpoint that is no copy changes while the run "
            "it was made of goes on. So what must have happened before you load it?",
            "PyPOTS issue 667; pytorch/tutorials pull request 188",
        ),
        Mistake(
            partial(resumed, before=0),
            "You refuse only the one that is no copy. Either you save before the first "
            "step, when there is nothing to forget yet; or you allow a difference, and "
            "a good checkpoint goes on exactly.",
            "our own trial, and a learner's",
        ),
        Mistake(
            partial(resumed, more=0),
            "You refuse the good one, too. Have both runs made as many steps when you "
            "compare them?",
            "our own trial",
        ),
    ],
)

# --- 5.9 -----------------------------------------------------------------------------


def ctrl(x, penalty):
    return x / penalty if x > 0 else x * penalty


def penalised(logits, seen, penalty, rule=ctrl, unique=set):
    """Return logits with a lower score for tokens that have occurred."""
    out = logits.clone()
    for n in unique(seen):
        out[n] = rule(out[n], penalty)
    return out


PENALTY = Exercise(
    "5.9a",
    "a decoder: the repetition penalty",
    penalised,
    cases={
        "two tokens have occurred": (torch.tensor([2.0, 1, -1, -2]), [0, 3], 2.0),
        "one of them three times": (numbers(6, seed=0), [4, 1, 4, 4], 1.5),
    },
    notice="It is a rule of thumb: add 10 to all scores, and it does something else.",
    mistakes=[
        Mistake(
            partial(penalised, rule=lambda x, penalty: x / penalty),
            "Look at a token with a negative score: it has become likelier.",
            "transformers issue 2302; NeMo Speech issue 8194",
        ),
        Mistake(
            partial(penalised, unique=list),
            "A token that has occurred three times is punished three times. Once is "
            "enough.",
            "cerebros issue 294: over the unique ids",
        ),
        Mistake(
            partial(penalised, rule=lambda x, penalty: x - penalty),
            "You subtract the penalty. That is another rule; here it is a factor.",
            "FasterTransformer issue 777: two kinds of penalties",
        ),
    ],
)


def extended(beams, model, n_beams, form=log_softmax, join=add, greedy=False, best=1):
    """Return the best of all beams with one more token, best first."""
    longer = []
    for ids, score in beams:
        scores = form(model(ids))
        for n in [scores.argmax().item()] if greedy else range(len(scores)):
            longer.append((ids + [n], join(score, scores[n].item())))
    return sorted(longer, key=lambda beam: -best * beam[1])[:n_beams]


def plain_ids(answer, *given):
    """Call an answer, and accept no tensors among its ids."""
    found = answer(*given)
    return "tensors" if re.search(r"tensor\(\d+\)", repr(found)) else found


def follow(table):
    """Return a model that looks at the last token, and a little at the first."""
    return lambda ids: table[ids[-1]] + 0.3 * table[ids[0]]


TABLE = torch.tensor([[1.0, 0.8, 0.1, 0], [0, 0, 0, 3], [1, 0, 1.5, 0], [0, 2, 0, 0]])
BEAMS = [([0, 1], -1.0), ([0, 0], -0.5), ([0, 2], -3.0)]
EXTEND = Exercise(
    "5.9b",
    "a decoder: one step of beam search",
    extended,
    judge=plain_ids,
    cases={
        "3 beams, the best 4": (BEAMS, follow(TABLE), 4),
        "1 beam, the best 2": ([([2], 0.0)], follow(TABLE), 2),
    },
    notice="All continuations of all beams compete. A good beam may bring two, a bad "
    "one none.",
    mistakes=[
        Mistake(
            partial(extended, form=lambda x: x),
            "You add scores. What can be added up along a text are log-probabilities.",
            "our own trial",
        ),
        Mistake(
            partial(extended, join=lambda score, new: new),
            "You sort by the new token alone. What the beam had before counts as well.",
            "our own trial",
        ),
        Mistake(
            partial(extended, best=-1),
            "Your list begins with the worst.",
            "our own trial",
        ),
        Mistake(
            partial(extended, greedy=True),
            "Each beam brings only its one best token. Let all continuations compete.",
            "fixed share a beam: greedy decoding several times",
        ),
        Mistake(
            partial(extended, form=partial(torch.softmax, dim=-1)),
            "You add probabilities up, but they would have to be multiplied. Their "
            "logarithms can be added.",
            "a learner's trial of ours",
        ),
        Mistake(
            lambda *given: [(list(torch.tensor(i)), p) for i, p in extended(*given)],
            "The ids that you append are tensors of one number. A beam's ids are "
            "plain numbers, as they came in.",
            "a learner's trial of ours",
        ),
    ],
)


def best_of(beams, n_prompt, worth=truediv, more=0):
    return max(beams, key=lambda beam: worth(beam[1], len(beam[0]) - n_prompt + more))[
        0
    ]


SEVEN = {4: -4.1, 5: -2.8, 6: -3.5, 7: -2.6, 9: -2.9, 11: -3.6, 14: -4.7}
BEST = Exercise(
    "5.9c",
    "a decoder: the best text",
    best_of,
    cases={
        "a prompt of [7, 7]; [7, 7, 1] has −0.5, [7, 7, 1, 2] has −0.8": (
            [([7, 7, 1], -0.5), ([7, 7, 1, 2], -0.8)],
            2,
        ),
        "seven lengths": ([([7] * n, p) for n, p in SEVEN.items()], 2),
        "1 or 4 new ones": ([([7] * 3, -0.5), ([7] * 6, -0.9), ([7, 7, 0], -3.0)], 2),
    },
    notice="Ten tokens at −0.1 each are as good as one: each was a good choice.",
    mistakes=[
        Mistake(
            partial(best_of, worth=lambda total, n_new: total),
            "You compare sums, and so short texts have an advantage. Divide by the "
            "number of new tokens.",
            "PreSumm issue 58: shorter beams",
        ),
        Mistake(
            lambda beams, n_prompt: best_of(beams, 0),
            "You divide by the length of the whole text. The prompt cost nothing.",
            "transformers issue 26624",
        ),
        Mistake(
            partial(best_of, more=1),
            "You divide by one token more than there are. Of [7, 7, 1, 2] after a "
            "prompt of 2, two are new.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(best_of, more=-1),
            "You divide by one token less than there are. Of [7, 7, 1, 2] after a "
            "prompt of 2, two are new.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(best_of, worth=lambda total, n_new: total * n_new),
            "You multiply by the number of tokens. Per token means: divide.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(best_of, worth=lambda total, n_new: math.exp(total) / n_new),
            "You divide the probability. Asked for is the log-probability per token.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(best_of, worth=lambda total, n_new: -total / n_new),
            "That is the worst. Log-probabilities are below 0: which is higher?",
            "our own trial",
        ),
    ],
)


def search(model, start, n, most, end, open_too=True, pick=best_of, skip=False):
    """Run beam search, with the finished kept apart."""
    beams, finished = [(list(start), 0.0)], []
    for _ in range(most):
        beams = extended(beams, model, n)
        rest = iter(beams)  # whoever removes one in a loop does not see the next
        done = [b for b in rest if b[0][-1] == end and (not skip or next(rest, 1))]
        finished += done
        beams = [beam for beam in beams if beam not in done]
    return pick(finished + beams * open_too, len(start))


SEARCH = Exercise(
    "5.9d",
    "a decoder: beam search",
    search,
    cases={
        "two beams": (follow(numbers(4, 4, seed=21)), [0], 2, 4, 3),
        "a prompt of 4": (follow(numbers(4, 4, seed=614)), [0, 3, 2, 0], 3, 4, 3),
        "two end in one step": (follow(numbers(4, 4, seed=117)), [0, 3, 2, 0], 3, 4, 3),
        "as many beams as texts": (follow(numbers(4, 4, seed=8)), [1], 64, 3, 0),
    },
    notice="With as many beams as there are texts, it has tried them all.",
    mistakes=[
        Mistake(
            partial(search, pick=lambda beams, n: beams[0][0]),
            "You take the first text that ends. A longer one may be better.",
            "xnmt pull request 572: the shortest hypotheses",
        ),
        Mistake(
            partial(search, pick=lambda beams, n: best_of(beams, 0)),
            "You count the prompt when you divide. It was given, and cost nothing.",
            "transformers issue 26624",
        ),
        Mistake(
            partial(search, open_too=False),
            "You compare only texts that have ended. Others may be better.",
            "our own trial",
        ),
        Mistake(
            lambda model, start, n, most, end: search(model, start, n, most, -1),
            "A text that has ended is continued. Set it aside, as it is.",
            "our own trial",
        ),
        Mistake(
            partial(search, pick=lambda beams, n: best_of(beams, n, lambda p, n: p)),
            "You compare sums at the end. Short texts have an advantage there.",
            "a learner's trial of ours",
        ),
        Mistake(
            partial(search, skip=True),
            "One text that has ended is continued. Do you remove beams from a list "
            "while a loop goes through it? Then the loop steps over the next one.",
            "a learner's trial of ours",
        ),
    ],
)

check = Checks(
    *(LOSS, ORDER, BYTES, SCHEDULE, ADAMW, ACCUMULATE, CUT, RESUME),
    *(PENALTY, EXTEND, BEST, SEARCH),
)
