"""Commands, a file each, and what they are made of, a folder each."""

import sys
from types import TracebackType


def tell_what_to_install(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    """Print an error that nobody has caught; that of a package that is not installed ends with the way out."""
    sys.__excepthook__(kind, error, place)
    if issubclass(kind, ModuleNotFoundError):
        way_out = 'in the clone, `pip install --editable ".[train]"` installs what the commands need'
        print(f"error: {error}: {way_out}.", file=sys.stderr)


if sys.argv[:1] == ["-m"]:  # `python -m training...`, whose first line may be the import that fails
    sys.excepthook = tell_what_to_install
