"""Output folder of a corpus: what it holds, which shards are done; nothing is mixed, doubled or half-written."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sjepa_hf.command import UserError
from sjepa_hf.contents import read_json
from sjepa_hf.saving import apply_directory_mode, flush, named_in_errors, visible_in, write_text_aside


RECORD, PROGRESS = "corpus.json", ".progress"


class OutputFolder:
    """
    The folder of one corpus: `corpus.json` says what is in it, `.progress/` which shards are done.

    Args:
        directory: the folder; made if it is not there.
        settings: what decides its contents, for JSON.
        process_index: of the process that writes.

    Raises:
        ValueError: if it holds something else, or the same under other settings.
        UserError: if another run is writing it.
    """

    def __init__(self, directory: str | Path, settings: dict, process_index: int = 0):
        self.directory, self.settings = Path(directory), json.loads(json.dumps(settings))
        self.progress = self.directory / PROGRESS
        record = self.directory / RECORD
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{directory} is a file: name a folder that is not there.")
        there = {path.name for path in visible_in(self.directory)} if self.directory.is_dir() else set()
        if record.is_file():  # looked for last: another process may just have written it
            self._check(record)
        elif there - {PROGRESS}:
            raise ValueError(f"{directory} is there already and holds something else: name a new folder.")
        self.progress.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.progress / f"process-{process_index}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{directory} is being written by another run: wait, or name another folder.") from None
        if not record.is_file():
            self._write_record({"complete": False})

    def _check(self, record: Path) -> None:
        try:
            before = read_json(record)["settings"]
        except (ValueError, KeyError):
            raise ValueError(f"{record} was not written by this command: name a folder that is not there.") from None
        if before.get("weights") != self.settings.get("weights"):
            raise ValueError(
                f"{self.directory} holds {before.get('what')} of {before.get('checkpoint')} as it was, not of"
                f" {self.settings.get('checkpoint')} as it is: its weights differ. Name another folder."
            )
        for name in [name for name in self.settings if name != "checkpoint"]:  # it may have moved
            if before.get(name) != self.settings[name]:
                raise ValueError(
                    f"{self.directory} holds what was made with `{name}` {_short_json(before.get(name))}, now it is"
                    f" {_short_json(self.settings[name])}: name another folder, or go on as before."
                )

    def _write_record(self, facts: dict) -> None:
        text = json.dumps({"settings": self.settings} | facts, indent=1, ensure_ascii=False) + "\n"
        write_text_aside(self.directory / RECORD, text)

    def is_done(self, shard: int) -> bool:
        """Whether a shard is whole."""
        return self._marker(shard).is_file()

    @contextmanager
    def shard(self, shard: int, facts: dict) -> Iterator[Path]:
        """
        Write the files of a shard into a folder aside; they get their places when all are whole, and the shard counts
        as done after that. `facts`, for JSON, may be filled in meanwhile.
        """
        aside = self.progress / f"{shard:06d}.incomplete"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        with named_in_errors(self.directory):
            yield aside
            apply_directory_mode(aside)
            flush(aside)
        for path in sorted(aside.iterdir()):
            os.replace(path, self.directory / path.name)
        aside.rmdir()
        write_text_aside(self._marker(shard), json.dumps(facts) + "\n")

    def _marker(self, shard: int) -> Path:
        return self.progress / f"{shard:06d}.json"

    def finish(self, num_shards: int) -> dict | None:
        """
        The totals of all shards, which `corpus.json` then says too; None while some are not done, those of another
        process.
        """
        if not all(map(self.is_done, range(num_shards))):
            return None
        facts = [read_json(self._marker(shard)) for shard in range(num_shards)]
        bad = [pair for each in facts for pair in each["bad"]]
        totals = {name: sum(each[name] for each in facts) for name in facts[0] if name != "bad"}
        totals |= {"bad_clips": dict(sorted(Counter(reason for _, reason in bad).items())), "bad": bad}
        self._write_record({"complete": True, "shards": num_shards, **totals})
        return totals

    def close(self) -> None:
        """Let another run write."""
        self._lock.release()


def units_settings(folder: str | Path) -> dict:
    """
    The recorded settings of a corpus of units: clusters, weights, format, clips.

    Raises:
        ValueError: if the folder holds none, or not all of it.
    """
    record = Path(folder) / RECORD
    if not record.is_file():
        raise ValueError(f"`units` {folder} holds no corpus of units: python -m training.units writes one.")
    try:
        known = read_json(record)
        settings, complete = known["settings"], known["complete"] and known["clips"]
    except (ValueError, KeyError):
        raise ValueError(f"`units` {folder} is not whole: run the command that wrote it again.") from None
    if settings["what"] != "units":
        raise ValueError(f"`units` {folder} holds {settings['what']}, not units.")
    if not complete:
        raise ValueError(f"`units` {folder} is not whole, or has no clip: run the command that wrote it again.")
    return settings


def _short_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
