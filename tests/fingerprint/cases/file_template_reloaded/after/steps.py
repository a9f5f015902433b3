from pathlib import Path

from jinja2 import Environment, FileSystemLoader

# the page
PAGE = Environment(loader=FileSystemLoader(Path(__file__).parent / "pages")).get_template("page.html")


def step(x):
    return PAGE.render(x=x)
