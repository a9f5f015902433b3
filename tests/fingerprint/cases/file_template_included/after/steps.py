from pathlib import Path

from jinja2 import Environment, FileSystemLoader

PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent / "pages"))


def step(x):
    return PAGES.get_template("page.html").render(x=x)
