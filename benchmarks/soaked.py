"""placeholder"""


def soak(domain, minutes): ...
