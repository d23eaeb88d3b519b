"""Reading a widget's picture."""

import xml.etree.ElementTree as ET


def svg_of(html: str) -> ET.Element:
    """The parsed picture in a widget's HTML."""
    return ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def alternative_text(html: str) -> str:
    root = svg_of(html)
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img" and title is not None and title.text == root.get("aria-label")
    return title.text
