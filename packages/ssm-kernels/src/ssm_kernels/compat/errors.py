"""The error of the compat modules where the originals have a type of their own."""


class UnknownChoice(ValueError, NotImplementedError):
    """A value that the original does not know either.

    Wrong input is a ValueError here. causal-conv1d and mamba-ssm raise NotImplementedError for an activation or a
    `dt_init` that is none of theirs, and code written for them may catch that: this is both. Nothing is left out.
    """
