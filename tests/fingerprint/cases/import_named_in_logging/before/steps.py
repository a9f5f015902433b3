from logging.config import dictConfig
import logging
def step():
    dictConfig({"version":1,"filters":{"f":{"()":"helpers.F"}},"handlers":{"h":{"class":"helpers.H","filters":["f"]}},"root":{"handlers":["h"]}})
    logging.getLogger().warning("x"); import sys; return sys.modules["helpers"].SEEN
