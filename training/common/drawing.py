"""Words of users in pictures."""

from sjepa_hf.contents import shown


def caption(text: str, most: int = 60) -> str:
    """A name as a title or label: on one line, cut in its middle, never read as a formula or hidden from a legend."""
    text = shown(" ".join(text.split()), most).replace("$", r"\$")
    return "\N{ZERO WIDTH SPACE}" + text if text.startswith("_") else text
