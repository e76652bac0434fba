"""Publish a checkpoint on the Hugging Face Hub.

    python -m sjepa_hf.push runs/mine/final ada/my-speech-encoder
    python -m sjepa_hf.push runs/asr/final ada/my-recogniser --private --revision v2
    python -m sjepa_hf.push runs/mine/final ada/my-speech-encoder --dry_run

One commit brings everything that a colleague needs: weights, configuration, the model's code, feature extractor,
tokenizer, model card with its pictures, record of the training, evaluation results and adapters. Nothing else that
lies in the directory goes, and no link is followed; what stays is named. With --dry_run both are listed, and nothing
is sent. The token is that of `hf auth login` or HF_TOKEN. HF_ENDPOINT chooses another Hub.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from .command import CommandParser, command, first_line
from .contents import CARD, RECORD, contents, read_json, shown, without_paths
from .model_card import MARK, card_files
from .opening import is_repo_id


logger = logging.getLogger(__name__)

STALE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|adapter/adapter_model\.safetensors"
)
NAMED = 10  # of what stays here; --dry_run names all
ATTEMPTS, FIRST_WAIT = 5, 1.0  # tries to commit, and seconds before the second; each wait is twice the last


def push(
    checkpoint: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> CommitInfo:
    """
    Publish a checkpoint directory as a model repository, in one commit: readers see all of it or nothing. A repo that
    is new, or yours and of the same kind of model, is filled; weights that the checkpoint no longer has are deleted.
    What goes is what [`sjepa_hf.contents.contents`] lists; in its settings, paths of this machine become mere names.

    Without a README.md in the checkpoint, a card is written from what it holds, unless the repo has one that people
    have written, or that knows more (of a training whose record the checkpoint lacks).

    Args:
        repo_id: `name` or `owner/name`.
        private: whether a new repo is hidden; None: as the account's settings say.
        revision: branch to commit to, made if need be; None: main.
        token: access token; None: the one that is logged in.
        message: the commit's message.

    Raises:
        ValueError: for a directory that is not a complete checkpoint, a repo that cannot be written to or holds
            another kind of model, a token that is refused, and a connection that fails for good.
    """
    checkpoint = Path(checkpoint)
    sorted_files = contents(checkpoint)
    files = {name: without_paths(name, path) for name, path in sorted_files.files.items()}
    kind = model_type(sorted_files.files["config.json"])
    repo_id = open_repo(repo_id, kind, private=private, revision=revision, token=token)
    if sorted_files.left_out:
        logger.info("%s", what_stays(checkpoint, sorted_files.left_out))
    api = HfApi(token=token)
    with hub_errors(api, repo_id):
        present = set(api.list_repo_files(repo_id, revision=revision))
        card = {}
        if CARD not in files and wants_card(api, files, present, repo_id, revision):
            card = {name: text.encode() for name, text in card_files(checkpoint, repo_id=repo_id).items()}
        return commit(api, card | files, present, repo_id, revision, message or f"Upload {checkpoint.resolve().name}")


def what_stays(checkpoint: Path, left_out: dict[str, str]) -> str:
    """A sentence that names what is not published; many are cut."""
    names = [shown(name) for name in left_out]
    more = f" and {len(names) - NAMED} more (--dry_run names all)" if len(names) > NAMED else ""
    return f"{len(names)} of {checkpoint} stay here: {', '.join(names[:NAMED])}{more}"


def listing(checkpoint: str | Path, repo_id: str) -> str:
    """
    What [`push`] would send, with sizes in bytes, and what would stay here and why. Nothing is connected to.

    Raises:
        ValueError: for a directory that is no complete checkpoint, and a name that no repo can have.
    """
    checkpoint = Path(checkpoint)
    check_name(repo_id)
    parts = contents(checkpoint)
    files = {name: without_paths(name, path) for name, path in parts.files.items()}
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    lines = [f"{len(sizes)} files, {sum(sizes.values()):,} bytes, would go to {repo_id}:"]
    for name, size in sizes.items():
        without = "  (without the paths of this machine)" if isinstance(files[name], bytes) else ""
        lines.append(f"{size:>16,}  {shown(name)}{without}")
    if CARD not in sizes:
        lines.append(f"{'':>16}  {CARD}  (made from these, unless the repo has one that people have written)")
    lines.append(f"{len(parts.left_out)} would stay here{':' if parts.left_out else '.'}")
    lines += [f"{'':>16}  {shown(name)}  ({why})" for name, why in parts.left_out.items()]
    return "\n".join(lines)


def open_repo(
    repo_id: str,
    kind: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """
    Make sure that a model repo is there and may be written to, before hours of work are to be put into it.

    Args:
        kind: the `model_type` of what is to go there: the repo must not hold a model of another.

    Returns:
        `owner/name`.

    Raises:
        ValueError: as [`push`] does.
    """
    api = HfApi(token=token)
    check_name(repo_id)
    with hub_errors(api, repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if api.file_exists(repo_id, "config.json", revision=revision):
            theirs = model_type(Path(api.hf_hub_download(repo_id, "config.json", revision=revision)))
            if theirs != kind:
                raise ValueError(
                    f"{repo_id} is taken: it holds a {theirs} model, not a {kind} model. Choose another name."
                )
    return repo_id


def check_name(repo_id: str) -> None:
    """Raise a ValueError for what cannot be the name of a repo."""
    if not is_repo_id(repo_id):
        raise ValueError(
            f"'{shown(repo_id)}' cannot be the name of a repo: use NAME or OWNER/NAME, of letters, digits, '-',"
            " '_' and '.', with at most 96 characters."
        )


def wants_card(
    api: HfApi, files: dict[str, Path | bytes], present: set[str], repo_id: str, revision: str | None
) -> bool:
    """Whether the repo has no card yet, or a generated one of an earlier training."""
    if CARD not in present:
        return True
    theirs = Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8", errors="replace")
    return MARK in theirs and RECORD in files


def model_type(config: Path) -> str:
    """The kind of model that a config.json is of."""
    return str(read_json(config).get("model_type", "unknown"))


@contextmanager
def hub_errors(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turn what the Hub and the connection to it can refuse into a ValueError of one sentence."""
    try:
        yield
    except RevisionNotFoundError:
        raise ValueError(f"{repo_id} has no such revision.") from None
    except RepositoryNotFoundError:
        raise ValueError(f"{repo_id} does not exist, or is private to someone else: choose another name.") from None
    except HfHubHTTPError as error:
        raise ValueError(refusal(error, repo_id)) from None
    except httpx.TransportError as error:
        raise ValueError(f"The connection to {api.endpoint} failed: {first_line(error)}.") from None
    except RuntimeError as error:  # how an upload of large files fails
        if not isinstance(error.__cause__, HfHubHTTPError | httpx.TransportError):
            raise
        with hub_errors(api, repo_id):
            raise error.__cause__ from None


