"""Calls of mistune."""

import mistune

TEXT = """
# Title *with* emphasis

A paragraph with `code`, **strong** text, a [link](/url "title") and ![image](/a.png).
Second line with <b>html</b> & an entity &amp; a hard break\\
end. Footnote[^1], ~~gone~~, https://example.com/x

- one
- two
  1. nested
  2. list

> quote
> > inner

```python
print("x")
```

| a | b |
|---|--:|
| 1 | 2 |

- [x] done
- [ ] open

***

[ref]: /there 'Title'
See [ref].

[^1]: The note.
"""
PLUGINS = ["table", "footnotes", "strikethrough", "url", "task_lists", "def_list", "abbr", "math"]


def html():
    """HTML without plugins."""
    return mistune.html(TEXT)


def plugins():
    """HTML with plugins."""
    return mistune.create_markdown(plugins=PLUGINS)(TEXT)


def tokens():
    """The tree of tokens."""
    return mistune.create_markdown(renderer="ast")(TEXT)
