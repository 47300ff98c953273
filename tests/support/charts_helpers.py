"""What test_charts and other tests share."""

import struct
import warnings

from matplotlib.text import Text

from abathur_nb.charts import Chart


def drawn(chart: Chart) -> bytes:
    """Return the picture as a notebook shows it, and assert that it is one, with its words, and without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, metadata = chart._repr_mimebundle_()
    picture: bytes = data["image/png"]
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert width == round(chart.get_figwidth() * 160)
    assert 50 < height < 2500
    assert metadata["image/png"] == {"width": 864, "alt": chart.alt}  # the width of a notebook
    assert data["text/plain"] == chart.alt != ""
    assert chart.alt.isprintable()
    return picture


def texts(chart: Chart) -> str:
    return "\n".join(text.get_text() for text in chart.findobj(Text) if isinstance(text, Text))


def is_blank(chart: Chart) -> bool:
    drawn(chart)
    return chart.axes == [] and chart.alt in texts(chart)
