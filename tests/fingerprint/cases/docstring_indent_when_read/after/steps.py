class Tool:
    """
      A tool.
    """

def step(x):
    import inspect
    return inspect.getdoc(Tool) + x
