"""Durations in words: of audio, in the unit that suits it, and of work that one waits for."""


def audio_amount(hours: float) -> str:
    """An amount of audio, or a time that was taken: "36 seconds", "5.4 minutes", "1.5 hours", "83,000 hours"."""
    if hours < 1:
        return f"{3600 * hours:.2g} seconds" if hours < 1 / 60 else f"{60 * hours:.2g} minutes"
    return f"{hours:,.1f} hours" if hours < 100 else f"{hours:,.0f} hours"


def duration(seconds: float) -> str:
    """A time to wait: "40 seconds", "12 minutes", "3 h 20 min", "5 days 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} minutes"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
