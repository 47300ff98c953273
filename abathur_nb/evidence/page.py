"""Render the page of a run: one HTML file without scripts or external content; the notebook's HTML is sanitized."""

import argparse
import json
import os
import re
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abathur_nb.config.parameters import INJECTED_TAG
from abathur_nb.errors import RefusedError
from abathur_nb.evidence.canonical import sha256
from abathur_nb.evidence.record import NOTEBOOK, PAGE, VERDICTS, Record, find_run
from abathur_nb.evidence.stores import chosen_archive, local
from abathur_nb.files import make_private_file, read_regular
from abathur_nb.report import Status
from abathur_nb.text import counted, printable

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
# No property that moves or hides content: an output must not cover or imitate the verdict.
_PROPERTIES = (
    "background background-color border border-bottom border-collapse border-color border-left border-right"
    " border-style border-top border-width color font-family font-style font-weight max-width min-width overflow-wrap"
    " padding padding-bottom padding-left padding-right padding-top table-layout text-align text-decoration"
    " vertical-align white-space width word-break"
)
# Only colour functions are allowed: url() and similar ones would load a file.
_DECLARATION = re.compile(r"\s*([a-z-]+)\s*:(?:[\w\s.,#%!+-]|(?:rgb|hsl)a?\([\d\s.,%/deg]*\))+")
# A file only if it is the page of a run: a fleet run links to those of its databases.
_LINK = re.compile(r"(?:https?://|mailto:)\S+|file:///\S+/page\.html")
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]+")


def clean(html: str) -> str:
    """Return the safe part of a piece of HTML, balanced, so that it can't affect the page around it."""
    # nh3 parses as browsers do. bleach, which nbconvert uses, is archived, keeps url() in a style, and takes 40 times
    # as long. nh3's own style filter rewrites some values wrongly, so _kept filters styles.
    import nh3

    return nh3.clean(
        html.encode(errors="backslashreplace").decode(),  # nh3 refuses lone surrogates
        tags=set(_TAGS.split()),
        clean_content_tags=set(_DROPPED_WHOLE.split()),
        attributes=_ATTRIBUTES,
        attribute_filter=_kept,
        allowed_classes=_CLASSES,
        url_schemes={"data", "file", "http", "https", "mailto"},
        url_relative="deny",  # relative links do not work from the archive
    )


def _kept(_tag: str, name: str, value: str) -> str | None:
    """Return the safe part of an attribute's value, or None to drop the attribute."""
    if name == "style":
        kept = ";".join(declaration for declaration in value.split(";") if _harmless(declaration))
        return kept if kept.strip("; ") else None
    wanted = {"href": _LINK, "src": _PICTURE}.get(name)
    return value if wanted is None or wanted.fullmatch(value) else None


def _harmless(declaration: str) -> bool:
    found = _DECLARATION.fullmatch(declaration)
    return not declaration.strip() or (found is not None and found[1] in _PROPERTIES.split())


def picture_of(mime: str, text: str) -> str:
    """Return a notebook's picture in base64; an empty text if it is invalid."""
    if mime == "image/svg+xml":  # in an img, browsers neither run nor load its content
        return b64encode(text.encode(errors="backslashreplace")).decode()
    return "".join(text.split()) if _BASE64.fullmatch(text) else ""


_ORDER: tuple[Status, ...] = ("fail", "error", "warn", "pass", "skip")  # as in a report
_TEMPLATE = Path(__file__).with_name("page.html.j2")
_RUN_ID = re.compile(r"[0-9A-Za-z-]{1,64}")  # safe in a style sheet, where HTML escaping has no effect
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def render(notebook: Mapping[str, Any], record: Record, *, as_template: bool = True) -> bytes:
    """Return an executed notebook as one HTML page, headed by what its record says. Read-only.

    ``as_template`` says whether the notebook has the cells of the template that its record names. The same
    input gives the same bytes. page.html.j2 escapes every text; HTML and Markdown of the notebook are sanitized.
    """
    from jinja2 import ChainableUndefined, Environment

    environment = Environment(
        autoescape=True,
        finalize=_shown,
        undefined=ChainableUndefined,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
    )
    environment.filters |= {"as_text": _text, "markdown": _markdown, "shown": _output}
    cells = [{**cell, "number": number} for number, cell in enumerate(notebook["cells"])]
    mark, meaning = VERDICTS[record.verdict]
    counts = Counter(check.status for check in record.checks)
    noted = ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        record=record,
        mark=mark,
        meaning=f"{meaning.capitalize()}.",
        counts=f"{counted(len(record.checks), 'check')}: {noted}." if noted else "",
        as_template=as_template,
        cells=[cell for cell in cells if cell["source"].strip() or cell.get("outputs")],
        injected=INJECTED_TAG,
        footer_id=record.run_id if _RUN_ID.fullmatch(record.run_id) else "",
    )
    return page.encode()


