import contextlib

@contextlib.asynccontextmanager
async def scope(x):
    yield x + 1

async def step(x):
    async with scope(x) as y:
        return y