def commit(
    api: HfApi, files: dict[str, Path | bytes], present: set[str], repo_id: str, revision: str | None, message: str
) -> CommitInfo:
    """
    One commit, tried again where the connection breaks; what is uploaded by then is not sent twice. Where the answer
    alone was lost, `present` is looked up again: a file that is gone cannot be deleted.
    """
    for attempt in range(ATTEMPTS):
        try:
            if attempt:
                present = set(api.list_repo_files(repo_id, revision=revision))
            stale = sorted(name for name in present - files.keys() if STALE.fullmatch(name))
            if stale:
                logger.info("Weights that this checkpoint does not have are deleted: %s.", ", ".join(stale))
            operations = [CommitOperationDelete(name) for name in stale]
            operations += [CommitOperationAdd(name, content) for name, content in files.items()]
            return api.create_commit(repo_id, operations, commit_message=message, revision=revision)
        except (httpx.TransportError, HfHubHTTPError, RuntimeError) as error:
            if attempt + 1 == ATTEMPTS or not is_transient(error):
                raise
            wait = FIRST_WAIT * 2**attempt
            logger.warning("The upload broke off (%s); trying again in %g s.", first_line(error), wait)
            time.sleep(wait)


def is_transient(error: Exception) -> bool:
    """Whether an error may be gone by the next attempt: the connection broke, or the Hub itself is at fault."""
    cause = error.__cause__ if isinstance(error, RuntimeError) else error  # how an upload of large files fails
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500 and cause.response.status_code != 507
    return isinstance(cause, httpx.TransportError)


def refusal(error: HfHubHTTPError, repo_id: str) -> str:
    """One sentence on what the Hub refuses, and the way out."""
    status = error.response.status_code
    if status == 401:
        return "The Hub refuses the access token: `hf auth login`, or set HF_TOKEN to one with write permission."
    if status == 403:
        return f"The access token may not write to {repo_id}: use a name of your own, or a token that may."
    if status == 507:
        return "The Hub has no space left for these files; nothing was published."
    return f"The Hub answered {status} for {repo_id}: {error.server_message or error}"


@command
def main(argv: list[str] | None = None) -> None:
    """Publish what the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", help="directory of the checkpoint")
    parser.add_argument("repo_id", help="owner/name on the Hub, or a name of your own")
    parser.add_argument("--private", action="store_true", default=None, help="hide a new repo from others")
    parser.add_argument("--revision", help="branch to commit to")
    parser.add_argument("--message", help="commit message")
    parser.add_argument("--dry_run", action="store_true", help="list what would go and what would stay; send nothing")
    arguments = vars(parser.parse_args(argv))
    if arguments.pop("dry_run"):
        print(listing(arguments["checkpoint"], arguments["repo_id"]))
    else:
        print(push(**arguments).commit_url)


if __name__ == "__main__":
    main()
