"""What bad input is answered with."""

from aigc_jax.errors import UserError


def refusal(function, *args) -> str:
    """The message of the `UserError` that a call ends with; "" if it returns."""
    try:
        function(*args)
    except UserError as error:
        return str(error)
    return ""
