from registry import register

@register('a')
def run(x):
    return x + 1
