"""Publishing on the Hub: the repo is opened before the first step, checkpoints go up meanwhile, the result last."""

import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sjepa_hf.command import UserError
from sjepa_hf.contents import contents
from sjepa_hf.push import open_repo, push


logger = logging.getLogger(__name__)

STAGING = ".uploading"


class NotPushed(UserError):
    """The result of a run is whole, but could not be pushed."""


class Publisher:
    """
    Pushes what a run makes. Checkpoints go up one after another from a thread, so that no step waits, each as a
    revision of its own; one that fails is reported and left out.

    Args:
        repo_id: `owner/name` on the Hub, or a name of the user's own.
        kind: `model_type` of what the run makes; a repo that holds another is refused.
        output_dir: of the run; checkpoints under way lie in a folder of it, as links, safe from `save_total_limit`.
        private: whether a new repo is hidden; None: as the account's settings say.

    Raises:
        ValueError: if the repo cannot be written to, before hours are spent on what is to go there.
    """

    def __init__(self, repo_id: str, kind: str, output_dir: Path, private: bool | None = None):
        self.repo_id = open_repo(repo_id, kind, private=private)
        self._staging = Path(output_dir) / STAGING
        shutil.rmtree(self._staging, ignore_errors=True)  # of a run that was killed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._uploads: list[Future] = []

    def checkpoint(self, directory: Path, revision: str) -> None:
        """Have a checkpoint pushed as `revision`; returns at once."""
        folder = self._staging / str(len(self._uploads))  # the same checkpoint may be saved again meanwhile
        copy = folder / directory.name
        try:
            for name, path in contents(directory).files.items():
                target = copy / name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, target)
                except OSError:  # a file system without links
                    shutil.copyfile(path, target)
        except (OSError, ValueError) as error:
            logger.warning("%s could not be set aside to be pushed: %s", directory, error)
            shutil.rmtree(folder, ignore_errors=True)
            return
        upload = self._thread.submit(self._push_checkpoint, copy, revision)
        upload.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
        self._uploads.append(upload)

    def _push_checkpoint(self, copy: Path, revision: str) -> None:
        try:
            push(copy, self.repo_id, revision=revision)
            logger.info("%s is revision %s of %s on the Hub.", copy.name, revision, self.repo_id)
        except Exception as error:  # a thread's would be lost
            logger.warning("%s could not be pushed to %s: %s", copy.name, self.repo_id, error)

    def stop(self) -> None:
        """Begin no more uploads, as the run ends; one that is under way is not waited for here."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if left_out := sum(upload.cancelled() for upload in self._uploads):
            logger.warning("Checkpoints not pushed to %s, as the run ends early: %d.", self.repo_id, left_out)
        if not all(upload.done() for upload in self._uploads):
            logger.warning("A checkpoint is still on its way to %s: this process ends once it is there.", self.repo_id)

    def finish(self, final: Path) -> None:
        """Wait for the checkpoints under way, then push the result."""
        if waiting := sum(not upload.done() for upload in self._uploads):
            logger.info("Checkpoints on their way to %s before the result: %d.", self.repo_id, waiting)
        self._thread.shutdown(wait=True)
        shutil.rmtree(self._staging, ignore_errors=True)
        publish(final, self.repo_id)


def publish(final: Path, repo_id: str, **options) -> None:
    """
    Push the result of a run; options as in [`sjepa_hf.push.push`].

    Raises:
        NotPushed: if that fails; the result lies where it is, and the sentence says how to try again.
    """
    try:
        logger.info("On the Hub: %s", push(final, repo_id, **options).commit_url)
    except ValueError as error:
        raise NotPushed(
            f"{final} is complete, but was not pushed: {str(error).rstrip('.')}."
            f" Try again with: python -m sjepa_hf.push {final} {repo_id}"
        ) from None
