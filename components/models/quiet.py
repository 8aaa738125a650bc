"""Model libraries that speak only when something is wrong."""

from __future__ import annotations


def quieten() -> None:
    """No notices about optional packages and no bars for writing a few files; errors still show."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
