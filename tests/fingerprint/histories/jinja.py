"""Calls of Jinja."""

from jinja2 import DictLoader, Environment, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

BASE = "<title>{% block title %}Base{% endblock %}</title>{% block body %}{% endblock %}"
PAGE = """{% extends "base" %}
{% block title %}{{ super() }}: {{ title|title }}{% endblock %}
{% block body %}
{%- for item in items if item.price > 1 %}
  {{ loop.index }}. {{ item.name|e }} {{ "%.2f"|format(item.price) }}
  {%- if loop.last %} last{% else %}, {% endif %}
{%- else %}nothing{% endfor %}
{% set total = items|sum(attribute="price") %}{{ total|round(1) }}
{% macro field(name, value="x") %}<input name="{{ name }}" value="{{ value }}">{% endmacro %}
{{ field("a") }}{% include "part" %}{{ items|map(attribute="name")|join("-") }}
{% endblock %}"""
LOADER = DictLoader({"base": BASE, "page": PAGE, "part": "{# note #}part {{ 1 + 2 * 3 }}"})
ITEMS = [{"name": "<a>", "price": 1.5}, {"name": "b", "price": 0.5}, {"name": "c", "price": 12}]


def page():
    """A page with inheritance, loops and macros."""
    return Environment(loader=LOADER).get_template("page").render(title="my page", items=ITEMS)


def escaped():
    """The same, escaped and trimmed."""
    environment = Environment(loader=LOADER, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page").render(title="my page", items=ITEMS)


def filters():
    """Filters and tests."""
    text = (
        "{{ 'hello world foo'|wordwrap(8) }}|{{ [3,1,2]|sort|join(',') }}|{{ 'a b'|urlencode }}"
        "|{{ items|groupby('name')|length }}|{{ 'x'|center(5) }}|{{ 1234567|filesizeformat }}"
        "|{{ {'b': 1, 'a': 2}|dictsort }}|{{ 'abc'|reverse }}|{{ 3 is odd }}|{{ 'Ab' is lower }}"
        "|{{ 'see http://example.com now'|urlize }}|{{ items|tojson }}"
        "|{{ [1,2,3,4]|batch(3)|list }}"
        "|{{ 'long text here'|truncate(8) }}|{{ missing|default('none') }}"
    )
    return Environment().from_string(text).render(items=ITEMS)


def sandboxed():
    """Python code of a template, and errors."""
    environment = SandboxedEnvironment(undefined=StrictUndefined)
    code = environment.compile("{% for x in y %}{{ x }}{% endfor %}", raw=True)
    try:
        environment.from_string("{{ ''.__class__.mro() }}").render()
    except Exception as exc:
        return code, repr(exc)
    return code