def _shown(value: Any) -> Any:
    """Return what the template shows of a value; the template escapes it unless it was sanitized."""
    if value is None or hasattr(value, "__html__"):
        return "–" if value is None else value
    return printable(value.expandtabs() if isinstance(value, str) else str(value))


def _text(value: Any) -> str:
    """Return a notebook's text, which may be a list of lines, as one string; anything else as JSON."""
    if isinstance(value, list):
        return "".join(_text(line) for line in value)
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False, default=str)


def _output(output: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the page shows of an output; the ``kind`` is html, text, stderr, error or picture.

    Of several MIME types the best one is shown, never a script.
    """
    if output["output_type"] == "stream":
        kind = "stderr" if output["name"] == "stderr" else "text"
        shown = _terminal(_text(output["text"])).strip("\n")
        return {"kind": kind, "text": shown} if shown else None
    if output["output_type"] == "error":
        line = f"{output['ename']}: {output['evalue']}"
        noted = _terminal("\n".join(output["traceback"]))
        return {"kind": "error", "text": _terminal(line), "traceback": noted if noted.strip() != line.strip() else ""}
    data = output["data"]
    if "text/html" in data:
        return {"kind": "html", "html": clean(_text(data["text/html"]))}
    for mime in ("image/png", "image/jpeg", "image/svg+xml"):
        if picture := picture_of(mime, _text(data.get(mime, ""))):
            about = output["metadata"].get(mime)
            about = about if isinstance(about, Mapping) else {}
            alt = _text(about.get("alt") or data.get("text/plain") or "a picture without a description")
            width = about.get("width") if isinstance(about.get("width"), int) else ""
            return {"kind": "picture", "url": f"data:{mime};base64,{picture}", "alt": alt, "width": width}
    if "text/markdown" in data:
        return {"kind": "html", "html": _markdown(_text(data["text/markdown"]))}
    for mime in ("text/plain", "text/latex", "application/json"):
        if mime in data:
            return {"kind": "text", "text": _terminal(_text(data[mime]))}
    return {"kind": "text", "text": f"not shown here: {', '.join(map(str, data)) or 'an output without content'}"}


def _terminal(text: str) -> str:
    """Return the final text on a terminal: no colours, and only the last state of an overwritten line."""
    lines = _ESCAPES.sub("", text).split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def _markdown(source: str) -> str:
    import mistune

    html = mistune.create_markdown(escape=False, plugins=["strikethrough", "table", "url"])(source)
    return clean(str(html))


def command(arguments: argparse.Namespace) -> int:
    """Print the path of a run's page; a run without one gets it made anew, outside of the archive.

    Raises RefusedError if the run is not archived or was altered, or if the file exists.
    """
    import nbformat

    chosen = chosen_archive(arguments)
    with local(chosen) as archive:
        entry = find_run(archive, arguments.run)
        line, path = entry.line, Path(arguments.output or f"{entry.run_id}.html")
        if not entry.sealed or not line:
            why = entry.faults[0] if entry.faults else "it was not archived"
            raise RefusedError(f"run {entry.run_id} has no page: {why}", "run the notebook again")
        name = PAGE if PAGE in line.data["files"] else NOTEBOOK
        content = read_regular(entry.folder / name)
        if sha256(content) != line.data["files"][name]:
            raise RefusedError(f"{entry.folder / name} was altered", "python -m abathur_nb verify shows what else was")
        if name == PAGE and not arguments.output and archive == chosen:  # a copy at a URL is only fetched
            path = entry.folder / PAGE
        else:
            if name == NOTEBOOK:
                notebook = nbformat.from_dict(json.loads(content))
                content = render(notebook, entry.sealed, as_template=line.data["as_template"])
            if os.path.lexists(path):
                raise RefusedError(f"{path} exists already", "name another file: --output FILE")
            make_private_file(path)
            path.write_bytes(content)
    sys.stdout.write(f"{os.path.abspath(path)}\n")
    return 0
