"""The error of the compat modules where the originals have a type of their own."""


# No stub: NotImplementedError is what the originals raise for a wrong value, so callers may catch it.
class UnknownChoice(ValueError, NotImplementedError):
    """A value that the original does not know either.

    Wrong input is a ValueError here. causal-conv1d and mamba-ssm have the other base's type for an activation or a
    `dt_init` that is none of theirs, and code written for them may catch it: this is both. Nothing is left out.
    """
