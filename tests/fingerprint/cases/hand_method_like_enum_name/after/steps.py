class Club:
    def _member_count_(self):
        return 4


def step(x):
    return Club()._member_count_()
