"""Whether the Hugging Face hub can be reached, asked once and quietly."""

from __future__ import annotations


def reach(endpoint: str | None = None) -> None:
    """Fail at once where there is no way to the hub: its client would try again for half a minute, line by line.

    Raises:
        Exception: of the hub's client or its HTTP library, by version; callers tell it in their own words.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    get_session().head(endpoint or constants.ENDPOINT, timeout=20)
