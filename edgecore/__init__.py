"""One model, many kinds of hardware, and evidence for each."""

__version__ = "0.1.0"
