from edgecore.contract import Weights


def measure(xml, fallbacks=()):
    return Weights(0, 0, 0, tuple(fallbacks))
