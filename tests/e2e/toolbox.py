"""Tools of the end-to-end tests, offered as "toolbox:add"."""


def add(a: int, b: int) -> int:
    """Adds two small numbers.

    Args:
        a: First number, 0 to 9.
        b: Second number, 0 to 9.
    """
    if a > 9 or b > 9:
        raise ValueError("only numbers up to 9")
    return a + b
