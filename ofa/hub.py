"""What the Hugging Face hub has: its cache is looked into first, and the hub is asked once."""

import os
import threading

import huggingface_hub

PROBE_SECONDS = 5


def cached(repo: str, file: str) -> str | None:
    """The path of a file in the hub cache, or None."""
    try:
        path = huggingface_hub.try_to_load_from_cache(repo, file)
    except ValueError:  # no valid repository name
        return None
    return path if isinstance(path, str) else None


def unreachable(repo: str) -> str | None:
    """Why the hub does not give a repository, or None; asked once, for a few seconds at most."""
    if huggingface_hub.constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True"):
        return "HF_HUB_OFFLINE is set"
    outcome: list[str | None] = [f"no answer in {PROBE_SECONDS} s"]

    def ask() -> None:
        try:
            huggingface_hub.HfApi().model_info(repo, timeout=PROBE_SECONDS)
            outcome[0] = None
        except Exception as error:  # whatever the HTTP client raises is a reason
            outcome[0] = str(error).splitlines()[0] if str(error) else type(error).__name__

    # a thread, since name resolution and the client's retries know no overall limit
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return outcome[0]
