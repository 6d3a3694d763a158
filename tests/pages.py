"""What a browser would make of a page, and text that tries to be markup."""

from html.parser import HTMLParser

VOID = {"meta", "wbr"}
HOSTILE = '<script>alert("1")</script>&amp;\'$verdict ${title} </title>'


class Page(HTMLParser):
    """What a browser would make of the file: elements, the text they hold, and that all are closed."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts, self.rows = [], [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return "".join(self.texts)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def having(self, class_):
        return [attrs for _, attrs in self.elements if class_ in (attrs.get("class") or "").split()]
