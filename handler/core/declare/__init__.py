"""
Steps, flows and parameters as their author declares them, and the manifest that describes them.

step, flow, params, annotations   what the author writes
manifest                          the same as data, and whether it is still up to date
project                           imports the author's code, and makes a manifest from it
catalog                           the manifest to use: the image's, the remembered one, or a new one
"""
