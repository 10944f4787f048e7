"""The group *run, text*: tokens in, tokens out, and everything that generation promises about them.

    text_common    the shape of these checks, and how far answers may be from the oracle's
    text_ops       calls on a context as data
    text_logits    logits, by whichever way they are asked for
"""

from edgecore_conformance.checks import text_logits

__all__ = ["text_logits"]
