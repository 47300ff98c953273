"""What may stay of a notebook's HTML in the page of a run: tables, text, pictures; nothing that runs or loads."""

import re
from base64 import b64encode

__all__ = ["clean", "picture_of"]

_TAGS = (
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6"
    " hr i img ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr tt"
    " u ul var"
)
_DROPPED_WHOLE = "embed iframe math noscript object script style svg template title"
_CELL = {"align", "colspan", "rowspan", "scope", "valign"}
_ATTRIBUTES = {
    "*": {"style", "title"},
    "a": {"href"},
    "details": {"open"},
    "img": {"alt", "height", "src", "width"},
    "ol": {"start"},
    "td": _CELL,
    "th": _CELL,
}
_CLASSES = {"div": {"abathur-report"}, "table": {"dataframe"}}
# None that moves, hides or enlarges: what a cell shows must not pass for the verdict above it.
_PROPERTIES = (
    "background background-color border border-bottom border-collapse border-color border-left border-right"
    " border-style border-top border-width color font-family font-style font-weight max-width min-width overflow-wrap"
    " padding padding-bottom padding-left padding-right padding-top table-layout text-align text-decoration"
    " vertical-align white-space width word-break"
)
# Of all functions only those of colours: url() and its kin would load something.
_DECLARATION = re.compile(r"\s*([a-z-]+)\s*:(?:[\w\s.,#%!+-]|(?:rgb|hsl)a?\([\d\s.,%/deg]*\))+")
_LINK = re.compile(r"(?:https?://|mailto:)\S+")
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]+")
# Shapes and words: no script, style sheet, link, animation or picture, and no value that loads something.
_SHAPES = "circle desc ellipse g line path polygon polyline rect text title tspan svg"
_DRAWN = (
    "cx cy d fill font-family font-size font-style font-weight height points r role rx ry stroke stroke-dasharray"
    " stroke-width text-anchor viewBox width x x1 x2 y y1 y2"
)
_GIVEN = rf'(?: (?:{"|".join(_DRAWN.split())})="[\w .,#%+-]*+")*+'
_SVG = re.compile(
    rf'<svg xmlns="http://www\.w3\.org/2000/svg"{_GIVEN}>'
    rf"(?:</?(?:{'|'.join(_SHAPES.split())}){_GIVEN}/?>|[^<>&]++|&(?:amp|lt|gt|quot|#\d{{1,7}});)*+"
)


def clean(html: str) -> str:
    """Return what is safe of a piece of HTML, balanced, so that it can't reach beyond its place in a page."""
    # nh3 parses as browsers do. bleach, which nbconvert uses, is archived, keeps url() in a style, and takes 40 times
    # as long. nh3's own filter of styles writes some values anew, and those wrongly, so _kept does that.
    import nh3

    return nh3.clean(
        html.encode(errors="backslashreplace").decode(),  # a lone surrogate would be refused
        tags=set(_TAGS.split()),
        clean_content_tags=set(_DROPPED_WHOLE.split()),
        attributes=_ATTRIBUTES,
        attribute_filter=_kept,
        allowed_classes=_CLASSES,
        url_schemes={"data", "http", "https", "mailto"},
        url_relative="deny",  # no page of an archive stands where its notebook stood
    )


def _kept(_tag: str, name: str, value: str) -> str | None:
    """Return what stays of an attribute's value, or None."""
    if name == "style":
        kept = ";".join(declaration for declaration in value.split(";") if _harmless(declaration))
        return kept if kept.strip("; ") else None
    wanted = {"href": _LINK, "src": _PICTURE}.get(name)
    return value if wanted is None or wanted.fullmatch(value) else None


def _harmless(declaration: str) -> bool:
    found = _DECLARATION.fullmatch(declaration)
    return not declaration.strip() or (found is not None and found[1] in _PROPERTIES.split())


def picture_of(mime: str, text: str) -> str:
    """Return a notebook's picture in base64, or nothing for what is none, or an SVG of more than shapes and words."""
    if mime == "image/svg+xml":
        # As the source of an img no browser would run or load what it holds; so it is harmless by itself, too.
        return b64encode(text.encode(errors="backslashreplace")).decode() if _SVG.fullmatch(text) else ""
    return "".join(text.split()) if _BASE64.fullmatch(text) else ""
