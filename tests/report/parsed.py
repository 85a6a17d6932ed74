"""A page as a reader of its markup sees it."""

from html.parser import HTMLParser

VOID = ("meta", "link", "img", "br", "hr")


class Page(HTMLParser):
    """The elements of a page, its tables as rows of text, and what was left open.

    `tables` maps captions to rows of cells; the first row is the head.
    """

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.open = [], {}, []
        self._text, self._rows = "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        """Note an element; cells gather their text."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("caption", "td", "th", "p", "li", "h1", "h2", "h3", "h4"):
            self._text = ""

    def handle_data(self, data):
        """Gather text."""
        self._text += data

    def handle_endtag(self, tag):
        """Close an element, which must be the last one opened."""
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()
        if tag in ("td", "th"):
            self._rows[-1].append(" ".join(self._text.split()))
        if tag == "caption":
            self.tables[self._text] = self._rows

    def of(self, tag):
        """Return the attributes of all elements with this name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def rows(self, caption):
        """Return the body of a table: dictionaries by the heads of its columns, in order."""
        head, *body = self.tables[caption]
        return [list(zip(head, row, strict=True)) for row in body]
