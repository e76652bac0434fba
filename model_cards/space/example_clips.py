"""Clips to try the page with: those of a folder, else one that comes with the page."""

from pathlib import Path


MOST = 8
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
CLIP = Path(__file__).with_name("clip.opus")  # LJ001-0004 of LJ Speech (Ito & Johnson 2017), public domain


def find_examples(folder: str | None) -> list[Path]:
    """
    At most eight clips, in the order of their names.

    Raises:
        ValueError: if a folder is named and has none.
    """
    if folder is None:
        return [CLIP]
    clips = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not clips:
        raise ValueError(f"`examples` {folder} is not a folder with audio ({', '.join(sorted(SUFFIXES))}).")
    return clips[:: max(1, len(clips) // MOST)][:MOST]
