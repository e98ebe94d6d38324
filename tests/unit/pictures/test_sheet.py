from __future__ import annotations

import numpy as np
from PIL import Image

from vision_sae.pictures.sheet import contact_sheet


def test_pictures_stand_in_rows_with_white_between_them() -> None:
    red, green, blue = (Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue"))
    sheet = np.asarray(contact_sheet([[red, green], [blue]], gap=1))
    assert sheet.shape == (3 + 1 + 3, 4 + 1 + 4, 3)
    assert (sheet[:3, :4] == (255, 0, 0)).all()
    assert (sheet[:3, 5:] == (0, 255, 0)).all()
    assert (sheet[4:, :4] == (0, 0, 255)).all()
    assert (sheet[:, 4] == 255).all()
    assert (sheet[3:, 4:] == 255).all()  # the gap, and where no picture is


def test_pictures_of_several_sizes_share_a_row_s_height() -> None:
    narrow, wide, low = (Image.new("RGB", size) for size in ((3, 2), (5, 4), (4, 1)))
    sheet = np.asarray(contact_sheet([[narrow, wide], [low]], gap=1))
    assert sheet.shape == (4 + 1 + 1, 3 + 1 + 5, 3)
    assert not sheet[:4, 4:].any()
    assert not sheet[5:, :4].any()
    assert (sheet[2:5, :3] == 255).all()
