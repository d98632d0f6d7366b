r"""What the library raises beside ValueError and TypeError."""


class NotANumberError(ValueError):
    r"""A NaN where none may be: in the features or weights that a tree is grown over.

    A training that diverges ends in it, so a training script catches this class to tell divergence
    from a mistake in its arguments.
    """
