"""Keys of a config's data section that its source would not obey: they are refused."""

from typing import Any

from aigc_jax.errors import UserError, printable


def check_sizes(section: Any) -> None:
    """What can be said of the section of a text before its source is known.

    Raises:
        UserError: a size is none, or a key is there without the one that it belongs to.
    """
    for key in ("block_size", "stride"):
        if section[key] < 1:
            raise UserError(f"data.{key}={section[key]}: use a number of tokens from 1 up")
    if section.get("on_bad", "stop") != "stop" and not section.get("labels"):
        raise UserError("data.on_bad of texts is for those with data.labels; leave it out")
    if section.get("pack") and not section.get("pair"):
        raise UserError("data.pack is for pairs of files, data.pair; leave it out")
    if section.get("source_tokenizer") and not section.get("pair"):
        raise UserError("data.source_tokenizer is for pairs of files, data.pair; leave it out")


def check_no_files(section: Any, what: str, has_documents: bool) -> None:
    """Of a source that is no file and no folder.

    Args:
        section: of the config.
        what: what it is instead.
        has_documents: whether its documents can be told apart.

    Raises:
        UserError: there is a key for files.
    """
    name, documents = printable(section.source), section.get("documents", "")
    for key in ("labels", "pair"):
        if section.get(key):
            raise UserError(f"data.{key} is for files and folders; {name} is {what}: leave it out")
    if documents == "messages":
        raise UserError(
            f'data.documents="messages" is for files of conversations; {name} is {what}: leave it '
            "out"
        )
    if documents and not has_documents:
        raise UserError(f"data.documents: {name} has no documents to tell apart; leave it out")


def check_files(section: Any) -> None:
    """Of a file or a folder.

    Raises:
        UserError: two keys say in different ways what it holds.
    """
    for key, others in {"labels": ("pair", "documents"), "pair": ("documents",)}.items():
        for other in others:
            if section.get(key) and section.get(other):
                raise UserError(f"data.{other} and data.{key} exclude each other; leave out one")
