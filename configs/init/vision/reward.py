"""Your reward. One number a completion; None where it does not apply. Every column of the data is a keyword."""


def score(completions, answer, **row):
    """1 for the right answer, whatever its case."""
    return [float(text.strip().lower() == right.lower()) for text, right in zip(completions, answer, strict=True)]


def short(completions, **row):
    """Prefers answers of one word."""
    return [float(len(text.split()) == 1) for text in completions]
