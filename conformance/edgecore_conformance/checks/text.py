"""The group *run, text*: tokens in, tokens out, and everything that generation promises about them.

    text_common    the shape of these checks, and how far answers may be from the oracle's
    text_ops       calls on a context, as data
    text_lines     hard lines for tokenizers
    text_logits    logits, by whichever way they are asked for
    text_long      prompts of more than a thousand tokens
    text_tokens    text to tokens and back, conversations to prompts
    text_generate  generation, where the answer is known beforehand
    text_sampling  seeds and distributions
    text_limits    what does not fit, and what makes no sense
    text_state     what a session may remember, and what it must forget

Imported in this order: it is the order of the rows.
"""

from edgecore_conformance.checks import text_logits  # isort: skip
from edgecore_conformance.checks import text_long  # isort: skip
from edgecore_conformance.checks import text_tokens  # isort: skip
from edgecore_conformance.checks import text_generate  # isort: skip
from edgecore_conformance.checks import text_sampling  # isort: skip
from edgecore_conformance.checks import text_limits  # isort: skip
from edgecore_conformance.checks import text_state  # isort: skip

__all__ = ["text_generate", "text_limits", "text_logits", "text_long", "text_sampling", "text_state", "text_tokens"]
