# -*- coding: utf-8 -*-
def step(x):
    return 'ä' + x
