"""The web page (extra ``web``): upload a picture, and see the features that fire in it."""

from vision_sae_client.web.privacy import keep_uploads_temporary

# Gradio reads its settings when it is imported, so the settings come before the imports.
keep_uploads_temporary()

try:
    from vision_sae_client.web.page import build_page
    from vision_sae_client.web.start import launch
except ModuleNotFoundError as error:
    if error.name != "gradio":
        raise
    from vision_sae.errors import MissingDependencyError

    raise MissingDependencyError(
        "the web page needs Gradio; install it with `pip install 'vision-sae[web]'`"
    ) from error

__all__ = ["build_page", "launch"]
