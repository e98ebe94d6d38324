"""``python -m vision_sae.cli``"""

from vision_sae.cli import app

app()
