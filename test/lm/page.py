"""Reads a page of ours and checks what holds for all of them: whole, self-contained, nothing of what it quotes taken for markup."""
import html.parser


class Reader(html.parser.HTMLParser):
    void = {"meta", "rect", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(page)
        assert not self.open, self.open
        assert not {"script", "link", "img", "b"} & set(self.seen), self.seen

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        assert not any(name in ("src", "href", "onclick", "onload") for name, _ in attributes), (tag, attributes)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data
