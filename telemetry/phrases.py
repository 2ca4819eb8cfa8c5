"""The English phrases by which derived signals know a correction, an error and a courtesy: plain words, no patterns, so
that anyone can read what is looked for and no text can make the search slow.

Words are compared after `words`: lower case, apostrophes dropped, everything else between letters and digits a gap."""

import re

MAX_CHARACTERS = 2_000
"""How much of a text is looked at: what somebody objects to, or which error it is, is said early."""

CORRECTIONS = (
    "thats not what i", "that is not what i", "not what i asked", "not what i said", "not what i meant",
    "not what i wanted", "i didnt ask", "i did not ask", "i never asked", "i didnt say", "i did not say",
    "i never said", "you misunderstood", "you have misunderstood", "you got it wrong", "you got that wrong",
    "you made a mistake", "you made an error", "thats wrong", "that is wrong", "this is wrong", "thats incorrect",
    "that is incorrect", "this is incorrect", "thats not right", "that is not right", "thats not correct",
    "that is not correct", "doesnt look right", "does not look right", "dont look right", "there seems to be a mistake",
    "there is a mistake", "theres a mistake", "theres been a mistake", "there seems to be a mix up",
    "there seems to be a misunderstanding", "there might be a misunderstanding",
    "there has been a misunderstanding", "there must be a mistake", "there must be some mistake", "actually i did",
    "actually i didnt", "theres been a misunderstanding", "i meant", "i already told you",
    "as i already said", "i already said", "i already gave you", "i already provided", "no i wanted", "no i asked",
    "no i said", "you ignored", "you didnt answer", "you did not answer", "try again you",
)  # fmt: skip
"""A user says that the answer before was wrong."""

ERRORS = (
    "error",
    "exception",
    "traceback",
    "failed",
    "failure",
    "fatal",
    "unauthorized",
    "permission denied",
)
"""A tool's result that begins with one of these, or with a name that ends in `Error` or `Exception`, is an error."""

COURTESIES = (
    "anything else", "any other", "anything more", "further assistance", "more help", "how does that sound",
    "else i can", "else can i", "more i can", "how can i help", "how may i help", "how can i assist",
    "how may i assist",
)  # fmt: skip
"""A question that leaves nothing open: a run that ends with one has ended."""

ENDINGS = frozenset({
    "transfer", "handoff", "handover", "escalate", "finish", "done", "end", "exit", "stop", "submit", "final",
    "complete",
})  # fmt: skip
"""A call of a tool with one of these words in its name ends a run; nobody is expected to answer it."""

AGREEMENTS = frozenset({"yes", "yeah", "yep", "sure", "ok", "okay", "correct", "right", "exactly", "perfect"})
"""A message that begins with one of these agrees: it repeats what it agrees to, and is not said again."""

_NOT_WORDS = re.compile(r"[^\w]+")
_APOSTROPHES = str.maketrans("", "", "'\u2019`")


def words(text: str) -> list[str]:
    """The words at the beginning of a text, in lower case."""
    return _NOT_WORDS.sub(" ", text[:MAX_CHARACTERS].translate(_APOSTROPHES).lower()).split()


def found(phrases: tuple[str, ...], text: str) -> str:
    """The first of the phrases that stands in the text as whole words; empty when none does."""
    padded = f" {' '.join(words(text))} "
    return next((phrase for phrase in phrases if f" {phrase} " in padded), "")


FILLERS = frozenset(words(
    "a also an and any anything are as at be by can could do for from get go have hello help hi i id if ill im in is it"
    " its ive just know let like make me my need no of on one or please so some thank thanks that the then there this"
    " to up us want was what will with would you your youre"
))  # fmt: skip
"""Words that two messages may share and still say different things."""
