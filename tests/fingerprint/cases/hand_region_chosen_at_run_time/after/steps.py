import eu
import us


def step(x):
    region = eu if x else us
    return region.tax.rate()
